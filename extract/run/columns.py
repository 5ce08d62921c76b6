"""Fields of a data set that become columns of a run."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from schemas import DIMS, RUN_VARIABLES
from store import CLAIM, RECORD

Columns = dict[str, tuple[tuple[str, ...], Any]]
"""Dims and values by name."""

_RESERVED = {*RUN_VARIABLES, *DIMS, RECORD, CLAIM, "answer", "full_answer", "clean", "corrupted", "problem"}
_RESERVED |= {"variant", "segment", "offset"}
"""Names of a run's own arrays and of what lies beside them, which no column of the data may take."""


def extra_columns(
    rows: Sequence[Mapping[str, Any]], consumed: Collection[str], silent: Collection[str], own: Collection[str]
) -> tuple[Columns, list[str]]:
    """Fields of which every row has one plain value of one type, and what is to be said of the others.

    Fields in ``consumed`` are used otherwise; of those in ``silent`` nothing is said where they become no column;
    ``own`` are the names of columns that there are already.
    """
    columns: Columns = {}
    left_out, renamed, as_text = [], [], []
    variants = {row.get("variant") for row in rows if isinstance(row.get("variant", ""), str)}
    taken = {name.casefold() for name in (*_RESERVED, *own)}  # a disk may not tell A from a
    for key in sorted({key for row in rows for key in row}.difference(consumed)):
        if key == "variant" and variants:
            continue
        values = _column([row.get(key) for row in rows])
        if values is None:
            left_out += [key] if key not in silent else []
            continue
        name = re.sub(r"\W", "_", key)[:60].lstrip("_") or "column"
        while name.casefold() in taken or not name.isidentifier():
            name = f"data_{name}"
        taken.add(name.casefold())
        columns[name] = (("example",), values)
        if name != key:
            renamed.append(f"{key!r} as {name}")
        if isinstance(values, list) and not isinstance(rows[0][key], str):
            as_text.append(name)
    notes = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("columns stored under another name:", renamed),
            ("columns stored as text, as their numbers need more than 64 bits:", as_text),
            ("fields left out, as not every row has a number, a text or a bool there:", left_out),
        )
        if names
    ]
    return columns, notes


def _column(values: list[Any]) -> Any:
    """Values as they are stored: texts as a list, numbers and bools as an array; ``None`` if they are of many kinds."""
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return values
    if kinds == {bool}:
        return np.array(values)
    if kinds == {int}:
        for dtype in (np.int64, np.uint64):
            limits = np.iinfo(dtype)
            if limits.min <= min(values) and max(values) <= limits.max:
                return np.array(values, dtype=dtype)
    elif not kinds or not kinds <= {int, float, Decimal}:
        return None
    elif not any(_overflows(value) for value in values):
        return np.array([float(value) for value in values])
    return [str(value) for value in values]


def _overflows(value: int | float | Decimal) -> bool:
    """Whether float64 would not hold an integer exactly, or a decimal at all."""
    if isinstance(value, int):
        return abs(value) > 2**53
    return isinstance(value, Decimal) and math.isinf(float(value))
