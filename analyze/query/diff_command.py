"""``lake diff``."""

from dataclasses import dataclass
from typing import Any

from schemas.command import Command, Output, Settings, Shell, Table, setting
from schemas.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DiffSettings(Settings):
    """Which lakes or runs are compared."""

    first: str = setting(help="Lake: a folder or a URL.", metavar="A", argument=True)
    second: str = setting(help="Another lake, or the same for two of its runs.", metavar="B", argument=True)
    runs: tuple[str, ...] = setting(
        (), "A run, and what it is called in B where that is otherwise; none: the lakes.", metavar="[RUN [RUN]]",
        argument=True,
    )  # fmt: skip
    json: bool = setting(False, "Print the result as JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.runs) > 2:
            raise UsageError(f"diff compares two runs; found {', '.join(self.runs)}")


def diff(settings: DiffSettings, shell: Shell) -> Output:
    """Two runs, or two lakes; exit 1 if they differ, as diff does."""
    from analyze.query.diff import compare_lakes, compare_runs
    from analyze.tables import records
    from store import open_lake

    lakes = [open_lake(settings.first), open_lake(settings.second)]
    if not settings.runs:
        differences = compare_lakes(*lakes)
        differ = differences[differences["state"] != "same"]
        table = Table(
            title=f"{settings.first} and {settings.second}",
            columns=list(differences.columns),
            rows=differ.values.tolist(),
            caption=f"{len(differences) - len(differ)} models, runs and results are the same",
        )
        return Output(printed=[table], document=records(differences), code=int(len(differ) > 0))
    names = settings.runs[0], settings.runs[-1]
    with shell.progress("diff", "variables") as report:
        lines, values = compare_runs((lakes[0], names[0]), (lakes[1], names[1]), report)
    rows = [  # both values are printed whole: rounded they might look the same
        [
            f"{cell:.4g}" if isinstance(cell, float) and name not in ("first", "second") else shortened(cell)
            for name, cell in zip(values.columns, row, strict=True)
        ]
        for row in values.values
    ]
    table = Table(title="values that differ", columns=list(values.columns), rows=rows)
    what = f"{names[0]} of {settings.first} and {names[1]} of {settings.second}"
    if not lines and values.empty:
        return Output(printed=[f"{what} are the same"], document={"made_from": [], "values": []})
    shown = [f"{what} differ", *(f"  {line}" for line in lines)]
    return Output(
        printed=[*shown, *([] if values.empty else [table])],
        document={"made_from": lines, "values": records(values)},
        code=1,
    )


def shortened(cell: Any) -> str:
    """A cell that fits a table."""
    text = str(cell)
    return text if len(text) <= 28 else f"{text[:26]}.."


COMMAND = Command(
    name="diff",
    help="Say what differs between two lakes, or two runs: how they were made, which values, where and by how much.",
    settings=DiffSettings,
    run=diff,
)
