"""Which part of each chunk an index of an array selects, and where in the result it goes."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Part = tuple[int, slice | np.ndarray, slice]
"""Along one axis: number of a chunk, the places within it that are selected, and where they go in the result."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Selected parts of chunks along all axes but the first, one entry a chunk."""

    numbers: list[tuple[int, ...]]
    """Number of the chunk along each axis."""
    within: list[tuple[slice | np.ndarray, ...]]
    """Places within the chunk."""
    targets: list[tuple[slice, ...]]
    """Places in the result."""
    places: tuple[np.ndarray, ...]
    """``numbers`` by axis: indexes a table that has an entry for each chunk."""
    grid: tuple[int, ...]
    """How many chunks there are along each axis."""
    sliced: bool
    """Whether ``within`` holds slices only."""

    @classmethod
    def of(cls, axes: Sequence[Sequence[Part]], *, sliced: bool) -> "Boxes":
        """Boxes of the product of some parts along each axis."""

        def of_each(kind: int) -> list[Any]:
            return list(product(*([part[kind] for part in parts] for parts in axes)))

        numbers, within, targets = map(of_each, range(3))
        return cls(numbers, within, targets, tuple(np.array(numbers).T), tuple(map(len, axes)), sliced)

    def selection(self, box: int, shape: Sequence[int], *first: slice | np.ndarray) -> tuple[Any, ...]:
        """Index into a chunk of this shape: ``first`` along its first axes, the box along the others."""
        within = (*first, *self.within[box])
        if self.sliced:
            return within
        return np.ix_(*(np.arange(size)[indices] for size, indices in zip(shape, within, strict=True)))


def picks_of(size: int, wanted: int | slice | np.ndarray) -> range | np.ndarray:
    """Places that an index selects on an axis of this size: a range where they are evenly spaced.

    Labels are looked up as arrays even where they follow each other, and slices are copied many times as fast.
    """
    if isinstance(wanted, np.ndarray):
        numbers = np.asarray(np.arange(size)[wanted])
        steps = np.diff(numbers[:2])
        if steps.size and steps[0] > 0 and (np.diff(numbers) == steps[0]).all():
            return range(int(numbers[0]), int(numbers[-1]) + 1, int(steps[0]))
        return numbers
    picked = range(size)[wanted]
    return picked if isinstance(picked, range) else range(picked, picked + 1)


def parts_of(picks: range | np.ndarray, size: int) -> Iterator[Part]:
    """Rising places on an axis, cut at the edges of chunks of this size."""
    chunks = range(int(picks[0]) // size, int(picks[-1]) // size + 1)
    edges = [bisect_left(picks, chunk * size) for chunk in (*chunks, chunks.stop)]
    for chunk, begin, end in zip(chunks, edges, edges[1:], strict=False):
        inside, first = picks[begin:end], chunk * size
        if begin == end:
            continue
        if isinstance(inside, range):
            yield chunk, slice(inside.start - first, inside.stop - first, inside.step), slice(begin, end)
        else:
            yield chunk, inside - first, slice(begin, end)
