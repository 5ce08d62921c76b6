"""Many L2-penalised logistic regressions on the same rows, solved together along a path of penalties.

The problems differ in the rows they train on, in their labels and in how they scale the columns; a training set of
cross-validation is one, its shuffled controls are others. All take truncated Newton steps at once: the direction is
found by conjugate gradients, so that the work is a few products with the features, wide enough for BLAS. Problems with
the same labels differ little in their Hessians, so one exact inverse preconditions all of them. Where weights are many
it is taken in the leading directions of the features, and as a number beyond them.

Arrays only, problems in front of rows; labels of axes live in :mod:`analyze.probes.linear`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import helmert

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]

_MOST_EXACT = 256  # rows of a preconditioner of all weights: its inverse costs about ten products with the features
_LEADING = 32  # directions taken where weights are more: further ones cost more than they save
_NEAR, _FAR = 0.1, 0.3  # residual left by a direction, by how far the solution is
_SHORT = 0.1  # share of problems that may miss their goal: few are cheaper in a step of their own
_LAST = 10.0  # a step shorter than so many tolerances is the last: it leaves a share of itself, and of second order
_SURE = 80.0  # logit beyond which float32 has no exponential
_MOST_DIRECTIONS = 300
_MOST_STEPS = 100


def probability_of(logit: Array, axis: int) -> Array:
    """Probabilities of logits along a class axis: of class 1 where it has length one, of every class otherwise."""
    if logit.shape[axis] == 1:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logit)))
    shifted = np.exp(logit - logit.max(axis=axis, keepdims=True))
    shifted /= shifted.sum(axis=axis, keepdims=True)
    return np.asarray(shifted)


@dataclass(frozen=True)
class Problems:
    """Logistic regressions on the same rows.

    Each minimises ``C sum_i weight_i loss(y_i, (scale * x_i) w + b) + |w|^2 / 2`` over ``w`` and ``b``, the objective
    of scikit-learn's LogisticRegression, multinomial where there are more than two classes.
    """

    features: Array
    """(view, row, 1 + hidden), the first column ones; about centred and scaled. Its float width is that of all work."""
    view: Index
    """(problem,), ascending: which features each sees. They are alike: a preconditioner of the first serves all."""
    scale: Array
    """(problem, 1 + hidden): what each problem's columns are multiplied by, about one; zero drops a column."""
    weight: Array
    """(problem, row): 1 for a training row, 0 for any other."""
    label: Array
    """(class, problem, row): one-hot, or one row of 0 and 1 where there are two classes."""
    group: Index
    """(problem,): which of them have the same labels, from 0."""

    def take(self, index: Mask) -> "Problems":
        """Some of the problems."""
        part = Problems(
            features=self.features,
            view=self.view[index],
            scale=self.scale[index],
            weight=self.weight[index],
            label=self.label[:, index],
            group=self.group[index],
        )
        part.__dict__["columns"] = self.columns  # turned once
        return part

    def logit(self, weights: Array) -> Array:
        """(class, problem, row) of weights (class, problem, 1 + hidden)."""
        return self._products(weights * self.scale, self.columns)

    def pull(self, residual: Array) -> Array:
        """(class, problem, 1 + hidden): the transpose of :meth:`logit`, of a residual (class, problem, row)."""
        out = self._products(residual, self.features)
        out *= self.scale
        return out

    def _products(self, left: Array, right: Array) -> Array:
        """(class, problem, j) of left (class, problem, i) and what each problem sees of right (view, i, j)."""
        out = np.empty((*left.shape[:2], right.shape[2]), left.dtype)
        parts, n_view = self._parts, len(right)
        if len(parts) == n_view > 1 and len({alike.stop - alike.start for _, alike in parts}) == 1:
            shape = (len(left), n_view, -1)
            np.matmul(left.reshape(*shape, left.shape[2]), right, out=out.reshape(*shape, out.shape[2]))
            return out
        for view, alike in parts:
            np.matmul(left[:, alike], right[view], out=out[:, alike])
        return out

    @cached_property
    def columns(self) -> Array:
        """(view, 1 + hidden, row): the features turned, as BLAS takes twice as long to turn many in each product."""
        turned = self.features.swapaxes(1, 2)
        return np.ascontiguousarray(turned) if len(turned) == 1 else turned

    @cached_property
    def _parts(self) -> list[tuple[int, slice]]:
        """Each view, and the problems that see it."""
        start = np.flatnonzero(np.diff(self.view, prepend=-1))
        ends = [*start[1:], len(self.view)]
        return [(int(self.view[first]), slice(int(first), int(end))) for first, end in zip(start, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Solution:
    """Where all problems are, at one penalty."""

    weights: Array
    """(class, problem, 1 + hidden): intercept and weights, on each problem's own scale."""
    logit: Array
    """(class, problem, row), of all rows."""
    solved: Mask
    """(problem,): finite, and within the tolerance."""


def _dot(left: Array, right: Array) -> Array:
    """(problem,), summed over class and the last axis."""
    return np.asarray(np.einsum("cpi,cpi->p", left, right))


def _over(above: Array, below: Array) -> Array:
    """Quotients as a factor of (class, problem, any), zero where nothing positive is below."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)[:, None]


def _penalised(weights: Array) -> Array:
    """Weights with their intercepts, which no penalty holds, set to zero."""
    held = weights.copy()
    held[..., 0] = 0.0
    return held


def _doubt(logit: Array, problems: Problems) -> Array:
    """Probability of every class, or of the one that is not the label's where there are two.

    However sure a row is, its doubt keeps all its digits, and with it the row's part in the weights.
    """
    if len(logit) > 1:
        return probability_of(logit, axis=0)
    return np.asarray(1.0 / (1.0 + np.exp(np.minimum((2.0 * problems.label - 1.0) * logit, _SURE))))


def _residual(doubt: Array, problems: Problems, strength: Array) -> Array:
    """Weighted labels less probabilities, (class, problem, row)."""
    return strength * (problems.label - doubt if len(doubt) > 1 else (2.0 * problems.label - 1.0) * doubt)


def _bend(doubt: Array, strength: Array, move: Array) -> Array:
    """Hessian of the weighted loss in the logits times a move of them, (class, problem, row)."""
    bent = doubt * move
    bent -= doubt * bent.sum(axis=0)
    bent *= strength
    return np.asarray(bent)


def _leading_directions(features: Array, number: int) -> tuple[Array, float]:
    """Directions (hidden, leading) in which features (row, hidden) are largest, about, and the last's sum of squares.

    Halko, Martinsson and Tropp, *Finding structure with randomness*, SIAM Review 2011, algorithm 4.3 with one pass.
    """
    start = np.random.default_rng(0).standard_normal((features.shape[1], number + 10), dtype=np.float32)
    basis = np.linalg.qr(features.T @ (features @ start.astype(features.dtype)))[0]
    seen = features @ basis
    value, turn = np.linalg.eigh(seen.T @ seen)
    return basis @ turn[:, -number:], max(0.0, float(value[-number]))


class _Preconditioner:
    """Inverse of the Hessian at the mean probabilities of each group, in the leading directions of the features.

    Weights of several classes sum to zero over them, so they are taken in one dimension less.
    """

    def __init__(self, problems: Problems) -> None:
        features, n_class = problems.features[0], len(problems.label)
        hidden = features.shape[1] - 1
        self.contrast = (helmert(n_class) if n_class > 1 else np.ones((1, 1))).astype(features.dtype)
        number = hidden if hidden * len(self.contrast) <= _MOST_EXACT else min(_LEADING, len(features), hidden)
        self.basis, self.last = None, 0.0
        self.leading = features  # (row, 1 + leading)
        if number < hidden:
            self.basis, self.last = _leading_directions(features[:, 1:], number)
            self.leading = np.hstack([features[:, :1], features[:, 1:] @ self.basis])
        self.inverse: list[Array] = []

    def update(self, problems: Problems, doubt: Array, strength: Array) -> None:
        """Take up the curvature where the problems are now."""
        leading, contrast = self.leading, self.contrast
        n_contrast, size = len(contrast), leading.shape[1]
        self.inverse, self.beyond = [], []
        for group in range(int(problems.group.max()) + 1):
            member = problems.group == group
            mean = doubt[:, member].mean(axis=1)  # (class, row)
            turned = contrast @ mean
            curvature = np.einsum("ac,bc,ci->abi", contrast, contrast, mean) - turned[:, None] * turned
            curvature *= strength[member].mean(axis=0)
            hessian = np.empty((n_contrast, size, n_contrast, size), leading.dtype)
            for a in range(n_contrast):
                for b in range(a + 1):
                    hessian[a, :, b] = (leading.T * curvature[a, b]) @ leading
                    hessian[b, :, a] = hessian[a, :, b]
                hessian[a, :, a] += np.eye(size, dtype=leading.dtype)
                # No penalty holds an intercept; where no row is in doubt a little must.
                hessian[a, 0, a, 0] -= 1.0 - 1e-6
            self.inverse.append(np.linalg.inv(hessian.reshape(n_contrast * size, -1)))
            self.beyond.append(1.0 / (1.0 + float(np.trace(curvature.mean(axis=2))) / n_contrast * self.last))

    def __call__(self, gradient: Array, group: Index) -> Array:
        """Inverse times gradients (class, problem, 1 + hidden)."""
        several = len(gradient) > 1
        turned = np.tensordot(self.contrast, gradient, 1) if several else gradient  # (contrast, problem, 1 + hidden)
        leading = turned
        if self.basis is not None:
            leading = np.concatenate([turned[..., :1], turned[..., 1:] @ self.basis], axis=-1)
        flat = np.ascontiguousarray(leading.swapaxes(0, 1)).reshape(len(group), -1)
        solved = np.empty_like(flat)
        for index, inverse in enumerate(self.inverse):
            member = group == index
            solved[member] = flat[member] @ inverse
        steps = solved.reshape(len(group), len(self.contrast), -1).swapaxes(0, 1)
        if self.basis is not None:
            beyond = np.array(self.beyond, gradient.dtype)[group][:, None]
            rest = (steps[..., 1:] - beyond * leading[..., 1:]) @ self.basis.T + beyond * turned[..., 1:]
            steps = np.concatenate([steps[..., :1], rest], axis=-1)
        return np.asarray(np.tensordot(self.contrast.T, steps, 1) if several else steps)


def _direction(
    problems: Problems, precondition: _Preconditioner, doubt: Array, strength: Array, gradient: Array,
    norm: Array, near: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Newton direction by conjugate gradients: weights, logits, and length as a share of ``norm`` (problem,).

    Nothing is done if every length is below ``near``.
    """
    r = gradient.copy()
    d = precondition(r, problems.group)
    rho = _dot(r, d)
    norm = np.maximum(norm, 1e-12)
    length = np.sqrt(np.maximum(rho, 0.0) / norm)
    step, step_logit = np.zeros_like(r), np.zeros_like(doubt)
    # Far from the solution a rough direction is as good as an exact one.
    left = np.maximum(np.clip(length, _NEAR, _FAR), _NEAR * near / np.maximum(length, 1e-30))
    goal = np.minimum(left, 1.0) ** 2 * rho
    for _ in range(_MOST_DIRECTIONS):
        logit = problems.logit(d)
        h = problems.pull(_bend(doubt, strength, logit)) + _penalised(d)
        alpha = _over(rho, _dot(d, h))
        step += alpha * d
        step_logit += alpha * logit
        r -= alpha * h
        z = precondition(r, problems.group)
        new = _dot(r, z)
        if np.mean(new > goal) < _SHORT:
            break
        d *= _over(new, rho)
        d += z
        rho = new
    # The length of a direction that was cut short is not known.
    reached = np.sqrt(np.maximum(_dot(gradient, step), 0.0) / norm)
    return step, step_logit, np.where(new > goal, np.inf, reached)


def _newton_step(
    problems: Problems, precondition: _Preconditioner, penalty: float, point: Solution, tolerance: float, *, first: bool
) -> tuple[Solution, Mask]:
    """One damped, truncated Newton step, and which problems (problem,) want another."""
    strength = penalty * problems.weight
    doubt = _doubt(point.logit, problems)
    if first:
        precondition.update(problems, doubt, strength)
    held = _penalised(point.weights)
    gradient = problems.pull(_residual(doubt, problems, strength)) - held  # downhill
    step, logit, length = _direction(problems, precondition, doubt, strength, gradient, _dot(held, held), tolerance)
    start = -_dot(gradient, step)  # slope of the objective along the step
    linear, square = _dot(held, step), _dot(_penalised(step), step)
    downhill = start < 0
    size = np.where(downhill, 1.0, 0.0).astype(start.dtype)
    for _ in range(30):
        # The objective is convex: past the minimum along the step, its slope says by how much.
        there = _doubt(point.logit + size[:, None] * logit, problems)
        slope = linear + size * square - _dot(_residual(there, problems, strength), logit)
        far = downhill & ~(slope <= -0.5 * start)
        if not far.any():
            break
        shorter = np.divide(start, start - slope, out=np.zeros_like(start), where=far)
        size = np.where(far, size * np.fmax(0.1, shorter), size)
    weights = point.weights + size[:, None] * step
    moved = point.logit + size[:, None] * logit
    sound = np.isfinite(weights).all(axis=(0, 2)) & np.isfinite(moved).all(axis=(0, 2))
    far = length > _LAST * tolerance
    return Solution(weights, moved, sound & (length <= _LAST * tolerance)), sound & downhill & far


def logistic_path(
    problems: Problems,
    penalty: Sequence[float],
    *,
    tolerance: float,
    wanted: Callable[[int, int, Array], Mask] | None = None,
) -> Iterator[Solution]:
    """Follow logistic regressions along a path of penalties.

    Parameters
    ----------
    problems : Problems
    penalty : floats
        Values of ``C``, ascending; each start is the solution before it, taken further along the path.
    tolerance : float
        Stop where the next Newton step would be shorter than about this share of ``w``, in the norm of the Hessian.
    wanted : callable
        Called with the number of the penalty, how many Newton steps were taken at it, and the logits (class, problem,
        row) there; says which problems (problem,) are worth another. Others stay as they are, unsolved, until the next
        penalty.

    Yields
    ------
    Solution
        For each penalty, in order.
    """
    precondition = _Preconditioner(problems)
    n_problem, width = len(problems.group), problems.features.dtype
    weights, before = np.zeros((2, len(problems.label), n_problem, problems.scale.shape[1]), width)
    last_way = np.log(10.0)
    for number, c in enumerate(penalty):
        if number:
            way = np.log(c / penalty[number - 1])
            further = min(1.0, way / last_way)
            weights, before = weights + further * (weights - before), weights
            # What was lost at one penalty is tried afresh at the next.
            weights[:, ~np.isfinite(weights).all(axis=(0, 2))] = 0.0
            last_way = max(way, 1e-12)
        point = Solution(weights, problems.logit(weights), np.zeros(n_problem, bool))
        live, part, now = np.arange(n_problem), problems, point
        if wanted is not None:
            wanted(number, 0, point.logit)
        for step in range(_MOST_STEPS):
            # A number that is not finite is noticed below, and its regression counts as unsolved.
            with np.errstate(over="ignore", invalid="ignore"):
                now, going = _newton_step(part, precondition, float(c), now, tolerance, first=not step)
            point.weights[:, live], point.logit[:, live], point.solved[live] = now.weights, now.logit, now.solved
            if wanted is not None:
                going &= wanted(number, step + 1, point.logit)[live]
            if not going.any():
                break
            live, part = live[going], part.take(going)
            now = Solution(now.weights[:, going], now.logit[:, going], now.solved[going])
        weights = point.weights
        yield point
