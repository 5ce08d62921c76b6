"""Settings that are numbers, checked where they are made: anything else or nonsense is a user's mistake."""

import math
from numbers import Integral, Real

from schemas.errors import UsageError


def check_whole(what: str, value: object, least: int) -> None:
    """Refuse anything but a whole number of at least ``least``.

    Raises
    ------
    UsageError
        Naming ``what``, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UsageError(f"{what} is {value!r}; it must be a whole number of at least {least}")


def check_number(what: str, value: object, *, above: float | None = None, least: float | None = None) -> None:
    """Refuse anything but a finite number above one bound, or at least another.

    Raises
    ------
    UsageError
        Naming ``what``, the value and what is allowed.
    """
    bound = f"above {above:g}" if above is not None else "" if least is None else f"of at least {least:g}"
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
    ):
        raise UsageError(f"{what} is {value!r}; it must be a finite number {bound}".rstrip())
