"""Sharded arrays on an object store: all chunks that an index wants are asked for at once, neighbours in one request.

Zarr asks for the chunks of a shard one after another, and an answer takes tens of milliseconds: the attention of one
layer is hundreds of chunks of a shard.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from store.boxes import Boxes, parts_of
from store.codecs import decompress
from store.files import join
from store.range_check import ABSENT, CHECKSUM_BYTES, check_answer
from store.record import DamagedFile
from store.shards import ShardedArray

BATCH_BYTES = 2**25
"""Of chunks that are asked for at once."""
Known = tuple[np.ndarray, list[np.ndarray | None]]
"""Of a shard's file: offset and length of each chunk, and checksums they may have."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A chunk that is in a shard's file, and where what is wanted of it goes."""

    shard: int
    chunk: tuple[int, ...]
    """Its numbers within the shard."""
    part: RangeByteRequest
    """Of the shard's file."""
    tables: list[np.ndarray | None]
    """Checksums that the chunks of the file may have."""
    target: np.ndarray
    within: tuple[Any, ...]
    """What of the chunk is wanted."""


class RemoteArray(ShardedArray):
    """As :class:`store.shards.ShardedArray`, of a lake on an object store."""

    def stored_bytes(self, picks: Sequence[np.ndarray], shards: Any) -> int:
        """Refused: an index would have to be fetched of each shard, only to say how much there is."""
        raise NotImplementedError

    def _fill(self, picks: Sequence[range | np.ndarray], values: np.ndarray) -> None:
        """Put what is picked along each axis into an array."""
        if not values.size:
            return
        examples, *others = (list(parts_of(*each)) for each in zip(picks, self.layout.chunks, strict=True))
        boxes = Boxes.of(others, sliced=all(isinstance(each, range) for each in picks[1:]))
        wanted = []
        known = self._indexes([number // self.grid[0] for number, _, _ in examples])
        for number, inside, there in examples:
            shard, place = divmod(number, self.grid[0])
            for box, numbers in enumerate(boxes.numbers):
                target = values[there, *boxes.targets[box]]
                within = boxes.selection(box, self.layout.chunks, inside)
                wanted += self._wanted(known[shard], shard, (place, *numbers), target, within)
        self._fetch(wanted)

    def _fill_chunks(self, chunks: Sequence[tuple[int, ...]], targets: Sequence[np.ndarray]) -> None:
        """Put whole chunks into arrays."""
        wanted = []
        known = self._indexes([chunk[0] // self.grid[0] for chunk in chunks])
        for chunk, target in zip(chunks, targets, strict=True):
            shard, place = divmod(chunk[0], self.grid[0])
            wanted += self._wanted(known[shard], shard, (place, *chunk[1:]), target, (...,))
        self._fetch(wanted)

    def _indexes(self, shards: Iterable[int]) -> dict[int, Known | None]:
        """Index and checksums of the files of some shards; ``None`` of one that does not count."""
        numbers = sorted(set(shards))

        async def read() -> list[Known | None]:
            name = self.layout.name
            return await asyncio.gather(*(self.guard.chunks_of(name, shard, self._key(shard)) for shard in numbers))

        return dict(zip(numbers, sync(read()), strict=True))

    def _wanted(
        self, known: Known | None, shard: int, chunk: tuple[int, ...], target: np.ndarray, within: tuple[Any, ...]
    ) -> list[Wanted]:
        """A chunk to be fetched; none, and fill is where it goes, if it is not there."""
        offset, length = (ABSENT, 0) if known is None else known[0][chunk].tolist()
        if known is None or offset == ABSENT:
            target[...] = self.layout.fill
            return []
        return [Wanted(shard, chunk, RangeByteRequest(offset, offset + length), known[1], target, within)]

    def _fetch(self, wanted: Sequence[Wanted]) -> None:
        """Fetch chunks, check them, and put what is wanted of each where it goes."""
        room = np.empty(self.layout.chunks, dtype=self.stored)
        for batch in batches(sorted(wanted, key=lambda one: (one.shard, one.part.start))):
            for one, content in zip(batch, sync(self._contents(batch)), strict=True):
                checksum = google_crc32c.value(content[:-CHECKSUM_BYTES])
                stated = int.from_bytes(content[-CHECKSUM_BYTES:], "little")
                recorded = any(table is None or table[one.chunk] == checksum for table in one.tables)
                if len(content) != one.part.end - one.part.start or checksum != stated or not recorded:
                    raise self._damaged(self._key(one.shard), one.shard, one.chunk)
                decompress(self.layout.codecs[0], content[:-CHECKSUM_BYTES], room.reshape(-1).view(np.uint8))
                one.target[...] = room[one.within]

    async def _contents(self, batch: Sequence[Wanted]) -> list[bytes]:
        """Bytes of chunks, unchecked: asked for together, and those that lie side by side in one request."""
        keys = [self._key(one.shard) for one in batch]
        places = [(join(self.guard.group, key), one.part) for key, one in zip(keys, batch, strict=True)]
        try:
            values = await self.guard.store.get_partial_values(default_buffer_prototype(), places)
            read = [None if value is None else value.to_bytes() for value in values]
        except Exception:  # of an object store, by whatever name, where a range lies beyond a shortened file's end
            read = [await self.guard.raw(key, one.part) for key, one in zip(keys, batch, strict=True)]
        for key, one, content in zip(keys, batch, read, strict=True):
            if content is None:
                raise DamagedFile(key, one.shard, "is not there")
            check_answer(f"{self.guard.location}/{join(self.guard.group, key)}", content, one.part)
        return [content for content in read if content is not None]


def batches(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Chunks in lists of at most ``BATCH_BYTES``, or of one."""
    batch: list[Wanted] = []
    size = 0
    for one in wanted:
        length = one.part.end - one.part.start
        if batch and size + length > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        yield batch
