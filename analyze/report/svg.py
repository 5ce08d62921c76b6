"""Drawings of the page as files and as SVG that stands inside HTML and follows its theme."""

import html
import io
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analyze.drawing import HEAT, HEAT_NEGATIVE, INK, MUTED, ON_HEAT, PALETTE, PAPER, RULE, STYLE

THEMED = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    ON_HEAT: "--on-heat",
    HEAT: "--heat",
    HEAT_NEGATIVE: "--heat-negative",
    **{colour: f"--series-{index}" for index, colour in enumerate(PALETTE)},
}
"""Colours of a drawing that the page replaces by its own, so that it follows the theme."""

NARROW = 4.7
"""Width in inches of a drawing for phones; at 360 pixels its text is as large as that of the page's captions."""
NARROW_LETTERS = 20
"""Letters of a legend's entry of which two stand beside each other there."""
NARROW_TITLE = 36
"""Letters of a title that has room above the axes; a longer one ends where they do, and begins further left."""


def draw(figure: Figure, name: str) -> tuple[str, bytes]:
    """The figure as SVG text and as PNG on white, its axes placed once for both."""
    vector, raster = _vector(figure, name), io.BytesIO()
    layout, dpi, colour = figure.get_layout_engine(), figure.dpi, figure.get_facecolor()
    figure.set_layout_engine("none")
    figure.set_facecolor("white")
    figure.set_dpi(160)
    try:
        with mpl.rc_context(STYLE):
            FigureCanvasAgg(figure).print_png(raster)
    finally:
        figure.set_dpi(dpi)
        figure.set_facecolor(colour)
        figure.set_layout_engine(layout)
    return vector, raster.getvalue()


def _vector(figure: Figure, name: str) -> str:
    """The figure as SVG text. Its canvas is asked itself: ``savefig`` would place axes twice, and draw once in vain."""
    vector, dpi = io.StringIO(), figure.dpi
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(vector, metadata={"Date": None, "Creator": None})
    figure.set_dpi(dpi)
    return vector.getvalue()


def draw_narrow(figure: Figure, name: str) -> str:
    """The figure as SVG text in the width of a phone, its legend in as many columns as fit; it stays so."""
    width, height = figure.get_size_inches()
    rows = max((narrow_legend(ax) for ax in figure.axes), default=0)
    figure.set_size_inches(NARROW, height + 0.16 * rows)
    for ax in figure.axes:
        if len(title := ax.get_title(loc="left")) > NARROW_TITLE:
            ax.set_title("", loc="left")
            ax.set_title(title, loc="right")
    try:
        return _vector(figure, name)
    finally:
        figure.set_size_inches(width, height)


def narrow_legend(ax: Axes) -> int:
    """Lay the legend above an axes, or below it, in as many columns as a phone has room for; its rows."""
    legend = ax.get_legend()
    if legend is None:
        return 0
    names = [text.get_text() for text in legend.get_texts()]
    columns = 1 + (max(map(len, names), default=0) <= NARROW_LETTERS)
    place = legend.get_bbox_to_anchor().transformed(ax.transAxes.inverted())
    if place.width == 0:  # anchored to a point outside the axes; a legend is laid out only when it is made
        size = legend.get_texts()[0].get_fontsize()
        above = place.y0 > 0.5  # at 1 but for rounding
        ax.legend(
            *ax.get_legend_handles_labels(), loc="lower left" if above else "upper center", ncols=columns,
            fontsize=size, bbox_to_anchor=(place.x0, place.y0), borderaxespad=0.2 if above else None,
            columnspacing=1.4,
        )  # fmt: skip
    return -(-len(names) // columns)


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
    for mark in known:
        body = body.replace(f'id="{mark}"', f'id="{name}-{mark}"')
        body = body.replace(f'"#{mark}"', f'"#{name}-{mark}"').replace(f"(#{mark})", f"(#{name}-{mark})")
    for colour, variable in THEMED.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"font: (?:(\d{3}) )?([\d.]+px) [^;\"]+", _font, body)
    # two decimals are enough for paths; numbers in texts stay as they are
    body = re.sub(r' (?:d|transform|x|y|points)="[^"]*"', lambda m: re.sub(r"(\d+\.\d{2})\d+", r"\1", m.group(0)), body)
    opening = body[: body.index(">") + 1]
    box = re.search(r'viewBox="([^"]+)"', opening)
    size = box.group(1) if box else "0 0 400 300"
    plain = f'<svg viewBox="{size}" role="img" aria-label="{html.escape(title)}" data-width="{size.split()[2]}">'
    return plain + re.sub(r"\n\s*", "\n", body[len(opening) :])


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match.group(1)}; " if match.group(1) else ""
    return f"{weight}font-size: {match.group(2)}"
