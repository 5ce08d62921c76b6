"""Drawing for the page: one style, heat maps that follow the theme, and SVG that can stand inside HTML."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER, HEAT, HEAT_NEGATIVE = "#1a1c1f", "#666c73", "#d8dbdf", "#fefefe", "#0b4f8a", "#b3541e"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b0558f")
"""Blue, vermilion, green, purple of Okabe and Ito: told apart with any colour vision; markers differ as well."""
MARKERS = ("o", "s", "^", "D")
HATCHES = ("", "////", "....", "xxxx")

THEMED = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    HEAT: "--heat",
    HEAT_NEGATIVE: "--heat-negative",
    **{colour: f"--series-{index}" for index, colour in enumerate(PALETTE)},
}
"""Colours of a drawing that the page replaces by its own, so that it follows the theme."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How one run is drawn everywhere."""

    label: str
    colour: str
    marker: str
    dashed: bool
    """Twins are dashed and hollow in their partner's colour."""
    hatch: str

    def line(self) -> dict[str, Any]:
        """Arguments of a line with markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": (0, (4, 2)) if self.dashed else "-",
            "markerfacecolor": PAPER if self.dashed else self.colour,
            "markeredgecolor": self.colour,
            "label": self.label,
        }

    def bar(self) -> dict[str, Any]:
        """Arguments of a bar."""
        return {
            "facecolor": PAPER if self.dashed else self.colour,
            "edgecolor": self.colour,
            "hatch": "////" if self.dashed else "",
            "linewidth": 1.0,
            "label": self.label,
        }


def looks(runs: Sequence[str], labels: Sequence[str] | None = None) -> dict[str, Look]:
    """A look for each run; a model and its ``-decodable`` twin share colour and marker."""
    families: list[str] = []
    found = {}
    for run, label in zip(runs, labels or runs, strict=True):
        model = run.partition("/")[0]
        family = model.removesuffix("-decodable")
        if family not in families:
            families.append(family)
        index = families.index(family) % len(PALETTE)
        found[run] = Look(
            label=label,
            colour=PALETTE[index],
            marker=MARKERS[index],
            dashed=model != family,
            hatch=HATCHES[index],
        )
    return found


def figure(width: float = 4.6, height: float = 3.0, **arguments: Any) -> tuple[Figure, Any]:
    """Figure outside pyplot, and its axes; ``arguments`` go to ``subplots``."""
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        axes = made.subplots(**arguments)
    return made, axes


def faint_grid(ax: Axes, axis: str = "y") -> None:
    """Thin lines behind the data."""
    ax.set_axisbelow(True)
    ax.grid(visible=True, axis=axis)  # type: ignore[arg-type]


def heat_map(
    ax: Axes,
    values: np.ndarray,
    rows: Any,
    columns: Any,
    *,
    low: float = 0.0,
    high: float = 1.0,
    text: str | None = "{:.2f}",
    labels: np.ndarray | None = None,
    size: float = 7.5,
) -> None:
    """Cells of one hue whose strength is the value; negative ones in a second hue; NaN empty with a dot.

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
    """
    values = np.asarray(values, dtype="float64")
    span = max(high - low, 1e-12)
    strength = np.clip((np.abs(values) - low) / span, 0, 1)
    strength = np.where(np.isfinite(values), 0.04 + 0.92 * strength, 0.0)
    hue = np.where((values < 0)[..., None], to_rgb(HEAT_NEGATIVE), to_rgb(HEAT))
    n_row, n_column = values.shape
    for row in range(n_row):
        for column in range(n_column):
            known = bool(np.isfinite(values[row, column]))
            if known:
                ax.add_patch(
                    mpl.patches.Rectangle(
                        (column + 0.03, row + 0.03),
                        0.94,
                        0.94,
                        facecolor=(*hue[row, column], float(strength[row, column])),
                        linewidth=0,
                    )
                )
            shown = "·"
            if labels is not None:
                shown = str(labels[row, column]) if known else "·"
            elif known:
                shown = "" if text is None else text.format(values[row, column])
            if shown:
                colour = PAPER if strength[row, column] > 0.55 else (INK if known else MUTED)
                ax.text(column + 0.5, row + 0.52, shown, ha="center", va="center", fontsize=size, color=colour)
    ax.set_xlim(0, n_column)
    ax.set_ylim(n_row, 0)
    ax.set_xticks(np.arange(n_column) + 0.5, [str(x) for x in columns])
    ax.set_yticks(np.arange(n_row) + 0.5, [str(x) for x in rows])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def bars(
    ax: Axes,
    groups: Sequence[Any],
    series: Sequence[tuple[Look, np.ndarray, np.ndarray | None, np.ndarray | None]],
    *,
    zero: float = 0.0,
) -> None:
    """Grouped bars with their intervals; NaN leaves a gap.

    Parameters
    ----------
    series
        For each look its heights, and the ends of the intervals or ``None``.
    """
    n = max(1, len(series))
    width = 0.82 / n
    place = np.arange(len(groups))
    for index, (look, values, low, high) in enumerate(series):
        x = place + (index - (n - 1) / 2) * width
        values = np.asarray(values, dtype="float64")
        ax.bar(x, np.nan_to_num(values - zero), width * 0.92, bottom=zero, **look.bar())
        if low is not None and high is not None:
            whiskers(ax, x, values, low, high)
    ax.set_xticks(place, [str(group) for group in groups])
    ax.tick_params(axis="x", length=0)
    ax.margins(x=0.02)
    faint_grid(ax)


def whiskers(ax: Axes, x: Any, values: Any, low: Any, high: Any, colour: str = INK) -> None:
    """Intervals as thin lines through the values; NaN is left out."""
    x, values, low, high = (np.asarray(each, dtype="float64") for each in (x, values, low, high))
    known = np.isfinite(values) & np.isfinite(low) & np.isfinite(high)
    if known.any():
        # vlines, not errorbar: a percentile interval need not hold the estimate itself
        ax.vlines(x[known], low[known], high[known], color=colour, linewidth=1.0)


def band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, look: Look) -> None:
    """Interval of a line as a shade."""
    known = np.isfinite(low) & np.isfinite(high)
    if known.any():
        ax.fill_between(np.asarray(x)[known], low[known], high[known], color=look.colour, alpha=0.13, linewidth=0)


def as_percent(ax: Axes, axis: str = "y") -> None:
    """Ticks of shares as percentages."""
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))


def legend_above(ax: Axes, n_column: int = 2) -> None:
    """Legend over the axes, where it hides no data."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=n_column, borderaxespad=0.2, columnspacing=1.4)


