"""Linear probes for every (layer, position) of a run: what can be read off the states, held out, with controls.

A probe that reads a quantity says that the states carry it, not that the model uses it; ablation and patching answer
that. Every result carries :data:`NOTE` for this reason.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from scipy.special import logit

from analyze.cluster import spread
from analyze.labels import part_of
from analyze.pieces import pieces_in
from analyze.probes.command import ProbeSettings
from analyze.probes.nested import nested_logistic, one_thread
from analyze.probes.ridge import nested_ridge
from analyze.probes.scores import Cell, Task, directions, measure, r2, steps_of
from analyze.probes.tasks import can_fit, draw_examples, penalties_of, target_columns, task_or_reason
from schemas import SchemaError, UsageError, nearest
from schemas.progress import Progress, silent
from schemas.resampling import draw_counts
from schemas.statistics import adjust

Array = npt.NDArray[Any]
NOTE = (
    "Decoding is not use: a probe shows what can be read off a state, not that the model reads it. "
    "Whether it does is a question for ablation and patching."
)


@one_thread()
def linear_probes(
    run: xr.Dataset,
    settings: ProbeSettings | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
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
    settings : ProbeSettings
        The target, along ``example``, with or without ``step``: where it has steps, so has the result; the cells; and
        how they are probed. Penalties are :data:`analyze.probes.tasks.PENALTIES` and ``RIDGE_PENALTIES`` if absent.
    folder : path
        Where finished cells are kept; the same probes, asked for again after they were stopped, take up what lies
        there. (On a dask client nothing is kept.)
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
        If the run lacks the target or the states.
    UsageError
        If the run lacks a layer or position asked for, or the target has fewer than two classes or too few problems
        for the folds.

    Notes
    -----
    Intervals resample problems, and p-values permute labels among the problems of a fold, under the held-out
    predictions as they are. That alone is too sure, since each fold's labels also train the probes of the others; both
    are widened by the square root of two, the most this can amount to for a linear probe, and so err to the careful
    side where the signal is strong. Where every prediction is right (or wrong) resamples are alike: the accuracy then
    has Wilson's interval, other scores have none (NaN). The AUROC's resamples are of first order.

    Memory is that of one cell (at most ``max_examples`` x hidden numbers, a few times over) plus resamples,
    permutations and held-out predictions of ``max_examples`` rows: with the default cap it is the same for 2,000
    examples as for any number more. Every chunk of the states is read once. Under a ``dask.distributed`` client cells
    are worked on by its workers, two for each at a time.
    """
    settings = settings or ProbeSettings()
    check_probed(run, settings.target, settings.level)
    run = part_of(run, layers=settings.layers, positions=settings.positions, limit=settings.limit)
    states, columns = run["hidden_state"], target_columns(run[settings.target])
    as_number = settings.treat == "number" or (
        settings.treat == "auto" and next(iter(columns.values())).dtype.kind in "fiu"
    )
    penalties = penalties_of(settings.penalties, as_number)
    problem = np.asarray(run["problem"].values)
    used = draw_examples(problem, settings.max_examples, settings.seed)
    tasks = {
        step: task_or_reason(column[used], problem[used], as_number, penalties, settings)
        for step, column in columns.items()
    }
    present = [task for task in tasks.values() if isinstance(task, Task)]
    if not present:
        raise UsageError(f"{_name_of(run, settings)}: {next(iter(tasks.values()))}")
    rows = np.unique(np.concatenate([task.rows for task in present]))
    present = [replace(task, rows=np.searchsorted(rows, task.rows)) for task in present]
    cells = _run_cells(states.isel(example=used[rows]), present, folder, progress)
    n_permutation = settings.permutations
    if n_permutation is None:
        n_permutation = max(1000, 40 * len(cells) * len(present))

    by_class = any(task.classes is not None and len(task.classes) > 2 for task in present)

    def measured(number: int) -> xr.Dataset:
        shape, hidden = (states.sizes["layer"], states.sizes["position"]), states.sizes["hidden"]
        by_cell = [cell[number] for cell in cells]
        weight = draw_counts(present[number].problem, n_resample=settings.resamples, seed=settings.seed)
        scores = measure(present[number], by_cell, shape, weight, n_permutation, settings.level, settings.seed)
        return scores.merge(directions(present[number], by_cell, shape, hidden, by_class=by_class))

    results, reasons = _by_step(tasks, cells, measured)
    if not results:
        raise UsageError(f"{_name_of(run, settings)}: {reasons[0]}")
    result = _joined(results, with_steps=len(columns) > 1)
    result["p_corrected"] = result["p_value"].copy(data=adjust(result["p_value"].values, settings.correction))
    labels = {
        name: coord.variable for name, coord in states.coords.items() if coord.dims in (("layer",), ("position",))
    }
    return _describe(result.assign_coords(labels)).assign_attrs(
        settings.spec() | ({} if settings.metric is None else {"metric": settings.metric}),
        treat="number" if as_number else "classes",
        run=run.attrs.get("run", ""),
        penalties=list(penalties),
        selection="squared error" if as_number else settings.selection,
        permutations=n_permutation,
        n_test=int(np.isfinite(result["p_value"].values).sum()),
        left_out="; ".join(dict.fromkeys(reasons)),
        note=NOTE,
    )


