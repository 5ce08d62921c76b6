"""Building the page: sections are made, their figures and tables written, everything put into one HTML file."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np

from analyze.report import explore
from analyze.report.content import Column, Context, Experiment, Section, Table, checked
from analyze.report.figures import STYLE, draw, inline
from analyze.report.overview import accuracy_by_steps, experiment_rows, run_rows
from analyze.report.registry import CHAPTERS, EXPERIMENTS
from schemas import UsageError, filled
from store import open_lake

FOLDER = Path(__file__).parent
Progress = Callable[[int, int], None]


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
    """Experiments whose results are not in the lake."""
    broken: dict[str, str]
    """Experiments whose results could not be read, and why."""


def build_report(
    location: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    runs: Sequence[str] | None = None,
    n_problem: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
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
        Problems of each run that can be picked on the page.
    seed
        Decides which.
    progress
        Called with sections done and their number.

    Raises
    ------
    UsageError
        If the lake has no runs, or ``out`` is a file.
    """
    lake = open_lake(location)
    names = list(runs or lake.runs())
    if not names:
        raise UsageError(f"{location} has no runs to report on; make one with lake extract")
    if n_problem < 0:
        raise UsageError(f"n_problem is {n_problem}; it must be at least 0")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{out} is a file; the report goes into a folder")
    context = Context(lake, names)
    for part in ("figures", "tables"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in (folder / part).iterdir():
            if old.suffix in (".png", ".svg", ".csv"):
                old.unlink()
    writer = _Writer(folder)
    total = len(EXPERIMENTS) + 2
    shown: dict[str, dict[str, Any]] = {}
    broken = {}
    first = Experiment(slug="what-was-run", title="What was run", report="", commands=(), make=accuracy_by_steps)
    with mpl.rc_context(STYLE):
        for index, experiment in enumerate(EXPERIMENTS):
            section, error = checked(experiment.make, context)
            if error:
                broken[experiment.slug] = error
            shown[experiment.slug] = _view(experiment, section, error, writer, context)
            if progress is not None:
                progress(index + 1, total)
        overview = _view(first, *checked(accuracy_by_steps, context), writer, context)
    data = explore.page_data(context, n_problem=n_problem, seed=seed)
    if progress is not None:
        progress(total - 1, total)
    rows = run_rows(context)
    page = _render(
        title=_title(location),
        lake=_title(location),
        info=filled(["lake", "info", "PATH", rows[0]["mark"]], location),
        runs=rows,
        overview=overview,
        chapters=[
            {"title": title, "lead": lead, "slug": slug, "sections": [shown[e.slug] for e in experiments]}
            for slug, title, lead, experiments in CHAPTERS
        ],
        experiments=experiment_rows(EXPERIMENTS, shown),
        results=[
            {
                "kind": r.kind,
                "runs": ", ".join(r.runs),
                "spec": json.dumps(dict(r.spec), sort_keys=True),
                "mark": r.fingerprint[:12],
                "command": filled(r.command, str(location)),
            }
            for r in context.results
        ],
        data=_embed(data),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(FOLDER / "page.js").read_text(encoding="utf-8"),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    if progress is not None:
        progress(total, total)
    return Report(
        page=path,
        page_bytes=path.stat().st_size,
        n_figure=writer.n_figure,
        n_table=writer.n_table,
        sections=tuple(slug for slug, view in shown.items() if view["headline"]),
        problems={each["name"]: len(each["problems"]["items"]) for each in data["runs"]},
        missing=tuple(slug for slug, view in shown.items() if not view["headline"] and slug not in broken),
        broken=broken,
    )


def _title(location: str | os.PathLike[str]) -> str:
    return str(location).rstrip("/").rpartition("/")[2] or str(location)


def _render(**values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(**values)


def _embed(data: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")


class _Writer:
    """Figures and tables on their way to the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n_figure = 0
        self.n_table = 0

    def figure(self, slug: str, name: str, made: Any, caption: str) -> dict[str, Any]:
        """Write one drawing as SVG and PNG; its SVG for the page."""
        stem = _stem(name)
        vector, raster = draw(made, stem)
        (self.folder / "figures" / f"{stem}.svg").write_text(vector, encoding="utf-8")
        (self.folder / "figures" / f"{stem}.png").write_bytes(raster)
        self.n_figure += 1
        return {"svg": inline(vector, f"{slug}-{stem}", caption), "file": f"figures/{stem}"}

    def table(self, table: Table) -> dict[str, Any]:
        """Write one table as CSV; its rows for the page."""
        stem = _stem(table.name)
        table.frame.to_csv(self.folder / "tables" / f"{stem}.csv", index=False)
        self.n_table += 1
        frame = table.frame
        if "run" in frame and table.limit < 40:
            head = frame.groupby("run", sort=False).head(table.limit)
        else:
            head = frame.head(table.limit)
        return {
            "caption": table.caption,
            "file": f"tables/{stem}.csv",
            "columns": [{"label": c.label, "kind": c.kind} for c in table.columns],
            "rows": [[_cell(row, column) for column in table.columns] for row in head.to_dict("records")],
            "hidden": len(frame) - len(head),
        }


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _cell(row: dict[Any, Any], column: Column) -> dict[str, str]:
    value = row.get(column.key)
    interval = ""
    if column.low:
        ends = [row.get(column.low), row.get(column.high)]
        if all(isinstance(x, int | float | np.number) and np.isfinite(float(x)) for x in ends):
            interval = f"[{_text(ends[0], column)}, {_text(ends[1], column)}]"
    return {"text": _text(value, column), "interval": interval}


def _text(value: Any, column: Column) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if column.kind in ("text", "code"):
        return str(value)
    number = float(value)
    if column.kind == "count":
        text = f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    elif column.kind == "share":
        text = f"{100 * number:.{1 if column.digits == 2 else column.digits}f}%"
    elif column.kind == "points":
        text = f"{100 * number:+.1f}"
    elif column.kind == "signed":
        text = f"{number:+.{column.digits}f}"
    elif column.kind == "p":
        text = "< 0.001" if number < 0.001 else f"{number:.3f}"
    else:
        text = f"{number:.{column.digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _view(
    experiment: Experiment, section: Section | None, error: str, writer: _Writer, context: Context
) -> dict[str, Any]:
    location = str(context.lake.location)
    view: dict[str, Any] = {
        "slug": experiment.slug,
        "title": experiment.title,
        "report": experiment.report,
        "commands": context.commands(experiment),
        "error": error,
        "headline": "",
        "lines": [],
        "method": "",
        "illustrations": [],
        "tables": [],
        "caveats": [],
        "sources": [],
    }
    if section is None:
        return view
    for illustration in section.illustrations:
        panels = [
            {**writer.figure(experiment.slug, panel.name, panel.figure, illustration.caption), "wide": panel.wide}
            for panel in illustration.panels
        ]
        view["illustrations"].append({"caption": illustration.caption, "panels": panels})
    view["tables"] = [writer.table(table) for table in section.tables]
    view |= {
        "headline": section.headline,
        "lines": section.lines,
        "method": section.method,
    }
    view["caveats"] = [*section.caveats, *context.choices(section.sources)]
    seen = {}
    for source in section.sources:
        seen[source.fingerprint] = {
            "mark": source.fingerprint[:12],
            "name": f"{source.kind} of {', '.join(source.runs)}",
            "hint": filled(source.command, location)
            or filled(["lake", "info", "PATH", source.fingerprint[:12]], location),
        }
    view["sources"] = list(seen.values())
    return view
