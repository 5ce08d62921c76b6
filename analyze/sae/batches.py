"""Reading activations for training: chunks in random order, rows shuffled inside a bounded buffer.

A lake stores whole chunks, so a random row costs a whole chunk: random access is hundreds of times slower than reading
chunks. Here chunks are visited in random order and their rows mixed in a buffer of fixed size, half of which is given
out before it is filled again. Nothing here grows with the number of examples but a few bytes of labels each.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyze.blocks import whole_chunks
from analyze.sae.spec import check_fractions
from schemas.errors import SchemaError, UsageError

SPLITS = ("train", "validation", "test")
_BLOCK_BYTES = 1 << 22  # one read is at most about this much, whatever the number of examples


def split_by_group(
    group: NDArray[Any], fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> NDArray[np.str_]:
    """Split for each example so that no group is on two sides.

    Groups, not examples, are drawn: shares of examples equal ``fractions`` only as far as groups are of one size.

    Parameters
    ----------
    group : (example,)
        What must stay together, usually the problem.
    fractions : train, validation, test; summing to 1
    seed : int

    Returns
    -------
    (example,) of "train", "validation" or "test"
    """
    fractions = check_fractions(fractions)
    unique, inverse = np.unique(np.asarray(group), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    rank = np.empty(len(unique), dtype=np.int64)
    rank[order] = np.arange(len(unique))
    first, second = round(fractions[0] * len(unique)), round((fractions[0] + fractions[1]) * len(unique))
    label = np.searchsorted([first, second], rank, side="right")
    return np.array(SPLITS)[label][inverse]


class Block(NamedTuple):
    """Where a piece of the data lies: a range of examples and a range along each cell dim."""

    example: slice
    cell: tuple[slice, ...]

    @property
    def n_cell(self) -> int:
        """Number of its cells."""
        return math.prod(part.stop - part.start for part in self.cell)


class Rows:
    """Rows to learn from: vectors of one labelled array, or of several joined by example and cell.

    Parameters
    ----------
    source : mapping of name to (example, ..., hidden)
        All with the same examples and, but for ``hidden``, the same other dims ("cells"); a row is the concatenation
        of their vectors at one example and cell.
    pooled : bool
        Whether every cell gives rows of its own (one dictionary for all), or a row holds all cells (one each).
    """

    def __init__(self, source: Mapping[str, xr.DataArray], *, pooled: bool) -> None:
        first = next(iter(source.values()))
        self.cell_dims: tuple[Hashable, ...] = tuple(d for d in first.dims if d not in ("example", "hidden"))
        self.arrays = [array.transpose("example", *self.cell_dims, "hidden").data for array in source.values()]
        self.hidden = [int(array.shape[-1]) for array in self.arrays]
        self.width = sum(self.hidden)
        self.n_example = int(first.sizes["example"])
        self.cell_shape = tuple(int(first.sizes[d]) for d in self.cell_dims)
        self.n_cell = int(np.prod(self.cell_shape, dtype=int))
        self.pooled = pooled
        self.n_infinite = 0  # rows read so far that were left out because a number in them is infinite

    def blocks(
        self, *, whole_cells: bool = False, max_bytes: int = _BLOCK_BYTES, max_rows: int | None = None
    ) -> list[Block]:
        """Pieces along the chunks of the data, each at most about ``max_bytes`` in float32, examples outermost.

        Up to ``max_rows`` examples chunks are joined: of drawn examples each holds a few, too few for a product.
        """
        cells: list[tuple[slice, ...]]
        if whole_cells:
            cells = [tuple(slice(0, n) for n in self.cell_shape)]
        else:
            cells = list(product(*(_ranges(self._chunks(axis), n) for axis, n in enumerate(self.cell_shape, start=1))))
        per_example = 4 * self.width * max(Block(slice(None), cell).n_cell for cell in cells)
        longest = max(1, max_bytes // per_example)
        chunks = self._chunks(0)
        if max_rows is not None:
            longest = min(longest, max_rows)
            chunks = whole_chunks(chunks, longest)
        examples = _ranges(chunks, longest)
        return [Block(example, cell) for example in examples for cell in cells]

    def read(self, blocks: Sequence[Block]) -> list[NDArray[np.float32]]:
        """Arrays (example, cell, width) of the blocks, in one pass of the scheduler; NaN where there is no state.

        A row with an infinite number, as float16 overflow leaves behind, is NaN as a whole.
        """
        lazy = [array[(block.example, *block.cell)] for block in blocks for array in self.arrays]
        parts = iter(dask.compute(*lazy))
        buffered = []
        for _ in blocks:
            pieces = [np.asarray(next(parts), dtype=np.float32) for _ in self.arrays]
            joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)
            infinite = np.isinf(joined).any(axis=-1, keepdims=True)
            if infinite.any():
                self.n_infinite += int(infinite.sum())
                joined = np.where(infinite, np.float32(np.nan), joined)
            buffered.append(joined.reshape(joined.shape[0], -1, self.width))
        return buffered

    def cell_numbers(self, block: Block) -> NDArray[np.intp]:
        """Flat numbers of the block's cells, in the order of ``read``."""
        grid = np.arange(self.n_cell).reshape(self.cell_shape or (1,))
        return np.asarray(grid[block.cell] if self.cell_shape else grid).reshape(-1)

    def groups(self, blocks: Sequence[Block], max_bytes: int = _BLOCK_BYTES) -> Iterator[list[Block]]:
        """Runs of blocks that are read together, each at most about ``max_bytes``."""
        group: list[Block] = []
        size = 0
        for block in blocks:
            block_size = 4 * self.width * block.n_cell * (block.example.stop - block.example.start)
            if group and size + block_size > max_bytes:
                yield group
                group, size = [], 0
            group.append(block)
            size += block_size
        if group:
            yield group

    def walk(
        self, keep: NDArray[np.bool_], max_rows: int | None = None, max_bytes: int = _BLOCK_BYTES
    ) -> Iterator[tuple[Block, NDArray[np.intp], NDArray[np.float32]]]:
        """Every block in order with the numbers of its kept examples and their rows (example, cell, width)."""
        for group in self.groups([b for b in self.blocks(max_rows=max_rows) if keep[b.example].any()], max_bytes):
            for block, rows in zip(group, self.read(group), strict=True):
                inside = np.flatnonzero(keep[block.example])
                yield block, inside + block.example.start, rows[inside]

    def _chunks(self, axis: int) -> tuple[int, ...]:
        array = self.arrays[0]
        return tuple(array.chunks[axis]) if hasattr(array, "chunks") else (int(array.shape[axis]),)


