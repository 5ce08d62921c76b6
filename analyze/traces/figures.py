"""Trees that explain problems by what their thoughts read as."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import INK, MUTED, RULE
from analyze.traces.nodes import nodes_of

DRAWN = 6
"""Problems whose tree is drawn."""


def telling(data: xr.Dataset) -> list[int]:
    """Rows of the problems shown: those counted with the longest trees, one that is not as written among them."""
    counted, length = data["counted"].values.astype(bool), data["tree"].str.count(";").values
    written = data["recovered"].values.astype(bool) & counted
    others = np.flatnonzero(~written & counted)[:1]
    best = np.setdiff1d(np.argsort(-length * written, kind="stable"), others, assume_unique=True)
    return [*map(int, best[: DRAWN - len(others)]), *map(int, others)]


def plot_trees(data: xr.Dataset, *, ax: Any) -> Any:
    """What each thought of some problems reads as, and the tree: framed what it uses, arrows from operand to result.

    ``data`` are examples of :func:`analyze.traces.traces.traces`, at one layer.
    """
    places = [*map(str, data["position"].values), "answer"]
    for row in range(data.sizes["example"]):
        nodes = nodes_of(str(data["tree"].values[row]))
        shown = {place: str(text) for place, text in zip(places, data["read"].values[row], strict=False)}
        for place, text in shown.items():
            ax.text(places.index(place), row, text, ha="center", va="center", fontsize=7, color=MUTED)
        for place, name, sources in nodes:
            frame = {"boxstyle": "round,pad=0.25", "facecolor": RULE, "edgecolor": INK, "linewidth": 0.6}
            ax.text(places.index(place), row, name, ha="center", va="center", fontsize=7.5, color=INK, bbox=frame)
            for source in sources:
                arrow = {"arrowstyle": "->", "color": INK, "linewidth": 0.7, "shrinkA": 9, "shrinkB": 9,
                         "connectionstyle": "arc3,rad=-0.25"}  # fmt: skip
                ax.annotate("", (places.index(place), row), (places.index(source), row), arrowprops=arrow)
    ax.set_xticks(range(len(places)), places, fontsize=7)
    ax.set_yticks(range(data.sizes["example"]), [str(int(x)) for x in data["example"].values], fontsize=7)
    ax.set_ylabel("example")
    ax.set_xlim(-0.6, len(places) - 0.4)
    ax.set_ylim(data.sizes["example"] - 0.4, -0.6)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax
