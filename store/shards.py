"""Files of sharded arrays: encoded whole, and on a local disk read by one positioned read per inner chunk.

A chunk of states is one range of a shard's file and, where a (layer, position) is read over all examples, one range of
the result. Of a shard's file its index is remembered, and the record's checksums of its chunks, while the file is the
same: a shard that is written again under an open dataset is read anew, and what is not as recorded is never handed out.
"""

import hashlib
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from itertools import compress, groupby, product
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, Zstd, blosc, zstd
from xarray.backends import BackendArray
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core import indexing
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.storage import MemoryStore

from store.blocks import BlockArray
from store.guard import Guard
from store.layout import ArrayLayout
from store.range_check import ABSENT, CHECKSUM_BYTES, check_digest, check_size, decode_index, tables_of
from store.record import DamagedFile

DECOMPRESS = {BloscCodec: blosc.decompress, ZstdCodec: zstd.decompress}
# Blosc's frame: a header, whose third byte has flags. One says that what follows is the content as it is.
BLOSC_HEADER_BYTES = 16
BLOSC_FLAGS, BLOSC_MEMCPYED = 2, 0x2
PIECE_BYTES = 2**16
"""What is read before its checksum is taken: little enough to be in the processor's cache still."""

Part = tuple[int, slice | np.ndarray, slice]
"""Along one axis: the number of a chunk, what of it is wanted, and where in the result that goes."""


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type in which values are handed out: float32 for float16, whose sums are wrong in the third digit."""
    return np.dtype("float32") if dtype == np.float16 else dtype


class HandedOut(BackendArray):
    """An array that Zarr reads, with values in the types that are handed out.

    Parameters
    ----------
    guard, name
        Where it is.
    array
        Opened from the guard.
    stored
        Floats in the type they are stored in.
    """

    def __init__(self, guard: Guard, name: str, array: zarr.Array[Any], *, stored: bool) -> None:
        self.guard = guard
        self.name = name
        self.shape = array.shape
        text = isinstance(array.dtype, np.dtypes.StringDType)
        # numpy's own string type travels badly: sorting, pandas and JSON know objects
        self.dtype = np.dtype(object) if text else array.dtype if stored else widened(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Values at an index."""
        return self.guard.reading(lambda: self._read(key))

    def _read(self, key: indexing.ExplicitIndexer) -> Any:
        array = zarr.open_array(self.guard, path=self.name, mode="r", zarr_format=3)
        values = ZarrArrayWrapper(array)[key]  # type: ignore[no-untyped-call]
        return np.asarray(values).astype(self.dtype, copy=False)


class ShardFile:
    """A shard's file before it is written; of no pieces if all is fill: Zarr keeps no file of such a shard.

    Pieces may be encoded only as they are asked for; all else is known once they have been gone through.
    """

    def __init__(self) -> None:
        self.pieces: Iterable[bytes] = []
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.checksums: np.ndarray | None = None
        """CRC-32C of each chunk, 0 where there is none: (*grid,); of sharded arrays only."""

    def counted(self, content: bytes) -> tuple[bytes, bytes]:
        """Content and its checksum, as the next pieces."""
        value: int = google_crc32c.value(content)
        pieces = content, value.to_bytes(CHECKSUM_BYTES, "little")
        for piece in pieces:
            self.sha256.update(piece)
            self.size += len(piece)
        return pieces

    def collect(self) -> "ShardFile":
        """Itself, with its pieces in memory."""
        self.pieces = list(self.pieces)
        return self


def encoders() -> ThreadPoolExecutor:
    """Threads for :func:`encode_shard`."""
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="lake-encode")


def encode_shard(layout: ArrayLayout, values: BlockArray, pool: ThreadPoolExecutor, shard: int = 0) -> ShardFile:
    """One shard's file: chunks with their checksums in order of the axes, those that are all fill left out; the index.

    Parameters
    ----------
    layout
        Of the array.
    values
        Of the shard's examples, or of more.
    pool
        Of :func:`encoders`. Not the main thread: there Blosc brings threads of its own, and the order of its blocks is
        theirs.
    shard
        Which shard of the values.

    Returns
    -------
    ShardFile
        Of pieces that are encoded as they are asked for, the encoders ahead.
    """
    file = ShardFile()
    checksums = file.checksums = np.zeros(layout.grid, dtype="<u4")
    first = shard * layout.grid[0]

    def pieces() -> Iterator[bytes]:
        index = np.full((*layout.grid, 2), ABSENT, dtype="<u8")
        parts = list(np.ndindex(*layout.grid[:2]))
        for part, chunks in zip(parts, pool.map(lambda part: _encode(layout, values, part, first), parts), strict=True):
            for rest, content in chunks:
                index[part + rest] = file.size, len(content) + CHECKSUM_BYTES
                found = file.counted(content)
                checksums[part + rest] = int.from_bytes(found[1], "little")
                yield from found
        if file.size:
            yield from file.counted(index.tobytes())

    file.pieces = pieces()
    return file


