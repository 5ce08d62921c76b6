"""Drawings of what runs have in common."""

from typing import Any

import xarray as xr

from analyze.drawing import heat_map, panels


def plot_stability(result: xr.Dataset, *, ax: Any = None) -> list[Any]:
    """Runs against runs: rank correlation of heads, same hubs, overlap of what thoughts read out as.

    ``result`` is from :func:`analyze.stability.between.stability`; it takes three axes.
    """
    axes = panels(3, ax, size=(3.6, 2.3 + 0.35 * result.sizes["run"]))
    drawn = {
        "composite score": result["correlation"].sel(score="composite"),
        "same hub": result["same_hub"],
        "what thoughts read": result["overlap"],
    }
    for index, (axis, (title, values)) in enumerate(zip(axes, drawn.items(), strict=True)):
        rows = result["run"].values if index == 0 else [""] * result.sizes["run"]
        heat_map(axis, values.values, rows, result["other"].values)
        axis.set_title(title)
        axis.tick_params(axis="x", rotation=90)
    return axes
