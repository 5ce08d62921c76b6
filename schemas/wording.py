"""Numbers as commands print them, and the names of a figure and the ends of its interval."""

from collections.abc import Iterable, Mapping
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


def range_text(low: Any, high: Any, form: str = ".2f") -> str:
    """Ends of an interval as tables print them in a column of their own; a dash where there is none."""
    return f"{float(low):{form}}..{float(high):{form}}" if float(low) <= float(high) else "-"


def with_interval(figure: Iterable[Any], form: str = ".3f", ends: str = ".2f", none: str = "-") -> str:
    """A figure (value, low, high) and its interval as tables print them; the value alone where it has no interval."""
    value, low, high = map(float, figure)
    if value != value:
        return none
    return f"{value:{form}}" if low != low else f"{value:{form}} [{low:{ends}}, {high:{ends}}]"


def interval_names(name: str, value: str = "") -> tuple[str, str, str]:
    """Names in a result of a figure, which may have an ending, and of the ends of its interval."""
    return f"{name}{value}", f"{name}_low", f"{name}_high"


def interval_columns(name: str, interval: Iterable[Any], value: str = "") -> dict[str, Any]:
    """A figure and the ends of its interval by their names."""
    return dict(zip(interval_names(name, value), interval, strict=True))


def interval_text(
    row: "Mapping[str, Any] | Any", name: str, value: str = "", form: str = ".3f", ends: str = ".2f", none: str = "-"
) -> str:
    """A figure of a row of a result, by its name, with its interval (:func:`with_interval`)."""
    return with_interval((row[key] for key in interval_names(name, value)), form, ends, none)
