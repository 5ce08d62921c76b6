"""Statistics that several analyzers share: thin, named wrappers over scipy and statsmodels, and one bootstrap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy import stats

from schemas import UsageError, nearest

Array = np.ndarray[Any, np.dtype[Any]]


class Interval(NamedTuple):
    """Bounds of a confidence interval, each of the estimate's shape."""

    low: Array
    high: Array


class PairedTest(NamedTuple):
    """A statistic and its p-value."""

    statistic: float
    p: float


def wilson_interval(count: ArrayLike, n: ArrayLike, level: float = 0.95) -> Interval:
    """Wilson score interval of a share ``count / n``; NaN where ``n`` is 0.

    Parameters
    ----------
    count, n : (...)
        Successes and trials.
    level
        Coverage, between 0 and 1.
    """
    from statsmodels.stats.proportion import proportion_confint

    count, n = np.broadcast_arrays(np.asarray(count, dtype="float64"), np.asarray(n, dtype="float64"))
    known = n > 0
    low, high = proportion_confint(np.where(known, count, 0), np.where(known, n, 1), 1 - level, method="wilson")
    return Interval(np.where(known, low, np.nan), np.where(known, high, np.nan))


def cochran_q(answers: ArrayLike) -> PairedTest:
    """Cochran's Q, whether the same examples answer yes equally often under every condition.

    Rows that answer the same everywhere say nothing; if no row differs, Q is 0 and p is 1.

    Parameters
    ----------
    answers : (example, condition), bool
    """
    from statsmodels.stats.contingency_tables import cochrans_q

    table = np.asarray(answers).astype(int)
    if table.ndim != 2 or table.shape[1] < 2:
        raise UsageError(f"Cochran's Q needs (example, at least two conditions); found an array of shape {table.shape}")
    if not ((table.sum(1) > 0) & (table.sum(1) < table.shape[1])).any():
        return PairedTest(0.0, 1.0)
    result = cochrans_q(table)
    return PairedTest(float(result.statistic), float(result.pvalue))


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Exact McNemar test of paired yes/no answers; the statistic is the number of pairs that differ.

    Parameters
    ----------
    first, second : (example,), bool
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise UsageError(f"McNemar's test pairs answers one to one; found {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differ = only_first + only_second
    return PairedTest(float(differ), float(stats.binomtest(only_first, differ).pvalue) if differ else 1.0)


def adjust(p: ArrayLike, method: str = "holm") -> Array:
    """P-values corrected for their number; NaN stays NaN and is not counted.

    Parameters
    ----------
    p : (...)
    method
        ``"holm"`` (chance of any false alarm) or ``"bh"`` (share of false alarms, Benjamini and Hochberg).
    """
    from statsmodels.stats.multitest import multipletests

    if method not in ("holm", "bh"):
        raise UsageError(f"correction {method!r} is not one of holm, bh{nearest(method, ('holm', 'bh'))}")
    p = np.asarray(p, dtype="float64")
    known = np.isfinite(p)
    adjusted = np.full(p.shape, np.nan)
    if known.any():
        adjusted[known] = multipletests(p[known], method="fdr_bh" if method == "bh" else method)[1]
    return adjusted


def bootstrap_weights(problem: xr.DataArray, n_resample: int = 500, seed: int = 0) -> xr.DataArray:
    """How often each problem is drawn in each resample of a Poisson bootstrap.

    Counts are independent Poisson(1), so resamples of any number of examples are sums over examples and cost no
    memory that grows with them. All examples of one problem are drawn together. A count depends on the seed, the
    problem and the resample alone: not on order, chunks or which other examples are there.

    Parameters
    ----------
    problem : (example,), int
        Group of each example; lazy input stays lazy.

    Returns
    -------
    (example, resample), float32
    """
    weights: xr.DataArray = xr.apply_ufunc(
        draw_counts,
        problem,
        kwargs={"n_resample": n_resample, "seed": seed},
        output_core_dims=[["resample"]],
        dask="parallelized",
        output_dtypes=["float32"],
        dask_gufunc_kwargs={"output_sizes": {"resample": n_resample}},
    )
    return weights


def draw_counts(groups: Array, *, n_resample: int, seed: int) -> Array:
    """Counts of :func:`bootstrap_weights` of some groups: (example,) to (example, resample), float32."""
    unique, inverse = np.unique(groups, return_inverse=True)
    counts = np.stack([np.random.default_rng([seed, abs(int(g))]).poisson(1.0, n_resample) for g in unique])
    return np.asarray(counts.astype("float32")[inverse])


def weighted_mean(values: xr.DataArray, weights: xr.DataArray, dim: str = "example") -> xr.DataArray:
    """Mean over ``dim`` under each set of weights, of the values that are not NaN; lazy input stays lazy."""
    known = values.notnull()
    total: xr.DataArray = xr.dot(values.fillna(0).astype("float32"), weights, dim=dim)
    count: xr.DataArray = xr.dot(known.astype("float32"), weights, dim=dim)
    return total / count


def percentile_interval(resamples: xr.DataArray, level: float = 0.95) -> tuple[xr.DataArray, xr.DataArray]:
    """Percentile interval over the dim ``resample``, which must be one chunk."""
    tail = (1 - level) / 2
    quantile = resamples.quantile([tail, 1 - tail], dim="resample", skipna=True)
    return quantile.isel(quantile=0, drop=True), quantile.isel(quantile=1, drop=True)


def bootstrap_mean(
    values: xr.DataArray, problem: xr.DataArray, *, level: float = 0.95, n_resample: int = 500, seed: int = 0
) -> xr.Dataset:
    """Mean over examples with a bootstrap interval over problems.

    Parameters
    ----------
    values : (example, ...)
        NaN: no value. Lazy input stays lazy.
    problem : (example,)
        Group of each example.

    Returns
    -------
    Dataset of ``mean``, ``low``, ``high`` : (...)
    """
    weights = bootstrap_weights(problem, n_resample, seed)
    low, high = percentile_interval(weighted_mean(values, weights), level)
    return xr.Dataset({"mean": values.mean("example"), "low": low, "high": high})


def bootstrap_interval(
    statistic: Callable[[Array], Array],
    problem: ArrayLike,
    *,
    level: float = 0.95,
    n_resample: int = 500,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any statistic of a small table, by drawing whole problems with replacement.

    Parameters
    ----------
    statistic
        From row numbers of the table (with repeats) to an array; constant inputs may give NaN.
    problem : (example,)
        Group of each row.
    """
    rng = np.random.default_rng(seed)
    problem = np.asarray(problem)
    order = np.argsort(problem, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(problem[order])) + 1)
    drawn = rng.integers(0, len(rows), (n_resample, len(rows)))
    values = np.asarray([statistic(np.concatenate([rows[i] for i in draw])) for draw in drawn], dtype="float64")
    known = np.isfinite(values).any(0)
    tail = (1 - level) / 2
    low, high = np.nanquantile(np.where(known, values, 0.0), [tail, 1 - tail], axis=0)
    return Interval(np.where(known, low, np.nan), np.where(known, high, np.nan))
