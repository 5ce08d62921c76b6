"""Files of a group: assembled in memory, sealed, written whole and made durable, the group's own document last."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import google_crc32c
import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from schemas import CorruptLakeError, canonical_json, fingerprint
from store.codecs import encode_rows
from store.layout import COLUMN_CHUNK, COLUMN_CODECS
from store.local_files import content_of

RECORD = "record"
"""Group below a run that holds the checksum and size of each shard's files, and the checksums of their chunks."""
NEXT = f"{RECORD}/size/next"
"""Folder below a run of what a shard's record is to be, while the shard's files take their places."""
RESULTS = "results"
"""Group below a lake of what was computed from its runs."""
COMING = ".coming"
"""Ends the name of a whole result that is to take the place of the one before; it counts where that one is gone."""
LEFTOVER = "*.partial"
"""What a killed process leaves of a file it had not finished."""
REMOVED = "removed.partial"
"""Folder below a lake of what is being removed: of no reader's depth, and swept by the next writer."""
CLAIM = "claim"
"""Object in a group that somebody makes in an object store: the next who makes the same removes it."""
FLUSHES = 16
"""Files or folders that are flushed side by side."""
BUFFER_BYTES = 2**20
"""Small pieces of a file are gathered to so many bytes before they are written: one by one takes twice as long."""
THROUGH_BYTES = 2**24
"""Bytes written before the system is told to send them to the disk."""


Piece = bytes | memoryview
"""Part of a file's content."""


class Replacement:
    """Files that take their places together, once all of them are durable beside those places.

    On a local disk each is written as a leftover's name has it, then renamed: who reads meanwhile has the old file or
    the new one, whole. An object store replaces whole objects anyway.

    Parameters
    ----------
    store, folder
        The lake; ``folder`` is ``None`` for an object store.
    """

    def __init__(self, store: Store, folder: Path | None) -> None:
        self.store = store
        self.folder = folder
        self._waiting: dict[str, Path | Sequence[Piece]] = {}

    def add(self, key: str, pieces: Iterable[Piece]) -> None:
        """Put a file beside its place; of no pieces: none is to be there. Files may be added by several threads."""
        pieces = iter(pieces)
        first = list(islice(pieces, 1))
        if self.folder is not None and first:
            self._waiting[key] = write_beside(self.folder / key, chain(first, pieces))
        else:
            self._waiting[key] = [*first, *pieces]

    def add_written(self, key: str, write: Callable[[Path], Path | None]) -> None:
        """Have a file written beside its place, on a local disk; the function says where, ``None``: there is none."""
        assert self.folder is not None
        self._waiting[key] = write(self.folder / key) or []

    def publish(self) -> None:
        """Let all files take their places, durably."""
        for key, waiting in self._waiting.items():
            if isinstance(waiting, Path):
                waiting.replace(waiting.parent / Path(key).name)
            elif waiting:
                set_bytes(self.store, key, b"".join(waiting))
            elif read_size(self.store, key) is not None:
                sync(self.store.delete(key))
        if self.folder is not None:
            flush_folders(self.folder, self._waiting)  # the files themselves are durable
        self._waiting.clear()

    def __enter__(self) -> "Replacement":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what has not been published."""
        for waiting in self._waiting.values():
            if isinstance(waiting, Path):
                waiting.unlink(missing_ok=True)


def write_beside(path: Path, pieces: Iterable[Piece]) -> Path:
    """Write a large file durably under a leftover's name beside its place, leaving none of it in memory.

    Every ``THROUGH_BYTES`` are sent to the disk while the next are written. Left to the system, free memory would fill
    with what nobody reads again soon, and taking fresh memory costs more than writing to a fast disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        with partial.open("wb", buffering=BUFFER_BYTES) as file:
            pending = 0
            for piece in pieces:
                file.write(piece)
                pending += len(piece)
                if pending >= THROUGH_BYTES:
                    file.flush()
                    _let_go(file.fileno())
                    pending = 0
            file.flush()
            os.fsync(file.fileno())
            _let_go(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _let_go(file: int) -> None:
    """Have the system start writing what it holds of a file, without waiting, and forget what is on the disk already.

    Not a flush: on some disks each costs as much time as dozens of megabytes.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def with_checksum(content: bytes) -> bytes:
    """Content of a file of the record, or of a shard's mark: as Zarr's codec ends it with its CRC-32C."""
    value: int = google_crc32c.value(content)
    return content + value.to_bytes(4, "little")


def without_checksum(content: bytes, size: int) -> bytes | None:
    """Inverse of :func:`with_checksum`; ``None`` if the content is of another size or does not agree with it."""
    plain = content[:-4]
    return plain if len(plain) == size and with_checksum(plain) == content else None


def read_size(store: Store, key: str) -> int | None:
    """Size of a key's value, or ``None``."""
    try:
        if isinstance(store, LocalStore):
            return (store.root / key).stat().st_size
        return sync(store.getsize(key))
    except FileNotFoundError:
        return None


def read_bytes(store: Store, key: str) -> bytes | None:
    """Value of a key, or ``None``; from a local disk without Zarr's event loop, which takes longer than the reading."""
    if isinstance(store, LocalStore):
        return content_of(store.root / key)
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()


def names_below(store: Store, path: str) -> list[str]:
    """Names of what lies directly below a place, in order; a web server lists those of folders with ``/`` behind."""
    if isinstance(store, LocalStore):
        try:
            return sorted(below.name for below in (store.root / path).iterdir())
        except (FileNotFoundError, NotADirectoryError):  # another process may have removed it just now
            return []

    async def names() -> set[str]:
        return {name.strip("/") async for name in store.list_dir(path)}

    return sorted(sync(names()) - {""})


def set_bytes(store: Store, key: str, content: bytes | bytearray) -> None:
    """Store a value; on a local disk it appears whole or not at all, without Zarr's event loop."""
    if isinstance(store, LocalStore) and not store.read_only:
        path = store.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(content)))


