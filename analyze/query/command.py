"""``lake query`` and ``lake top``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.command import Command, Output, Settings, Shell, Table, setting
from schemas.csv_files import write_csv
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class QuerySettings(Settings):
    """A question in SQL."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    sql: str | None = setting(None, "A SELECT; none: tables and columns are listed.", metavar="[SQL]", argument=True)
    json: bool = setting(False, "Print the result as JSON.")
    csv: Path | None = setting(None, "Write the answer as CSV instead.", metavar="FILE", needs="sql")


def query(settings: QuerySettings, shell: Shell) -> Output:
    """Answer a question, or list what can be asked about."""
    from analyze.query.sql import lake_tables, query_lake
    from store import open_lake

    lake = open_lake(settings.path)
    if settings.sql is None:
        known = lake_tables(lake)
        rows = [[table.name, table.of, ", ".join(table.columns)] for table in known]
        return Output(
            printed=[Table(title=f"tables of {settings.path}", columns=["table", "of", "columns"], rows=rows)],
            document={table.name: {"of": table.of, "columns": table.columns} for table in known},
        )
    answer = query_lake(lake, settings.sql)
    rows = [[cell_text(cell) for cell in row] for row in answer.itertuples(index=False)]
    table = Table(
        title="", columns=[str(column) for column in answer.columns], rows=rows, caption=f"{len(answer)} rows"
    )
    return written(answer, settings, table)


def cell_text(cell: Any) -> str:
    """A cell of an answer; nothing for NULL."""
    import pandas as pd

    if isinstance(cell, list):
        return f"[{', '.join(map(cell_text, cell))}]"
    if pd.api.types.is_scalar(cell) and pd.isna(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    return f"{cell:.{6 if abs(cell) < 1e5 else 12}g}" if isinstance(cell, float) else str(cell)


def written(frame: Any, settings: "QuerySettings | TopSettings", table: Table) -> Output:
    """A frame as the settings want it: a file, JSON, or the table."""
    from analyze.tables import records

    if settings.csv is not None:
        write_csv(frame, settings.csv)
        line = f"{settings.csv}: {len(frame)} rows"
        return Output(printed=[line], document={"csv": str(settings.csv), "rows": len(frame)})
    if settings.json:
        return Output(document=records(frame))
    return Output(printed=[table])


@dataclass(frozen=True, kw_only=True)
class TopSettings(Settings):
    """What is to be large, and where it is looked for."""

    path: str = setting(help="Lake: a folder or a URL.", metavar="PATH", argument=True)
    run: str = setting(help="The run that is searched, MODEL/DATASET.", metavar="RUN", argument=True)
    head: str | None = setting(None, "A head: where it pays most attention.", metavar="L1H2")
    feature: str | None = setting(
        None, "A feature of a stored dictionary: where it fires most; sae:17 may do.", metavar="RESULT:17"
    )
    direction: str | None = setting(
        None,
        "A direction of a stored result: where states reach furthest along it, as probes:direction:step=0; with -"
        " before it, the other way.",
        metavar="KIND:VARIABLE[:DIM=LABEL,..]",
    )
    by: str | None = setting(
        None, "SQL over the run's columns, as -answer_logprob, see lake query: examples.", metavar="EXPR"
    )
    top: int = setting(10, "Places shown.", metavar="N", least=1)
    layers: tuple[int, ...] | None = setting(None, "For --direction: only these layers.", metavar="0,1..")
    positions: tuple[str, ...] | None = setting(None, "Only these positions.", metavar="bot,ct0..")
    keys: tuple[str, ...] | None = setting(None, "For --head: only these keys.", metavar="bot,ct0..")
    json: bool = setting(False, "Print the result as JSON.")
    csv: Path | None = setting(None, "Write the places as CSV instead.", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(wanted is not None for wanted in (self.head, self.feature, self.direction, self.by)) != 1:
            raise UsageError(
                "top: name what is to be large, with one of --head L1H2, --feature RESULT:17,"
                " --direction KIND:VARIABLE and --by EXPR"
            )
        if self.by is not None and not self.by.strip():
            raise UsageError("top: --by is empty; it is SQL over the run's columns, as -answer_logprob")
        if (self.keys and not self.head) or (self.layers and not self.direction) or (self.positions and self.by):
            raise UsageError("top: --keys goes with --head, --layers with --direction, --positions with all but --by")


def top(settings: TopSettings, shell: Shell) -> Output:
    """Where a head, a feature, a direction or an expression is largest."""
    from analyze.query.top import top_of_column, top_of_direction, top_of_feature, top_of_head
    from store import open_lake

    lake, run = open_lake(settings.path), settings.run
    with shell.progress(run, "examples") as report:
        if settings.by is not None:
            places = top_of_column(lake, run, settings.by, n=settings.top)
        elif settings.head is not None:
            places = top_of_head(
                lake, run, settings.head, n=settings.top, positions=settings.positions, keys=settings.keys,
                progress=report,
            )  # fmt: skip
        elif settings.direction is not None:
            places = top_of_direction(
                lake, run, settings.direction, n=settings.top, layers=settings.layers, positions=settings.positions,
                progress=report,
            )  # fmt: skip
        else:
            places = top_of_feature(
                lake, run, str(settings.feature), n=settings.top, positions=settings.positions, progress=report
            )
    short = places.assign(question=[shortened(text) for text in places["question"]])
    what = settings.head or settings.feature or settings.direction or settings.by
    table = Table(title=f"{run}: largest {what}", columns=list(short.columns), rows=short.values.tolist())
    return written(places, settings, table)


def shortened(text: str) -> str:
    """The last 60 characters of a text: there a question asks."""
    return text if len(text) <= 60 else ".." + text[-58:]


COMMANDS = (
    Command(
        name="query",
        help="Ask a question in SQL: a table for each run, a row for each example, and tables for each stored result.",
        settings=QuerySettings,
        run=query,
    ),
    Command(
        name="top",
        help="Find the problems and positions where a head, a feature, a direction or a column is largest, with what is"
        " around them.",
        settings=TopSettings,
        run=top,
    ),
)
