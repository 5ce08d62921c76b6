"""Reading the files of a group as they were written, or not at all.

What the lake knows of a file decides what reading it gives. A file that never changes is listed with its SHA-256 by its
group's document, or a run's by its record; it is read whole and compared. Of a shard's large files the record has the
checksum of every chunk, so that a chunk of another file, or of an older one, is noticed as it is read, at no more
reading. A chunk is fill only if the record has none there, or the shard does not count yet.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync

from schemas import CorruptLakeError, LakeError
from store.files import RECORD, join, read_bytes
from store.layout import SHARDED_VARIABLES
from store.local_files import content_of, identity_of, is_small
from store.location import local_path, open_store
from store.mend import is_another, lost, since_opened
from store.range_check import as_recorded, asked_part, check_answer, check_range, check_size, decode_index, tables_of
from store.record import ROWS, DamagedFile, RunRecord, ShardRecord

RECORD_DOCUMENT = f"{RECORD}/zarr.json"
KEPT_ROWS = 8
"""Shards whose checksums of rows are remembered."""
TRIES = 100
"""Readings of a file that is replaced again each time."""
T = TypeVar("T")


class Guard(Store):
    """Store of one group of a lake, read-only, whose values are as they were written.

    Keys are those below the group. Made for Zarr to read from; picklable, and good in forked processes.

    Parameters
    ----------
    location
        The lake.
    group
        Run, model or result.
    kind
        ``run``, ``model`` or ``result``.
    digests
        SHA-256 by key of each file that never changes.
    record, mark
        Of a run: what is known of its shards, and its fingerprint.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(
        self,
        location: str | os.PathLike[str],
        group: str,
        kind: str,
        digests: Mapping[str, str],
        record: RunRecord | None = None,
        mark: str = "",
    ) -> None:
        super().__init__(read_only=True)
        self.location = location
        self.group = group
        self.kind = kind
        self.digests = dict(digests)
        self.record = record
        self.mark = mark
        folder = local_path(location)
        self.folder = None if folder is None else folder.absolute() / group  # a worker may be at home elsewhere
        self._lake = location if folder is None else folder.absolute()
        self._opened: tuple[int, Store] | None = None
        self._counted: frozenset[int] = frozenset()
        self.documents: dict[str, bytes] = {}
        self.forget()

    @property
    def places(self) -> dict[str, slice]:
        """Where a run's record has the checksums of each array's chunks."""
        return {} if self.record is None else self.record.places

    @property
    def row_places(self) -> dict[str, slice]:
        """Where a run's record has the checksums of rows of each array."""
        return {} if self.record is None else self.record.row_places

    def forget(self) -> None:
        """Drop what is remembered of shards, so that it is read again."""
        self._records: dict[int, list[ShardRecord]] = {}
        self._rows: dict[int, list[np.ndarray]] = {}
        self._indexes: dict[str, tuple[np.ndarray, list[np.ndarray | None]]] = {}
        self._document: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of; nothing remembered, no connection."""
        return {**self.__dict__, "_opened": None, "_records": {}, "_rows": {}, "_indexes": {}}

    def __eq__(self, other: object) -> bool:
        """Whether another one reads the same group."""
        return isinstance(other, Guard) and (self.location, self.group) == (other.location, other.group)

    __hash__ = None  # type: ignore[assignment]

    @property
    def store(self) -> Store:
        """The lake, opened by this process: connections do not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_store(self._lake)
        return self._opened[1]

    # What users of a group's values call

    def reading(self, read: Callable[[], T]) -> T:
        """Result of a reading, which is tried again while a shard is being replaced.

        Raises
        ------
        CorruptLakeError
            If a file is not as it was written; it is named with the command that mends it.
        RemovedError
            If the group was removed, or another one is in its place.
        """
        state: object = None
        for _ in range(TRIES):
            try:
                return read()
            except DamagedFile as found:
                self.forget()
                problem, before, state = found, state, self._state(found)
                if before == state:
                    break
            except (ValueError, RuntimeError) as error:  # of codecs, in older lakes on an object store
                why = str(error).splitlines()[0]
                raise CorruptLakeError(
                    f"{self._place('')} cannot be decoded ({why}); run lake verify {self.location}"
                ) from error
        raise self.error(problem) from None

    def _state(self, problem: DamagedFile) -> object:
        """What changes when the file of a problem, or the record of its shard, is replaced."""
        keys = [problem.key]
        if self.record is not None and problem.shard is not None:
            keys += self.record.keys(problem.shard).values()
        if self.folder is not None:
            return [identity_of(self.folder / key) for key in keys]
        return str(problem), [read_bytes(self.store, join(self.group, key)) for key in keys[1:]]

    def error(self, problem: DamagedFile) -> LakeError:
        """The message about a file that is not as it was written, see :func:`store.mend.lost`."""
        what, gone = f"{self._place(problem.key)} {problem.problem}", self._gone()
        return lost(self.location, self.store, self.group, self.kind, gone, what, problem.shard)

    def _gone(self) -> str:
        return since_opened(self.store, self.group, self.kind, self.digests, self.mark)

    def _here(self, key: str) -> bytes | None:
        """Content of a file, read without Zarr's event loop."""
        return read_bytes(self.store, join(self.group, key)) if self.folder is None else content_of(self.folder / key)

    def _place(self, key: str) -> str:
        return str(self.folder / key) if self.folder is not None else f"{self.location}/{join(self.group, key)}"

    def committed(self) -> np.ndarray:
        """Which shards count: (shard,) bool.

        Raises
        ------
        CorruptLakeError
            If a mark is damaged, or lost: the record has a shard that has none.
        """
        record = self.record
        assert record is not None

        async def marks() -> list[bytes | None]:
            return await asyncio.gather(*(self.raw(record.mark_key(n)) for n in range(record.layout.n_shard)))

        def read() -> np.ndarray:
            marked = sync(marks())
            for shard, mark in enumerate(marked):
                if mark != record.mark(shard):
                    marked[shard] = record.mark(shard) if sync(self.records(shard)) else None
            if not any(marked) and (gone := self._gone()):
                raise DamagedFile("zarr.json", None, gone)
            return np.array([mark is not None for mark in marked])

        counted = self.reading(read)
        self._counted = frozenset(np.flatnonzero(counted).tolist())
        return counted

    def read_documents(self) -> None:
        """Read the documents of all arrays, from an object store in parallel, and keep them.

        Raises
        ------
        CorruptLakeError
            If one is not as it was written.
        """
        keys = [key for key in self.arrays().values() if key not in self.documents]

        async def contents() -> list[bytes]:
            return await asyncio.gather(*map(self._static, keys))

        def read() -> list[bytes]:
            return sync(contents()) if self.folder is None else [self.content_here(key, 0) or b"" for key in keys]

        self.documents.update(zip(keys, self.reading(read), strict=True))

    def arrays(self) -> dict[str, str]:
        """Key of the document of each array of the group."""
        documents = sorted(key for key in self.digests if key.count("/") == 1 and key.endswith("/zarr.json"))
        return {key.partition("/")[0]: key for key in documents}

    async def records(self, shard: int) -> list[ShardRecord]:
        """What a shard's files may hold; nothing if the shard does not count."""
        assert self.record is not None
        decoded = self._records.get(shard)
        if decoded is None:
            keys = {name: key for name, key in self.record.keys(shard).items() if name != ROWS}
            contents = await asyncio.gather(*map(self.raw, keys.values()))
            self._check_same(await self.raw(RECORD_DOCUMENT))  # after what it is the record of
            decoded = self._remembered(shard, self.record.decode(shard, dict(zip(keys, contents, strict=True))))
        return decoded

    def records_here(self, shard: int) -> list[ShardRecord]:
        """As :meth:`records`, read from a local disk without Zarr's event loop."""
        assert self.record is not None
        decoded = self._records.get(shard)
        if decoded is None:
            keys = {name: key for name, key in self.record.keys(shard).items() if name != ROWS}
            contents = {name: self._here(key) for name, key in keys.items()}
            self._check_same(self._here(RECORD_DOCUMENT))
            decoded = self._remembered(shard, self.record.decode(shard, contents))
        return decoded

    def _check_same(self, document: bytes | None) -> None:
        """Refuse what was read of a shard if its record is that of another run, put in the place of the one opened."""
        if document != self._document and is_another(document, self.digests, self.mark):
            raise DamagedFile(RECORD_DOCUMENT, None, "is that of another run")
        self._document = document

    def _remembered(self, shard: int, records: list[ShardRecord]) -> list[ShardRecord]:
        """A shard's records; one that counted when the run was opened has some, or it would be read as fill."""
        if records:
            self._records[shard] = records
        elif shard in self._counted:
            raise DamagedFile(RunRecord.mark_key(shard), shard, "is not there any more, as where a run is begun anew")
        return records

    def rows(self, shard: int) -> list[np.ndarray]:
        """Checksums that a shard's rows may have, by record: (row,), see :meth:`store.layout.RunLayout.row_places`."""
        assert self.record is not None
        tables = self._rows.get(shard)
        if tables is None:
            keys = self.record.keys(shard)
            contents = {name: self._here(key) for name, key in keys.items()}
            self._check_same(self._here(RECORD_DOCUMENT))
            records = self.record.decode(shard, contents)
            tables = [record.row_crc32c for record in records if record.row_crc32c is not None]
            if len(self._rows) == KEPT_ROWS:
                del self._rows[next(iter(self._rows))]
            self._rows[shard] = tables
        return tables

    def content_here(self, key: str, shard: int) -> bytes | None:
        """Content of a file on a local disk as it was written, without Zarr's event loop; ``None``: it is all fill."""
        assert self.folder is not None
        name, content = key.partition("/")[0], content_of(self.folder / key)
        if key in self.digests:
            return self._as_listed(key, content)
        if self.record is None or name not in SHARDED_VARIABLES:
            return None
        return as_recorded(key, shard, content, self.records_here(shard), self.record.layout.sharded.index(name))

    # What Zarr calls

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Value of a key, or part of it, as it was written; ``None`` where there is to be none."""
        name, _, rest = key.partition("/")
        if key in self.digests:
            content: bytes | None = self.documents.get(key) or await self._static(key)
        elif self.record is not None and name in SHARDED_VARIABLES and rest.startswith("c/"):
            return await self._of_shard(name, int(rest.split("/")[1]), key, prototype, byte_range)
        else:
            content = None
        return None if content is None else prototype.buffer.from_bytes(asked_part(content, byte_range))

    async def raw(self, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
        """What lies there, or part of it, unchecked."""
        if self.folder is not None and byte_range is None and is_small(self.folder / key):
            return content_of(self.folder / key)
        place, prototype = join(self.group, key), default_buffer_prototype()
        try:
            value = await self.store.get(place, prototype, byte_range)
        except Exception:  # of an object store, by whatever name, where a range lies beyond a shortened file's end
            if byte_range is None:
                raise
            value = await self.store.get(place, prototype)
            return None if value is None else asked_part(value.to_bytes(), byte_range)
        content = None if value is None else value.to_bytes()
        if content is not None and byte_range is not None:
            check_answer(self._place(key), content, byte_range)
        return content

    async def _static(self, key: str) -> bytes:
        return self._as_listed(key, await self.raw(key))

    def _as_listed(self, key: str, content: bytes | None) -> bytes:
        """Content of a file that never changes, if it is the one that was written."""
        if content is None:
            raise DamagedFile(key, None, "is not there")
        if hashlib.sha256(content).hexdigest() != self.digests[key]:
            raise DamagedFile(key, None, "is not what was written: its SHA-256 is another one than the lake has")
        return content

    async def _of_shard(
        self, name: str, shard: int, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        """Value, or part, of one of a shard's files."""
        assert self.record is not None
        file, records = self.record.layout.sharded.index(name), await self.records(shard)
        there = [record for record in records if record.size[file] >= 0]
        content = await self.raw(key, byte_range) if there else None
        if content is None or byte_range is None:
            content = as_recorded(key, shard, content, records, file)
        else:
            index, tables = await self._index(name, shard, key, there, content, byte_range)
            if isinstance(byte_range, RangeByteRequest):
                check_range(key, shard, content, byte_range, index, tables)
        return None if content is None else prototype.buffer.from_bytes(content)

    async def chunks_of(self, name: str, shard: int, key: str) -> tuple[np.ndarray, list[np.ndarray | None]] | None:
        """Offset and length of each chunk of a shard's file, and checksums it may have; ``None``: it does not count."""
        assert self.record is not None
        file, records = self.record.layout.sharded.index(name), await self.records(shard)
        there = [record for record in records if record.size[file] >= 0]
        if not there or key in self._indexes:
            return self._indexes[key] if there else None
        whole = SuffixByteRequest(self.record.layout.arrays()[name].index_bytes)
        content = await self.raw(key, whole)
        if content is None and len(there) == len(records):
            raise DamagedFile(key, shard, "is not there")
        return None if content is None else await self._index(name, shard, key, there, content, whole)

    async def _index(
        self, name: str, shard: int, key: str, records: list[ShardRecord], content: bytes, asked: ByteRequest
    ) -> tuple[np.ndarray, list[np.ndarray | None]]:
        """Index of a shard's file, and the checksums its chunks may have; from what was read, if that is the index."""
        assert self.record is not None
        array = self.record.layout.arrays()[name]
        whole = SuffixByteRequest(array.index_bytes)
        if key not in self._indexes or asked == whole:
            read = content if asked == whole else await self.raw(key, whole) or b""
            index, file = decode_index(key, shard, read, array.grid), self.record.layout.sharded.index(name)
            if any(record.crc32c is None for record in records):  # an older lake
                check_size(key, shard, await self.store.getsize(join(self.group, key)), records, file)
            tables = tables_of(key, shard, index, records, self.record.places[name])
            self._indexes[key] = index, tables
        return self._indexes[key]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several values."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether a key has a value."""
        return await self.get(key, default_buffer_prototype()) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refused."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refused."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Keys that never change; those of shards are not listed."""
        for key in self.digests:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys that begin so."""
        for key in self.digests:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names below a prefix."""
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in {key[len(below) :].split("/")[0] for key in self.digests if key.startswith(below)}:
            yield name
