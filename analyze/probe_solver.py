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
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
Selection = Literal["accuracy", "log_loss"]

_RANK_TOLERANCE = 1e-12
_LARGEST_DECOMPOSED = 400
_MOST_DIRECTIONS = 100
_LEADING = 128  # directions of large variance taken out of the conjugate gradients where no basis is computed
_TRIED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # how far past a solution the next may start, in steps of the last change
_FAR, _NEAR = 0.3, 0.1  # residual left by a Newton direction, far from the solution and near it
_BATCH_ELEMENTS = 400_000  # of training sets solved together: small ones share numpy calls, large ones stay in cache


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
    leading: Array | None = None
    """(rank, leading): directions of the largest variance, orthonormal; only the speed depends on them."""
    variance: Array | None = None
    """(leading,): mean square of a row along them; goes with ``leading``."""

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
            leading=self.leading,
            variance=self.variance,
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


class _Preconditioner:
    """Roughly the inverse of I + C X' D X: by its diagonal, or along the leading directions where these are given."""

    def __init__(self, problems: Problems, curvature: Array) -> None:
        """Take the sum of C D over rows, (set, class, target)."""
        self.diagonal = self.leading = self.share = None
        if problems.leading is None or problems.variance is None:
            rows = problems.weight.sum(axis=-1)[:, None]
            diagonal = 1.0 + problems.eigenvalue[:, None, None] * (curvature / rows)[..., None]
            self.diagonal = diagonal.astype(np.float32)
            return
        # What lies beyond the leading directions counts as the last of them.
        stretched = 1.0 + curvature[..., None] * problems.variance
        self.share = (1.0 - stretched[..., -1:] / stretched).astype(np.float32)
        self.leading = problems.leading.astype(np.float32, copy=False)

    def __call__(self, r: Array) -> Array:
        if self.diagonal is not None:
            return np.asarray(r / self.diagonal)
        return np.asarray(r - ((r @ self.leading) * self.share) @ self.leading.T)  # type: ignore[operator, union-attr]


def _training_matrix(problems: Problems, at: int, target: int) -> Array:
    """(row, rank) features as one problem sees them."""
    matrix: Array = problems.features[at]
    if problems.scale is None or problems.mean is None:
        return matrix
    return np.asarray((matrix - problems.mean[target]) / problems.scale[target])


def _exact_step(matrix: Array, curvature: Array, gradient: Array, gradient_b: float) -> tuple[Array, float]:
    """Newton step of one problem of two classes by elimination, in the smaller of its two shapes.

    Parameters
    ----------
    matrix : (row, rank)
    curvature : (row,)
    gradient : (rank,)
    gradient_b : float
    """
    bent = matrix.T @ curvature  # (rank,)
    both = np.stack([gradient, bent], axis=1)
    if matrix.shape[1] <= matrix.shape[0]:
        hessian = (matrix.T * curvature) @ matrix
        hessian[np.diag_indices_from(hessian)] += 1.0
        solved = cho_solve(cho_factor(hessian, overwrite_a=True), both)
    else:
        weighted = matrix * np.sqrt(curvature)[:, None]
        kernel = weighted @ weighted.T
        kernel[np.diag_indices_from(kernel)] += 1.0
        solved = both - weighted.T @ cho_solve(cho_factor(kernel, overwrite_a=True), weighted @ both)
    step_b = (bent @ solved[:, 0] - gradient_b) / max(float(curvature.sum() - bent @ solved[:, 1]), 1e-30)
    return np.asarray(-solved[:, 0] - step_b * solved[:, 1]), float(step_b)


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
    # Conjugate gradients on H = I + C X' D X.
    p = probability.astype(np.float32)
    row_scale = (c * weight).astype(np.float32)
    total_curvature = (row_scale * p * (1.0 - p)).sum(axis=-1)  # (set, class, target)
    precondition = _Preconditioner(problems, total_curvature)
    diagonal_b = np.maximum(total_curvature, np.float32(1e-12))
    r, r_b = -gradient.astype(np.float32), -gradient_b.astype(np.float32)
    step, step_b = np.zeros_like(r), np.zeros_like(r_b)
    change = np.zeros(logit.shape, dtype=np.float32)
    d, d_b = precondition(r), r_b / diagonal_b
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
        z, z_b = precondition(r), r_b / diagonal_b
        new = _dot(r, z) + _dot_intercept(r_b, z_b)
        if np.all(new <= goal):
            rho = new
            break
        beta = np.where(rho > 0, new / np.where(rho > 0, rho, 1.0), 0.0).astype(np.float32)[:, None]
        d *= beta[..., None]
        d += z
        d_b = z_b + beta * d_b
        rho = new
    if problems.label.shape[1] == 1:
        curvature = c * problems.weight * probability[:, 0] * (1.0 - probability[:, 0])  # (set, target, row)
        for at, target in np.argwhere(rho > goal):
            # Barely separable classes: too many directions matter, and float32 no longer tells them apart.
            matrix = _training_matrix(problems, at, target)
            exact, exact_b = _exact_step(
                matrix, curvature[at, target], gradient[at, 0, target], gradient_b[at, 0, target]
            )
            step[at, 0, target], step_b[at, 0, target] = exact, exact_b
            change[at, 0, target] = matrix @ exact + exact_b
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


