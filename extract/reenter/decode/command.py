"""``lake reenter decode``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import NOTHING_KEPT, Experiment, Printed, Settings, Table, setting
from schemas.errors import UsageError
from schemas.wording import with_interval

if TYPE_CHECKING:
    import xarray as xr

    from extract.reenter.target import Target

SHOWN = 3
"""Examples whose texts are printed."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(Settings):
    """What the decoder is, and how much it may write."""

    decoder: str | None = setting(
        None,
        "Model that the decoder began as, for its config: a folder or hub id; by default the base of the model itself.",
        metavar="PATH_OR_ID",
    )
    positions: tuple[str, ...] | None = setting(
        None, "Thoughts that are written out, by where they are fed; by default all.", metavar="ct0,ct1.."
    )
    max_new_tokens: int = setting(24, "Longest step, end token included.", least=1)
    seed: int = setting(0, "Seed of the other problem whose steps are looked for as a control.", least=0)


def run(target: "Target", settings: DecodeSettings) -> "xr.Dataset":
    """What SIM-CoT's decoder writes of each thought, and how often that is a step of the problem."""
    from extract.reenter.decode.experiment import decode

    if target.rule != "default":
        raise UsageError(f"--rule {target.rule} says how answers are read, and a decoder writes none; leave it out")
    return decode(target, settings)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How often each step's result is written of each thought, beside another problem's; some texts."""
    rows = []
    for position in result["position"].values:
        place = result.sel(position=position)
        row = [str(position), str(int(place["n"])), f"{float(place['ended'].mean()):.3f}"]
        row += [with_interval(place[f"any_share{end}"] for end in ENDS), f"{float(place['any_control_share']):.3f}"]
        rows.append([*row, *(f"{float(share):.3f}" for share in place["result_share"].values)])
    steps = [f"step {int(step)}" for step in result["step"].values]
    texts = [
        [str(int(example)), *map(repr, result["text"].sel(example=example).values)]
        for example in result["example"].values[:SHOWN]
    ]
    return [
        Table(
            title="",
            columns=["fed at", "n", "ended", "a step 95%", "of another", *steps],
            rows=rows,
            labels=1,
            caption="share of problems of which the decoder writes the result of any step, of another problem's, and of"
            " each step that the problem has",
        ),
        Table(title="", columns=["example", *map(str, result["position"].values)], rows=texts),
    ]


ENDS = ("", "_low", "_high")

COMMAND = Experiment(
    name="decode",
    help="What the decoder of a SIM-CoT checkpoint writes of each thought, beside the problem's own steps.",
    settings=DecodeSettings,
    run=run,
    results={"decode": tables},
    stopped=NOTHING_KEPT,
)