def draw(made: Figure, name: str) -> tuple[str, bytes]:
    """The figure as SVG text and as PNG on white."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        vector, raster = io.StringIO(), io.BytesIO()
        made.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        made.savefig(raster, format="png", dpi=160, facecolor="white")
    return vector.getvalue(), raster.getvalue()


def inline(svg: str, name: str, title: str) -> str:
    """SVG for the page itself: colours from the theme, the page's font, names of its own.

    Parameters
    ----------
    svg
        From :func:`draw`.
    name
        Unique on the page.
    title
        What the figure shows, for those who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' id="(?:figure|axes|patch|text|matplotlib\.axis|xtick|ytick|line2d|legend)_\d+"', "", body)
    known = set(re.findall(r'id="([^"]+)"', body))
    for each in known:
        body = body.replace(f'id="{each}"', f'id="{name}-{each}"')
        body = body.replace(f'"#{each}"', f'"#{name}-{each}"').replace(f"(#{each})", f"(#{name}-{each})")
    for colour, variable in THEMED.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"font: (?:(\d{3}) )?([\d.]+px) [^;\"]+", _font, body)
    # two decimals are enough for paths; numbers in texts stay as they are
    body = re.sub(r' (?:d|transform|x|y|points)="[^"]*"', lambda m: re.sub(r"(\d+\.\d{2})\d+", r"\1", m.group(0)), body)
    opening = body[: body.index(">") + 1]
    box = re.search(r'viewBox="([^"]+)"', opening)
    size = box.group(1) if box else "0 0 400 300"
    plain = f'<svg viewBox="{size}" role="img" aria-label="{_escape(title)}" data-width="{size.split()[2]}">'
    return plain + re.sub(r"\n\s*", "\n", body[len(opening) :])


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match.group(1)}; " if match.group(1) else ""
    return f"{weight}font-size: {match.group(2)}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
