"""Tables as files that a user named."""

import errno
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.whole_files import beside


def plain_numbers(table: Any) -> Any:
    """A data frame whose numbers of single precision have the digits it tells apart: 0.3, not 0.30000001192092896.

    Whole numbers, and those of at most 14 digits, stay as they are.
    """
    import numpy as np

    table = table.copy(deep=False)
    for place, kind in enumerate(table.dtypes):
        if kind == np.float64:
            values = table.iloc[:, place].to_numpy(copy=True)
            with np.errstate(over="ignore"):
                single = values.astype(np.float32)
            widened = np.flatnonzero((single == values) & (values != np.rint(values)))
            long = np.char.mod("%.14g", values[widened]).astype(np.float64) != values[widened]
            values[widened[long]] = single[widened[long]].astype(str).astype(np.float64)
            table.isetitem(place, values)
    return table


def write_csv(table: Any, path: Path) -> None:
    """Write a data frame, without its index; folders on the way are made.

    Raises
    ------
    UsageError
        If nothing can be written there.
    """
    try:
        with beside(path) as partial:
            plain_numbers(table).to_csv(partial, index=False)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UsageError(f"{path} cannot be written ({error.strerror or error}); name another place") from error
