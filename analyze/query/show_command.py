"""``lake show``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Command, Experiment, Output, Printed, Settings, Shell, Table, setting
from schemas.csv_files import write_csv

if TYPE_CHECKING:
    from store import Lake, Result

SHOWN_ROWS = 40
"""Rows of a table of which no command says how it is shortened."""
UNREADABLE = (KeyError, ValueError, AttributeError)
"""What a command's tables raise where Python stored other variables under the command's kind."""


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Settings):
    """Which stored result is printed."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    words: tuple[str, ...] = setting(
        (),
        "Its name, its kind and run, or the beginning of its fingerprint; none: all are listed.",
        metavar="[RESULT]...",
        argument=True,
    )
    variables: bool = setting(
        False, "Say what it holds instead: every variable with its dims, unit and meaning.", needs="words"
    )
    json: bool = setting(False, "Print the result as JSON.")
    csv: Path | None = setting(None, "Also write every table as CSV into DIR.", metavar="DIR", needs="words")


def show(settings: ShowSettings, shell: Shell) -> Output:
    """One result again, or all there are."""
    from analyze.tables import short_tables
    from store import open_lake, select_result

    lake = open_lake(settings.path)
    if not settings.words:
        return listed(lake)
    chosen = select_result(lake, list(settings.words))
    result = lake.open_result(chosen.name).assign_attrs(run=" + ".join(chosen.runs))
    result.encoding["source"] = str(lake.location)
    if settings.variables:
        return variables_of(chosen.kind, result)
    frames = frames_of(chosen.kind, result)
    if settings.csv is not None:
        title = f"{chosen.name.rpartition('/')[2].replace('~', '-')}-{chosen.kind}"
        for name, frame in frames.items():
            write_csv(frame, settings.csv / f"{title}-{name}.csv")
    stated = {key: getattr(chosen, key) for key in ("kind", "runs", "spec", "fingerprint", "inputs", "command")}
    return Output(
        printed=printed_of(chosen, result, frames),
        document={"result": chosen.name} | stated | short_tables(frames) if settings.json else None,
    )


def listed(lake: "Lake") -> Output:
    """Name, settings and fingerprint of every stored result."""
    results = lake.results()
    rows = [[result.name, result.fingerprint[:12], result.describe(lake.location)] for result in results]
    columns = ["result", "fingerprint", "made from"]
    return Output(
        printed=[Table(title=f"results of {lake.location}", columns=columns, rows=rows)],
        document=[asdict(result) for result in results],
    )


def variables_of(kind: str, result: Any) -> Output:
    """What a stored result holds: its coordinates and variables with dims, unit and meaning."""
    from schemas.meaning import explained, interval_of

    result = explained(kind, result)
    ends: dict[str, list[str]] = {}
    for name in map(str, result.variables):
        if (of := interval_of(name, result)) in result and result[of].dims == result[name].dims:
            ends.setdefault(of, []).append(name.removeprefix(of))
    held = {
        title: [
            {
                "variable": ", ".join([str(name), *sorted(ends.get(str(name), []), reverse=True)]),
                "dims": ", ".join(map(str, array.dims)),
                "unit": str(array.attrs.get("units", "")),
                "what": str(array.attrs.get("description", array.attrs.get("long_name", ""))),
            }
            for name, array in arrays.items()
            if interval_of(str(name), result) not in ends
        ]
        for title, arrays in (("coordinates", result.coords), ("variables", result.data_vars))
    }
    tables = [
        Table(title=title, columns=["variable", "dims", "unit", "what"], rows=[list(row.values()) for row in rows])
        for title, rows in held.items()
        if rows
    ]
    return Output(printed=tables, document=held)


def frames_of(kind: str, result: Any) -> dict[str, Any]:
    """Tidy tables of a stored result, as its command gives them."""
    from analyze.tables import result_tables
    from schemas.registry import by_kind

    command = by_kind().get(kind)
    if isinstance(command, Analysis) and command.frames is not None:
        try:
            return dict(command.frames(kind, result))
        except UNREADABLE:
            pass
    if isinstance(command, Experiment):
        result = result.drop_vars([key for key, array in result.variables.items() if "example" in array.dims])
    return result_tables(result.drop_dims("hidden", errors="ignore"))


def printed_of(chosen: "Result", result: Any, frames: Mapping[str, Any]) -> list[Printed]:
    """A stored result as its command prints it; one that no command prints, as its tables."""
    from analyze.tables import fed
    from schemas.registry import by_kind

    label = result.attrs["run"]
    command = by_kind().get(chosen.kind)
    try:
        parts = list(command.results[chosen.kind](result, chosen.spec)) if command else []
    except UNREADABLE:
        parts = []
    if not parts:
        arrays = [f"{name} ({', '.join(map(str, values.dims))})" for name, values in result.data_vars.items()]
        return [*cut_tables(f"{label}: {chosen.kind}", frames), f"{label}: kept as {chosen.name}: {', '.join(arrays)}"]
    if isinstance(command, Experiment):
        parts = side_by_side(command.name, label, [*parts, *fed(result)])
    return [*parts, f"{label}: kept as {chosen.name}"]


def side_by_side(name: str, run: str, parts: Sequence[Printed]) -> list[Printed]:
    """What an experiment says of one run, headed as where runs stand side by side."""
    return [
        f"{run}: {part}" if isinstance(part, str)
        else replace(
            part,
            title=f"{name} {run}: {part.title}" if part.title else f"{name} {run}",
            columns=[*part.columns[: part.labels], *(f"\n{measure}" for measure in part.columns[part.labels :])],
        )
        if part.labels
        else part
        for part in parts
    ]  # fmt: skip


def cut_tables(title: str, frames: Mapping[str, Any]) -> list[Printed]:
    """The beginning of each tidy table."""
    more = "the first {} of {} rows; --csv DIR has all"
    return [
        Table(
            title=f"{title}, {name}",
            columns=list(frame.columns),
            rows=[list(row) for row in frame.head(SHOWN_ROWS).itertuples(index=False)],
            caption=more.format(SHOWN_ROWS, len(frame)) if len(frame) > SHOWN_ROWS else None,
        )
        for name, frame in frames.items()
    ]


COMMAND = Command(
    name="show",
    help="Print a stored result again, as the command that made it did; nothing is computed.",
    settings=ShowSettings,
    run=show,
)
