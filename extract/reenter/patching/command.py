"""``lake reenter patch``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from extract.reenter.settings import PRESET, DrawnSettings, Preset
from extract.reenter.sites import ThoughtSite
from extract.reenter.tables import drawn_cells, drawn_column, label_text, p_text, pair_table, tables_first
from schemas.command import Experiment, Printed, Table, setting
from schemas.naming import By, relabelled
from schemas.wording import interval_names, interval_text, or_dash, with_interval

if TYPE_CHECKING:
    import xarray as xr

    from extract.reenter.target import Target

LABELS = ("site", "layer", "positions", "kind", "control")


@dataclass(frozen=True, kw_only=True)
class PatchSettings(DrawnSettings):
    """Which thoughts are patched, and where."""

    sites: tuple[ThoughtSite, ...] = setting(
        ("hidden_state", "latent_embedding"),
        "What is changed: a layer's output, the vector fed to the model, or either in turn.",
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers, as 0,5,11; by default each alone and all at once.", metavar="0,1.."
    )
    positions: tuple[str, ...] | None = setting(
        None,
        "Positions patched alone; by default the thoughts, in the hidden state bot and eot too.",
        metavar="bot,ct0..",
    )
    subsets: Literal["none", "named", "all"] = setting(
        "named", "Subsets patched besides single thoughts and the first N; named: the three of the reports."
    )
    into: Literal["corrupted", "clean"] = setting(
        "corrupted", "Half of the pair that is changed; the other half gives its thoughts."
    )
    draws: int = setting(3, "Random sets beside the thoughts that carry numbers.", least=1)
    preset: Preset = setting(None, PRESET)
    by: Literal["state", "fed"] | None = setting(
        None,
        "Name positions by the state, or by where the vector made from that state is fed; by default as patched.",
        stored=False,
    )
    seed: int = setting(0, "Seed of everything random.", least=0)

    def __post_init__(self) -> None:
        """Check the values, and let the preset decide some."""
        super().__post_init__()
        if self.preset:
            self.decide("--preset reports", sites=("hidden_state",))


def run(target: "Target", settings: PatchSettings) -> "xr.Dataset":
    """Patch one half's thoughts into the other half of every pair that counts."""
    from extract.reenter.patching.experiment import patch

    return patch(target, settings).assign_attrs(by=settings.by or "")


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Outcomes under each condition, which pairs count, and from how many thoughts on the clean answer wins."""
    counts = result.attrs
    giver = "clean" if counts.get("into", "corrupted") == "corrupted" else "corrupted"
    wrong = counts.get("n_clean_wrong", 0) + counts.get("n_corrupted_wrong", 0)
    lines = [
        f"{counts['n_counted']} of {counts['n_pair']} pairs count; {counts['n_same_answer']} have the same answer"
        f" twice, {counts['n_not_both_right']} are not both answered rightly"
        + (f" ({counts['n_clean_wrong']} clean, {counts['n_corrupted_wrong']} corrupted wrong)" * bool(wrong))
    ]
    if "differs" in result.dims:
        lines += _by_step(result, giver)
    for index in range(result.sizes["series"]):
        series = result.isel(series=index)
        n = [float(series[name]) for name in interval_names("n_that_wins")]
        place = f"{series['series_site'].item()}, layer {label_text('layer', series['series_layer'].item())}"
        wins = f"from N = {with_interval(n, '.0f', '.0f')}" if n[0] == n[0] else "at no N"
        never = float(series["never_wins"])
        lines.append(f"{place}: the {giver} answer wins {wins}; in {never:.0%} of resamples never")
    columns = [*LABELS, "clean 95%", "corrupted", "other", "gibberish", "recovery", "p", "p Holm"]
    columns += drawn_column(result, "sample_given", f"drawn: {giver} 95%")
    rows = [_row(result.isel(condition=index), counts.get("by") or None) for index in range(result.sizes["condition"])]
    printed: list[Printed] = [Table(title="", columns=columns, rows=rows, labels=len(LABELS))]
    if "n_pair" in result.dims:
        printed.append(pair_table(result, "n", ("site", "layer"), "the first N thoughts against the first N + 1"))
    if "layer_pair" in result.dims:
        printed.append(pair_table(result, "layer", ("site", "positions", "kind"), "layer against layer"))
    return tables_first([*printed, *lines])


def _by_step(result: Any, giver: str) -> list[str]:
    """The ceiling, and from how many thoughts on which pairs follow."""
    n = dict(zip(result["differs"].values, result["n_by_step"].values.tolist(), strict=True))
    differ = ", ".join(f"{label} in {count}" for label, count in n.items())
    lines = [
        f"pairs first differ in: {differ}; at most {result.attrs['ceiling']:.1%} can give the {giver} answer because of"
        " a thought, unless a thought holds the answer itself"
    ]
    for label in n:
        wins = result["n_that_wins_by_step"].sel(differs=label)
        places = [
            f"{site}, layer {label_text('layer', layer)} {f'N = {float(value):.0f}' if value == value else 'no N'}"
            for site, layer, value in zip(
                result["series_site"].values, result["series_layer"].values, wins.values, strict=True
            )
        ]
        lines.append(f"pairs that first differ in {label} give it from: {'; '.join(places)}")
    return lines


def _row(condition: Any, by: By | None) -> list[str]:
    """Labels and outcomes of one condition."""
    share = condition["share"]
    labels = {label: condition[label].item() for label in LABELS}
    given: By = "fed" if labels["site"] == "latent_embedding" else "state"
    names = relabelled(str(labels["positions"]).split("+"), by or given, read=given)
    return [
        *(label_text(label, value) for label, value in (labels | {"positions": "+".join(names)}).items()),
        interval_text(condition.sel(outcome_kind="clean_answer"), "share"),
        *(or_dash(share.sel(outcome_kind=kind), ".3f") for kind in ("corrupted_answer", "other", "gibberish")),
        or_dash(condition["recovery"], "+.2f"),
        p_text(condition["p"]),
        p_text(condition["p_holm"]),
        *drawn_cells(condition, "sample_given"),
    ]


COMMAND = Experiment(
    name="patch",
    help="Patch the clean half's thoughts into the corrupted half of every pair that was answered rightly twice.",
    settings=PatchSettings,
    run=run,
    results={"patch": tables},
)
