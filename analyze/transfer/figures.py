"""Drawings of what is fitted on one run and tested on another."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import heat_map, panels, slanted
from analyze.transfer.matrix import scores_of


def plot_transfer(result: xr.Dataset, *, ax: Any = None) -> list[Any]:
    """Score of every fit (row) on every run (column), one panel for each kind; below, each run's own fit.

    ``result`` is from :func:`analyze.transfer.linear.transfer_probes`; it takes as many axes as kinds.
    """
    main, _ = scores_of(result)
    kinds = result["kind"].values
    axes = panels(len(kinds), ax, size=(4.6, 1.4 + 0.35 * result.sizes["fit"]))
    for axis, kind in zip(axes, kinds, strict=True):
        part = result.sel(kind=kind)
        matrix = part[main].mean([dim for dim in part[main].dims if dim not in ("fit", "test")])
        own = part[f"own_{main}"].mean([dim for dim in part[f"own_{main}"].dims if dim != "test"])
        values = np.concatenate([matrix.transpose("fit", "test").values, own.values[None]])
        labels = np.where(values < -1, "< -1", np.array([[f"{x:.2f}" for x in row] for row in values]))
        heat_map(axis, np.clip(values, -1, 1), [*part["fit"].values, "own"], part["test"].values, labels=labels)
        axis.set(title=f"{kind}, {result.attrs['target']}: {main}", ylabel="fitted on", xlabel="tested on")
        slanted(axis)
    return axes


def plot_pairs(result: xr.Dataset, name: str, *, high: float = 1.0, ax: Any = None) -> Any:
    """Mean over layers and positions for every fit (row) and run (column); below, each run's own.

    ``result`` is from :func:`analyze.transfer.dictionary.transfer_dictionaries` or
    :func:`analyze.transfer.tuned.transfer_lenses`, ``name`` one of its variables, ``high`` the value of full strength.
    """
    (axis,) = panels(1, ax, size=(4.6, 1.4 + 0.35 * result.sizes["fit"]))
    matrix = result[name].mean(["layer", "position"]).transpose("fit", "test").values
    values = np.concatenate([matrix, result[f"own_{name}"].mean(["layer", "position"]).values[None]])
    labels = np.array([[f"{value:.2f}" for value in row] for row in values])
    rows = [*result["fit"].values, "own"]
    heat_map(axis, np.clip(values, -high, high), rows, result["test"].values, labels=labels, high=high)
    axis.set(ylabel="fitted on", xlabel="tested on")
    slanted(axis)
    return axis
