"""Sharded arrays on a local disk, read by one positioned read per inner chunk, or per row of one.

A chunk of states is one range of a shard's file and, where a (layer, position) is read over all examples, one range of
the result. Of a shard's file its index is remembered, and the record's checksums of its chunks, while the file is the
same: a shard that is written again under an open dataset is read anew, and what is not as recorded is never handed out.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import compress, groupby
from operator import mul
from typing import Any

import google_crc32c
import numpy as np
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec

from store.boxes import Boxes, Part, parts_of, picks_of
from store.codecs import decompress
from store.frames import FLAGS, HEADER_BYTES, MEMCPYED, is_plain, read_part
from store.guard import Guard
from store.layout import ArrayLayout
from store.range_check import ABSENT, CHECKSUM_BYTES, check_digest, check_size, decode_index, tables_of
from store.record import DamagedFile

PIECE_BYTES = 2**16
"""What is read before its checksum is taken: little enough to be in the processor's cache still."""
ROW_SHARE = 16
"""Of a chunk of states single rows are read where they are at most one in so many."""
FEW_BLOCKS = 2
"""The same where states are compressed: rows at most, as each is some blocks of a fifth of the chunk."""


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type in which values are handed out: float32 for float16, whose sums are wrong in the third digit."""
    return np.dtype("float32") if dtype == np.float16 else dtype


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a shard's file."""

    identity: tuple[int, int, int]
    """Of the file: number, size and time of the last change."""
    index: np.ndarray
    """Offset and length of each chunk: (*grid, 2)."""
    tables: list[np.ndarray | None]
    """Checksums that its chunks may have: (*grid,) each."""


