"""What the bytes of a shard's file must be, by the run's record."""

import hashlib
from collections.abc import Iterable, Sequence

import google_crc32c
import numpy as np
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from schemas import LakeError
from store.record import DamagedFile, ShardRecord

ABSENT = 2**64 - 1
"""Offset of a chunk that a shard does not hold: it is all fill."""
CHECKSUM_BYTES = 4


def check_digest(key: str, shard: int, digest: str, records: Iterable[ShardRecord], file: int) -> None:
    """Raise :class:`DamagedFile` if a file's SHA-256 is in none of the records."""
    if digest not in {record.digest(file) for record in records}:
        raise DamagedFile(key, shard, "is not what was written: its SHA-256 is another one than the record has")


def as_recorded(key: str, shard: int, content: bytes | None, records: Sequence[ShardRecord], file: int) -> bytes | None:
    """Content of a whole file, if it is one that a record has; ``None``: all of it is fill.

    Raises
    ------
    DamagedFile
        If it is another one, or is to be there and is not.
    """
    there = [record for record in records if record.size[file] >= 0]
    if not there or (content is None and len(there) < len(records)):
        return None
    if content is None:
        raise DamagedFile(key, shard, "is not there")
    check_digest(key, shard, hashlib.sha256(content).hexdigest(), there, file)
    return content


def check_size(key: str, shard: int, size: int, records: Iterable[ShardRecord], file: int) -> None:
    """Raise :class:`DamagedFile` if a file's size is in none of the records."""
    recorded = [int(record.size[file]) for record in records]
    if size not in recorded:
        sizes = " or ".join(f"{size:,}" for size in recorded)
        raise DamagedFile(key, shard, f"is not what was written: it has {size:,} bytes, {sizes} were recorded")


def decode_index(key: str, shard: int, content: bytes, grid: tuple[int, ...]) -> np.ndarray:
    """Offset and length of each chunk of a shard's file: (*grid, 2)."""
    plain, stated = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    whole = len(plain) == 16 * int(np.prod(grid)) and google_crc32c.value(plain) == int.from_bytes(stated, "little")
    if not whole:
        raise DamagedFile(key, shard, "is damaged: its index does not agree with its checksum")
    return np.frombuffer(plain, dtype="<u8").reshape(*grid, 2)


def tables_of(
    key: str, shard: int, index: np.ndarray, records: Iterable[ShardRecord], place: slice
) -> list[np.ndarray | None]:
    """Checksums that the chunks of a shard's file may have, by record: (*grid,); ``None`` where a record has none.

    Raises
    ------
    DamagedFile
        If no record has just these chunks.
    """
    fitting: list[np.ndarray | None] = []
    for record in records:
        if record.crc32c is None:
            fitting.append(None)
            continue
        table = record.crc32c[place].reshape(index.shape[:-1])
        if ((table != 0) == (index[..., 0] != ABSENT)).all():
            fitting.append(table)
    if not fitting:
        raise DamagedFile(key, shard, "is not what was written: its chunks are not those of the record")
    return fitting


def check_range(
    key: str,
    shard: int,
    content: bytes,
    asked: RangeByteRequest,
    index: np.ndarray,
    tables: list[np.ndarray | None],
) -> None:
    """Raise :class:`DamagedFile` unless a range of a shard's file is chunks that agree with their checksums."""
    flat = index.reshape(-1, 2)
    last = flat[:, 0] + flat[:, 1]  # beyond 2**64 for those that are absent
    inside = np.flatnonzero((flat[:, 0] != ABSENT) & (flat[:, 0] >= asked.start) & (last <= asked.end))
    covered = 0
    for chunk in inside.tolist():
        begin, length = int(flat[chunk, 0]) - asked.start, int(flat[chunk, 1])
        piece = content[begin : begin + length]
        stated, computed = piece[-CHECKSUM_BYTES:], google_crc32c.value(piece[:-CHECKSUM_BYTES])
        known = [computed if table is None else int(table.reshape(-1)[chunk]) for table in tables]
        if len(piece) != length or computed != int.from_bytes(stated, "little") or computed not in known:
            place = tuple(int(place) for place in np.unravel_index(chunk, index.shape[:-1]))
            raise DamagedFile(key, shard, f"is not what was written: chunk {place} does not agree with its checksum")
        covered += length
    if covered != asked.end - asked.start:
        raise DamagedFile(key, shard, "is not what was written: its chunks lie elsewhere")


def check_answer(place: str, content: bytes, asked: ByteRequest | None) -> None:
    """Raise ``LakeError`` if more came than was asked for: of each chunk the whole file would be sent."""
    size = asked.end - asked.start if isinstance(asked, RangeByteRequest) else len(content)
    size = asked.suffix if isinstance(asked, SuffixByteRequest) else size
    if len(content) > size:
        raise LakeError(
            f"{place}: asked for {size:,} bytes of it, {len(content):,} came: its server does not answer range requests"
            " (python -m http.server does not); use one that does, or copy the lake to this machine"
        )


def asked_part(content: bytes, asked: ByteRequest | None) -> bytes:
    """The range of a file that was asked for."""
    if isinstance(asked, RangeByteRequest):
        return content[asked.start : asked.end]
    if isinstance(asked, OffsetByteRequest):
        return content[asked.offset :]
    return content[-asked.suffix :] if isinstance(asked, SuffixByteRequest) else content
