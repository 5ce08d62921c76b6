"""A section as the page's template takes it; its figures and tables are written on the way."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analyze.context import Context, without_folders
from analyze.page import Column, Illustration, Page, Panel, Section, Table, write_section
from analyze.places import both_names
from analyze.report.sections import commands
from analyze.report.svg import draw, draw_narrow, inline
from schemas import LakeError, filled
from schemas.csv_files import plain_numbers
from schemas.naming import By
from schemas.registry import foreign_failure
from store.results import Result

MANY, VERY_MANY = 9, 11
"""Columns from which on a table is set closer, and its intervals below their values."""
LONG = 28
"""Letters beyond which the text that stands first in a row is broken."""


class Writer:
    """Figures and tables on their way to the folder.

    Parameters
    ----------
    folder
        Of the report; figures and tables of an earlier one in it are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n_figure = 0
        self.n_table = 0
        for name in ("figures", "tables"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for old in (folder / name).iterdir():
                if old.suffix in (".png", ".svg", ".csv"):
                    old.unlink()

    def illustration(self, slug: str, illustration: Illustration) -> dict[str, Any]:
        """Write each drawing as SVG and PNG; their SVG for the page."""
        panels = []
        for panel in illustration.panels:
            stem = _stem(panel.name)
            vector, raster = draw(panel.figure, stem)
            (self.folder / "figures" / f"{stem}.svg").write_text(vector, encoding="utf-8")
            (self.folder / "figures" / f"{stem}.png").write_bytes(raster)
            svg = inline(vector, f"{slug}-{stem}", illustration.caption)
            narrow = (
                inline(draw_narrow(panel.figure, stem), f"{slug}-{stem}-n", illustration.caption)
                if reflows(panel)
                else ""
            )
            panels.append({"svg": svg, "narrow": narrow, "file": f"figures/{stem}", "wide": panel.wide})
        self.n_figure += len(panels)
        return {"caption": illustration.caption, "panels": panels}

    def table(self, table: Table) -> dict[str, Any]:
        """Write one table as CSV; its rows for the page."""
        stem = _stem(table.name)
        plain_numbers(table.frame).to_csv(self.folder / "tables" / f"{stem}.csv", index=False)
        self.n_table += 1
        shown = table.shown.to_dict("records")
        last = {column.key: _last(shown, column) if column.kind == "place" else "" for column in table.columns}
        return {
            "caption": table.caption,
            "file": f"tables/{stem}.csv",
            "columns": [{"label": column.label, "kind": column.kind} for column in table.columns],
            "rows": [[_cell(row, column, last[column.key]) for column in table.columns] for row in shown],
            "look": look_of(table.columns, shown),
            "hidden": len(table.frame) - len(table.shown),
        }


def look_of(columns: Sequence[Column], rows: Sequence[Mapping[Any, Any]]) -> str:
    """Classes of a table: with notes on its texts, with many columns, with so little room that intervals go below."""
    first = max((len(str(row.get(columns[0].key, ""))) for row in rows), default=0) if columns else 0
    looks = {
        "notes": any(column.kind == "text" and column.low for column in columns),
        "dense": len(columns) >= MANY, "stacked": len(columns) >= VERY_MANY or first > LONG,
    }  # fmt: skip
    return " ".join(name for name, wanted in looks.items() if wanted)


def reflows(panel: Panel) -> bool:
    """Whether a drawing of the page's width can be drawn again for a phone's: one of several axes cannot."""
    return panel.wide and len(panel.figure.axes) == 1


def section_view(section: Section, writer: Writer, context: Context) -> dict[str, Any]:
    """What the page shows of a section; ``headline`` is empty where the lake has nothing of it.

    A result written by another version, or a section of another package that fails, must not cost the reader the whole
    page: ``error`` says what is wrong with it.
    """
    view: dict[str, Any] = {
        "slug": section.slug, "title": section.slug, "report": "", "commands": [], "error": "", "headline": "",
        "set": "", "opening": "", "lines": [], "method": "", "illustrations": [], "tables": [], "caveats": [],
        "sources": [],
    }  # fmt: skip
    try:
        view |= {name: section.texts[name] for name in ("title", "report")}
        view["commands"] = commands(section, context)
        page = write_section(section, context)
        content = {} if page is None else _content(section, page, writer, context)
    except Exception as error:
        foreign = foreign_failure(error)
        if foreign is None and not isinstance(error, LakeError | LookupError | ValueError | TypeError):
            raise
        reason = foreign or f"{type(error).__name__}: {error}"
        return view | {"error": without_folders(reason.replace(str(context.lake.location), context.shown_location))}
    return view | content


def _content(section: Section, page: Page, writer: Writer, context: Context) -> dict[str, Any]:
    sources = {}
    for source in page.sources:
        mark = source.fingerprint[:12]
        location = context.shown_location
        sources[source.fingerprint] = {
            "mark": mark,
            "name": f"{source.kind} of {', '.join(source.runs)}",
            "hint": without_folders(filled(source.command, location))
            or filled(["lake", "info", "PATH", mark], location),
        }
    return {
        "headline": page.headline,
        "set": page.size or set_of(page.counted or page.sources),
        "opening": page.opening,
        "lines": page.lines,
        "method": page.method,
        "illustrations": [writer.illustration(section.slug, one) for one in page.illustrations],
        "tables": [writer.table(table) for table in page.tables],
        "caveats": [*page.caveats, *page.notes, *context.choices(page.sources)],
        "sources": list(sources.values()),
    }


def set_of(sources: Sequence[Result]) -> str:
    """Over how many examples of which data sets results were computed, as ``n = 600 of test; 199 to 200 of pairs``."""
    counts: dict[str, set[int]] = {}
    for source in sources:
        for name in {run.partition("/")[2] for run in source.runs}:
            if source.n_example:
                counts.setdefault(name, set()).add(source.n_example)
    parts = []
    for name, several in counts.items():
        least, most = min(several), max(several)
        parts.append(f"{least} of {name}" if least == most else f"{least} to {most} of {name}")
    return f"n = {'; '.join(parts)}" if parts else ""


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")


def _last(rows: Sequence[Mapping[Any, Any]], column: Column) -> str:
    """The last thought of a column of positions."""
    thoughts = [str(row.get(column.key)) for row in rows if str(row.get(column.key)).startswith("ct")]
    single = [thought for thought in thoughts if thought[2:].isdigit()]
    return max(single, key=lambda thought: int(thought[2:]), default="ct")


def _cell(row: Mapping[Any, Any], column: Column, last: str) -> dict[str, str]:
    interval = ""
    if column.low and column.kind == "text":
        interval = str(row.get(column.low) or "")
    elif column.low:
        ends = [row.get(column.low), row.get(column.high)]
        if all(isinstance(x, int | float | np.number) and np.isfinite(float(x)) for x in ends):
            interval = f"[{_text(ends[0], column)}, {_text(ends[1], column)}]"
    cell = {"text": _text(row.get(column.key), column), "interval": interval}
    if column.kind == "place":
        given: By = "fed" if row.get("place") == "fed vector" else "state"
        names = both_names(cell["text"], given, last)
        cell |= {"given": given, "other": names["state" if given == "fed" else "fed"]}
    return cell


def _text(value: Any, column: Column) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if column.kind in ("text", "code", "place"):
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
