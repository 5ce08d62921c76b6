"""Who may write: one process at a time makes groups, and one each shard; locks die with their process."""

import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from schemas import SpecMismatchError
from store.files import CLAIM, RECORD, read_bytes, set_bytes
from store.location import local_path, open_store

# Bound to the descriptor, so that closing another one of the same file does not drop it; Linux only.
_OPEN_FILE_LOCK = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None

CLAIMED = f"{RECORD}/zarr.json"
"""Of a run's documents the one that no writer replaces: a lock is on a file, not on its name."""


@contextmanager
def lake_lock(location: str | os.PathLike[str], group: str = "", made_from: str = "") -> Iterator[None]:
    """Let one process at a time write groups of a lake. The lock ends with its process and leaves no file.

    Object stores have no locks. There a process claims the group that it makes, so that no other makes it from
    something else; two processes that make it from the same things write the same bytes, but for a run's provenance.
    Inside the lock, look whether another process has made the group meanwhile.

    Parameters
    ----------
    location
        Folder or URL.
    group
        Below the lake, where one is made of which ``made_from``, a fingerprint, decides the content.

    Raises
    ------
    SpecMismatchError
        If another process is making the group from something else, or was stopped while it did; on object stores only.
    """
    folder = local_path(location)
    if folder is None:
        with _claimed(location, group, made_from.encode()) if group else nullcontext():
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system without locks: as on an object store
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _claimed(location: str | os.PathLike[str], group: str, made_from: bytes) -> Iterator[None]:
    """Claim a group by an object that says what the group is made from, and remove it afterwards.

    A process that finds a claim for the same content shares it. A shared claim goes once the group is made; it stays
    where one of the processes is stopped, as another may still write.
    """
    store, key = open_store(location, read_only=False), f"{group}/{CLAIM}"
    alone = made_from + b" " + uuid4().hex.encode()
    while (held := read_bytes(store, key)) is None:
        sync(store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(alone)))
    if held.partition(b" ")[0] != made_from:
        raise SpecMismatchError(
            f"another process is making {group!r} in {location} from something else, or was stopped while it did;"
            f" wait for it or, if there is none, remove {location}/{key}, and give the command again"
        )
    if held != alone:
        set_bytes(store, key, made_from)
    made = False
    try:
        yield
        made = True
    finally:
        if made or read_bytes(store, key) == alone:
            sync(store.delete(key))


class ShardClaim:
    """Exclusive hold of one shard of a run, between processes that see the same file system.

    The shard's number is a byte offset, and the claim a lock on that one byte of :data:`CLAIMED`: no file to clean up,
    and the kernel lets go of it when the process ends, however it ends. Object stores have no locks; there writers are
    kept apart by ``--shard I/N``, and two that meet all the same write the same bytes.

    ``path`` is that of :data:`CLAIMED`, or ``None`` where there is no file system: the claim then always holds.
    """

    def __init__(self, path: Path | None, shard: int) -> None:
        self.path = path
        self.shard = shard
        self._descriptor: int | None = None

    def __enter__(self) -> bool:
        """Take the claim; false if another process has it."""
        if self.path is None:
            return True
        self._descriptor = os.open(self.path, os.O_RDWR)
        try:
            if _OPEN_FILE_LOCK is not None:
                lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, self.shard, 1, 0)
                fcntl.fcntl(self._descriptor, _OPEN_FILE_LOCK, lock)
            else:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.shard)
        except OSError:
            self._close()
            return False
        return True

    def __exit__(self, *_: object) -> None:
        """Let go."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
