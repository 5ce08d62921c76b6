"""``lake reenter ablate`` and ``lake reenter corrupt``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extract.reenter.settings import PRESET, DrawnSettings, Preset
from extract.reenter.sites import ThoughtSite
from extract.reenter.tables import accuracy_table, label_text, pair_table, tables_first
from schemas.command import Experiment, Printed, later, setting


@dataclass(frozen=True, kw_only=True)
class AblateSettings(DrawnSettings):
    """Which thoughts are ablated, where and how."""

    sites: tuple[ThoughtSite, ...] = setting(
        ("hidden_state", "latent_embedding"),
        "What is changed: a layer's output, the vector fed to the model, or either in turn.",
    )
    layers: tuple[int, ...] | None = setting(
        None, "Layers, as 0,5,11; by default each alone and all at once.", metavar="0,1.."
    )
    operations: tuple[str, ...] = setting(
        ("zero", "mean"),
        "What is done to them; the mean is of the position (mean), of all thoughts (mean:run), or of the right or"
        " wrong answers.",
        metavar="zero|mean|mean:run|mean:correct|mean:wrong|resample,..",
    )
    sets: tuple[Literal["carrying", "counts"], ...] = setting(
        ("carrying",),
        "Which thoughts are ablated together: those that carry numbers and the others (carrying), or the first N,"
        " the last N and N at random (counts).",
    )
    draws: int = setting(1, "Random sets of positions beside each group.", least=0)
    preset: Preset = setting(None, PRESET)
    seed: int = setting(0, "Seed of everything random.", least=0)

    def __post_init__(self) -> None:
        """Check the values, and let the preset decide some."""
        super().__post_init__()
        if self.preset:
            self.decide("--preset reports", sites=("hidden_state",), operations=("zero",))


@dataclass(frozen=True, kw_only=True)
class CorruptSettings(DrawnSettings):
    """Which thoughts are corrupted, where and how."""

    site: ThoughtSite = setting(
        "latent_embedding", "What is changed: a layer's output, or the vector fed to the model."
    )
    layers: tuple[int, ...] | None = setting(None, "Layers, as 0,5,11; by default the middle one.", metavar="0,1..")
    positions: tuple[str, ...] | None = setting(
        None, "Positions, each alone and all together; by default the thoughts.", metavar="bot,ct0.."
    )
    corruptions: (
        tuple[Literal["zero", "mean", "noise 0.1", "noise 0.5", "noise 1", "noise 2", "resample"], ...] | None
    ) = setting(
        None, "What replaces a thought; by default every kind. A condition with all thoughts shuffled is always added."
    )
    hold: bool = setting(False, "Keep the other thoughts as they were: direct effects only.")
    preset: Preset = setting(None, PRESET)
    seed: int = setting(0, "Seed of everything random.", least=0)

    def __post_init__(self) -> None:
        """Check the values, and let the preset decide some."""
        super().__post_init__()
        if self.preset:
            self.decide("--preset reports", site="hidden_state", hold=True)


def ablate_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy under each condition, where numbers are read, and which examples do not count."""
    shares = zip(result["position"].values, result["number_share"].values, strict=True)
    carried = result.attrs.get("carried", "number")
    numbers = ", ".join(f"{position} {float(share):.1%}" for position, share in shares)
    left_out = float(result["share_not_counted"].max())
    labels = ["site", "layer", "operation", "group"]
    tables: list[Printed] = [
        accuracy_table(result, (*labels, *(["n_thought"] if "n_spared" in result else []), "control"))
    ]
    if "n_spared" in result:
        title = "each number of thoughts against the next"
        tables.append(pair_table(result, "n_thought", ("site", "layer", "operation", "group"), title))
    if "layer_pair" in result.dims:
        tables.append(pair_table(result, "layer", ("site", "operation", "group", "n_thought"), "layer against layer"))
    line = (
        f"states that read a {carried}: {numbers}; up to {left_out:.1%} of examples lack such thoughts and do not count"
    )
    lines = [line, *_overlap(result, carried), *(_spared(result) if "n_spared" in result else [])]
    return tables_first([*tables, *lines])


def _overlap(result: Any, carried: str) -> list[Printed]:
    """Warning that thoughts drawn at random are partly the ones that read as numbers; nothing if none were drawn."""
    if not any(str(group).startswith("random like numbers") for group in result["group"].values):
        return []
    thoughts = [position for position in result["position"].values if str(position).startswith("ct")]
    share = float(result["number_share"].sel(position=thoughts).mean())
    return [
        f"random like numbers is drawn from all thoughts, {share:.0%} of which read as a {carried}; if it costs as"
        f" much, that does not show that the {carried} does not matter; the group others has the thoughts without one"
    ]


def _spared(result: Any) -> list[Printed]:
    """How many thoughts can be taken away before accuracy falls, a line for each series."""
    lines: dict[str, None] = {}
    for index in range(result.sizes["condition"]):
        condition = result.isel(condition=index)
        spared = float(condition["n_spared"])
        if spared == spared:
            where = f"{condition['site'].item()}, layer {label_text('layer', condition['layer'].item())}"
            what = f"{condition['group'].item()} by {condition['operation'].item()}"
            lines[f"{where}, {what}: {spared:.0f} can be taken away before accuracy falls significantly"] = None
    return list(lines)


def corrupt_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Accuracy under each corruption of each thought."""
    return [accuracy_table(result, ("site", "layer", "corruption", "group", "control"))]


COMMANDS = (
    Experiment(
        name="ablate",
        help="Ablate the thoughts that carry numbers, the others, and as many at random.",
        settings=AblateSettings,
        run=later("extract.reenter.ablation.experiments:ablate"),
        results={"ablate": ablate_tables},
    ),
    Experiment(
        name="corrupt",
        help="Importance of each thought: zero, mean, noise of four strengths, another problem's, shuffled.",
        settings=CorruptSettings,
        run=later("extract.reenter.ablation.experiments:corrupt"),
        results={"corrupt": corrupt_tables},
    ),
)
