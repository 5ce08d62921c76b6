"""``lake analyze verdict``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas import UsageError
from schemas.command import Analysis, Cost, Printed, Settings, Table, setting

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class VerdictSettings(Settings):
    """What counts as an effect, and beside which controls."""

    control: tuple[str, ...] = setting(
        (),
        "Run of a control to set beside it; by default every run over the same data whose model says that it is"
        " this one's control, or has this one's name with -decodable, -pause, -multipass-pause, -direct or -cot.",
        metavar="RUN",
        repeat=True,
    )
    margin: float = setting(0.1, "Share below which an effect counts as none.", least=0)
    level: float = setting(0.95, "Coverage of all intervals of a question taken together.", least=0)
    by: Literal["state", "fed"] = setting(
        "state",
        "Name what is readable by the position of its state, or by where the vector made from that state is fed,"
        " one position later.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("margin", "level"):
            if getattr(self, name) >= 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be below 1")


def run(source: "Source", settings: VerdictSettings) -> "xr.Dataset":
    """Verdicts from what the lake has stored."""
    from analyze.verdict.verdicts import controls_of, verdict

    for name in settings.control:
        source.lake.attributes(name)
    controls = settings.control or controls_of(source.lake, source.run)
    by, margin, level = settings.by, settings.margin, settings.level
    return verdict(source.lake, source.run, list(controls), margin=margin, level=level, by=by)


def cost(source: "Source", settings: VerdictSettings) -> Cost:
    """Seconds: figures of stored results are set together, and no activation is read."""
    return Cost(operations=0.0, memory=8.0 * source.data.sizes["example"])


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """One row for each thought, the figures behind it, and what is missing."""
    from analyze.verdict.shown import as_now

    result, attrs = as_now(result), result.attrs
    controls = json.loads(attrs["controls"])
    n_test = ", ".join(f"{n} of {question}" for question, n in json.loads(attrs["n_test"]).items())
    rows = [
        [text(result, name, row) for name in ("thought", "question", "verdict", "why", "control", "overturned_by")]
        for row in range(result.sizes["row"])
    ]
    own = f"/{attrs['run'].replace('/', '.')}~"
    elsewhere = sorted({str(name) for name in result["result"].values if own not in str(name)})
    return [
        Table(
            title=f"{attrs['run']}, beside {', '.join(controls) or 'no control'}",
            columns=["thought", "question", "verdict", "because", "control", "overturned by"], rows=rows,
            caption=f"yes above a share of {attrs['margin']:g}, no below; intervals hold at {attrs['level']:.0%} for"
            f" all figures of a question together ({n_test}); readable: {PLACES[attrs['by']]}; used: what is fed there."
            " Zeroing, shuffling, noise and cut edges are kept beside and decide nothing",
        ),
        *([f"of other runs of its model: {', '.join(elsewhere)}"] if elsewhere else []),
        *(f"missing: {row['method']} ({row['question']}); {row['command']}" for row in json.loads(attrs["missing"])),
    ]  # fmt: skip


PLACES = {"state": "the state at the thought", "fed": "the state that what is fed at the thought is made of"}


def text(result: Any, name: str, row: int) -> str:
    """A text of one verdict."""
    return str(result[name].values[row]) or "-"


def frames(kind: str, result: Any) -> dict[str, Any]:
    """Verdicts, the figures behind them, and what is missing with the command that makes it."""
    import pandas as pd

    from analyze.tables import result_tables
    from analyze.verdict.shown import as_now

    parts = result_tables(as_now(result))
    return {
        "verdict": parts["row"].drop(columns="row", errors="ignore"),
        "evidence": parts["evidence"].drop(columns="evidence", errors="ignore"),
        "missing": pd.DataFrame(json.loads(result.attrs["missing"]), columns=["question", "method", "command"]),
    }


COMMAND = Analysis(
    name="verdict",
    help="Say of each thought whether it is readable, used, and where it leads, from all the lake has stored.",
    settings=VerdictSettings,
    run=run,
    results={"verdict": tables},
    frames=frames,
    cost=cost,
)
