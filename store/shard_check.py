"""What a shard's bytes must be, by its records and its own checksums."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from store.layout import ArrayLayout
from store.range_check import ABSENT, CHECKSUM_BYTES, decode_index
from store.record import DamagedFile, RunRecord, ShardRecord


@dataclass(frozen=True, slots=True)
class Read:
    """What was found of a file."""

    size: int
    sha256: str
    checksums: np.ndarray | None
    """CRC-32C of each chunk, of a shard's large files: (*grid,)."""
    sealed: bool
    """Whether it is a whole chunk, by its own checksum: where that is not the one listed, one of two is older."""


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """A committed shard: its files, and what its record says of them."""

    run: str
    number: int
    known: RunRecord
    keys: Mapping[str, str]
    """Keys of the parts of its record."""
    files: Sequence[str]
    records: Sequence[ShardRecord]

    def array(self, key: str) -> ArrayLayout:
        """Layout of a file's array."""
        return self.known.layout.arrays()[key.removeprefix(f"{self.run}/").split("/")[0]]

    def problems(self, files: Mapping[str, Read | None], owner: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """What is wrong: a file with what it should be, or a part of the record with which no file agrees."""
        differ = {key: self._differs(index, files.get(key)) for index, key in enumerate(self.files)}
        there = [parts for key, parts in differ.items() if files.get(key) is not None]
        blamed = {part for part in ("size", "crc32c") if any(parts == {part} for parts in there)}
        if len(there) > 1 and all(parts == {"sha256"} for parts in there):
            blamed = {"sha256"}
        for part in sorted(blamed):
            yield self.keys[part], "is not what was written: files of the shard that are whole do not agree with it"
        for index, (key, parts) in enumerate(differ.items()):
            if parts and not (len(parts) == 1 and parts <= blamed):
                digests = {record.digest(index) for record in self.records if record.size[index] >= 0}
                if digests:
                    yield key, damage_of(files.get(key), digests, owner) or "is not what was written"
                else:
                    yield key, "is there, but the record says that the shard has no such file"

    def _differs(self, index: int, read: Read | None) -> set[str]:
        """In what a file differs from that record which it fits best."""
        return min((self._differs_from(record, index, read) for record in self.records), key=len)

    def _differs_from(self, record: ShardRecord, index: int, read: Read | None) -> set[str]:
        size = int(record.size[index])
        if read is None:
            return set() if size < 0 else {"file"}
        if size < 0:
            return {"file", "sha256", "size"}
        differ = {"sha256"} if record.digest(index) != read.sha256 else set()
        if size != read.size:
            differ.add("size")
        place = self.known.places.get(self.known.layout.sharded[index])
        if record.crc32c is not None and place is not None:
            stated = record.crc32c[place]
            if read.checksums is None or not np.array_equal(stated, read.checksums.reshape(-1)):
                differ.add("crc32c")
        return differ


def chunk_checksums(content: Any, array: ArrayLayout) -> np.ndarray | None:
    """CRC-32C of each chunk of a shard's file, 0 where there is none: (*grid,); ``None`` if its index is damaged."""
    try:
        index = decode_index("", 0, bytes(content[-array.index_bytes :]), array.grid)
    except DamagedFile:
        return None
    checksums = np.zeros(array.grid, dtype="<u4")
    for chunk in np.argwhere(index[..., 0] != ABSENT).tolist():
        offset, length = index[tuple(chunk)].tolist()
        checksums[tuple(chunk)] = google_crc32c.value(bytes(content[offset : offset + length - CHECKSUM_BYTES]))
    return checksums


def is_array(content: bytes) -> bool:
    """Whether a document is that of a Zarr array."""
    try:
        return bool(json.loads(content)["node_type"] == "array")
    except (ValueError, KeyError, TypeError):
        return False


def damage_of(read: Read | None, digests: Collection[str], owner: Mapping[str, str]) -> str:
    """What is wrong with a file of which the digests are known; empty: nothing."""
    if read is None:
        return "is not there"
    if read.sha256 in digests:
        return ""
    recorded = " or ".join(f"{digest[:12]}.." for digest in sorted(digests))
    swapped = f"; it is what {owner[read.sha256]} should be" if read.sha256 in owner else ""
    return f"has SHA-256 {read.sha256[:12]}.. over {read.size:,} bytes; {recorded} was recorded{swapped}"
