"""Nested cross-validation of linear probes on one cell, every penalty, control and class together.

The outer folds serve as inner folds too: what is tried on fold ``j`` for the outer fold ``i`` is trained on all rows
outside ``i`` and ``j``, and serves the pair the other way round as well. Five folds need 1 + 5 + 10 training sets
where nested cross-validation from scratch fits 5 x (5 + 1), and every fit, inner or outer, has its own scaling.

Each training set is standardised and decomposed once (eigenvectors of its Gram matrix where rows are fewer than
columns, of its covariance otherwise). In that basis the penalty keeps its form, the ridge solution is closed, and a
diagonal is a good preconditioner for Newton's method with conjugate gradients, whose columns are all shuffled
controls and classes at once and which follows the penalty path from strong to weak. Gradients are float64; the
directions of a Newton step need only be rough and are float32.

Arrays only; labels live in :mod:`analyze.probes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
Selection = Literal["accuracy", "log_loss"]

_RANK_TOLERANCE = 1e-12
_LARGEST_DECOMPOSED = 400
_MOST_DIRECTIONS = 100
_BATCH_ELEMENTS = 3_000_000  # rows x columns of a batch of training sets solved together: small cells share numpy calls


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
class _Basis:
    """One training set, standardised and rotated."""

    left_out: tuple[int, ...]
    rows: Index
    held_out: Index
    features: Array  # (example, rank)
    eigenvalue: Array  # (rank,)
    vector: Array  # (training row, rank) or (hidden, rank): eigenvectors over their roots, or eigenvectors
    mean: Array  # (hidden,), of the centred states
    scale: Array  # (hidden,)

    def weights(self, w: Array, states: Array) -> Array:
        """Weights on unscaled, centred states of weights ``w`` (..., rank) in this basis."""
        if len(self.vector) == len(self.scale) and len(self.rows) >= len(self.scale):
            return np.asarray(w @ self.vector.T / self.scale)
        dual = w @ self.vector.T  # (..., training row)
        return np.asarray((dual @ states[self.rows] - dual.sum(axis=-1, keepdims=True) * self.mean) / self.scale**2)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Mean and scale of every training set, from one pass over the states."""

    mean: Array  # (set, hidden)
    scale: Array  # (set, hidden)


def training_sets(n_fold: int) -> list[tuple[int, ...]]:
    """Folds left out of each training set: none, each one, each pair."""
    return [(), *((fold,) for fold in range(n_fold)), *combinations(range(n_fold), 2)]


def _moments(states: Array, fold: Index, n_fold: int) -> _Moments:
    """Moments of the training sets of centred ``states`` (example, hidden), out of those of the folds."""
    member = np.equal(fold, np.arange(n_fold)[:, None]).astype(np.float64)  # (fold, example)
    kept = np.array([[part not in left_out for part in range(n_fold)] for left_out in training_sets(n_fold)], float)
    number = (kept @ member.sum(axis=1))[:, None]
    square = states**2
    mean = kept @ (member @ states) / number
    variance = kept @ (member @ square) / number - mean**2
    # A component that does not vary keeps its scale, as scikit-learn's StandardScaler has it.
    constant = variance <= 1e-12 * square.mean(axis=0)
    return _Moments(mean=mean, scale=np.sqrt(np.where(constant, 1.0, variance)))


