"""Drawing for the page and for notebooks: one style, a look for each run, bars, curves and maps.

Colours differ in lightness and markers in shape, so that figures read in grey and with any colour vision. Functions
take axes and numbers and compute nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from schemas import Control, UsageError
from schemas.controls import control_by_name

INK, MUTED, RULE, PAPER, HEAT, HEAT_NEGATIVE = "#1a1c1f", "#666c73", "#d8dbdf", "#fefefe", "#0b4f8a", "#b3541e"
ON_HEAT, BLACK = "#010101", "#020202"
TURNS = {HEAT: (0.592, 0.758), HEAT_NEGATIVE: (0.608, 0.951)}
"""Text on a heat below the first strength: black, in the dark white; then black in both; above the second as paper."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b0558f")
"""Blue, vermilion, green, purple of Okabe and Ito: told apart with any colour vision; markers differ as well."""
MARKERS = ("o", "s", "^", "D")
CONTROL_LINES = {
    "decodable": (0, (4, 2)), "multipass-pause": (0, (5, 1.5, 1, 1.5)), "pause": (0, (1, 1.5)), "direct": (0, (8, 3)),
    "cot": (0, (3, 1, 1, 1, 1, 1)),
}  # fmt: skip
CONTROL_HATCHES = {"decodable": "////", "multipass-pause": "oo", "pause": "....", "direct": "---", "cot": "\\\\\\\\"}
CONTROL_MARKERS = {"multipass-pause": "P", "pause": "v", "direct": "X", "cot": "*"}
"""Controls are hollow in the colour of the model they are of, and told apart by line, hatch and marker; the decodable
twin has its model's marker."""

STYLE = {
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.7,
    "figure.constrained_layout.use": True,
}

Results = xr.Dataset | Mapping[str, xr.Dataset]
Series = tuple[Any, ...]
"""A :class:`Look`, its values, and the ends of their intervals or ``None``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How one run is drawn everywhere."""

    label: str
    colour: str
    marker: str = "o"
    control: str = ""
    """Kind of control, of :data:`schemas.controls.CONTROLS`."""
    hatch: str = ""

    @property
    def face(self) -> str:
        """Colour that a marker or bar is filled with."""
        return PAPER if self.control or self.hatch else self.colour

    def line(self) -> dict[str, Any]:
        """Arguments of a line with markers."""
        return {
            "color": self.colour,
            "marker": CONTROL_MARKERS.get(self.control, self.marker),
            "linestyle": CONTROL_LINES.get(self.control, "-"),
            "markerfacecolor": PAPER if self.control else self.colour,
            "markeredgecolor": self.colour,
            "label": self.label,
        }

    def bar(self) -> dict[str, Any]:
        """Arguments of a bar."""
        return {
            "facecolor": self.face,
            "edgecolor": self.colour,
            "hatch": self.hatch or CONTROL_HATCHES.get(self.control, ""),
            "linewidth": 1.0,
            "label": self.label,
        }


def looks(
    runs: Sequence[str], labels: Sequence[str] | None = None, controls: Mapping[str, Control] | None = None
) -> dict[str, Look]:
    """A look for each run; a model and its controls share the colour.

    ``controls`` are those of :func:`schemas.controls.control_among`; by default what names say.
    """
    families: list[str] = []
    look_of = {}
    for run, label in zip(runs, labels or runs, strict=True):
        model = run.partition("/")[0]
        control = control_by_name(model) if controls is None else controls.get(model)
        family, kind = (model, "") if control is None else control
        if family not in families:
            families.append(family)
        index = families.index(family) % len(PALETTE)
        look_of[run] = Look(label=label, colour=PALETTE[index], marker=MARKERS[index], control=kind)
    return look_of


def looks_of_models(runs: Sequence[str]) -> dict[str, Look]:
    """Looks named by the model alone, where no two runs are of one."""
    models = [run.partition("/")[0] for run in runs]
    return looks(runs, models if len(set(models)) == len(models) else None)


def by_run(results: Results) -> dict[str, xr.Dataset]:
    """Results by the name of their run."""
    if isinstance(results, xr.Dataset):
        return {str(results.attrs.get("run", "run")): results}
    if not results:
        raise UsageError("there is nothing to draw: no result was given")
    return dict(results)


def figure(width: float = 4.6, height: float = 3.0, **arguments: Any) -> tuple[Figure, Any]:
    """Figure of the page's style outside pyplot, and its axes; ``arguments`` go to ``subplots``."""
    with mpl.rc_context(STYLE):
        empty = Figure(figsize=(width, height), layout="constrained")
        axes = empty.subplots(**arguments)
    return empty, axes


