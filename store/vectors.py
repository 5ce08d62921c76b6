"""Directions of stored results: vectors along ``hidden`` of a probe, a dictionary, anything that was kept."""

import xarray as xr

from schemas import UsageError, filled, nearest
from schemas.registry import by_kind, line
from store.read import Lake
from store.results import preferred

MOST_NAMED = 8
"""Labels that are all named where another was asked for."""


def stored_vectors(lake: Lake, run: str, name: str) -> xr.DataArray:
    """Vectors of a result of a run: ``KIND:VARIABLE``, or ``KIND:VARIABLE:DIM=LABEL,...``.

    Several labels are joined by ``+``. Of several results of the kind, the preferred one with such a variable.

    Returns
    -------
    (..., hidden)
        Without the dims of which one label is named.

    Raises
    ------
    UsageError
        If the name is of another form, or the result, the variable or a label is not there.
    """
    kind, _, rest = name.partition(":")
    variable, _, labels = rest.partition(":")
    if not variable:
        raise UsageError(f"direction {name!r} is not of the form KIND:VARIABLE or KIND:VARIABLE:DIM=LABEL")
    others: dict[str, None] | None = None
    for stored in preferred(result for result in lake.results(kind) if run in result.runs):
        result = lake.open_result(stored.name, load=False)
        if variable not in result.data_vars or "hidden" not in result[variable].dims:
            vectors = {str(name): None for name, array in result.data_vars.items() if "hidden" in array.dims}
            others = vectors | (others or {})
            continue
        result = lake.open_result(stored.name)
        array = selected(result[variable], f"{kind}:{variable}", labels)
        return array.sel(model=run) if "model" in array.dims else array
    known = list(dict.fromkeys([*(result.kind for result in lake.results()), *by_kind()]))
    if kind not in known:
        raise UsageError(
            f"direction {name!r}: there are no results of kind {kind!r}; there are {', '.join(known)}"
            + nearest(kind, known)
        )
    command = filled(line(kind), lake.location, [run])
    if others is not None:
        raise UsageError(
            f"direction {name!r}: {kind} of {run} has no vectors {variable!r}; it has {', '.join(others) or 'none'}"
            + nearest(variable, list(others))
        )
    how = f"run {command} first" if command else f"{kind} is of {', '.join(_runs_of(lake, kind))}"
    raise UsageError(f"direction {name!r} was never computed for {run}; {how}")


def _runs_of(lake: Lake, kind: str) -> list[str]:
    return list(dict.fromkeys(run for result in lake.results(kind) for run in result.runs))


def stored_direction(lake: Lake, run: str, name: str) -> xr.DataArray:
    """One direction, or one for each layer and position, named as for :func:`stored_vectors`.

    Dims other than ``layer`` and ``position`` are picked by labels, such as ``sae:decoder:feature=12``.
    """
    array = stored_vectors(lake, run, name)
    if left := [str(dim) for dim in array.dims if dim not in ("layer", "position", "hidden")]:
        sign = "," if name.count(":") > 1 else ":"
        raise UsageError(f"direction {name!r} leaves {', '.join(left)} open; pick one with {sign}{left[0]}=LABEL")
    return array


def selected(array: xr.DataArray, what: str, labels: str) -> xr.DataArray:
    """Part of an array by ``DIM=LABEL,...``, labels as text; one label drops the dim, ``A+B`` keeps it."""
    for pair in filter(None, labels.split(",")):
        dim, equals, wanted = pair.partition("=")
        if not equals:
            raise UsageError(f"{what}: {pair!r} is not of the form DIM=LABEL")
        if dim not in array.dims:
            raise UsageError(
                f"{what} has no dim {dim!r}; it has {', '.join(map(str, array.dims))}{nearest(dim, array.dims)}"
            )
        known = list(array.indexes.get(dim, range(array.sizes[dim])))
        names = [str(value) for value in known]
        labels_wanted = [wanted] if wanted in names else wanted.split("+")
        if missing := [label for label in labels_wanted if label not in names]:
            there = ", ".join(names) if len(names) <= MOST_NAMED else f"{names[0]} .. {names[-1]}"
            raise UsageError(f"{what} has no {dim} {missing[0]!r}; it has {there}{nearest(missing[0], known)}")
        places = [names.index(label) for label in labels_wanted]
        array = array.isel({dim: places[0] if len(places) == 1 else places})
    return array
