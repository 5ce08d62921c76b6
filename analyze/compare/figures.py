"""Figures of a comparison: report 004's seven panels, and differences with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.compare.twins import USED
from analyze.drawing import INK, MUTED, PAPER, RULE, Look, bars, faint_grid, looks_of_models, panels
from analyze.heads.figures import SHORT_TYPES
from analyze.labels import thought_labels
from schemas import UsageError

Looks = Mapping[str, Look]
"""How each model is drawn."""


def plot_seven_panels(result: xr.Dataset, *, looks: Looks | None = None, ax: Any = None) -> list[Any]:
    """Heads of all models in seven panels: hubs, composite, types, bands, mean scores, sequential and skip attention.

    Parameters
    ----------
    result
        From :func:`analyze.compare.differences.compare`.
    looks
        How each model is drawn; by default colours by family.
    ax
        Seven axes; a new figure's if absent.
    """
    if "hub_received" not in result:
        raise UsageError("the comparison has no heads; run lake analyze heads for its runs first")
    axes = panels(len(SEVEN), ax, columns=3, size=(4.2, 3.0))
    looks = looks_of_models([str(run) for run in result["model"].values]) if looks is None else looks
    for axis, (title, draw) in zip(axes, SEVEN, strict=True):
        draw(result, looks, axis)
        axis.set_title(title)
    axes[0].legend(fontsize=7)
    return axes


def grouped_bars(
    result: xr.Dataset, looks: Looks, axis: Any, groups: Sequence[str], values: Callable[[xr.Dataset], Any]
) -> None:
    """One bar of each model for each group."""
    of_model = {str(run): result.isel(model=index) for index, run in enumerate(result["model"].values)}
    bars(axis, groups, [(looks[run], values(one), None, None) for run, one in of_model.items()])


def lines(result: xr.Dataset, looks: Looks, axis: Any, labels: Any, values: Callable[[xr.Dataset], Any]) -> None:
    """One line of each model."""
    for index, run in enumerate(map(str, result["model"].values)):
        heights = np.asarray(values(result.isel(model=index)), dtype=float)
        axis.plot(np.arange(len(labels)), heights, **looks[run].line() | {"markersize": 4})
    axis.set_xticks(np.arange(len(labels)), [str(x) for x in labels])


def _hubs(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    thoughts = thought_labels(result)
    part = result.sel(position=thoughts)
    grouped_bars(part, looks, axis, thoughts, lambda one: one["hub_received"])
    n = part.sizes["model"]
    for index in range(n):
        centres = np.arange(len(thoughts)) + (index - (n - 1) / 2) * 0.82 / n
        axis.hlines(
            part["hub_expected"].isel(model=index), centres - 0.4 / n, centres + 0.4 / n, color=INK, linewidth=1.4
        )
    axis.set_ylabel("attention received")


def _composite(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    lines(result, looks, axis, result["rank"].values, lambda one: one["composite"])
    step = max(1, result.sizes["rank"] // 8)
    axis.set_xticks(np.arange(0, result.sizes["rank"], step), [str(x) for x in result["rank"].values[::step]])
    axis.set_xlabel("rank")
    axis.set_ylabel("composite")


def _types(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    grouped_bars(
        result,
        looks,
        axis,
        [SHORT_TYPES.get(str(t), str(t)) for t in result["type"].values],
        lambda one: one["type_count"],
    )
    axis.tick_params(axis="x", labelsize=8)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("heads")


def _bands(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    grouped_bars(result, looks, axis, [str(b) for b in result["band"].values], lambda one: one["band_count"])
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("heads")


def _means(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    names = ("mean_hub", "mean_skip", "mean_sequential")
    grouped_bars(result, looks, axis, ["hub", "skip", "sequential"], lambda one: [float(one[name]) for name in names])
    axis.set_ylabel("mean over heads")


def _skip(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    thoughts = [t for t in thought_labels(result) if result["skip"].sel(position=t).notnull().any()]
    lines(result.sel(position=thoughts), looks, axis, thoughts, lambda one: one["skip"])
    axis.set_ylabel("attention of the last thought")


def _ratio(result: xr.Dataset, looks: Looks, axis: Any) -> None:
    thoughts = [t for t in thought_labels(result) if (result["hub_expected"].sel(position=t) > 0).any()]
    part = result.sel(position=thoughts)
    lines(part, looks, axis, thoughts, lambda one: (one["hub_received"] / one["hub_expected"]).values)
    axis.axhline(1, color=MUTED, linewidth=0.8)
    axis.set_ylabel("times an even spread")


SEVEN: Sequence[tuple[str, Callable[[xr.Dataset, Looks, Any], None]]] = (
    ("Attention received by thought", _hubs),
    ("Hub ratio", _ratio),
    ("Composite of the top heads", _composite),
    ("Types of the top heads", _types),
    ("Where the top heads lie", _bands),
    ("Mean scores", _means),
    ("Skip attention", _skip),
)
"""Panels of report 004's comparison, which drew types and bands of two models in panels of their own."""


