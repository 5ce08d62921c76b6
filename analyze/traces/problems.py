"""What the problems of a run ask and the model answers, for traces: numbers and steps, or words and graphs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from analyze.lens.tokens import Tokens
from analyze.traces.arithmetic import Step, same_number, trees, written_step
from analyze.traces.search import read_graph, ways_read
from schemas import AnswerKind, answer_word, number_text

Array = np.ndarray[Any, np.dtype[Any]]
N_OPERAND = 3
"""Operands of a written step that are looked for among the read-outs."""


_text = lru_cache(maxsize=4096)(number_text)
"""The same numbers are read again and again, and their texts kept for every example."""


class Solution(NamedTuple):
    """What the read-out of one problem's thoughts is explained by."""

    n_tree: int
    """Trees that explain it equally well."""
    found: bool
    """Whether there is one that uses what a thought reads as."""
    recovered: bool
    """Whether the written chain is among them."""
    in_order: bool
    """Whether the results of the written chain before the last are read, one thought after another."""
    texts: tuple[str, ...]
    """Steps of the written chain's tree where it is one of them, else of the first."""


class NumberProblems:
    """Problems whose steps arrive at numbers, by the row of an example.

    ``counted`` (example): whether its chain can be looked for: two steps or more, and every result before the last a
    token. ``asked`` (example, what, spelling): tokens whose ranks are asked for: results and operands, then those of
    another problem.
    """

    def __init__(self, run: xr.Dataset, tokens: Tokens, other: Array) -> None:
        self._tokens = tokens
        self._question = [str(text) for text in run["question"].values]
        self._answer = np.asarray(run["predicted_answer"].values, dtype="float64")
        results = np.asarray(run["intermediate_result"].transpose("example", "step").values, dtype="float64")
        texts = run["expression"].transpose("example", "step").values if "expression" in run else None
        self._chain = [_steps(row, None if texts is None else texts[index]) for index, row in enumerate(results)]
        self._inner = [tuple(map(same_number, row[np.isfinite(row)][:-1].tolist())) for row in results]
        self._n_operand = 3 if any(len(s.operands) > 2 for chain in self._chain for s in chain or ()) else 2
        operands = np.full((*results.shape, N_OPERAND), np.nan)
        for row, chain in enumerate(self._chain):
            for index, step in enumerate(chain or ()):
                kept = step.operands[:N_OPERAND]
                operands[row, index, : len(kept)] = kept
        wanted = np.concatenate([results[..., None], operands], -1).reshape(len(results), -1)
        own = np.stack([self._ids(column) for column in wanted.T], 1)
        self.asked = np.concatenate([own, own[other]], 1)
        readable = [bool(np.all(self._ids(np.array(inner)).max(-1) >= 0)) for inner in self._inner]
        long = [chain is not None and len(chain) > 1 for chain in self._chain]
        self.counted = np.array(readable, dtype=bool) & np.array(long, dtype=bool)

    def _ids(self, values: Array) -> Array:
        """Tokens that say numbers, (.., spelling)."""
        known, place = np.unique(values, return_inverse=True)
        spelled = [self._tokens.whole(number_text(value)) if np.isfinite(value) else (-1, -1) for value in known]
        return np.array(spelled, dtype="int32").reshape(-1, 2)[place.reshape(values.shape)]

    def read(self, token: Array) -> Array:
        """The likeliest number among the best tokens (example, position, best) of each place; NaN: none is one."""
        value = self._tokens.meaning(np.maximum(token, 0))[1]
        value = np.where(token >= 0, value, np.nan)
        first = np.isfinite(value).argmax(-1)
        return np.asarray(np.take_along_axis(value, first[..., None], -1)[..., 0])

    def texts(self, row: int, read: Sequence[Any]) -> list[str]:
        """Numbers read; empty where there is none."""
        return [_text(value) if np.isfinite(value) else "" for value in read]

    def solve(self, row: int, read: Sequence[Any], places: Sequence[str]) -> Solution:
        """Trees of valid steps that end at the model's answer."""
        best, found = trees(self._question[row], read, places, float(self._answer[row]), self._n_operand)
        chain = frozenset(self._chain[row] or ())
        own = [tree for tree in best if tree.steps == chain]
        shown = next(iter(own or best), None)
        return Solution(
            len(best), found, bool(own) and found, _in_order(self._inner[row], [[value] for value in read]),
            () if shown is None else shown.texts,
        )  # fmt: skip


