"""Many L2-penalised logistic regressions on the same rows, solved together along a path of penalties.

The problems differ in the rows they train on, in their labels and in how they scale the columns; a training set of
cross-validation is one, its shuffled controls are others. Weights are kept as one number a row and class: the weights
of a problem are its columns' squared scales times ``features.T @ dual``. A Newton step then needs its own columns only
once, for the step it ends in; the direction is found by conjugate gradients on the Gram matrix of the rows, which all
problems share. Their scales are close, so the difference costs little more than the rough direction itself, and
decides nothing: gradients are exact. The leading eigenvectors of that matrix make a preconditioner for all.

Arrays only, problems in front of rows; labels of axes live in :mod:`analyze.probes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]

_LEADING = 64  # eigenvectors in the preconditioner: more of them save fewer products than they cost
_UNLIKE = 2.0  # squared scales that differ so much are not taken as alike
_NEAR, _FAR = 0.1, 0.3  # residual left by a direction, by how far the solution is
_LAST = 10.0  # a step shorter than so many tolerances is the last: it leaves a share of itself, and of second order
_UNPACKED = 1_000_000  # multiplications up to which BLAS does not copy its factors first
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


@dataclass(frozen=True, slots=True)
class Problems:
    """Logistic regressions on the same rows.

    Each minimises ``C sum_i weight_i loss(y_i, (stretch * x_i) w + b) + |w|^2 / 2`` over ``w`` and ``b``, the objective
    of scikit-learn's LogisticRegression, multinomial where there are more than two classes.
    """

    features: Array
    """(row, hidden), about centred; its float width is that of all work."""
    stretch: Array
    """(problem, hidden): squares of what each problem's columns are multiplied by, about one; zero drops a column."""
    weight: Array
    """(problem, row): 1 for a training row, 0 for any other."""
    label: Array
    """(class, problem, row): one-hot, or one row of 0 and 1 where there are two classes."""

    def take(self, index: Mask) -> "Problems":
        """Some of the problems."""
        return Problems(self.features, self.stretch[index], self.weight[index], self.label[:, index])


@dataclass(frozen=True, slots=True)
class Solution:
    """Where all problems are, at one penalty."""

    logit: Array
    """(class, problem, row), of all rows."""
    dual: Array
    """(class, problem, row): ``stretch * (dual @ features)`` are the weights on ``features``."""
    intercept: Array
    """(class, problem)."""

    def take(self, index: Mask) -> "Solution":
        """Of some of the problems."""
        return Solution(self.logit[:, index], self.dual[:, index], self.intercept[:, index])

    def put(self, index: Index, other: "Solution") -> "Solution":
        """With some of the problems where another solution has them."""
        whole = Solution(self.logit.copy(), self.dual.copy(), self.intercept.copy())
        whole.logit[:, index], whole.dual[:, index], whole.intercept[:, index] = (
            other.logit,
            other.dual,
            other.intercept,
        )
        return whole

    def moved(self, step: "Solution", size: Array | float) -> "Solution":
        """The solution after ``size`` (problem,) of a step."""
        size = np.asarray(size, dtype=self.logit.dtype)[..., None]
        return Solution(
            self.logit + size * step.logit,
            self.dual + size * step.dual,
            self.intercept + size[..., 0] * step.intercept,
        )


def _times(matrix: Array, narrow: Array) -> Array:
    """``matrix @ narrow`` of a few columns, by blocks: copying the matrix would take as long as the product."""
    n_row = _UNPACKED // narrow.size
    if narrow.shape[1] > 32 or not 0 < n_row < len(matrix):
        return np.asarray(matrix @ narrow)
    out = np.empty((len(matrix), narrow.shape[1]), matrix.dtype)
    whole = len(matrix) // n_row * n_row
    blocks = (-1, n_row, matrix.shape[1])
    np.matmul(matrix[:whole].reshape(blocks), narrow, out=out[:whole].reshape(-1, n_row, narrow.shape[1]))
    np.matmul(matrix[whole:], narrow, out=out[whole:])
    return out


