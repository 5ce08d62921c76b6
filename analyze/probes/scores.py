"""What the probes of all cells are worth: scores, intervals, baselines and permutation p-values of one target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.special import ndtri

from analyze.probes.nested import Selection
from schemas.resampling import percentiles, tail
from schemas.statistics import wilson_interval

Array = npt.NDArray[Any]

WIDENING = float(np.sqrt(2.0))
"""Widening of intervals and of the permutations' spread. The labels that test one fold train the others, so a chance
likeness of two examples counts twice, once each way. For predictions linear in the training labels the held-out score
is sum_ij M_ij y_i y_j, of variance sum M_ij^2 + sum M_ij M_ji: at most twice the first term, which is all that
resampling or permuting labels under fixed predictions sees."""


@dataclass(frozen=True, slots=True, repr=False)  # joblib writes down the repr of what it keeps results by
class Task:
    """One target, ready for any cell: rows index the examples read, the rest is aligned with the rows."""

    rows: Array  # (row,)
    label: Array  # (row, 1 + control): class indices, or numbers
    fold: Array  # (row,)
    classes: Array | None  # labels of the classes, None for a number
    problem: Array  # (row,)
    penalty: tuple[float, ...]
    selection: Selection


@dataclass(frozen=True, slots=True)
class Cell:
    """What one task found in one cell."""

    known: Array  # (row,) bool: rows whose position exists
    score: Array  # (known row, class), or (known row, 1) for a number
    control: float
    training: float = np.nan
    refit_training: float = np.nan
    penalty: float = np.nan
    direction: Array | None = None  # (class, hidden)
    intercept: Array | None = None  # (class,)


@dataclass(frozen=True, slots=True)
class _Interval:
    """An estimate in every cell and its resamples."""

    estimate: Array  # (cell,)
    resample: Array  # (cell, resample)


def measure(
    task: Task,
    cells: Sequence[Cell | None],
    shape: tuple[int, int],
    weight_all: Array,
    n_permutation: int,
    level: float,
    seed: int,
    *,
    widening: float = WIDENING,
) -> xr.Dataset:
    """Scores, intervals, baselines and p-values of one task in all cells.

    ``weight_all`` (row, resample) is how often each row is drawn in each resample of problems; ``widening``, of the
    permutations' spread, is 1 where no label that tests one fold trains the predictions of another.
    """
    n_cell, n_resample = len(cells), weight_all.shape[1]
    numbers = task.classes is None
    names = ["r2"] if numbers else ["accuracy", "balanced_accuracy", "auroc"]
    score = {name: _Interval(np.full(n_cell, np.nan), np.full((n_cell, n_resample), np.nan)) for name in names}
    p_value, baseline = np.full(n_cell, np.nan), np.full(n_cell, np.nan)
    by_rows: dict[bytes, dict[int, Cell]] = {}
    for index, cell in enumerate(cells):
        if cell is not None:
            by_rows.setdefault(cell.known.tobytes(), {})[index] = cell
    for alike in by_rows.values():
        members, known = list(alike), next(iter(alike.values())).known
        label, fold, problem = task.label[known, 0], task.fold[known], task.problem[known]
        weight = weight_all[known]
        predicted = np.stack([cell.score for cell in alike.values()])
        if numbers:
            # In a unit of their own: sums below are of float32, which no offset or unit of the target may over- or
            # underflow.
            middle = label.mean()
            unit = np.abs(label - middle).max() or 1.0
            label, predicted = (label - middle) / unit, (predicted - middle) / unit
            gain = _measure_numbers(score, members, predicted[..., 0], label, fold, weight)
            baseline[members] = 0.0
        else:
            gain, majority = _measure_classes(score, members, predicted, label, fold, weight)
            baseline[members] = majority
        p_value[members] = permutation_p(gain, label, fold, problem, n_permutation, [seed, 4], numbers, widening)

    grid = ("layer", "position")
    data: dict[str, Any] = {"n_example": (grid, _grid([0 if c is None else int(c.known.sum()) for c in cells], shape))}
    n_problem = np.array([0 if cell is None else len(np.unique(task.problem[cell.known])) for cell in cells])
    for name, interval in score.items():
        bounds = _intervals(name, interval, n_problem, level)
        if name == "accuracy":
            _bound_certainty(bounds, n_problem, level)
        data |= {key: (grid, _grid(value, shape)) for key, value in bounds.items()}
    main = names[0]
    data[f"{'baseline' if numbers else 'majority'}_{main}"] = (grid, _grid(baseline, shape))
    control = np.array([np.nan if cell is None else cell.control for cell in cells])
    data[f"control_{main}"] = (grid, _grid(control, shape))
    data["selectivity"] = (grid, _grid(score[main].estimate - control, shape))
    data["p_value"] = (grid, _grid(p_value, shape))
    for key, field in (
        (f"training_{main}", "training"),
        (f"refit_training_{main}", "refit_training"),
        ("penalty", "penalty"),
    ):
        data[key] = (grid, _grid([np.nan if cell is None else getattr(cell, field) for cell in cells], shape))
    return xr.Dataset(data)


def directions(
    task: Task, cells: Sequence[Cell | None], shape: tuple[int, int], hidden: int, *, by_class: bool
) -> xr.Dataset:
    """Weights of the probes of all cells on unscaled states, by class where there are more than two.

    Where another step has more, those of two classes are by class as well: w and b are -w/2, -b/2 and w/2, b/2.
    """
    grid, n_cell = ("layer", "position"), len(cells)
    width = 1 if task.classes is None or (len(task.classes) == 2 and not by_class) else len(task.classes)
    direction = np.full((n_cell, width, hidden), np.nan, dtype=np.float32)
    intercept = np.full((n_cell, width), np.nan)
    for index, cell in enumerate(cells):
        if cell is not None:
            direction[index], intercept[index] = cell.direction, cell.intercept
    if width == 2:
        half = np.array([-0.5, 0.5], dtype=np.float32)
        direction *= half[:, None]
        intercept *= half
    if width == 1:
        weights = {
            "direction": ((*grid, "hidden"), direction.reshape(*shape, hidden)),
            "intercept": (grid, intercept.reshape(shape)),
        }
        return xr.Dataset(weights)
    weights = {
        "direction": (("class", *grid, "hidden"), np.moveaxis(direction, 1, 0).reshape(width, *shape, hidden)),
        "intercept": (("class", *grid), intercept.T.reshape(width, *shape)),
    }
    names_of = np.array(task.classes)
    return xr.Dataset(weights, coords={"class": names_of.astype(object) if names_of.dtype.kind in "UT" else names_of})


def _measure_numbers(
    score: dict[str, _Interval], members: list[int], predicted: Array, value: Array, fold: Array, weight: Array
) -> Array:
    """Put the R2 of cells (cell, row) into ``score``.

    Returns
    -------
    (class 1, row, cell) how far each prediction lies above the mean prediction of its fold.
    """
    error = ((value - predicted) ** 2).astype(np.float32)
    spread = ((value - _fold_mean(value, fold)) ** 2).astype(np.float32)
    score["r2"].estimate[members] = 1.0 - error.sum(axis=1) / spread.sum()
    score["r2"].resample[members] = 1.0 - (error @ weight) / np.maximum(spread @ weight, 1e-30)
    gain = predicted - np.stack([_within_fold_mean(row, fold) for row in predicted])
    return np.asarray(gain.T[None])


def _measure_classes(
    score: dict[str, _Interval], members: list[int], predicted: Array, label: Array, fold: Array, weight: Array
) -> tuple[Array, float]:
    """Accuracy, balanced accuracy and AUROC of cells (cell, row, class) into ``score``.

    Also the gain of giving a row to a class, in AUROC (class, row, cell), and the accuracy of the commonest class of
    each training set.
    """
    n_class = predicted.shape[-1]
    hit = (predicted.argmax(axis=-1) == label).astype(np.float32)  # (cell, row)
    score["accuracy"].estimate[members] = hit.mean(axis=1)
    score["accuracy"].resample[members] = (hit @ weight) / np.maximum(weight.sum(axis=0), 1e-30)
    truth = np.equal(label, np.arange(n_class)[:, None]).astype(np.float32)  # (class, row)
    recall = (hit @ truth.T) / truth.sum(axis=1)  # (cell, class)
    drawn = truth @ weight  # (class, resample)
    resampled = np.stack([(hit * row) @ weight for row in truth], axis=1)  # (cell, class, resample)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(drawn > 0, resampled / drawn, np.nan)
    score["balanced_accuracy"].estimate[members] = recall.mean(axis=1)
    score["balanced_accuracy"].resample[members] = np.nanmean(share, axis=1)

    judged = range(1, 2) if n_class == 2 else range(n_class)  # one side of two classes says it all
    gain = np.zeros((n_class, len(label), len(members)))
    area = np.zeros(len(members))
    influence = np.zeros((len(members), len(label)), dtype=np.float32)
    for k in judged:
        one = _area(predicted[..., k], truth[k] > 0.5, fold)
        area += one[0] / len(judged)
        influence += one[1] / len(judged)
        gain[k] = one[2].T / len(judged)
    score["auroc"].estimate[members] = area
    # First-order (infinitesimal jackknife) resamples: the area is nearly linear in the rows' weights.
    score["auroc"].resample[members] = area[:, None] + influence @ weight

    count = truth @ np.eye(int(fold.max()) + 1, dtype=np.float32)[fold]  # (class, fold)
    commonest = (count.sum(axis=1, keepdims=True) - count).argmax(axis=0)  # (fold,)
    return gain, float((label == commonest[fold]).mean())


def _area(value: Array, positive: Array, fold: Array) -> tuple[Array, Array, Array]:
    """Area under the ROC curve over pairs of one fold, the influence of each row, and the gain of its being positive.

    Parameters
    ----------
    value : (cell, row)
    positive, fold : (row,)

    Returns
    -------
    area : (cell,)
    influence : (cell, row)
        First-order change of the area when a row counts once more.
    gain : (cell, row)
        The area is a constant plus the sum of the positives' gains.
    """
    from scipy.stats import rankdata  # takes half a second, which workers that fit do without

    area = np.zeros(len(value))
    influence, gain = np.zeros(value.shape, dtype=np.float32), np.zeros(value.shape)
    parts = [np.flatnonzero(fold == part) for part in range(int(fold.max()) + 1)]
    pairs = [float(positive[rows].sum()) * float((~positive[rows]).sum()) for rows in parts]
    for rows, number in zip(parts, pairs, strict=True):
        if number == 0:
            continue
        share, up = number / sum(pairs), positive[rows]
        n_up, n_down = int(up.sum()), int((~up).sum())
        rank = rankdata(value[:, rows], axis=1)
        inside = np.empty_like(rank)  # rank among the rows of the same side
        inside[:, up] = rankdata(value[:, rows][:, up], axis=1)
        inside[:, ~up] = rankdata(value[:, rows][:, ~up], axis=1)
        above = rank - inside  # rows of the other side below, ties half
        part = above[:, up].sum(axis=1) / number
        area += share * part
        placement = np.where(up, above / n_down, 1.0 - above / n_up)
        influence[:, rows] = share * (placement - part[:, None]) / np.where(up, n_up, n_down)
        gain[:, rows] = share * (rank - (len(rows) + 1) / 2) / number
    return area, influence, gain


def permutation_p(
    gain: Array,
    label: Array,
    fold: Array,
    problem: Array,
    number: int,
    seed: Sequence[int],
    numbers: bool,
    widening: float,
) -> Array:
    """Share of permutations that score as high as the labels themselves; gain (class, row, cell), result (cell,).

    Gains sum to zero over each fold, so permuted scores scatter about zero; they are widened as :data:`WIDENING` says.
    """
    if number < 1:
        return np.full(gain.shape[2], np.nan)
    values = [label - _within_fold_mean(label, fold)] if numbers else [label == k for k in range(len(gain))]
    used = [(np.asarray(value, dtype=np.float32), gain[k]) for k, value in enumerate(values) if np.any(gain[k])]
    if not used:  # no prediction differs from another: every permutation scores as high
        return np.ones(gain.shape[2])
    actual = sum((value.astype(np.float64) @ one for value, one in used), np.zeros(gain.shape[2]))
    slack = 1e-6 * sum((np.abs(value) @ np.abs(one) for value, one in used), np.zeros(gain.shape[2]))
    as_high = np.zeros(gain.shape[2])
    single = [one.astype(np.float32) for _, one in used]
    orders = permutations(problem, fold, number, seed)
    size = max(1, 2_000_000 // len(label))
    for start in range(0, number, size):
        block = np.stack([next(orders) for _ in range(min(size, number - start))])
        total = sum((value[block] @ one for (value, _), one in zip(used, single, strict=True)), np.float32(0.0))
        as_high += (widening * total >= actual - slack).sum(axis=0)
    return np.asarray((1.0 + as_high) / (1.0 + number))


def permutations(problem: Array, fold: Array, number: int, seed: Sequence[int]) -> Iterator[Array]:
    """Orders of rows that shuffle labels among problems of one fold and one size, a problem's rows staying together."""
    rng = np.random.default_rng(seed)
    unique, inverse, count = np.unique(problem, return_inverse=True, return_counts=True)
    by_problem = np.argsort(inverse, kind="stable")
    start = np.cumsum(count) - count
    home = fold[by_problem[start]]  # fold of each problem
    blocks = []
    for size in np.unique(count):
        for part in np.unique(home):
            members = np.flatnonzero((count == size) & (home == part))
            if len(members):
                blocks.append(by_problem[start[members][:, None] + np.arange(size)])  # (problem, its rows)
    for _ in range(number):
        order = np.empty(len(problem), dtype=np.int64)
        for block in blocks:
            order[block] = rng.permutation(block, axis=0)
        yield order


