"""The matrix of fits to one run that are tested on another: put together, and compared with each run's own fit."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from analyze.probes.scores import WIDENING, Cell, Task
from schemas.picked import Pick, of_picked
from schemas.resampling import percentiles
from schemas.wording import interval_names

Array = np.ndarray[Any, np.dtype[Any]]
DIMS = ("kind", "fit", "test", "step")
GAP = interval_names("gap")


def scores_of(result: xr.Dataset) -> tuple[str, str]:
    """Names of the score of a result, and of the one that an offset between runs leaves alone."""
    return ("r2", "correlation") if "r2" in result else ("accuracy", "auroc")


def squared_errors(predicted: Array, value: Array, fold: Array) -> tuple[Array, Array]:
    """Squared error of predictions, and of the mean of each row's other folds: both (row,)."""
    total, number = np.bincount(fold, weights=value), np.bincount(fold)
    mean = ((total.sum() - total) / (number.sum() - number))[fold]
    return (value - predicted) ** 2, (value - mean) ** 2


def against_own(
    task: Task, cells: Sequence[Cell | None], own: Sequence[Cell | None], shape: tuple[int, int], weight: Array,
    level: float,
) -> xr.Dataset:  # fmt: skip
    """How much the test run's own fit scores above the transferred one on the same rows, paired over problems.

    ``weight`` (row, resample) is how often each row is drawn in each resample.
    """
    gap, low, high, along = (np.full(len(cells), np.nan) for _ in range(4))
    for index, (cell, best) in enumerate(zip(cells, own, strict=True)):
        if cell is None or best is None:
            continue
        label, drawn = task.label[cell.known, 0], weight[cell.known]
        if task.classes is not None:
            more = np.subtract(best.score.argmax(1) == label, cell.score.argmax(1) == label, dtype="float64")
            spread = np.ones(len(label))
        else:
            wrong, spread = squared_errors(cell.score[:, 0], label, task.fold[cell.known])
            more = wrong - squared_errors(best.score[:, 0], label, task.fold[cell.known])[0]
            varies = cell.score.std() > 0
            along[index] = np.corrcoef(cell.score[:, 0], label)[0, 1] if varies else np.nan
        gap[index] = more.sum() / spread.sum()
        with np.errstate(invalid="ignore", divide="ignore"):  # resamples that hold none
            resampled = (more @ drawn) / (spread @ drawn)
        low[index], high[index] = percentiles(
            gap[index] + WIDENING * (resampled - gap[index]), len(np.unique(task.problem[cell.known])), level
        )
    names = {"gap": gap, "gap_low": low, "gap_high": high} | ({"correlation": along} if task.classes is None else {})
    return xr.Dataset({name: (("layer", "position"), value.reshape(shape)) for name, value in names.items()})


def assembled(
    of_tests: Mapping[tuple[Any, ...], xr.Dataset], kinds: Sequence[str], fit: list[str], test: list[str],
    steps: Sequence[Any],
) -> xr.Dataset:  # fmt: skip
    """Scores of all pairs of runs in one dataset, and those of each run's own fit."""
    example = next(iter(of_tests.values()))
    labels: dict[str, list[Any]] = {"kind": list(kinds), "fit": fit, "test": test, "step": list(steps)}
    grid = {dim: len(values) for dim, values in labels.items()} | dict(example.sizes)
    main, ranked = scores_of(example)
    own_names = [*interval_names(main), ranked]
    arrays = {str(name): np.full(tuple(grid.values()), np.nan) for name in example.data_vars}
    own_shape = tuple(size for dim, size in grid.items() if dim != "fit")
    own = {name: np.full(own_shape, np.nan) for name in own_names}
    for place in product(*(enumerate(values) for values in labels.values())):
        (k, kind), (i, fitted), (j, tested), (s, step) = place
        if (scores := of_tests.get((kind, fitted, tested, step))) is not None:
            for name, values in arrays.items():
                values[k, i, j, s] = scores[name].values
        if (scores := of_tests.get((kind, tested, tested, step))) is not None:
            for name, values in own.items():
                values[k, j, s] = scores[name].values
    result = xr.Dataset(
        {name: (tuple(grid), values) for name, values in arrays.items()}
        | {f"own_{name}": (tuple(dim for dim in grid if dim != "fit"), values) for name, values in own.items()},
        coords={dim: np.array(values, dtype=object if dim != "step" else None) for dim, values in labels.items()},
    )
    return result if len(steps) > 1 else result.isel(step=0, drop=True)


def described(result: xr.Dataset) -> xr.Dataset:
    """The result with long names."""
    main, _ = scores_of(result)
    texts = {
        "gap": f"{main} of the test run's own fit less that of the transferred one, same examples",
        f"control_{main}": f"{main} after a fit to labels shuffled among problems",
        f"own_{main}": f"held-out {main} of the test run's own fit",
        "p_corrected": "p-value corrected for all pairs of runs, kinds, steps, layers and positions",
        "n_shared": "problems that both runs have; each is fitted or tested, never both",
    }
    for name, variable in result.data_vars.items():
        variable.attrs = {"units": "1"} | ({"long_name": texts[str(name)]} if name in texts else {})
    return result


def pairs_of(result: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Each kind, pair of runs and step in a row: means over cells, and the cell where the transferred fit does best."""
    main, ranked = scores_of(result)
    dims = [dim for dim in DIMS if dim in result.dims]
    for labels in product(*(result[dim].values for dim in dims)):
        part = result.sel(dict(zip(dims, labels, strict=True)))
        if not np.isfinite(part[main].values).any():
            continue
        best = part.isel(part[main].argmax(...))
        baseline = "baseline_r2" if main == "r2" else "majority_accuracy"
        means = {
            "score": main, ranked: ranked, "own": f"own_{main}", "shuffled": f"control_{main}", "baseline": baseline
        }  # fmt: skip
        at_best = {"best": main, "low": f"{main}_low_joint", "high": f"{main}_high_joint"}
        n_cell = int(np.isfinite(part[main].values).sum())
        gap = of_picked((best[name] for name in GAP), Pick(n_cell, by="any"))
        row = dict(zip(dims, labels, strict=True)) | {name: float(part[of].mean()) for name, of in means.items()}
        row |= {name: float(best[of]) for name, of in at_best.items()} | dict(zip(GAP, gap, strict=True))
        yield row | {
            "layer": int(best["layer"]), "position": str(best["position"].item()),
            "carried": int((part["p_corrected"] < 1 - result.attrs["level"]).sum()),
            "n_cell": n_cell, "shared": int(part["n_shared"]),
        }  # fmt: skip
