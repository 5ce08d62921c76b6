"""Whether two reports of one lake say the same: sentences, tables, CSV files, and what the figures draw.

    python benchmarks/compare_reports.py BEFORE AFTER

Both are folders that ``lake report`` wrote. Sentences and cells are compared as text, section by section; CSV files as
numbers by the names of their columns; figures by their texts and by how many shapes they draw, as coordinates change
with sizes. What differs is listed; the exit code is 1 where anything does.
"""

import difflib
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd

BLOCKS = {"p", "li", "figcaption", "th", "td", "h1", "h2", "h3", "h4", "summary", "code", "div"}


class Blocks(HTMLParser):
    """Texts of a page by the section they stand in; drawings and scripts are left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"": []}
        self._section, self._text, self._hidden = "", "", 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a section or a block."""
        self._hidden += tag in ("svg", "script", "style")
        if tag in BLOCKS:
            self._end()
        if (name := dict(attrs).get("id")) and tag in ("section", "h2"):
            self._end()
            self._section = name

    def handle_endtag(self, tag: str) -> None:
        """End a block."""
        self._hidden -= tag in ("svg", "script", "style")
        if tag in BLOCKS:
            self._end()

    def handle_data(self, data: str) -> None:
        """Add text."""
        self._text += "" if self._hidden else data

    def _end(self) -> None:
        if text := " ".join(self._text.split()):
            self.texts.setdefault(self._section, []).append(text)
        self._text = ""


def page_differences(before: Path, after: Path) -> list[str]:
    """Texts that only one of the pages has."""
    first, second = (Blocks((folder / "index.html").read_text(encoding="utf-8")).texts for folder in (before, after))
    lines = []
    for section in dict.fromkeys([*first, *second]):
        changes = difflib.unified_diff(first.get(section, []), second.get(section, []), n=0, lineterm="")
        lines += [f"{section}: {line}" for line in changes if not line.startswith(("---", "+++", "@@"))]
    return lines


def data_differences(before: Path, after: Path) -> list[str]:
    """Runs whose problems or heads that can be picked are not the same."""
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    pages = [(folder / "index.html").read_text(encoding="utf-8") for folder in (before, after)]
    first, second = (json.loads(re.findall(pattern, page, re.DOTALL)[0])["runs"] for page in pages)
    changed = [
        f"{a['name']}: what can be picked differs in {what}"
        for a, b in zip(first, second, strict=False)
        for what in ("name", "problems", "heads")
        if a[what] != b[what]
    ]
    return changed + ([f"{len(first)} and {len(second)} runs can be picked"] if len(first) != len(second) else [])


def csv_differences(before: Path, after: Path) -> list[str]:
    """Columns and rows that only one of two tables has, and cells that differ."""
    first, second = (pd.read_csv(path) for path in (before, after))
    lines = []
    for sign, one, other in (("-", first, second), ("+", second, first)):
        if extra := [name for name in one if name not in other]:
            lines.append(f"{before.name}: {sign} columns {', '.join(extra)}")
    if len(first) != len(second):
        shared = [name for name in first if name in second]
        absent = (
            first.merge(second.drop_duplicates(shared), on=shared, how="left", indicator=True)["_merge"] != "both"
        ).sum()
        return [
            *lines,
            f"{before.name}: {len(first)} and {len(second)} rows; {absent} of the former are not among the latter",
        ]
    for name in [name for name in first if name in second]:
        a, b = first[name], second[name]
        if pd.api.types.is_numeric_dtype(a) and pd.api.types.is_numeric_dtype(b):
            same = np.isclose(a.astype(float), b.astype(float), rtol=1e-12, atol=0, equal_nan=True)
        else:
            same = (a.fillna("").astype(str) == b.fillna("").astype(str)).to_numpy()
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            lines.append(
                f"{before.name}: {(~same).sum()} of {len(a)} cells of {name} differ, first {a[row]!r} and {b[row]!r}"
            )
    return lines


def svg_differences(before: Path, after: Path) -> list[str]:
    """Texts and numbers of shapes that only one of two drawings has."""
    first, second = (path.read_text(encoding="utf-8") for path in (before, after))
    lines = []
    for what, pattern in (("text", r"<text[^>]*>([^<]*)</text>"), ("shape", r"<(path|use)\b")):
        a, b = (Counter(re.findall(pattern, svg)) for svg in (first, second))
        if gone := a - b:
            lines.append(f"{before.name}: - {what} {dict(gone)}")
        if new := b - a:
            lines.append(f"{before.name}: + {what} {dict(new)}")
    return lines


def main(before: Path, after: Path) -> int:
    """Print every difference."""
    lines = page_differences(before, after) + data_differences(before, after)
    counts = {"texts": sum(map(len, Blocks((after / "index.html").read_text(encoding="utf-8")).texts.values()))}
    for folder, suffix, compare in (("tables", ".csv", csv_differences), ("figures", ".svg", svg_differences)):
        names = [{path.name for path in (root / folder).glob(f"*{suffix}")} for root in (before, after)]
        lines += [f"- {folder}/{name}" for name in sorted(names[0] - names[1])]
        lines += [f"+ {folder}/{name}" for name in sorted(names[1] - names[0])]
        for name in sorted(names[0] & names[1]):
            lines += compare(before / folder / name, after / folder / name)
        counts[folder] = len(names[0] & names[1])
    print("\n".join(lines))
    compared = ", ".join(f"{n} {what}" for what, n in counts.items())
    print(f"{compared} compared; {len(lines)} differences")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
