"""Numbers as sentences and tables say them."""

import math
from collections.abc import Sequence
from string import Formatter
from typing import Any

MINUS = "\N{MINUS SIGN}"
COMMON = {
    "picked": "Where the largest of several is named, its interval allows for that: the lower end holds for all of them"
    " at once.",
    "picked_any": "Where those that differ from the rest are named, their intervals hold for all that were tried"
    " at once.",
}
"""Caveats of several sections, by the values that stand for them."""


class Sentence(Formatter):
    """Texts with values: ``{x:share}``, ``{x:share0}``, ``{x:points}``, ``{x:p}``, or a format of Python's own.

    ``{x:change}`` is the smallest change that so many problems could show, or none.
    """

    def format_field(self, value: Any, spec: str) -> str:
        """Text of one value; numbers have a typographic minus."""
        if spec.startswith("share"):
            return share(value, int(spec[5:] or 1))
        if spec == "change":
            return "none" if math.isnan(value) else share(value)
        if spec == "points":
            return points(value)
        if spec == "p":
            return p_text(value)
        if isinstance(value, float) and math.isnan(value):
            return "n/a"
        text = format(value, spec)
        return text if isinstance(value, str) else text.replace("-", MINUS)


def share(value: float, digits: int = 1) -> str:
    """A share as a percentage, a typographic minus in front of a negative one."""
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}%".replace("-", MINUS)


def points(value: float, *, unit: bool = True) -> str:
    """A difference of shares in percentage points, with its sign."""
    if math.isnan(value):
        return "n/a"
    value = 0.0 if abs(value) < 0.0005 else value  # never -0.0
    return f"{100 * value:+.1f}{' points' if unit else ''}".replace("-", MINUS)


def p_text(p: float) -> str:
    """A p-value for a sentence."""
    if math.isnan(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def listed(words: Sequence[Any]) -> str:
    """Words as a list in a sentence."""
    words = [str(word) for word in words]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)
