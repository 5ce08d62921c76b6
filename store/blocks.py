"""An array of a shard before it is encoded: the blocks that its batches left, and fill wherever there is none."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class BlockArray:
    """Array of which only blocks are held.

    Axes are as long as the longest question, so most of an array is fill: it takes no memory, and none of the time of
    those who encode it.

    Parameters
    ----------
    shape
        Examples first.
    dtype
        Of the values.
    fill
        What lies in no block.
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
        """Hold a block, which is not copied; blocks do not overlap.

        Parameters
        ----------
        rows : (row,)
            Where the block's rows stand along the first axis.
        corner
            Where it begins along each of the others.
        block : (row, ...)
            Values.

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

    def read(self, begin: Sequence[int], shape: Sequence[int]) -> np.ndarray | None:
        """Copy of a box, fill beyond the array's edge; ``None`` if no block reaches into it."""
        values: np.ndarray | None = None
        for rows, corner, block in self._blocks:
            there: list[Any] = []
            here: list[Any] = []
            for start, size, start_there, length in zip(begin[1:], shape[1:], corner, block.shape[1:], strict=True):
                first, end = max(start, start_there), min(start + size, start_there + length)
                if first >= end:
                    break
                there.append(slice(first - start, end - start))
                here.append(slice(first - start_there, end - start_there))
            else:
                inside = (rows >= begin[0]) & (rows < begin[0] + shape[0])
                if not inside.any():
                    continue
                if values is None:
                    values = np.full(shape, self.fill, dtype=self.dtype)
                taken: Any = slice(None) if inside.all() else inside  # a slice copies nothing
                values[(rows[taken] - begin[0], *there)] = block[(taken, *here)]
        return values
