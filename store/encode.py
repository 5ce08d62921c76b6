"""Files of a shard before they are written: chunks encoded side by side, each with its checksums."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from operator import mul
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.storage import MemoryStore

from store.blocks import BlockArray
from store.codecs import compressor
from store.files import Piece, Replacement, with_checksum
from store.layout import ArrayLayout
from store.range_check import ABSENT, CHECKSUM_BYTES

SIDE_BY_SIDE = 4
"""Chunks of states that are copied together: a batch has a row's positions one after the other."""


class ShardFile:
    """A shard's file before it is written; it has no pieces if every value is fill, as Zarr stores no such file.

    Pieces may be encoded only as they are asked for; all else is known once they have been gone through.
    """

    def __init__(self) -> None:
        self.pieces: Iterable[Piece] = []
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.checksums: np.ndarray | None = None
        """CRC-32C of each chunk, 0 where there is none: (*grid,); of sharded arrays only."""
        self.rows: np.ndarray | None = None
        """CRC-32C of each row of each chunk: see :attr:`ArrayLayout.row_grid`; of states only."""

    def counted(self, piece: Piece) -> Iterator[Piece]:
        """Count and hash the next piece, and give it."""
        self.sha256.update(piece)
        self.size += len(piece)
        yield piece

    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return self.sha256.digest()

    def put(self, files: Replacement, key: str) -> None:
        """Put the file beside its place."""
        files.add(key, self.pieces)

    def collect(self) -> "ShardFile":
        """Itself, with its pieces in memory."""
        self.pieces = list(self.pieces)
        return self


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """Chunks that lie one after the other in a shard's file, each with its checksum behind it."""

    pieces: list[Piece]
    places: list[tuple[int, ...]]
    """Of each chunk, in the grid of the shard."""
    sizes: list[int]
    """Bytes of each, checksum included."""
    checksums: list[int]
    rows: list[list[int]]
    """Checksums of each one's rows; of states only."""


def encoders() -> ThreadPoolExecutor:
    """Threads for :func:`encode_shard`."""
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="lake-encode")


def encode_shard(layout: ArrayLayout, values: BlockArray, pool: ThreadPoolExecutor, shard: int = 0) -> ShardFile:
    """One shard's file: chunks with their checksums, those that are all fill left out; the index.

    Chunks lie in order of the axes, except that some of neighbouring examples (:attr:`ArrayLayout.together`) lie side
    by side at each place of the second axis. Pieces are encoded as they are asked for, the encoders ahead: those of
    :func:`encoders`, not the main thread, where Blosc brings threads of its own and the order of its blocks is theirs.
    """
    encode = partial(encode_part, layout, values, shard * layout.grid[0])
    return shard_file(layout, lambda: pool.map(encode, parts_of(layout)))


def parts_of(layout: ArrayLayout) -> list[tuple[int, ...]]:
    """Places along the first axes at which the parts of a shard's file begin, in their order."""
    return list(product(range(0, layout.grid[0], layout.together), *map(range, layout.grid[1:2])))


def part_bytes(layout: ArrayLayout) -> int:
    """Upper bound of the bytes of an encoded part; codecs add a little to what they cannot compress."""
    chunk = prod(layout.chunks) * np.dtype(layout.dtype).itemsize
    return layout.together * prod(layout.grid[2:]) * (chunk + chunk // 128 + 512)


def shard_file(
    layout: ArrayLayout, encoded: Callable[[], Iterator[EncodedPart]], kind: type[ShardFile] = ShardFile
) -> ShardFile:
    """A shard's file from its parts in order; ``encoded`` is called when the file's pieces are first asked for."""
    file = kind()
    checksums = file.checksums = np.zeros(layout.grid, dtype="<u4")
    row_checksums = file.rows = np.zeros(layout.row_grid, dtype="<u4") if layout.has_rows else None

    def pieces() -> Iterator[Piece]:
        index = np.full((*layout.grid, 2), ABSENT, dtype="<u8")
        for part in encoded():
            begin = file.size
            for number, place in enumerate(part.places):
                index[place] = begin, part.sizes[number]
                begin += part.sizes[number]
                checksums[place] = part.checksums[number]
                if row_checksums is not None:
                    row_checksums[place] = part.rows[number]
            for piece in part.pieces:
                yield from file.counted(piece)
        if file.size:
            yield from file.counted(with_checksum(index.tobytes()))

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


def encode_part(layout: ArrayLayout, values: BlockArray, first: int, part: tuple[int, ...]) -> EncodedPart:
    """Encode the chunks of one of :func:`parts_of`; the shard begins ``first`` chunks into the values."""
    compress = compressor(layout.codecs[0])
    encoded = EncodedPart([], [], [], [], [])
    n_row, depth, length, *other = layout.chunks
    side = min(SIDE_BY_SIDE, layout.grid[2]) if layout.has_rows else 1
    examples = values.rows((first + part[0]) * n_row, layout.together * n_row)
    # New memory for each box costs more.
    room = np.empty((layout.together, n_row, depth, side * length, *other), dtype=layout.dtype)
    for begin, *rest in product(range(0, layout.grid[2], side), *map(range, layout.grid[3:])):
        corner = [part[1] * depth, begin * length, *map(mul, rest, other)]
        there = examples.read(corner, room.reshape(-1, *room.shape[2:]))
        places = range(begin, min(begin + side, layout.grid[2])) if there else ()
        for place, number in product(places, range(layout.together)):
            chunk = np.ascontiguousarray(room[number, :, :, (place - begin) * length :][:, :, :length])
            if not _is_fill(chunk, layout.fill):
                rows = chunk.reshape(n_row, -1) if layout.has_rows else np.empty((0, 1), dtype=layout.dtype)
                content = compress(chunk)
                checksum: int = google_crc32c.value(content)
                encoded.pieces.extend((content, checksum.to_bytes(CHECKSUM_BYTES, "little")))
                encoded.places.append((part[0] + number, part[1], place, *rest))
                encoded.sizes.append(len(content) + CHECKSUM_BYTES)
                encoded.checksums.append(checksum)
                encoded.rows.append([google_crc32c.value(row) for row in rows.view(np.uint8)])
    return encoded


def _is_fill(chunk: np.ndarray, fill: Any) -> bool:
    """Whether a chunk holds nothing but the fill: NaN, or zeros."""
    if fill != fill:
        # One value of each row settles it for nearly all chunks.
        return bool(np.isnan(chunk.reshape(len(chunk), -1)[:, 0]).all()) and bool(np.isnan(chunk).all())
    return not chunk.reshape(-1).view(np.bool_).any()  # which ends at the first that is none
