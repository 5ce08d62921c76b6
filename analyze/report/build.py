"""Building the page: sections are made, their figures and tables written, everything put into one HTML file."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from analyze.context import Context, without_folders
from analyze.drawing import STYLE
from analyze.explorer.state import state_of
from analyze.explorer.template import template
from analyze.report import explore
from analyze.report.overview import OVERVIEW, about, experiment_rows, opening_sentence, run_rows
from analyze.report.sections import chapters, sections
from analyze.report.view import Writer, section_view
from analyze.serve.reports import is_report
from schemas import UsageError, filled
from schemas.progress import Progress, silent
from schemas.whole_files import check_outside, write_whole
from store import open_lake

FOLDER = Path(__file__).parent
EXPLORER = FOLDER.parent / "explorer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was written."""

    page: Path
    page_bytes: int
    n_figure: int
    n_table: int
    sections: tuple[str, ...]
    """Experiments on the page, by slug."""
    problems: dict[str, int]
    """Problems that can be picked on the page, by run: as many as were asked for, or all of the run."""
    missing: tuple[str, ...]
    """Experiments whose results are not in the lake, and which a command would make of its runs."""
    broken: dict[str, str]
    """Experiments whose results could not be read, and why."""


def build_report(
    location: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runs: Sequence[str] | None = None,
    n_problem: int = 40,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Write ``index.html``, its figures (PNG and SVG) and its tables (CSV) into a folder.

    The page needs nothing beside it: style, script, drawings and the data of its interactive parts are inside.

    Parameters
    ----------
    location
        Lake: a folder or a URL.
    out
        Folder; made where there is none. Figures and tables of an earlier report in it are replaced.
    runs
        Runs the page is about; all by default.
    n_problem
        Number of problems of each run that can be picked on the page.
    seed
        Decides which.
    progress
        Called with sections done and their number.

    Raises
    ------
    UsageError
        If the lake has no runs, or ``out`` is a file or holds another page.
    """
    lake = open_lake(location)
    names = list(runs or lake.runs())
    if not names:
        raise UsageError(f"{location} has no runs to report on; make one with lake extract")
    if n_problem < 0:
        raise UsageError(f"n_problem is {n_problem}; it must be at least 0")
    if Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"{out} is a file; the report goes into a folder")
    check_outside(out)
    path = Path(out) / "index.html"
    if path.exists() and not is_report(path):
        raise UsageError(f"{path} is there and is no page of lake report; name another folder")
    context = Context(lake, names)
    state = state_of(lake, names, context.results)  # before: what is written meanwhile is not on the page
    writer = Writer(Path(out))
    total = len(sections()) + 2
    shown: dict[str, dict[str, Any]] = {}
    with mpl.rc_context(STYLE):
        for section in sections():
            shown[section.slug] = section_view(section, writer, context)
            progress(len(shown), total)
        overview = section_view(OVERVIEW, writer, context)
    data = explore.page_data(context, n_problem=n_problem, seed=seed)
    progress(total - 1, total)
    page = _page(context, state, overview, shown, data)
    write_whole(path, page.encode(errors="backslashreplace").decode())  # a folder's name may be no UTF-8
    progress(total, total)
    return _report(path, writer, shown, data)


def _report(path: Path, writer: Writer, shown: dict[str, dict[str, Any]], data: dict[str, Any]) -> Report:
    broken = {slug: view["error"] for slug, view in shown.items() if view["error"]}
    return Report(
        page=path,
        page_bytes=path.stat().st_size,
        n_figure=writer.n_figure,
        n_table=writer.n_table,
        sections=tuple(slug for slug, view in shown.items() if view["headline"]),
        problems={run["name"]: len(run["problems"]["items"]) for run in data["runs"]},
        missing=tuple(
            slug for slug, view in shown.items() if view["commands"] and not view["headline"] and slug not in broken
        ),
        broken=broken,
    )


def _page(
    context: Context, state: str, overview: dict[str, Any], shown: dict[str, dict[str, Any]], data: dict[str, Any]
) -> str:
    rows = run_rows(context)
    first, *others = [
        {
            "title": chapter.title,
            "lead": chapter.lead,
            "slug": chapter.slug,
            "sections": [shown[section.slug] for section in chapter.sections],
        }
        for chapter in chapters()
    ]
    experiments = experiment_rows(shown)
    return template(FOLDER / "page.html").render(
        lake=context.shown_location.rstrip("/").rpartition("/")[2],
        sentence=opening_sentence(context, shown),
        about=about(context),
        missing=any(not view["headline"] for view in shown.values()),
        info=filled(["lake", "info", "PATH", rows[0]["mark"]], context.shown_location),
        serve=filled(["lake", "serve", "PATH"], context.shown_location),
        runs=rows,
        overview=overview,
        opening=first["sections"],
        chapters=[chapter for chapter in others if chapter["sections"]],
        experiments=experiments,
        results=[
            {
                "kind": result.kind,
                "runs": ", ".join(result.runs),
                "spec": without_folders(json.dumps(dict(result.spec), sort_keys=True)),
                "mark": result.fingerprint[:12],
                "command": without_folders(filled(result.command, context.shown_location)),
            }
            for result in context.results
        ],
        data=_embed(data),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(FOLDER / "page.js").read_text(encoding="utf-8"),
        frame=(EXPLORER / "frame.js").read_text(encoding="utf-8"),
        explorer=(EXPLORER / "explorer.js").read_text(encoding="utf-8"),
        state=state,
    )


def _embed(data: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")  # no end of the element, and no comment, begins
