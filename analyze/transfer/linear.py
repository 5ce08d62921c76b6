"""Probes and directions fitted on one run and tested on another, in every layer and position.

Problems, numbered over all runs, are dealt into folds once. For each fold a probe is fitted on the problems of the
other folds of one run, and tested on the problems of the fold in another, so that what both runs share is never fitted
and tested. The test run's own probe, fitted the same way, is the ceiling, and one fitted on shuffled labels the floor.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import log_softmax

from analyze.cluster import spread
from analyze.pieces import pieces_in
from analyze.probes import nested
from analyze.probes.linear import check_probed
from analyze.probes.nested import nested_logistic, one_thread
from analyze.probes.ridge import nested_ridge
from analyze.probes.scores import WIDENING, Cell, Task, measure, permutations
from analyze.probes.tasks import (
    can_fit,
    class_labels,
    draw_examples,
    folds_of,
    number_strata,
    penalties_of,
    target_columns,
)
from analyze.transfer.command import TransferSettings
from analyze.transfer.matrix import against_own, assembled, described, squared_errors
from analyze.transfer.problems import problem_groups
from schemas import UsageError
from schemas.progress import Progress, silent, stretch
from schemas.resampling import draw_counts
from schemas.statistics import adjust

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[str, str, str]
"""Kind, run fitted on, run tested on."""


class Linear(NamedTuple):
    """Linear scores of each fold's fit: class 1 against 0, every class of more than two, or the value of a number."""

    weight: Array  # (fold, score, hidden)
    bias: Array  # (fold, score)

    def scores(self, states: Array, fold: Array) -> Array:
        """Scores (row, score) of states (row, hidden), each by the fit that left out the row's fold."""
        flat = states @ self.weight.reshape(-1, states.shape[1]).T
        every = flat.reshape(len(states), *self.bias.shape) + self.bias
        return np.asarray(every[np.arange(len(states)), fold])


@dataclass(frozen=True, slots=True)
class _Column:
    """One target column of all runs."""

    tasks: Mapping[str, Task]
    groups: Mapping[str, Array]  # (row,), problems numbered over all runs

    def widening(self, fit: str, test: str) -> float:
        """Factor that widens permutations: 1 where no problem that tests one fold has trained another."""
        shared = np.isin(self.groups[test], self.groups[fit]).any()
        return WIDENING if shared else 1.0


