"""Drawings of the page as files and as SVG that stands inside HTML and follows its theme."""

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

from analyze.drawing import HEAT, HEAT_NEGATIVE, INK, MUTED, PALETTE, PAPER, RULE, STYLE

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


def draw(figure: Figure, name: str) -> tuple[str, bytes]:
    """The figure as SVG text and as PNG on white."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(raster, format="png", dpi=160, facecolor="white")
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
    plain = f'<svg viewBox="{size}" role="img" aria-label="{_escape(title)}" data-width="{size.split()[2]}">'
    return plain + re.sub(r"\n\s*", "\n", body[len(opening) :])


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match.group(1)}; " if match.group(1) else ""
    return f"{weight}font-size: {match.group(2)}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
