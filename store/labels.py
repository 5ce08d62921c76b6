"""Names in a lake and labels of what it hands out: where one is not there, the nearest is named."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from xarray.core.indexes import PandasIndex
from xarray.core.indexing import IndexSelResult

from schemas import MissingRunError, nearest


def missing(location: object, what: str, name: str, known: Sequence[str]) -> MissingRunError:
    """What is said of a run or model that a lake does not have."""
    there = ", ".join(known) or "none"
    return MissingRunError(f"{location} has no {what} {name!r}; it has {there}{nearest(name, known)}")


def name_nearest(dataset: xr.Dataset) -> xr.Dataset:
    """Let the selection of a dataset say which labels there are, and which of them is the nearest.

    An index class of our own would be another kind to xarray: no dataset of a lake could be aligned with an array that
    somebody labels himself, or be identical with its copy. So the indexes stay xarray's, with a ``sel`` of their own;
    one that is derived from them, as of a part of the labels, has xarray's again.
    """
    for index in dataset.xindexes.values():
        if type(index) is PandasIndex:
            vars(index)["sel"] = partial(_select, index)
    return dataset


def _select(
    index: PandasIndex, labels: dict[Any, Any], method: str | None = None, tolerance: Any = None
) -> IndexSelResult:
    """Places of labels; a ``KeyError`` says what there is instead of one that is not there."""
    try:
        return PandasIndex.sel(index, labels, method=method, tolerance=tolerance)
    except KeyError:
        ((dim, wanted),) = labels.items()
        asked = [] if isinstance(wanted, slice) else np.ravel(np.asarray(wanted)).tolist()
        missing = [label for label in asked if label not in index.index]
        if not missing:
            raise
        known = list(map(str, index.index))
        shown = ", ".join(known if len(known) <= 12 else [*known[:5], "..", *known[-5:]])
        problem = f"{dim} {missing[0]!r} is not there; there are {shown}{nearest(str(missing[0]), known)}"
    raise KeyError(problem)
