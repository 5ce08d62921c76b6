"""Drawing of how well errors are foreseen."""

from typing import Any

import numpy as np

from analyze.drawing import INK, MUTED, Look, faint_grid
from analyze.tables import Frame


def plot_predictors(rows: Frame, look: Look, ax: Any) -> None:
    """AUROC of each predictor with its interval."""
    y = np.arange(len(rows))
    ax.plot(rows["auroc"], y, **look.line() | {"linestyle": "none", "label": None})
    ax.hlines(y, rows["auroc_low"], rows["auroc_high"], color=INK, linewidth=1)
    ax.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_yticks(y, rows["predictor"])
    ax.set_xlim(0, 1.02)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    faint_grid(ax, "x")
    ax.set_xlabel("AUROC")
