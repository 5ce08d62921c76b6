"""What the shape of states takes: products that are counted, and steps of it on made-up states that are timed."""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from analyze.geometry.components import fit, kept_counts
from analyze.geometry.procrustes import _mean_errors
from analyze.geometry.shape import Array, Cells, shape_of

if TYPE_CHECKING:
    from analyze.geometry.command import GeometrySettings

Step = tuple[float, Callable[[], object]]
CELLS = 16
"""Others that a cell is turned into in a step."""


def cell_steps(n: int, width: int, n_cell: int, settings: "GeometrySettings") -> list[Step]:
    """The shape of a cell of n problems from half of them, and of all once they are shuffled."""
    half = np.arange(n // 2)
    return [
        (n_cell * settings.resamples, lambda: made_cells(n, width).shape(half, settings.components)),
        (n_cell * (settings.shuffles + 1), lambda: shape_of(made_up(1, n, width), settings.components)),
    ]


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


def axes_steps(width: int, n_layer: int) -> list[Step]:
    """The principal axes of a layer, of all its problems and of half of them."""
    return [(2 * n_layer, partial(fit, made_up(1, 8, width)))]


def axes_products(n_state: int, width: int, n_token: int) -> float:
    """Operations of the products of a layer of states: covariances, and half of the states read with few axes."""
    columns = sum(k + 2 for k in kept_counts(width))
    read = n_state / 2 * (width + 2 * columns) + 2 * width * max(kept_counts(width), default=0)
    return 2.0 * 1.5 * n_state * width**2 + 2.0 * n_token * read


@cache
def made_up(n_cell: int, n: int, width: int) -> Array:
    """Normal numbers (cell, problem, component)."""
    return np.random.default_rng(0).normal(size=(n_cell, n, width))


@cache
def made_cells(n: int, width: int) -> Cells:
    """A cell of normal numbers."""
    return Cells(made_up(1, n, width))
