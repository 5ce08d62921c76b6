"""How many directions the states of a layer and position fill, how long they are, and how far the next thought turns.

With the eigenvalues l of the covariance of states over problems:

    explained_k = l_k / sum(l)                            share of the variance along the k-th principal component
    participation_ratio = sum(l)^2 / sum(l^2)             number of directions that share the variance evenly
                                                          (Gao et al., *A theory of multineuronal dimensionality,
                                                          dynamics and measurement*, bioRxiv 214262, 2017), each sum
                                                          without bias (:func:`participation_ratio`)

and with the distances r1 < r2 of a state to its two nearest neighbours among the n problems:

    two_nn = (n - 1) / sum(ln(r2 / r1))                   intrinsic dimension, also of a curved set (Facco et al.,
                                                          *Estimating the intrinsic dimension of datasets by a minimal
                                                          neighborhood information*, Sci. Rep. 2017; this form by Denti
                                                          et al., *Sci. Rep.* 2022, eq. 6)

The null shuffles every component of the states over the problems, each for itself: what is left is the mean and the
spread of each component.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.cluster import spread
from analyze.labels import inherited, require_dims
from analyze.similarity.cka import CONSTANT, FEWEST, layers_of, shared_problems, states_of
from schemas.progress import Progress, silent
from schemas.resampling import percentiles

Array = np.ndarray[Any, np.dtype[Any]]
STATISTICS = {
    "explained": (("position", "component"), "share of the variance"),
    "participation_ratio": (
        ("position",),
        "directions that share the variance evenly, without the bias of few problems",
    ),
    "two_nn": (("position",), "intrinsic dimension by the two nearest neighbours"),
    "norm": (("position",), "mean length"),
    "cosine": (("position", "other_position"), "mean cosine between positions of a problem"),
    "centred_cosine": (
        ("position", "other_position"),
        "mean cosine between positions of a problem, less the mean over problems",
    ),
}

BOUNDS = {"explained": (0.0, 1.0), "participation_ratio": (1.0, np.inf), "two_nn": (0.0, np.inf), "norm": (0.0, np.inf)}
"""Least and greatest value of a statistic, to which ends of intervals are cut; cosines are between -1 and 1."""


def geometry(
    run: xr.Dataset,
    *,
    components: int = 8,
    max_problems: int = 300,
    resamples: int = 100,
    shuffles: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """Shape of the states of every layer and position over the problems.

    The first example of each problem is used, and of more than ``max_problems`` problems a random draw; one layer is in
    memory at a time, whatever the number of examples. Time is that of an eigenvalue problem, as large as the smaller of
    the numbers of problems and components, for each position and draw.

    Parameters
    ----------
    run
        With ``hidden_state`` (example, layer, position, hidden), ``question`` and ``token``.
    components
        Principal components whose share is reported.
    resamples
        Halves of the problems drawn for the 95% intervals; see :func:`analyze.similarity.cka.similarity`.
    shuffles
        Draws of the null.
    progress
        Called as ``progress(done, total)``, in layers.

    Returns
    -------
    Dataset
        ``explained`` (layer, position, component), ``participation_ratio``, ``two_nn`` and ``norm`` (layer, position),
        ``cosine`` and ``centred_cosine`` (layer, position, other_position), each with ``_low``, ``_high`` and
        ``_null``, the mean over shuffles. NaN where the states of a cell do not vary or are infinite.

    Raises
    ------
    UsageError
        If fewer than eight problems have all the positions.
    """
    require_dims(run["hidden_state"], ["example", "layer", "position", "hidden"], "the geometry of states")
    rng = np.random.default_rng(seed)
    rows, n_shared = shared_problems(run, run, max_problems, rng)
    n = rows.shape[1]
    components = min(components, n // 2 - 1, run.sizes["hidden"])
    halves = [rng.permutation(n)[: n // 2] for _ in range(resamples)]
    layers: list[dict[str, Array]] = []
    calls = zip(layers_of(run, rows[0]), rng.spawn(run.sizes["layer"]), strict=True)
    for layer in spread(_layer, calls, [halves, components, shuffles]):
        layers.append(layer)
        progress(len(layers), run.sizes["layer"])
    result = xr.Dataset(
        coords={
            "layer": run["layer"].values,
            "position": run["position"].values,
            "other_position": run["position"].values,
            "component": np.arange(components),
        }
    )
    for name, (dims, long_name) in STATISTICS.items():
        for end, said in (("", ""), ("_low", ""), ("_high", ""), ("_null", ", mean over shuffles")):
            values = np.stack([layer[name + end] for layer in layers])
            result[name + end] = (("layer", *dims), values, {"long_name": long_name + said, "units": "1"})
    return result.assign_attrs(
        inherited(run, kind="geometry", n_example=n, n_shared=n_shared, n_resample=resamples, n_shuffle=shuffles)
    )


def _layer(
    layer: xr.DataArray, rng: np.random.Generator, halves: list[Array], components: int, shuffles: int
) -> dict[str, Array]:
    """Statistics of one layer, with intervals and null."""
    states = states_of(layer)
    cells = Cells(states)
    (whole,) = cells.shapes([np.arange(states.shape[1])], components)
    null = [shape_of(rng.permuted(states, axis=1), components) for _ in range(shuffles)]
    return _summary(whole, cells.shapes(halves, components), null, states.shape[1])


def shape_of(states: Array, components: int) -> dict[str, Array]:
    """The statistics of this module for states (position, problem, hidden)."""
    (shape,) = Cells(states).shapes([np.arange(states.shape[1])], components)
    return shape


class Cells:
    """States (position, problem, hidden) and their inner products, from which every draw of problems is computed.

    A draw of n problems then costs an eigenvalue problem of size n and no product of n x n x hidden.
    """

    def __init__(self, states: Array) -> None:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            self.length = np.sqrt(np.einsum("pnh,pnh->pn", states, states))
            self.cosine = _between(states) / _between(self.length[..., None])
            self.centred = states - states.mean(1, keepdims=True)  # a large mean would cost digits
            self.product = _between(self.centred)
            self.gram = self.centred @ self.centred.swapaxes(-1, -2)  # (position, problem, problem)

    def shapes(self, draws: Sequence[Array], components: int) -> list[dict[str, Array]]:
        """The statistics of this module for each draw of problems."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            means, alongs = self._along_means(draws)
        return [self._shape(*one, components) for one in zip(draws, means, alongs, strict=True)]

    def _shape(self, problems: Array, mean: Array, along: Array, components: int) -> dict[str, Array]:
        n, width = len(problems), self.centred.shape[-1]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            gram = self.gram[:, problems[:, None], problems]
            gram -= gram.mean(-1, keepdims=True)
            gram -= gram.mean(-2, keepdims=True)
            values = eigenvalues(gram if n <= width else self._covariance(problems))
            total = values.sum(-1)
            length = self.length[:, problems]
            known = total > CONSTANT * (length**2).sum(-1)  # false where a state is not finite
            total = np.where(known, total, np.nan)
            return {
                "explained": values[:, :components] / total[:, None],
                "participation_ratio": np.where(known, participation_ratio(gram), np.nan),
                "two_nn": np.where(known, [two_nn(cell) for cell in gram], np.nan),
                "norm": np.where(np.isfinite(length).all(1), length.mean(1), np.nan),
                "cosine": self.cosine[problems].mean(0),
                "centred_cosine": np.where(known[:, None] & known, self._centred_cosine(problems, mean, along), np.nan),
            }

    def _covariance(self, problems: Array) -> Array:
        centred = self.centred[:, problems] - self.centred[:, problems].mean(1, keepdims=True)
        return np.asarray(centred.swapaxes(-1, -2) @ centred)

    def _along_means(self, draws: Sequence[Array]) -> tuple[Array, Array]:
        """Mean over each draw (draw, position, hidden), and products with it (draw, problem, position, of position)."""
        n_position, n, width = self.centred.shape
        share = np.zeros((len(draws), n))
        for row, problems in zip(share, draws, strict=True):
            row[problems] = 1 / len(problems)
        means = (share @ self.centred).swapaxes(0, 1)
        along = self.centred @ means.reshape(-1, width).T  # (position, problem, draw x of position)
        return means, along.reshape(n_position, n, len(draws), n_position).transpose(2, 1, 0, 3)

    def _centred_cosine(self, problems: Array, mean: Array, along: Array) -> Array:
        """Mean cosine between positions once the mean over these problems is taken off: (position, other position)."""
        along = along[problems]
        product = self.product[problems] - along - along.swapaxes(-1, -2) + mean @ mean.T
        length = np.sqrt(np.einsum("npp->np", product))
        return np.asarray((product / length[:, :, None] / length[:, None]).mean(0))


