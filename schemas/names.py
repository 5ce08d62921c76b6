"""Names of models and data sets: they are folders of a lake, and what tables of queries are called by."""

import re
from collections.abc import Container

from schemas.errors import UsageError

LONGEST_NAME = 100
"""Characters; file systems take 255 bytes."""


def check_name(name: str, what: str, taken: Container[str] = (), cure: str = "") -> None:
    """Raise :class:`UsageError` unless something can be called so in a lake.

    ``what`` is called so, as ``"model"``; ``taken`` are the names of what lies beside it; ``cure`` says how it is given
    another name.
    """
    if name in taken:
        raise UsageError(f"{what} name {name!r} is that of something else in every lake; take another one{cure}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or len(name) > LONGEST_NAME:
        shown = repr(name if len(name) <= 60 else f"{name[:60]}..")
        raise UsageError(
            f"{what} name {shown} cannot be one: it begins with a-z, A-Z or a digit, goes on with letters, digits, '.',"
            f" '_' and '-', and has at most {LONGEST_NAME} characters{cure}"
        )
