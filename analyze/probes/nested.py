"""Nested cross-validation of linear probes on one cell, every penalty, control and class together.

The outer folds serve as inner folds too: what is tried on fold ``j`` for the outer fold ``i`` is trained on all rows
outside ``i`` and ``j``, and serves the pair the other way round as well. Five folds need 1 + 5 + 10 training sets
where nested cross-validation from scratch fits 5 x (5 + 1), and every fit, inner or outer, has its own scaling.

Classes: the logistic regressions of all training sets and shuffled controls are solved together, see
:mod:`analyze.probes.logistic`. A number: each training set is standardised and decomposed once (eigenvectors of its
Gram matrix where rows are fewer than columns, of its covariance otherwise), which makes every ridge solution closed.

Arrays only; labels live in :mod:`analyze.probes.linear`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular
from threadpoolctl import ThreadpoolController

from analyze.probes.logistic import Problems, logistic_path, probability_of

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
Selection = Literal["accuracy", "log_loss"]
_LOST = 10.0  # times the last change of a score: a Newton step leaves less than half of it to come
_SINGLE = 1e-4  # tolerances that float32 can reach
_FEW_ROWS = 3  # components for each row from which on products among rows are taken instead
_CENTRE_ROWS = 50  # about as many tell where a component lies
_JITTER = 1e-10  # share of a row's square that is its own: far below float32, and enough where rows are alike


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS to one thread.

    The products of a probe are small: more threads wait for each other, on a busy machine for minutes, and round
    otherwise. So the same states give the same probes, whatever the number of threads.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    """Those of NumPy and SciPy, loaded by now; to look for them takes 3 ms, a tenth of a small cell's time."""
    return ThreadpoolController()


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
    unsolved: int = 0
    """Outer regressions, at the penalties chosen, that did not reach the tolerance. What is not finite is never chosen;
    where nothing else is left, the score is NaN."""


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
    """Moments of the training sets of ``states`` (example, hidden), from those of their own folds alone.

    A row that is held out, however large, changes no digit of them: Chan, Golub and LeVeque, *Updating formulae and a
    pairwise algorithm for computing sample variances*, 1979.
    """
    kept = np.array([[part not in left_out for part in range(n_fold)] for left_out in training_sets(n_fold)])
    parts = [states[fold == part] for part in range(n_fold)]
    count = np.array([len(part) for part in parts], float)[:, None]
    middle = np.stack([part.mean(axis=0) for part in parts])  # (fold, hidden)
    square = np.stack([((part - mean) ** 2).sum(axis=0) for part, mean in zip(parts, middle, strict=True)])
    mean, scale = np.empty((2, len(kept), states.shape[1]))
    constant = np.empty(mean.shape, bool)
    for index, used in enumerate(kept):
        number = count[used].sum()
        mean[index] = (count[used] * middle[used]).sum(axis=0) / number
        variance = (square[used] + count[used] * (middle[used] - mean[index]) ** 2).sum(axis=0) / number
        # A component that does not vary beyond rounding keeps its scale, as scikit-learn's StandardScaler has it.
        rounding = number * np.finfo(np.float64).eps
        constant[index] = variance <= rounding * variance + (rounding * mean[index]) ** 2
        scale[index] = np.sqrt(np.where(constant[index], 1.0, variance))
    return _Moments(mean=mean, scale=scale, constant=constant)


