"""``lake reenter edit``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extract.reenter.settings import DrawnSettings
from extract.reenter.sites import ThoughtSite
from extract.reenter.tables import drawn_cells, drawn_column, label_text, p_text
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.wording import interval_text

LABELS = ("changed", "layer", "step", "method", "dose", "also", "control")


@dataclass(frozen=True, kw_only=True)
class EditSettings(DrawnSettings):
    """What is written into which thoughts, and how."""

    quantity: Literal["intermediate_result", "operation"] = setting(
        "intermediate_result",
        "What is written: a step's result (a number, or a word of the problem's graph), or its operator.",
    )
    to: str | None = setting(
        None, "The value for all problems; by default each gets one that its chain can go on from.", metavar="VALUE"
    )
    methods: tuple[Literal["means", "probe", "regression", "donor"], ...] = setting(
        ("means", "probe", "regression", "donor"),
        "means: the difference of class means; probe: along its direction to the boundary; regression: until it"
        " predicts the value; donor: the state of a problem that has it.",
    )
    doses: tuple[float, ...] = setting(
        (0.25, 0.5, 1.0, 1.5, 2.0), "Share of the way to the edited state; 1 is all of it.", metavar="0.5,1.."
    )
    also: str = setting(
        "", "Further interventions, each alone, all together, and together with each edit.",
        metavar="'noise ct5 strength=2; scale ct2 strength=1.5'",
    )  # fmt: skip
    site: ThoughtSite = setting(
        "latent_embedding", "What is changed: a layer's output, or the vector fed to the model."
    )
    layers: tuple[int, ...] | None = setting(None, "Layers, as 0,5,11; by default all, one at a time.", metavar="0,1..")
    positions: tuple[str, ...] | None = setting(
        None, "Positions, one at a time; by default the thoughts that read as a step's result.", metavar="ct1,ct3.."
    )
    step: int | None = setting(
        None, "Step of the chain that is meant, from 0; by default the one whose result is read there.", least=0
    )
    seed: int = setting(0, "Seed of the halves and of what is drawn.", least=0)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How often answers go where the chain then leads, and what becomes of the other thoughts."""
    overall = result.sel(stratum="all")
    rows = []
    for index in range(overall.sizes["condition"]):
        condition = overall.isel(condition=index)
        edited = bool(condition["changed"].item())
        labels = [
            label_text(label, condition[label].item()) if edited or label in ("also", "control") else ""
            for label in LABELS
        ]
        others = [_of_states(condition, name) for name in ("follow", "side")]
        shares = [interval_text(condition, name, "_share") for name in ("hit", "kept")]
        accuracy = interval_text(condition, "accuracy")
        p, drawn = p_text(condition["p_hit_holm"]), drawn_cells(condition, "sample_hit")
        rows.append([*labels, str(int(condition["n"])), *shares, p, accuracy, *others, *drawn])
    columns = (
        "n",
        "as edited 95%",
        "own answer 95%",
        "p Holm",
        "accuracy 95%",
        "thoughts that follow",
        "others changed",
        *drawn_column(overall, "sample_hit", "drawn as edited 95%"),
    )
    return [
        Table(
            title="", columns=[*LABELS, *columns], rows=rows, labels=len(LABELS),
            caption="p: against noise as long as the whole edit; thoughts that follow: of the later thoughts whose"
            " reading should change, those that read as the chain goes on; others changed: of all other later thoughts,"
            " those whose reading changed",
        ),
        f"fitted on {result.attrs['n_fitted']} examples, tried on {result.attrs['n_tried']} others",
        *([f"passed over: {text}"] if (text := result.attrs.get("passed_over")) else []),
    ]  # fmt: skip


def _of_states(condition: Any, name: str) -> str:
    """A share of states at all positions after an edit, and how many there are."""
    n = float(condition[f"n_{name}"].sum())
    part = float((condition[f"n_{name}"] * condition[f"{name}_share"].fillna(0)).sum())
    return f"{part / n:.3f} of {n:.0f}" if n else "-"


COMMAND = Experiment(
    name="edit",
    help="Write a chosen value into a thought: does the answer go where the rest of the problem then leads?",
    settings=EditSettings,
    run=later("extract.reenter.edit.experiment:edit"),
    results={"edit": tables},
)