def _decompose(states: Array, fold: Index, n_fold: int) -> Iterator[_Basis]:
    """Standardise and rotate every training set of centred ``states`` (example, hidden)."""
    moments = _moments(states, fold, n_fold)
    for index, left_out in enumerate(training_sets(n_fold)):
        mean, scale = moments.mean[index], moments.scale[index]
        inside = ~np.isin(fold, left_out)
        rows = np.flatnonzero(inside)
        if len(rows) < states.shape[1]:
            scaled = states / scale
            gram = scaled @ scaled.T if len(rows) == len(states) else scaled @ scaled[rows].T  # (example, training row)
            shift = scaled @ (mean / scale)  # (example,)
            gram += np.sum((mean / scale) ** 2) - shift[:, None] - shift[rows]
            eigenvalue, vector = np.linalg.eigh(gram[rows])
            good = eigenvalue > _RANK_TOLERANCE * max(eigenvalue[-1], np.finfo(float).tiny)
            vector = np.where(good, vector / np.sqrt(np.where(good, eigenvalue, 1.0)), 0.0)
            features = gram @ vector
            eigenvalue = np.where(good, eigenvalue, 0.0)
        else:
            standard = (states - mean) / scale
            eigenvalue, vector = np.linalg.eigh(standard[rows].T @ standard[rows])
            eigenvalue = np.maximum(eigenvalue, 0.0)
            features = standard @ vector
        yield _Basis(
            left_out=left_out,
            rows=rows,
            held_out=np.flatnonzero(~inside),
            features=features,
            eigenvalue=eigenvalue,
            vector=vector,
            mean=mean,
            scale=scale,
        )


def probability_of(logit: Array, axis: int) -> Array:
    """Probabilities of logits along a class axis: of class 1 where it has length one, of every class otherwise."""
    if logit.shape[axis] == 1:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)))
    shifted = np.exp(logit - logit.max(axis=axis, keepdims=True))
    shifted /= shifted.sum(axis=axis, keepdims=True)
    return np.asarray(shifted)


def _loss(logit: Array, label: Array) -> Array:
    """Negative log likelihood; logit and label (set, class, target, row), result (set, target, row)."""
    if logit.shape[1] == 1:
        return np.asarray((np.logaddexp(0.0, logit) - label * logit)[:, 0])
    top = logit.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(logit - top).sum(axis=1)) + top[:, 0] - (label * logit).sum(axis=1))


