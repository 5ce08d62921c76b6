"""``lake reenter jacobian``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import Experiment, Printed, Settings, Table, setting
from schemas.errors import UsageError
from schemas.naming import layer_name
from schemas.wording import duration_text, size_text

if TYPE_CHECKING:
    import xarray as xr

    from extract.reenter.target import Target


@dataclass(frozen=True, kw_only=True)
class JacobianSettings(Settings):
    """What is differentiated by what, over how many problems."""

    fit: int = setting(
        256,
        "Number of problems averaged over, one example each, drawn from the 70% that lenses are fitted on.",
        metavar="N",
        least=2,
    )
    targets: tuple[str, ...] = setting(
        ("next", "eot", "answer"),
        "Final states: next (the following place's), self, answer (the one that the answer's own token is predicted"
        " from), or positions by name.",
        metavar="next,eot..",
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers to differentiate by, beside the vectors fed; by default all.", metavar="0,1.."
    )
    positions: tuple[str, ...] | None = setting(
        None, "Positions to differentiate by; by default from bot to the last marker.", metavar="bot,ct0.."
    )
    seed: int = setting(0, "Seed of the problems drawn.", least=0)


def run(target: "Target", settings: JacobianSettings) -> "xr.Dataset":
    """Mean Jacobians through the loop of thoughts."""
    from extract.reenter.jacobian.mean import mean_jacobian

    if target.rule != "default":
        raise UsageError(f"--rule {target.rule} says how answers are read, and Jacobians read none; leave it out")
    return mean_jacobian(target, settings)


def plan(target: "Target", settings: JacobianSettings) -> tuple[str, dict[str, Any]]:
    """What the Jacobians take."""
    from extract.reenter.jacobian.mean import jacobian_plan

    cost = jacobian_plan(target, settings)
    text = (
        f"{cost.n_example} problems in {cost.n_batch} batches, {cost.n_backward:,} backward passes each;"
        f" {size_text(cost.n_byte)} of matrices, twice that in memory; at most about {duration_text(cost.seconds)} on"
        " this machine"
    )
    return text, asdict(cost)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How large the Jacobians from the vectors fed are, and how far two halves of the problems agree."""
    rows = []
    for position in result["position"].values:
        for layer in result["layer"].values:
            place = result.sel(layer=layer, position=position)
            spreads = [float(place["origin_spread"]), *map(float, place["spread"].values)]
            if any(spread == spread for spread in spreads):
                cells = ["" if spread != spread else f"{spread:.3f}" for spread in spreads]
                rows.append([str(position), layer_name(layer), *cells])
    columns = ["position", "layer", "state before", *map(str, result["target"].values)]
    return [
        Table(title="", columns=columns, rows=rows, labels=2),
        f"means over {result.attrs['n_example']} problems; figures: how far the means of two halves are apart (0: they"
        " agree, 1: they have nothing in common)",
    ]


COMMAND = Experiment(
    name="jacobian",
    help="How later final states depend on each place of the thoughts, on average: matrices for the Jacobian lens.",
    settings=JacobianSettings,
    run=run,
    results={"jacobian": tables},
    plan=plan,
)
