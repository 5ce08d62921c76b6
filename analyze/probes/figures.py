"""Figures of linear probes. They draw held-out scores; what was scored on training rows is labelled so."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import Results, bars, by_run, colour_bar, heat_map, looks, panels
from analyze.probes.scores import steps_of
from schemas import UsageError

SCORE_LABELS = {
    "accuracy": "held-out accuracy",
    "balanced_accuracy": "held-out balanced accuracy",
    "auroc": "held-out AUROC",
    "r2": "held-out R2",
    "training_accuracy": "accuracy on training rows",
    "refit_training_accuracy": "accuracy on its own training rows",
    "selectivity": "score minus shuffled-label control",
}


def plot_probe_grid(results: Results, *, metric: str | None = None, ax: Any = None) -> list[Any]:
    """Heatmap of a score over layers and positions, on one scale; a star marks cells significant after correction.

    Parameters
    ----------
    results
        From :func:`analyze.probes.linear.linear_probes`, one or by run; each step has a panel of its own.
    metric
        A variable over layer and position; accuracy, or R2 for numbers, if absent.
    ax
        One axes for each run and step; a new figure if absent.
    """
    runs = by_run(results)
    grids = [
        (name, part, part[_metric(part, metric)].transpose("layer", "position"))
        for name, result in runs.items()
        for part in steps_of(result)
    ]
    widest = max(grid.sizes["position"] for _, _, grid in grids)
    columns = max(len(steps_of(result)) for result in runs.values()) if len(runs) > 1 else min(3, len(grids))
    tallest = max(grid.sizes["layer"] for _, _, grid in grids)
    axes = panels(len(grids), ax, columns=columns, size=(1.6 + 0.42 * widest, 1.5 + 0.24 * tallest))
    low, high = _scale(grids)
    for axis, (name, part, grid) in zip(axes, grids, strict=True):
        layers, positions = grid["layer"].values, grid["position"].values
        heat_map(axis, grid.values, layers, positions, low=low, high=high, labels=_cell_text(part, grid))
        axis.set(xlabel="position", ylabel="layer")
        axis.set_title(_panel_title(name, part), fontsize=9)
    name = str(grids[0][2].name)
    colour_bar(axes, SCORE_LABELS.get(name, name.replace("_", " ")), low=low, high=high)
    return axes


def plot_probe_controls(results: Results, *, ax: Any = None) -> list[Any]:
    """Mean over cells of the held-out score beside its baseline, its shuffled control and the training score.

    Bars of the held-out score carry its range over cells.

    Parameters
    ----------
    results
        From :func:`analyze.probes.linear.linear_probes`, one or by run.
    ax
        One axes; a new figure if absent.
    """
    runs = by_run(results)
    axis = panels(1, ax, size=(1.5 + 1.9 * sum(len(steps_of(result)) for result in runs.values()), 3.4))[0]
    named = {
        name + (f"\nstep {part['step'].item()}" if "step" in part.coords else ""): part
        for name, result in runs.items()
        for part in steps_of(result)
    }
    main = _metric(next(iter(named.values())), None)
    baseline = "baseline_r2" if main == "r2" else "majority_accuracy"
    series = {
        "held out": main,
        "commonest class" if main == "accuracy" else "mean": baseline,
        "shuffled labels": f"control_{main}",
        "training rows": f"training_{main}",
    }
    means = {
        label: np.array([float(part[variable].mean()) for part in named.values()]) for label, variable in series.items()
    }
    spread = tuple(np.array([float(getattr(part[main], end)()) for part in named.values()]) for end in ("min", "max"))
    look_of = looks(list(means))
    ends = {"held out": spread}
    bars(
        axis,
        list(named),
        [(look_of[name], values, *ends.get(name, (None, None))) for name, values in means.items()],
        form=".2f",
    )
    axis.legend(loc="upper center", ncols=4, fontsize=8, frameon=False)
    axis.set(ylabel=SCORE_LABELS[main].removeprefix("held-out ") + ", mean over cells")
    axis.set_ylim(min(0.0, 1.05 * min(float(values.min()) for values in (*means.values(), spread[0]))), 1.3)
    targets = {str(part.attrs.get("target", "target")).replace("_", " ") for part in named.values()}
    axis.set_title(f"{', '.join(sorted(targets))}; whiskers: lowest and highest cell", fontsize=8)
    return [axis]


def _scale(grids: list[tuple[str, xr.Dataset, xr.DataArray]]) -> tuple[float, float]:
    """From chance to 1 for a score, so that noise looks pale; from least to most for anything else."""
    name = str(grids[0][2].name)
    low = min(float(grid.min()) for _, _, grid in grids)
    if name.endswith("accuracy") and "majority_accuracy" in grids[0][1]:
        return min(float(part["majority_accuracy"].mean()) for _, part, _ in grids), 1.0
    if name in ("auroc", "r2"):
        return (0.5 if name == "auroc" else 0.0), 1.0
    return low, max(float(grid.max()) for _, _, grid in grids)


def _metric(result: xr.Dataset, metric: str | None) -> str:
    metric = ("r2" if "r2" in result else "accuracy") if metric is None else metric
    if metric not in result:
        raise UsageError(f"probe result has no {metric!r}; it holds {', '.join(map(str, result.data_vars))}")
    return metric


def _panel_title(name: str, part: xr.Dataset) -> str:
    target = str(part.attrs.get("target", "target")).replace("_", " ")
    return f"{name}\n{target}" + (f", step {part['step'].item()}" if "step" in part.coords else "")


def _cell_text(part: xr.Dataset, grid: xr.DataArray) -> np.ndarray:
    level = 1 - float(part.attrs.get("level", 0.95))
    significant = part["p_corrected"].transpose("layer", "position").values < level
    return np.array(
        [
            [f"{value:.2f}{'*' if star else ''}" for value, star in zip(row, stars, strict=True)]
            for row, stars in zip(grid.values, significant, strict=True)
        ]
    )
