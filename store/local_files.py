"""Files of a lake on this machine's disk, read without Zarr's event loop."""

from pathlib import Path

SMALL_BYTES = 2**20
"""Bytes of a file above which its reading is worth a thread."""


def content_of(path: Path) -> bytes | None:
    """Content of a file, or ``None`` where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def is_small(path: Path) -> bool:
    """Whether a local file is there and read in less time than it takes to have a thread do it."""
    try:
        return path.stat().st_size < SMALL_BYTES
    except OSError:
        return False


def identity_of(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from another one that takes its place: inode, size and time; ``None`` if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
