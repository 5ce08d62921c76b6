"""Linear probes for every (layer, position) of a run: what can be read off the states, held out, with controls.

A probe that reads a quantity says that the states carry it, not that the model uses it; ablation and patching answer
that. Every result carries :data:`NOTE` for this reason.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dask
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy import stats

from analyze.probe_solver import Selection, nested_logistic, nested_ridge
from analyze.statistics import adjust, bootstrap_weights, wilson_interval
from schemas import SchemaError, UsageError

Array = npt.NDArray[Any]
Treatment = Literal["auto", "classes", "number"]
Correction = Literal["holm", "bh"]
Progress = Callable[[int, int], None]

NOTE = (
    "Decoding is not use: a probe shows what can be read off a state, not that the model reads it. "
    "Whether it does is a question for ablation and patching."
)
PENALTIES = tuple(float(10.0**power) for power in range(-3, 3))
"""Values of C tried by default: those of the reports."""
_DOUBLED = float(np.sqrt(2.0))
"""Widening of intervals and of the permutations' spread. The labels that test one fold train the others, so a chance
likeness of two examples counts twice, once each way. For predictions linear in the training labels the held-out score
is sum_ij M_ij y_i y_j, of variance sum M_ij^2 + sum M_ij M_ji: at most twice the first term, which is all that
resampling or permuting labels under fixed predictions sees."""
RIDGE_PENALTIES = tuple(float(10.0**power) for power in range(-2, 6))
"""Values of alpha tried by default for numbers."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One target, ready for any cell: rows index the examples read, the rest is aligned with the rows."""

    rows: Array  # (row,)
    label: Array  # (row, 1 + control): class indices, or numbers
    fold: Array  # (row,)
    classes: Array | None  # labels of the classes, None for a number
    problem: Array  # (row,)
    penalty: tuple[float, ...]
    selection: Selection


@dataclass(frozen=True, slots=True)
class _Cell:
    """What one task found in one cell."""

    known: Array  # (row,) bool: rows whose position exists
    score: Array  # (known row, class), or (known row, 1) for a number
    control: float
    training: float
    refit_training: float
    penalty: float
    direction: Array  # (class, hidden)
    intercept: Array  # (class,)


