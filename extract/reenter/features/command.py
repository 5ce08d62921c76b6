"""``lake reenter features``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extract.reenter.tables import p_text
from schemas.command import Experiment, Printed, Settings, Table, later, setting
from schemas.wording import interval_text, or_dash

if TYPE_CHECKING:
    from extract.reenter.target import Target

SHOWN = 20
"""Features that are printed, those that move the answer most beyond random directions first."""


@dataclass(frozen=True, kw_only=True)
class FeatureEffectSettings(Settings):
    """Which features of which dictionary are taken out, and where."""

    sae: str | None = setting(
        None, "Stored dictionary, of a pool of states, of each cell, or a crosscoder; by default the run's own."
    )
    features: tuple[int, ...] | None = setting(
        None,
            "Only these features, by number; by default all that fire. With a dictionary for each cell, numbers"
            " go on from cell to cell.",
        metavar="3,12..",
    )  # fmt: skip
    layers: tuple[int, ...] | None = setting(
        None, "Only at these layers; each feature is taken out where it fires most often among them.", metavar="0,1.."
    )
    positions: tuple[str, ...] | None = setting(None, "Only at these positions, likewise.", metavar="bot,ct0..")
    draws: int = setting(2, "Random directions as long as the feature's beside each.", least=1)
    seed: int = setting(0, "Seed of the random directions and of the intervals.", least=0)


def plan(target: "Target", settings: FeatureEffectSettings) -> tuple[str, dict[str, Any]]:
    """How many features are taken out, in how many rows."""
    from extract.reenter.features.experiment import firings, homes_for

    _, homes = homes_for(target, settings)
    n_slot, n_row, firing = 0, 0, set()
    for part in firings(target, homes):
        slots = sum(firing.feature.shape[1] for firing in part.firings)
        n_slot, n_row = max(n_slot, slots), n_row + (2 + slots * (1 + settings.draws)) * len(part.examples)
        firing |= {number for firing in part.firings for number in firing.feature.ravel().tolist()} - {-1}
    n_example, n_feature = target.data.sizes["example"], len(firing)
    figures = {
        "n_feature": n_feature, "n_place": len(homes), "n_condition": 2 + n_slot * (1 + settings.draws), "n_row": n_row,
    }  # fmt: skip
    text = (
        f"{n_feature} features at {len(homes)} places, in at most {figures['n_condition']:,} conditions of {n_example}"
        f" examples: {n_row:,} rows"
    )
    return text, figures


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The features that move the answer most beyond random directions, and how many do."""
    order = (-result["kl_more"]).argsort().values[:SHOWN]
    rows = []
    for index in order:
        one = result.isel(feature=int(index))
        rows.append([
            int(one["feature"]), place_of(one), int(one["n"]), or_dash(one['moved'], ".2f"), interval_text(one, "kl"),
            or_dash(one['kl_random'], ".3f"), p_text(one["p_kl_holm"]), interval_text(one, "broken"),
            or_dash(one['broken_random'], ".3f"), p_text(one["p_broken_holm"]),
        ])  # fmt: skip
    attrs, turned = result.attrs, result["p_broken_holm"] < 0.05
    telling = (result["p_kl_holm"] < 0.05) & (result["kl_more"] > 0)
    return [
        Table(
            title=f"{len(rows)} of {result.sizes['feature']} features that fire, taken out",
            columns=["feature", "at", "n", "moved", "KL 95%", "random", "p Holm", "broken 95%", "random", "p Holm"],
            rows=rows, labels=1,
            caption="sorted by how much further they move the answer than random directions of the same length; each"
            " interval is that of one feature alone; n: examples on which it fires; moved: mean length of what is taken"
            " out; KL: nat, at the answer's first token, which of a number written digit by digit is its first digit;"
            " broken: right answers that turn wrong; p: against random directions, by problem, corrected over all"
            " features",
        ),
        f"{int(telling.sum())} features move the answer more than random directions do, {int(turned.sum())} change how"
        f" often it is right; the state itself put back moves it by {attrs['self_kl']:.1e} nat at most",
    ]  # fmt: skip


def place_of(feature: Any) -> str:
    """Where a feature is taken out, in words."""
    layer, position = int(feature["layer"]), str(feature["position"].item())
    return f"{position} fed" if layer == -1 else f"{position} layer {layer}"


COMMAND = Experiment(
    name="features",
    help="Take each feature of a stored dictionary out where it fires: what that does to the answer, beside chance.",
    settings=FeatureEffectSettings,
    run=later("extract.reenter.features.experiment:feature_effects"),
    results={"feature_effects": tables},
    plan=plan,
)
