"""Settings as flags: the one place where a declared command meets typer.

Why typer and these lines, not cyclopts, which reads dataclasses itself: cyclopts brings four more packages and its own
errors, and what a stored result keeps of its command (:func:`lake.running.words`) needs the parsed parameters anyway.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.command import Flag, Settings, flags

CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
LAKE = inspect.Parameter(
    "path",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[str, typer.Argument(metavar="PATH", help="Lake: a folder or a URL.")],
)
RUNS = inspect.Parameter(
    "runs",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs, MODEL/DATASET; all if none is named.")
    ],
)


def option(name: str, kind: Any, default: Any, help: str, metavar: str | None = None) -> inspect.Parameter:
    """A flag that no settings hold."""
    annotation = Annotated[kind, typer.Option("--" + name.replace("_", "-"), metavar=metavar, help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


JSON = option("json", bool, False, "Print the result as JSON.")
CSV = option("csv", Path | None, None, "Also write every table as CSV into DIR.", "DIR")
PLAN = option("plan", bool, False, "Only say what it would take.")
SCHEDULER = option("scheduler", str | None, None, "Compute on a running dask scheduler.", "ADDRESS")
WORKERS = option("workers", int | None, None, "Compute in N processes of this machine.", "N")


def parameters(settings: Sequence[type[Settings]]) -> list[inspect.Parameter]:
    """Parameters of a command for the fields of its settings, each name once."""
    found: dict[str, inspect.Parameter] = {}
    for kind in settings:
        for flag in flags(kind):
            found.setdefault(flag.name, _parameter(flag))
    return list(found.values())


def _parameter(flag: Flag) -> inspect.Parameter:
    """Parameter of one field; tuples are text with commas, unless their flag is repeated."""
    default: Any = inspect.Parameter.empty if flag.default is MISSING else flag.default
    kind: Any = flag.kind
    metavar = flag.metavar or ("|".join(flag.words) + (",.." if flag.many else "") if flag.words else None)
    if flag.many and not (flag.repeat or flag.argument):
        kind = str
        default = ",".join(map(_text, default)) if isinstance(default, tuple) else default
    elif flag.many:
        kind, default = list[kind], list(default) if isinstance(default, tuple) else default
        kind, default = (kind, default) if default is inspect.Parameter.empty else (kind | None, default or None)
    if flag.optional and default is None:
        kind = kind | None
    made = typer.Argument(metavar=metavar, help=flag.help) if flag.argument else None
    names = flag.option + (f"/--no-{flag.option[2:]}" if flag.kind is bool and flag.default is not False else "")
    made = made or typer.Option(names, metavar=metavar, help=flag.help)
    return inspect.Parameter(
        flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def read(settings: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings from what typer parsed.

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
        elif flag.many and value is not None:
            value = tuple(value)
        elif flag.many and not flag.optional:
            value = ()
        chosen[flag.name] = value
    return settings(**chosen)


def with_signature(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """A function of keywords that typer takes for one with these parameters, those without a default first."""

    def called(**values: Any) -> Any:
        return function(values)

    called.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called