class Batches:
    """Endless epochs of shuffled batches of the kept examples' rows, from a buffer of bounded size.

    Parameters
    ----------
    rows : Rows
    keep : (example,) bool
    batch_size : rows in a batch
    buffer_bytes : int
        Size of the buffer; the working set is about 1.5 times this. Data that fit in it are read once and kept.
    rng : numpy Generator
    """

    def __init__(
        self, rows: Rows, keep: NDArray[np.bool_], batch_size: int, buffer_bytes: int, rng: np.random.Generator
    ) -> None:
        self.rows, self.keep, self.batch_size, self.rng = rows, keep, batch_size, rng
        self.row_shape = (rows.width,) if rows.pooled else (rows.n_cell, rows.width)
        row_bytes = 4 * int(np.prod(self.row_shape))
        self.capacity = max(buffer_bytes // row_bytes, 2 * batch_size)
        self.blocks = [
            block
            for block in rows.blocks(whole_cells=not rows.pooled, max_bytes=max(buffer_bytes // 4, row_bytes))
            if keep[block.example].any()
        ]
        self.n_row = int(keep.sum()) * (rows.n_cell if rows.pooled else 1)
        self._kept: tuple[NDArray[np.float32], NDArray[np.intp]] | None = None

    @property
    def n_batch(self) -> int:
        """Batches in an epoch, at most (rows without a state are left out of a pool)."""
        return max(1, -(-self.n_row // self.batch_size))

    def epoch(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
        """Batches of one pass over the data: rows and, for a pool, the number of each row's cell."""
        if self._kept is not None:
            yield from self._give(*self._kept, len(self._kept[1]), last=True)
            return
        buffer = np.empty((min(self.capacity, max(self.n_row, 1)), *self.row_shape), dtype=np.float32)
        cell = np.zeros(len(buffer), dtype=np.intp)
        filled = 0
        waiting = [self.blocks[i] for i in self.rng.permutation(len(self.blocks))]
        whole = self.n_row <= self.capacity
        # a block is read whole, so what does not fit now is carried over to the next filling
        spare: list[tuple[NDArray[np.float32], NDArray[np.intp]]] = []
        while waiting or spare:
            while (waiting or spare) and filled < len(buffer):
                if not spare:
                    group = next(self.rows.groups(waiting, max(1, buffer.nbytes // 4)))
                    waiting = waiting[len(group) :]
                    spare = [self._rows(block, read) for block, read in zip(group, self.rows.read(group), strict=True)]
                    spare.reverse()
                new, new_cell = spare.pop()
                taken = min(len(new), len(buffer) - filled)
                buffer[filled : filled + taken], cell[filled : filled + taken] = new[:taken], new_cell[:taken]
                filled += taken
                if taken < len(new):
                    spare.append((new[taken:], new_cell[taken:]))
            last = not waiting and not spare
            if whole and last:
                self._kept = (buffer[:filled], cell[:filled])
            yield from self._give(buffer, cell, filled, last=last)
            filled = 0 if last else filled - self._emitted(filled)

    def forget(self) -> None:
        """Let go of the rows that were kept for another epoch."""
        self._kept = None

    def sample(self, n_row: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """About ``n_row`` rows from random chunks, in memory."""
        drawn: list[tuple[NDArray[np.float32], NDArray[np.intp]]] = []
        have = 0
        order = [self.blocks[i] for i in self.rng.permutation(len(self.blocks))]
        for group in self.rows.groups(order, 1 << 22):
            for block, read in zip(group, self.rows.read(group), strict=True):
                new, new_cell = self._rows(block, read)
                take = self.rng.permutation(len(new))[: max(1, n_row // 4)]
                drawn.append((new[take], new_cell[take]))
                have += len(take)
            if have >= n_row:
                break
        if not drawn:
            return np.empty((0, *self.row_shape), dtype=np.float32), np.empty(0, dtype=np.intp)
        return np.concatenate([f[0] for f in drawn])[:n_row], np.concatenate([f[1] for f in drawn])[:n_row]

    def _rows(self, block: Block, read: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        read = read[self.keep[block.example]]
        if not self.rows.pooled:
            return read, np.zeros(len(read), dtype=np.intp)
        cell = np.broadcast_to(self.rows.cell_numbers(block), read.shape[:2]).reshape(-1)
        flat = read.reshape(-1, self.rows.width)
        real = ~np.isnan(flat).any(axis=-1)
        return flat[real], cell[real]

    def _emitted(self, filled: int) -> int:
        """How many rows a filling gives out when more is to come: half the buffer, in whole batches."""
        half = max(filled // 2, 1)
        return max(half // self.batch_size, 1) * self.batch_size if filled >= self.batch_size else filled

    def _give(
        self, buffer: NDArray[np.float32], cell: NDArray[np.intp], filled: int, *, last: bool
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.intp]]]:
        order = self.rng.permutation(filled)
        emitted = filled if last else self._emitted(filled)
        for start in range(0, emitted, self.batch_size):
            take = order[start : min(start + self.batch_size, emitted)]
            # a remnant of a few rows would weigh as much as a batch; other rows are left over in the next epoch
            if start and len(take) < self.batch_size // 4:
                break
            yield buffer[take], cell[take]
        if not last:
            rest = order[emitted:]
            buffer[: len(rest)], cell[: len(rest)] = buffer[rest], cell[rest]


def moments(
    rows: Rows, keep: NDArray[np.bool_], per: Literal["pool", "cell"], progress: Callable[[], None] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean vector and mean distance from it over the kept examples, for the pool or for each cell.

    Each source has its own distance, so that in a crosscoder every model and layer weighs the same.

    Returns
    -------
    mean : (cell or 1, width)
    scale : (cell or 1, source)
        Mean over rows of ``||x - mean||``; 1 where a cell has no rows or does not vary.
    """
    n_cell = rows.n_cell if per == "cell" else 1

    def blocks() -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.bool_]]]:
        for block, _, x in rows.walk(keep):
            cell = rows.cell_numbers(block) if per == "cell" else np.zeros(x.shape[1], dtype=np.intp)
            yield cell, x, np.asarray(~np.isnan(x).any(axis=-1))
            if progress:
                progress()

    total, count = np.zeros((n_cell, rows.width)), np.zeros(n_cell)
    for cell, x, real in blocks():
        np.add.at(total, cell, np.where(real[..., None], x, 0).sum(axis=0, dtype=np.float64))
        np.add.at(count, cell, real.sum(axis=0))
    if not count.any():
        raise UsageError("no activation to learn from: every row of the training split is missing (NaN)")
    mean = total / np.maximum(count, 1)[:, None]
    edges = np.cumsum([0, *rows.hidden])[:-1]
    distance = np.zeros((n_cell, len(rows.hidden)))
    for cell, x, real in blocks():
        squared = np.add.reduceat(np.square(x - mean[cell]), edges, axis=-1)  # float64: no unit over- or underflows
        np.add.at(distance, cell, np.where(real[..., None], np.sqrt(squared), 0).sum(axis=0, dtype=np.float64))
    scale = distance / np.maximum(count, 1)[:, None]
    return mean, np.where(scale > 0, scale, 1.0)


def check_source(source: Mapping[str, xr.DataArray], what: str) -> None:
    """Refuse activations without ``example`` and ``hidden``, or without examples."""
    for name, array in source.items():
        missing = [d for d in ("example", "hidden") if d not in array.dims]
        if missing:
            raise SchemaError(
                f"{what} of {name!r}: the activation has dims {array.dims}; expected 'example' and 'hidden'. "
                "Pass run['hidden_state'], run['final_state'] or run['latent_embedding'], or a selection of one."
            )
        if not all(array.sizes.values()):
            raise UsageError(f"{what} of {name!r}: nothing is selected, sizes are {dict(array.sizes)}")


def _ranges(chunks: Sequence[int], longest: int) -> list[slice]:
    """Consecutive ranges along the chunks, none longer than ``longest``."""
    edges = np.cumsum([0, *chunks])
    return [
        slice(int(start), int(min(start + longest, stop)))
        for low, stop in pairwise(edges)
        for start in range(int(low), int(stop), max(1, longest))
    ]
