"""Files outside a lake: each is there whole, or as it was before."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from schemas.errors import UsageError


def check_outside(path: str | os.PathLike[str]) -> None:
    """Refuse a place inside any lake for a file that does not belong to it.

    Raises
    ------
    UsageError
        If it is one.
    """
    if lake_around(Path(path)):
        raise UsageError(f"{path} is inside the lake, which holds nothing but its own files; name another place")


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a place at which no folder can be made or written, or that is in a lake; nothing is touched.

    Raises
    ------
    UsageError
        If it is one.
    """
    check_outside(path)
    there = Path(path).absolute()
    there = next(folder for folder in (there, *there.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written" if there.is_dir() else "is a file"
        raise UsageError(f"{path} cannot be a folder to write to: {there} {what}; name another place")


def lake_around(path: Path) -> Path | None:
    """The lake that a place is, or is in."""
    place = path.resolve()
    for folder in (place, *place.parents):
        try:
            document = (folder / "zarr.json").read_bytes()
        except OSError:
            continue
        if b'"kind":"lake"' in document:
            return folder
    return None


@contextmanager
def beside(path: Path | str) -> Iterator[Path]:
    """Place beside a file, of the same ending; what is written there becomes the file once all went well.

    Folders on the way are made, and an empty file there, which shows that one can. Nothing stays if writing fails.
    In a lake there is no such place (:func:`check_outside`).
    """
    path = Path(path)
    check_outside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{uuid4().hex}.partial{path.suffix}")
    try:
        partial.touch()
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path | str, text: str) -> None:
    """Write a text in UTF-8."""
    with beside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path | str, content: Any, indent: int | None = 1) -> None:
    """Write a JSON document."""
    write_whole(path, json.dumps(content, indent=indent) + "\n")


def write_json_lines(path: Path | str, records: Iterable[Any]) -> None:
    """Write JSON Lines, a record a line."""
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
