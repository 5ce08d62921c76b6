"""Files of a lake on this machine's disk, read without Zarr's event loop."""

import os
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


def files_below(root: Path) -> list[str]:
    """Paths below a folder of all files in it, through links, as reading goes.

    Raises
    ------
    OSError
        If a folder cannot be listed: what is in it would count as not there.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # another process may have removed it just now
            raise error

    found = []
    for parent, children, files in os.walk(root, onerror=fail, followlinks=True):
        links = [name for name in children if Path(parent, name).is_symlink()]
        for name in links:
            above = (folder.resolve() for folder in Path(parent, name).parents)
            if Path(parent, name).resolve() in above:  # it would never end
                children.remove(name)
        below = Path(parent).relative_to(root)
        found += [(below / name).as_posix() for name in files if Path(parent, name).is_file()]
    return found
