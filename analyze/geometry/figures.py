"""Drawings of the shape of the states."""

from typing import Any

from analyze.drawing import MARKERS, PALETTE, legend_below


def plot_scores(result: Any, ax: Any) -> None:
    """Problems along the first two principal components of the last layer, by position."""
    for index, position in enumerate(result["position"].values):
        x, y = result["score"].sel(position=position).transpose("axis", "example").values
        marker = MARKERS[index // len(PALETTE) % len(MARKERS)]
        ax.scatter(
            x, y, s=5, marker=marker, color=PALETTE[index % len(PALETTE)], alpha=0.6, linewidths=0, label=position
        )
    ax.set(xlabel="first component", ylabel="second")
    legend_below(ax, 0.18, 4)