def encode_column(layout: ArrayLayout, values: np.ndarray) -> ShardFile:
    """One shard's file of an array without inner chunks, as Zarr encodes it."""
    memory: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(memory), shape=layout.chunks, chunks=layout.chunks, dtype=layout.dtype, fill_value=layout.fill,
        compressors=layout.codecs,
    )[: len(values)] = values  # fmt: skip
    file = ShardFile()
    if (content := memory.get(layout.key(0))) is not None:
        file.pieces, file.size = [content.to_bytes()], len(content)
        file.sha256.update(content.to_bytes())
    return file


def _encode(
    layout: ArrayLayout, values: BlockArray, part: tuple[int, ...], first: int
) -> list[tuple[tuple[int, ...], bytes]]:
    """Chunks at a place along the first axes, by their place along the others; ``first`` is that of the shard."""
    compressor, found = _compressor(layout.codecs[0]), []
    for rest in np.ndindex(*layout.grid[len(part) :]):
        place = (first + part[0], *part[1:], *rest)
        chunk = values.read([number * size for number, size in zip(place, layout.chunks, strict=True)], layout.chunks)
        if chunk is not None and not _is_fill(chunk, layout.fill):
            found.append((rest, compressor.encode(chunk)))
    return found


def _compressor(codec: BloscCodec | ZstdCodec) -> Blosc | Zstd:
    """What Zarr's codec stands for."""
    stated: Any = codec.to_dict()["configuration"]
    if isinstance(codec, ZstdCodec):
        return Zstd(**stated)
    return Blosc(**{**stated, "shuffle": getattr(Blosc, stated["shuffle"].upper())})


