"""Data behind the page's interactive parts: some problems of every run, and every head."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.context import Context
from analyze.effects.outcomes import answer_of, outcome_rows
from analyze.heads.command import by_thoughts
from analyze.heads.scores import head_table
from analyze.lens.logit import logit_lens
from schemas import segment_of

N_ANSWER = 3
"""Answer tokens shown of each problem."""
WINDOW = 1024
"""Neighbouring examples that problems are chosen from where no more are wanted, so that few shards are read."""
MAX_LAYER = 12
"""Layers whose attention is embedded; of a deeper model these many, evenly spread."""


def page_data(context: Context, *, n_problem: int, seed: int) -> dict[str, Any]:
    """Everything the page's script reads."""
    chosen = choose_problems(context, n_problem, seed)
    runs = []
    for name in context.runs:
        look = context.looks[name]
        runs.append(
            {
                "name": name,
                "label": look.label,
                "problems": problems(context, name, chosen[name]),
                "heads": heads(context, name),
            }
        )
    return {"runs": runs}


def choose_problems(context: Context, n: int, seed: int) -> dict[str, list[int]]:
    """Examples of each run: the same for runs over the same data, spread over who answered them rightly.

    Every pattern of right and wrong over the runs gives one in turn until ``n`` are found, so that rare ones are there.
    """
    groups: dict[str, list[str]] = {}
    for name in context.runs:
        data = context.lake.attributes(name)["data"]
        groups.setdefault(str(data.get("sha256", name)), []).append(name)
    chosen = {}
    for names in groups.values():
        correct = {name: context.run(name)["correct"].compute().to_series() for name in names}
        common = set.intersection(*(set(each.index) for each in correct.values()))
        rng = np.random.default_rng(seed)
        labels = sorted(common)
        window = max(WINDOW, n)
        if len(labels) > window:
            first = int(rng.integers(0, len(labels) - window + 1))
            labels = labels[first : first + window]
        order = rng.permutation(labels)
        patterns: dict[tuple[bool, ...], list[int]] = {}
        for example in order:
            patterns.setdefault(tuple(bool(correct[name][example]) for name in names), []).append(int(example))
        taken: list[int] = []
        while len(taken) < min(n, len(order)):
            for queue in patterns.values():
                if queue and len(taken) < n:
                    taken.append(queue.pop())
        for name in names:
            chosen[name] = sorted(taken)
    return chosen


def problems(context: Context, name: str, examples: Sequence[int]) -> dict[str, Any]:
    """Chosen problems of a run: texts, lens, attention, and what re-entries did to them."""
    if not examples:
        return {"items": []}
    run = context.run(name).sel(example=list(examples))
    model = context.lake.model(name.partition("/")[0])
    labels = [str(x) for x in run["position"].values if segment_of(str(x)) != "question"]
    labels = [x for x in labels if not x.startswith("a") or int(x[1:]) < N_ANSWER]
    layers = [int(x) for x in run["layer"].values]
    if len(layers) > MAX_LAYER:
        layers = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, MAX_LAYER).round().astype(int))]
    chain = [name for name in ("intermediate_result", "intermediate_text", "operation") if name in run]
    small = run[["hidden_state", "gold_answer", *chain]]
    small = small.sel(position=labels, layer=layers).load()
    lens = logit_lens(small, model, positions=labels, top=5 if len(layers) <= 6 else 3).compute()
    texts = run[
        [v for v in run.data_vars if set(run[v].dims) <= {"example", "step", "position"} and v != "final_state"]
    ].load()
    attention = run["attention"].sel(position=labels, layer=layers).mean("head")
    weights = attention.astype("float32").transpose("example", "layer", "position", "key_position").values
    strings = Strings(model["token_string"].values)
    conditions, outcomes = outcome_rows(context, name, [int(x) for x in examples])
    keys = [str(x) for x in run["key_position"].values]
    items = []
    for index, example in enumerate(examples):
        row = texts.isel(example=index)
        read_out, there = _read_out(lens.isel(example=index), strings)
        seen = (weights[index] > 0).any((0, 1))
        kept = [k for k, key in enumerate(keys) if seen[k] and (segment_of(key) == "question" or key in labels)]
        packed = np.round(255 * np.sqrt(np.clip(weights[index][:, there][:, :, kept], 0, 1))).astype("uint8")
        tokens = row["token"].sel(position=[labels[p] for p in there]).values
        n_question = sum(segment_of(keys[k]) == "question" for k in kept)
        question, exact = question_tokens(str(row["question"].item()), n_question, row["token"], strings.every)
        items.append(
            {
                **_facts(row),
                "id": int(example),
                "tokens": question,
                "exact": exact,
                "places": [labels[p] for p in there],
                "fed": [readable(strings.every[token]) if token >= 0 else "" for token in tokens],
                "keys": [keys[k] for k in kept],
                "lens": read_out,
                "attention": base64.b64encode(packed.tobytes()).decode(),
                "outcomes": outcomes.get(int(example), []),
            }
        )
    return {"layers": layers, "strings": strings.used, "conditions": conditions, "items": items}


class Strings:
    """Those strings of a vocabulary that are met, numbered in the order of their first use."""

    def __init__(self, every: np.ndarray) -> None:
        self.every = every
        self._number: dict[int, int] = {}

    def number(self, token: int) -> int:
        """Number of a token among those used."""
        return self._number.setdefault(int(token), len(self._number))

    @property
    def used(self) -> list[str]:
        """Strings by their number."""
        return [readable(self.every[token]) for token in self._number]


