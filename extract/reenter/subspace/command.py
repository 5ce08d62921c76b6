"""``lake reenter subspace``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from extract.reenter.settings import DrawnSettings
from extract.reenter.sites import ThoughtSite
from extract.reenter.tables import drawn_cells, drawn_column, label_text, p_text
from schemas.command import Experiment, Printed, Table, later, setting
from schemas.wording import interval_text, or_dash

EVERYTHING = "all of it"
RANDOM, APART = "random", "random apart"
RANDOM_CONTROL, APART_CONTROL = "random subspace", "random, apart"
HOLDS = (
    "holds: share of the spread of class means that lies inside; a random subspace of rank k holds about k in d of it,"
    " one that is apart none; "
)
LABELS = ("changed", "layer", "step", "subspace", "rank", "control")


@dataclass(frozen=True, kw_only=True)
class SubspaceSettings(DrawnSettings):
    """Which subspaces of which thoughts are erased and exchanged."""

    subspaces: tuple[Literal["means", "pca", "probe", "leace", "das"], ...] = setting(
        ("means", "pca", "probe", "leace", "das"),
        "means: what class means span; pca: components of the states; probe: what its weights span; leace: closed form"
        " of concept erasure; das: trained for interchange.",
    )
    stored: tuple[str, ...] = setting(
        (),
        "Also the span of vectors of a stored result, as sae:decoder:feature=3+12 (labels joined by +).",
        metavar="KIND:VARIABLE[:DIM=LABEL]",
        repeat=True,
    )
    ranks: tuple[int, ...] = setting((1, 2, 4, 8), "Ranks of each.", metavar="1,2..", least=1)
    site: ThoughtSite = setting(
        "latent_embedding", "What is changed: a layer's output, or the vector fed to the model."
    )
    layers: tuple[int, ...] | None = setting(None, "Layers, as 0,5,11; by default all, one at a time.", metavar="0,1..")
    positions: tuple[str, ...] | None = setting(
        None, "Positions, one at a time; by default the thoughts that read as a step's result.", metavar="ct1,ct3.."
    )
    step: int | None = setting(
        None, "Step of the chain whose result is meant, from 0; by default the one that is read there.", least=0
    )
    draws: int = setting(
        3, "Random subspaces of each rank beside them, and as many orthogonal to the span of the class means.", least=1
    )
    das_steps: int = setting(100, "Training steps of das, at each rank.", least=1, needs="subspaces=das")
    das_rows: int = setting(64, "Examples in each of these steps.", least=1, needs="subspaces=das")
    seed: int = setting(0, "Seed of the halves, of what is drawn and of training.", least=0)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Right answers after erasing, and wanted ones after exchanging, by place, subspace and rank."""
    overall = result.sel(stratum="all")
    erased, exchanged = [], []
    for index in range(1, overall.sizes["condition"]):
        condition = overall.isel(condition=index)
        labels = [label_text(label, condition[label].item()) for label in LABELS]
        holds = or_dash(condition.get("held_share", math.nan), ".3f")
        if str(condition["change"].item()) == "erase":
            figures = [interval_text(condition, "accuracy"), interval_text(condition, "importance")]
            figures += [p_text(condition["p_right_holm"]), *drawn_cells(condition)]
            erased.append([*labels, holds, str(int(condition["n"])), *figures])
        else:
            figures = [interval_text(condition, "hit", "_share"), interval_text(condition, "kept", "_share")]
            figures += [p_text(condition["p_hit_holm"]), *drawn_cells(condition, "sample_hit")]
            exchanged.append([*labels, holds, str(int(condition["n_wanted"])), *figures])
    count = f"fitted on {result.attrs['n_fitted']} examples, tried on {result.attrs['n_tried']} others"
    return [
        Table(
            title="erased",
            columns=[*LABELS, "holds", "n", "accuracy 95%", "broken 95%", "p Holm", *drawn_column(overall)],
            rows=erased, labels=len(LABELS),
            caption=HOLDS + "p: right answers against those after erasing a random subspace of that rank",
        ),
        Table(
            title="exchanged", columns=[
                *LABELS, "holds", "n", "follows the donor 95%", "own answer 95%", "p Holm",
                *drawn_column(overall, "sample_hit", "drawn: follows 95%"),
            ],
            rows=exchanged, labels=len(LABELS), caption="p: against exchanging a random subspace of that rank",
        ),
        *_of_random(overall),
        count,
        *([f"passed over: {text}"] if (text := result.attrs.get("passed_over")) else []),
    ]  # fmt: skip


def _of_random(overall: Any) -> list[str]:
    """What the largest random subspaces of each place hold and cost, a line each."""
    rank = int(overall["rank"].where(overall["control"] == RANDOM_CONTROL).max())
    erased = overall.isel(condition=((overall["change"] == "erase") & (overall["rank"] == rank)).values)
    lines = []
    for changed, layer in dict.fromkeys(zip(erased["changed"].values.tolist(), erased["layer"].values, strict=True)):
        here = erased.isel(condition=((erased["changed"] == changed) & (erased["layer"] == layer)).values)
        kinds = here["control"].values
        even, apart = (here.isel(condition=kinds == kind) for kind in (RANDOM_CONTROL, APART_CONTROL))
        lines.append(
            f"{changed}, layer {label_text('layer', int(layer))}: random subspaces of rank {rank} hold"
            f" {_range(even['held_share'].values)} of the spread of class means and break"
            f" {_range(even['importance'].values)} of the right answers; those apart from it break"
            f" {_range(apart['importance'].values)}"
        )
    return lines


def _range(values: Any) -> str:
    """Least and most of some shares."""
    low, high = float(values.min()), float(values.max())
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


COMMAND = Experiment(
    name="subspace",
    help="Erase or exchange the part of a thought inside a subspace, of growing rank, with random ones beside.",
    settings=SubspaceSettings,
    run=later("extract.reenter.subspace.experiment:subspaces"),
    results={"subspace": tables},
)