def linear_probes(
    run: xr.Dataset,
    target: str = "correct",
    *,
    treat: Treatment = "auto",
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    n_fold: int = 5,
    penalty: Sequence[float] | None = None,
    selection: Selection = "log_loss",
    n_control: int = 3,
    n_permutation: int | None = None,
    n_resample: int = 1000,
    level: float = 0.95,
    correction: Correction = "holm",
    max_example: int | None = 2000,
    n_per_class: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Probe every layer and position of a run for a target, by nested cross-validation over problems.

    Each cell is a logistic regression (ridge for a number) on standardised states. Folds are made of whole problems,
    so that a clean problem and its corrupted twin are never on two sides, and hold like shares of every class.
    Scaling, and the choice of the penalty by inner folds, happen inside each training set. All scores are of
    examples held out; ``training_accuracy`` alone is not, and is a diagnostic of how little it says.

    Parameters
    ----------
    run : Dataset with ``hidden_state`` (example, layer, position, hidden), coordinate ``problem`` and the target
        As a lake hands it out; lazy states are read one (layer, position) at a time.
    target : str
        ``"correct"``, ``"operation"``, ``"intermediate_result"`` or any variable or coordinate along ``example``, with
        or without ``step``; where it has steps, so has the result.
    treat : {"auto", "classes", "number"}
        Classes by logistic regression or a number by ridge; ``"auto"`` takes text and truth values as classes.
    layers, positions
        The cells; all that the run holds if absent.
    n_fold : int
        Outer folds; the others of them are the inner folds of each.
    penalty : floats
        Values of C, or of ridge's alpha for a number; :data:`PENALTIES` and :data:`RIDGE_PENALTIES` if absent.
    selection : {"log_loss", "accuracy"}
        What chooses C on the inner folds; the reports used accuracy.
    n_control : int
        Times the labels are shuffled among problems and everything done again, penalties included.
    n_permutation : int
        Permutations behind each p-value; enough for the correction to reach a fortieth if absent.
    n_resample : int
        Resamples of problems behind each interval.
    level : float
        Coverage of the intervals.
    correction : {"holm", "bh"}
        For the number of cells (and steps) tested.
    max_example : int
        At most about so many examples are used, whole problems drawn by ``seed``; None uses all.
    n_per_class : int
        Draw exactly so many examples of each class, as the reports did (50); none if absent.
    seed : int
        Of folds, controls, permutations, resamples and draws.
    progress : callable
        Called with (cells done, cells) after each cell.

    Returns
    -------
    Dataset over ([step,] layer, position)
        For classes ``accuracy``, ``balanced_accuracy`` and ``auroc`` (pairs are compared within a fold; mean over
        classes, each against the rest, where there are more than two); ``r2`` for a number, against the mean of the
        training rows. Each comes with ``_low`` and ``_high``, and with ``_low_joint`` and ``_high_joint`` that
        hold in all cells at once. ``majority_accuracy`` is what the commonest class of each training set scores,
        ``control_accuracy`` what the probe scores on shuffled labels, ``selectivity`` the excess over that;
        ``p_value`` and ``p_corrected`` test the AUROC (the covariance with the held-out prediction for a number);
        ``training_accuracy``, and ``refit_training_accuracy`` of one probe fitted to all rows, which is what the
        reports give. ``direction`` ([class,] layer, position, hidden) and ``intercept`` are weights on unscaled
        states, averaged over the outer folds. Cells with too few examples hold NaN; ``n_example`` says.

    Raises
    ------
    SchemaError
        If the run lacks the target, the states or a layer or position asked for.
    UsageError
        If an option is out of range, or the target has fewer than two classes or too few problems for the folds.

    Notes
    -----
    Intervals resample problems, and p-values permute labels among the problems of a fold, under the held-out
    predictions as they are. That alone is too sure, since each fold's labels also train the probes of the others; both
    are widened by the square root of two, the most this can amount to for a linear probe, and so err to the careful
    side where the signal is strong. Where every prediction is right (or wrong) resamples are alike: the accuracy then
    has Wilson's interval, other scores have none (NaN). The AUROC's resamples are of first order.

    Memory is that of one cell (at most ``max_example`` x hidden numbers, a few times over) plus resamples, permutations
    and held-out predictions of ``max_example`` rows: with the default cap it is the same for 2,000 examples as for any
    number more. Every chunk of the states is read once. Under a
    ``dask.distributed`` client cells are worked on by its workers, a few at a time.
    """
    _check(run, target, n_fold, n_control, level, correction, selection, treat)
    states = run["hidden_state"]
    states = states.sel(layer=_labels(states, "layer", layers), position=_labels(states, "position", positions))
    values = run[target]
    steps = list(values["step"].values) if "step" in values.dims and "step" in values.coords else None
    by_step = [values.isel(step=i) for i in range(values.sizes["step"])] if "step" in values.dims else [values]
    columns = [np.asarray(column.values) for column in by_step]
    as_number = treat == "number" or (treat == "auto" and columns[0].dtype.kind in "fiu")
    if penalty is None:
        penalty = RIDGE_PENALTIES if as_number else PENALTIES
    penalties = tuple(sorted(float(value) for value in penalty))
    if not penalties or penalties[0] <= 0:
        raise UsageError(f"penalties of a probe are positive numbers, at least one; found {list(penalty)}")

    problem = np.asarray(run["problem"].values)
    used = _draw(problem, max_example, seed)
    tasks: list[_Task | None] = []
    reasons: list[str] = []
    for column in columns:
        try:
            column = column[used]
            task = _prepare(
                column, problem[used], as_number, n_fold, n_control, n_per_class, penalties, selection, seed
            )
            tasks.append(task)
        except UsageError as error:
            if len(columns) == 1:
                raise UsageError(f"probes for {target!r} of run {run.attrs.get('run', '')!r}: {error}") from None
            tasks.append(None)
            reasons.append(str(error))
    if all(task is None for task in tasks):
        raise UsageError(f"probes for {target!r} of run {run.attrs.get('run', '')!r}: {reasons[0]}")
    present = [task for task in tasks if task is not None]
    rows = np.unique(np.concatenate([task.rows for task in present]))
    present = [_reindex(task, rows) for task in present]
    cells = _run_cells(states.isel(example=used[rows]), present, progress)

    shape = (states.sizes["layer"], states.sizes["position"])
    if n_permutation is None:
        n_permutation = max(1000, 40 * shape[0] * shape[1] * len(present))
    coords = {name: states[name] for name in states.coords if states[name].dims in (("layer",), ("position",))}
    results: list[xr.Dataset | None] = []
    present_cells = iter(range(len(present)))
    for prepared in tasks:
        if prepared is None:
            results.append(None)
            continue
        index = next(present_cells)
        found = [cell[index] for cell in cells]
        results.append(
            _measure(present[index], found, shape, states.sizes["hidden"], n_resample, n_permutation, level, seed)
        )
    filled = [result for result in results if result is not None]
    if len(columns) == 1:
        result = filled[0]
    else:
        labels = steps if steps is not None else list(range(len(columns)))
        dim = pd.Index([label for label, one in zip(labels, results, strict=True) if one is not None], name="step")
        result = xr.concat(filled, dim=dim, join="outer", combine_attrs="override")
    result["p_corrected"] = result["p_value"].copy(data=adjust(result["p_value"].values, correction))
    result = result.assign_coords({name: coord.variable for name, coord in coords.items()})
    return _describe(result).assign_attrs(
        target=target,
        treat="number" if as_number else "classes",
        run=run.attrs.get("run", ""),
        n_fold=n_fold,
        penalties=list(penalties),
        selection="squared error" if as_number else selection,
        n_control=n_control,
        n_permutation=n_permutation,
        n_resample=n_resample,
        level=level,
        correction=correction,
        n_test=int(np.isfinite(result["p_value"].values).sum()),
        max_example=max_example if max_example is not None else "all",
        n_per_class=n_per_class if n_per_class is not None else "as they come",
        seed=seed,
        left_out="; ".join(reasons),
        note=NOTE,
    )


def _check(
    run: xr.Dataset,
    target: str,
    n_fold: int,
    n_control: int,
    level: float,
    correction: str,
    selection: str,
    treat: str,
) -> None:
    name = run.attrs.get("run", "")
    for needed in ("hidden_state", "problem", target):
        if needed not in run.variables:
            along = sorted(str(key) for key, value in run.variables.items() if value.dims[:1] == ("example",))
            raise SchemaError(f"probes of run {name!r} need {needed!r}; along 'example' it holds {', '.join(along)}")
    if not set(run[target].dims) <= {"example", "step"} or "example" not in run[target].dims:
        dims = tuple(map(str, run[target].dims))
        raise SchemaError(
            f"target {target!r} of run {name!r} has dims {dims}; a probe's target has 'example' and maybe 'step'"
        )
    if n_fold < 3:
        raise UsageError(f"nested cross-validation needs at least 3 folds; found {n_fold}")
    if n_control < 0 or not 0 < level < 1:
        raise UsageError(f"n_control is 0 or more and level between 0 and 1; found {n_control} and {level}")
    for value, allowed in (
        (correction, ("holm", "bh")),
        (selection, ("log_loss", "accuracy")),
        (treat, ("auto", "classes", "number")),
    ):
        if value not in allowed:
            raise UsageError(f"{value!r} is not one of {', '.join(allowed)}")


def _labels(states: xr.DataArray, dim: str, wanted: Sequence[Any] | None) -> list[Any]:
    held = list(states[dim].values)
    if wanted is None:
        return held
    missing = [label for label in wanted if label not in held]
    if missing or not len(wanted):
        raise SchemaError(f"no {dim} {missing} in the run; it holds {held[0]} .. {held[-1]} ({len(held)} of them)")
    return list(wanted)


def _draw(problem: Array, max_example: int | None, seed: int) -> Array:
    """Examples of whole problems drawn at random until ``max_example``, in order."""
    if max_example is None or len(problem) <= max_example:
        return np.arange(len(problem))
    if max_example < 1:
        raise UsageError(f"max_example is at least 1; found {max_example}")
    unique, inverse, count = np.unique(problem, return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 1]).permutation(len(unique))
    taken = order[np.cumsum(count[order]) <= max_example]
    return np.flatnonzero(np.isin(inverse, taken))


def _prepare(
    column: Array,
    problem: Array,
    as_number: bool,
    n_fold: int,
    n_control: int,
    n_per_class: int | None,
    penalty: tuple[float, ...],
    selection: Selection,
    seed: int,
) -> _Task:
    """Rows, classes, folds and controls of one target column (example,)."""
    if as_number:
        value = column.astype(np.float64)
        rows = np.flatnonzero(np.isfinite(value))
        classes: Array | None = None
        label: Array = value[rows]
        if len(np.unique(problem[rows])) < 2 * n_fold or len(np.unique(label)) < 2:
            raise UsageError(
                f"{len(np.unique(problem[rows]))} problems with {len(np.unique(label))} values; "
                f"{n_fold} folds need at least {2 * n_fold} problems and two values"
            )
        strata: Array = np.unique(stats.rankdata(label) * 5 // (len(label) + 1), return_inverse=True)[1]
    else:
        text = column.astype(str) if column.dtype.kind in "OUST" else column
        given = text != "" if text.dtype.kind in "UT" else ~pd.isna(text)
        found, coded = np.unique(text[given], return_inverse=True)
        rows = np.flatnonzero(given)
        count = np.array([len(np.unique(problem[rows[coded == index]])) for index in range(len(found))])
        enough = count >= n_fold  # a rarer class is missing from whole folds
        rows = rows[enough[coded]]
        classes, code = np.unique(text[rows], return_inverse=True)
        label = np.asarray(code)
        if len(classes) < 2:
            listed = ", ".join(f"{name!s} ({number})" for name, number in zip(found[:8], count, strict=False))
            raise UsageError(
                f"classes and their problems are {listed or 'none'}; "
                f"at least two classes with {n_fold} problems each are needed for {n_fold} folds"
            )
        if n_per_class is not None:
            rng = np.random.default_rng([seed, 2])
            parts = [np.flatnonzero(label == index) for index in range(len(classes))]
            short = [f"{classes[i]!s} ({len(part)})" for i, part in enumerate(parts) if len(part) < n_per_class]
            if short or n_per_class < n_fold:
                where = ", ".join(short) or f"{n_fold} folds"
                raise UsageError(f"{n_per_class} examples of each class asked for; too few in {where}")
            drawn = np.sort(np.concatenate([rng.choice(part, n_per_class, replace=False) for part in parts]))
            rows, label = rows[drawn], label[drawn]
        strata = label
    groups = problem[rows]
    fold = _folds(strata, groups, n_fold, seed)
    shuffled = [label[order] for order in _permutations(groups, fold, n_control, [seed, 3])]
    return _Task(
        rows=rows,
        label=np.stack([label, *shuffled], axis=1),
        fold=fold,
        classes=classes,
        problem=groups,
        penalty=penalty,
        selection=selection,
    )


def _folds(strata: Array, problem: Array, n_fold: int, seed: int) -> Array:
    """Fold of each row; whole problems, like shares of every stratum."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    options = {"n_splits": n_fold, "shuffle": True, "random_state": seed}
    if len(np.unique(problem)) == len(problem):
        splits = StratifiedKFold(**options).split(strata, strata)
    else:
        splits = StratifiedGroupKFold(**options).split(strata, strata, problem)
    fold = np.empty(len(strata), dtype=np.int64)
    for index, (_, held_out) in enumerate(splits):
        fold[held_out] = index
    return fold


def _permutations(problem: Array, fold: Array, number: int, seed: Sequence[int]) -> Iterator[Array]:
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


def _reindex(task: _Task, rows: Array) -> _Task:
    """The task with ``rows`` counted among the examples that are read."""
    return _Task(
        rows=np.searchsorted(rows, task.rows),
        label=task.label,
        fold=task.fold,
        classes=task.classes,
        problem=task.problem,
        penalty=task.penalty,
        selection=task.selection,
    )


def _probe_cell(states: Array, tasks: Sequence[_Task]) -> list[_Cell | None]:
    """Fit every task to one cell (example, hidden); None where too few of its examples have the position."""
    exists: Array = np.asarray(np.isfinite(states).all(axis=1))
    return [_fit_task(states, exists[task.rows], task) for task in tasks]


def _fit_task(states: Array, known: Array, task: _Task) -> _Cell | None:
    """One task in one cell; ``known`` (row,) are the examples that have the position."""
    label, fold = task.label[known], task.fold[known]
    n_fold = int(task.fold.max()) + 1
    enough = len(np.unique(fold)) == n_fold
    if enough and task.classes is not None:
        # Every class, controls included, must be left in every training set: in three folds or more.
        seen = np.zeros((len(task.classes), label.shape[1], n_fold), dtype=bool)
        seen[label, np.arange(label.shape[1]), fold[:, None]] = True
        enough = bool((seen.sum(axis=2) >= 3).all())
    if not enough or int(np.bincount(fold, minlength=n_fold).min()) < 2:
        return None
    chosen = states[task.rows[known]]
    if task.classes is None:
        fit = nested_ridge(chosen, label, fold, penalty=task.penalty)
        control = [_r2(fit.score[:, i, 0], label[:, i], fold) for i in range(1, label.shape[1])]
    else:
        fit = nested_logistic(chosen, label, fold, penalty=task.penalty, selection=task.selection)
        control = [float(np.mean(fit.score[:, i].argmax(-1) == label[:, i])) for i in range(1, label.shape[1])]
    return _Cell(
        known=known,
        score=fit.score[:, 0].astype(np.float32),
        control=float(np.mean(control)) if control else np.nan,
        training=float(fit.training[:, 0].mean()),
        refit_training=fit.refit_training,
        penalty=float(np.exp(np.log(fit.chosen[:, 0]).mean())),
        direction=fit.coefficient.mean(axis=0).astype(np.float32),
        intercept=fit.intercept.mean(axis=0),
    )


def _run_cells(states: xr.DataArray, tasks: Sequence[_Task], progress: Progress | None) -> list[list[_Cell | None]]:
    """Every cell in order (layer, position), here or on the workers of a dask client."""
    cells = [
        states.isel(layer=layer, position=position).transpose("example", "hidden").data
        for layer in range(states.sizes["layer"])
        for position in range(states.sizes["position"])
    ]
    client = _client()
    if client is None:
        results = []
        for cell in cells:
            results.append(_probe_cell(np.asarray(cell), tasks))
            if progress is not None:
                progress(len(results), len(cells))
        return results
    distributed = sys.modules["distributed"]
    shared = client.scatter([list(tasks)], broadcast=True)[0]
    waiting = iter(range(len(cells)))
    number: dict[Any, int] = {}
    done: dict[int, list[_Cell | None]] = {}
    queue = distributed.as_completed(with_results=True)

    def send() -> None:
        index = next(waiting, None)
        if index is not None:
            future = client.compute(dask.delayed(_probe_cell)(cells[index], shared))
            number[future.key] = index
            queue.add(future)

    for _ in range(2 * max(1, sum(client.nthreads().values()))):
        send()
    for future, found in queue:
        done[number.pop(future.key)] = found
        send()
        if progress is not None:
            progress(len(done), len(cells))
    return [done[index] for index in range(len(cells))]


def _client() -> Any:
    """The dask client in force, if any; it can only be there if its package was imported."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def _fold_mean(value: Array, fold: Array) -> Array:
    """Mean of the rows outside each row's fold: what training knew."""
    number = np.bincount(fold)
    total = np.bincount(fold, weights=value)
    return np.asarray(((total.sum() - total) / (number.sum() - number))[fold])


def _r2(predicted: Array, value: Array, fold: Array) -> float:
    error, spread = (value - predicted) ** 2, (value - _fold_mean(value, fold)) ** 2
    return float(1.0 - error.sum() / spread.sum())


@dataclass(frozen=True, slots=True)
class _Interval:
    """An estimate in every cell and its resamples."""

    estimate: Array  # (cell,)
    resample: Array  # (cell, resample)


def _measure(
    task: _Task,
    cells: Sequence[_Cell | None],
    shape: tuple[int, int],
    hidden: int,
    n_resample: int,
    n_permutation: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    """Scores, intervals, baselines and p-values of one task in all cells."""
    n_cell = len(cells)
    numbers = task.classes is None
    names = ["r2"] if numbers else ["accuracy", "balanced_accuracy", "auroc"]
    score = {name: _Interval(np.full(n_cell, np.nan), np.full((n_cell, n_resample), np.nan)) for name in names}
    p_value, baseline = np.full(n_cell, np.nan), np.full(n_cell, np.nan)
    by_rows: dict[bytes, list[int]] = {}
    for index, cell in enumerate(cells):
        if cell is not None:
            by_rows.setdefault(cell.known.tobytes(), []).append(index)
    groups = xr.DataArray(task.problem.astype(np.int64), dims="example")
    weight_all = np.asarray(bootstrap_weights(groups, n_resample, seed).values)  # (row, resample)
    for members in by_rows.values():
        known = cells[members[0]].known  # type: ignore[union-attr]
        label, fold, problem = task.label[known, 0], task.fold[known], task.problem[known]
        weight = weight_all[known]
        predicted = np.stack([cells[index].score for index in members])  # type: ignore[union-attr]
        if numbers:
            gain = _measure_numbers(score, members, predicted[..., 0], label, fold, weight)
            baseline[members] = 0.0
        else:
            gain, majority = _measure_classes(score, members, predicted, label, fold, weight)
            baseline[members] = majority
        p_value[members] = _permutation_p(gain, label, fold, problem, n_permutation, [seed, 4], numbers)

    grid = ("layer", "position")
    data: dict[str, Any] = {"n_example": (grid, _grid([0 if c is None else int(c.known.sum()) for c in cells], shape))}
    for name, interval in score.items():
        bounds = _intervals(name, interval, level)
        if name == "accuracy":
            _bound_certainty(bounds, cells, task.problem, level)
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
    width = 1 if numbers or len(task.classes) == 2 else len(task.classes)  # type: ignore[arg-type]
    direction = np.full((n_cell, width, hidden), np.nan, dtype=np.float32)
    intercept = np.full((n_cell, width), np.nan)
    for index, cell in enumerate(cells):
        if cell is not None:
            direction[index], intercept[index] = cell.direction, cell.intercept
    if width == 1:
        data["direction"] = ((*grid, "hidden"), direction.reshape(*shape, hidden))
        data["intercept"] = (grid, intercept.reshape(shape))
        return xr.Dataset(data)
    data["direction"] = (("class", *grid, "hidden"), np.moveaxis(direction, 1, 0).reshape(width, *shape, hidden))
    data["intercept"] = (("class", *grid), intercept.T.reshape(width, *shape))
    names_of = np.array(task.classes)
    return xr.Dataset(data, coords={"class": names_of.astype(object) if names_of.dtype.kind in "UT" else names_of})


def _grid(values: Any, shape: tuple[int, int]) -> Array:
    return np.asarray(values).reshape(shape)


def _measure_numbers(
    score: dict[str, _Interval], members: list[int], predicted: Array, value: Array, fold: Array, weight: Array
) -> Array:
    """R2 of cells (cell, row) into ``score``; the gain of giving a row the value 1 more (class 1, row, cell)."""
    error = ((value - predicted) ** 2).astype(np.float32)
    spread = ((value - _fold_mean(value, fold)) ** 2).astype(np.float32)
    score["r2"].estimate[members] = 1.0 - error.sum(axis=1) / spread.sum()
    score["r2"].resample[members] = 1.0 - (error @ weight) / np.maximum(spread @ weight, 1e-30)
    gain = predicted - np.stack([_within_fold_mean(row, fold) for row in predicted])
    return np.asarray(gain.T[None])


def _within_fold_mean(value: Array, fold: Array) -> Array:
    return np.asarray((np.bincount(fold, weights=value) / np.bincount(fold))[fold])


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
    area = np.zeros(len(value))
    influence, gain = np.zeros(value.shape, dtype=np.float32), np.zeros(value.shape)
    parts = [np.flatnonzero(fold == part) for part in range(int(fold.max()) + 1)]
    pairs = [float(positive[rows].sum()) * float((~positive[rows]).sum()) for rows in parts]
    for rows, number in zip(parts, pairs, strict=True):
        if number == 0:
            continue
        share, up = number / sum(pairs), positive[rows]
        n_up, n_down = int(up.sum()), int((~up).sum())
        rank = stats.rankdata(value[:, rows], axis=1)
        inside = np.empty_like(rank)  # rank among the rows of the same side
        inside[:, up] = stats.rankdata(value[:, rows][:, up], axis=1)
        inside[:, ~up] = stats.rankdata(value[:, rows][:, ~up], axis=1)
        above = rank - inside  # rows of the other side below, ties half
        part = above[:, up].sum(axis=1) / number
        area += share * part
        placement = np.where(up, above / n_down, 1.0 - above / n_up)
        influence[:, rows] = share * (placement - part[:, None]) / np.where(up, n_up, n_down)
        gain[:, rows] = share * (rank - (len(rows) + 1) / 2) / number
    return area, influence, gain


def _permutation_p(
    gain: Array, label: Array, fold: Array, problem: Array, number: int, seed: Sequence[int], numbers: bool
) -> Array:
    """Share of permutations that score as high as the labels themselves; gain (class, row, cell), result (cell,).

    Gains sum to zero over each fold, so permuted scores scatter about zero; they are widened as :data:`_DOUBLED` says.
    """
    if number < 1:
        return np.full(gain.shape[2], np.nan)
    values = [label - _within_fold_mean(label, fold)] if numbers else [label == k for k in range(len(gain))]
    used = [(np.asarray(value, dtype=np.float32), gain[k]) for k, value in enumerate(values) if np.any(gain[k])]
    actual = sum((value.astype(np.float64) @ one for value, one in used), np.zeros(gain.shape[2]))
    slack = 1e-6 * sum((np.abs(value) @ np.abs(one) for value, one in used), np.zeros(gain.shape[2]))
    as_high = np.zeros(gain.shape[2])
    single = [one.astype(np.float32) for _, one in used]
    orders = _permutations(problem, fold, number, seed)
    size = max(1, 2_000_000 // len(label))
    for start in range(0, number, size):
        block = np.stack([next(orders) for _ in range(min(size, number - start))])
        total = sum((value[block] @ one for (value, _), one in zip(used, single, strict=True)), np.float32(0.0))
        as_high += (_DOUBLED * total >= actual - slack).sum(axis=0)
    return np.asarray((1.0 + as_high) / (1.0 + number))


def _intervals(name: str, interval: _Interval, level: float) -> dict[str, Array]:
    """An estimate with its interval in each cell, and with one that holds in all cells at once.

    The first is the percentile interval. The second is symmetric, as wide as the largest standardised deviation
    among the cells in ``level`` of the resamples; cells share their resamples of problems.
    """
    tail = 100 * (1 - level) / 2
    known = np.isfinite(interval.estimate)
    estimate, low, high, low_joint, high_joint = (np.full(known.shape, np.nan) for _ in range(5))
    if known.any():
        estimate, resample = interval.estimate, interval.resample[known]
        resample = estimate[known][:, None] + _DOUBLED * (resample - estimate[known][:, None])
        low[known], high[known] = np.percentile(resample, [tail, 100 - tail], axis=1)
        spread = resample.std(axis=1)
        moving = spread > 1e-9
        half = np.zeros(int(known.sum()))
        if moving.any():
            deviation = np.abs(resample[moving] - estimate[known][moving][:, None]) / spread[moving][:, None]
            half[moving] = np.quantile(deviation.max(axis=0), level) * spread[moving]
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


def _bound_certainty(bounds: dict[str, Array], cells: Sequence[_Cell | None], problem: Array, level: float) -> None:
    """Give an accuracy of 0 or 1, of which resamples are all alike, Wilson's interval with problems as its trials."""
    estimate = bounds["accuracy"]
    n_cell = int(np.isfinite(estimate).sum())
    for index, cell in enumerate(cells):
        if cell is None or np.isfinite(bounds["accuracy_low"][index]):
            continue
        n_problem = len(np.unique(problem[cell.known]))
        for suffix, coverage in (("", level), ("_joint", 1 - (1 - level) / n_cell)):
            low, high = wilson_interval(estimate[index] * n_problem, n_problem, coverage)
            bounds[f"accuracy_low{suffix}"][index], bounds[f"accuracy_high{suffix}"][index] = low, high


_LONG_NAMES = {
    "n_example": "examples with the target and the position",
    "accuracy": "held-out accuracy",
    "balanced_accuracy": "held-out recall, mean over classes",
    "auroc": "held-out area under the ROC curve, pairs of one fold",
    "r2": "held-out R2 against the mean of the training rows",
    "majority_accuracy": "held-out accuracy of the commonest class of the training rows",
    "baseline_r2": "held-out R2 of the mean of the training rows, 0 by definition",
    "control": "the same probe on labels shuffled among problems",
    "selectivity": "held-out score minus that on shuffled labels",
    "p_value": "permutation p-value of the held-out prediction",
    "p_corrected": "p-value corrected for the number of cells",
    "training": "score on the training rows themselves (a diagnostic, not a result)",
    "refit_training": "score on all rows of a probe fitted to all rows (what the reports call accuracy)",
    "penalty": "chosen penalty, geometric mean over outer folds",
    "direction": "probe weights on unscaled states, mean over outer folds",
    "intercept": "probe intercept, mean over outer folds",
}


_BOUNDS = {
    "_low_joint": ", lower bound over all cells",
    "_high_joint": ", upper bound over all cells",
    "_low": ", lower bound",
    "_high": ", upper bound",
}


def _describe(result: xr.Dataset) -> xr.Dataset:
    """Attach units and long names."""
    for name, variable in result.data_vars.items():
        ending = next((ending for ending in _BOUNDS if str(name).endswith(ending)), "")
        base = str(name).removesuffix(ending)
        base = next((part for part in ("control", "refit_training", "training") if base.startswith(part)), base)
        variable.attrs = {"units": "1", "long_name": _LONG_NAMES[base] + _BOUNDS.get(ending, "")}
    return result


def summarise_probes(result: xr.Dataset, metric: str | None = None) -> pd.DataFrame:
    """Mean, spread, range and best cell of a probe grid, one row for each step, as the reports sum theirs up.

    Parameters
    ----------
    result : Dataset from :func:`linear_probes`
    metric : str
        A variable over (layer, position); accuracy, or R2 for a number, if absent.

    Returns
    -------
    DataFrame
        ``mean``, ``spread`` (population standard deviation over cells), ``lowest``, ``highest``, ``best_layer``,
        ``best_position``, ``best_low`` and ``best_high`` (joint interval: the best of many cells was picked),
        ``baseline``, ``control``, ``found`` (cells with corrected p below 1 - level) and ``n_cell``.
    """
    main = "r2" if "r2" in result else "accuracy"
    metric = main if metric is None else metric
    if metric not in result:
        raise UsageError(f"probe result has no {metric!r}; it holds {', '.join(map(str, result.data_vars))}")
    parts = [result.isel(step=i) for i in range(result.sizes["step"])] if "step" in result.dims else [result]
    rows = []
    for part in parts:
        grid = part[metric].transpose("layer", "position")
        values = grid.values
        best = np.unravel_index(int(np.nanargmax(values)), values.shape)
        row: dict[str, Any] = {} if "step" not in part.coords else {"step": part["step"].item()}
        baseline = part["baseline_r2"] if main == "r2" else part["majority_accuracy"]
        low, high = (part.get(f"{metric}_{side}_joint") for side in ("low", "high"))
        row |= {
            "mean": float(np.nanmean(values)),
            "spread": float(np.nanstd(values)),
            "lowest": float(np.nanmin(values)),
            "highest": float(np.nanmax(values)),
            "best_layer": int(grid["layer"].values[best[0]]),
            "best_position": str(grid["position"].values[best[1]]),
            "best_low": np.nan if low is None else float(low.transpose("layer", "position").values[best]),
            "best_high": np.nan if high is None else float(high.transpose("layer", "position").values[best]),
            "baseline": float(baseline.mean()),
            "control": float(part[f"control_{main}"].mean()),
            "found": int((part["p_corrected"] < 1 - result.attrs["level"]).sum()),
            "n_cell": int(np.isfinite(values).sum()),
        }
        rows.append(row)
    return pd.DataFrame(rows)
