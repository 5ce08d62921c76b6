"""Figures of stored dictionaries as rows."""

import json
from typing import Any

import xarray as xr


def source_name(source: str) -> str:
    """A source of a crosscoder in words: ``model/4`` is a layer."""
    model, _, layer = source.rpartition("/")
    return f"layer {layer} of {model}" if model else source


def dictionary_rows(data: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Figures of a dictionary on held-out problems, by its source where it has several."""
    split = "test" if "test" in data["split"].values else str(data["split"].values[-1])
    held_out = data[["explained_variance_all", "dead_share", "l0"]].sel(split=split)
    spec = json.loads(data.attrs.get("spec", "{}"))
    row: dict[str, Any] = {name: str(data.attrs.get(name, spec.get(name, ""))) for name in ("scope", "activation")}
    row["library"] = str(data.attrs.get("library", ""))
    row["activation"] += f" of {row['library']}" if row["library"] else ""
    row |= {"n_feature": data.sizes["feature"], "l0": float(held_out["l0"].mean())}
    row |= {"dead": float(held_out["dead_share"].mean())}
    variance = held_out["explained_variance_all"]
    variance = variance if "source" in variance.dims else variance.expand_dims(source=[""])
    definitions = variance["definition"].values
    return {
        str(of.item()): row
        | {str(name): float(variance.sel(source=of, definition=name).mean()) for name in definitions}
        for of in variance["source"]
    }
