"""The report of a lake that lies beside it."""

import re
from pathlib import Path

from analyze.explorer.state import readable_runs, state_of
from schemas.command import Shell
from store import open_lake

MARK = re.compile(r'<meta name="lake-state" content="([0-9a-f]*)">')
HEAD_BYTES = 4096
"""Of a page, where its mark stands."""


def state_in(page: Path) -> str | None:
    """State of the lake that a page was made of; ``None`` if it is no page of a report."""
    if not page.is_file():
        return None
    with page.open("rb") as file:
        match = MARK.search(file.read(HEAD_BYTES).decode("utf-8", "replace"))
    return match.group(1) if match else None


def is_report(page: Path) -> bool:
    """Whether a file is the page of a report."""
    return state_in(page) is not None


def page_of_lake(location: str, shell: Shell) -> tuple[Path, bool]:
    """The page of a lake's report beside it (of a URL in the working folder), and whether it was made now.

    Raises
    ------
    UsageError
        If neither a report nor a lake lies there.
    """
    from analyze.report import build_report

    lake = open_lake(location)
    runs, _ = readable_runs(lake)
    stem = str(location).rstrip("/").rpartition("/")[2].removesuffix(".lake") or "lake"
    beside = Path() if lake.folder is None else Path(lake.folder).resolve().parent
    page = beside / f"{stem}-report" / "index.html"
    if state_in(page) == state_of(lake, runs, lake.results()):
        return page, False
    with shell.progress("report", "sections") as progress:
        return build_report(location, page.parent, progress=progress).page, True
