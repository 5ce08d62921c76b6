"""Checks and selections by label that every analyzer of a lake shares."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from schemas import SchemaError, UsageError, nearest, segment_of
from schemas.vocabulary import CLOSING

_THOUGHT = re.compile(r"ct\d+")


def require_dims(array: xr.DataArray, dims: Iterable[str], what: str) -> None:
    """Raise :class:`SchemaError` unless the array has every one of the dims."""
    missing = [dim for dim in dims if dim not in array.dims]
    if missing:
        raise SchemaError(
            f"{what} reads dims {', '.join(dims)}; {array.name or 'the array'} has {', '.join(map(str, array.dims))} "
            f"and lacks {', '.join(missing)}. Pass a run's variable, or label the dims."
        )


def labels_along(array: xr.DataArray | xr.Dataset, dim: str) -> list[str]:
    """Labels along a dim; raise :class:`SchemaError` where it has none."""
    if dim not in array.coords:
        raise SchemaError(f"dim {dim!r} has no labels; places are named (bot, ct0, ...), so give it such labels")
    return [str(label) for label in array[dim].values]


def thought_labels(array: xr.DataArray | xr.Dataset, dim: str = "position") -> list[str]:
    """Continuous thoughts that occur along a dim, in order."""
    return sorted((x for x in labels_along(array, dim) if _THOUGHT.fullmatch(x)), key=lambda x: int(x[2:]))


def thinking_labels(run: xr.DataArray | xr.Dataset) -> list[str]:
    """Positions between question and answer, as they follow each other in time, however the run was sorted."""
    known = labels_along(run, "position")
    return [*(["bot"] if "bot" in known else []), *thought_labels(run), *(x for x in CLOSING if x in known)]


def take(array: xr.DataArray, dim: str, labels: Sequence[str], what: str) -> xr.DataArray:
    """Places of these labels, in this order; a slice where they are neighbours, so that only their chunks are read."""
    present = {label: index for index, label in enumerate(labels_along(array, dim))}
    missing = [label for label in labels if label not in present]
    if missing:
        held = list(present)
        shown = ", ".join(held if len(held) <= 12 else [*held[:5], "..", *held[-5:]])
        raise SchemaError(
            f"{what} needs {', '.join(labels)} along {dim}; {array.name or 'the array'} lacks {', '.join(missing)} "
            f"and holds {shown}. Take it from a run, whose labels start so, or extract the missing places"
            + nearest(missing[0], held)
        )
    index = [present[label] for label in labels]
    if index == list(range(index[0], index[0] + len(index))):
        return array.isel({dim: slice(index[0], index[0] + len(index))})
    return array.isel({dim: index})


def part_of(
    run: xr.Dataset,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    limit: int | None = None,
) -> xr.Dataset:
    """The part of a run at some layers and positions, in the run's order, and its first examples.

    ``key_position`` stays whole, so that rows of attention still sum to 1. Lazy: only chunks of the part are read.

    Raises
    ------
    UsageError
        If the run lacks a layer or position that is named, or none is named, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    chosen: dict[str, Any] = {} if limit is None else {"example": slice(0, limit)}
    for dim, labels in (("layer", layers), ("position", positions)):
        if labels is None:
            continue
        known = run[dim].values.tolist() if dim in run.coords else []
        missing = [label for label in labels if label not in known]
        if missing or not labels:
            shown = ", ".join(map(str, known if len(known) <= 12 else [*known[:5], "..", *known[-5:]]))
            raise UsageError(
                f"{run.attrs.get('run', 'the run')} has no {dim} {', '.join(map(str, missing)) or 'of an empty name'}; "
                f"it has {shown}{nearest(missing[0], known) if missing else ''}"
            )
        index = [place for place, label in enumerate(known) if label in set(labels)]
        neighbours = index[-1] - index[0] == len(index) - 1
        chosen[dim] = slice(index[0], index[-1] + 1) if neighbours else index
    return run.isel(chosen)


def up_to_eot(data: xr.Dataset) -> xr.Dataset:
    """A result at the positions between question and answer, or at ``q-1`` where the answer follows at once."""
    labels = labels_along(data, "position")
    between = [x for x in labels if segment_of(x) not in ("question", "answer")]
    return data.sel(position=between or [x for x in labels if segment_of(x) == "question"][-1:])


def up_to_eot_or_as_chosen(run: xr.Dataset, positions: Sequence[str] | None) -> xr.Dataset:
    """A run that is at the positions chosen already; where none are, up to ``eot``."""
    return run if positions is not None else up_to_eot(run)


def after_question(data: xr.Dataset) -> list[str]:
    """Positions behind the question, and before them ``q-1`` where the answer follows it at once."""
    labels = labels_along(data, "position")
    behind = [x for x in labels if segment_of(x) != "question"]
    begun = all(segment_of(x) == "answer" for x in behind)
    return [x for x in labels if segment_of(x) == "question"][-1:] * begun + behind


def numbered(array: xr.DataArray, dims: Iterable[str]) -> xr.DataArray:
    """The same array with 0, 1, .. along those of the dims that have no labels."""
    return array.assign_coords({dim: np.arange(array.sizes[dim]) for dim in dims if dim not in array.coords})


def problem_along(array: xr.DataArray) -> xr.DataArray:
    """Problem of each example (example,); without any, each example is its own."""
    return array["problem"] if "problem" in array.coords else numbered(array, ["example"])["example"]


def inherited(source: xr.DataArray | xr.Dataset, **attrs: Any) -> dict[str, Any]:
    """Attributes of a result: the run it came from, and what is given here."""
    return {key: source.attrs[key] for key in ("run",) if key in source.attrs} | attrs