@one_thread()
def transfer_probes(
    runs: Mapping[str, xr.Dataset],
    fit: Sequence[str],
    test: Sequence[str],
    settings: TransferSettings | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Test probes and directions of some runs on others.

    A probe is that of ``lake analyze probes``: logistic regression (ridge for a number) on standardised states, its
    penalty chosen by inner folds. A direction has no settings: between two classes it is the difference of their
    means, cut half-way; of more classes the nearest mean counts; for a number it is the states' covariance with it,
    scaled by least squares (the first component of partial least squares).

    Parameters
    ----------
    runs
        By name, with ``hidden_state`` (example, layer, position, hidden) at the same layers and positions, of one
        width, ``question`` and the target. Lazy states are read one (layer, position) at a time.
    fit, test
        Names of the runs that are fitted on and tested on.
    settings
        Target, kinds and folds.
    folder
        Where finished cells are kept, so that the same transfer, asked for again after it was stopped, takes them up.
    progress
        Called with cells done and their number.

    Returns
    -------
    Dataset over (kind, fit, test, [step,] layer, position)
        For classes, of those that every run has: ``accuracy``, ``balanced_accuracy``, ``auroc``; for a number ``r2``
        against the mean of the test run and ``correlation``, which an offset between runs leaves alone. Each but the
        last with ``_low`` and ``_high`` over problems, and ``_low_joint`` and ``_high_joint`` over all cells of a pair
        of runs. ``own_`` (kind, test, ..) is the score of the test run's own probe on the same examples, ``gap`` that
        score less the transferred one with its paired interval, ``control_`` the score after a fit to labels shuffled
        among problems, ``majority_accuracy`` that of the test run's commonest class. ``p_value`` permutes labels of the
        test run; ``p_corrected`` is corrected over the whole matrix. NaN where a run has too few examples at a
        position. ``n_shared`` (fit, test): problems both have.

    Raises
    ------
    SchemaError
        If a run lacks the target.
    UsageError
        If the runs share fewer than two classes, or have too few problems for the folds.

    Notes
    -----
    Memory is that of one cell of all runs, ``max_examples`` x hidden numbers of each, and one score for each row,
    class, cell and pair of runs. Time is that of ``1 + controls`` times the probes of each run. P-values are
    widened as those of probes (see there) where runs share problems. Intervals are always widened: other problems would
    have given another fit, and where none is shared that is as uncertain as the test, if the problems are as many.
    """
    settings = settings or TransferSettings()
    drawn: dict[str, Array] = {}
    for name, run in runs.items():
        check_probed(run, settings.target, settings.level)
        problem = np.asarray(run["problem"].values)
        drawn[name] = draw_examples(problem, settings.max_examples, settings.seed)
    parts = {name: run.isel(example=drawn[name]) for name, run in runs.items()}
    groups = problem_groups(parts)
    first = next(iter(parts.values()))
    columns, left_out = _columns(parts, groups, settings)
    pairs = [*product(fit, test), *((one, one) for one in test if one not in fit)]
    cells = list(product(range(first.sizes["layer"]), range(first.sizes["position"])))
    n_test = len(settings.linear_kinds) * len(fit) * len(test) * len(columns) * len(cells)
    n_permutation = max(1000, 40 * n_test) if settings.permutations is None else settings.permutations
    of_tests: dict[tuple[Any, ...], xr.Dataset] = {}
    n_cell = len(columns) * len(cells)
    for number, (step, column) in enumerate(columns.items()):
        scored = _scored(parts, column, pairs, cells, settings, folder, stretch(progress, number * len(cells), n_cell))
        shape = (first.sizes["layer"], first.sizes["position"])
        asked = [pair for pair, by_cell in scored.items() if any(cell is not None for cell in by_cell)]
        shared = [scored, column, shape, dict.fromkeys(fit, n_permutation), settings]
        for pair, scores in zip(asked, spread(_measured, ([pair] for pair in asked), shared), strict=True):
            of_tests[*pair, step] = scores
    if not of_tests:
        raise UsageError(f"{settings.target!r} of {', '.join(runs)}: too few examples at every layer and position")
    labels = {"layer": first["layer"].values, "position": first["position"].values}
    result = assembled(of_tests, settings.linear_kinds, list(fit), list(test), list(columns)).assign_coords(labels)
    result["p_corrected"] = result["p_value"].copy(data=adjust(result["p_value"].values, settings.correction))
    result["n_shared"] = (
        ("fit", "test"), [[len(np.intersect1d(groups[one], groups[other])) for other in test] for one in fit]
    )  # fmt: skip
    is_number = next(iter(next(iter(columns.values())).tasks.values())).classes is None
    return described(result).assign_attrs(
        kind="transfer", target=settings.target, treat="number" if is_number else "classes", level=settings.level,
        correction=settings.correction, n_test=int(np.isfinite(result["p_value"].values).sum()),
        permutations=n_permutation, left_out="; ".join(left_out),
    )  # fmt: skip


def _measured(
    pair: Pair, scored: Mapping[Pair, list[Cell | None]], column: _Column, shape: tuple[int, int],
    n_permutation: Mapping[str, int], settings: TransferSettings,
) -> xr.Dataset:  # fmt: skip
    """Scores of one kind fitted to a run and tested on another, beside those of the test run's own."""
    kind, fitted, tested = pair
    task, by_cell = column.tasks[tested], scored[pair]
    weight = draw_counts(task.problem, n_resample=settings.resamples, seed=settings.seed)
    scores = measure(
        task, by_cell, shape, weight, n_permutation.get(fitted, 0), settings.level, settings.seed,
        widening=column.widening(fitted, tested),
    )  # fmt: skip
    scores = scores.drop_vars([name for name in ("penalty", *scores) if "training" in name or name == "penalty"])
    return scores.merge(against_own(task, by_cell, scored[kind, tested, tested], shape, weight, settings.level))


def _columns(
    parts: Mapping[str, xr.Dataset], groups: Mapping[str, Array], settings: TransferSettings
) -> tuple[dict[Any, _Column], list[str]]:
    """Target columns by step, of the steps that every run has, and why others are left out."""
    values = {name: target_columns(part[settings.target]) for name, part in parts.items()}
    steps = [step for step in next(iter(values.values())) if all(step in by_step for by_step in values.values())]
    columns, left_out = {}, []
    for step in steps:
        of_step = {name: by_step[step] for name, by_step in values.items()}
        numeric = all(column.dtype.kind in "fiu" for column in of_step.values())
        as_number = settings.treat == "number" or (settings.treat == "auto" and numeric)
        try:
            columns[step] = _column(of_step, parts, groups, as_number, settings)
        except UsageError as error:
            left_out.append(f"step {step}: {error}" if len(steps) > 1 else str(error))
    if not columns:
        raise UsageError(
            f"{settings.target!r} of {', '.join(parts)}: {left_out[0] if left_out else 'no step in common'}"
        )
    return columns, left_out


def _column(
    values: Mapping[str, Array], parts: Mapping[str, xr.Dataset], groups: Mapping[str, Array], as_number: bool,
    settings: TransferSettings,
) -> _Column:  # fmt: skip
    """Rows, labels, folds and controls of one target column (example,) of each run."""
    problem = {name: np.asarray(part["problem"].values) for name, part in parts.items()}
    rows, label, classes = _numbers(values) if as_number else _classes(values, problem, settings.folds)
    few = {name: len(np.unique(groups[name][chosen])) for name, chosen in rows.items()}
    if min(few.values()) < 2 * settings.folds:
        listed = ", ".join(f"{name} has {count}" for name, count in few.items())
        raise UsageError(f"{settings.folds} folds need {2 * settings.folds} problems of each run; {listed}")
    group = {name: groups[name][chosen] for name, chosen in rows.items()}
    together = np.concatenate(list(label.values()))
    strata = number_strata(together, settings.folds) if as_number else together
    fold = folds_of(strata, np.concatenate(list(group.values())), settings.folds, settings.seed)
    ends = np.cumsum([0, *map(len, rows.values())])
    tasks = {}
    for index, name in enumerate(rows):
        own, chosen = fold[ends[index] : ends[index + 1]], problem[name][rows[name]]
        orders = permutations(chosen, own, settings.controls, [settings.seed, 3])
        tasks[name] = Task(
            rows=rows[name], label=np.stack([label[name], *(label[name][order] for order in orders)], axis=1), fold=own,
            classes=classes, problem=chosen, penalty=penalties_of(settings.penalties, as_number),
            selection=settings.selection,
        )  # fmt: skip
    return _Column(tasks=tasks, groups=group)


def _numbers(values: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array], None]:
    """Examples of each run whose target is a number, and the numbers."""
    try:
        numbers = {name: column.astype("float64") for name, column in values.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"treated as a number, but {error}; text is probed as classes") from None
    rows = {name: np.flatnonzero(np.isfinite(value)) for name, value in numbers.items()}
    label = {name: numbers[name][chosen] for name, chosen in rows.items()}
    if flat := [name for name, value in label.items() if len(np.unique(value)) < 2]:
        raise UsageError(f"{', '.join(flat)} has fewer than two values")
    return rows, label, None


