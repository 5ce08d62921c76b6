"""Subspaces of states that are said to carry a quantity, in order of what each further rank adds."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr
from sklearn.linear_model import LogisticRegression

from schemas import UsageError

TOLERANCE = 1e-5
"""Singular values below this share of the largest one are rounding."""


class Fit(NamedTuple):
    """Ordered vectors of which the first k span the subspace of rank k."""

    basis: np.ndarray
    """``(rank, hidden)``: what spans it."""
    dual: np.ndarray
    """``(rank, hidden)``: what reads the coordinates, ``dual @ basis.T`` being the identity; the same as ``basis``
    where that is orthonormal."""
    mean: np.ndarray
    """``(hidden,)`` of the states it was fitted on."""

    def rank(self, k: int) -> xr.Dataset:
        """The subspace of rank k, as :class:`extract.reenter.values.StoredValues` takes it.

        Raises
        ------
        UsageError
            If there are fewer vectors.
        """
        if k > len(self.basis):
            raise UsageError(f"a subspace has rank {len(self.basis)} at most; {k} was asked for")
        return xr.Dataset(
            {
                "basis": (("rank", "hidden"), self.basis[:k].astype(np.float32)),
                "dual": (("rank", "hidden"), self.dual[:k].astype(np.float32)),
                "mean": ("hidden", self.mean.astype(np.float32)),
            }
        )


def orthonormal(vectors: np.ndarray, mean: np.ndarray) -> Fit:
    """Right singular vectors of ``(n, hidden)``, the largest first."""
    _, size, basis = np.linalg.svd(np.asarray(vectors, dtype=np.float64), full_matrices=False)
    basis = basis[size > TOLERANCE * size[0]] if size[0] > 0 else basis[:0]
    return Fit(basis, basis, mean)


def deviation(states: np.ndarray) -> np.ndarray:
    """Standard deviation ``(hidden,)`` of each component of ``(n, hidden)``; 1 where all are the same."""
    scale = (states - states[0]).std(0, dtype=np.float64)  # of what is the same exactly 0, and no rounding
    return np.where(scale > 0, scale, 1.0)


def logistic_probe(states: np.ndarray, label: np.ndarray) -> tuple[LogisticRegression, np.ndarray, np.ndarray]:
    """A logistic probe of the classes on states scaled to one standard deviation; their mean and deviation."""
    mean, scale = states.mean(0), deviation(states)
    with warnings.catch_warnings():  # scikit-learn takes many classes of few examples for a regression
        warnings.filterwarnings("ignore", "The number of unique classes is greater than")
        return LogisticRegression(C=1.0, max_iter=500).fit((states - mean) / scale, label), mean, scale


def one_hot(label: np.ndarray) -> np.ndarray:
    """Classes as columns ``(n, class)`` of 0 and 1."""
    return np.asarray(label[:, None] == np.unique(label)[None, :], dtype=np.float64)


def class_spread(states: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Means ``(class, hidden)`` of the classes about that of all, each weighted by the root of its count."""
    mean = states.mean(0)
    weighted = [(states[label == value].mean(0) - mean) * np.sqrt((label == value).sum()) for value in np.unique(label)]
    return np.stack(weighted)


def class_means(states: np.ndarray, label: np.ndarray) -> Fit:
    """What the means of the classes span: principal components of them, each weighted by its count."""
    return orthonormal(class_spread(states, label), states.mean(0))


def share_inside(fit: Fit, rank: int, vectors: np.ndarray) -> float:
    """Share of the squares of vectors ``(n, hidden)`` that projecting dimensions out takes away; NaN of zeros."""
    if not vectors.any():
        return float("nan")
    left = vectors - vectors @ fit.dual[:rank].T @ fit.basis[:rank]
    return float(1 - (left**2).sum() / (vectors**2).sum())


def principal(states: np.ndarray, label: np.ndarray) -> Fit:
    """Principal components of the states, whatever the label: where they vary most."""
    mean = states.mean(0)
    return orthonormal(states - mean, mean)


def probe_directions(states: np.ndarray, label: np.ndarray) -> Fit:
    """What the weights of a logistic probe of the classes span, on states scaled to one standard deviation."""
    probe, mean, scale = logistic_probe(states, label)
    return orthonormal(probe.coef_ / scale, mean)


def leace(states: np.ndarray, label: np.ndarray) -> Fit:
    """Least-squares concept erasure: the smallest change after which no linear read-out of the classes beats chance.

    With W the whitening of the states and U the left singular vectors of W Cov(x, z), z the classes as columns, the
    projection is W^+ U U^T W. The first k columns of U erase what correlates most. Components are given in standard
    deviations of their own, which changes none of this, or one of them might be so large that all else passed for
    rounding.

    References
    ----------
    Belrose et al., *LEACE: Perfect linear concept erasure in closed form*, NeurIPS 2023, theorem 4.3.
    """
    mean, scale = states.mean(0), deviation(states)
    centred = (states - mean).astype(np.float64) / scale
    classes = one_hot(label)
    size, vectors = np.linalg.eigh(centred.T @ centred / len(states))
    kept = size > TOLERANCE * size[-1]
    size, vectors = size[kept], vectors[:, kept]
    whiten, colour = (vectors * power @ vectors.T for power in (size**-0.5, size**0.5))
    cross = whiten @ centred.T @ (classes - classes.mean(0)) / len(states)
    left, strength, _ = np.linalg.svd(cross, full_matrices=False)
    left = left[:, strength > TOLERANCE * strength[0]]
    return Fit((colour @ left).T * scale, (whiten @ left).T / scale, mean)


def random_subspace(hidden: int, mean: np.ndarray, seed: int, apart: np.ndarray | None = None) -> Fit:
    """Directions drawn evenly, orthonormal; or only among those orthogonal to the rows of ``apart (n, hidden)``."""
    drawn = np.random.default_rng([seed, 41]).standard_normal((hidden, hidden))
    if apart is not None:
        drawn = drawn - apart.T @ (apart @ drawn)
    basis = np.linalg.qr(drawn)[0].T[: hidden - (0 if apart is None else len(apart))]
    return Fit(basis, basis, mean)


FITS: dict[str, Callable[[np.ndarray, np.ndarray], Fit]] = {
    "means": class_means,
    "pca": principal,
    "probe": probe_directions,
    "leace": leace,
}
"""Subspaces that are fitted on states ``(row, hidden)`` and labels ``(row,)``."""
