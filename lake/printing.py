"""What the shell puts on the terminal: tables, lines, JSON, and a bar while it waits."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from schemas.command import Printed, Table, side_by_side
from schemas.wording import duration_text

console = Console(soft_wrap=True, highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
PIPE_SECONDS = 60.0
"""Between two lines about progress where there is no terminal."""
wide = Console(width=400, highlight=False, markup=False)
"""Where labelled tables of several runs go in a pipe, which has no width to fit into."""


def show(printed: Sequence[Printed]) -> None:
    """Print tables and lines in their order."""
    for each in printed:
        if isinstance(each, str):
            console.print(each)
        else:
            show_table(each)


def show_table(table: Table) -> None:
    """A table; floats to three decimals."""
    drawn = RichTable(
        title=table.title,
        caption=table.caption,
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    for index, column in enumerate(table.columns):
        # On a terminal measures keep their width and labels fold.
        drawn.add_column(str(column), no_wrap=bool(table.labels) and index >= table.labels)
    for row in table.rows:
        drawn.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    (wide if table.labels and not console.is_terminal else console).print(drawn)


def show_by_run(title: str, printed: Mapping[str, Sequence[Printed]]) -> None:
    """What each run's result says: labelled tables of one title side by side, then lines.

    Rows of the same labels are one line.
    """
    labelled = {
        run: [each for each in parts if isinstance(each, Table) and each.labels] for run, parts in printed.items()
    }
    for name in dict.fromkeys(each.title for tables in labelled.values() for each in tables):
        same = {run: each for run, tables in labelled.items() for each in tables if each.title == name}
        heading = f"{title} {', '.join(printed)}"
        show_table(side_by_side(f"{heading}: {name}" if name else heading, same))
    for run, parts in printed.items():
        for each in parts:
            if isinstance(each, str):
                console.print(f"{run}: {each}")
            elif not each.labels:
                show_table(each)


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


def write_csv(folder: Path, label: str, tables: Mapping[str, Any]) -> None:
    """Each table as a CSV file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{label.replace('/', '.').replace(' ', '')}-{name}.csv", index=False)


def note(text: str) -> None:
    """Say something on standard error."""
    sys.stderr.write(f"lake: {text}\n")


@contextmanager
def progress(label: str, unit: str = "") -> Iterator[Callable[..., None]]:
    """A bar on a terminal, a line every minute in a pipe; gives ``report(done, total, bytes=0)``."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    begun = said = time.monotonic()
    with bar:
        task = bar.add_task(label, total=None, rate="", visible=False)  # until there is a total to show

        def report(done: int, total: int, written: int = 0) -> None:
            nonlocal said
            now = time.monotonic()
            if bar.disable and done < total and now - said >= PIPE_SECONDS:
                said = now
                sys.stderr.write(progress_line(label, unit, done, total, now - begun) + "\n")
                sys.stderr.flush()
            speed = bar.tasks[task].speed
            rate = f"{speed:.1f} {unit}/s" if speed and unit else ""
            megabytes = f"{written / 1e6:.0f} MB" if written else ""
            bar.update(task, completed=done, total=total, rate=" ".join([rate, megabytes]), visible=True)

        yield report


def progress_line(label: str, unit: str, done: int, total: int, seconds: float) -> str:
    """How far work is, and how long it will take at the rate so far."""
    line = f"{label}: {done} of {total} {unit}".rstrip() + f" after {duration_text(seconds)}"
    return line + (f", about {duration_text(seconds / done * (total - done))} left" if done else "")
