"""A problem as one model went through it: texts, lens, attention, and what re-entries did to its answer."""

import base64
from collections.abc import Container, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from analyze.context import Context
from analyze.effects.outcomes import answer_of, outcome_rows
from analyze.lens.logit import logit_lens
from analyze.traces.nodes import nodes_of
from schemas import number_text, segment_of
from schemas.naming import FED
from store.results import preferred

N_ANSWER = 3
"""Answer tokens shown of each problem."""


def problems(
    context: Context, name: str, examples: Sequence[int], *, most_layers: int | None = None, every: bool = False
) -> dict[str, Any]:
    """Some problems of a run.

    Parameters
    ----------
    context, name
        Lake and run.
    examples
        Labels of the problems.
    most_layers
        Layers shown at most, evenly spread over those of a deeper model.
    every
        Every stored re-entry and condition, instead of a part of each kind's preferred one.

    Returns
    -------
    dict
        ``layers``, ``heads``, ``strings`` (tokens by the numbers that stand in ``lens``), ``conditions`` and ``items``,
        one for each problem.
    """
    if not len(examples):
        return {"layers": [], "heads": [], "strings": [], "conditions": [], "items": []}
    run = context.rows(name).sel(example=list(examples))
    model = context.model(name)
    labels = places_of(run)
    layers = [int(x) for x in run["layer"].values]
    if most_layers is not None and len(layers) > most_layers:
        layers = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, most_layers).round().astype(int))]
    chain = [name for name in ("intermediate_result", "intermediate_text", "operation") if name in run]
    small = run[["hidden_state", "gold_answer", *chain]]
    small = small.sel(position=labels, layer=layers).load()
    lens = logit_lens(small, model, positions=labels, top=5 if len(layers) <= 6 else 3).compute()
    texts = run[
        [v for v in run.data_vars if set(run[v].dims) <= {"example", "step", "position"} and v != "final_state"]
    ].load()
    weights = _weights(run["attention"].sel(position=labels, layer=layers).load().mean("head"))
    strings = Strings(model["token_string"].values)
    trees = _trees(context, name)
    conditions, outcomes = outcome_rows(context, name, [int(x) for x in examples], every=every)
    keys = [str(x) for x in run["key_position"].values]
    items = []
    for index, example in enumerate(examples):
        row = texts.isel(example=index)
        read_out, there = _read_out(lens.isel(example=index), strings)
        seen = (weights[index] > 0).any((0, 1))
        kept = _kept_keys(keys, seen, labels)
        tokens = row["token"].sel(position=[labels[p] for p in there]).values
        n_question = sum(segment_of(keys[k]) == "question" for k in kept)
        question, exact = question_tokens(str(row["question"].item()), n_question, row["token"], strings)
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
                "attention": packed(weights[index][:, there][:, :, kept]),
                "outcomes": outcomes.get(int(example), []),
                "trace": _trace(trees, int(example)),
            }
        )
    heads = [int(x) for x in run["head"].values]
    return {"layers": layers, "heads": heads, "strings": strings.used, "conditions": conditions, "items": items}


def _trees(context: Context, name: str) -> xr.Dataset | None:
    """Traces of a run at the last layer read, of the preferred result; none where there is no result."""
    stored = preferred(result for result in context.results if result.kind == "traces" and result.runs == (name,))
    return context.open(stored[0]).isel(layer=-1) if stored else None


def _trace(trees: xr.Dataset | None, example: int) -> dict[str, Any] | None:
    """What the thoughts of one problem read as, and the tree that explains its answer."""
    if trees is None or example not in trees.indexes["example"]:
        return None
    one = trees[["read", "tree", "n_tree", "recovered"]].sel(example=example)
    places, tree = [*map(str, one["position"].values), "answer"], str(one["tree"].item())
    return {
        "places": places,
        "read": [str(text) for text in one["read"].values],
        "nodes": [
            [places.index(place), text, [places.index(source) for source in operands]]
            for place, text, operands in nodes_of(tree)
        ],
        "tree": tree,
        "n": int(one["n_tree"]),
        "written": bool(one["recovered"]),
        "how": f"{trees.attrs['lens']} lens, "
        + ("vectors fed" if int(trees["layer"]) == FED else f"layer {int(trees['layer'])}"),
    }


def places_of(run: xr.Dataset) -> list[str]:
    """Positions that the explorer shows: from where the question ends to the first answer tokens."""
    labels = [str(x) for x in run["position"].values if segment_of(str(x)) != "question"]
    return [x for x in labels if not x.startswith("a") or int(x[1:]) < N_ANSWER]