def panels(
    n: int, ax: Any = None, *, columns: int | None = None, size: tuple[float, float] = (4.0, 3.2), sharey: bool = False
) -> list[Any]:
    """Axes for ``n`` panels: the ones given, or those of a new figure of pyplot, as notebooks show it."""
    if ax is not None:
        given = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(given) < n:
            raise UsageError(f"the figure has {n} panels; ax holds {len(given)} axes")
        return given[:n]
    import matplotlib.pyplot as plt

    columns = min(n, columns or n)
    rows = -(-n // columns)
    _, grid = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False, sharey=sharey, layout="constrained"
    )
    axes = list(grid.ravel())
    for spare in axes[n:]:
        spare.remove()
    return axes[:n]


def faint_grid(ax: Axes, axis: str = "y") -> None:
    """Thin lines behind the data."""
    ax.set_axisbelow(True)
    ax.grid(visible=True, axis=axis)  # type: ignore[arg-type]


def heat_map(
    ax: Axes,
    values: Any,
    rows: Any,
    columns: Any,
    *,
    low: float = 0.0,
    high: float = 1.0,
    text: str | None = "{:.2f}",
    labels: np.ndarray | None = None,
    size: float = 7.5,
    gap: str = "·",
) -> None:
    """Cells of one hue whose strength is the value; negative ones in a second hue; NaN empty.

    Parameters
    ----------
    values : (row, column)
        The first row is drawn at the top.
    low, high
        Values of no and of full strength; a negative value has that of its size.
    text
        Format of the number in each cell; ``None`` leaves it out.
    labels : (row, column), str
        Text of the cells instead.
    gap
        Text where there is no value.
    """
    values = np.asarray(values, dtype="float64")
    known = np.isfinite(values)
    strength = np.clip((np.abs(values) - low) / max(high - low, 1e-12), 0, 1)
    strength = np.where(known, 0.04 + 0.92 * strength, 0.0)
    for row, column in np.ndindex(*values.shape):
        value, full, there = values[row, column], float(strength[row, column]), bool(known[row, column])
        hue = HEAT_NEGATIVE if value < 0 else HEAT
        if there:
            # No add_patch, which asks where each cell lies: the limits are set below.
            ax.add_artist(mpl.patches.Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, fc=(*to_rgb(hue), full), lw=0))
        if not there:
            shown = gap
        elif labels is not None:
            shown = str(labels[row, column])
        else:
            shown = "" if text is None else text.format(value)
            shown = shown.removeprefix("-") if not shown.strip("-0.") else shown  # no minus before a zero
        if shown:
            dark, light = TURNS[hue]
            colour = (PAPER if full > light else BLACK if full > dark else ON_HEAT) if there else MUTED
            ax.text(column + 0.5, row + 0.52, shown, ha="center", va="center", fontsize=size, color=colour)
    if _width(max((cell.get_text() for cell in ax.texts), key=len, default=""), size) > _cell_width(ax, columns):
        for cell in list(ax.texts):  # they would lie on each other
            cell.remove()
    _name_cells(ax, rows, columns)


