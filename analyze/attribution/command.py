"""``lake analyze attribution``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Cost, Limited, Printed, Sampled, Table, setting

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class AttributionSettings(Limited, Sampled):
    """Of which states the read-out is attributed, and how sure it is."""

    positions: tuple[str, ...] | None = setting(
        None, "Only these positions; by default all from bot on.", metavar="bot,ct0.."
    )
    resamples: int = setting(500, "Resamples of the bootstrap over problems.", least=2)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(source: "Source", settings: AttributionSettings) -> "xr.Dataset":
    """Direct logit attribution of what each position reads as."""
    from analyze.attribution.direct import attribution_summary, logit_attribution

    data = source.data
    if settings.positions is None:
        data = data.sel(position=data["segment"] != "question")
    contribution = logit_attribution(data, source.model)
    with source.progress(unit="examples") as report:
        result = attribution_summary(contribution, n_resample=settings.resamples, seed=settings.seed, progress=report)
    return result.assign_attrs(run=source.run)


def cost(source: "Source", settings: AttributionSettings) -> Cost:
    """A product of every last state with the unembedding, and one of every part with a token's direction."""
    from analyze.attribution.direct import ROWS, ends_of
    from analyze.cost import limits, places, present, reading
    from schemas.vocabulary import PARTS

    run, model = source.data, source.lazy_model
    chosen = places(run, settings.positions)
    arrays = [ends_of(run).sel(position=chosen), *(run[name].sel(position=chosen) for name in PARTS if name in run)]
    hidden, n_layer = run.sizes["hidden"], run.sizes["layer"]
    n_state = present(run, chosen)
    return Cost(
        states=n_state * (2 + 2 * n_layer), reads=[reading(array) for array in arrays],
        operations=2.0 * n_state * hidden * (model.sizes["vocabulary"] + 2 * (2 * n_layer + 1)),
        memory=float(model["unembedding"].nbytes + 12 * ROWS * n_layer * hidden * 4),
        readouts=[source.run.partition("/")[0]], **limits(settings, run.sizes["example"], 16, 256),
    )  # fmt: skip


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Mean contribution of each part at each position."""
    positions = [str(label) for label in result["position"].values]
    contribution = result["contribution"].transpose("part", "position")
    rows = [[str(line["part"].item()), *map(float, line.values)] for line in contribution]
    return [
        Table(
            title=f"{result.attrs['run']}: what each part adds to the logit of the likeliest token",
            columns=["part", *positions], rows=[*rows, ["sum", *map(float, result["logit"].values)]],
            caption="logits less their mean over the vocabulary; the final norm's scale is held",
        )
    ]  # fmt: skip


COMMAND = Analysis(
    name="attribution",
    help="Say what attention and MLP of each block add to the token a state reads as; needs --capture ..+parts.",
    settings=AttributionSettings,
    run=run,
    results={"attribution": tables},
    cost=cost,
    block=64,
)