def join(group: str, key: str) -> str:
    """Key below a group; the lake itself is the group ``""``."""
    return f"{group}/{key}" if group and key else group or key


def digests_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file but the group's own document."""
    return {key: hashlib.sha256(content).hexdigest() for key, content in contents.items() if key != "zarr.json"}


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """A group's ``zarr.json``: canonical JSON that vouches for itself.

    ``attributes.seal`` is the SHA-256 of the same document without ``seal``; ``attributes.files``, where there, the
    SHA-256 of each file that never changes, by its key below the group. All else are numbers and texts, settings as
    JSON text: what every format can save, and the same for those who open the group without this project.
    """
    stated = {key: _stated(value) if key != "files" else value for key, value in attributes.items()}
    document = {"zarr_format": 3, "node_type": "group", "attributes": stated}
    stated["seal"] = fingerprint(document)
    return canonical_json(document).encode()


def _stated(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else canonical_json(value)


def unstated(value: Any) -> Any:
    """An attribute as it was given: settings as JSON text, in lakes of earlier versions as JSON, are read."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with suppress(ValueError):
            return json.loads(value)
    return value


def unseal(content: bytes) -> dict[str, Any] | None:
    """Attributes of a group's document if it is whole, byte for byte; else ``None``."""
    try:
        document = json.loads(content)
        whole = canonical_json(document).encode() == content
        seal = document["attributes"].pop("seal")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not whole or fingerprint(document) != seal:
        return None
    return {key: unstated(value) for key, value in document["attributes"].items()}


def is_ours(content: bytes) -> bool:
    """Whether a document, whole or damaged, can be one of a lake's: no other program's Zarr has a seal."""
    return b"seal" in content or b"zarr_format" not in content


def assemble(
    attributes: Mapping[str, Any],
    build: Iterable[tuple[str, Mapping[str, Any]]] = (),
    *,
    files: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """Files of a group with the given arrays, the group's own document last.

    Parameters
    ----------
    attributes
        Attributes of the group.
    build
        Name and ``zarr.Group.create_array`` arguments of each array.
    files
        Digests of further files the group vouches for besides its own; ``None``: it lists none at all. (A run's files
        are listed by its record, out of sight of those who open the run.)

    Returns
    -------
    dict
        Content by key below the group, deterministic in its arguments.
    """
    memory: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(memory))
    contents: dict[str, bytes] = {}
    for name, arguments in build:
        if not _in_rows(**arguments):
            group.create_array(name, **arguments)
            continue
        told = dict(arguments)
        data = told.pop("data")
        group.create_array(name, shape=data.shape, dtype=data.dtype, **told)
        ends = "/0" * (data.ndim - 1)
        contents |= {f"{name}/c/{number}{ends}": chunk for number, chunk in encode_rows(data, arguments["chunks"][0])}
    contents |= {key: buffer.to_bytes() for key, buffer in memory.items() if key != "zarr.json"}
    contents = dict(sorted(contents.items()))
    listed = {} if files is None else {"files": dict(sorted({**digests_of(contents), **files}.items()))}
    contents["zarr.json"] = group_document({**attributes, **listed})
    return contents


def _in_rows(*, data: np.ndarray | None = None, chunks: Any = (), compressors: Any = (), **others: Any) -> bool:
    """Whether an array is of :func:`column`, has values and is cut along its first axis: it is encoded here."""
    if data is None or not data.size or not data.ndim or compressors is not COLUMN_CODECS or "fill_value" in others:
        return False
    return bool(chunks[1:] == data.shape[1:])


def column(name: str, values: Any, dims: tuple[str, ...], **attributes: Any) -> tuple[str, dict[str, Any]]:
    """Arguments of a small array whose values are known when its group is made."""
    if not isinstance(values, np.ndarray):
        first = values
        while isinstance(first, list | tuple) and first:
            first = first[0]
        values = np.array(values, dtype=object if isinstance(first, str) else None)  # else as wide as the longest text
    if values.dtype.kind in "OUT":
        values = values.astype(np.dtypes.StringDType(), order="C")  # Zarr writes texts in the order of memory
    chunks = (*(min(size, COLUMN_CHUNK) for size in values.shape[:1]), *values.shape[1:])
    return name, {
        "data": values,
        "chunks": tuple(max(1, size) for size in chunks) if values.shape else "auto",
        "compressors": COLUMN_CODECS,
        "dimension_names": dims,
        "attributes": {key: value for key, value in attributes.items() if value},
    }


def write_files(store: Store, group: str, contents: Mapping[str, bytes], folder: Path | None) -> None:
    """Write a group's files durably, its own document after all others: a group that can be opened is whole.

    Files that already hold these bytes are left alone.
    """
    others = [key for key in contents if key != "zarr.json"]
    for keys in (others, ["zarr.json"]):
        changed = [join(group, key) for key in keys if read_bytes(store, join(group, key)) != contents[key]]
        for key in changed:
            set_bytes(store, key, contents[key.removeprefix(f"{group}/")])
        if folder is not None:
            make_durable(folder, changed)


def read_group(store: Store, path: str) -> dict[str, Any] | None:
    """Attributes of a group of the lake, or ``None`` where there is none, or a group or array without a seal.

    Raises
    ------
    CorruptLakeError
        If its document is damaged.
    """
    content = read_bytes(store, join(path, "zarr.json"))
    if content is None:
        return None
    attributes = unseal(content)
    if attributes is None and is_ours(content):
        raise CorruptLakeError(f"{join(path, 'zarr.json')} does not agree with its own seal; run lake verify")
    return attributes


def settle(folder: Path) -> None:
    """Remove what is being removed; put results in their places whose writers were stopped on the way (``COMING``)."""
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    for coming in folder.glob(f"{RESULTS}/*/*{COMING}"):
        place = coming.with_name(coming.name.removesuffix(COMING))
        if (place / "zarr.json").exists():
            shutil.rmtree(coming)
        else:
            shutil.rmtree(place, ignore_errors=True)
            coming.rename(place)


def make_durable(folder: Path, keys: Iterable[str]) -> None:
    """Flush files to the disk, then the folders that name them; of removed ones the folders alone."""
    keys = list(keys)
    flush_all(path for path in (folder / key for key in keys) if path.exists())
    flush_folders(folder, keys)


def flush_folders(folder: Path, keys: Iterable[str]) -> None:
    """Flush the folders that name some files, up to the lake's own."""
    parents = {parent for key in keys for parent in (folder / key).parents if parent.is_relative_to(folder)}
    flush_all(parent for parent in parents if parent.exists())


def flush_all(paths: Iterable[Path]) -> None:
    """Flush files or folders side by side: a disk answers many flushes in the time of one."""
    paths = [*paths]
    if len(paths) == 1:
        _flush(paths[0])
        return
    with ThreadPoolExecutor(FLUSHES) as pool:
        list(pool.map(_flush, paths))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
