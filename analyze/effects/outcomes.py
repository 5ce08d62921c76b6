"""What re-entries did to single problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyze.context import Context
from analyze.effects.conditions import UNTOUCHED, conditions, labels_of
from store.results import Result, preferred

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
KEPT = 16
"""Results whose columns are held at once."""


def outcome_rows(
    context: Context, run: str, examples: Sequence[int], *, every: bool = False
) -> tuple[list[list[str]], dict[int, list[Any]]]:
    """Conditions of a run's re-entries, and what each did to each example.

    Parameters
    ----------
    context, run, examples
        Lake, run, and labels of the problems.
    every
        All conditions of all results, instead of some of each kind's preferred one.

    Returns
    -------
    conditions
        Experiment, condition in words, and a key of the two.
    rows
        For each example, rows of: number of the condition, answer, change of the right answer's log probability (the
        clean one's where pairs were patched), and the outcome where the experiment names one.
    """
    named: list[list[str]] = []
    rows: dict[int, list[Any]] = {}
    for result, title in reentries(context, run, every=every):
        columns = outcome_columns(context, result, every=every)
        first = len(named)
        named.extend([title, words, f"{result.fingerprint[:12]}.{i}"] for i, words in columns.named.items())
        place = {int(label): i for i, label in enumerate(columns.example)}
        for example in examples:
            if example in place:
                cells = [[first + n, *columns.cell(i, place[example])] for n, i in enumerate(columns.named)]
                rows.setdefault(example, []).extend(cells)
    return named, rows


def reentries(context: Context, run: str, *, every: bool = False) -> list[tuple[Result, str]]:
    """Stored re-entries of a run that say what became of each problem: of each kind the preferred one, or all."""
    by_kind: dict[str, list[Result]] = {}
    for result in context.results:
        if result.runs == (run,):
            by_kind.setdefault(result.kind, []).append(result)
    taken = []
    for kind, results in by_kind.items():
        title = TITLES.get(kind, kind.replace("_", " "))
        fitting = [result for result in preferred(results) if tells_of_examples(context.open(result))]
        for result in fitting if every else fitting[:1]:
            options = " ".join(result.command[5:])
            taken.append((result, f"{title} {options}" if len(fitting) > 1 and every and options else title))
    return taken


def tells_of_examples(data: xr.Dataset) -> bool:
    """Whether a result has an answer for each condition and problem."""
    return {"condition", "example"} <= set(data.dims) and "predicted_answer" in data


def shown_conditions(data: xr.Dataset, *, every: bool = False) -> Any:
    """Conditions that are not controls; of many ``MOST``, evenly over the sweep, unless ``every`` one is wanted."""
    frame = conditions(data)
    kept = frame[frame["condition"].astype(str) != UNTOUCHED]
    if every:
        return kept
    kept = kept[kept["control"] == ""]
    if len(kept) > MOST:  # so that every place and kind is there
        kept = kept.iloc[np.unique(np.linspace(0, len(kept) - 1, MOST).round().astype(int))]
    return kept


@dataclass(frozen=True, slots=True)
class Columns:
    """What became of each problem under each condition of a result."""

    named: dict[int, str]
    """Conditions that are shown, in words, by their place."""
    example: np.ndarray
    predicted: np.ndarray  # (condition, example)
    change: np.ndarray  # (condition, example), of the log probability
    outcome: np.ndarray | None  # (condition, example)

    def cell(self, condition: int, place: int) -> list[Any]:
        """Answer, change of the log probability, and outcome where there is one."""
        change = self.change[condition, place]
        row = [
            answer_of(self.predicted[condition, place]),
            round(float(change), 2) if np.isfinite(change) else None,
        ]
        if self.outcome is not None:
            row.append(str(self.outcome[condition, place]).replace("_", " "))
        return row


def outcome_columns(context: Context, result: Result, *, every: bool = False) -> Columns:
    """Columns of a re-entry, kept for the next problem."""
    key = (result.name, every)
    if key not in context.columns:
        data = context.open(result)
        logprob = data["answer_logprob"].transpose("condition", "answer", "example").values[:, 0]
        frame = shown_conditions(data, every=every)
        while len(context.columns) >= KEPT:
            context.columns.pop(next(iter(context.columns)), None)
        context.columns[key] = Columns(
            {int(i): labels_of(frame.loc[i].to_dict()) for i in frame.index},
            data["example"].values,
            data["predicted_answer"].transpose("condition", "example").values,
            logprob - logprob[:1],
            data["outcome"].transpose("condition", "example").values if "outcome" in data else None,
        )
    columns: Columns = context.columns[key]
    return columns


def answer_of(value: float | str) -> float | int | str | None:
    """A predicted answer for the page's script: a number, or a text; ``None`` where there is none."""
    if isinstance(value, str):
        return value or None
    if not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")
