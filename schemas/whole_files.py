"""Files outside a lake: each is there whole, or as it was before."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def beside(path: Path | str) -> Iterator[Path]:
    """Place beside a file, of the same ending; what is written there becomes the file once all went well.

    Folders on the way are made, and an empty file there, which shows that one can. Nothing stays if writing fails.
    """
    path = Path(path)
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
