"""The record of a run: what each shard's files hold, and whether the shard counts.

A shard counts once its files are durable, its record says so, and its mark ``committed/c/SHARD`` stands. While files
take their places, ``record/size/next/SHARD`` holds the record that is to be: a file is as it should be if it agrees
with the one or the other, so that a shard can be written again under readers, and the writer be killed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import google_crc32c
import numpy as np

from schemas import CorruptLakeError
from store.files import NEXT, RECORD, with_checksum, without_checksum
from store.layout import RunLayout

PARTS = {"sha256": "0/0", "size": "0", "crc32c": "0", "row_crc32c": "0"}
"""Arrays of the record, and how the keys of their chunks, one per shard, end."""
ROWS = "row_crc32c"
"""That of them which is read only where single examples are: it is larger than all others together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What one shard's files hold."""

    sha256: np.ndarray
    """(file, 32) uint8"""
    size: np.ndarray
    """(file,) int64; -1: there is no such file, as all of it is fill."""
    crc32c: np.ndarray | None
    """(chunk,) uint32, see :meth:`RunLayout.checksum_places`; 0: no such chunk. ``None`` in older lakes.
    From format 2 on the last one is that of ``row_crc32c`` as a whole."""
    row_crc32c: np.ndarray | None = None
    """(row,) uint32, see :meth:`RunLayout.row_places`, of the bytes of each row as they are before they are compressed;
    0 where the chunk is not there. ``None`` before format 2, or where it was not read."""

    def digest(self, file: int) -> str:
        """SHA-256 of a file, in hex."""
        return bytes(self.sha256[file]).hex()


class RunRecord:
    """Keys of a run's record, below the run, and their content.

    ``checksums``: whether the record has those of chunks.
    """

    def __init__(self, layout: RunLayout, *, checksums: bool) -> None:
        self.layout = layout
        self.places = layout.checksum_places()
        self.row_places = layout.row_places() if checksums else {}
        self.shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "sha256": ((len(layout.sharded), 32), np.dtype("u1")),
            "size": ((len(layout.sharded),), np.dtype("<i8")),
        }
        if checksums:
            n_chunk = max((place.stop for place in self.places.values()), default=0)
            self.shapes["crc32c"] = ((n_chunk,), np.dtype("<u4"))
            if self.row_places:
                self.shapes["crc32c"] = ((n_chunk + 1,), np.dtype("<u4"))
                n_row = max(place.stop for place in self.row_places.values())
                self.shapes[ROWS] = ((n_row,), np.dtype("<u4"))

    @staticmethod
    def mark_key(shard: int) -> str:
        """Key of a shard's mark."""
        return f"committed/c/{shard}"

    def mark(self, shard: int) -> bytes:
        """Content of a shard's mark."""
        rows = self.layout.shard_slice(shard)
        return with_checksum(bytes([1] * (rows.stop - rows.start)).ljust(self.layout.shard_examples, b"\0"))

    def keys(self, shard: int) -> dict[str, str]:
        """Keys of the parts of a shard's record, of its mark, and of the record that is to be."""
        parts = {part: f"{RECORD}/{part}/c/{shard}/{PARTS[part]}" for part in self.shapes}
        return {**parts, "next": f"{NEXT}/{shard}", "mark": self.mark_key(shard)}

    def encode(self, record: ShardRecord) -> dict[str, bytes]:
        """Content of the parts of a shard's record; joined, that of the record that is to be."""
        return {part: with_checksum(getattr(record, part).astype(dtype).tobytes())
                for part, (_, dtype) in self.shapes.items()}  # fmt: skip

    def problems(self, shard: int, contents: Mapping[str, bytes | None]) -> Iterator["DamagedFile"]:
        """What is wrong with a shard's record and mark, given contents by the names of :meth:`keys`, all or some."""
        keys, mark = self.keys(shard), contents["mark"]
        there = [part for part in self.shapes if contents.get(part) is not None]
        if mark is None and there and contents["next"] is None:
            yield DamagedFile(keys["mark"], shard, "is not there, though the record has the shard")
        elif mark is not None and mark != self.mark(shard):
            yield DamagedFile(keys["mark"], shard, "does not mark just the shard's examples, with their checksum")
        for part in (part for part in self.shapes if part in contents):
            if part not in there and mark is not None:
                yield DamagedFile(keys[part], shard, "is not there, though the shard is committed")
            elif part in there and self._part(part, contents[part]) is None:
                yield DamagedFile(keys[part], shard, "does not agree with its checksum")
            elif part == ROWS and part in there and contents["next"] is None:
                stated, rows = self._part("crc32c", contents["crc32c"]), self._part(part, contents[part])
                if stated is not None and stated[-1] != google_crc32c.value(rows.tobytes()):
                    yield DamagedFile(keys[part], shard, "is not what was written: it is that of other files")

    def records(self, contents: Mapping[str, bytes | None]) -> list[ShardRecord]:
        """What a shard's files may hold: two while they take their places, fewer where a record is damaged."""
        records = [{part: self._part(part, contents[part]) for part in self.shapes if part in contents}]
        if (coming := contents["next"]) is not None:
            sizes = [math.prod(shape) * dtype.itemsize + 4 for shape, dtype in self.shapes.values()]
            ends = [*accumulate(sizes)]
            pieces = [coming[end - size : end] for size, end in zip(sizes, ends, strict=True)]
            if len(coming) == ends[-1]:
                records.append({part: self._part(part, piece) for part, piece in zip(self.shapes, pieces, strict=True)})
        return [
            ShardRecord(**{"crc32c": None, ROWS: None, **parts})
            for parts in records
            if all(values is not None for values in parts.values())
        ]

    def decode(self, shard: int, contents: Mapping[str, bytes | None]) -> list[ShardRecord]:
        """What a shard's files may hold, see :meth:`records`; nothing if the shard does not count.

        Raises
        ------
        DamagedFile
            If the record or the mark is damaged, or the one is there without the other.
        """
        for problem in self.problems(shard, contents):
            raise problem
        return [] if contents["mark"] is None else self.records(contents)

    def _part(self, part: str, content: bytes | None) -> Any:
        shape, dtype = self.shapes[part]
        plain = None if content is None else without_checksum(content, math.prod(shape) * dtype.itemsize)
        return None if plain is None else np.frombuffer(plain, dtype=dtype).reshape(shape)


class DamagedFile(CorruptLakeError):
    """A file that is not as the lake's record has it, by its key below its group; for those who know the lake."""

    def __init__(self, key: str, shard: int | None, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key
        self.shard = shard
        self.problem = problem

    def __reduce__(self) -> tuple[type["DamagedFile"], tuple[str, int | None, str]]:
        """Pickled by what it was made of: errors of workers travel."""
        return type(self), (self.key, self.shard, self.problem)
