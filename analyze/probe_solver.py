"""Nested cross-validation of linear probes on one cell, every penalty, control and class together.

The outer folds serve as inner folds too: what is tried on fold ``j`` for the outer fold ``i`` is trained on all rows
outside ``i`` and ``j``, and serves the pair the other way round as well. Five folds need 1 + 5 + 10 training sets
where nested cross-validation from scratch fits 5 x (5 + 1), and every fit, inner or outer, has its own scaling.

Classes: the logistic regressions of all training sets and shuffled controls are solved together, see
:mod:`analyze.logistic`. A number: each training set is standardised and decomposed once (eigenvectors of its Gram
matrix where rows are fewer than columns, of its covariance otherwise), which makes every ridge solution closed.

Arrays only; labels live in :mod:`analyze.probes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from analyze.logistic import Problems, logistic_path, probability_of

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
Selection = Literal["accuracy", "log_loss"]

_RANK_TOLERANCE = 1e-12
_SINGLE = 1e-4  # tolerances that float32 can reach


@dataclass(frozen=True, slots=True)
class NestedFit:
    """What nested cross-validation leaves of one cell."""

    score: Array
    """(example, target, class): held-out probability of each class, or (example, target, 1) the held-out value.
    Target 0 is the labels, the others are its shuffled controls."""
    chosen: Array
    """(fold, target): penalty chosen inside each outer training set."""
    training: Array
    """(fold, target): accuracy (R2 of a number) on the outer training rows themselves."""
    coefficient: Array
    """(fold, class, hidden): weights on unscaled states, one class where there are two, labels only."""
    intercept: Array
    """(fold, class)."""
    refit_training: float
    """Accuracy (R2) on all rows of the probe fitted to all rows, with the penalty chosen by plain cross-validation."""
    refit_chosen: float
    """The penalty of that probe."""
    cross_validated: float
    """Its plain cross-validation score, the one the penalty was chosen by."""


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


@dataclass(frozen=True, slots=True)
class _Moments:
    """Mean and scale of every training set, from one pass over the states."""

    mean: Array  # (set, hidden)
    scale: Array  # (set, hidden)
    constant: npt.NDArray[np.bool_]  # (set, hidden)


def training_sets(n_fold: int) -> list[tuple[int, ...]]:
    """Folds left out of each training set: none, each one, each pair."""
    return [(), *((fold,) for fold in range(n_fold)), *combinations(range(n_fold), 2)]


def _moments(states: Array, fold: Index, n_fold: int) -> _Moments:
    """Moments of the training sets of centred ``states`` (example, hidden), out of those of the folds."""
    member = np.equal(fold, np.arange(n_fold)[:, None]).astype(states.dtype)  # (fold, example)
    kept = np.array([[part not in left_out for part in range(n_fold)] for left_out in training_sets(n_fold)], float)
    number = (kept @ member.sum(axis=1))[:, None]
    square = member @ states**2  # (fold, hidden)
    mean = kept @ (member @ states) / number
    variance = kept @ square / number - mean**2
    # A component that does not vary keeps its scale, as scikit-learn's StandardScaler has it.
    constant = variance <= np.finfo(states.dtype).eps ** 0.75 * square.sum(axis=0) / len(fold)
    return _Moments(mean=mean, scale=np.sqrt(np.where(constant, 1.0, variance)), constant=constant)


def _decompose(states: Array, fold: Index, n_fold: int) -> Iterator[_Basis]:
    """Standardise and rotate every training set of centred ``states`` (example, hidden)."""
    moments = _moments(states, fold, n_fold)
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


def _loss(logit: Array, hot: Array) -> Array:
    """Negative log likelihood; logit (class, set, target, row), hot (class, target, row), result without class."""
    if len(logit) == 1:
        return np.asarray((np.logaddexp(0.0, logit) - hot[:, None] * logit)[0])
    top = logit.max(axis=0)
    return np.asarray(np.log(np.exp(logit - top).sum(axis=0)) + top - (hot[:, None] * logit).sum(axis=0))


def _hits(logit: Array, hot: Array) -> Array:
    """Whether the likeliest class is the label's; as :func:`_loss`."""
    if len(logit) == 1:
        return np.asarray((logit[0] > 0) == (hot > 0.5))
    return np.asarray(logit.argmax(axis=0) == hot.argmax(axis=0))


