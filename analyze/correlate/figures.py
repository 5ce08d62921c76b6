"""Drawings of attention beside importance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.correlate.rows import KINDS
from analyze.drawing import INK, MUTED, PALETTE, Look, faint_grid, legend_below, thinned
from analyze.tables import triple


def plot_correlations(result: xr.Dataset, kinds: Sequence[str], ax: Any) -> None:
    """Each kind of correlation by layer, with its interval.

    ``result`` is from :func:`analyze.correlate.correlation.attention_importance`; kinds are of
    :data:`analyze.correlate.rows.KINDS`.
    """
    layers = [int(x) for x in result["layer"].values]
    for index, kind in enumerate(kinds):
        x = np.arange(len(layers)) + (index - (len(kinds) - 1) / 2) * 0.12
        r, low, high = triple(result, f"{kind}_r")
        colour = (INK, *PALETTE)[index]
        ax.plot(x, r, linestyle="none", marker="osD^"[index], color=colour, label=KINDS[kind])
        ax.vlines(x, low, high, color=colour, linewidth=1)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set_ylim(-1.02, 1.02)
    ticks = thinned(len(layers))
    ax.set_xticks(ticks, [f"layer {layers[at]}" if len(layers) < 7 else layers[at] for at in ticks])
    faint_grid(ax)
    ax.set_ylabel("Pearson's r")
    legend_below(ax, 0.1, 1)


def plot_means(layer: xr.Dataset, look: Look, ax: Any) -> None:
    """Mean attention and mean importance of each thought at a layer, as points with names."""
    x, y = (np.asarray(layer[name].values, dtype=float) for name in ("mean_attention", "mean_importance"))
    ax.plot(x, y, marker=look.marker, color=look.colour, linestyle="none")
    for place, position in enumerate(layer["position"].values):
        # names of points close together go to different sides
        near = (np.abs(x[:place] - x[place]) < 0.12 * np.ptp(x)) & (np.abs(y[:place] - y[place]) < 0.1 * np.ptp(y))
        offset = ((6, 3), (-22, 3), (6, -10), (-22, -10))[near.sum() % 4]
        ax.annotate(str(position), (x[place], y[place]), xytext=offset, textcoords="offset points", fontsize=8)
    ax.margins(0.2)
    faint_grid(ax, "both")
    ax.set_xlabel("mean attention of the answer")