class _Rows:
    """The Gram matrix of the rows, as it is and as each problem scales it."""

    def __init__(self, features: Array, alike: bool) -> None:
        n_row, hidden = features.shape
        self.features = features
        # Two products with the features are cheaper than one with their Gram matrix where rows are many.
        self.gram = features @ features.T if alike and n_row <= 2 * hidden else None
        self._decompose(min(_LEADING, n_row - 1, hidden))

    def _decompose(self, number: int) -> None:
        """Leading eigenvectors (row, leading) and eigenvalues, about, by Nystroem's method on a random subspace."""
        width = self.features.dtype
        start = np.random.default_rng(0).standard_normal((min(number + 10, len(self.features)), len(self.features)))
        basis = np.linalg.qr(self._shared(start.astype(width)).T)[0]
        seen = self._shared(basis.T)
        inner = seen @ basis
        inner[np.diag_indices_from(inner)] += 10 * np.finfo(width).eps * np.trace(inner) + np.finfo(width).tiny
        root = solve_triangular(np.linalg.cholesky(inner), seen, lower=True)
        eigenvalue, turn = np.linalg.eigh(root @ root.T)
        eigenvalue = np.maximum(eigenvalue, 10 * np.finfo(width).eps * eigenvalue[-1] + np.finfo(width).tiny)
        leading = np.argsort(-eigenvalue)[:number]
        self.eigenvalue = eigenvalue[leading]
        self.forth = np.ascontiguousarray((turn[:, leading] / np.sqrt(self.eigenvalue)).T @ root)  # (leading, row)
        self.back = np.ascontiguousarray(self.forth.T)

    def _shared(self, v: Array) -> Array:
        """(vector, row) times the Gram matrix."""
        return v @ self.gram if self.gram is not None else self._scaled(v)

    def _scaled(self, v: Array, stretch: Array | None = None) -> Array:
        w = self.features.T @ np.ascontiguousarray(v.T)  # (hidden, vector)
        if stretch is not None:
            w *= stretch.T
        return np.ascontiguousarray(_times(self.features, w).T)

    def about(self, v: Array, stretch: Array) -> Array:
        """(class, problem, row) times the Gram matrix, scaled alike for all problems if it may be."""
        if self.gram is None:
            return self.exact(v, stretch)
        flat = np.ascontiguousarray(v.reshape(-1, v.shape[-1]).T)
        return np.ascontiguousarray(_times(self.gram, flat).T).reshape(v.shape)

    def exact(self, v: Array, stretch: Array) -> Array:
        """(class, problem, row) times the Gram matrix of each problem."""
        return self._scaled(v.reshape(-1, v.shape[-1]), np.tile(stretch, (len(v), 1))).reshape(v.shape)


def _dot(left: Array, right: Array) -> Array:
    """(problem,), summed over class and the last axis."""
    return np.asarray(np.einsum("cpi,cpi->p", left, right))


def _column(value: Array) -> Array:
    """(problem,) as a factor of (class, problem, row)."""
    return value[:, None]


class _Curvature:
    """Hessian of the weighted loss in the logits."""

    def __init__(self, probability: Array, scale: Array) -> None:
        self.probability = probability
        self.several = len(probability) > 1
        self.diagonal = scale * probability if self.several else scale * probability * (1.0 - probability)

    def __call__(self, v: Array) -> Array:
        bent = self.diagonal * v
        if self.several:
            bent -= self.probability * bent.sum(axis=0)
        return np.asarray(bent)

    def total(self) -> Array:
        """(class, problem): its diagonal, summed over rows."""
        diagonal = self.diagonal * (1.0 - self.probability) if self.several else self.diagonal
        return np.asarray(np.maximum(diagonal.sum(axis=-1), 1e-12))


def _doubt(logit: Array, problems: Problems) -> Array:
    """Probability of every class, or of the one that is not the label's where there are two.

    However sure a row is, its doubt keeps all its digits, and with it the row's part in the weights.
    """
    if len(logit) > 1:
        return probability_of(logit, axis=0)
    return np.asarray(1.0 / (1.0 + np.exp(np.minimum((2.0 * problems.label - 1.0) * logit, _SURE))))


def _residual(doubt: Array, problems: Problems, scale: Array) -> Array:
    """Weighted labels less probabilities, (class, problem, row)."""
    return scale * (problems.label - doubt if len(doubt) > 1 else (2.0 * problems.label - 1.0) * doubt)


