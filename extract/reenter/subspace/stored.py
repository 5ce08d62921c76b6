"""Directions and subspaces that interventions name, from results of the lake."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from extract.reenter.steering.directions import stored_direction, stored_vectors
from extract.reenter.subspace.fits import TOLERANCE
from extract.reenter.target import Target
from schemas import Intervention


def give_stored(target: Target, interventions: Iterable[Intervention]) -> None:
    """Look up what interventions name as ``KIND:VARIABLE:DIM=LABEL`` and the target's values do not have yet.

    A subspace is what the vectors of its name span at each layer and position; its mean is 0.

    Raises
    ------
    UsageError
        If there is no such result.
    """
    values = target.values
    for intervention in interventions:
        direction, subspace = intervention.direction, intervention.subspace
        if direction and direction not in values.directions:
            values.directions = {**values.directions, direction: stored_direction(target, direction)}
        if subspace and subspace not in values.subspaces:
            values.subspaces = {**values.subspaces, subspace: spanned(stored_vectors(target, subspace))}


def spanned(vectors: xr.DataArray) -> xr.Dataset:
    """Orthonormal basis of what vectors ``(..., hidden)`` span, at each layer and position that they are given at."""
    places = [dim for dim in ("layer", "position") if dim in vectors.dims]
    values = vectors.transpose(*places, ..., "hidden").values.astype(np.float64)
    flat = values.reshape(*values.shape[: len(places)], -1, values.shape[-1])
    _, size, basis = np.linalg.svd(flat, full_matrices=False)
    basis = basis * (size > TOLERANCE * size[..., :1])[..., None]  # rows of 0 span nothing
    return xr.Dataset(
        {"basis": ((*places, "rank", "hidden"), basis), "mean": ("hidden", np.zeros(values.shape[-1]))},
        coords={dim: vectors[dim].values for dim in places},
    )
