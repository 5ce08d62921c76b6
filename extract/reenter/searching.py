"""Where the search through a problem's graph leads from another word, for problems that are answered with a word."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import xarray as xr

NEEDED = ("intermediate_text", "edges", "target", "neg_target", "other_answer")
"""Columns of a run whose problems carry their graphs, see :mod:`extract.run.data`."""


class Searches:
    """The searches of a run's problems, in the manner of :class:`extract.reenter.retelling.Chains`.

    The result of a step is the word that the way to the answer has reached. Another word can stand there if from it, in
    as many steps as are left, exactly one of the two words asked about is reached.
    """

    none = ""
    """What stands for no result."""

    def __init__(self, run: xr.Dataset) -> None:
        self.result = np.asarray(run["intermediate_text"].values, dtype=object)
        self.operation = np.full(self.result.shape, "", dtype=object)
        self.question = [str(text) for text in run["question"].values]
        self.n_step = (self.result != "").sum(1)
        self._answers = [
            {str(target): str(gold), str(neg_target): str(other)}
            for target, gold, neg_target, other in zip(
                *(run[name].values for name in ("target", "gold_answer", "neg_target", "other_answer")), strict=True
            )
        ]
        self._next = [_successors(str(text)) for text in run["edges"].values]
        self._words = sorted({word for words in self.result.tolist() for word in words if word})

    def values_of(self, texts: Sequence[str]) -> np.ndarray:
        """Result ``(text,)`` that each text is, empty where it is none."""
        known = set(self._words)
        return np.array([text if text in known else "" for text in texts], dtype=object)

    def retell(self, row: int, step: int, *, value: str | None = None, sign: str = "") -> np.ndarray | None:
        """Words ``(step,)`` of an example's way to what is reached from another word at a step.

        ``None`` where there is no such step or no step after it, or not exactly one of the words asked about is
        reached.
        """
        n = int(self.n_step[row])
        if value is None or not 0 <= step < n - 1:
            return None
        ways = [way for way in _ways(self._next[row], value, n - 1 - step) if way[-1] in self._answers[row]]
        if len({way[-1] for way in ways}) != 1:
            return None
        told = self.result[row].copy()
        told[step:n] = ways[0]
        return np.asarray(told)

    def answer_of(self, row: int, told: np.ndarray) -> str:
        """The answer that a way ends with, as answers are written."""
        return self._answers[row][told[int(self.n_step[row]) - 1]]

    answer_text = answer_of


def has_searches(run: xr.Dataset) -> bool:
    """Whether the problems of a run carry graphs whose search answers them."""
    return all(name in run.data_vars for name in NEEDED)


def _successors(edges: str) -> dict[str, list[str]]:
    """Words that follow each word, from ``a>b a>c``."""
    following: dict[str, list[str]] = defaultdict(list)
    for edge in edges.split():
        start, _, end = edge.partition(">")
        following[start].append(end)
    return following


def _ways(following: dict[str, list[str]], start: str, length: int) -> list[list[str]]:
    """All ways of so many steps from a word, itself first."""
    ways = [[start]]
    for _ in range(length):
        ways = [[*way, end] for way in ways for end in following.get(way[-1], ())]
    return ways
