"""What the sections of re-entries share."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import xarray as xr
from scipy import stats

from analyze.beside import Finding, Triple
from analyze.context import StoredResult, Where
from analyze.effects.conditions import UNTOUCHED, conditions, place_name, self_control, untouched, with_place
from analyze.heads.command import by_thoughts
from analyze.page import NothingStored, Page, listed
from analyze.tables import ENDS, Frame, as_picked, rows_with
from schemas.picked import Pick
from schemas.scoring import OUTCOMES
from schemas.statistics import smallest_change, smallest_correlation

LEVEL = 0.05
"""Corrected p below which a change is reported."""
LEAST_HEADS = 4
"""Fewest heads of which a rank correlation is reported."""


def reentries(page: Page, kind: str, where: Where | None = None) -> list[tuple[StoredResult, Frame, Any]]:
    """Results of a re-entry, each with its changed conditions as rows and the row of the untouched run.

    The control in which each value replaces itself goes to the texts as ``control``.
    """
    results = [result for result in page.results(kind, where) if "condition" in result.data.dims]
    if not results:
        raise NothingStored
    frames = [rows_of(result.data) for result in results]
    page.set(control=control_note(results, frames))
    return [
        (result, frame[frame["condition"].astype(str) != UNTOUCHED].copy(), untouched(frame))
        for result, frame in zip(results, frames, strict=True)
    ]


def rows_of(data: xr.Dataset) -> Frame:
    """Conditions of a re-entry with the names of their places, and the shares of outcomes where pairs were patched."""
    frame = with_place(conditions(data))
    for kind in ("outcome_kind", "outcome"):
        if kind in data.dims:
            for outcome in OUTCOMES:
                of_outcome = data.sel({kind: outcome})
                for end in ENDS:
                    frame[outcome.removesuffix("_answer") + end] = of_outcome[f"share{end}"].values[frame.index]
    return frame


def changed(what: str, value: str = "importance", pick: Pick | None = None, **where: Any) -> Finding:
    """A number of a re-entry: of its first condition with these labels that is no control; by default what it takes."""

    def of(result: StoredResult) -> Triple:
        rows = rows_with(rows_of(result.data), control="", **where)
        return [float(rows[f"{value}{end}"].iloc[0]) if len(rows) else math.nan for end in ENDS]

    return Finding(what=what, of=of, pick=pick)


def differs(rows: Frame) -> Any:
    """Whether the corrected test shows that each row differs from the untouched run."""
    return rows["p_holm"].fillna(1.0) < LEVEL


def differing_fed(nodes: Frame) -> Frame:
    """The first three vectors fed whose score differs from 0, by intervals that hold for all of them at once."""
    fed = nodes[nodes["kind"] == "fed"]
    fed = as_picked(fed, Pick(len(fed), by="any"), "score")
    return fed[(fed["score_low"] > 0) | (fed["score_high"] < 0)].head(3)


def power(rows: Frame) -> float:
    """Smallest change that the corrected tests of a sweep can show, of the fewest problems of its rows."""
    tested = rows[rows["p_holm"].notna()] if "p_holm" in rows else rows
    return smallest_change(int(tested["n"].min()), len(tested)) if len(tested) else math.nan


def control_note(results: Sequence[StoredResult], frames: Sequence[Frame]) -> str:
    """What the control in which each value replaces itself came to, for every run."""
    notes = [(result.label, self_control(frame)) for result, frame in zip(results, frames, strict=True)]
    notes = [(label, note) for label, note in notes if note]
    if not notes:
        return ""
    return "Control, each value replaced by itself: " + "; ".join(f"{label} {note}" for label, note in notes) + "."


def paired(data: xr.Dataset, over: str) -> Frame:
    """Paired tests of conditions that differ in one label only, a row for each; none where there was no pair."""
    dim = f"{over}_pair"
    if dim not in data.dims:
        return pd.DataFrame()
    columns = {name: data[f"{over}_{name}"].values for name in ("first", "second", "difference", "p_holm")}
    within = {str(name): data[name].values for name in data.coords if str(name).startswith(f"{dim}_")}
    frame = pd.DataFrame(columns | {name.removeprefix(f"{dim}_"): value for name, value in within.items()})
    layers = frame["layer"] if "layer" in frame else [0] * len(frame)
    frame["place"] = [place_name(site, layer) for site, layer in zip(frame["site"], layers, strict=True)]
    return frame


def next_sentence(page: Page, steps: Frame) -> str:
    """Between which of these numbers one more changes a share significantly, as ``from 1 to 2``."""
    some = steps[steps["p_holm"] < LEVEL]
    pairs = [f"from {int(one)} to {int(two)}" for one, two in zip(some["first"], some["second"], strict=True)]
    return page.text("next", pairs=listed(pairs)) if pairs else page.text("no_next")


def changed_places(rows: Frame) -> list[tuple[str, Frame]]:
    """Changed thoughts and where, in words, in order, with their rows."""
    names = rows["changed"].astype(str) + [f", {place}" if place != "fed vector" else "" for place in rows["place"]]
    return [(str(name), rows[names == name]) for name in dict.fromkeys(names)]


def score_rank(page: Page, result: StoredResult, alone: Frame) -> list[str]:
    """How the score of heads goes with what each costs alone, where their scores are stored and both vary."""
    scores = [one.data for one in page.results("heads", by_thoughts, optional=True) if one.run == result.run]
    if not scores or len(alone) < LEAST_HEADS:
        return []
    composite = [float(scores[0]["composite"].sel(layer=row.layer, head=row.head)) for row in alone.itertuples()]
    if len(set(composite)) < 2 or alone["drop"].nunique() < 2:
        return []
    rank = float(stats.spearmanr(composite, alone["drop"]).statistic)
    return [page.text("rank", rank=rank, n_head=len(alone), smallest=smallest_correlation(len(alone)))]