def _read_out(lens: xr.Dataset, strings: Strings) -> tuple[list[Any], list[int]]:
    """Best tokens of one example with their chances in thousandths, by layer and position; positions it has."""
    ids = lens["top_token"].transpose("layer", "position", "rank").values
    chances = lens["top_probability"].transpose("layer", "position", "rank").values
    there = [place for place in range(ids.shape[1]) if ids[0, place, 0] >= 0]
    cells = [
        [
            [
                [strings.number(token), round(1000 * float(chance))]
                for token, chance in zip(ids[layer, place], chances[layer, place], strict=True)
            ]
            for place in there
        ]
        for layer in range(len(ids))
    ]
    return cells, there


def _facts(row: xr.Dataset) -> dict[str, Any]:
    """Question and answers of one example."""
    return {
        "question": str(row["question"].item()),
        "gold": str(row["gold_answer"].item()),
        "text": str(row["generated_text"].item()),
        "predicted": answer_of(row["predicted_answer"].item()),
        "correct": bool(row["correct"].item()),
        "logprob": _number(row["answer_logprob"].item()),
        "chain": chain_of(row),
    }


def chain_of(row: xr.Dataset) -> list[str]:
    """Steps of the written chain, as ``12 + 3 = 15`` or in words."""
    if "intermediate_result" not in row:
        return []
    if "step_text" in row and (written := [str(text) for text in np.atleast_1d(row["step_text"].values) if text]):
        return written
    results = np.atleast_1d(row["intermediate_result"].values)
    sides = np.atleast_1d(row["expression"].values) if "expression" in row else [""] * len(results)
    return [
        f"{str(side).replace('*', '×').replace('/', '÷')} = {value:g}".removeprefix(" = ")
        for side, value in zip(sides, results, strict=True)
        if np.isfinite(value)
    ]


def question_tokens(question: str, n: int, tokens: xr.DataArray, strings: np.ndarray) -> tuple[list[str], bool]:
    """Text of each question token, and whether it is known to be exact.

    A run that holds the question's tokens says them. Otherwise the question is cut greedily into tokens of the
    vocabulary; if that does not give the number of tokens there are, they are named by their place.
    """
    stored = [
        int(t)
        for t, label in zip(tokens.values, tokens["position"].values, strict=True)
        if segment_of(str(label)) == "question" and t >= 0
    ]
    if len(stored) == n and n:
        return [readable(strings[t]) for t in stored], True
    cut = greedy_cut(question, strings)
    for extra in (0, 1):  # LLaMA's tokenizer puts a start token in front
        if len(cut) + extra == n:
            return [""] * extra + cut, False
    return [""] * n, False


def greedy_cut(text: str, strings: np.ndarray) -> list[str]:
    """Longest tokens of the vocabulary, from the left; empty where some of the text is in none."""
    known = {readable(s): True for s in strings}
    longest = max((len(s) for s in known), default=1)
    spaced = any(s.startswith(" ") and len(s) > 1 for s in known)
    found, place = [], 0
    while place < len(text):
        if not spaced and text[place] == " ":
            place += 1
            continue
        for size in range(min(longest, len(text) - place), 0, -1):
            if text[place : place + size] in known:
                found.append(text[place : place + size])
                place += size
                break
        else:
            return []
    return found


def readable(token: Any) -> str:
    """Token as text: the space marks of byte-level and SentencePiece vocabularies are spaces."""
    return (
        str(token)
        .replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", " ")
        .replace("▁", " ")
        .replace("\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}", "\n")
    )


def heads(context: Context, name: str) -> dict[str, Any] | None:
    """Map and scores of every head of a run."""
    found = [result for result in context.find("heads", by_thoughts) if result.run == name]
    if not found:
        return None
    data = found[0].data
    pattern = data["pattern"].transpose("layer", "head", "position", "key_position")
    table = head_table(data)
    ranked = [
        {
            "layer": int(h["layer"]),
            "head": int(h["head"]),
            "rank": int(h["rank"]),
            "type": str(h["type"]),
            "band": str(h["band"]),
            "hub_position": str(h["hub_position"]),
            **{
                key: _number(h[key], 4)
                for key in (
                    "composite",
                    "composite_low",
                    "composite_high",
                    "flow",
                    "hub",
                    "skip",
                    "sequential",
                    "max_attention",
                    "top_share",
                    "hub_agreement",
                )
                if key in h
            },
        }
        for _, h in table.iterrows()
    ]
    result: dict[str, Any] = {
        "layers": [int(x) for x in pattern["layer"].values],
        "heads": [int(x) for x in pattern["head"].values],
        "thoughts": [str(x) for x in pattern["position"].values],
        "pattern": _mille(pattern.values),
        "ranked": ranked,
        "mark": found[0].stored.fingerprint[:12],
    }
    shares = [f for f in context.find("attention") if f.run == name]
    if shares:
        share = shares[0].data["share"].transpose("layer", "head", "query", "target")
        result |= {
            "queries": [str(x) for x in share["query"].values],
            "targets": [str(x) for x in share["target"].values],
            "share": _mille(share.values),
        }
    return result


def _mille(values: np.ndarray) -> list[Any]:
    """Thousandths as whole numbers, -1 where there is none."""
    scaled = np.where(np.isfinite(values), np.round(1000 * np.nan_to_num(values)), -1).astype(int)
    return scaled.tolist()  # type: ignore[no-any-return]


def _number(value: Any, digits: int = 3) -> float | None:
    number = float(value)
    return round(number, digits) if np.isfinite(number) else None
