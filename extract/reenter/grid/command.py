"""``lake reenter sweep``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extract.reenter.settings import DrawnSettings
from extract.reenter.tables import ACCURACY, accuracy_cells, drawn_column
from schemas import UsageError
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.intervention import OPERATIONS, Donor, Site

AXES = ("layer", "position", "head", "operation", "donor", "strength")


@dataclass(frozen=True, kw_only=True)
class SweepSettings(DrawnSettings):
    """What is combined with what."""

    site: Site = setting("hidden_state", "What is changed.")
    layers: tuple[int, ...] | None = setting(None, "Layers, as 0,5,11; by default all, one at a time.", metavar="0,1..")
    positions: tuple[str, ...] | None = setting(
        None, "Positions, one at a time; by default the thoughts.", metavar="bot,ct0.."
    )
    heads: tuple[int, ...] | None = setting(None, "Heads, as 0,3; by default all, one at a time.", metavar="0,1..")
    keys: tuple[str, ...] = setting(
        (), "Key positions of the attention edges changed, all together.", metavar="bot,ct0.."
    )
    operations: tuple[str, ...] = setting(("zero",), "What is done to it.", metavar="|".join(OPERATIONS) + ",..")
    donors: tuple[Donor, ...] = setting(("stored",), "Where the value comes from, for operations that put one in.")
    strengths: tuple[float, ...] = setting((1.0,), "Strengths, for operations that take one.", metavar="0.5,1..")
    direction: str = setting(
        "", "Direction from a stored result, for operations that take one.", metavar="KIND:VARIABLE.."
    )
    subspace: str = setting(
        "", "Span of vectors from a stored result, for operations that take a subspace.", metavar="KIND:VARIABLE.."
    )
    seed: int = setting(0, "Seed of everything random.", least=0)

    def __post_init__(self) -> None:
        """Refuse what changes nothing."""
        super().__post_init__()
        if "scale" in self.operations and 1 in self.strengths:
            raise UsageError("scale with a strength of 1 would change nothing; --strengths says how much")


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy at each place of the grid."""
    overall = result.sel(stratum="all").reset_coords(drop=True)
    axes = [axis for axis in AXES if axis in overall.dims]
    cells = overall.drop_dims([dim for dim in overall.dims if dim not in axes]).stack(cell=axes, create_index=False)
    rows = []
    for index in range(cells.sizes["cell"]):
        cell = cells.isel(cell=index)
        labels = [str(cell[axis].item()) if axis in axes else "" for axis in AXES]
        rows.append([*labels, *accuracy_cells(cell)])
    return [Table(title="", columns=[*AXES, *ACCURACY[1:], *drawn_column(cells)], rows=rows, labels=len(AXES))]


COMMAND = Experiment(
    name="sweep",
    help="Every combination of layers, positions, heads, operations, donors and strengths.",
    settings=SweepSettings,
    run=later("extract.reenter.grid.experiment:sweep_grid"),
    results={"sweep": tables},
)
