"""``lake reenter heads`` and ``lake reenter edges``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extract.reenter.settings import DrawnSettings
from extract.reenter.tables import accuracy_table
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.wording import interval_text, or_dash


@dataclass(frozen=True, kw_only=True)
class AblateHeadsSettings(DrawnSettings):
    """Which heads are ablated together, and how."""

    by: str = setting("composite", "Score of lake analyze heads that ranks them.")
    counts: tuple[int, ...] = setting((1, 2, 5, 10), "How many of the top-ranked to ablate together.", least=1)
    operation: Literal["zero", "mean", "resample"] = setting("zero", "What is done to the heads.")
    positions: tuple[str, ...] | None = setting(
        None, "Positions; by default bot, the thoughts and eot.", metavar="bot,ct0.."
    )
    draws: int = setting(5, "Random sets of each size.", least=0)
    seed: int = setting(0, "Seed of everything random.", least=0)


@dataclass(frozen=True, kw_only=True)
class CutEdgesSettings(DrawnSettings):
    """Where edges of attention are cut, and which position is the hub."""

    hub: str | None = setting(None, "Position cut off or forced; by default the one most attended to.")
    layers: tuple[int, ...] | None = setting(None, "Only in these layers.", metavar="0,1..")
    heads: tuple[int, ...] | None = setting(None, "Only in these heads.", metavar="0,1..")
    seed: int = setting(0, "Seed of everything random.", least=0)


def head_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy without each head or set of heads, and what ranked them."""
    ranking = " ".join(result.attrs["ranking"].split()[:10])
    return [
        accuracy_table(result, ("group", "control")),
        f"ranked by {AblateHeadsSettings.of_spec(spec).by}: {ranking} ...",
    ]


def edge_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy under each cut, and which position is the hub."""
    tables: list[Printed] = [accuracy_table(result, ("group", "control")), _forced(result)]
    for stratum in ("right", "wrong"):
        if stratum in result["stratum"].values:
            cut = result.sel(stratum=stratum).isel(condition=result["group"].values.tolist().index("hub cut"))
            before, after = float(cut["untouched_accuracy"]), float(cut["accuracy"])
            tables.append(
                f"hub cut, of {int(cut['n'])} answered {stratum}ly: {before:.3f} right before, {after:.3f} after"
            )
    return [*tables, f"hub: {result.attrs['hub']}"]


def _forced(result: Any) -> Table:
    """What it costs to force every later thought onto each position."""
    overall = result.sel(stratum="all")
    rows = []
    for index, group in enumerate(result["group"].values):
        if str(group).startswith("force "):
            condition = overall.isel(condition=index)
            cost = interval_text(condition, "logprob_change", "_mean", ".2f")
            begun = [or_dash(condition[name], ".3f") for name in ("with_prefix", "accuracy_with_prefix")]
            accuracy = interval_text(condition, "accuracy")
            rows.append([str(group).removeprefix("force "), accuracy, *begun, cost])
    columns = ["position", "accuracy 95%", "begun as trained", "right of these", "change of log p 95%"]
    caption = (
        "eot is forced too, and the answer's first token is chosen from what eot sees. An answer that does not begin as"
        " the model was trained to begin it is still scored by what it says, mostly as wrong. log p is that of the gold"
        " answer after the trained beginning: it does not change where the answer itself is read from the thoughts"
    )
    return Table(title="later thoughts see one position only", columns=columns, rows=rows, caption=caption, labels=1)


COMMANDS = (
    Experiment(
        name="heads",
        help="Ablate every head, the top-ranked together, and as many at random.",
        settings=AblateHeadsSettings,
        run=later("extract.reenter.attention.heads:ablate_heads"),
        results={"ablate_heads": head_tables},
    ),
    Experiment(
        name="edges",
        help="Cut attention edges: the hub, the sequence, single thoughts, sets of them; or force the hub.",
        settings=CutEdgesSettings,
        run=later("extract.reenter.attention.edges:cut_edges"),
        results={"edges": edge_tables},
    ),
)
