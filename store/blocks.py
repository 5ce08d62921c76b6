"""An array of a shard before it is encoded: the blocks that its batches left, and fill wherever there is none."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class BlockArray:
    """Array of which only blocks are held.

    Axes are as long as the longest question, so most of an array is fill: it takes no memory, and none of the time of
    those who encode it.

    ``shape`` has the examples first; ``fill`` is what lies in no block.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, fill: Any) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.fill = fill
        self._blocks: list[tuple[np.ndarray, tuple[int, ...], np.ndarray]] = []

    @classmethod
    def of(cls, values: np.ndarray, dtype: Any, fill: Any) -> "BlockArray":
        """A whole array as one block."""
        array = cls(values.shape, dtype, fill)
        array.add(np.arange(len(values)), (0,) * (values.ndim - 1), values)
        return array

    def add(self, rows: np.ndarray, corner: Sequence[int], block: np.ndarray) -> None:
        """Hold a block (row, ...), which is not copied; blocks do not overlap.

        ``rows`` (row,) says where the block's rows stand along the first axis, ``corner`` where it begins along each of
        the others.

        Raises
        ------
        IndexError
            If it reaches over the edge.
        """
        ends = [start + size for start, size in zip(corner, block.shape[1:], strict=True)]
        over = any(end > size for end, size in zip(ends, self.shape[1:], strict=True))
        if over or len(rows) != len(block) or (len(rows) and max(rows) >= self.shape[0]):
            raise IndexError(f"a block {block.shape} at rows {rows} and {tuple(corner)} is not within {self.shape}")
        self._blocks.append((np.asarray(rows), tuple(corner), block))

    def blocks(self) -> list[np.ndarray]:
        """Blocks that are held."""
        return [block for _, _, block in self._blocks]

    def drain(self) -> Iterator[tuple[np.ndarray, tuple[int, ...], np.ndarray]]:
        """Rows, corner and values of each block, which is let go of then."""
        while self._blocks:
            yield self._blocks.pop(0)

    def rows(self, begin: int, n_row: int) -> "BlockRows":
        """What is held of ``n_row`` examples from ``begin`` on, some of which may lie beyond the array's edge."""
        parts = []
        for rows, corner, block in self._blocks:
            inside = np.flatnonzero((rows >= begin) & (rows < begin + n_row))
            if inside.size:
                parts.append((rows[inside] - begin, inside, corner, block))
        return BlockRows(self.fill, parts)


class BlockRows:
    """Some examples of a :class:`BlockArray`, of which one box after the other is read.

    Parameters
    ----------
    fill
        What lies in no block.
    parts
        Of each block that holds any of the examples: where they stand among them, their rows in the block, the
        block's corner, and the block.
    """

    def __init__(self, fill: Any, parts: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, ...], np.ndarray]]) -> None:
        self.fill = fill
        self._parts = parts

    def read(self, begin: Sequence[int], room: np.ndarray) -> bool:
        """Copy a box of these examples into ``room``, fill beyond the array's edge.

        Parameters
        ----------
        begin
            Where the box begins along each axis but the first.
        room : (row, ...)
            What is filled, of the size of the box.

        Returns
        -------
        bool
            Whether any block reaches into the box; if none does, ``room`` is left as it is.
        """
        copies, n_value = [], 0
        for rows, inside, corner, block in self._parts:
            there: list[Any] = []
            here: list[Any] = []
            size = len(rows)
            for start, length, start_there, extent in zip(begin, room.shape[1:], corner, block.shape[1:], strict=True):
                first, end = max(start, start_there), min(start + length, start_there + extent)
                if first >= end:
                    break
                there.append(slice(first - start, end - start))
                here.append(slice(first - start_there, end - start_there))
                size *= end - first
            else:
                n_value += size
                taken: Any = slice(None) if len(inside) == len(block) else inside  # a slice copies nothing
                copies.append(((rows, *there), block[(taken, *here)]))
        if copies and n_value < room.size:
            room.fill(self.fill)
        for target, values in copies:
            room[target] = values
        return bool(copies)
