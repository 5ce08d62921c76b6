"""A graph between thoughts as a drawing: nodes in order of time, edges as arcs."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from analyze.drawing import HEAT, INK, MUTED, PAPER, figure

LETTERS = 4
"""Letters of a node's name that fit into its circle; longer ones stand below it."""


def plot_graph(
    graph: xr.Dataset, operation: str, *, effect: str = "direct", stratum: str = "all", ax: Axes | None = None
) -> Axes:
    """Draw the effects of a graph as arcs between its nodes; those that are edges in colour.

    Parameters
    ----------
    graph
        Result of ``lake reenter graph``.
    operation, effect, stratum
        Which effects; an arc's width is the share of problems in which its target reads otherwise.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    Axes
    """
    if ax is None:
        ax = figure(6.4, 2.6)[1]
    part = graph.sel(operation=operation, effect=effect, stratum=stratum)
    nodes = [str(node) for node in part["target"].values]
    for start, source in enumerate(part["source"].values):
        for end in range(start + 1, len(nodes)):
            edge = part.sel(source=source, target=nodes[end])
            share = float(edge["state_flip_mean"])
            if share > 0.01:
                _arc(ax, start, end, share, is_edge=bool(edge["edge"]))
    ax.scatter(np.arange(len(nodes)), np.zeros(len(nodes)), s=520, color=PAPER, edgecolors=INK, zorder=3)
    for place, node in enumerate(nodes):
        inside = len(node) <= LETTERS
        ax.text(place, 0 if inside else -0.22, node, ha="center", va="center", fontsize=7, zorder=4)
    ax.set_xlim(-0.5, len(nodes) - 0.5)
    ax.set_ylim(-0.3, 0.35 + 0.12 * len(nodes))
    ax.set_axis_off()
    ax.set_title(f"{effect} effects, {operation}")
    return ax


def _arc(ax: Axes, start: int, end: int, share: float, *, is_edge: bool) -> None:
    arrow: Any = FancyArrowPatch(
        (start, 0.12), (end, 0.12), connectionstyle=f"arc3,rad=-{0.25 + 0.2 / (end - start):.3f}", arrowstyle="-|>",
        mutation_scale=9, linewidth=0.4 + 3 * share, color=HEAT if is_edge else MUTED, alpha=0.9 if is_edge else 0.5,
        zorder=2 if is_edge else 1,
    )  # fmt: skip
    ax.add_patch(arrow)
