"""``lake reenter gradients``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extract.reenter.settings import MOST_POINTS
from schemas.command import NOTHING_KEPT, Experiment, Printed, Settings, Table, later, setting
from schemas.wording import interval_text, or_dash


@dataclass(frozen=True, kw_only=True)
class GradientSettings(Settings):
    """Way along which gradients are integrated."""

    baseline: Literal["mean", "zero"] = setting("mean", "mean of each thought over the run, or zero.")
    steps: int = setting(32, "Number of points between the baseline and the thought.", least=1, most=MOST_POINTS)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Attribution and magnitude of each thought, and how far attributions are from adding up."""
    rows = []
    for latent in result["latent"].values:
        thought = result.sel(latent=latent)
        mean = interval_text(thought, "attribution", "_mean", "+.3f", "+.2f")
        rows.append([str(latent), mean, or_dash(thought["magnitude_mean"], ".3f")])
    residual = result.attrs["relative_residual"]
    return [
        Table(title="", columns=["thought", "attribution 95%", "magnitude"], rows=rows, labels=1),
        f"attributions miss the difference they should add up to by {residual:.2%}",
    ]


COMMAND = Experiment(
    name="gradients",
    help="Integrated gradients of the answer's logit difference with respect to the thoughts.",
    settings=GradientSettings,
    run=later("extract.reenter.gradients.experiment:integrated_gradients"),
    results={"gradients": tables},
    stopped=NOTHING_KEPT,
)
