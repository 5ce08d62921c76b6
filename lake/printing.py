"""What the shell puts on the terminal: tables, lines, JSON, and a bar while it waits."""

import io
import json
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from schemas.command import Printed, Table, side_by_side
from schemas.json_values import json_value
from schemas.wording import duration_text, or_dash

for stream in ("stdout", "stderr"):
    if getattr(sys, stream) is None:  # closed before Python began
        setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115 -- for as long as the process runs
    if isinstance(getattr(sys, stream), io.TextIOWrapper):  # a terminal of another encoding lacks some characters
        getattr(sys, stream).reconfigure(errors="backslashreplace")
console = Console(soft_wrap=True, highlight=False, markup=False, width=None if sys.stdout.isatty() else 400)
"""A pipe has no width to fit into: wide tables of several runs stay on one line."""
TEXT_WIDTH = 36
"""To which a column may be folded where room is scarce."""
GAP = 2
"""Between two columns."""
PIPE_SECONDS = 60.0
"""Between two lines about progress where there is no terminal."""
VERBOSE_SECONDS = 5.0
"""The same with ``--verbose``."""
_level: ContextVar[int] = ContextVar("level", default=0)
"""How much is printed beside results and errors: -1 with ``--quiet``, 1 with ``--verbose``."""


@contextmanager
def level(quiet: bool, verbose: bool) -> Iterator[None]:
    """Print less or more within the block; a command inside another keeps the outer choice unless it has its own."""
    chosen = _level.set(-1 if quiet else 1 if verbose else _level.get())
    try:
        yield
    finally:
        _level.reset(chosen)


@contextmanager
def measured(name: str) -> Iterator[None]:
    """With ``--verbose``, say what a command took and, after an error, its traceback."""
    begun, processor = time.monotonic(), time.process_time()
    try:
        yield
    except Exception:
        if _level.get() > 0:
            traceback.print_exc()
        raise
    finally:
        if _level.get() > 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            took = f"{time.monotonic() - begun:.1f} s, {time.process_time() - processor:.1f} s of processor"
            note(f"{name}: {took}, at most {peak / 1e6:,.0f} MB of memory")


def show(printed: Sequence[Printed], document: Any = None, as_json: bool = False) -> None:
    """Print tables and lines in their order, floats in tables to three decimals; or instead of them a document."""
    if as_json:
        text = json.dumps(json_value(document), indent=1, sort_keys=True, default=str, allow_nan=False)
        sys.stdout.write(text + "\n")
        return
    for part in printed:
        if isinstance(part, str):
            console.print(part)
        else:
            show_table(part)


def show_table(table: Table) -> None:
    """Print a table, in several below each other where its columns do not fit side by side; nothing is cut off."""
    from rich.table import Table as RichTable

    cells = [[str(column) for column in table.columns], *(list(map(cell_text, row)) for row in table.rows)]
    n_label = table.labels or naming(cells[1:])
    whole = widths_of(cells, "\n")
    needs = [min(width, TEXT_WIDTH) for width in whole]
    if 2 * sum(needs[:n_label]) > console.width:  # labels fold where they would take most of the room
        needs[:n_label] = widths_of(cells, r"\s")[:n_label]
    groups = fitting(needs, n_label, console.width)
    for number, group in enumerate(groups):
        title, caption = table.title if number == 0 else None, table.caption if number == len(groups) - 1 else None
        drawn = RichTable(title=title, caption=caption, box=None, pad_edge=False)
        drawn.title_justify = drawn.caption_justify = "left"
        for index, width in widened({index: needs[index] for index in group}, whole, console.width).items():
            drawn.add_column(cells[0][index], overflow="fold", width=width)
        for row in cells[1:]:
            drawn.add_row(*(row[index] for index in group))
        console.print(drawn)


def widths_of(cells: Sequence[Sequence[str]], at: str) -> list[int]:
    """Of each column the width of its widest part, where texts are split at a pattern."""
    from rich.cells import cell_len

    return [
        max(cell_len(part) for text in column for part in re.split(at, text)) for column in zip(*cells, strict=True)
    ]