def _intervals(name: str, interval: _Interval, n_problem: Array, level: float) -> dict[str, Array]:
    """An estimate with its interval in each cell, and with one that holds in all cells at once.

    The first is the percentile interval. The second is symmetric, as wide as the largest standardised deviation
    among the cells in ``level`` of the resamples; cells share their resamples of problems. Both are widened for few
    problems (cell,) as :func:`schemas.resampling.tail` says.
    """
    known = np.isfinite(interval.estimate)
    estimate, low, high, low_joint, high_joint = (np.full(known.shape, np.nan) for _ in range(5))
    if known.any():
        estimate, resample = interval.estimate, interval.resample[known]
        resample = estimate[known][:, None] + WIDENING * (resample - estimate[known][:, None])
        low[known], high[known] = percentiles(resample, n_problem[known], level)
        spread = resample.std(axis=1)
        moving = spread > 1e-9
        half = np.zeros(int(known.sum()))
        if moving.any():
            deviation = np.abs(resample[moving] - estimate[known][moving][:, None]) / spread[moving][:, None]
            half[moving] = np.quantile(deviation.max(axis=0), level) * spread[moving]
        half *= ndtri(tail(n_problem[known], level)) / ndtri((1 - level) / 2)
        half[~moving] = np.nan  # nothing varies, all right or all wrong: resampling cannot say how sure that is
        low[known], high[known] = np.where(moving, low[known], np.nan), np.where(moving, high[known], np.nan)
        low_joint[known], high_joint[known] = estimate[known] - half, estimate[known] + half
        top, bottom = 1.0, -np.inf if name == "r2" else 0.0
        low_joint, high_joint = np.clip(low_joint, bottom, top), np.clip(high_joint, bottom, top)
        low, high = np.clip(low, bottom, top), np.clip(high, bottom, top)
    return {
        name: estimate,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_low_joint": low_joint,
        f"{name}_high_joint": high_joint,
    }