def _is_fill(chunk: np.ndarray, fill: Any) -> bool:
    """Whether a chunk holds nothing but the fill: NaN, or zeros."""
    first = chunk.reshape(-1)[0]
    if fill != fill:
        return bool(first != first) and bool(np.isnan(chunk).all())
    return not chunk.reshape(-1).view(np.uint8).any()


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

    Parameters
    ----------
    guard
        Of the run.
    layout
        Its shape, chunks, shards and codecs.
    stored
        Values in the type they are stored in; else float16 is widened to float32.
    """

    def __init__(self, guard: Guard, layout: ArrayLayout, *, stored: bool) -> None:
        self.guard = guard
        self.layout = layout
        self.grid, self.index_bytes = layout.grid, layout.index_bytes
        self.shape = layout.shape
        self.dtype = np.dtype(layout.dtype) if stored else widened(np.dtype(layout.dtype))
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
        """Bytes of the chunks, in some shards, that hold any of the product of sorted numbers, one array an axis."""
        examples, *others = (np.unique(pick // size) for pick, size in zip(picks, self.layout.chunks, strict=True))
        total = 0
        for shard in shards:
            inside = examples[examples // self.grid[0] == shard] % self.grid[0]
            try:
                with FileIO(f"{self.guard.folder}/{self.layout.name}/{self.layout.key(shard)}") as file:
                    known = self._know(shard, f"{self.layout.name}/{self.layout.key(shard)}", file.fileno())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue  # all of it is fill
            if known is not None and inside.size:
                chunks = known.index[np.ix_(inside, *others)]
                total += int(np.where(chunks[..., 0] == ABSENT, 0, chunks[..., 1]).sum())
        return total

    def _points(self, key: tuple[np.ndarray, ...]) -> Any:
        array = zarr.open_array(self.guard, path=self.layout.name, mode="r", zarr_format=3)
        return np.asarray(array.vindex[key]).astype(self.dtype, copy=False)

    def _box(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at the product of one number, rising slice or sorted array per axis."""
        picks = [_picks(*each) for each in zip(self.shape, key, strict=True)]
        values = np.empty([len(each) for each in picks], dtype=self.dtype)
        if values.size:
            room = np.empty(self.layout.chunks, dtype=self.layout.dtype)
            examples, *others = (list(_parts(*each)) for each in zip(picks, self.layout.chunks, strict=True))
            boxes = [tuple(zip(*box, strict=True)) for box in product(*others)]
            for shard, parts in groupby(examples, key=lambda part: part[0] // self.grid[0]):
                self._read_shard(shard, parts, boxes, values, room)
        kept = (isinstance(each, slice | np.ndarray) for each in key)  # a number takes its axis away
        return values.reshape(list(compress(values.shape, kept)))

    def _read_shard(
        self,
        shard: int,
        examples: Iterable[Part],
        boxes: Iterable[tuple[Any, ...]],
        values: np.ndarray,
        room: np.ndarray,
    ) -> None:
        """Put what is wanted of one shard where it goes: at once where that is a whole chunk, else through ``room``."""
        key = f"{self.layout.name}/{self.layout.key(shard)}"
        try:
            file = FileIO(f"{self.guard.folder}/{key}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._expect_none(shard, key)
            for _, _, there in examples:
                values[there] = self.layout.fill
            return
        with file:
            known = self._know(shard, key, file.fileno())
            for (number, *one), (numbers, *other) in product(examples, boxes):
                chunk = (number % self.grid[0], *numbers)
                within: Any = (one[0], *other[0])
                where = (one[1], *other[1])
                target = values[where]
                offset, length = (ABSENT, 0) if known is None else known.index[chunk].tolist()
                if known is None or offset == ABSENT:
                    target[...] = self.layout.fill
                    continue
                sliced = all(isinstance(each, slice) for each in within)
                whole = sliced and target.shape == room.shape and target.flags.c_contiguous
                direct = whole and target.dtype == room.dtype
                checksum = self._decode(file.fileno(), offset, length, target if direct else room)
                if checksum is None or not any(table is None or table[chunk] == checksum for table in known.tables):
                    problem = f"is not what was written: chunk {chunk} does not agree with its checksum"
                    self._known.pop(shard, None)
                    raise DamagedFile(key, shard, problem)
                if whole and not direct:
                    target[...] = room
                elif not whole:
                    indices = (np.arange(size)[each] for size, each in zip(room.shape, within, strict=True))
                    target[...] = room[within if sliced else np.ix_(*indices)]

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
        found = os.fstat(file)
        identity = (found.st_ino, found.st_size, found.st_mtime_ns)
        known = self._known.get(shard)
        if known is not None and known.identity == identity:
            return known
        records = [record for record in self.guard.records_here(shard) if record.size[self._file] >= 0]
        if not records:
            return None
        check_size(key, shard, found.st_size, records, self._file)
        content = os.pread(file, self.index_bytes, found.st_size - self.index_bytes)
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
        if codec is BloscCodec and length == BLOSC_HEADER_BYTES + values.size + CHECKSUM_BYTES:
            header, stated = bytearray(BLOSC_HEADER_BYTES), bytearray(CHECKSUM_BYTES)
            os.preadv(file, [header], offset)
            found = google_crc32c.value(bytes(header))
            for begin in range(0, values.size, PIECE_BYTES):
                piece = values[begin : begin + PIECE_BYTES]
                os.preadv(file, [piece.data], offset + BLOSC_HEADER_BYTES + begin)
                found = google_crc32c.extend(found, piece)
            os.preadv(file, [stated], offset + length - CHECKSUM_BYTES)
            if header[BLOSC_FLAGS] & BLOSC_MEMCPYED and found == int.from_bytes(stated, "little"):
                return int(found)
        content = np.frombuffer(os.pread(file, length, offset), dtype=np.uint8)
        if content.size != length:
            return None
        checksum: int = google_crc32c.value(content[:-CHECKSUM_BYTES])
        if checksum != int.from_bytes(content[-CHECKSUM_BYTES:].tobytes(), "little"):
            return None
        DECOMPRESS[codec](content[:-CHECKSUM_BYTES], values)
        return checksum


def _picks(size: int, wanted: int | slice | np.ndarray) -> range | np.ndarray:
    """Numbers along an axis of a size that an index stands for."""
    if isinstance(wanted, np.ndarray):
        return np.asarray(np.arange(size)[wanted])
    found = range(size)[wanted]
    return found if isinstance(found, range) else range(found, found + 1)


def _parts(picks: range | np.ndarray, size: int) -> Iterator[Part]:
    """Chunks of a size that hold rising numbers."""
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
