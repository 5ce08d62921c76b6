"""Directions that are added to thoughts: correct minus wrong, and those of the lake's results; all of one length."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from extract.reenter.target import Target
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.statistics import half_of_problems
from store import Lake, vectors


def split_half(data: xr.Dataset, seed: int) -> np.ndarray:
    """Examples ``(example,)`` from which directions are taken, or on which anything else is fitted."""
    return half_of_problems(problem_of(data), seed, 31)


def correct_minus_wrong(
    target: Target, site: str, layers: Sequence[int], positions: Sequence[str], rows: np.ndarray
) -> xr.DataArray:
    """Mean of the rightly answered less that of the wrongly answered, of some rows ``(layer, position, hidden)``."""
    correct = np.asarray(target.data["correct"].values)
    right, wrong = correct & rows, ~correct & rows
    if not right.any() or not wrong.any():
        raise UsageError(
            f"of the {rows.sum()} examples of {target.run} that directions are taken from (half of the problems)"
            f" {right.sum()} are answered rightly and {wrong.sum()} wrongly; a direction needs both"
        )

    def difference(layer: int, position: str) -> np.ndarray:
        states = target.values.column(site, layer, position)
        return np.asarray(np.nanmean(states[right], axis=0) - np.nanmean(states[wrong], axis=0))

    return _array([[difference(layer, position) for position in positions] for layer in layers], layers, positions)


def stored_direction(target: Target, name: str) -> xr.DataArray:
    """Direction of a result in the target's lake, see :func:`store.vectors.stored_direction`."""
    return vectors.stored_direction(_lake(target, name), target.run, name)


def stored_vectors(target: Target, name: str) -> xr.DataArray:
    """Vectors of a result in the target's lake, see :func:`store.vectors.stored_vectors`."""
    return vectors.stored_vectors(_lake(target, name), target.run, name)


def _lake(target: Target, name: str) -> Lake:
    if target.lake is None:
        raise UsageError(f"direction {name!r} is of a result in a lake, and {target.run} is of none")
    return target.lake


def scaled(
    target: Target, site: str, layers: Sequence[int], positions: Sequence[str], array: xr.DataArray, name: str
) -> xr.DataArray:
    """Direction at every layer and position ``(layer, position, hidden)``, one standard deviation of the states long.

    That is the root of the variance summed over the components.
    """

    def vector(layer: int, position: str) -> np.ndarray:
        direction = target.values.at_place(array, f"direction {name!r}", layer, position)
        components = np.asarray(direction.values, dtype=np.float32)
        norm = float(np.linalg.norm(components))
        if not 0 < norm < np.inf:
            raise UsageError(f"direction {name!r} has no finite length at layer {layer}, position {position}")
        return components / norm * float(np.linalg.norm(target.values.spread(site, layer, position)))

    return _array([[vector(layer, position) for position in positions] for layer in layers], layers, positions)


def _array(values: list[list[np.ndarray]], layers: Sequence[int], positions: Sequence[str]) -> xr.DataArray:
    return xr.DataArray(
        np.array(values, dtype=np.float32),
        dims=("layer", "position", "hidden"),
        coords={"layer": list(layers), "position": list(positions)},
    )
