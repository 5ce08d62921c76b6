"""Directions that are added to thoughts: correct minus wrong, and those of the lake's results; all of one length."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from extract.reenter.target import Target
from schemas import UsageError, filled, nearest
from schemas.registry import by_kind, line
from store.read import preferred


def split_half(target: Target, seed: int) -> np.ndarray:
    """Examples ``(example,)`` from which directions are taken; twins of a problem stay together."""
    problem = np.asarray(
        target.data["problem"].values if "problem" in target.data.coords else target.data["example"].values
    )
    unique = np.unique(problem)
    chosen = np.random.default_rng([seed, 31]).permutation(unique)[: len(unique) // 2]
    return np.isin(problem, chosen)


def correct_minus_wrong(
    target: Target, site: str, layers: Sequence[int], positions: Sequence[str], rows: np.ndarray
) -> xr.DataArray:
    """Mean of the rightly answered less that of the wrongly answered, of some rows ``(layer, position, hidden)``."""
    correct = np.asarray(target.data["correct"].values)
    right, wrong = correct & rows, ~correct & rows
    if not right.any() or not wrong.any():
        raise UsageError(
            f"{target.run} has {right.sum()} rightly and {wrong.sum()} wrongly answered examples to take a direction"
            " from; it needs both"
        )

    def difference(layer: int, position: str) -> np.ndarray:
        states = target.values.column(site, layer, position)
        return np.asarray(np.nanmean(states[right], axis=0) - np.nanmean(states[wrong], axis=0))

    return _array([[difference(layer, position) for position in positions] for layer in layers], layers, positions)


def stored_direction(target: Target, name: str) -> xr.DataArray:
    """Direction of a result in the lake: ``KIND:VARIABLE``, or ``KIND:VARIABLE:DIM=LABEL,...``.

    The variable must have the dim ``hidden``; dims other than ``layer`` and ``position`` are picked by labels, such as
    ``sae:decoder:feature=12``.
    """
    array = stored_vectors(target, name)
    if left := [str(dim) for dim in array.dims if dim not in ("layer", "position", "hidden")]:
        raise UsageError(f"direction {name!r} leaves {', '.join(left)} open; pick one with :{left[0]}=LABEL")
    return array


def stored_vectors(target: Target, name: str) -> xr.DataArray:
    """Vectors of a result in the lake, as :func:`stored_direction` names them; several labels are joined by ``+``."""
    kind, _, rest = name.partition(":")
    variable, _, labels = rest.partition(":")
    if target.lake is None or not variable:
        raise UsageError(f"direction {name!r} is not of the form KIND:VARIABLE or KIND:VARIABLE:DIM=LABEL")
    for stored in preferred(result for result in target.lake.results(kind) if target.run in result.runs):
        result = target.lake.open_result(stored.name)
        if variable not in result.data_vars or "hidden" not in result[variable].dims:
            continue
        array = _selected(result[variable], f"{kind}:{variable}", labels)
        return array.sel(model=target.run) if "model" in array.dims else array
    if kind not in by_kind():
        raise UsageError(
            f"direction {name!r}: there are no results of kind {kind!r}; there are {', '.join(by_kind())}"
            + nearest(kind, list(by_kind()))
        )
    command = filled(line(kind), target.lake.location, [target.run])
    raise UsageError(f"direction {name!r} was never computed for {target.run}; run {command} first")


def _selected(array: xr.DataArray, what: str, labels: str) -> xr.DataArray:
    """Part of an array by ``DIM=LABEL,...``, labels as text; one label drops the dim, ``A+B`` keeps it."""
    for pair in filter(None, labels.split(",")):
        dim, _, wanted = pair.partition("=")
        if dim not in array.dims:
            raise UsageError(
                f"{what} has no dim {dim!r}; it has {', '.join(map(str, array.dims))}{nearest(dim, array.dims)}"
            )
        known = list(array.indexes.get(dim, range(array.sizes[dim])))
        names = [str(value) for value in known]
        labels_wanted = [wanted] if wanted in names else wanted.split("+")
        if missing := [label for label in labels_wanted if label not in names]:
            raise UsageError(f"{what} has no {dim} {missing[0]!r}{nearest(missing[0], known)}")
        places = [names.index(label) for label in labels_wanted]
        array = array.isel({dim: places[0] if len(places) == 1 else places})
    return array


def scaled(
    target: Target, site: str, layers: Sequence[int], positions: Sequence[str], array: xr.DataArray, name: str
) -> xr.DataArray:
    """Direction at every layer and position ``(layer, position, hidden)``, one standard deviation of the states long.

    That is the root of the variance summed over the components.
    """
    hidden = target.reasoner.hidden

    def vector(layer: int, position: str) -> np.ndarray:
        direction = array
        for dim, label in (("layer", layer), ("position", position)):
            if dim in direction.dims:
                if label not in direction.indexes[dim]:
                    raise UsageError(f"direction {name!r} was not computed at {dim} {label}")
                direction = direction.sel({dim: label})
        if direction.sizes.get("hidden") != hidden:
            raise UsageError(
                f"direction {name!r} has {direction.sizes.get('hidden')} components, model {target.run} {hidden}"
            )
        components = np.asarray(direction.values, dtype=np.float32)
        norm = float(np.linalg.norm(components))
        if not norm > 0:
            raise UsageError(f"direction {name!r} has no length at layer {layer}, position {position}")
        return components / norm * float(np.linalg.norm(target.values.spread(site, layer, position)))

    return _array([[vector(layer, position) for position in positions] for layer in layers], layers, positions)


def _array(values: list[list[np.ndarray]], layers: Sequence[int], positions: Sequence[str]) -> xr.DataArray:
    return xr.DataArray(
        np.array(values, dtype=np.float32),
        dims=("layer", "position", "hidden"),
        coords={"layer": list(layers), "position": list(positions)},
    )
