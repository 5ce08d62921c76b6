"""How well a rotation and a scale turn the states of one place into those of another, on problems left out of the fit.

Let X and Y be the states of the same problems at both places, centred, as scores of their first principal components.
The rotation Q and the scale s that bring X closest to Y follow from the singular value decomposition X'Y = U S V'
(Schoenemann, *A generalized solution of the orthogonal Procrustes problem*, Psychometrika 1966):

    Q = U V',  s = tr(S) / |X|^2,   r2 = 1 - |Y - s X Q|^2 / |Y|^2   over problems left out.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from analyze.cluster import spread
from analyze.similarity.cka import CONSTANT, largest, layers_of, shared_problems, states_of
from schemas.progress import Progress, silent
from schemas.resampling import percentiles

Array = np.ndarray[Any, np.dtype[Any]]
DIMS = ("layer", "position", "other_layer", "other_position")


def procrustes(
    first: xr.Dataset,
    second: xr.Dataset | None = None,
    *,
    components: int = 16,
    max_problems: int = 300,
    resamples: int = 200,
    shuffles: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """Held-out fit of a rotation and a scale from every layer and position of a run to every one of another.

    Means, principal components, rotation and scale come from half of the problems, the fit from the other half. Memory
    is 8 bytes for each pair of cells and held-out problem; time is that of a singular value decomposition of
    ``components`` squared for each pair of cells and shuffle.

    Parameters
    ----------
    first, second, max_problems, seed
        As in :func:`analyze.similarity.cka.similarity`; without a second the run is compared with itself.
    components
        Principal components of each place that are compared; with more, rotations fitted on a few hundred problems fit
        noise.
    resamples
        Of the problems left out, drawn with replacement, for the 95% intervals.
    shuffles
        Times that problems of the second run are shuffled before the fit.
    progress
        Called as ``progress(done, total)``, in fits.

    Returns
    -------
    Dataset
        ``r2`` (layer, position, other_layer, other_position) from the first to the second, 1 where a rotation and a
        scale are all the difference, with ``r2_low`` and ``r2_high``; ``p``: how often the largest of all pairs under
        shuffles reaches it; ``r2_null``: what that stays below in 95% of shuffles. NaN where states do not vary or
        are infinite.

    Raises
    ------
    UsageError
        If fewer than eight problems are in both runs and have all the positions.
    """
    other = first if second is None else second
    rng = np.random.default_rng(seed)
    rows, n_shared = shared_problems(first, other, max_problems, rng)
    order = rng.permutation(rows.shape[1])
    fitted, held = order[: len(order) // 2], order[len(order) // 2 :]
    components = min(components, len(fitted) - 1, first.sizes["hidden"], other.sizes["hidden"])
    left = _scores(first, rows[0], fitted, components)
    right = left if second is None else _scores(other, rows[1], fitted, components)
    shape = tuple(run.sizes[dim] for run in (first, other) for dim in ("layer", "position"))
    wrong, size = _errors(left, right, fitted, held)
    estimate = _r2(wrong.mean(-1), size.mean(-1))
    draws = rng.poisson(1.0, (len(held), resamples))
    low, high = percentiles(_r2(wrong @ draws, size @ draws), len(held))
    greatest: list[float] = []
    for null in spread(_largest, ([rng.permutation(len(order))] for _ in range(shuffles)), [left, right, fitted, held]):
        greatest.append(null)
        progress(len(greatest), shuffles)
    reached = (np.array(greatest)[:, None, None] >= estimate).sum(0)
    p = np.where(np.isfinite(estimate), (1 + reached) / (1 + shuffles), np.nan)
    labels = {"layer": first, "position": first, "other_layer": other, "other_position": other}
    result = xr.Dataset(
        {
            name: (DIMS, values.reshape(shape))
            for name, values in (("r2", estimate), ("r2_low", low), ("r2_high", high), ("p", p))
        },
        coords={dim: run[dim.removeprefix("other_")].values for dim, run in labels.items()},
    )
    return result.assign(r2_null=float(np.quantile(greatest, 0.95))).assign_attrs(
        kind="procrustes", first=first.attrs.get("run", ""), second=other.attrs.get("run", ""), n_shared=n_shared,
        n_example=rows.shape[1], n_component=components, n_resample=resamples, n_shuffle=shuffles, seed=seed,
    )  # fmt: skip


def _largest(order: Array, left: Array, right: Array, fitted: Array, held: Array) -> float:
    """Greatest r2 of all pairs of cells where the problems of the second are in another order."""
    return largest(_r2(*_mean_errors(left, right[:, order], fitted, held)))


def _scores(run: xr.Dataset, rows: Array, fitted: Array, components: int) -> Array:
    """Scores of the principal components of each layer and position: (cell, problem, component)."""
    layers = ([layer] for layer in layers_of(run, rows))
    return np.concatenate([*spread(_layer_scores, layers, [fitted, components])])


def _layer_scores(layer: xr.DataArray, fitted: Array, components: int) -> Array:
    """Scores of the principal components of each position of a layer: (cell, problem, component)."""
    cells = []
    for states in states_of(layer):
        with np.errstate(invalid="ignore"):
            centred = states - states[fitted].mean(0)
            varies = (centred[fitted] ** 2).sum() > CONSTANT * (states**2).sum() and np.isfinite(centred).all()
        if varies:
            axes = np.linalg.svd(centred[fitted], full_matrices=False)[2][:components]
        cells.append(centred @ axes.T if varies else np.full((len(states), components), np.nan))
    return np.stack(cells)


def _errors(left: Array, right: Array, fitted: Array, held: Array) -> tuple[Array, Array]:
    """Squared error and squared size of each held-out problem, for every pair of cells: (cell, other_cell, problem)."""
    wrong = np.full((len(left), len(right), len(held)), np.nan)
    size = np.broadcast_to((right[:, held] ** 2).sum(-1), wrong.shape)
    known = np.isfinite(right).all((1, 2))
    for index, (cell, targets, turn, scale) in enumerate(_rotations(left, right[known], fitted)):
        moved = scale[:, None, None] * (cell[held] @ turn)
        wrong[index, known] = ((targets[:, held] - moved) ** 2).sum(-1)
    return wrong, size


def _mean_errors(left: Array, right: Array, fitted: Array, held: Array) -> tuple[Array, Array]:
    """Mean of :func:`_errors` over the problems, (cell, other_cell), without those of each.

    As a rotation keeps lengths, |Y - s X Q|^2 = |Y|^2 - 2 s tr(Q' X'Y) + s^2 |X|^2.
    """
    wrong = np.full((len(left), len(right)), np.nan)
    size = np.broadcast_to((right[:, held] ** 2).sum((-1, -2)), wrong.shape)
    known = np.isfinite(right).all((1, 2))
    for index, (cell, targets, turn, scale) in enumerate(_rotations(left, right[known], fitted)):
        along = (turn * (cell[held].T @ targets[:, held])).sum((-1, -2))
        wrong[index, known] = size[index, known] - 2 * scale * along + scale**2 * (cell[held] ** 2).sum()
    return wrong / len(held), size / len(held)


def _rotations(left: Array, right: Array, fitted: Array) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Each cell, the others, and the rotations and scales that bring it closest to them.

    (problem, component), (other_cell, problem, component), (other_cell, component, component) and (other_cell,); NaN
    where the cell is.
    """
    centred = right[:, fitted] - right[:, fitted].mean(1, keepdims=True)
    for cell in left:
        if not np.isfinite(cell).all():
            empty = np.full((len(right), cell.shape[1], right.shape[2]), np.nan)
            yield cell, right, empty, empty[:, 0, 0]
            continue
        u, s, v = np.linalg.svd(cell[fitted].T @ centred)
        yield cell, right, u @ v, s.sum(-1) / (cell[fitted] ** 2).sum()


def _r2(wrong: Array, size: Array) -> Array:
    return np.asarray(1 - wrong / np.where(size > 0, size, np.nan))