def _direction(
    rows: _Rows, problems: Problems, curvature: _Curvature, gradient: Array, gradient_b: Array, norm: Array, near: float
) -> tuple[Array, Array, Array]:
    """Newton direction by conjugate gradients: dual, intercept, and length as a share of ``norm`` (problem,).

    In dual coordinates the Hessian is ``I + D K``, with curvature ``D`` and Gram matrix ``K``; the preconditioner takes
    ``D`` as its mean and ``K`` by its leading eigenvectors, what lies beyond them as the last. Inner products are
    those of the weights, ``left K right``. Nothing is done if every length is below ``near``.
    """
    total = curvature.total()
    mean = (total / problems.weight.sum(axis=-1))[..., None]
    shrunk = 1.0 / (1.0 + mean * rows.eigenvalue)  # (class, problem, leading)
    beyond = shrunk[..., -1:]
    share = (shrunk - beyond).reshape(-1, len(rows.eigenvalue))

    def precondition(v: Array) -> tuple[Array, Array]:
        z = ((v.reshape(-1, v.shape[-1]) @ rows.back) * share @ rows.forth).reshape(v.shape)
        z += v * beyond
        return z, rows.about(z, problems.stretch)

    r, r_b = gradient.copy(), gradient_b.copy()
    (d, seen), d_b = precondition(r), r_b / total
    rho = _dot(r, seen) + (r_b * d_b).sum(axis=0)
    length = np.sqrt(np.maximum(rho, 0.0) / np.maximum(norm, 1e-12))
    step, step_b = np.zeros_like(r), np.zeros_like(r_b)
    if np.all(length <= near):
        return step, step_b, length
    # Far from the solution a rough direction is as good as an exact one.
    left = np.maximum(np.clip(length, _NEAR, _FAR), 0.7 * near / np.maximum(length, 1e-30))
    goal = np.minimum(left, 1.0) ** 2 * rho
    for _ in range(_MOST_DIRECTIONS):
        h = curvature(seen + d_b[..., None])
        h_b = h.sum(axis=-1)
        h += d
        along = _dot(h, seen) + (h_b * d_b).sum(axis=0)
        alpha = np.divide(rho, along, out=np.zeros_like(rho), where=along > 0)
        step += _column(alpha) * d
        step_b += alpha * d_b
        h *= _column(alpha)
        r -= h
        r_b -= alpha * h_b
        (z, seen_z), z_b = precondition(r), r_b / total
        new = _dot(r, seen_z) + (r_b * z_b).sum(axis=0)
        if np.all(new <= goal):
            break
        beta = np.divide(new, rho, out=np.zeros_like(rho), where=rho > 0)
        for direction, addition in ((d, z), (seen, seen_z)):
            direction *= _column(beta)
            direction += addition
        d_b = z_b + beta * d_b
        rho = new
    return step, step_b, length


def _newton_step(
    rows: _Rows, problems: Problems, penalty: float, at: Solution, tolerance: float
) -> tuple[Solution, Array]:
    """One damped, truncated Newton step: where it leads and its length as a share of ``w`` (problem,)."""
    scale = penalty * problems.weight
    doubt = _doubt(at.logit, problems)
    residual = _residual(doubt, problems, scale)
    gradient, gradient_b = residual - at.dual, residual.sum(axis=-1)  # downhill
    norm = _dot(at.dual, at.logit - at.intercept[..., None])
    curvature = _Curvature(doubt, scale)
    dual, intercept, length = _direction(rows, problems, curvature, gradient, gradient_b, norm, tolerance)
    if np.all(length <= tolerance):
        return at, length
    change = rows.exact(dual, problems.stretch)
    start = -_dot(gradient, change) - (gradient_b * intercept).sum(axis=0)  # slope of the objective along the step
    linear, square = _dot(at.dual, change), _dot(dual, change)
    step = Solution(change + intercept[..., None], dual, intercept)
    size = np.where(start < 0, 1.0, 0.0).astype(change.dtype)
    for _ in range(30):
        # The objective is convex: past the minimum along the step, its slope says by how much.
        logit = at.logit + _column(size) * step.logit
        slope = linear + size * square - _dot(_residual(_doubt(logit, problems), problems, scale), step.logit)
        far = slope > -0.5 * start
        if not np.any(far & (start < 0)):
            break
        size = np.where(far, np.maximum(0.1 * size, size * start / np.where(far, start - slope, 1.0)), size)
    return at.moved(step, size), np.where(start < 0, length, 0.0)


def logistic_path(
    problems: Problems, penalty: Sequence[float], *, tolerance: float, max_step: int = _MOST_STEPS
) -> Iterator[Solution]:
    """Follow logistic regressions along a path of penalties.

    Parameters
    ----------
    problems : Problems
    penalty : floats
        Values of ``C``, ascending; each start is the solution before it, taken further along the path.
    tolerance : float
        Stop where the next Newton step, by its preconditioned gradient, is shorter than this share of ``w``.
    max_step : int
        Newton steps at each penalty.

    Yields
    ------
    Solution
        For each penalty, in order.
    """
    rows = _Rows(problems.features, bool((problems.stretch <= _UNLIKE).all()))
    at, before = (
        Solution(*(np.zeros_like(value) for value in (problems.label, problems.label, problems.label[..., 0])))
        for _ in range(2)
    )
    last_way = np.log(10.0)
    for number, c in enumerate(penalty):
        if number:
            way = np.log(c / penalty[number - 1])
            further = min(1.0, way / last_way)
            at, before = at.moved(at.moved(before, -1.0), further), at
            last_way = max(way, 1e-12)
        live, part, now = np.arange(problems.label.shape[1]), problems, at
        for _ in range(max_step):
            now, length = _newton_step(rows, part, float(c), now, tolerance)
            going = length > _LAST * tolerance
            if going.sum() > 0.6 * len(live):
                continue
            at = at.put(live, now)
            if not going.any():
                break
            live, part, now = live[going], part.take(going), now.take(going)
        else:
            at = at.put(live, now)
        yield at