def plot_differences(table: pd.DataFrame, *, ax: Any = None) -> list[Any]:
    """Differences with their intervals; hollow where they are not paired.

    Parameters
    ----------
    table
        Rows of :func:`analyze.compare.differences.difference_table`.
    """
    if table.empty:
        raise UsageError("there is no difference to draw")
    axis = panels(1, ax, size=(6.0, 0.8 + 0.24 * len(table)))[0]
    rows: list[Any] = list(table.itertuples())
    for y, row in enumerate(rows):
        sure = row.low > 0 or row.high < 0
        colour = INK if sure else MUTED
        axis.hlines(y, row.low, row.high, color=colour, linewidth=1.4)
        axis.plot(
            row.difference,
            y,
            marker="o",
            markersize=5,
            color=colour,
            markerfacecolor=colour if row.paired else PAPER,
        )
    axis.axvline(0, color=MUTED, linewidth=0.8)
    axis.set_yticks(np.arange(len(table)), [f"{row.what.replace('_', ' ')} {row.where}".strip() for row in rows])
    axis.set_ylim(len(table) - 0.4, -0.6)
    return [axis]


def plot_twins(rows_of: Mapping[str, Any], own: Look, looks: Looks, ax: Any) -> None:
    """Each measure as a mark of the model and one of each control on a line.

    ``rows_of`` has by control the rows of :func:`analyze.compare.twins.measure_rows`.
    """
    longest = max(rows_of.values(), key=len)
    used = (longest["kind"] == USED).to_numpy()
    lines = np.arange(len(longest)) + 1.4 * used  # a gap between what can be read and what is used
    places = dict(zip(longest["what"], lines, strict=True))
    for rows in rows_of.values():
        y = rows["what"].map(places).to_numpy(dtype="float64")
        ax.hlines(
            y, rows[["model", "twin"]].min(axis=1), rows[["model", "twin"]].max(axis=1), color=RULE, linewidth=2.5
        )
    _marks(ax, lines, longest, "model", own, above=1)
    for other, rows in rows_of.items():
        _marks(ax, rows["what"].map(places).to_numpy(dtype="float64"), rows, "twin", looks[other])
    between = (~used).sum() + 0.2
    ax.axhline(between, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    for text, side, points in (("above: what can be read", "bottom", 2), ("below: what is used", "top", -2)):
        ax.annotate(
            text, (0.5, between), (0, points), textcoords="offset points", va=side, ha="center", fontsize=7,
            style="italic", color=MUTED,
        )  # fmt: skip
    ax.set_yticks(lines, longest["what"])
    ax.set_ylim(lines[-1] + 0.6, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.tick_params(axis="y", length=0)
    faint_grid(ax, "x")
    ax.set_xlabel("share of problems; of probes R²")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8)


def _marks(ax: Any, y: Any, rows: Any, of: str, look: Look, *, above: int = 0) -> None:
    """Values of a model with their intervals, ``above`` those of others."""
    known = (np.isfinite(rows[f"{of}_low"]) & np.isfinite(rows[f"{of}_high"])).to_numpy()
    ends = (rows[f"{of}{end}"][known] for end in ("_low", "_high"))
    ax.hlines(y[known], *ends, color=look.colour, linewidth=1.2, zorder=2)
    ax.plot(rows[of], y, **look.line() | {"linestyle": "none", "markersize": 6, "zorder": 3 + above})
