"""Nested cross-validation of ridge probes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analyze.probes.nested import Array, Index, NestedFit, _Moments, _moments, one_thread, training_sets

_RANK_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class _Rotation:
    """How weights in the basis of one training set turn into weights on unscaled, centred states."""

    dual: bool
    """Whether the basis spans rows (few of them) or components."""
    rows: Index
    vector: Array  # (training row, rank) eigenvectors over their roots, or (hidden, rank) eigenvectors
    mean: Array  # (hidden,), of the centred states
    scale: Array  # (hidden,)

    def weights(self, w: Array, states: Array) -> Array:
        """(..., hidden) of ``w`` (..., rank); ``states`` (example, hidden) are centred."""
        turned = w @ self.vector.T
        if not self.dual:
            return np.asarray(turned / self.scale)
        total = turned.sum(axis=-1, keepdims=True)
        return np.asarray((turned @ states[self.rows] - total * self.mean) / self.scale**2)


@dataclass(frozen=True, slots=True)
class _Basis:
    """One training set, standardised and rotated; features of every example."""

    features: Array  # (example, rank)
    inside: npt.NDArray[np.bool_]  # (example,): the training rows
    eigenvalue: Array  # (rank,)
    rotation: _Rotation


def _decompose(states: Array, moments: _Moments, fold: Index, n_fold: int) -> Iterator[_Basis]:
    """Standardise and rotate every training set of centred ``states`` (example, hidden), their moments centred too."""
    for index, left_out in enumerate(training_sets(n_fold)):
        mean, scale = moments.mean[index], moments.scale[index]
        inside = ~np.isin(fold, left_out)
        rows = np.flatnonzero(inside)
        dual = len(rows) < states.shape[1]
        standard = states * (1.0 / scale)
        if dual:
            gram = standard @ standard.T
            shift = standard @ (mean / scale)  # (example,)
            gram += np.sum((mean / scale) ** 2) - shift[:, None] - shift
            gram = gram[:, rows]
            eigenvalue, vector = np.linalg.eigh(gram[rows])
            good = eigenvalue > _RANK_TOLERANCE * max(eigenvalue[-1], np.finfo(float).tiny)
            vector = np.where(good, vector / np.sqrt(np.where(good, eigenvalue, 1.0)), 0.0)
            features = gram @ vector
            eigenvalue = np.where(good, eigenvalue, 0.0)
        else:
            standard -= mean / scale
            trained = standard[rows]
            eigenvalue, vector = np.linalg.eigh(trained.T @ trained)
            eigenvalue = np.maximum(eigenvalue, 0.0)
            features = standard @ vector
        rotation = _Rotation(dual=dual, rows=rows, vector=vector, mean=mean, scale=scale)
        yield _Basis(features=features, inside=inside, eigenvalue=eigenvalue, rotation=rotation)


def _r2(value: Array, truth: Array) -> Array:
    """1 - squared error / squared deviation from the truth's mean, over the first axis."""
    total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    error = ((truth - value) ** 2).sum(axis=0)
    return np.asarray(np.where(total > 0, 1.0 - error / np.where(total > 0, total, 1.0), np.nan))


@one_thread()
def nested_ridge(states: Array, value: Array, fold: Index, *, penalty: Sequence[float]) -> NestedFit:
    """Nested cross-validation of a ridge probe on one cell.

    Each fit minimises ``|y - x w - b|^2 + alpha |w|^2``, scikit-learn's Ridge; the penalty with the smallest mean
    squared error over the inner folds is taken. Every penalty is closed form in the basis of its training set.

    Parameters
    ----------
    states : (example, hidden)
    value : (example, target)
        The columns after the first are shuffled controls.
    fold : (example,)
        As for :func:`analyze.probes.nested.nested_logistic`.
    penalty : floats
        Values of ``alpha`` to choose from; the first of equals wins.

    Returns
    -------
    NestedFit
    """
    states = np.asarray(states, dtype=np.float64)
    centre = np.median(states, axis=0)
    value = np.asarray(value, dtype=np.float64)
    penalties = np.asarray(penalty, dtype=np.float64)
    n_fold, n_penalty = int(fold.max()) + 1, len(penalties)
    n_example, n_target = value.shape
    inner = np.zeros((n_fold, n_fold, n_penalty, n_target))
    outer = np.zeros((n_fold, n_penalty, n_target))
    training = np.zeros((n_fold, n_penalty, n_target))
    predicted = np.zeros((n_penalty, n_example, n_target))
    coefficient = np.zeros((n_penalty, n_fold, 1, states.shape[1]))
    intercept = np.zeros((n_penalty, n_fold, 1))
    whole = np.zeros(n_penalty)
    members = [np.flatnonzero(fold == part) for part in range(n_fold)]
    moments = _moments(states, fold, n_fold)
    moments = replace(moments, mean=moments.mean - centre)
    states = states - centre
    for left_out, basis in zip(training_sets(n_fold), _decompose(states, moments, fold, n_fold), strict=True):
        rows = basis.rotation.rows
        mean = value[rows].mean(axis=0)
        projected = basis.features[rows].T @ (value[rows] - mean)  # (rank, target)
        for number, alpha in enumerate(penalties):
            w = projected / (basis.eigenvalue + alpha)[:, None]
            fitted = basis.features @ w + mean
            error = (fitted - value) ** 2
            if len(left_out) == 2:
                first, second = left_out
                inner[first, second, number] = -error[members[second]].mean(axis=0)
                inner[second, first, number] = -error[members[first]].mean(axis=0)
            elif left_out:
                only, held_out = left_out[0], members[left_out[0]]
                outer[only, number] = -error[held_out].mean(axis=0)
                training[only, number] = _r2(fitted[rows], value[rows])
                predicted[number, held_out] = fitted[held_out]
                raw = basis.rotation.weights(w[:, 0], states)
                coefficient[number, only, 0] = raw
                intercept[number, only, 0] = mean[0] - raw @ (basis.rotation.mean + centre)
            else:
                whole[number] = _r2(fitted, value)[0]
    best = (inner.sum(axis=1) / (n_fold - 1)).argmax(axis=1)  # (outer, target)
    folds, targets = np.arange(n_fold)[:, None], np.arange(n_target)
    plain = outer[..., 0].mean(axis=0)
    refit = int(plain.argmax())
    return NestedFit(
        score=predicted[best[fold], np.arange(n_example)[:, None], targets][..., None],
        chosen=penalties[best],
        training=training[folds, best, targets],
        coefficient=coefficient[best[:, 0], np.arange(n_fold)],
        intercept=intercept[best[:, 0], np.arange(n_fold)],
        refit_training=float(whole[refit]),
    )
