"""Best tokens, logarithms of sums of exponentials, and ranks, of logits that come block by block."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

GROUP = 32
"""Tokens whose highest logit is taken first; see :class:`Best`."""
TILE = 128
"""Tokens whose logits are gone through again and again while in the cache: whole groups, and fewer than 256."""
LEAST = np.finfo("float32").min
"""Logit of no token."""


def outranking(block: Array, start: int, bar: Array, wanted: Array) -> Array:
    """How many logits of a block (token, state) that begins at a token lie above bars: (state, what).

    A wanted token (state, what, spelling) does not outrank itself by rounding.
    """
    count = np.zeros(bar.shape[::-1], dtype="int64")  # (what, state)
    lines = np.ascontiguousarray(bar.T)
    above = np.empty((TILE, block.shape[1]), dtype=bool)
    for first in range(0, len(block), TILE):
        tile = block[first : first + TILE]
        for index, line in enumerate(lines):
            inside = np.greater(tile, line, out=above[: len(tile)])
            count[index] += inside.view("uint8").sum(0, dtype="uint8")
    state, what, spelling = np.nonzero((wanted >= start) & (wanted < start + len(block)))
    token = wanted[state, what, spelling] - start
    np.subtract.at(count, (what, state), block[token, state] > bar[state, what])
    return count.T


def distinct(wanted: Array) -> tuple[Array, Array]:
    """The different tokens that are wanted of each state: the rank of a token is counted once.

    Parameters
    ----------
    wanted : (state, what, spelling)
        Token ids, -1: none.

    Returns
    -------
    (state, fewer, spelling) tokens, -1: none, and where each is among them, (state, what)
    """
    size = wanted.max(initial=0) + 2
    key = np.zeros(wanted.shape[:2], dtype="int64")
    for spelling in range(wanted.shape[2]):
        key = key * size + wanted[..., spelling] + 1
    key[key == 0] = np.iinfo("int64").max  # none comes last
    order = key.argsort(1, kind="stable")
    ordered = np.take_along_axis(key, order, 1)
    index = np.zeros_like(order)
    index[:, 1:] = (np.diff(ordered, axis=1) != 0).cumsum(1)
    width = int(index[ordered < np.iinfo("int64").max].max(initial=0)) + 1
    place = np.empty_like(order)
    np.put_along_axis(place, order, index, 1)
    fewer = np.full((len(wanted), index.max(initial=0) + 1, wanted.shape[2]), -1, dtype=wanted.dtype)
    fewer[np.arange(len(wanted))[:, None], place] = wanted
    return fewer[:, :width], np.minimum(place, width - 1)


class LogSumExp:
    """Logarithm of a sum of exponentials for each state, from blocks of logits."""

    def __init__(self, n: int, carried: int = 0) -> None:
        self.peak = np.full(n, -np.inf, dtype="float32")
        self.total = np.zeros(n)
        self.carried = np.zeros((carried, n))
        """Sums of the exponentials times how far the logits lie above others."""

    def add(self, block: Array, highest: Array, others: Sequence[Array] = ()) -> None:
        """Count a block (token, state) with its maxima (state,), and others to be carried; overwrites the block."""
        n = block.shape[1]
        peak = np.maximum(self.peak, highest)
        shrunk = np.exp(self.peak - peak)
        self.total *= shrunk
        self.carried *= shrunk
        for start in range(0, len(block), TILE):
            tile = block[start : start + TILE]
            gaps = [tile - (other[start : start + TILE] if other.ndim else np.float32(0)) for other in others]
            np.subtract(tile, peak, out=tile)
            np.exp(tile, out=tile)
            # Sums of a group are taken in float32, sums of the groups in float64.
            self.total += tile.reshape(-1, GROUP, n).sum(1).sum(0, dtype="float64")
            for index, gap in enumerate(gaps):
                np.multiply(gap, tile, out=gap)
                self.carried[index] += gap.reshape(-1, GROUP, n).sum(1).sum(0, dtype="float64")
        self.peak = peak

    def value(self) -> Array:
        """The logarithm, (state,)."""
        return np.asarray(self.peak + np.log(self.total))


class Best:
    """The best tokens of each state so far, and their logits; of equals the first."""

    def __init__(self, n: int, top: int) -> None:
        self.top = top
        self.logit = np.full((n, top), LEAST, dtype="float32")
        self.token = np.zeros((n, top), dtype="int64")

    def add(self, block: Array, highest: Array, start: int) -> None:
        """Count a block (token, state) that begins at a token, with the maxima (group, state) of its groups.

        At least ``top`` groups reach the ``top``-th highest of their maxima, so no smaller logit is among the best, and
        few groups need a closer look.
        """
        n = block.shape[1]
        bar = self.logit.min(-1)
        some = highest if len(highest) > 2 * self.top else block  # few groups would tell little
        if len(some) >= self.top:
            least = some.max(0) if self.top == 1 else np.partition(some, len(some) - self.top, axis=0)[-self.top]
            bar = np.maximum(bar, least)
        group, state = np.nonzero(highest >= bar)
        logit = block.reshape(-1, GROUP, n)[group, :, state]  # (pair, token of the group)
        pair, within = np.nonzero((logit >= bar[state, None]) & (logit > LEAST))
        logit, token, state = logit[pair, within], start + group[pair] * GROUP + within, state[pair]
        changed = np.unique(state)
        logit = np.concatenate([logit, self.logit[changed].ravel()])
        token = np.concatenate([token, self.token[changed].ravel()])
        state = np.concatenate([state, np.repeat(changed, self.top)])
        order = np.lexsort((token, -logit, state))
        state = state[order]
        place = np.arange(len(state)) - np.searchsorted(state, state)  # among those of its state
        order, state, place = (x[place < self.top] for x in (order, state, place))
        self.logit[state, place], self.token[state, place] = logit[order], token[order]
