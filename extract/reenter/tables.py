"""What experiments print of their results: a line for each condition, and figures as words."""

from collections.abc import Sequence
from typing import Any

from schemas.command import Table

ACCURACY = ("n", "accuracy 95%", "drop", "p", "p Holm", "KL")
"""Columns of a table of accuracy."""


def accuracy_table(result: Any, labels: Sequence[str]) -> Table:
    """Accuracy under each condition of :func:`extract.reenter.statistics.with_accuracy`, named by some coordinates."""
    overall = result.sel(stratum="all")
    rows = []
    for index in range(overall.sizes["condition"]):
        condition = overall.isel(condition=index)
        row = [label_text(label, condition[label].item()) if label in condition.coords else "" for label in labels]
        rows.append([*row, str(int(condition["n"])), *accuracy_cells(condition)])
    return Table(title="", columns=[*labels, *ACCURACY], rows=rows, labels=len(labels))


def accuracy_cells(condition: Any) -> list[str]:
    """Figures of one condition as words: accuracy with its interval, drop, p, p corrected, KL."""
    return [
        interval_text(condition, "accuracy"),
        f"{float(condition['drop']):+.3f}",
        p_text(condition["p"]),
        p_text(condition["p_holm"]),
        f"{float(condition['kl_mean']):.2f}",
    ]


def p_text(p: Any) -> str:
    """A p-value; a dash where there is none, as of a control that is not among the tests corrected for."""
    return f"{float(p):.1e}" if float(p) == float(p) else "-"


def interval_text(condition: Any, name: str) -> str:
    """A share and its interval."""
    value, low, high = (float(condition[name + bound]) for bound in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"


def label_text(label: str, value: Any) -> str:
    """A coordinate as a word."""
    if label == "layer":
        return "all" if value == -1 else str(value)
    if isinstance(value, float):
        return "" if value != value else f"{value:+g}"
    return str(value)
