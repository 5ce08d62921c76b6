"""One writer per shard: a lock that dies with its process and leaves nothing behind."""

import fcntl
import os
import struct
import sys
from pathlib import Path
from types import TracebackType

# Bound to the descriptor, so that closing another one of the same file does not drop it; Linux only.
_OPEN_FILE_LOCK = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None


class ShardClaim:
    """Exclusive hold of one shard of a run, between processes that see the same file system.

    The shard's number is a byte offset, and the claim a lock on that one byte of the run's ``zarr.json``: no file to
    clean up, and the kernel lets go of it when the process ends, however it ends. Object stores have no locks; there
    writers are kept apart by ``--shard I/N``, and two that meet all the same write the same bytes.

    Parameters
    ----------
    path
        The run's ``zarr.json``; ``None`` where there is no file system: the claim then always holds.
    shard
        Number of the shard.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