def _further_along(
    problems: Problems, single: _Operator, c: float, w: Array, b: Array, d: Array, d_b: Array
) -> tuple[Array, Array]:
    """Where to start at the next penalty: past ``w`` along the last change ``d``, as far as the objective falls."""
    logit = single.logit(w.astype(np.float32), b.astype(np.float32))
    change = single.logit(d.astype(np.float32), d_b.astype(np.float32))
    norm, cross, length = _dot(w, w), _dot(w, d), _dot(d, d)
    sizes = np.array(_TRIED)
    values = []
    for size in sizes:
        loss = (_loss(logit + np.float32(size) * change, problems.label) * problems.weight).sum(axis=-1)
        values.append(c * loss + 0.5 * (norm + size * (2 * cross + size * length)))
    best = sizes[np.argmin(values, axis=0)]  # (set, target)
    return w + best[:, None, :, None] * d, b + best[:, None] * d_b


def logistic_path(
    problems: Problems, penalty: Sequence[float], *, tolerance: float = 1e-2, max_iteration: int = 100
) -> Iterator[tuple[Array, Array]]:
    """Follow L2-penalised logistic regressions along a path of penalties.

    Parameters
    ----------
    problems : Problems
    penalty : floats
        Values of ``C``, ascending; each start is the solution before it, taken further along the path.
    tolerance : float
        Stop after a Newton step shorter than this share of ``w``; what is left after it is a tenth of that at most,
        to which directions are solved, and commonly a hundredth.
    max_iteration : int
        Newton steps at each penalty.

    Yields
    ------
    w : (set, class, target, rank)
    b : (set, class, target)
        For each penalty, in order.
    """
    n_set, n_class, n_target, _ = problems.label.shape
    w: Array = np.zeros((n_set, n_class, n_target, problems.features.shape[-1]))
    b: Array = np.zeros((n_set, n_class, n_target))
    whole = (problems, _Operator(problems, np.float64), _Operator(problems, np.float32))
    every = (np.arange(n_set), np.arange(n_target))
    before, b_before = w.copy(), b.copy()
    for index, c in enumerate(penalty):
        if index:
            start, b_start = _further_along(problems, whole[2], c, w, b, w - before, b - b_before)
            before, b_before = w.copy(), b.copy()
            w, b = start, b_start
        (part, double, single), (sets, targets) = whole, every
        done = np.zeros((n_set, n_target), dtype=bool)
        forcing = np.full((n_set, n_target), _FAR)
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
            forcing[held] = np.where(done[held], 1.0, np.where(moved > 0.1, _FAR, _NEAR))
            if done.all():
                break
        yield w.copy(), b.copy()


def _hits(logit: Array, hot: Array) -> Array:
    """Whether the likeliest class is the label's; both (set, class, target, row), result (set, target, row)."""
    if logit.shape[1] == 1:
        return np.asarray((logit[:, 0] > 0) == (hot[:, 0] > 0.5))
    return np.asarray(logit.argmax(axis=1) == hot.argmax(axis=1))


@dataclass(frozen=True, slots=True)
class _Solution:
    """Some training sets of some cells at one penalty."""

    number: int
    """Of the penalty."""
    cell: Index
    which: Index
    """Number of the training set, as in :func:`training_sets`; with ``cell``, one entry for each set."""
    logit: Array
    """(set, class, target, example)."""
    w: Array
    """(set, class, rank): weights for target 0 in the basis of the set."""
    b: Array
    """(set, class)."""


_Rotations = dict[tuple[int, int], _Rotation]


