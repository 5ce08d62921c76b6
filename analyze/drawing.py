"""What all figures share: panels, bars and heatmaps that read in grey, one scale where things are compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from schemas import UsageError

Results = xr.Dataset | Mapping[str, xr.Dataset]
Labels = Sequence[Any] | np.ndarray[Any, Any]

FILLS = (
    {"color": "#23395d"},
    {"color": "#f2b45a", "hatch": "//"},
    {"color": "#7fa7c9", "hatch": ".."},
    {"color": "#b5482f", "hatch": "xx"},
    {"color": "#d9d9d9", "hatch": "\\\\"},
    {"color": "#4d7f57", "hatch": "++"},
    {"color": "#8d6aa8", "hatch": "oo"},
    {"color": "#ffffff", "hatch": "--"},
)
LINES = (
    {"color": "#23395d", "linestyle": "-", "marker": "o"},
    {"color": "#b5482f", "linestyle": "--", "marker": "s"},
    {"color": "#4d7f57", "linestyle": "-.", "marker": "^"},
    {"color": "#8d6aa8", "linestyle": ":", "marker": "D"},
    {"color": "#7a7a7a", "linestyle": "-", "marker": "v"},
    {"color": "#d08a1d", "linestyle": "--", "marker": "P"},
    {"color": "#3f8fa8", "linestyle": "-.", "marker": "X"},
    {"color": "#000000", "linestyle": ":", "marker": "*"},
)
SHADES = "Blues"
"""Light is little, dark is much, also in grey."""


def by_run(results: Results) -> dict[str, xr.Dataset]:
    """Results by the name of their run."""
    if isinstance(results, xr.Dataset):
        return {str(results.attrs.get("run", "run")): results}
    if not results:
        raise UsageError("there is nothing to draw: no result was given")
    return dict(results)


def panels(
    n: int, ax: Any = None, *, columns: int | None = None, size: tuple[float, float] = (4.0, 3.2), sharey: bool = False
) -> list[Any]:
    """Axes for ``n`` panels: the ones given, or a new figure's."""
    if ax is not None:
        axes = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) < n:
            raise UsageError(f"the figure has {n} panels; ax holds {len(axes)} axes")
        return axes[:n]
    columns = min(n, columns or n)
    rows = -(-n // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        squeeze=False,
        sharey=sharey,
        layout="constrained",
    )
    axes = list(grid.ravel())
    for spare in axes[n:]:
        spare.remove()
    return axes[:n]


def bars(
    ax: Any,
    series: Mapping[str, np.ndarray],
    ticks: Labels,
    *,
    error: Mapping[str, tuple[np.ndarray, ...]] | None = None,
    form: str | None = None,
    legend: bool = True,
) -> None:
    """Grouped bars, one group for each tick, with the bounds of intervals and values above where asked."""
    width = 0.8 / len(series)
    places = np.arange(len(ticks))
    for index, (name, values) in enumerate(series.items()):
        at = places + (index - (len(series) - 1) / 2) * width
        style = FILLS[index % len(FILLS)]
        ax.bar(at, values, width, label=name, edgecolor="black", linewidth=0.6, **style)
        top = np.asarray(values, dtype=float)
        if error is not None and name in error:
            low, high = (np.asarray(bound, dtype=float) for bound in error[name])
            spread = np.clip([values - low, high - values], 0, None)
            ax.errorbar(at, values, np.nan_to_num(spread), fmt="none", ecolor="black", elinewidth=1, capsize=2)
            top = np.fmax(top, high)
        if form is not None:
            for x, value, y in zip(at, values, top, strict=True):
                if np.isfinite(value):
                    text = format(value, form)
                    ax.annotate(text, (x, max(y, 0)), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    ax.set_xticks(places, [str(tick) for tick in ticks])
    ax.margins(y=0.12)
    if legend and len(series) > 1:
        ax.margins(y=0.25)
        ax.legend(loc="upper center", ncols=min(3, len(series)), fontsize=8, framealpha=0.9, edgecolor="white")


def heatmap(
    ax: Any,
    values: np.ndarray,
    rows: Labels,
    columns: Labels,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = SHADES,
    form: str | None = None,
    text: np.ndarray | None = None,
    upper: bool = False,
) -> Any:
    """Shaded cells with row and column names; returns the image, for a colour bar.

    ``form`` or ``text`` writes into the cells; ``upper`` draws row 0 at the bottom, as for layers.
    """
    values = np.asarray(values, dtype=float)
    image = ax.imshow(
        values,
        vmin=np.nanmin(values) if vmin is None else vmin,
        vmax=np.nanmax(values) if vmax is None else vmax,
        cmap=cmap,
        aspect="auto",
        origin="lower" if upper else "upper",
    )
    ax.set_xticks(range(len(columns)), [str(x) for x in columns], fontsize=8)
    step = -(-len(rows) // 24)
    ax.set_yticks(range(0, len(rows), step), [str(x) for x in rows[::step]], fontsize=8)
    for edge in ax.spines.values():
        edge.set_visible(False)
    if form is not None or text is not None:
        for i, j in np.ndindex(*values.shape):
            if np.isfinite(values[i, j]):
                label = format(values[i, j], str(form)) if text is None else str(text[i, j])
                red, green, blue, _ = image.cmap(image.norm(values[i, j]))
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                ax.text(j, i, label, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return image


def line(ax: Any, x: np.ndarray, y: np.ndarray, index: int, label: str, bounds: Any = None) -> None:
    """One line with markers, and a band between bounds."""
    style = LINES[index % len(LINES)]
    ax.plot(x, y, label=label, markersize=4, linewidth=1.4, **style)
    if bounds is not None:
        ax.fill_between(x, *bounds, color=style["color"], alpha=0.15, linewidth=0)


def one_scale(axes: Sequence[Any]) -> None:
    """Give all axes the widest limits any of them has along y."""
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def colour_bar(axes: Sequence[Any], image: Any, label: str) -> None:
    """One colour bar beside the axes."""
    bar = axes[0].figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