def _classes(
    values: Mapping[str, Array], problem: Mapping[str, Array], n_fold: int
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """Examples of the classes that every run has ``n_fold`` problems of, their classes as 0, 1, .., and the names."""
    text, given = {}, {}
    names: dict[str, list[Any]] = {}
    for name, column in values.items():
        text[name], given[name] = class_labels(column)
        pairs = pd.DataFrame({"class": text[name][given[name]], "problem": problem[name][given[name]]})
        count = pairs.groupby("class")["problem"].nunique()
        names[name] = count.index[count >= n_fold].tolist()
    first, *others = names.values()
    classes = np.array([label for label in first if all(label in known for known in others)])
    if len(classes) < 2:
        listed = "; ".join(f"{name}: {', '.join(map(str, known)) or 'none'}" for name, known in names.items())
        raise UsageError(f"two classes with {n_fold} problems in every run are needed; there are {listed}")
    rows = {name: np.flatnonzero(given[name] & np.isin(text[name], classes)) for name in values}
    return rows, {name: pd.Index(classes).get_indexer(text[name][chosen]) for name, chosen in rows.items()}, classes


def _scored(
    parts: Mapping[str, xr.Dataset], column: _Column, pairs: Sequence[tuple[str, str]],
    cells: Sequence[tuple[int, int]], settings: TransferSettings, folder: str | os.PathLike[str] | None,
    progress: Progress,
) -> dict[Pair, list[Cell | None]]:  # fmt: skip
    """Scores of every fit on the rows of every run tested, by cell."""
    scored: dict[Pair, list[Cell | None]] = {(kind, *pair): [] for kind in settings.linear_kinds for pair in pairs}
    hidden = {name: part["hidden_state"].transpose("layer", "position", "example", "hidden").data
              for name, part in parts.items()}  # fmt: skip
    calls = ([[hidden[name][place][task.rows] for name, task in column.tasks.items()]] for place in cells)
    # Kept by what goes in: the states themselves, labels, folds and settings.
    judge = pieces_in(folder, __file__, nested.__file__).cache(_scored_cell)
    for number, judged in enumerate(spread(judge, calls, [dict(column.tasks), list(scored)])):
        for by_cell, cell in zip(scored.values(), judged, strict=True):
            by_cell.append(cell)
        progress(number + 1, len(cells))
    return scored


def _scored_cell(there: Sequence[xr.DataArray], tasks: Mapping[str, Task], wanted: Sequence[Pair]) -> list[Cell | None]:
    """Scores of every fit wanted on one cell of each run (example, hidden)."""
    kinds = list(dict.fromkeys(kind for kind, _, _ in wanted))
    states, known, fits = {}, {}, {}
    for (name, task), of_run in zip(tasks.items(), there, strict=True):
        values = np.asarray(of_run, dtype="float64")
        known[name] = np.isfinite(values).all(1)
        states[name] = values[known[name]]
        if can_fit(task, known[name]):
            fits[name] = _fits(states[name], task, known[name], kinds)
    cells: list[Cell | None] = []
    for kind, fit, test in wanted:
        if fit not in fits or test not in fits:
            cells.append(None)
            continue
        task, rows = tasks[test], known[test]
        judged = [_judged(one, kind, states[test], task, rows) for one in fits[fit][kind]]
        right = [_score(probe, task, rows) for probe in judged[1:]]
        control = float(np.mean(right)) if right else np.nan
        kept = judged[0] if task.classes is None else judged[0].astype("float32")
        cells.append(Cell(known=rows, score=kept, control=control))
    return cells


def _fits(states: Array, task: Task, known: Array, kinds: Sequence[str]) -> dict[str, list[Linear]]:
    """Each kind fitted to the labels and to each of their shuffles, for every fold left out."""
    label, fold = task.label[known], task.fold[known]
    n_class = None if task.classes is None else len(task.classes)
    fits: dict[str, list[Linear]] = {kind: [] for kind in kinds}
    for kind, index in product(kinds, range(label.shape[1])):
        if kind == "direction":
            fits[kind].append(mean_difference(states, label[:, index], fold, n_class))
            continue
        one = label[:, index : index + 1]
        if n_class is None:
            fit = nested_ridge(states, one, fold, penalty=task.penalty)
        else:
            fit = nested_logistic(states, one, fold, penalty=task.penalty, selection=task.selection)
        fits[kind].append(Linear(fit.coefficient, fit.intercept))
    return fits


def mean_difference(states: Array, label: Array, fold: Array, n_class: int | None) -> Linear:
    """Direction between class means, or of the covariance with a number, of every fold's training rows.

    Parameters
    ----------
    states : (row, hidden)
    label : (row,)
        0, 1, .. or numbers.
    fold : (row,)
    n_class
        ``None`` for a number.
    """
    n_fold = int(fold.max()) + 1
    if n_class is None:
        return _covariances(states, label, fold, n_fold)
    belongs = (fold == np.arange(n_fold)[:, None])[:, None] & (label == np.arange(n_class)[:, None])
    sums = (belongs.reshape(-1, len(states)).astype(states.dtype) @ states).reshape(n_fold, n_class, -1)
    count = belongs.sum(-1)
    means = (sums.sum(0) - sums) / (count.sum(0) - count)[..., None]  # (fold left out, class, hidden)
    bias = -(means**2).sum(-1) / 2
    return Linear(np.diff(means, axis=1), np.diff(bias)) if n_class == 2 else Linear(means, bias)


def _covariances(states: Array, label: Array, fold: Array, n_fold: int) -> Linear:
    """Direction of every fold's training rows along which a number varies most with them."""
    weights, biases = [], []
    for left_out in range(n_fold):
        rows = fold != left_out
        x, y = states[rows], label[rows]
        centred = x - x.mean(0)
        along = centred.T @ (y - y.mean())
        slope = (along @ along) / max(float(((centred @ along) ** 2).sum()), 1e-300)
        weight = (slope * along)[None]
        weights.append(weight)
        biases.append(y.mean() - weight @ x.mean(0))
    return Linear(np.stack(weights), np.stack(biases))


def _judged(linear: Linear, kind: str, states: Array, task: Task, known: Array) -> Array:
    """Scores of rows (row, class), the highest being the class predicted; of a number (row, 1).

    Logits, not probabilities, which would round to 1 and tie where the states of another run lie far out.
    """
    scores = linear.scores(states, task.fold[known])
    if task.classes is None:
        return scores
    if scores.shape[1] == 1:
        return np.concatenate([-scores, scores], axis=1)
    if kind == "probe":
        return np.asarray(log_softmax(scores, axis=1))
    others = (scores.sum(1, keepdims=True) - scores) / (scores.shape[1] - 1)
    return np.asarray(scores - others)


def _score(judged: Array, task: Task, known: Array) -> float:
    """Accuracy, or R2 against the mean of the other folds, of one fit."""
    label = task.label[known, 0]
    if task.classes is not None:
        return float((judged.argmax(1) == label).mean())
    wrong, spread = squared_errors(judged[:, 0], label, task.fold[known])
    return float(1 - wrong.sum() / spread.sum())