def nested_logistic(
    states: Array,
    label: Index,
    fold: Index,
    *,
    penalty: Sequence[float],
    selection: Selection = "log_loss",
    tolerance: float = 1e-3,
) -> NestedFit:
    """Nested cross-validation of a logistic probe on one cell.

    Parameters
    ----------
    states : (example, hidden)
    label : (example, target)
        Integer classes from 0; the columns after the first are shuffled controls.
    fold : (example,)
        Fold of each example, from 0, none empty; examples of one problem in one fold.
    penalty : floats
        Values of ``C`` to choose from, ascending.
    selection : {"log_loss", "accuracy"}
        What chooses among them on the inner folds; the first of equals, that is the strongest penalty, wins.
    tolerance : float
        See :func:`analyze.logistic.logistic_path`. By default held-out probabilities are within about 0.001 of the
        exact ones, within 0.005 at penalties so weak that the classes are separated.

    Returns
    -------
    NestedFit

    Notes
    -----
    Memory is a few arrays of the size of the states, in float32 unless ``tolerance`` is below 0.0001, and as many
    numbers as examples for each penalty, training set and target. Time is some 100 to 300 products of a matrix of
    (example, example) or twice (example, hidden), whichever is less, for each path of penalties.
    """
    n_fold, n_class = int(fold.max()) + 1, int(label.max()) + 1
    n_example, n_target = label.shape
    sets = training_sets(n_fold)
    penalties = np.asarray(penalty, dtype=np.float64)
    width = np.float32 if tolerance >= _SINGLE else np.float64
    centre = states.mean(axis=0, dtype=np.float64)
    features = np.subtract(states, centre, out=np.empty(states.shape, width), casting="same_kind")
    moments = _moments(features, fold, n_fold)
    hot: Array = np.equal(label.T, np.arange(n_class)[:, None, None]).astype(width)  # (class, target, example)
    if n_class == 2:
        hot = hot[1:]
    inside = np.array([~np.isin(fold, left_out) for left_out in sets], dtype=width)  # (set, example)
    # Where a component never varies outside some folds it says nothing there.
    inverse = np.where(moments.constant, 0.0, 1.0 / moments.scale)
    shared = np.where(moments.constant[0], 1.0, inverse[0])
    features *= shared.astype(width)
    problems = Problems(
        features=features,
        stretch=np.repeat((inverse / shared) ** 2, n_target, axis=0).astype(width),
        weight=np.repeat(inside, n_target, axis=0),
        label=np.tile(hot, (1, len(sets), 1)),
    )
    member = np.equal(fold[:, None], np.arange(n_fold)).astype(np.float64)  # (example, fold)
    count = member.sum(axis=0)
    folds, targets, examples = np.arange(n_fold), np.arange(n_target), np.arange(n_example)
    # Of each training set on each fold, whether left out of it or not.
    right = np.zeros((len(sets), len(penalties), n_target, n_fold))
    judged = right if selection == "accuracy" else np.zeros_like(right)
    logits = np.zeros((len(penalties), n_example, len(hot), n_target))  # held out
    dual = np.zeros((len(penalties), len(hot), n_fold, n_example), dtype=width)
    intercepts = np.zeros((len(penalties), len(hot), n_fold))
    for number, found in enumerate(logistic_path(problems, penalty, tolerance=tolerance)):
        logit = found.logit.reshape(len(hot), len(sets), n_target, n_example)
        right[:, number] = _hits(logit, hot) @ member / count
        if selection == "log_loss":
            judged[:, number] = -_loss(logit, hot) @ member / count
        logits[number] = logit[:, 1 + fold, :, examples]
        dual[number] = found.dual.reshape(logit.shape)[:, 1 : n_fold + 1, 0]
        intercepts[number] = found.intercept.reshape(logit.shape[:3])[:, 1 : n_fold + 1, 0]

    inner = np.zeros((n_fold, len(penalties), n_target))
    for index, left_out in enumerate(sets):
        if len(left_out) == 2:
            first, second = left_out
            inner[first] += judged[index, ..., second]
            inner[second] += judged[index, ..., first]
    best = inner.argmax(axis=1)  # (outer, target)
    probability = probability_of(logits[best[fold], examples[:, None], :, targets], axis=-1)
    if n_class == 2:
        probability = np.concatenate([1.0 - probability, probability], axis=-1)
    weights = dual[best[:, 0], :, folds] @ problems.features  # (fold, class, hidden)
    coefficient = weights * (inverse[1 : n_fold + 1] ** 2 / shared)[:, None]
    outside = 1.0 - np.eye(n_fold)
    kept = right[1 : n_fold + 1][folds[:, None], best, targets]  # (outer, target, fold)
    plain = judged[folds + 1, :, 0, folds].mean(axis=0)  # (penalty,)
    refit = int(plain.argmax())
    return NestedFit(
        score=probability,
        chosen=penalties[best],
        training=np.einsum("otf,of,f->ot", kept, outside, count) / (outside @ count)[:, None],
        coefficient=coefficient,
        intercept=intercepts[best[:, 0], :, folds] - coefficient @ centre,
        refit_training=float(right[0, refit, 0] @ count / count.sum()),
        refit_chosen=float(penalties[refit]),
        cross_validated=float(plain[refit]),
    )


def _r2(value: Array, truth: Array) -> Array:
    """1 - squared error / squared deviation from the truth's mean, over the first axis."""
    total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    error = ((truth - value) ** 2).sum(axis=0)
    return np.asarray(np.where(total > 0, 1.0 - error / np.where(total > 0, total, 1.0), np.nan))


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
        As for :func:`nested_logistic`.
    penalty : floats
        Values of ``alpha`` to choose from; the first of equals wins.

    Returns
    -------
    NestedFit
    """
    states = np.asarray(states, dtype=np.float64)
    centre = states.mean(axis=0)
    states = states - centre
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
    for left_out, basis in zip(training_sets(n_fold), _decompose(states, fold, n_fold), strict=True):
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
        refit_chosen=float(penalties[refit]),
        cross_validated=float(plain[refit]),
    )
