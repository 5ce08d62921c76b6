"""What all sections of re-entries share: conditions as rows, places in words, columns and controls."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import xarray as xr

from analyze.report.content import Column, Context, Found

UNTOUCHED = "untouched"


Frame = Any
"""A pandas frame; its stubs do not know what a cell holds."""


TESTED = (
    "p-values are exact McNemar tests against the untouched run on the same problems, Holm-corrected over the sweep."
)


def conditions(data: xr.Dataset) -> Frame:
    """One row for each condition: its coordinates, and every figure of all problems together."""
    part = data.sel(stratum="all") if "stratum" in data.dims else data
    names = [name for name, variable in part.variables.items() if variable.dims == ("condition",)]
    frame = pd.DataFrame({str(name): part[name].values for name in names})
    frame.index = pd.RangeIndex(len(frame))
    if "control" not in frame:
        frame["control"] = ""
    frame["control"] = frame["control"].fillna("").astype(str)
    if "layer" in frame:
        frame["layer"] = pd.to_numeric(frame["layer"], errors="coerce").fillna(-1).astype(int)
    return frame


def re_entries(context: Context, *kinds: str) -> list[Found]:
    """Results of a re-entry, whose conditions lie along one dim, under any of its names."""
    for kind in kinds:
        found = [each for each in context.find(kind) if "condition" in each.data.dims]
        if found:
            return found
    return []


def place_name(site: Any, layer: Any) -> str:
    """Where an intervention was made, in a few words."""
    if str(site) == "latent_embedding":
        return "fed vector"
    return "all layers" if int(layer) < 0 else f"layer {int(layer)}"


def with_place(frame: Frame) -> Frame:
    """A column that names site and layer; nothing where the conditions have none."""
    frame = frame.copy()
    if "site" in frame:
        frame["place"] = [place_name(s, layer) for s, layer in zip(frame["site"], frame["layer"], strict=True)]
    return frame


def untouched(frame: Frame) -> Any:
    """The row of the run as it was."""
    named = frame[frame["condition"].astype(str) == UNTOUCHED]
    return named.iloc[0] if len(named) else frame.iloc[0]


def places_of(frame: Frame) -> list[str]:
    """Places in order: the fed vectors, each layer, all layers."""
    names = list(dict.fromkeys(frame["place"]))
    return sorted(
        names, key=lambda n: (n != "fed vector", n == "all layers", int(n.split()[1]) if n.startswith("layer") else 0)
    )


def self_control(frame: Frame) -> str:
    """Whether putting a value in its own place changed anything."""
    own = frame[frame["control"].str.startswith("self")]
    if not len(own) or "kl_mean" not in own:
        return ""
    worst = float(own["kl_mean"].abs().max())
    changed = int((own["broken"] + own["mended"]).sum()) if {"broken", "mended"} <= set(own) else 0
    return f"{changed} changed answers, largest mean KL {worst:.1g} nats"


def accuracy_columns(extra: Sequence[Column]) -> list[Column]:
    """Columns that every table of ablations ends with."""
    return [
        Column(label="Run", key="run", kind="text"),
        *extra,
        Column(label="n", key="n", kind="count"),
        Column(label="Correct", key="accuracy", kind="share", low="accuracy_low", high="accuracy_high"),
        Column(label="Untouched", key="untouched_accuracy", kind="share"),
        Column(
            label="Right that turn wrong", key="importance", kind="share", low="importance_low", high="importance_high"
        ),
        Column(label="p (Holm)", key="p_holm", kind="p"),
    ]


def control_note(found: Iterable[Found]) -> list[str]:
    """The control in which each value replaces itself, for every run."""
    notes = [(each.look.label, self_control(conditions(each.data))) for each in found]
    notes = [(label, note) for label, note in notes if note]
    if not notes:
        return []
    return ["Control, each value replaced by itself: " + "; ".join(f"{label} {note}" for label, note in notes) + "."]


def labels_of(row: Mapping[str, Any]) -> str:
    """A condition in words, from its coordinates."""
    parts = []
    for key in ("control", "operation", "corruption", "direction", "group", "positions"):
        value = str(row.get(key, "") or "")
        if value and value != "nan" and value not in parts:
            parts.append(value)
    if "strength" in row and str(row["strength"]) not in ("", "nan"):
        parts.append(f"{float(row['strength']):+g}".replace("-", "\N{MINUS SIGN}"))
    if row.get("site"):
        parts.append(f"at {place_name(row['site'], row.get('layer', -1))}")
    return ", ".join(parts) or str(row.get("condition", ""))
