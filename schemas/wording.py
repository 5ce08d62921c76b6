"""Numbers as commands print them."""

from collections.abc import Iterable
from typing import Any


def shape_text(shape: Iterable[int]) -> str:
    """Shape as ``2x3``."""
    return "x".join(map(str, shape))


def size_text(n_byte: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_byte < 1000:
            return f"{n_byte:.0f} B" if unit == "B" else f"{n_byte:.1f} {unit}"
        n_byte /= 1000
    return f"{n_byte:.1f} TB"


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def or_dash(value: Any, form: str = ".2f") -> str:
    """A number as tables print it; a dash for NaN."""
    return f"{float(value):{form}}" if float(value) == float(value) else "-"


def with_interval(figure: Iterable[Any], form: str = ".3f", ends: str = ".2f", none: str = "-") -> str:
    """A figure (value, low, high) and its interval as tables print them; the value alone where it has no interval."""
    value, low, high = map(float, figure)
    if value != value:
        return none
    return f"{value:{form}}" if low != low else f"{value:{form}} [{low:{ends}}, {high:{ends}}]"
