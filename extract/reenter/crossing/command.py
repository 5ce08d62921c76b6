"""``lake reenter cross``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extract.reenter.settings import DrawnSettings
from extract.reenter.sites import ThoughtSite
from extract.reenter.tables import accuracy_table, label_text, p_text
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.wording import interval_text, or_dash


@dataclass(frozen=True, kw_only=True)
class CrossSettings(DrawnSettings):
    """Which thoughts go over, and where."""

    sites: tuple[ThoughtSite, ...] = setting(
        ("hidden_state", "latent_embedding"),
        "What is changed: a layer's output, the vector fed to the model, or either in turn.",
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers, as 0,5,11; by default each alone and all at once.", metavar="0,1.."
    )
    positions: tuple[str, ...] | None = setting(
        None, "Positions, each alone and all together; by default the thoughts.", metavar="bot,ct0.."
    )
    seed: int = setting(0, "Seed of everything random, such as whose thoughts go in.", least=0)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """What thoughts of each outcome make of problems of each outcome, and accuracy under every condition."""
    counts, hub = dict(zip(result["receiver"].values, result["n_receiver"].values, strict=True)), result.attrs["hub"]
    line = f"{int(counts['right'])} problems are answered rightly, {int(counts['wrong'])} wrongly"
    return [
        _crossed(result),
        accuracy_table(result, ("site", "layer", "group", "donor", "control")),
        line + (f"; hub: {hub}" if hub else ""),
    ]


def _crossed(result: Any) -> Table:
    rows = []
    for receiver in result["receiver"].values:
        for index in range(result.sizes["place"]):
            cell = result.isel(place=index).sel(receiver=receiver)
            rows.append(
                [
                    str(receiver), cell["place_site"].item(), label_text("layer", cell["place_layer"].item()),
                    cell["place_group"].item(),
                    *(interval_text(cell.sel(giver=giver), "crossed") for giver in result["giver"].values),
                    interval_text(cell, "crossed_difference", "", "+.3f", "+.2f"), p_text(cell["crossed_p"]),
                    p_text(cell["crossed_p_holm"]), or_dash(cell['followed'].sel(giver='right'), ".3f"),
                ]
            )  # fmt: skip
    columns = [
        "answered", "site", "layer", "thoughts", "right with those of right 95%", "with those of wrong 95%",
        "difference 95%", "p", "p Holm", "answer of the right one",
    ]  # fmt: skip
    caption = (
        "problems that the untouched model answers rightly or wrongly, with thoughts of another problem that was"
        " answered rightly or wrongly; p: one kind of donor against the other on the same problems (McNemar), Holm over"
        " all rows"
    )
    return Table(title="thoughts gone over", columns=columns, rows=rows, labels=4, caption=caption)


COMMAND = Experiment(
    name="cross",
    help="Put thoughts of rightly answered problems into wrongly answered ones and the reverse, beside their own kind.",
    settings=CrossSettings,
    run=later("extract.reenter.crossing.experiment:cross"),
    results={"cross": tables},
)