def naming(rows: Sequence[Sequence[str]]) -> int:
    """How many columns it takes to tell rows apart, up to four; one where four do not."""
    return next((n for n in (1, 2, 3, 4) if len({tuple(row[:n]) for row in rows}) == len(rows)), 1)


def fitting(needs: Sequence[int], n_label: int, width: int) -> list[list[int]]:
    """Columns of each of the tables that a wide one is printed as: all of its labels, and as many others as fit."""
    labels = list(range(n_label))
    groups = [labels[:]]
    for index in range(n_label, len(needs)):
        if len(groups[-1]) > n_label and sum(needs[column] + GAP for column in [*groups[-1], index]) - GAP > width:
            groups.append(labels[:])
        groups[-1].append(index)
    return groups


def widened(needs: Mapping[int, int], whole: Sequence[int], width: int) -> dict[int, int]:
    """Width of each column of a table: what it needs, and more of what it would take while there is room.

    Where there is no room for what they need the widest give way.
    """
    given = dict(needs)
    room = width - sum(given.values()) - GAP * (len(given) - 1)
    for index in given:
        more = min(max(0, room), whole[index] - given[index])
        given[index], room = given[index] + more, room - more
    while room < 0 and max(given.values()) > 1:
        widest = max(given, key=lambda index: given[index])
        given[widest], room = given[widest] - 1, room + 1
    return given


def cell_text(cell: Any) -> str:
    """A cell of a table; a dash for a number that is not there."""
    return or_dash(cell, ".3f") if isinstance(cell, float) else str(cell)


def show_by_run(title: str, printed: Mapping[str, Sequence[Printed]]) -> None:
    """Labelled tables of one title side by side, rows of the same labels in one line; then all else."""
    by_title: dict[str, dict[str, Table]] = {}
    rest: list[Printed] = []
    for run, parts in printed.items():
        for part in parts:
            if isinstance(part, str):
                rest.append(f"{run}: {part}")
            elif part.labels:
                by_title.setdefault(part.title, {})[run] = part
            else:
                rest.append(part)
    heading = f"{title} {', '.join(printed)}"
    show([side_by_side(f"{heading}: {name}" if name else heading, tables) for name, tables in by_title.items()])
    show(rest)


def note(text: str) -> None:
    """Say something on standard error, unless it is to be quiet."""
    if _level.get() >= 0:
        click.echo(f"lake: {text}", err=True)


@contextmanager
def progress(label: str, unit: str = "") -> Iterator[Callable[..., None]]:
    """A bar on a terminal, a line every minute in a pipe, nothing if quiet; gives ``report(done, total, bytes=0)``.

    A report of 0 done after others begins another part of the work, whose rate is measured anew.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    chosen = _level.get()
    console, hidden = Console(stderr=True), chosen < 0 or not sys.stderr.isatty()
    pause = VERBOSE_SECONDS if chosen > 0 else PIPE_SECONDS
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden)
    begun = written_at = time.monotonic()
    before = 0
    with bar:
        task = bar.add_task(label, total=None, rate="", visible=False)  # until there is a total to show

        def report(done: int, total: int, written: int = 0) -> None:
            nonlocal written_at, begun, before
            now = time.monotonic()
            if done == 0 < before:
                begun = now
                bar.reset(task)
            before = done
            if bar.disable and chosen >= 0 and done < total and now - written_at >= pause:
                written_at = now
                click.echo(progress_line(label, unit, done, total, now - begun), err=True)
            speed = bar.tasks[task].speed
            rate = f"{speed:.1f} {unit}/s" if speed and unit else ""
            megabytes = f"{written / 1e6:.0f} MB" if written else ""
            bar.update(task, completed=done, total=total, rate=" ".join([rate, megabytes]), visible=True)

        yield report


def progress_line(label: str, unit: str, done: int, total: int, seconds: float) -> str:
    """How far work is, and how long it will take at the rate so far."""
    line = f"{label}: {done} of {total} {unit}".rstrip() + f" after {duration_text(seconds)}"
    return line + (f", about {duration_text(seconds / done * (total - done))} left" if done else "")