def _solve_rotated(
    states: Sequence[Array], hot: Array, fold: Index, penalty: Sequence[float], tolerance: float, rotations: _Rotations
) -> Iterator[_Solution]:
    """Solve in the eigenbasis of each training set; the sets of small cells share every numpy call."""
    n_fold = int(fold.max()) + 1
    columns = hot.shape[0] * hot.shape[1]

    def solve(batch: Sequence[tuple[int, int, _Basis]]) -> Iterator[_Solution]:
        n_row, rank = len(fold), max(basis.features.shape[1] for _, _, basis in batch)
        features, eigenvalue = np.zeros((len(batch), n_row, rank)), np.zeros((len(batch), rank))
        for at, (_, _, basis) in enumerate(batch):
            features[at, :, : basis.features.shape[1]] = basis.features
            eigenvalue[at, : len(basis.eigenvalue)] = basis.eigenvalue
        problems = Problems(
            features=features,
            label=np.broadcast_to(hot, (len(batch), *hot.shape)),
            weight=np.array([basis.inside for _, _, basis in batch], dtype=np.float64)[:, None],
            eigenvalue=eigenvalue,
        )
        cell, which = np.array([cell for cell, _, _ in batch]), np.array([which for _, which, _ in batch])
        operator = _Operator(problems, np.float64)
        for number, (w, b) in enumerate(logistic_path(problems, penalty, tolerance=tolerance)):
            yield _Solution(number, cell, which, operator.logit(w, b), w[:, :, 0], b[:, :, 0])

    batch: list[tuple[int, int, _Basis]] = []
    for cell, one in enumerate(states):
        for which, basis in enumerate(_decompose(one, fold, n_fold)):
            rotations[cell, which] = basis.rotation
            if batch and (len(batch) + 1) * max(basis.features.size, len(fold) * columns) > _BATCH_ELEMENTS:
                yield from solve(batch)
                batch = []
            batch.append((cell, which, basis))
    yield from solve(batch)


def _leading(standard: Array) -> tuple[Array, Array]:
    """Leading variances and directions (hidden, leading) of standardised states (example, hidden), about."""
    from sklearn.utils.extmath import randomized_svd

    number = min(_LEADING, min(standard.shape) - 1)
    _, value, direction = randomized_svd(standard.astype(np.float32), number, n_iter=1, random_state=0)
    return value.astype(np.float64) ** 2 / len(standard), direction.T


def _solve_shared(
    states: Sequence[Array], hot: Array, fold: Index, penalty: Sequence[float], tolerance: float, rotations: _Rotations
) -> Iterator[_Solution]:
    """Solve on the states themselves, every training set a column with its own mean and scale.

    A decomposition of each training set costs more than it saves where rows and components are both many.
    """
    n_class, n_target, _ = hot.shape
    sets = training_sets(int(fold.max()) + 1)
    inside = np.array([~np.isin(fold, left_out) for left_out in sets], dtype=np.float64)  # (set, example)
    which = np.arange(len(sets))
    for cell, one in enumerate(states):
        moments = _moments(one, fold, int(fold.max()) + 1)
        variance, leading = _leading(one / moments.scale[0])
        problems = Problems(
            features=one[None],
            label=np.tile(hot, (1, len(sets), 1))[None],
            weight=np.repeat(inside, n_target, axis=0)[None],
            eigenvalue=np.zeros((1, one.shape[1])),
            scale=np.repeat(moments.scale, n_target, axis=0),
            mean=np.repeat(moments.mean, n_target, axis=0),
            leading=leading,
            variance=variance,
        )
        operator = _Operator(problems, np.float64)
        shape = (n_class, len(sets), n_target, -1)
        for number, (w, b) in enumerate(logistic_path(problems, penalty, tolerance=tolerance)):
            logit = np.moveaxis(operator.logit(w, b)[0].reshape(shape), 1, 0)
            first = np.moveaxis(w[0].reshape(shape)[:, :, 0], 1, 0) / moments.scale[:, None]
            b_first = b[0].reshape(shape[:3])[:, :, 0].T - (first * moments.mean[:, None]).sum(axis=-1)
            yield _Solution(number, np.full(len(sets), cell), which, logit, first, b_first)


