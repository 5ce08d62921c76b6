"""What re-entries did to single problems."""

from typing import Any

import numpy as np

from analyze.context import Context
from analyze.effects.conditions import UNTOUCHED, conditions, labels_of
from store.read import Result, preferred

TITLES = {
    "ablate": "Position ablation",
    "corrupt": "One thought corrupted",
    "patch": "Patching from the clean twin",
    "ablate_heads": "Heads zeroed",
    "edges": "Attention edges cut",
    "steer": "Steering",
}
MOST = 64
"""Conditions of one experiment that are embedded for each problem."""


def outcome_rows(context: Context, run: str, examples: list[int]) -> tuple[list[list[str]], dict[int, list[Any]]]:
    """Every condition of a run's re-entries, of each kind the preferred one, and what each did to each example.

    Returns
    -------
    conditions
        Experiment and condition in words.
    rows
        For each example, rows of: number of the condition, number answered, change of the right answer's log
        probability (the clean one's where pairs were patched), and the outcome where the experiment names one.
    """
    named: list[list[str]] = []
    rows: dict[int, list[Any]] = {}
    by_kind: dict[str, list[Result]] = {}
    for result in context.results:
        if result.runs == (run,):
            by_kind.setdefault(result.kind, []).append(result)
    for kind, results in by_kind.items():
        data = context.open(preferred(results)[0])
        if not {"condition", "example"} <= set(data.dims) or "predicted_answer" not in data:
            continue
        frame = conditions(data)
        kept = frame[(frame["condition"].astype(str) != UNTOUCHED) & (frame["control"] == "")]
        shown = kept.index.to_numpy()
        if len(shown) > MOST:  # evenly over the sweep, so that every place and kind is there
            shown = shown[np.unique(np.linspace(0, len(shown) - 1, MOST).round().astype(int))]
        title = TITLES.get(kind, kind.replace("_", " "))
        first = len(named)
        named.extend([title, labels_of(frame.loc[i].to_dict())] for i in shown)
        predicted = data["predicted_answer"].transpose("condition", "example").values
        logprob = data["answer_logprob"].transpose("condition", "answer", "example").values[:, 0]
        outcome = data["outcome"].transpose("condition", "example").values if "outcome" in data else None
        place = {int(label): i for i, label in enumerate(data["example"].values)}
        for example in examples:
            if example not in place:
                continue
            at = place[example]
            for number, index in enumerate(shown):
                change = logprob[index, at] - logprob[0, at]
                value = predicted[index, at]
                row: list[Any] = [
                    first + number,
                    answer_of(value),
                    round(float(change), 2) if np.isfinite(change) else None,
                ]
                if outcome is not None:
                    row.append(str(outcome[index, at]).replace("_", " "))
                rows.setdefault(example, []).append(row)
    return named, rows


def answer_of(value: float | str) -> float | int | str | None:
    """A predicted answer for the page's script: a number, or a text; ``None`` where there is none."""
    if isinstance(value, str):
        return value or None
    if not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else round(float(value), 4)
