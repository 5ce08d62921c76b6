"""Tables of measurements: each benchmark keeps its own as ``benchmarks/results/NAME.json``, this writes RESULTS.md.

    python benchmarks/results.py

A benchmark calls :func:`keep` with rows, which are dicts from columns to texts, numbers, or lists of numbers where
something was measured again and again; of these RESULTS.md has the median and from where to where they go. Units stand
in the names of columns. Machine, versions, load and date are kept with each table, as tables come from several days.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PLACE = Path(os.environ.get("LAKE_BENCH", Path(__file__).parent))
"""Where tables are kept; elsewhere for what is measured in small sizes, so that it takes no other's place."""
FOLDER, PAGE = PLACE / "results", PLACE / "RESULTS.md"
PACKAGES = ("numpy", "zarr", "xarray", "dask", "scikit-learn", "torch", "transformers")
Row = Mapping[str, Any]


def keep(
    name: str,
    title: str,
    rows: Sequence[Row],
    *,
    text: str = "",
    command: str | None = None,
    versions: Mapping[str, str] | None = None,
    by: Sequence[str] = (),
) -> None:
    """Keep a table, in place of the one of that name, and write RESULTS.md again.

    Parameters
    ----------
    name
        Of its file; tables are in the order of their names.
    title
        What is compared.
    rows
        Columns are those of all rows, in the order in which they come.
    text
        What was done, on what, and what the columns mean.
    command
        What was typed; by default the script and its arguments.
    versions
        Of what it was compared with, where that lies in an environment of its own.
    by
        Columns that tell rows apart: rows of the table of before that were not measured again stay.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    place = FOLDER / f"{name}.json"
    if by and place.exists():
        before = json.loads(place.read_text(encoding="utf-8"))["rows"]
        again = {tuple(row.get(column) for column in by) for row in rows}
        rows = [*(row for row in before if tuple(row.get(column) for column in by) not in again), *rows]
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    words = command or " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    table = {
        "title": title,
        "text": text,
        "command": words,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "load": round(os.getloadavg()[1], 1),
        "versions": own_versions() | dict(versions or {}),
        "rows": [dict(row) for row in rows],
    }
    place.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    write_page()


def paragraph(text: str | None, number: int) -> str:
    """A paragraph of a benchmark's docstring in one line, as a table's text."""
    return " ".join((text or "").split("\n\n")[number].split())


def machine() -> str:
    """Processor, number of its cores, memory and system."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    sizes = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    memory = f", {sizes[0] / 2**20:.0f} GiB" if sizes else ""
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores{memory}, {platform.system()}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def own_versions() -> dict[str, str]:
    """Of Python and of what a measurement here depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cell(value: Any) -> str:
    """A text as it is; a number in three digits; of several numbers their median and from where to where they go."""
    if value is None:
        return ""
    if isinstance(value, list):
        middle = cell(float(statistics.median(value)))
        return middle if len(value) == 1 else f"{middle} ({cell(float(min(value)))} to {cell(float(max(value)))})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")


def rendered(table: Mapping[str, Any]) -> str:
    """A table as Markdown."""
    columns = list(dict.fromkeys(column for row in table["rows"] for column in row))
    text = [all(isinstance(row.get(column, ""), str) for row in table["rows"]) for column in columns]
    lines = [columns, [":---" if left else "---:" for left in text]]
    lines += [[cell(row.get(column)) for column in columns] for row in table["rows"]]
    versions = ", ".join(f"{name} {number}" for name, number in table["versions"].items())
    where = f"`{table['command']}` on {table['date']}: {table['machine']}; load {table['load']}; {versions}."
    grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(part for part in (f"## {table['title']}", table["text"], grid, where) if part)


def write_page() -> None:
    """Write RESULTS.md of all tables."""
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    begin = (
        "# Measurements\n\nWritten by `make bench` from `benchmarks/results/*.json`; each table names what made it and"
        " the machine.\nSeveral measures of one thing: their median, and in brackets the least and the greatest."
    )
    PAGE.write_text("\n\n".join([begin, *map(rendered, tables)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_page()
