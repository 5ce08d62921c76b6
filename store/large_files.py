"""Copying a large file from one store to another in parts, so that memory does not grow with its size."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from schemas import LakeError
from store.files import read_bytes, set_bytes, write_beside

PART_BYTES = 2**23
"""What is read and sent at a time; object stores want parts of five megabytes at least."""
PARTS = 2
"""Parts of one file on their way at once."""


def copy_large(source: Store, target: Store, key: str, size: int) -> None:
    """Copy one file, some parts of it in memory at a time.

    It appears in the target whole or not at all.

    Raises
    ------
    LakeError
        If it is cut short or removed meanwhile.
    """
    if isinstance(target, LocalStore):
        path = target.root / key
        write_beside(path, _parts(source, key, size)).replace(path)
    elif isinstance(target, ObjectStore):
        from obstore import put

        parts = _parts(source, key, size)
        put(target.store, key, parts, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS)
    elif isinstance(target, FsspecStore):  # each of its file systems sends a file of a disk in its own way
        with on_disk(source, key, size) as path:
            sync(target.fs._put_file(str(path), f"{target.path}/{key}"))
    else:
        set_bytes(target, key, read_bytes(source, key) or b"")


def _parts(source: Store, key: str, size: int) -> Iterator[bytes]:
    """Content of a file, part after part."""
    for begin in range(0, size, PART_BYTES):
        wanted = RangeByteRequest(begin, min(size, begin + PART_BYTES))
        part = sync(source.get(key, default_buffer_prototype(), wanted))
        if part is None or len(part) != wanted.end - begin:
            raise LakeError(f"{key} is gone or shorter: the lake is being changed; give the same command again")
        yield part.to_bytes()


@contextmanager
def on_disk(source: Store, key: str, size: int) -> Iterator[Path]:
    """A file as one of this machine: itself, or a copy, made in parts, that is removed again."""
    if isinstance(source, LocalStore):
        yield source.root / key
        return
    handle, name = tempfile.mkstemp(prefix="lake-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(_parts(source, key, size))
        yield Path(name)
    finally:
        Path(name).unlink()