def head_attention(context: Context, name: str, example: int, layer: int, head: int) -> str:
    """Where one head looks in one problem, packed, for the places and keys that :func:`problems` gives of it."""
    run = context.run(name).sel(example=[example])
    labels = places_of(run)
    weights = run["attention"].sel(position=labels).load()
    mean = _weights(weights.mean("head"))[0]
    here = _weights(weights.sel(layer=[layer], head=head))[0]
    seen = (mean > 0).any((0, 1))
    kept = _kept_keys([str(x) for x in run["key_position"].values], seen, labels)
    tokens_there = np.isfinite(run["hidden_state"].isel(layer=0, hidden=0).sel(position=labels).values[0])
    return packed(here[:, np.flatnonzero(tokens_there)][:, :, kept])


def _weights(attention: xr.DataArray) -> np.ndarray:
    values = attention.astype("float32").transpose("example", "layer", "position", "key_position").values
    return np.asarray(values)


def _kept_keys(keys: Sequence[str], seen: np.ndarray, labels: Sequence[str]) -> list[int]:
    """Keys that anything looks at, none of answer tokens that are not shown."""
    return [k for k, key in enumerate(keys) if seen[k] and (segment_of(key) == "question" or key in labels)]


def packed(weights: np.ndarray) -> str:
    """Attention as bytes in base 64: 255 times the square root, so that small shares keep their digits."""
    return base64.b64encode(np.round(255 * np.sqrt(np.clip(weights, 0, 1))).astype("uint8").tobytes()).decode()


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
        "operations": operations_of(row["operation"].values) if "operation" in row else [],
        "gold": str(row["gold_answer"].item()),
        "text": str(row["generated_text"].item()),
        "predicted": answer_of(row["predicted_answer"].item()),
        "correct": bool(row["correct"].item()),
        "logprob": number_of(row["answer_logprob"].item()),
        "chain": chain_of(row),
    }


def operations_of(operation: Any) -> list[str]:
    """Operations of a written chain, each once, in order."""
    return sorted({str(one) for one in np.atleast_1d(operation) if str(one)})


def chain_of(row: xr.Dataset) -> list[str]:
    """Steps of the written chain, as ``12 + 3 = 15`` or in words."""
    if "intermediate_result" not in row:
        return []
    if "step_text" in row and (written := [str(text) for text in np.atleast_1d(row["step_text"].values) if text]):
        return written
    results = np.atleast_1d(row["intermediate_result"].values)
    sides = np.atleast_1d(row["expression"].values) if "expression" in row else [""] * len(results)
    return [
        f"{str(side).replace('*', '×').replace('/', '÷')} = {number_text(value)}".removeprefix(" = ")
        for side, value in zip(sides, results, strict=True)
        if np.isfinite(value)
    ]


def question_tokens(question: str, n: int, tokens: xr.DataArray, strings: "Strings") -> tuple[list[str], bool]:
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
        return [readable(strings.every[t]) for t in stored], True
    cut = greedy_cut(question, *vocabulary(tuple(strings.every)))
    for extra in (0, 1):  # LLaMA's tokenizer puts a start token in front
        if len(cut) + extra == n:
            return [""] * extra + cut, False
    return [""] * n, False


@lru_cache(maxsize=4)
def vocabulary(strings: tuple[str, ...]) -> tuple[frozenset[str], int, bool]:
    """Tokens as text, the length of the longest, and whether any begins with a space."""
    known = frozenset(map(readable, strings))
    longest = max(map(len, known), default=1)
    return known, longest, any(text.startswith(" ") and len(text) > 1 for text in known)


def greedy_cut(text: str, known: Container[str], longest: int, spaced: bool) -> list[str]:
    """Longest tokens of the vocabulary, from the left; empty where some of the text is in none."""
    cut, place = [], 0
    while place < len(text):
        if not spaced and text[place] == " ":
            place += 1
            continue
        for size in range(min(longest, len(text) - place), 0, -1):
            if text[place : place + size] in known:
                cut.append(text[place : place + size])
                place += size
                break
        else:
            return []
    return cut


def readable(token: Any) -> str:
    """Token as text: the space marks of byte-level and SentencePiece vocabularies are spaces."""
    return (
        str(token)
        .replace("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", " ")
        .replace("▁", " ")
        .replace("\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}", "\n")
    )


def number_of(value: Any, digits: int = 3) -> float | None:
    """A finite number, rounded; else ``None``."""
    number = float(value)
    return round(number, digits) if np.isfinite(number) else None