class ShardedArray(BackendArray):
    """A sharded array on a local disk, for xarray to index lazily.

    With ``stored`` values keep the type they are stored in; else float16 is widened to float32.
    """

    def __init__(self, guard: Guard, layout: ArrayLayout, *, stored: bool) -> None:
        self.guard = guard
        self.layout = layout
        self.grid, self.index_bytes = layout.grid, layout.index_bytes
        self.shape = layout.shape
        self.stored = np.dtype(layout.dtype)
        self.dtype = self.stored if stored else widened(self.stored)
        self._known: dict[int, Known] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of, nothing remembered."""
        return {**self.__dict__, "_known": {}}

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Values at an index; points, which span no box, are left to Zarr."""
        if isinstance(key, indexing.VectorizedIndexer):
            support, read = indexing.IndexingSupport.VECTORIZED, self._points
        else:
            support, read = indexing.IndexingSupport.OUTER, self._box
        return self.guard.reading(lambda: indexing.explicit_indexing_adapter(key, self.shape, support, read))

    def stored_bytes(self, picks: Sequence[np.ndarray], shards: Iterable[int]) -> int:
        """Bytes read, in some shards, for the product of sorted numbers, one array an axis."""
        others = [np.unique(pick // size) for pick, size in zip(picks[1:], self.layout.chunks[1:], strict=True)]
        examples, n_row = np.unique(picks[0] // self.layout.chunks[0], return_counts=True)
        row_bytes = math.prod(self.layout.chunks[1:]) * self.stored.itemsize
        total = 0
        for shard in shards:
            here = examples // self.grid[0] == shard
            inside = examples[here] % self.grid[0]
            key = self._key(shard)
            if (opened := self._open(key)) is None:
                continue  # all of it is fill
            with opened as file:
                known = self._know(shard, key, file.fileno())
            if known is not None and inside.size:
                chunks = known.index[np.ix_(inside, *others)]
                length = np.where(chunks[..., 0] == ABSENT, 0, chunks[..., 1])
                if self._row_tables(shard):  # of which rows are read by themselves where they are few
                    rows = n_row[here].reshape(-1, *[1] * len(others))
                    plain = is_plain(length, self.layout.chunks[0] * row_bytes)
                    few = plain & (rows * ROW_SHARE <= self.layout.chunks[0])
                    length = np.where(few, rows * row_bytes, length)
                total += int(length.sum())
        return total

    def _points(self, key: tuple[np.ndarray, ...]) -> Any:
        array = zarr.open_array(self.guard, path=self.layout.name, mode="r", zarr_format=3)
        return np.asarray(array.vindex[key]).astype(self.dtype, copy=False)

    def _box(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at the product of one number, rising slice or sorted array per axis."""
        picks = [picks_of(*axis) for axis in zip(self.shape, key, strict=True)]
        values = np.empty([len(picked) for picked in picks], dtype=self.dtype)
        self._fill(picks, values)
        kept = (isinstance(key_of_axis, slice | np.ndarray) for key_of_axis in key)  # a number takes its axis away
        return values.reshape(list(compress(values.shape, kept)))

    def read_into(self, values: np.ndarray, picks: Sequence[range | np.ndarray]) -> None:
        """Put the values at the product of rising numbers, some for each axis, into an array that is there already."""
        self.guard.reading(lambda: self._fill(picks, values))

    def read_chunks(self, chunks: Sequence[tuple[int, ...]], targets: Sequence[np.ndarray]) -> None:
        """Put whole chunks, by their numbers along each axis, into arrays of their shape in the stored type.

        Each file is opened once for all of them, and nothing is copied on the way.
        """
        self.guard.reading(lambda: self._fill_chunks(chunks, targets))

    def _fill_chunks(self, chunks: Sequence[tuple[int, ...]], targets: Sequence[np.ndarray]) -> None:
        order = sorted(range(len(chunks)), key=chunks.__getitem__)
        for shard, numbers in groupby(order, key=lambda number: chunks[number][0] // self.grid[0]):
            key = self._key(shard)
            if (file := self._open(key)) is None:
                self._expect_none(shard, key)
                for number in numbers:
                    targets[number][...] = self.layout.fill
                continue
            with file:
                known = self._know(shard, key, file.fileno())
                for number in numbers:
                    chunk = (chunks[number][0] % self.grid[0], *chunks[number][1:])
                    offset, length = (ABSENT, 0) if known is None else known.index[chunk].tolist()
                    if known is None or offset == ABSENT:
                        targets[number][...] = self.layout.fill
                        continue
                    checksum = self._decode(file.fileno(), offset, length, targets[number])
                    if checksum is None or not any(table is None or table[chunk] == checksum for table in known.tables):
                        raise self._damaged(key, shard, chunk)

    def _key(self, shard: int) -> str:
        """Key of a shard's file."""
        return f"{self.layout.name}/{self.layout.key(shard)}"

    def _open(self, key: str) -> FileIO | None:
        """A shard's file; ``None`` where there is none."""
        try:
            return FileIO(f"{self.guard.folder}/{key}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _damaged(self, key: str, shard: int, chunk: tuple[int, ...]) -> DamagedFile:
        """What is raised of a chunk that is not as recorded; its file is looked at anew."""
        self._known.pop(shard, None)
        return DamagedFile(key, shard, f"is not what was written: chunk {chunk} does not agree with its checksum")

    def _fill(self, picks: Sequence[range | np.ndarray], values: np.ndarray) -> None:
        """Put what is picked along each axis into an array."""
        if not values.size:
            return
        examples, *others = (list(parts_of(*axis)) for axis in zip(picks, self.layout.chunks, strict=True))
        boxes = Boxes.of(others, sliced=all(isinstance(picked, range) for picked in picks[1:]))
        room = np.empty(self.layout.chunks, dtype=self.stored)
        for shard, parts in groupby(examples, key=lambda part: part[0] // self.grid[0]):
            self._read_shard(shard, [*parts], boxes, values, room)

    def _read_shard(
        self, shard: int, examples: Sequence[Part], boxes: Boxes, values: np.ndarray, room: np.ndarray
    ) -> None:
        """Put what is wanted of one shard where it goes: at once where that is a whole chunk, else through ``room``."""
        key = self._key(shard)
        if (file := self._open(key)) is None:
            self._expect_none(shard, key)
            for _, _, there in examples:
                values[there] = self.layout.fill
            return
        with file:
            known = self._know(shard, key, file.fileno())
            for number, inside, there in examples:
                place = number % self.grid[0]
                if known is None:
                    values[there] = self.layout.fill
                    continue
                entries, left = known.index[place][boxes.places], [*range(len(boxes.numbers))]
                if (there.stop - there.start) * ROW_SHARE <= len(room):
                    tables = [table[place][boxes.places] for table in self._row_tables(shard)]
                    if tables:
                        left = self._read_rows(file.fileno(), entries, inside, there, boxes, tables, values)
                recorded = [None if table is None else table[place][boxes.places].tolist() for table in known.tables]
                for box, (offset, length) in zip(left, entries[left].tolist(), strict=True):
                    target = values[there, *boxes.targets[box]]
                    if offset == ABSENT:
                        target[...] = self.layout.fill
                        continue
                    within = boxes.selection(box, room.shape, inside)
                    whole = boxes.sliced and isinstance(inside, slice) and target.shape == room.shape
                    direct = whole and target.dtype == room.dtype and target.flags.c_contiguous
                    checksum = self._decode(file.fileno(), offset, length, target if direct else room)
                    if checksum is None or not any(table is None or table[box] == checksum for table in recorded):
                        raise self._damaged(key, shard, (place, *boxes.numbers[box]))
                    if not direct:
                        target[...] = room[within]

    def _row_tables(self, shard: int) -> list[np.ndarray]:
        """Checksums that the rows of a shard's chunks may have: (*grid, row) each; none before format 2."""
        place = self.guard.row_places.get(self.layout.name)
        return [] if place is None else [table[place].reshape(self.layout.row_grid) for table in self.guard.rows(shard)]

    def _read_rows(
        self,
        file: int,
        entries: np.ndarray,
        inside: slice | np.ndarray,
        there: slice,
        boxes: Boxes,
        tables: Sequence[np.ndarray],
        values: np.ndarray,
    ) -> list[int]:
        """Put a few rows of each chunk where they go.

        Parameters
        ----------
        file
            Descriptor.
        entries
            Offset and length of the chunk of each box: (box, 2).
        inside, there
            Rows of the chunks, and where in ``values`` they go.
        boxes
            What is wanted along the other axes.
        tables
            Checksums that rows may have: (box, row) each.
        values
            Of all that is read.

        Returns
        -------
        list of int
            Boxes that are left: not there, with a row that is not as recorded, or whose chunk is to be read whole.
        """
        n_row, *shape = self.layout.chunks
        size = math.prod(shape) * self.stored.itemsize
        rows: list[int] = np.arange(n_row)[inside].tolist()
        plain = is_plain(entries[:, 1], n_row * size)
        found = np.flatnonzero((entries[:, 0] != ABSENT) & (plain | (len(rows) <= FEW_BLOCKS)))
        contents = [
            os.pread(file, size, offset + HEADER_BYTES + row * size)
            if is_stored
            else read_part(file, offset, length, n_row * size, row * size, size)
            for (offset, length), is_stored in zip(entries[found].tolist(), plain[found].tolist(), strict=True)
            for row in rows
        ]
        checksums = [google_crc32c.value(content) if len(content) == size else -1 for content in contents]
        actual = np.array(checksums, dtype=np.int64).reshape(-1, len(rows))
        right = np.any([(table[found][:, inside] == actual).all(1) for table in tables], axis=0)
        left: list[int] = np.setdiff1d(np.arange(len(entries)), found[right]).tolist()
        joined = b"".join(content.ljust(size, b"\0") for content in contents)
        typed = np.frombuffer(joined, dtype=self.stored).reshape(len(found), len(rows), *shape)
        target, n = values[there], len(shape)
        if boxes.sliced and not left and target.shape[1:] == tuple(map(mul, boxes.grid, shape)):  # whole chunks' rows
            pairs = (axis for pair in zip(range(n), range(n + 1, 2 * n + 1), strict=True) for axis in pair)
            laid = typed.reshape(*boxes.grid, len(rows), *shape).transpose(n, *pairs)
            target[...] = laid.reshape(target.shape)
            return left
        for place in np.flatnonzero(right).tolist():
            within = boxes.selection(found[place], typed.shape[1:], slice(None))
            values[there, *boxes.targets[found[place]]] = typed[place][within]
        return left

    def _expect_none(self, shard: int, key: str) -> None:
        """Raise :class:`DamagedFile` unless the record, or one of two while files are replaced, has no such file."""
        sizes = [record.size[self._file] for record in self.guard.records_here(shard)]
        if sizes and min(sizes) >= 0:
            raise DamagedFile(key, shard, "is not there")

    @property
    def _file(self) -> int:
        assert self.guard.record is not None
        return self.guard.record.layout.sharded.index(self.layout.name)

    def _know(self, shard: int, key: str, file: int) -> "Known | None":
        """Index and checksums of a shard's file, remembered while it is the same file; ``None``: it does not count."""
        status = os.fstat(file)
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(shard)
        if known is not None and known.identity == identity:
            return known
        records = [record for record in self.guard.records_here(shard) if record.size[self._file] >= 0]
        if not records:
            return None
        check_size(key, shard, status.st_size, records, self._file)
        content = os.pread(file, self.index_bytes, status.st_size - self.index_bytes)
        index = decode_index(key, shard, content, self.grid)
        place = self.guard.places[self.layout.name]
        tables = tables_of(key, shard, index, records, place)
        if any(table is None for table in tables):  # an older lake: all of the file is read, once
            with open(file, "rb", closefd=False) as whole:
                whole.seek(0)
                check_digest(key, shard, hashlib.file_digest(whole, "sha256").hexdigest(), records, self._file)
        self._known[shard] = Known(identity, index, tables)
        return self._known[shard]

    def _decode(self, file: int, offset: int, length: int, chunk: np.ndarray) -> int | None:
        """Fill an array with a chunk; its checksum, ``None`` if it does not agree with that."""
        values, codec = chunk.reshape(-1).view(np.uint8), type(self.layout.codecs[0])
        if codec is BloscCodec and is_plain(length, values.size):
            header, stated = bytearray(HEADER_BYTES), bytearray(CHECKSUM_BYTES)
            os.preadv(file, [header], offset)
            actual = google_crc32c.value(bytes(header))
            for begin in range(0, values.size, PIECE_BYTES):
                piece = values[begin : begin + PIECE_BYTES]
                os.preadv(file, [piece.data], offset + HEADER_BYTES + begin)
                actual = google_crc32c.extend(actual, piece)
            os.preadv(file, [stated], offset + length - CHECKSUM_BYTES)
            if header[FLAGS] & MEMCPYED and actual == int.from_bytes(stated, "little"):
                return int(actual)
        content = np.frombuffer(os.pread(file, length, offset), dtype=np.uint8)
        if content.size != length:
            return None
        checksum: int = google_crc32c.value(content[:-CHECKSUM_BYTES])
        if checksum != int.from_bytes(content[-CHECKSUM_BYTES:].tobytes(), "little"):
            return None
        decompress(self.layout.codecs[0], content[:-CHECKSUM_BYTES], values)
        return checksum