@dataclass(frozen=True, slots=True)
class _Views:
    """Features as the training sets see them, for :class:`analyze.probes.logistic.Problems`.

    Where rows are few beside components, each set has its own: the Cholesky factor of the Gram matrix of its
    standardised rows, which has the same products among rows in fewer columns. Otherwise all share one, scaled as the
    set of all rows has it, and multiply its columns.
    """

    features: Array  # (view, row, 1 + column), the first column ones
    scale: Array  # (set, 1 + column)
    states: Array  # (row, hidden), centred; no rows where all share one
    inverse: Array  # (set, hidden): what a set multiplies the components by
    centre: Array  # (hidden,)

    @classmethod
    def of(cls, states: Array, fold: Index, n_fold: int, width: type[np.floating]) -> "_Views":
        n_row, hidden = states.shape
        states = np.asarray(states, dtype=np.float64)
        moments = _moments(states, fold, n_fold)
        # Where a component never varies outside some folds it says nothing there.
        inverse = np.where(moments.constant, 0.0, 1.0 / moments.scale)
        # Of some rows: a mean would follow a single large value out of float32's sight, a median of all is slow.
        centre = np.median(states[:: max(1, n_row // _CENTRE_ROWS)], axis=0)
        states = states - centre
        if _FEW_ROWS * n_row < hidden:
            features = np.ones((len(inverse), n_row, 1 + n_row), width)
            for index, factor in enumerate(inverse):
                features[index, :, 1:] = _root(states * factor)
            return cls(features, np.ones((len(inverse), 1 + n_row), width), states, inverse, centre)
        shared = np.where(moments.constant[0], 1.0, inverse[0])
        features = np.ones((1, n_row, 1 + hidden), width)
        features[0, :, 1:] = states * shared
        scale = np.hstack([np.ones((len(inverse), 1)), inverse / shared]).astype(width)
        return cls(features, scale, np.empty((0, hidden)), inverse, centre)

    def coefficient(self, index: int, weights: Array) -> Array:
        """(class, hidden) on unscaled states, of the weights (class, column) of one training set."""
        if len(self.features) > 1:
            standard = self.states * self.inverse[index]
            weights = solve_triangular(_root(standard), weights.T, lower=True, trans="T").T @ standard
        return np.asarray(weights * self.inverse[index])


def _root(standard: Array) -> Array:
    """Cholesky factor (row, row) of the Gram matrix of rows (row, hidden), which may be alike."""
    gram = standard @ standard.T
    length = np.sqrt(gram.diagonal())[:, None]
    length[length == 0] = 1.0
    # Of unit rows, so that what is added to a row does not hang on another's size.
    return np.asarray(length * np.linalg.cholesky(gram / length / length.T + _JITTER * np.eye(len(gram))))


def _loss(logit: Array, hot: Array) -> Array:
    """Negative log likelihood; logit (class, set, target, row), hot (class, target, row), result without class."""
    if len(logit) == 1:
        # As np.logaddexp(0, logit), which is tens of times slower.
        soft = np.maximum(logit, 0.0) + np.log1p(np.exp(-np.abs(logit)))
        return np.asarray((soft - hot[:, None] * logit)[0])
    top = logit.max(axis=0)
    return np.asarray(np.log(np.exp(logit - top).sum(axis=0)) + top - (hot[:, None] * logit).sum(axis=0))


def _hits(logit: Array, hot: Array) -> Array:
    """Whether the likeliest class is the label's; as :func:`_loss`."""
    if len(logit) == 1:
        return np.asarray((logit[0] > 0) == (hot > 0.5))
    return np.asarray(logit.argmax(axis=0) == hot.argmax(axis=0))


class _Race:
    """Scores of all training sets on all folds by penalty, and which regressions can still win one.

    Most penalties lose by far, and need no more than a step to do so. A penalty has lost for an outer fold where it is
    behind the best of those before it by many times of what its last Newton step changed.
    """

    def __init__(
        self, hot: Array, fold: Index, sets: Sequence[tuple[int, ...]], n_penalty: int, selection: Selection
    ) -> None:
        n_fold, (n_hot, n_target, n_example) = int(fold.max()) + 1, hot.shape
        self.hot, self.selection = hot, selection
        self.shape = (n_hot, len(sets), n_target, n_example)
        self.member = np.equal(fold[:, None], np.arange(n_fold)).astype(np.float64)  # (example, fold)
        self.right = np.zeros((n_penalty, len(sets), n_target, n_fold))
        self.inner = np.zeros((n_penalty, n_fold, n_target))
        self.plain = np.zeros(n_penalty)
        self.pair = [(index, *left_out) for index, left_out in enumerate(sets) if len(left_out) == 2]

    def judge(self, number: int, logit: Array) -> Array:
        """Take up logits (class, problem, row) at a penalty; returned as (class, set, target, row)."""
        logit = logit.reshape(self.shape)
        count, n_fold = self.member.sum(axis=0), self.member.shape[1]
        finite = np.asarray(np.isfinite(logit).all(axis=(0, 3)))[..., None]  # (set, target, 1)
        self.right[number] = np.where(finite, _hits(logit, self.hot) @ self.member / count, np.nan)
        good = self.right[number]
        if self.selection == "log_loss":
            with np.errstate(over="ignore", invalid="ignore"):  # of what is not finite, and cannot win
                good = -_loss(logit, self.hot) @ self.member / count
        good = np.where(finite, good, -np.inf)
        inner = np.zeros(self.inner.shape[1:])
        for index, first, second in self.pair:
            inner[first] += good[index, :, second]
            inner[second] += good[index, :, first]
        self.inner[number] = np.where(finite[1 : n_fold + 1, :, 0], inner / (n_fold - 1), -np.inf)
        self.plain[number] = good[1 + np.arange(n_fold), 0, np.arange(n_fold)].mean()
        return logit

    def wanted(self, number: int, step: int, logit: Array) -> npt.NDArray[np.bool_]:
        """Which problems are worth another Newton step, for :func:`analyze.probes.logistic.logistic_path`."""
        before = (self.inner[number].copy(), self.plain[number])
        self.judge(number, logit)
        if not number or not step or self.selection == "accuracy":
            return np.ones(self.shape[1] * self.shape[2], bool)
        with np.errstate(invalid="ignore"):
            inner, plain = (
                ~(now < best - _LOST * np.abs(now - then))
                for now, best, then in (
                    (self.inner[number], self.inner[:number].max(axis=0), before[0]),
                    (self.plain[number], self.plain[:number].max(), before[1]),
                )
            )
        alive = np.zeros(self.shape[1:3], bool)  # (set, target)
        alive[1 : len(inner) + 1] = inner
        alive[: len(inner) + 1, 0] |= plain
        for index, first, second in self.pair:
            alive[index] = inner[first] | inner[second]
        return alive.ravel()


@one_thread()
def nested_logistic(
    states: Array,
    label: Index,
    fold: Index,
    *,
    penalty: Sequence[float],
    selection: Selection = "log_loss",
    tolerance: float = 1e-4,
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
        See :func:`analyze.probes.logistic.logistic_path`. By default held-out probabilities are within 0.002 of
        the exact ones.

    Returns
    -------
    NestedFit

    Notes
    -----
    Memory is a few arrays of the size of the states, in float32 unless ``tolerance`` is below 0.0001, and as many
    numbers as examples, and as components, for each training set and target. Where components are more than three times
    the examples, the states are taken by (training set, example, example) instead. Time is some hundred products of
    the states with a column for each training set, target and class.
    """
    n_fold, n_class = int(fold.max()) + 1, int(label.max()) + 1
    n_example, n_target = label.shape
    sets = training_sets(n_fold)
    penalties = np.asarray(penalty, dtype=np.float64)
    width = np.float32 if tolerance >= _SINGLE else np.float64
    basis = _Views.of(states, fold, n_fold, width)
    hot: Array = np.equal(label.T, np.arange(n_class)[:, None, None]).astype(width)  # (class, target, example)
    if n_class == 2:
        hot = hot[1:]
    inside = np.array([~np.isin(fold, left_out) for left_out in sets], dtype=width)  # (set, example)
    problems = Problems(
        features=basis.features,
        view=np.repeat(np.arange(len(sets)) % len(basis.features), n_target),
        scale=np.repeat(basis.scale, n_target, axis=0),
        weight=np.repeat(inside, n_target, axis=0),
        label=np.tile(hot, (1, len(sets), 1)),
        group=np.tile(np.arange(n_target), len(sets)),
    )
    folds, targets, examples = np.arange(n_fold), np.arange(n_target), np.arange(n_example)
    race = _Race(hot, fold, sets, len(penalties), selection)
    logits = np.zeros((len(penalties), n_example, len(hot), n_target))  # held out
    weights = np.zeros((len(penalties), len(hot), n_fold, basis.features.shape[2]))
    solved = np.zeros((len(penalties), n_fold, n_target), bool)
    for number, solution in enumerate(logistic_path(problems, penalty, tolerance=tolerance, wanted=race.wanted)):
        logit = race.judge(number, solution.logit)
        logits[number] = logit[:, 1 + fold, :, examples]
        weights[number] = solution.weights.reshape(*logit.shape[:3], -1)[:, 1 : n_fold + 1, 0]
        solved[number] = solution.solved.reshape(logit.shape[1:3])[1 : n_fold + 1]

    best = race.inner.argmax(axis=0)  # (outer, target)
    probability = probability_of(logits[best[fold], examples[:, None], :, targets], axis=-1)
    if n_class == 2:
        probability = np.concatenate([1.0 - probability, probability], axis=-1)
    chosen_weights = weights[best[:, 0], :, folds]  # (fold, class, 1 + hidden)
    coefficient = np.stack([basis.coefficient(1 + part, chosen_weights[part, :, 1:]) for part in range(n_fold)])
    outside = 1.0 - np.eye(n_fold)
    count = race.member.sum(axis=0)
    kept = race.right[best, 1 + folds[:, None], targets]  # (outer, target, fold)
    refit = int(race.plain.argmax())
    return NestedFit(
        score=probability,
        chosen=penalties[best],
        training=np.einsum("otf,of,f->ot", kept, outside, count) / (outside @ count)[:, None],
        coefficient=coefficient,
        intercept=chosen_weights[..., 0] - coefficient @ basis.centre,
        refit_training=float(race.right[refit, 0, 0] @ count / count.sum()),
        unsolved=int((~solved[best, folds[:, None], targets]).sum()),
    )