def _name_of(run: xr.Dataset, settings: ProbeSettings) -> str:
    return f"probes for {settings.target!r} of run {run.attrs.get('run', '')!r}"


def check_probed(run: xr.Dataset, target: str, level: float) -> None:
    """Raise unless a run has states, problems and the target, and the level is a share."""
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
    if not 0 < level < 1:
        raise UsageError(f"--level is {level}; it must lie between 0 and 1")


def _by_step(
    tasks: Mapping[Any, Task | str], cells: Sequence[Sequence[Cell | None]], measured: Callable[[int], xr.Dataset]
) -> tuple[dict[Any, xr.Dataset], list[str]]:
    """Scores of each step that has any, and why others have none."""
    results, reasons, number = {}, [], 0
    for step, task in tasks.items():
        if isinstance(task, str):
            reasons.append(task)
            continue
        if all(cell[number] is None for cell in cells):
            reasons.append(f"{len(task.rows)} examples leave too few in some fold at every layer and position")
        else:
            results[step] = measured(number)
        number += 1
    return results, reasons


def _joined(results: Mapping[Any, xr.Dataset], *, with_steps: bool) -> xr.Dataset:
    """Scores of all steps in one dataset; of a single one its own."""
    if not with_steps:
        return next(iter(results.values()))
    dim = pd.Index(list(results), name="step")
    return xr.concat(list(results.values()), dim=dim, join="outer", combine_attrs="override")


def _probe_cell(states: Array, tasks: Sequence[Task]) -> list[Cell | None]:
    """Fit every task to one cell (example, hidden); None where too few of its examples have the position."""
    exists: Array = np.asarray(np.isfinite(states).all(axis=1))
    return [_fit_task(states, exists[task.rows], task) for task in tasks]


def _fit_task(states: Array, known: Array, task: Task) -> Cell | None:
    """One task in one cell; ``known`` (row,) are the examples that have the position."""
    if not can_fit(task, known):
        return None
    label, fold = task.label[known], task.fold[known]
    chosen = states[task.rows[known]]
    if task.classes is None:
        fit = nested_ridge(chosen, label, fold, penalty=task.penalty)
        score = fit.score[:, 0]
        control = [r2(fit.score[:, i, 0], label[:, i], fold) for i in range(1, label.shape[1])]
    else:
        fit = nested_logistic(chosen, label, fold, penalty=task.penalty, selection=task.selection)
        score = logit(fit.score[:, 0]).astype(np.float32)  # of probabilities those near 1 would tie in float32
        control = [float(np.mean(fit.score[:, i].argmax(-1) == label[:, i])) for i in range(1, label.shape[1])]
    return Cell(
        known=known,
        score=score,
        control=float(np.mean(control)) if control else np.nan,
        training=float(fit.training[:, 0].mean()),
        refit_training=fit.refit_training,
        penalty=float(np.exp(np.log(fit.chosen[:, 0]).mean())),
        direction=fit.coefficient.mean(axis=0).astype(np.float32),
        intercept=fit.intercept.mean(axis=0),
    )


def _run_cells(
    states: xr.DataArray, tasks: Sequence[Task], folder: str | os.PathLike[str] | None, progress: Progress
) -> list[list[Cell | None]]:
    """Every cell in order (layer, position)."""
    cells = [
        states.isel(layer=layer, position=position).transpose("example", "hidden").data
        for layer in range(states.sizes["layer"])
        for position in range(states.sizes["position"])
    ]
    progress(0, len(cells))
    # Kept by what goes in: the states themselves, labels, folds and settings.
    probe = pieces_in(folder, __file__).cache(_probe_cell)
    results = []
    for result in spread(probe, [[cell] for cell in cells], [list(tasks)]):
        results.append(result)
        progress(len(results), len(cells))
    return results


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
        raise UsageError(
            f"probe result has no {metric!r}; it holds {', '.join(map(str, result.data_vars))}{nearest(metric, result)}"
        )
    rows = []
    for part in steps_of(result):
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
