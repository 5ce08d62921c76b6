"""Drawings of what re-entries found."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import HEAT, HEAT_NEGATIVE, INK, MUTED, PAPER, Look, bars, thinned
from analyze.tables import Frame, rows_with, triple

GROUPS = {
    "numbers": Look(label="thoughts that read as numbers", colour=HEAT),
    "others": Look(label="the other thoughts", colour=HEAT_NEGATIVE, hatch="////"),
    "random like numbers": Look(label="as many at random", colour=MUTED, hatch="...."),
    "all": Look(label="all thoughts", colour=INK, hatch="xxxx"),
}
"""Groups of thoughts that are taken out together."""
N_NODE, N_EDGE = 24, 40
"""Nodes and edges of the drawing."""


def plot_attribution(data: xr.Dataset, colour: str, ax: Any) -> None:
    """The best nodes, positions from left to right and layers upwards, and the strongest edges.

    ``data`` is a result of ``lake reenter attribute``.
    """
    positions = list(dict.fromkeys(_ordered(data["position"].values.astype(str))))
    spot = _spots(data, positions)
    score = data["score"].values
    edges = np.argsort(-np.abs(data["edge_score"].values), kind="stable")[:N_EDGE]
    strongest = float(np.abs(data["edge_score"].values[edges]).max(initial=1e-12))
    for edge in edges:
        start = spot[int(data["sender"].values[edge])]
        end = _reader_place(data, int(edge), start)
        weight = abs(float(data["edge_score"].values[edge])) / strongest
        ax.plot([start[0], end[0]], [start[1], end[1]], color=colour, alpha=0.15 + 0.6 * weight,
                linewidth=0.5 + 2 * weight, zorder=1)  # fmt: skip
    senders = np.unique(data["sender"].values[edges])
    best = np.union1d(np.argsort(-np.abs(score), kind="stable")[:N_NODE], senders)
    size = 12 + 160 * np.abs(score[best]) / max(float(np.abs(score).max()), 1e-12)
    colours = [colour if value > 0 else PAPER for value in score[best]]
    ax.scatter(*spot[best].T, s=size, c=colours, edgecolors=colour, linewidths=0.8, zorder=2)
    ax.set_xticks(range(len(positions)), positions)
    n_layer = int(data["layer"].max()) + 1
    ticks = [layer for layer in thinned(n_layer) if layer or n_layer < 17]  # "fed" stands close below the first
    ax.set_yticks([-0.6, *(layer + 0.35 for layer in ticks)], ["fed", *map(str, ticks)])
    ax.set_ylabel("layer")


def _ordered(positions: Any) -> list[str]:
    """Positions in the order of the sequence: they come in it for every head."""
    heads = [str(position) for position in positions]
    first = heads.index("bot") if "bot" in heads else 0
    return [*heads[first:], *heads[:first]]


def _spots(data: xr.Dataset, positions: list[str]) -> Any:
    """Where each node is drawn ``(node, 2)``: heads of a layer side by side, its MLP above them, fed vectors below."""
    x = np.array([positions.index(str(position)) for position in data["position"].values], dtype=float)
    kind, layer, head = (data[name].values for name in ("kind", "layer", "head"))
    n_head = max(int(head.max()) + 1, 1)
    x += np.where(kind == "head", (head - (n_head - 1) / 2) / n_head * 0.6, 0.0)
    y = np.where(kind == "fed", -0.6, layer + np.where(kind == "mlp", 0.55, 0.15))
    return np.stack([x, y.astype(float)], axis=1)


def _reader_place(data: xr.Dataset, edge: int, start: Any) -> tuple[float, float]:
    """Where an edge ends: at the attention or MLP of the reading layer, or above the last one, of the same position."""
    reader, layer = str(data["reader"].values[edge]), int(data["reader_layer"].values[edge])
    return round(float(start[0])), layer + {"attention": 0.05, "mlp": 0.45, "final": 0.1}[reader]


def plot_groups(rows: Frame, places: Sequence[str], ax: Any) -> None:
    """Accuracy by place for each group of thoughts.

    ``rows`` are conditions of one operation, of groups of :data:`GROUPS`.
    """
    of_group = {name: rows_with(rows, group=name).drop_duplicates("place").set_index("place") for name in GROUPS}
    there = [name for name in GROUPS if len(of_group[name])]
    bars(ax, places, [(GROUPS[name], *triple(of_group[name].reindex(places), "accuracy")) for name in there])
    ax.tick_params(axis="x", length=3)
    if len(places) > 6:
        ax.tick_params(axis="x", labelrotation=60, labelsize=7.5)
