"""Where a thought is read and where it acts: the picture of it, and the names of a place by either."""

from collections.abc import Sequence
from typing import Any

from analyze.drawing import HEAT, HEAT_NEGATIVE, INK, MUTED
from schemas.naming import By, fed_at, relabelled


def draw_places(ax: Any, thoughts: Sequence[str]) -> None:
    """The states from ``bot`` on above the vectors fed, and which is made of which.

    The state at a position is projected (handed on, or made a mixture of words), and the result is fed at the next:
    what is read at ``ct0`` acts at ``ct1``.
    """
    states = ["bot", *thoughts]
    box: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5, "family": "monospace", "color": INK}
    frame = {"boxstyle": "round,pad=0.35", "facecolor": "none", "linewidth": 1.1}
    for place, state in enumerate(states):
        ax.text(place, 1, state, **box, bbox={**frame, "edgecolor": HEAT})
        if place:
            ax.text(place, 0, state, **box, bbox={**frame, "edgecolor": HEAT_NEGATIVE})
            ax.annotate("", (place, 0.72), (place, 0.28), arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 0.9})
        if fed_at(state) in states:
            ends = (place + 0.72, 0.26), (place + 0.24, 0.74)
            ax.annotate("", *ends, arrowprops={"arrowstyle": "->", "color": HEAT_NEGATIVE, "lw": 1.4})
    ax.text(-0.75, 1, "state at", ha="right", va="center", fontsize=8.5, color=HEAT)
    ax.text(-0.75, 0, "fed at", ha="right", va="center", fontsize=8.5, color=HEAT_NEGATIVE)
    if len(thoughts) > 1:
        ax.text(1, 1.42, "what is read here", ha="center", fontsize=8, color=HEAT)
        ax.text(2, -0.5, "acts here", ha="center", fontsize=8, color=HEAT_NEGATIVE)
    ax.set_xlim(-1.9, len(states) - 0.4)
    ax.set_ylim(-0.75, 1.7)
    ax.axis("off")


def both_names(positions: str, given: By, last: str = "") -> dict[By, str]:
    """A position, or several joined by ``+``, by its state and by where that is fed.

    What is made of the ``last`` thought's state is fed nowhere: ``-``.
    """
    names: dict[By, str] = {}
    for by in ("state", "fed"):
        renamed = relabelled(positions.split("+"), by, read=given)
        names[by] = "+".join(
            "-" if given == "state" and by == "fed" and name == fed_at(last) else name for name in renamed
        )
    return names
