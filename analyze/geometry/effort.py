"""Cost of the geometry of states: products that are counted, and steps that are timed on made-up states."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from analyze.geometry.components import kept_counts, leading, most_kept
from analyze.geometry.procrustes import _mean_errors
from analyze.geometry.shape import Array, Cells, shape_of

if TYPE_CHECKING:
    from analyze.geometry.command import GeometrySettings

Step = tuple[float, Callable[[], object]]
DRAWS = 10
"""Draws of problems in a step."""
CELLS = 16
"""Others that a cell is turned into in a step."""


def layer_steps(n: int, width: int, n_position: int, n_layer: int, settings: "GeometrySettings") -> list[Step]:
    """The shape of a layer's cells from half of the n problems, and of all once their components are shuffled."""
    halves, rng = [np.arange(n // 2)] * DRAWS, np.random.default_rng(0)

    def drawn() -> object:
        return made_cells(n_position, n, width).shapes(halves, settings.components)

    def shuffled() -> object:
        return shape_of(rng.permuted(made_up(n_position, n, width), axis=1), settings.components)

    return [(n_layer * settings.resamples / DRAWS, drawn), (n_layer * (settings.shuffles + 1), shuffled)]


def turning_steps(n: int, width: int, n_cell: int, n_other: int, settings: "GeometrySettings") -> list[Step]:
    """The axes of each cell, of one run or two, and rotations between every two."""
    fitted, held = np.split(np.arange(n), [n // 2])

    def turned() -> object:
        scores = made_up(CELLS, n, min(settings.rotated, n // 2 - 1, width))
        return _mean_errors(scores[:1], scores, fitted, held)

    return [
        (n_cell + n_other, lambda: np.linalg.svd(made_up(1, n, width)[0, fitted], full_matrices=False)),
        (n_cell * (n_other or n_cell) / CELLS * (1 + settings.shuffles), turned),
    ]


def axes_steps(width: int, n_layer: int, settings: "GeometrySettings") -> list[Step]:
    """The principal axes of a layer, of all its problems and of half of them."""
    return [(n_layer, partial(axes_of, width, k)) for k in (settings.components, most_kept(width))]


def axes_products(n_state: int, width: int, n_token: int) -> float:
    """Operations of the products of a layer of states: covariances, and half of the states read with few axes."""
    columns = sum(k + 2 for k in kept_counts(width))
    read = n_state / 2 * (width + 2 * columns) + 2 * width * most_kept(width)
    covariances = 1.5 * n_state * width**2 / 2  # of which half is worked out, as they are symmetric
    return 2.0 * (covariances + n_token * read)


def axes_of(width: int, n: int) -> object:
    """The first principal axes of made-up states."""
    return leading(made_covariance(width), n)


@cache
def made_up(n_cell: int, n: int, width: int) -> Array:
    """Normal numbers (cell, problem, component)."""
    return np.random.default_rng(0).normal(size=(n_cell, n, width))


@cache
def made_cells(n_cell: int, n: int, width: int) -> Cells:
    """Cells of normal numbers."""
    return Cells(made_up(n_cell, n, width))


@cache
def made_covariance(width: int) -> Array:
    """A symmetric matrix of normal numbers: the axes of few states, which are of low rank, would be found sooner."""
    values = np.random.default_rng(0).normal(size=(width, width))
    return np.asarray(values + values.T)