def nested_logistic(
    states: Array,
    label: Index,
    fold: Index,
    *,
    penalty: Sequence[float],
    selection: Selection = "log_loss",
    tolerance: float = 1e-2,
) -> list[NestedFit]:
    """Nested cross-validation of a logistic probe on each of some cells.

    Parameters
    ----------
    states : (cell, example, hidden)
        Cells of the same examples; small ones are best given several at a time.
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
    list of NestedFit
        One for each cell.

    Notes
    -----
    Memory is a few arrays of the size of the states in float64 and, where rows are fewer than components, their Gram
    matrix. Time is one eigendecomposition of ``min(row, hidden)`` for each training set (none where that is above
    400), and a few hundred products with a (row, rank) matrix for each path of penalties.
    """
    centre = np.asarray(states).mean(axis=1, dtype=np.float64)  # (cell, hidden)
    centred = [np.asarray(one, dtype=np.float64) - middle for one, middle in zip(states, centre, strict=True)]
    n_cell, n_fold, n_class = len(centred), int(fold.max()) + 1, int(label.max()) + 1
    n_example, n_target = label.shape
    hidden = centred[0].shape[1]
    hot = np.equal(label.T, np.arange(n_class)[:, None, None]).astype(np.float64)  # (class, target, example)
    if n_class == 2:
        hot = hot[1:]
    width = len(hot)
    penalties = np.asarray(penalty, dtype=np.float64)
    n_penalty = len(penalties)
    sets = training_sets(n_fold)
    member = np.equal(fold[:, None], np.arange(n_fold)).astype(np.float64)  # (example, fold)
    count = member.sum(axis=0)

    # Of each training set on each fold, whether left out of it or not.
    right = np.zeros((n_cell, len(sets), n_penalty, n_target, n_fold))
    judged = right if selection == "accuracy" else np.zeros_like(right)
    logits = np.zeros((n_cell, n_penalty, width, n_target, n_example))
    solved: dict[tuple[int, int, int], tuple[Array, Array]] = {}
    rotations: _Rotations = {}

    small = min(n_example, hidden) <= _LARGEST_DECOMPOSED
    solver = _solve_rotated if small else _solve_shared
    for found in solver(centred, hot, fold, penalty, tolerance, rotations):
        at = (found.cell, found.which, found.number)
        right[at] = _hits(found.logit, hot[None]) @ member / count
        if selection == "log_loss":
            judged[at] = -_loss(found.logit, hot[None]) @ member / count
        for single in np.flatnonzero((found.which > 0) & (found.which <= n_fold)):
            cell, only = int(found.cell[single]), int(found.which[single]) - 1
            rows = fold == only
            logits[cell, found.number][..., rows] = found.logit[single][..., rows]
            solved[cell, only, found.number] = found.w[single], found.b[single]

    inner = np.zeros((n_cell, n_fold, n_penalty, n_target))
    for index, left_out in enumerate(sets):
        if len(left_out) == 2:
            first, second = left_out
            inner[:, first] += judged[:, index, ..., second]
            inner[:, second] += judged[:, index, ..., first]
    folds, targets, examples = np.arange(n_fold), np.arange(n_target), np.arange(n_example)
    fits = []
    for cell in range(n_cell):
        best = inner[cell].argmax(axis=1)  # (outer, target)
        held_out = logits[cell].transpose(3, 2, 0, 1)[
            examples[:, None], targets, best[fold]
        ]  # (example, target, class)
        probability = probability_of(held_out, axis=-1)
        if width == 1:
            probability = np.concatenate([1.0 - probability, probability], axis=-1)
        coefficient, intercept = np.zeros((n_fold, width, hidden)), np.zeros((n_fold, width))
        for only in range(n_fold):
            w, b = solved[cell, only, int(best[only, 0])]
            rotation = rotations.get((cell, only + 1))
            raw = w[..., : rotation.vector.shape[1]] if rotation is not None else w
            if rotation is not None:
                raw = rotation.weights(raw, centred[cell])
                b = b - raw @ rotation.mean
            coefficient[only], intercept[only] = raw, b - raw @ centre[cell]
        inside = 1.0 - np.eye(n_fold)
        kept = right[cell, 1 : n_fold + 1][folds[:, None], best, targets]  # (outer, target, fold)
        plain = judged[cell, folds + 1, :, 0, folds].mean(axis=0)  # (penalty,)
        refit = int(plain.argmax())
        fits.append(
            NestedFit(
                score=probability,
                chosen=penalties[best],
                training=np.einsum("otf,of,f->ot", kept, inside, count) / (inside @ count)[:, None],
                coefficient=coefficient,
                intercept=intercept,
                refit_training=float(right[cell, 0, refit, 0] @ count / count.sum()),
                refit_chosen=float(penalties[refit]),
                cross_validated=float(plain[refit]),
            )
        )
    return fits


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
