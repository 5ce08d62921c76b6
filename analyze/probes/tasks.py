"""What a probe is fitted to: rows, classes, folds and shuffled controls of a target."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from analyze.probes.command import ProbeSettings
from analyze.probes.scores import Task, permutations
from schemas import UsageError

Array = npt.NDArray[Any]
PENALTIES = tuple(float(10.0**power) for power in range(-3, 3))
"""Values of C tried by default: those of the reports."""
RIDGE_PENALTIES = tuple(float(10.0**power) for power in range(-2, 6))
"""Values of alpha tried by default for numbers."""
LARGEST = 1e30
"""Number that is probed at most: directions are numbers over deviations of states, in float32."""


def target_columns(target: xr.DataArray) -> dict[Any, Array]:
    """Values of the target by example, of each step; of one without steps under the label 0."""
    if "step" not in target.dims:
        return {0: np.asarray(target.values)}
    steps = target["step"].values.tolist() if "step" in target.coords else range(target.sizes["step"])
    return {step: np.asarray(target.isel(step=index).values) for index, step in enumerate(steps)}


def penalties_of(given: Sequence[float] | None, as_number: bool) -> tuple[float, ...]:
    """Values of C or alpha to choose from, weakest first."""
    if given is None:
        return RIDGE_PENALTIES if as_number else PENALTIES
    if not given or min(given) <= 0:
        raise UsageError(f"--penalties of a probe are positive numbers, at least one; found {list(given)}")
    return tuple(sorted(given))


def task_or_reason(
    column: Array, problem: Array, as_number: bool, penalties: tuple[float, ...], settings: ProbeSettings
) -> Task | str:
    """What there is to fit for a target column (example,), or why there is nothing."""
    try:
        return _prepare(column, problem, as_number, penalties, settings)
    except UsageError as error:
        return str(error)


def draw_examples(problem: Array, max_examples: int, seed: int) -> Array:
    """Examples of whole problems drawn at random until ``max_examples``, in order; all of them for 0.

    Raises
    ------
    UsageError
        If the first that is drawn has more.
    """
    if not max_examples or len(problem) <= max_examples:
        return np.arange(len(problem))
    unique, inverse, count = np.unique(problem, return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 1]).permutation(len(unique))
    taken = order[np.cumsum(count[order]) <= max_examples]
    if not len(taken):
        raise UsageError(f"--max-examples {max_examples} is fewer than a problem has, {count.max()}; allow more")
    return np.flatnonzero(np.isin(inverse, taken))


def _prepare(
    column: Array, problem: Array, as_number: bool, penalties: tuple[float, ...], settings: ProbeSettings
) -> Task:
    """Rows, classes, folds and controls of one target column (example,)."""
    if as_number:
        if settings.per_class is not None or settings.selection != "log_loss":
            raise UsageError("treated as a number, and --per-class, --selection and --reports are of classes")
        rows, label, strata = _number_rows(column, problem, settings.folds)
        classes = None
    else:
        rows, label, classes = _class_rows(column, problem, settings)
        strata = label
    groups = problem[rows]
    fold = folds_of(strata, groups, settings.folds, settings.seed)
    shuffled = [label[order] for order in permutations(groups, fold, settings.controls, [settings.seed, 3])]
    return Task(
        rows=rows,
        label=np.stack([label, *shuffled], axis=1),
        fold=fold,
        classes=classes,
        problem=groups,
        penalty=penalties,
        selection=settings.selection,
    )


def _number_rows(column: Array, problem: Array, n_fold: int) -> tuple[Array, Array, Array]:
    """Examples whose target is a number, their numbers, and the strata that folds share alike."""
    try:
        value = column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"treated as a number, but {error}; text is probed as classes") from None
    rows = np.flatnonzero(np.isfinite(value))
    label: Array = value[rows]
    if len(label) and np.abs(label).max() > LARGEST:
        raise UsageError(
            f"it has numbers up to {np.abs(label).max():.3g}, and directions are kept in float32, so numbers may be"
            f" {LARGEST:g} at most; probe it in another unit"
        )
    if len(np.unique(problem[rows])) < 2 * n_fold or len(np.unique(label)) < 2:
        raise UsageError(
            f"{len(np.unique(problem[rows]))} problems with {len(np.unique(label))} values; "
            f"{n_fold} folds need at least {2 * n_fold} problems and two values"
        )
    return rows, label, number_strata(label, n_fold)


def _class_rows(column: Array, problem: Array, settings: ProbeSettings) -> tuple[Array, Array, Array]:
    """Examples of classes that every fold has, their classes as 0, 1, .., and the classes' names."""
    n_fold = settings.folds
    text, given = class_labels(column)
    names, coded = np.unique(text[given], return_inverse=True)
    rows = np.flatnonzero(given)
    count = np.array([len(np.unique(problem[rows[coded == index]])) for index in range(len(names))])
    enough = count >= n_fold  # a rarer class is missing from whole folds
    rows = rows[enough[coded]]
    classes, code = np.unique(text[rows], return_inverse=True)
    label = np.asarray(code)
    if len(classes) < 2:
        listed = ", ".join(
            f"{textwrap.shorten(str(name), 24)} ({number})" for name, number in zip(names[:8], count, strict=False)
        )
        raise UsageError(
            f"classes and their problems are {listed or 'none'}; "
            f"at least two classes with {n_fold} problems each are needed for {n_fold} folds"
        )
    if settings.per_class is not None:
        drawn = _drawn_per_class(label, classes, settings.per_class, settings)
        rows, label = rows[drawn], label[drawn]
    return rows, label, classes