def _between(states: Array) -> Array:
    """Inner products of the states of a problem at every two positions: (problem, position, other position)."""
    by_problem = states.swapaxes(0, 1)
    return np.asarray(by_problem @ by_problem.swapaxes(-1, -2))


def eigenvalues(gram: Array) -> Array:
    """Eigenvalues of inner products (..., n, n), the largest first: (..., n); NaN where a product is."""
    finite = np.asarray(np.isfinite(gram).all((-1, -2)))
    values = np.linalg.eigvalsh(np.where(finite[..., None, None], gram, 0))[..., ::-1]
    return np.where(finite[..., None], np.maximum(values, 0), np.nan)


def participation_ratio(gram: Array) -> Array:
    """Squared sum of the covariance's eigenvalues over the sum of their squares: (..., n, n) to (...).

    Of n problems the ratio of the sample's own sums is about P / (1 + P / n), too few directions. Here both sums are
    without bias, whatever the distribution, of four problems or more. NaN where the second is not above 0: so few
    problems cannot tell so many directions.

    Parameters
    ----------
    gram
        Inner products of centred states.

    References
    ----------
    Himeno and Yamada, *Estimations for some functions of covariance matrix in high dimension under non-normality and
    its applications*, Journal of Multivariate Analysis 130 (2014) 27-44.
    """
    n = gram.shape[-1]
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    trace, of_square = square.sum(-1) / (n - 1), (gram**2).sum((-2, -1)) / (n - 1) ** 2
    fourth = n * (square**2).sum(-1) / (n - 1)
    squared_sum = 2 * of_square + (n**2 - 3 * n + 1) * trace**2 - fourth
    sum_of_squares = (n - 1) * (n - 2) * of_square + trace**2 - fourth
    return np.asarray(squared_sum / np.where(sum_of_squares > 1e-12 * squared_sum, sum_of_squares, np.nan))


