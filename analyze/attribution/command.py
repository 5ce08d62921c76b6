"""``lake analyze attribution``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.command import Analysis, Limited, Printed, Table, setting

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


@dataclass(frozen=True, kw_only=True)
class AttributionSettings(Limited):
    """Of which states the read-out is attributed, and how sure it is."""

    positions: tuple[str, ...] | None = setting(
        None, "Only these positions; by default all from bot on.", metavar="bot,ct0.."
    )
    resamples: int = setting(500, "Resamples of the bootstrap over problems.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(source: "Source", settings: AttributionSettings) -> "xr.Dataset":
    """Direct logit attribution of what each position reads as."""
    from analyze.attribution.direct import attribution_summary, logit_attribution

    data = source.data
    if settings.positions is None:
        data = data.sel(position=data["segment"] != "question")
    contribution = source.compute(logit_attribution(data, source.model).to_dataset())["contribution"]
    result = attribution_summary(contribution, n_resample=settings.resamples, seed=settings.seed)
    return result.assign_attrs(run=source.run)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Mean contribution of each part at each position."""
    positions = [str(label) for label in result["position"].values]
    contribution = result["contribution"].transpose("part", "position")
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
)
