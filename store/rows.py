"""Rows of a run's activations in the order of the store's chunks, for training: shuffled by blocks, read once.

A lake stores whole chunks, so a random row costs a whole chunk. Here blocks (what one chunk of the store holds of what
is selected) are drawn in random order, as many as fit a buffer make a window, and the rows of a window are shuffled.
Which rows a batch holds follows from seed, epoch and the number of readers alone, before anything is read: so training
goes on after an interruption where it stopped, without reading what it had.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.core.indexing import OuterIndexer

from schemas import UsageError, nearest
from schemas.checks import check_whole
from store.read import Lake
from store.shards import ShardedArray

ITEMS = {"attention": ("position", "key_position")}
"""Dims of one row, where that is not ``hidden``."""
BUFFER_BYTES = 2**27
STEP = 256
"""Rows that are copied at a time."""
Copy = Callable[[np.ndarray, np.ndarray], Any]


class RowBlocks:
    """Which rows a selection has, block by block, and their values.

    Rows are numbered block after block; :meth:`labels` says what a row is of. A position at which an example has no
    token, as before a short question, has no row.

    Parameters
    ----------
    lake, run, variable
        What is read.
    chosen
        Labels along dims; all of a dim that is not named.
    item
        Dims of one row, the others are counted off; by default ``hidden``, of attention the queries and keys of a head.
    buffer_bytes
        Memory for blocks that were read, at least one.

    Raises
    ------
    UsageError
        If the variable is no activation, or a label is not there.
    """

    def __init__(
        self,
        lake: Lake,
        run: str,
        variable: str,
        chosen: Mapping[str, Any],
        *,
        item: Sequence[str] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        check_whole("buffer_bytes", buffer_bytes, 1)
        layouts = {name: array for name, array in lake.layout(run).arrays().items() if array.shards is not None}
        if variable not in layouts:
            raise UsageError(
                f"{run}: {variable!r} is no activation; there are {', '.join(layouts)}{nearest(variable, layouts)}"
            )
        data = lake.open(run, chunks=None, stored=True)
        self.run, self.variable, self.fingerprint = run, variable, str(data.attrs["fingerprint"])
        dims = layouts[variable].dims
        self.item = tuple(item) if item is not None else ITEMS.get(variable, ("hidden",))
        strange = [dim for dim in (*self.item, *chosen) if dim not in dims]
        if strange or "example" in self.item:
            what = f"no {', '.join(strange)}" if strange else "no rows that span examples"
            raise UsageError(f"{run}: {variable} has {what}; its dims are {', '.join(dims)}")
        self.cells = tuple(dim for dim in dims if dim not in self.item)
        self.coords = {dim: _labels(data, dim) for dim in dims}
        self.picks = {dim: _picked(self.coords[dim], chosen.get(dim), dim, run) for dim in dims}
        self.array, self.committed = lake.activations(run, variable)
        self.dtype, self.dims = self.array.dtype, dims
        chunks = dict(zip(dims, layouts[variable].chunks, strict=True))
        self.pieces = {dim: _split(self.picks[dim], chunks[dim]) for dim in self.cells}
        self.whole = {dim: _whole(self._stored_pieces(dim), chunks[dim]) for dim in dims}
        self.exists = self._existing(data)
        self.counts = self._counts()
        self.offset = np.concatenate([[0], np.cumsum(self.counts)])
        self.item_shape = tuple(len(self.picks[dim]) for dim in self.item)
        self.slot_rows = int(self.counts.max(initial=1))
        slot = self.slot_rows * math.prod(self.item_shape) * self.dtype.itemsize
        self.n_slot = min(max(1, buffer_bytes // max(slot, 1)), max(1, self.n_block))
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of, nothing read: a worker reads for itself."""
        return {**self.__dict__, "_pool": None, "_slots": OrderedDict()}

    def forget(self) -> None:
        """Give back the memory of what was read."""
        self._pool: np.ndarray | None = None
        self._slots: OrderedDict[int, int] = OrderedDict()

    @property
    def n_row(self) -> int:
        """Rows there are."""
        return int(self.offset[-1])

    @property
    def n_block(self) -> int:
        """Blocks there are, also those without a row."""
        return len(self.counts)

    def _existing(self, data: xr.Dataset) -> np.ndarray | None:
        """Where an example has something at a position: (example, position) of those picked; ``None``: everywhere."""
        if "position" not in self.cells:
            return None
        picks = self.picks["example"], self.picks["position"]
        written = data["token"].values[np.ix_(*picks)] >= 0
        exists: np.ndarray = written | (data["segment"].values[picks[1]] == "latent")
        return None if exists.all() else exists

    def _counts(self) -> np.ndarray:
        """Rows of each block."""
        sizes = {dim: np.array([len(piece) for piece in self.pieces[dim]]) for dim in self.cells}
        counts = np.ones([len(sizes[dim]) for dim in self.cells], dtype=np.int64)
        for axis, dim in enumerate(self.cells):
            if self.exists is None or dim not in ("example", "position"):
                counts *= np.expand_dims(sizes[dim], [other for other in range(counts.ndim) if other != axis])
        if self.exists is not None and counts.size:
            inside = self.exists
            for axis, dim in enumerate(("example", "position")):
                inside = np.add.reduceat(inside, np.cumsum(sizes[dim]) - sizes[dim], axis=axis, dtype=np.int64)
            counted_axes = [self.cells.index("example"), self.cells.index("position")]
            counts *= np.expand_dims(inside, [axis for axis in range(counts.ndim) if axis not in counted_axes])
        return counts.reshape(-1)

    def _block(self, number: int) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Of a block: what it holds along each cell dim, and which of its rows are there (``None``: all)."""
        grid = [len(self.pieces[dim]) for dim in self.cells]
        place = dict(zip(self.cells, np.unravel_index(number, grid), strict=True))
        pieces = [self.pieces[dim][place[dim]] for dim in self.cells]
        if self.exists is None:
            return pieces, None
        within = (np.searchsorted(self.picks[dim], self.pieces[dim][place[dim]]) for dim in ("example", "position"))
        exists = self.exists[np.ix_(*within)]
        counted_axes = [self.cells.index("example"), self.cells.index("position")]
        exists = np.expand_dims(exists, [axis for axis in range(len(self.cells)) if axis not in counted_axes])
        return pieces, np.broadcast_to(exists, [len(piece) for piece in pieces]).reshape(-1)

    def _stored_pieces(self, dim: str) -> list[np.ndarray]:
        """What blocks hold along a dim, as places in the store."""
        pieces = self.pieces.get(dim, [self.picks[dim]])
        return [self.committed[piece] for piece in pieces] if dim == "example" else pieces

    def _read_blocks(self, numbers: np.ndarray, into: Sequence[np.ndarray]) -> None:
        """Put the rows of blocks, as they are stored, where they are kept; those that are whole chunks all at once."""
        rest: Sequence[int] = range(len(numbers))
        if isinstance(self.array, ShardedArray) and self.dims == (*self.cells, *self.item):
            places = np.unravel_index(numbers, [len(self.pieces[dim]) for dim in self.cells])
            by_dim = dict(zip(self.cells, places, strict=True))
            chunks = np.stack([self.whole[dim][by_dim.get(dim, np.zeros_like(numbers))] for dim in self.dims], axis=1)
            shape = self.array.layout.chunks
            full = self.counts[numbers] * math.prod(self.item_shape) == math.prod(shape)
            direct = np.flatnonzero((chunks >= 0).all(axis=1) & full).tolist()
            targets = [into[place].reshape(shape) for place in direct]
            self.array.read_chunks([tuple(chunk) for chunk in chunks[direct].tolist()], targets)
            rest = sorted({*rest} - {*direct})
        for place in rest:
            self._read_block(int(numbers[place]), into[place])

    def _read_block(self, number: int, into: np.ndarray) -> None:
        """Put the rows of a block, as they are stored, where they are kept: (row, *item)."""
        pieces, exists = self._block(number)
        picks = {**self.picks, **dict(zip(self.cells, pieces, strict=True))}
        picks["example"] = self.committed[picks["example"]]
        places = [_neighbours(picks[dim]) for dim in self.dims]
        in_order = self.dims == (*self.cells, *self.item) and (exists is None or exists.all())
        if in_order and isinstance(self.array, ShardedArray):  # straight from the file, without a copy
            self.array.read_into(into.reshape([len(picks[dim]) for dim in self.dims]), places)
            return
        values = self.array[OuterIndexer(tuple(_slice(place) for place in places))]
        values = np.transpose(values, [self.dims.index(dim) for dim in (*self.cells, *self.item)])
        rows = values.reshape(-1, *self.item_shape)
        into[...] = rows if exists is None else rows[exists]

    def read(
        self, rows: Sequence[int] | np.ndarray, items: np.ndarray | None = None, copy: Copy = np.copyto
    ) -> np.ndarray:
        """Values of rows in the order asked for: (row, *item).

        Each block is read once and kept while there is room for it.

        Parameters
        ----------
        rows
            Their numbers.
        items
            Where the values go; if it is not given, into a new array of the type in which they are stored.
        copy
            What puts values into a part of ``items``.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.n_row):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {self.run}; it has 0 to {self.n_row - 1}")
        block = np.searchsorted(self.offset, wanted, side="right") - 1
        is_wanted = np.zeros(self.n_block, dtype=bool)
        is_wanted[block] = True
        numbers, which = np.flatnonzero(is_wanted), (np.cumsum(is_wanted) - 1)[block]  # np.unique sorts all rows
        known = np.array([number in self._slots for number in numbers.tolist()], dtype=bool)
        order = np.argsort(~known, kind="stable")  # what is here first, before it gives way
        if items is None:
            items = np.empty((len(wanted), *self.item_shape), dtype=self.dtype)
        if len(order) <= self.n_slot:
            self._take(numbers[order], np.argsort(order)[which], wanted, items, copy)
            return items
        for begin in range(0, len(order), self.n_slot):
            group = order[begin : begin + self.n_slot]
            places = np.full(len(numbers), -1)
            places[group] = np.arange(len(group))
            inside = places[which] >= 0
            part = np.empty((int(inside.sum()), *self.item_shape), dtype=items.dtype)
            self._take(numbers[group], places[which][inside], wanted[inside], part, copy)
            items[inside] = part
        return items

    def _take(self, numbers: np.ndarray, which: np.ndarray, wanted: np.ndarray, items: np.ndarray, copy: Copy) -> None:
        """Put rows into an array; ``numbers`` are their blocks, which fit the buffer, ``which`` says whose a row is."""
        if self._pool is None:
            self._pool = np.empty((self.n_slot * self.slot_rows, *self.item_shape), dtype=self.dtype)
        for number in set(numbers.tolist()) & self._slots.keys():
            self._slots.move_to_end(number)
        new = [number for number in numbers.tolist() if number not in self._slots]
        for number in new:
            full = len(self._slots) == self.n_slot
            self._slots[number] = self._slots.popitem(last=False)[1] if full else len(self._slots)
        begins = np.array([self._slots[number] for number in numbers.tolist()]) * self.slot_rows
        try:
            if new:
                slots = [self._slots[number] * self.slot_rows for number in new]
                ends = [slot + int(self.counts[number]) for slot, number in zip(slots, new, strict=True)]
                kept = [self._pool[slot:end] for slot, end in zip(slots, ends, strict=True)]
                self._read_blocks(np.array(new), kept)
        except BaseException:
            self.forget()  # what is kept there is neither block now
            raise
        places = (begins - self.offset[numbers])[which] + wanted
        for begin in range(0, len(places), STEP):  # so few that they are in the processor's cache still
            copy(items[begin : begin + STEP], self._pool.take(places[begin : begin + STEP], axis=0))

    def labels(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Label of each row along each dim that rows are counted along: (row,) by dim."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        numbers = np.searchsorted(self.offset, wanted, side="right") - 1
        index = np.empty((len(self.cells), len(wanted)), dtype=np.int64)
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            pieces, exists = self._block(number)
            flat = wanted[inside] - self.offset[number]
            flat = flat if exists is None else np.flatnonzero(exists)[flat]
            places = np.unravel_index(flat, [len(piece) for piece in pieces])
            index[:, inside] = [piece[place] for piece, place in zip(pieces, places, strict=True)]
        return {dim: self.coords[dim][place] for dim, place in zip(self.cells, index, strict=True)}


def _labels(data: xr.Dataset, dim: str) -> np.ndarray:
    return np.asarray(data[dim].values) if dim in data.coords else np.arange(data.sizes[dim])


def _picked(known: np.ndarray, labels: Any, dim: str, run: str) -> np.ndarray:
    """Sorted places of these labels along a dim; every place if none are named."""
    if labels is None:
        return np.arange(len(known))
    single = isinstance(labels, str) or not hasattr(labels, "__iter__")
    wanted: list[Hashable] = [labels] if single else np.asarray(labels).tolist()
    places = {label: place for place, label in enumerate(known.tolist())}
    missing = [label for label in wanted if label not in places]
    if missing or not wanted:
        shown = list(map(str, places))
        shown = shown if len(shown) <= 12 else [*shown[:5], "..", *shown[-5:]]
        raise UsageError(
            f"{run} has no {dim} {', '.join(map(str, missing)) or 'of an empty selection'}; it has {', '.join(shown)}"
            + (nearest(missing[0], places) if missing else "")
        )
    return np.unique([places[label] for label in wanted])


def _split(picks: np.ndarray, size: int) -> list[np.ndarray]:
    """Sorted places, cut at the edges of chunks of this size."""
    return np.split(picks, np.flatnonzero(np.diff(picks // size)) + 1) if len(picks) else []


def _whole(pieces: Sequence[np.ndarray], size: int) -> np.ndarray:
    """For each piece of sorted places the number of the chunk that it fills, -1 where it fills none."""
    return np.array(
        [
            piece[0] // size if len(piece) == size and not piece[0] % size and piece[-1] - piece[0] == size - 1 else -1
            for piece in pieces
        ],
        dtype=np.int64,
    )


def _neighbours(picks: np.ndarray) -> range | np.ndarray:
    """Sorted places, as a range where they are consecutive: whole chunks are then read without a copy."""
    if len(picks) and picks[-1] - picks[0] == len(picks) - 1:
        return range(int(picks[0]), int(picks[-1]) + 1)
    return picks


def _slice(places: range | np.ndarray) -> slice | np.ndarray:
    return slice(places.start, places.stop) if isinstance(places, range) else places