def _curvature(probability: Array, vector: Array) -> Array:
    """Hessian of the loss in the logits, times a vector; all (set, class, target, row)."""
    if probability.shape[1] == 1:
        return np.asarray(probability * (1.0 - probability) * vector)
    product = probability * vector
    return np.asarray(product - probability * product.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Problems:
    """Logistic regressions to be solved together: every target of every training set.

    Each minimises ``C sum_i weight_i loss(y_i, x_i w + b) + |w|^2 / 2`` over ``w`` and ``b``, the objective of
    scikit-learn's LogisticRegression, multinomial where there are more than two classes.
    """

    features: Array
    """(set, row, rank)."""
    label: Array
    """(set, class, target, row): one-hot, or one row of 0 and 1 where there are two classes."""
    weight: Array
    """(set, target or 1, row): 1 for a training row, 0 for any other."""
    eigenvalue: Array
    """(set, rank): the diagonal of ``features.T @ features``; only the speed depends on it."""
    scale: Array | None = None
    """(target, rank): columns are divided by it; None divides by nothing."""
    mean: Array | None = None
    """(target, rank): taken off the columns before; goes with ``scale``."""

    def take(self, sets: Index, targets: Index) -> "Problems":
        """Some of the problems."""
        whole = len(sets) == len(self.features)
        return Problems(
            features=self.features if whole else self.features[sets],
            label=self.label[np.ix_(sets, np.arange(self.label.shape[1]), targets)],
            weight=self.weight[np.ix_(sets, targets if self.weight.shape[1] > 1 else np.zeros(1, dtype=np.int64))],
            eigenvalue=self.eigenvalue[sets],
            scale=None if self.scale is None else self.scale[targets],
            mean=None if self.mean is None else self.mean[targets],
        )


class _Operator:
    """Logits of weights and back, for one float width."""

    def __init__(self, problems: Problems, dtype: npt.DTypeLike) -> None:
        self.matrix = problems.features.astype(dtype, copy=False)
        self.turned = self.matrix.transpose(0, 2, 1)
        self.inverse = self.offset = None
        if problems.scale is not None and problems.mean is not None:
            self.inverse = (1.0 / problems.scale).astype(dtype)
            self.offset = (problems.mean / problems.scale).astype(dtype)

    def logit(self, w: Array, b: Array) -> Array:
        """(set, class, target, row) of w (set, class, target, rank) and b (set, class, target)."""
        scaled = w if self.inverse is None else w * self.inverse
        flat = scaled.reshape(len(w), -1, w.shape[-1])
        out = np.matmul(flat, self.turned).reshape(*w.shape[:3], -1)
        out += (b if self.offset is None else b - (w * self.offset).sum(axis=-1))[..., None]
        return np.asarray(out)

    def back(self, residual: Array, total: Array) -> Array:
        """(set, class, target, rank): features times residuals; ``total`` is their sum over rows."""
        flat = residual.reshape(len(residual), -1, residual.shape[-1])
        out = np.matmul(flat, self.matrix).reshape(*residual.shape[:3], -1)
        if self.inverse is not None and self.offset is not None:
            out *= self.inverse
            out -= self.offset * total[..., None]
        return np.asarray(out)


def _dot(left: Array, right: Array) -> Array:
    """(set, target), summed over class and the last axis."""
    return np.asarray(np.einsum("scti,scti->st", left, right))


def _dot_intercept(left: Array, right: Array) -> Array:
    return np.asarray(np.einsum("sct,sct->st", left, right))


def _newton_step(
    problems: Problems, double: _Operator, single: _Operator, c: float, w: Array, b: Array, forcing: Array
) -> tuple[Array, Array, Array]:
    """One damped, truncated Newton step: new w, new b, and the step's share of the length of w (set, target).

    ``forcing`` (set, target) is the share of the residual that conjugate gradients may leave.
    """
    weight = problems.weight[:, None]
    logit = double.logit(w, b)
    probability = probability_of(logit, axis=1)
    residual = (problems.label - probability) * (c * weight)
    gradient_b = -residual.sum(axis=-1)
    gradient = w - double.back(residual, -gradient_b)
    # Conjugate gradients on H = I + C X' D X, preconditioned by its diagonal in this basis.
    p = probability.astype(np.float32)
    row_scale = (c * weight).astype(np.float32)
    total_curvature = (row_scale * p * (1.0 - p)).sum(axis=-1)  # (set, class, target)
    share = total_curvature / weight.sum(axis=-1)
    diagonal = (1.0 + problems.eigenvalue[:, None, None] * share[..., None]).astype(np.float32)
    diagonal_b = np.maximum(total_curvature, np.float32(1e-12))
    r, r_b = -gradient.astype(np.float32), -gradient_b.astype(np.float32)
    step, step_b = np.zeros_like(r), np.zeros_like(r_b)
    change = np.zeros(logit.shape, dtype=np.float32)
    d, d_b = r / diagonal, r_b / diagonal_b
    rho = _dot(r, d) + _dot_intercept(r_b, d_b)
    goal = forcing**2 * rho
    for _ in range(_MOST_DIRECTIONS):
        moved = single.logit(d, d_b)
        bent = _curvature(p, moved) * row_scale
        h_b = bent.sum(axis=-1)
        h = single.back(bent, h_b)
        h += d
        along = _dot(d, h) + _dot_intercept(d_b, h_b)
        alpha = np.where(along > 0, rho / np.where(along > 0, along, 1.0), 0.0).astype(np.float32)[:, None]
        step += alpha[..., None] * d
        change += alpha[..., None] * moved
        r -= alpha[..., None] * h
        step_b += alpha * d_b
        r_b -= alpha * h_b
        z, z_b = r / diagonal, r_b / diagonal_b
        new = _dot(r, z) + _dot_intercept(r_b, z_b)
        if np.all(new <= goal):
            break
        beta = np.where(rho > 0, new / np.where(rho > 0, rho, 1.0), 0.0).astype(np.float32)[:, None]
        d *= beta[..., None]
        d += z
        d_b = z_b + beta * d_b
        rho = new
    decrement = np.maximum(-_dot(gradient, step) - _dot_intercept(gradient_b, step_b), 0.0)
    norm, cross, length = _dot(w, w), _dot(w, step), _dot(step, step)

    def objective(size: Array) -> Array:
        loss = _loss(logit + size[:, None, :, None] * change, problems.label)
        return np.asarray(c * (loss * problems.weight).sum(axis=-1) + 0.5 * (norm + size * (2 * cross + size * length)))

    size = np.ones(rho.shape)
    start = objective(np.zeros(rho.shape))
    for _ in range(30):
        bad = objective(size) > start - 1e-4 * size * decrement + 1e-9 * np.abs(start)
        if not bad.any():
            break
        size = np.where(bad, 0.5 * size, size)
    moved_share = np.sqrt(decrement / np.maximum(norm, 1e-12))
    return w + size[:, None, :, None] * step, b + size[:, None] * step_b, moved_share


def logistic_path(
    problems: Problems, penalty: Sequence[float], *, tolerance: float = 1e-3, max_iteration: int = 100
) -> Iterator[tuple[Array, Array]]:
    """Follow L2-penalised logistic regressions along a path of penalties.

    Parameters
    ----------
    problems : Problems
    penalty : floats
        Values of ``C``, ascending; each start is the solution before it.
    tolerance : float
        Stop after a Newton step shorter than this share of ``w``. What is left is smaller, since the steps shrink
        quadratically until a tenth of the last one, to which their directions are solved.
    max_iteration : int
        Newton steps at each penalty.

    Yields
    ------
    w : (set, class, target, rank)
    b : (set, class, target)
        For each penalty, in order.
    """
    n_set, n_class, n_target, _ = problems.label.shape
    w = np.zeros((n_set, n_class, n_target, problems.features.shape[-1]))
    b = np.zeros((n_set, n_class, n_target))
    whole = (problems, _Operator(problems, np.float64), _Operator(problems, np.float32))
    every = (np.arange(n_set), np.arange(n_target))
    for c in penalty:
        (part, double, single), (sets, targets) = whole, every
        done = np.zeros((n_set, n_target), dtype=bool)
        forcing = np.full((n_set, n_target), 0.3)
        for _ in range(max_iteration):
            live_sets, live_targets = np.flatnonzero(~done.all(axis=1)), np.flatnonzero(~done.all(axis=0))
            if live_sets.size * live_targets.size <= 0.6 * sets.size * targets.size:
                sets, targets = live_sets, live_targets
                part = problems.take(sets, targets)
                double, single = _Operator(part, np.float64), _Operator(part, np.float32)
            cell = np.ix_(sets, np.arange(n_class), targets)
            held = np.ix_(sets, targets)
            w[cell], b[cell], moved = _newton_step(part, double, single, c, w[cell], b[cell], forcing[held])
            done[held] |= moved <= tolerance
            # Far from the solution a rough direction is as good as an exact one; a finished problem needs none.
            forcing[held] = np.where(done[held], 1.0, np.where(moved > 0.1, 0.3, 0.1))
            if done.all():
                break
        yield w.copy(), b.copy()


def _stack(bases: Sequence[_Basis], hot: Array) -> Problems:
    """Pad the training rows of several training sets to one shape; ``hot`` is (class, target, example)."""
    n_row = max(len(basis.rows) for basis in bases)
    rank = max(basis.features.shape[1] for basis in bases)
    features = np.zeros((len(bases), n_row, rank))
    label = np.zeros((len(bases), *hot.shape[:2], n_row))
    weight = np.zeros((len(bases), 1, n_row))
    eigenvalue = np.zeros((len(bases), rank))
    for index, basis in enumerate(bases):
        features[index, : len(basis.rows), : basis.features.shape[1]] = basis.features[basis.rows]
        label[index, ..., : len(basis.rows)] = hot[..., basis.rows]
        weight[index, :, : len(basis.rows)] = 1.0
        eigenvalue[index, : len(basis.eigenvalue)] = basis.eigenvalue
    return Problems(features=features, label=label, weight=weight, eigenvalue=eigenvalue)


def _hits(logit: Array, hot: Array) -> Array:
    """Whether the likeliest class is the label's; both (class, target, row), result (target, row)."""
    if len(logit) == 1:
        return np.asarray((logit[0] > 0) == (hot[0] > 0.5))
    return np.asarray(logit.argmax(axis=0) == hot.argmax(axis=0))


_Solution = tuple[int, tuple[int, ...], Array, Array, Array]
"""Number of the penalty, folds left out, logit (class, target, example), weights of target 0 on centred states
(class, hidden) and its intercepts (class,)."""


def _solve_rotated(
    states: Array, hot: Array, fold: Index, penalty: Sequence[float], tolerance: float
) -> Iterator[_Solution]:
    """Solve in the eigenbasis of each training set; sets of a small cell share every numpy call."""

    def solve(bases: Sequence[_Basis]) -> Iterator[_Solution]:
        for number, (w, b) in enumerate(logistic_path(_stack(bases, hot), penalty, tolerance=tolerance)):
            for index, basis in enumerate(bases):
                mine = w[index, ..., : basis.features.shape[1]]
                logit = mine @ basis.features.T + b[index][..., None]
                raw = basis.weights(mine[:, 0], states) if len(basis.left_out) == 1 else np.empty((0, 0))
                yield number, basis.left_out, logit, raw, b[index, :, 0] - (raw @ basis.mean if raw.size else 0.0)

    batch: list[_Basis] = []
    for basis in _decompose(states, fold, int(fold.max()) + 1):
        if batch and (len(batch) + 1) * basis.features.size * hot.shape[0] * hot.shape[1] > _BATCH_ELEMENTS:
            yield from solve(batch)
            batch = []
        batch.append(basis)
    yield from solve(batch)


def _solve_shared(
    states: Array, hot: Array, fold: Index, penalty: Sequence[float], tolerance: float
) -> Iterator[_Solution]:
    """Solve on the states themselves, every training set a column with its own mean and scale.

    A decomposition of each training set costs more than it saves where rows and components are both many.
    """
    n_fold, n_target = int(fold.max()) + 1, hot.shape[1]
    sets = training_sets(n_fold)
    moments = _moments(states, fold, n_fold)
    inside = np.array([~np.isin(fold, left_out) for left_out in sets], dtype=np.float64)  # (set, example)
    problems = Problems(
        features=states[None],
        label=np.tile(hot, (1, len(sets), 1))[None],
        weight=np.repeat(inside, n_target, axis=0)[None],
        eigenvalue=np.zeros((1, states.shape[1])),
        scale=np.repeat(moments.scale, n_target, axis=0),
        mean=np.repeat(moments.mean, n_target, axis=0),
    )
    for number, (w, b) in enumerate(logistic_path(problems, penalty, tolerance=tolerance)):
        raw = w[0] / problems.scale  # (class, target, hidden)
        intercept = b[0] - (raw * problems.mean).sum(axis=-1)
        logit = raw @ states.T + intercept[..., None]
        for index, left_out in enumerate(sets):
            columns = slice(index * n_target, (index + 1) * n_target)
            yield number, left_out, logit[:, columns], raw[:, index * n_target], intercept[:, index * n_target]


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
        See :func:`logistic_path`.

    Returns
    -------
    NestedFit

    Notes
    -----
    Memory is a few arrays of the size of the states in float64 and, where rows are fewer than components, their Gram
    matrix. Time is one eigendecomposition of ``min(row, hidden)`` for each training set (none where that is above
    ``400``), and a few hundred products with a (row, rank) matrix for each path of penalties.
    """
    states = np.asarray(states, dtype=np.float64)
    centre = states.mean(axis=0)
    states = states - centre
    n_fold, n_class = int(fold.max()) + 1, int(label.max()) + 1
    n_example, n_target = label.shape
    hot = np.equal(label.T, np.arange(n_class)[:, None, None]).astype(np.float64)  # (class, target, example)
    if n_class == 2:
        hot = hot[1:]
    width = len(hot)
    penalties = np.asarray(penalty, dtype=np.float64)
    n_penalty = len(penalties)

    inner = np.zeros((n_fold, n_fold, n_penalty, n_target))  # outer, inner: score on inner of what left both out
    outer = np.zeros((n_fold, n_penalty, n_target))
    training = np.zeros((n_fold, n_penalty, n_target))
    logits = np.zeros((n_penalty, width, n_target, n_example))
    coefficient = np.zeros((n_penalty, n_fold, width, states.shape[1]))
    intercept = np.zeros((n_penalty, n_fold, width))
    whole = np.zeros(n_penalty)

    def judge(logit: Array, rows: Index) -> Array:
        truth = hot[..., rows]
        if selection == "accuracy":
            return np.asarray(_hits(logit[..., rows], truth).mean(axis=-1))
        return np.asarray(-_loss(logit[None][..., rows], truth[None])[0].mean(axis=-1))

    small = min(n_example, states.shape[1]) <= _LARGEST_DECOMPOSED
    solver = _solve_rotated if small else _solve_shared
    members = [np.flatnonzero(fold == part) for part in range(n_fold)]
    for number, left_out, logit, raw, b in solver(states, hot, fold, penalty, tolerance):
        if len(left_out) == 2:
            first, second = left_out
            inner[first, second, number] = judge(logit, members[second])
            inner[second, first, number] = judge(logit, members[first])
        elif left_out:
            only, rows = left_out[0], members[left_out[0]]
            outer[only, number] = judge(logit, rows)
            hit = _hits(logit, hot)
            training[only, number] = hit[:, fold != only].mean(axis=-1)
            logits[number][..., rows] = logit[..., rows]
            coefficient[number, only] = raw
            intercept[number, only] = b - raw @ centre
        else:
            whole[number] = _hits(logit, hot)[0].mean()

    best = (inner.sum(axis=1) / (n_fold - 1)).argmax(axis=1)  # (outer, target)
    folds, targets = np.arange(n_fold)[:, None], np.arange(n_target)
    held_out = logits.transpose(3, 2, 0, 1)[
        np.arange(n_example)[:, None], targets, best[fold]
    ]  # (example, target, class)
    probability = probability_of(held_out, axis=-1)
    if width == 1:
        probability = np.concatenate([1.0 - probability, probability], axis=-1)
    plain = outer[..., 0].mean(axis=0)  # (penalty,)
    refit = int(plain.argmax())
    return NestedFit(
        score=probability,
        chosen=penalties[best],
        training=training[folds, best, targets],
        coefficient=coefficient[best[:, 0], np.arange(n_fold)],
        intercept=intercept[best[:, 0], np.arange(n_fold)],
        refit_training=float(whole[refit]),
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
    for basis in _decompose(states, fold, n_fold):
        mean = value[basis.rows].mean(axis=0)
        projected = basis.features[basis.rows].T @ (value[basis.rows] - mean)  # (rank, target)
        for number, alpha in enumerate(penalties):
            w = projected / (basis.eigenvalue + alpha)[:, None]
            fitted = basis.features @ w + mean
            error = (fitted - value) ** 2
            if len(basis.left_out) == 2:
                first, second = basis.left_out
                inner[first, second, number] = -error[members[second]].mean(axis=0)
                inner[second, first, number] = -error[members[first]].mean(axis=0)
            elif basis.left_out:
                only, rows = basis.left_out[0], members[basis.left_out[0]]
                outer[only, number] = -error[rows].mean(axis=0)
                training[only, number] = _r2(fitted[basis.rows], value[basis.rows])
                predicted[number, rows] = fitted[rows]
                raw = basis.weights(w[:, 0], states)
                coefficient[number, only, 0] = raw
                intercept[number, only, 0] = mean[0] - raw @ (basis.mean + centre)
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