def class_labels(column: Array) -> tuple[Array, Array]:
    """Label of each example as it names a class, and whether there is one: both (example,)."""
    is_text = column.dtype.kind in "OUST"
    text = np.array([str(value) for value in column], dtype=object) if is_text else column
    return text, np.asarray(text != "" if is_text else ~pd.isna(text))


def _drawn_per_class(label: Array, classes: Array, per_class: int, settings: ProbeSettings) -> Array:
    """So many rows of each class, in order."""
    rng = np.random.default_rng([settings.seed, 2])
    parts = [np.flatnonzero(label == index) for index in range(len(classes))]
    short = [f"{classes[i]!s} ({len(part)})" for i, part in enumerate(parts) if len(part) < per_class]
    if short or per_class < settings.folds:
        where = ", ".join(short) or f"{settings.folds} folds"
        raise UsageError(f"{per_class} examples of each class asked for; too few in {where}")
    return np.sort(np.concatenate([rng.choice(part, per_class, replace=False) for part in parts]))


def number_strata(value: Array, n_fold: int) -> Array:
    """Fifths of the values, or as many parts as leave every one of them, ties together, a row for each fold."""
    from scipy.stats import rankdata

    rank = rankdata(value)
    parts = (np.unique(rank * number // (len(value) + 1), return_inverse=True)[1] for number in range(5, 0, -1))
    return next(part for part in parts if np.bincount(part).min() >= n_fold)


def folds_of(strata: Array, problem: Array, n_fold: int, seed: int) -> Array:
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


def can_fit(task: Task, known: Array) -> bool:
    """Whether every fold has two of the rows ``known`` (row,), and every training set every class."""
    label, fold = task.label[known], task.fold[known]
    n_fold = int(task.fold.max()) + 1
    if int(np.bincount(fold, minlength=n_fold).min()) < 2:
        return False
    if task.classes is None:
        return True
    # Every class, controls included, must be left in every training set: in three folds or more.
    seen = np.zeros((len(task.classes), label.shape[1], n_fold), dtype=bool)
    seen[label, np.arange(label.shape[1]), fold[:, None]] = True
    return bool((seen.sum(axis=2) >= 3).all())