def two_nn(gram: Array) -> float:
    """Intrinsic dimension from inner products of centred states (problem, problem).

    NaN where fewer than eight of them differ from all others.
    """
    square = np.diag(gram)
    distance = np.maximum(square[:, None] + square - 2 * gram, 0)
    np.fill_diagonal(distance, np.inf)
    if np.isnan(distance).any():
        return float("nan")
    first, second = np.partition(distance, 1, axis=1)[:, :2].T
    apart = first > 1e-10 * np.median(square)  # of two that are the same, the ratio of distances is rounding
    ratios = 0.5 * np.log(second[apart] / first[apart])  # distances are squared
    return float((apart.sum() - 1) / ratios.sum()) if apart.sum() >= FEWEST and ratios.sum() > 0 else float("nan")


def _summary(
    whole: dict[str, Array], drawn: list[dict[str, Array]], null: list[dict[str, Array]], n_problem: int
) -> dict[str, Array]:
    """Each statistic with its interval, the spread of halves about their mean, and its mean under the null."""
    summary: dict[str, Array] = {}
    for name, value in whole.items():
        draws = np.stack([one[name] for one in drawn])
        low, high = percentiles(np.moveaxis(draws - draws.mean(0), 0, -1), n_problem)
        least, most = BOUNDS.get(name, (-1.0, 1.0))
        summary |= {
            name: value,
            f"{name}_low": np.maximum(value + low, least),
            f"{name}_high": np.minimum(value + high, most),
        }
        summary[f"{name}_null"] = np.stack([one[name] for one in null]).mean(0)
    return summary
