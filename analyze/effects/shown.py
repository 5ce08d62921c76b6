"""What the sections of re-entries share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import xarray as xr

from analyze.beside import Finding, Triple
from analyze.context import StoredResult, Where
from analyze.effects.conditions import UNTOUCHED, Frame, conditions, place_name, self_control, untouched, with_place
from analyze.page import NothingStored, Page
from schemas.statistics import smallest_change

LEVEL = 0.05
"""Corrected p below which a change is told."""
ENDS = ("", "_low", "_high")


def reentries(page: Page, kind: str, where: Where | None = None) -> list[tuple[StoredResult, Frame, Any]]:
    """Results of a re-entry, each with its changed conditions as rows and the row of the untouched run.

    The control in which each value replaces itself goes to the texts as ``control``.
    """
    results = [result for result in page.results(kind, where) if "condition" in result.data.dims]
    if not results:
        raise NothingStored
    frames = [with_place(conditions(result.data)) for result in results]
    page.set(control=control_note(results, frames))
    return [
        (result, frame[frame["condition"].astype(str) != UNTOUCHED].copy(), untouched(frame))
        for result, frame in zip(results, frames, strict=True)
    ]


def cost_of(what: str, where: Mapping[str, str], value: str = "importance") -> Finding:
    """What a change takes, of a result of a re-entry: its first condition with these labels that is no control."""

    def of(result: StoredResult) -> Triple:
        frame = with_place(conditions(result.data))
        for name, label in {"control": "", **where}.items():
            frame = frame[frame[name].astype(str) == label] if name in frame else frame.head(0)
        return [float(frame[f"{value}{end}"].iloc[0]) if len(frame) else math.nan for end in ENDS]

    return Finding(what=what, of=of)


def told_apart(rows: Frame) -> Any:
    """Whether the corrected test of each row tells it from the untouched run."""
    return rows["p_holm"].fillna(1.0) < LEVEL


def power(rows: Frame) -> float:
    """Smallest change that the corrected tests of a sweep tell, of the fewest problems of its rows."""
    tested = rows[rows["p_holm"].notna()] if "p_holm" in rows else rows
    return smallest_change(int(tested["n"].min()), len(tested)) if len(tested) else math.nan


def control_note(results: Sequence[StoredResult], frames: Sequence[Frame]) -> str:
    """What the control in which each value replaces itself came to, for every run."""
    notes = [(result.label, self_control(frame)) for result, frame in zip(results, frames, strict=True)]
    notes = [(label, note) for label, note in notes if note]
    if not notes:
        return ""
    return "Control, each value replaced by itself: " + "; ".join(f"{label} {note}" for label, note in notes) + "."


def triple(rows: Frame, name: str) -> list[Any]:
    """A figure of each row, and the ends of its interval."""
    return [rows[f"{name}{end}"].to_numpy(dtype=float) for end in ENDS]


def paired(data: xr.Dataset, over: str) -> Frame:
    """Paired tests of conditions that differ in one label only, a row for each; none where there was no pair."""
    dim = f"{over}_pair"
    if dim not in data.dims:
        return pd.DataFrame()
    columns = {
        "first": data[f"{over}_first"].values, "second": data[f"{over}_second"].values,
        "difference": data[f"{over}_difference"].values, "p_holm": data[f"{over}_p_holm"].values,
    }  # fmt: skip
    within = {str(name): data[name].values for name in data.coords if str(name).startswith(f"{dim}_")}
    frame = pd.DataFrame(columns | {name.removeprefix(f"{dim}_"): value for name, value in within.items()})
    layers = frame["layer"] if "layer" in frame else [0] * len(frame)
    frame["place"] = [place_name(site, layer) for site, layer in zip(frame["site"], layers, strict=True)]
    return frame


def differing(rows: Frame) -> list[str]:
    """Steps of a frame over which a share changes significantly, as ``from 1 to 2``."""
    some = rows[rows["p_holm"] < LEVEL]
    return [f"from {int(one)} to {int(two)}" for one, two in zip(some["first"], some["second"], strict=True)]