@lru_cache(maxsize=1024)
def _width(text: str, size: float) -> float:
    """Of a text, in points."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) if text.strip() else 0.0


def _cell_width(ax: Axes, columns: Any) -> float:
    return float(ax.bbox.width * 72 / ax.figure.dpi / max(1, len(columns)))


def _name_cells(ax: Axes, rows: Any, columns: Any) -> None:
    """Name rows and columns: upright where they would lie on each other, of very many every second or third."""
    ax.set_xlim(0, len(columns))
    ax.set_ylim(len(rows), 0)
    names = [str(x) for x in columns]
    size = FontProperties(size=mpl.rcParams["xtick.labelsize"]).get_size_in_points()
    upright = _width(max(names, key=len, default=""), size) > _cell_width(ax, columns)
    every = max(1, math.ceil(size / _cell_width(ax, columns))) if upright else 1
    ax.set_xticks(np.arange(0, len(columns), every) + 0.5, names[::every], rotation=90 if upright else 0)
    ax.set_yticks(np.arange(len(rows)) + 0.5, [str(x) for x in rows])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def colour_bar(axes: Sequence[Any], label: str, *, low: float = 0.0, high: float = 1.0) -> None:
    """One scale beside the axes: the strength of :func:`heat_map` between ``low`` and ``high``."""
    shades = LinearSegmentedColormap.from_list("heat", [PAPER, HEAT])
    image = mpl.cm.ScalarMappable(Normalize(low, high), shades)
    bar = axes[0].figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def bars(ax: Axes, groups: Sequence[Any], series: Sequence[Series], *, form: str | None = None) -> None:
    """Grouped bars with their intervals; NaN leaves a gap.

    Parameters
    ----------
    series
        For each look its heights, and the ends of the intervals or ``None``.
    form
        Format of a value written above its bar.
    """
    n = max(1, len(series))
    width = 0.82 / n
    place = np.arange(len(groups))
    for index, (look, heights, low, high) in enumerate(series):
        x = place + (index - (n - 1) / 2) * width
        values = np.asarray(heights, dtype="float64")
        ax.bar(x, np.nan_to_num(values), width * 0.92, **look.bar())
        if low is not None and high is not None:
            whiskers(ax, x, values, low, high)
        if form is not None:
            top = values if high is None else np.fmax(values, np.asarray(high, dtype="float64"))
            for middle, value, above in zip(x, values, top, strict=True):
                if np.isfinite(value):
                    ax.annotate(
                        format(value, form), (middle, max(above, 0)), (0, 2),
                        textcoords="offset points", ha="center", fontsize=7,
                    )  # fmt: skip
    ax.set_xticks(place, [str(group) for group in groups])
    ax.tick_params(axis="x", length=0)
    ax.margins(x=0.02)
    faint_grid(ax)


def bars_across(ax: Axes, names: Sequence[str], values: Any, low: Any = None, high: Any = None, **style: Any) -> None:
    """Bars from left to right, the first at the top, with their intervals; shares from 0 to 1."""
    y = np.arange(len(names))
    style.pop("label", None)
    ax.barh(y, np.asarray(values, dtype="float64"), **({"height": 0.68} | style))
    if low is not None and high is not None:
        ends = (np.asarray(end, dtype="float64") for end in (low, high))
        ax.hlines(y, *ends, color=INK, linewidth=1)
    ax.set_yticks(y, list(names))
    ax.invert_yaxis()
    as_percent(ax, "x")
    faint_grid(ax, "x")


def whiskers(ax: Axes, x: Any, values: Any, low: Any, high: Any, *, colour: str = INK) -> None:
    """Intervals as thin lines through the values; NaN is left out."""
    x, values, low, high = (np.asarray(array, dtype="float64") for array in (x, values, low, high))
    known = np.isfinite(values) & np.isfinite(low) & np.isfinite(high)
    if known.any():
        # vlines, not errorbar: a percentile interval need not hold the estimate itself
        ax.vlines(x[known], low[known], high[known], color=colour, linewidth=1.0)


def band(ax: Axes, x: Any, low: Any, high: Any, colour: str, alpha: float = 0.13) -> None:
    """Interval or range of a line as a shade."""
    x, low, high = (np.asarray(array, dtype="float64") for array in (x, low, high))
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        ax.fill_between(x[known], low[known], high[known], color=colour, alpha=alpha, linewidth=0)


def reference(ax: Axes, value: float, axis: str = "y") -> None:
    """A dashed line at what would be without the change."""
    draw = ax.axhline if axis == "y" else ax.axvline
    draw(value, color=INK, linewidth=1, linestyle=(0, (2, 2)))


def as_percent(ax: Axes, axis: str = "y") -> None:
    """Ticks of shares as percentages."""
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_major_formatter(Percent())


def slanted(ax: Axes) -> None:
    """Long labels below an axis: slanted, each ending at its mark, so that none lies on the next."""
    for label in ax.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor")


class Percent(mpl.ticker.Formatter):
    """Shares as percentages with as many decimals as the ticks have: those at halves are not rounded."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """One tick alone."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All ticks of an axis, with the same decimals."""
        values = [100 * float(value) for value in values]
        enough = (digits for digits in range(4) if all(abs(round(x, digits) - x) < 1e-6 for x in values))
        digits = next(enough, 3)
        return [f"{x + 0.0:.{digits}f}%" for x in values]


def legend_above(ax: Axes, n_column: int = 2) -> None:
    """Legend over the axes, where it hides no data."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=n_column, borderaxespad=0.2, columnspacing=1.4)


def thinned(count: int) -> range:
    """Numbers of the ticks that have room, of so many: about 16."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if count <= 16 * step or step == 100)
    return range(0, count, step)


def legend_below(ax: Axes, distance: float = 0.2, n_column: int = 2) -> None:
    """Legend under the axes and their labels."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -distance), ncols=n_column, fontsize=7.5)
