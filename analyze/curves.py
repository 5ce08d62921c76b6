"""Curves with intervals, and the range of random draws beside them."""

from collections.abc import Sequence
from typing import Any

from analyze.drawing import MUTED, Look, band, looks, whiskers
from analyze.tables import Frame, rows_with, triple


def curve(ax: Any, look: Look, x: Any, values: Sequence[Any], *, shade: bool = False, **style: Any) -> None:
    """A line with markers and its intervals: thin lines, or a ``shade``; ``style`` goes before the look.

    ``values`` are those of the line and of both ends, see :func:`analyze.tables.triple`.
    """
    value, low, high = values
    ax.plot(x, value, **look.line() | style)
    if low is not None and high is not None:
        colour = style.get("color", look.colour)
        band(ax, x, low, high, colour) if shade else whiskers(ax, x, value, low, high, colour=colour)


def curves(ax: Any, rows: Frame, by: str, x: str, value: str, label: str = "{}") -> None:
    """A line for each label of the column ``by``, of the column ``value`` over ``x``."""
    for name, look in looks(list(dict.fromkeys(rows[by].astype(str)))).items():
        line = rows_with(rows, **{by: name}).sort_values(x)
        curve(ax, look, line[x], triple(line, value), label=label.format(name))


def random_curve(ax: Any, rows: Frame, x: str, value: str, label: str) -> None:
    """Mean and range, in grey, of a column of random draws over another one."""
    draws = rows.groupby(x)[value].agg(["mean", "min", "max"])
    if len(draws):
        ax.plot(draws.index, draws["mean"], color=MUTED, linestyle=":", marker="^", label=label)
        band(ax, draws.index, draws["min"], draws["max"], MUTED, 0.18)
