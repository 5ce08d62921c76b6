"""Conditions of a re-entry as rows, and what they are called in words."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import xarray as xr

from analyze.tables import Frame

UNTOUCHED = "untouched"


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


def single_positions(labels: Iterable[str]) -> list[str]:
    """``bot``, thoughts and ``eot`` of these labels, in the order of the sequence."""
    known = [label for label in labels if label in ("bot", "eot") or (label[:2] == "ct" and label[2:].isdecimal())]
    return sorted(known, key=lambda label: (label == "eot", label != "bot", int(label[2:]) if label[0] == "c" else 0))


def self_control(frame: Frame) -> str:
    """Whether putting a value in its own place changed anything."""
    own = frame[frame["control"].str.startswith("self")]
    if not len(own) or "kl_mean" not in own:
        return ""
    worst = float(own["kl_mean"].abs().max())
    changed = int((own["broken"] + own["mended"]).sum()) if {"broken", "mended"} <= set(own) else 0
    return f"{changed} changed answers, largest mean KL {worst:.1g} nats"


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


def by_carrying(spec: Mapping[str, Any]) -> bool:
    """Whether thoughts were ablated by what they carry, not by their number alone."""
    return "carrying" in spec.get("sets", ("carrying",))


def by_count(spec: Mapping[str, Any]) -> bool:
    """Whether the first, the last or any N thoughts were ablated."""
    return "counts" in spec.get("sets", ())


def into_corrupted(spec: Mapping[str, Any]) -> bool:
    """Whether clean thoughts were patched into corrupted problems, not the other way."""
    return bool(spec.get("into", "corrupted") == "corrupted")


def into_clean(spec: Mapping[str, Any]) -> bool:
    """Whether corrupted thoughts were patched into clean problems."""
    return not into_corrupted(spec)
