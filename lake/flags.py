"""Settings as flags: the one place where a declared command meets click.

Click and these lines rather than cyclopts, which reads dataclasses itself but brings four more packages: what a stored
result keeps of its command (:meth:`lake.running.Terminal.words`) needs the parsed parameters anyway.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click

from lake import completion
from schemas.command import Settings
from schemas.flags import Flag, flags, number


class Number(click.ParamType[Any]):
    """A number as a human writes it: without Python's underscores."""

    def __init__(self, kind: type, name: str, what: str) -> None:
        self.kind, self.name, self.what = kind, name, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it; what is a number stays as it is."""
        try:
            return value if isinstance(value, self.kind) else number(self.kind, str(value))
        except ValueError:
            self.fail(f"{value!r} is not a valid {self.what}.", param, ctx)


HOME = re.compile(r"((?:[^/=]+=)?)(~[^/]*)(.*)", re.DOTALL)
"""A place in a home that the shell leaves as it is written: behind ``--lake=`` or ``NAME=``."""


class Place(click.ParamType[Any]):
    """A file, folder or URL; an empty one, as of a variable unknown to the shell, is none."""

    def __init__(self, kind: type) -> None:
        self.kind, self.name = kind, "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it: ``Path("")`` would be the folder one is in."""
        if not str(value).strip():
            self.fail("it is empty and names no place.", param, ctx)
        if home := HOME.fullmatch(str(value)):
            with suppress(RuntimeError):  # nobody is called so: a name like any other
                value = f"{home[1]}{Path(home[2]).expanduser()}{home[3]}"
        return self.kind(value)


WHOLE = Number(int, "integer", "integer")
PLACES = re.compile(r"PATH|DIR|FILE|URL|LAKE|CHECKPOINT|PLAN|^[AB]$")
"""Metavars of settings that are paths given as text."""
NUMBERS: dict[type, Any] = {int: WHOLE, float: Number(float, "float", "float")}
LAKE = click.Argument(
    ["path"], type=Place(str), metavar="PATH", help="Lake: a folder or a URL.", shell_complete=completion.folders
)
RUNS = click.Argument(
    ["runs"],
    nargs=-1,
    metavar="[RUN]...",
    help="Runs, MODEL/DATASET; all if none is named.",
    shell_complete=completion.runs,
)
JSON = click.Option(["--json"], is_flag=True, default=False, help="Print the result as JSON.")
CSV = click.Option(["--csv"], type=Place(Path), metavar="DIR", help="Also write every table as CSV into DIR.")
PLAN = click.Option(
    ["--plan"], is_flag=True, default=False, help="Only say what the command would take, in time and memory."
)
SCHEDULER = click.Option(["--scheduler"], metavar="ADDRESS", help="Compute on a running dask scheduler.")
WORKERS = click.Option(["--workers"], type=WHOLE, metavar="N", help="Compute in N processes of this machine.")

QUIET = click.Option(
    ["-q", "--quiet"], is_flag=True, default=False, help="Results and errors alone: no progress, no notes."
)
VERBOSE = click.Option(
    ["-v", "--verbose"],
    is_flag=True,
    default=False,
    help="Also how far work is every 5 s where there is no terminal, time and memory, and where a failure came from.",
)
COMPLETED = {
    **dict.fromkeys(("path", "lake"), completion.folders),
    **dict.fromkeys(("run", "runs"), completion.runs),
    "name": completion.runs_and_results,
    "words": completion.results,
}
"""Completion of fields by their names."""


def parameters(settings: Sequence[type[Settings]]) -> list[click.Parameter]:
    """Parameters of a command for the fields of its settings, each name once."""
    by_name: dict[str, click.Parameter] = {}
    for kind in settings:
        for flag in flags(kind):
            by_name.setdefault(flag.name, _parameter(flag))
    return list(by_name.values())


def _parameter(flag: Flag) -> click.Parameter:
    """Parameter of one field; tuples are text with commas, unless their flag is repeated."""
    repeated = flag.many and (flag.repeat or flag.argument)
    joined = flag.many and not repeated
    place = flag.kind is Path or (flag.kind is str and not joined and PLACES.search(flag.metavar or ""))
    common: dict[str, Any] = {
        "metavar": flag.metavar or ("|".join(flag.words) + (",.." if flag.many else "") if flag.words else None),
        "type": Place(flag.kind) if place else str if joined else NUMBERS.get(flag.kind, flag.kind),
        "required": flag.required,
        "help": flag.help,
        "shell_complete": completion.choices(flag.words) if flag.words else COMPLETED.get(flag.name),
    }
    if joined and isinstance(flag.default, tuple):
        common["default"] = ",".join(f"{entry:g}" if isinstance(entry, float) else str(entry) for entry in flag.default)
    elif flag.default is not MISSING:
        common["default"] = flag.default
    if flag.argument:
        return click.Argument([flag.name], nargs=-1 if flag.many else 1, **common)
    is_flag = flag.kind is bool
    names = flag.option + (f"/--no-{flag.option[2:]}" if is_flag and flag.default is not False else "")
    return click.Option([names, flag.name], is_flag=is_flag or None, multiple=repeated, **common)


def check_once(context: click.Context, given: Sequence[click.Parameter]) -> None:
    """Refuse a flag that takes one value and is given several times.

    Raises
    ------
    click.UsageError
        If there is one.
    """
    for parameter in given:
        once = isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag)
        if once and given.count(parameter) > 1 and not context.resilient_parsing:
            several = "separate several by commas" if ".." in (parameter.metavar or "") else "give one"
            raise click.UsageError(f"{parameter.opts[0]} is given {given.count(parameter)} times; {several}", context)


def read(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from what click parsed.

    Raises
    ------
    UsageError
        If a text holds no numbers where they are wanted, or a value is not allowed.
    """
    chosen = {}
    for flag in flags(settings):
        value = values[flag.name]
        if flag.many and isinstance(value, str):
            value = flag.entries(value)
        elif flag.many:
            value = tuple(value or ()) or (None if flag.optional else ())
        chosen[flag.name] = value
    return settings(**chosen)
