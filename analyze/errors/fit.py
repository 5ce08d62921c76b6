"""Logistic regression on the rows of a design: by passes over them or, where they are few, by their inner products."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special

from analyze.errors.design import Spool, moments
from analyze.errors.spec import ErrorSpec
from schemas.errors import UsageError

_TURNED_ROWS = 2048
"""Rows of which the matrix of inner products is held at most."""
_COLUMN_BYTES = 1 << 23
Vector = NDArray[np.float64]


class Fit:
    """A logistic regression in the design's own units."""

    def __init__(self, weight: Vector, bias: float, mean: Vector, deviation: Vector) -> None:
        self.weight, self.bias, self.mean, self.deviation = weight, bias, mean, deviation
        self.penalty, self.n_iteration, self.converged = np.nan, 0, True

    def scores(self, design: Spool) -> Vector:
        """Log odds of being wrong (row,)."""
        values = np.empty(design.n_row)
        for part, x in design.blocks(self.mean):
            values[part] = x @ self.weight + self.bias
        return values


class Scaled:
    """Rows of a design, less ``center`` and divided by ``unit``; missing numbers are ``mean``. All three (feature,)."""

    def __init__(self, design: Spool, mean: Vector, center: Vector, unit: Vector) -> None:
        self.design, self.mean, self.center, self.unit = design, mean, center, unit
        self.n_row, self.width = design.n_row, len(mean)

    def slope(self, pull: Vector) -> Vector:
        """Sum of the rows weighted by ``pull`` (row,): (feature,)."""
        total = np.zeros(self.width)
        for part, x in self.design.blocks(self.mean):
            total += x.T @ pull[part]
        return np.asarray((total - self.center * pull.sum()) / self.unit)

    def loss(self, weight: Vector, bias: float, target: Vector, counted: Vector) -> tuple[float, Vector, float]:
        """Log loss of the rows, weighted by ``counted`` (row,), and its slope in the weights and in the bias."""
        scaled = weight / self.unit
        shift = bias - self.center @ scaled
        loss, slope, total = 0.0, np.zeros(self.width), 0.0
        for part, x in self.design.blocks(self.mean):
            z = x @ scaled + shift
            loss += float(counted[part] @ (np.logaddexp(0, z) - target[part] * z))
            pull = counted[part] * (special.expit(z) - target[part])
            slope += x.T @ pull
            total += float(pull.sum())
        return loss, (slope - self.center * total) / self.unit, total

    def scores(self, weight: Vector, bias: float) -> Vector:
        """Products of the rows with weights, and the bias: (row,)."""
        scaled = weight / self.unit
        return Fit(scaled, bias - float(self.center @ scaled), self.mean, self.unit).scores(self.design)

    def inner_products(self) -> Vector:
        """Of every two rows: (row, row)."""
        if self.design.is_sparse:
            x = self.design.whole() @ sparse.diags_array(1 / self.unit)
            center = self.center / self.unit
            along = x @ center
            return np.asarray((x @ x.T).toarray() + center @ center - along[:, None] - along)
        products, step = np.zeros((self.n_row, self.n_row)), max(1, _COLUMN_BYTES // (8 * self.n_row))
        for start in range(0, self.width, step):
            part = slice(start, start + step)
            x = self.design.columns(part, self.mean[part])
            x -= self.center[part]
            x /= self.unit[part]
            products += x @ x.T
        return products

    def turned(self) -> tuple["Scaled", Vector]:
        """The rows as coordinates on axes that they span, no more axes than rows; and the turn (row, axis).

        Weights on these axes stand for the sum of the rows weighted by ``turn @ weights``. Its length, which is
        penalised, and its product with every row are the same, and so is the optimum; but a pass over few rows of many
        features becomes one over few numbers.
        """
        value, vector = np.linalg.eigh(self.inner_products())
        kept = value > value[-1] * len(value) * np.finfo(np.float64).eps
        length = np.sqrt(value[kept])
        design = Spool(None, "turned")
        design.add(vector[:, kept] * length)
        zero = np.zeros(len(length))
        return Scaled(design, zero, zero, np.ones(len(length))), vector[:, kept] / length


def is_turned(n_row: int, n_number: float) -> bool:
    """Whether rows of ``n_number`` numbers each are fitted by :meth:`Scaled.turned`."""
    return n_row <= _TURNED_ROWS and n_row < n_number


def one_pass(n_row: int, width: int) -> None:
    """A pass over made-up rows, to time it."""
    design, target = Spool(None, "made-up"), np.zeros(n_row)
    design.add(np.ones((n_row, width), dtype=np.float32))
    zero = np.zeros(width)
    Scaled(design, zero, zero, np.ones(width)).loss(zero, 0.0, target, target)


def fit(
    design: Spool,
    wrong: NDArray[np.bool_],
    side: NDArray[np.intp],
    scale: Literal["deviation", "common", "none"],
    spec: ErrorSpec,
) -> Fit:
    """Minimise ``|w|^2 / 2 + C sum log loss`` by L-BFGS, for each C from the strongest penalty on.

    The same optimum as ``sklearn.linear_model.LogisticRegression(C=...)`` on scaled features; the intercept is free.
    """
    train = side == 0
    mean, deviation = moments(design, train)
    center, unit = mean, np.ones_like(mean)
    if scale == "none":
        center = np.zeros_like(mean)
    elif scale == "deviation":
        unit = np.where(deviation > 0, deviation, 1.0)
    elif deviation.any():
        unit = np.full_like(mean, np.sqrt(np.mean(deviation**2)))
    rows = Scaled(design, mean, center, unit)
    if is_turned(design.n_row, design.n_stored / design.n_row):
        turned, turn = rows.turned()
        weight, bias, penalty, n_iteration, converged = _descend(turned, wrong, side, spec)
        weight = rows.slope(turn @ weight)
    else:
        weight, bias, penalty, n_iteration, converged = _descend(rows, wrong, side, spec)
    found = Fit(weight / unit, bias - float(center @ (weight / unit)), mean, deviation)
    found.penalty, found.n_iteration, found.converged = penalty, n_iteration, converged
    return found


def _descend(
    rows: Scaled, wrong: NDArray[np.bool_], side: NDArray[np.intp], spec: ErrorSpec
) -> tuple[Vector, float, float, int, bool]:
    """Weights, bias, penalty, iterations and convergence at the penalty with the lowest loss on the validation rows."""
    train, target = side == 0, wrong.astype(np.float64)
    importance = np.ones(len(wrong))
    if spec.balanced and 0 < wrong[train].sum() < train.sum():
        share = wrong[train].mean()
        importance = np.where(wrong, 0.5 / share, 0.5 / (1 - share))
    counted = np.where(train, importance, 0.0)

    def objective(theta: Vector, penalty: float) -> tuple[float, Vector]:
        loss, slope, total = rows.loss(theta[:-1], theta[-1], target, counted)
        return 0.5 * float(theta[:-1] @ theta[:-1]) + penalty * loss, np.append(
            theta[:-1] + penalty * slope, penalty * total
        )

    theta = np.zeros(rows.width + 1)
    best: tuple[float, tuple[Vector, float, float, int, bool]] | None = None
    held = (side == 1) if (side == 1).any() and len(spec.penalties) > 1 else train
    for penalty in spec.penalties:
        solution = optimize.minimize(
            objective,
            theta,
            args=(penalty,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": spec.max_iterations, "ftol": 1e-10, "gtol": 1e-5 * max(1.0, penalty)},
        )
        theta = solution.x
        z = rows.scores(theta[:-1], theta[-1])[held]
        loss = float(np.mean(importance[held] * (np.logaddexp(0, z) - target[held] * z)))
        if best is None or loss < best[0]:
            best = loss, (theta[:-1], float(theta[-1]), penalty, int(solution.nit), bool(solution.success))
    if best is None:
        raise UsageError("error prediction without a penalty to try")
    return best[1]