class WordProblems:
    """Problems whose steps arrive at words, with or without a graph they lie in; as :class:`NumberProblems`."""

    def __init__(self, run: xr.Dataset, tokens: Tokens, other: Array) -> None:
        kind: AnswerKind = run.attrs.get("answer_kind", "text")
        steps = run["intermediate_text"].transpose("example", "step").values
        self._chain = [tuple(str(word) for word in row if word) for row in steps]
        self._answer = [answer_word(str(text), kind) for text in run["predicted_answer"].values]
        words = np.concatenate([steps, steps[other]], 1)
        self._tokens = tokens
        self.asked = tokens.begin(map(str, words.ravel())).reshape(*words.shape, 2)
        whole = {"root", "edges"} <= set(map(str, run.data_vars))
        self.graphs = [read_graph(str(a), str(b)) for a, b in zip(run["root"].values, run["edges"].values, strict=True)
                       ] if whole else None  # fmt: skip
        self._names = [self._beginnings(row) for row in range(len(steps))]
        readable = (self.asked[:, : steps.shape[1]].max(-1) >= 0).sum(1)
        self.counted = np.array([len(chain) > 1 and readable[row] == len(chain) for row, chain in
                                 enumerate(self._chain)], dtype=bool)  # fmt: skip

    def nodes(self, row: int) -> list[str]:
        """Words of a problem: nodes of its graph, or what its steps arrive at."""
        if self.graphs is None:
            return list(dict.fromkeys(self._chain[row]))
        edges = self.graphs[row].edges
        return list(dict.fromkeys([*edges, *(end for ends in edges.values() for end in ends)]))

    def _beginnings(self, row: int) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for name in self.nodes(row):
            for token in set(self._tokens.first(name)) - {-1}:
                names.setdefault(token, []).append(name)
        return names

    def read(self, token: Array) -> Array:
        """The best tokens of each place, as they are."""
        return token

    def named(self, row: int, read: Sequence[Sequence[int]]) -> list[list[str]]:
        """Nodes of a problem that the best tokens of each place begin."""
        names = self._names[row]
        return [[name for token in place for name in names.get(token, ())] for place in read]

    def texts(self, row: int, read: Sequence[Any]) -> list[str]:
        """Nodes read, with spaces between them."""
        return [" ".join(dict.fromkeys(names)) for names in self.named(row, read)]

    def solve(self, row: int, read: Sequence[Any], places: Sequence[str]) -> Solution:
        """Ways along edges that end at the model's answer."""
        names, chain = self.named(row, read), self._chain[row]
        in_order = _in_order(chain[:-1], names)
        if self.graphs is None:
            return Solution(0, False, False, in_order, ())
        ways = ways_read(self.graphs[row], names, places, self._answer[row])
        own = [way for way in ways if way.nodes == chain]
        shown = next(iter(own or ways), None)
        return Solution(len(ways), bool(ways), bool(own), in_order, () if shown is None else shown.texts)


Problems = NumberProblems | WordProblems


def problems_of(run: xr.Dataset, tokens: Tokens, other: Array) -> Problems:
    """Problems of a run; ``other`` is for each row the row of another problem."""
    return (NumberProblems if run.attrs.get("answer_kind", "number") == "number" else WordProblems)(run, tokens, other)


def _steps(results: Array, expressions: Array | None) -> list[Step] | None:
    """Written steps of a problem; ``None`` where one cannot be read."""
    if expressions is None:
        return None
    kept = [written_step(str(text), value) for text, value in zip(expressions, results, strict=True) if value == value]
    return None if None in kept else [step for step in kept if step is not None]


def _in_order(wanted: Sequence[Any], read: Sequence[Sequence[Any]]) -> bool:
    """Whether everything wanted is read, each at a later place than the one before."""
    place = 0
    for token in wanted:
        while place < len(read) and token not in read[place]:
            place += 1
        if place == len(read):
            return False
        place += 1
    return True
