"""Drawings of features: what taking each out does, and which two models share."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import INK, MUTED, faint_grid, legend_below, reference

LEAST = 1e-5
"""Nat below which an effect is drawn at the edge of the figure: about what float32 leaves of nothing."""


def plot_effects(data: xr.Dataset, telling: Any, colour: str, ax: Any) -> None:
    """What each feature does to the answer against what random directions as long do.

    ``data`` is a result of ``lake reenter features``; features in ``telling`` (feature,), bool, are in colour.
    """
    own, random = (np.maximum(data[name].values, LEAST) for name in ("kl", "kl_random"))
    for chosen, hue, label in ((~telling, MUTED, "no more than chance"), (telling, colour, "more")):
        ax.scatter(random[chosen], own[chosen], s=12, color=hue, alpha=0.7, label=label)
    ends = [LEAST, max(100 * LEAST, float(max(own.max(), random.max())) * 1.5)]
    ax.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    ax.set(xscale="log", yscale="log", xlabel="random directions, nat", ylabel="the feature, nat")
    faint_grid(ax, "both")
    legend_below(ax)


def plot_shared(data: xr.Dataset, colour: str, ax: Any) -> None:
    """How far each feature is written by both models, and how far it fires on the same problems from either alone."""
    first, second = (str(model) for model in data["model"].values)
    for flag, hue in ((0, MUTED), (1, colour)):
        of_flag = np.flatnonzero(data["alive"].values.astype(bool) & (data["shared"].values.astype(int) == flag))
        x, y = data["share"].isel(model=0).values[of_flag], data["agreement"].values[of_flag]
        ax.scatter(x, y, s=12, color=hue, alpha=0.7, label=("not shared", "shared")[flag])
    reference(ax, float(data["agreement_null"]))
    ax.set(xlabel=f"share of the feature in {first} (rest in {second})", ylabel="agreement", xlim=(0, 1))
    ax.legend()
    faint_grid(ax)