def _bound_certainty(bounds: dict[str, Array], n_problem: Array, level: float) -> None:
    """Replace the interval of an accuracy of 0 or 1 by Wilson's, with problems as its trials.

    All resamples of such an accuracy are alike, so that the bootstrap's interval would be a single point.
    """
    estimate = bounds["accuracy"]
    certain = np.isfinite(estimate) & np.isnan(bounds["accuracy_low"])
    for suffix, coverage in (("", level), ("_joint", 1 - (1 - level) / max(1, int(np.isfinite(estimate).sum())))):
        low, high = wilson_interval(estimate * n_problem, n_problem, coverage)
        for end, bound in (("low", low), ("high", high)):
            bounds[f"accuracy_{end}{suffix}"][certain] = bound[certain]


def r2(predicted: Array, value: Array, fold: Array) -> float:
    """R2 of predictions (row,) against the mean of each fold's training rows."""
    error, spread = (value - predicted) ** 2, (value - _fold_mean(value, fold)) ** 2
    return float(1.0 - error.sum() / spread.sum())


def _fold_mean(value: Array, fold: Array) -> Array:
    """Mean of the rows outside each row's fold: what training knew."""
    number = np.bincount(fold)
    total = np.bincount(fold, weights=value)
    return np.asarray(((total.sum() - total) / (number.sum() - number))[fold])


def _within_fold_mean(value: Array, fold: Array) -> Array:
    return np.asarray((np.bincount(fold, weights=value) / np.bincount(fold))[fold])


def steps_of(result: xr.Dataset) -> list[xr.Dataset]:
    """Scores of each step; of a target without steps the whole."""
    return [result.isel(step=i) for i in range(result.sizes["step"])] if "step" in result.dims else [result]


def _grid(values: Any, shape: tuple[int, int]) -> Array:
    return np.asarray(values).reshape(shape)
