"""Statistics of labelled arrays that several analyses share: the bootstrap over problems, and intervals from it."""

import numpy as np
import xarray as xr

from schemas.resampling import draw_counts, percentiles, problems_drawn
from schemas.statistics import wilson_interval


def is_majority(count: int, n: int) -> bool:
    """Whether ``count`` of ``n`` may be called most of them: the Wilson interval of the share lies above one half."""
    return bool(n and wilson_interval(count, n)[0] > 0.5)


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


def weighted_mean(values: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    """Mean over examples under each set of weights, of the values that are not NaN; lazy input stays lazy."""
    known = values.notnull()
    total: xr.DataArray = xr.dot(values.fillna(0).astype("float32"), weights, dim="example")
    count: xr.DataArray = xr.dot(known.astype("float32"), weights, dim="example")
    return total / count.where(count > 0)


def percentile_interval(
    resamples: xr.DataArray, n: xr.DataArray | int, drawn: xr.DataArray, level: float = 0.95
) -> tuple[xr.DataArray, xr.DataArray]:
    """:func:`schemas.resampling.percentiles` over the dim ``resample``, which must be one chunk.

    The number of problems follows from ``n`` examples (...) and ``drawn``, those of each resample (..., resample).
    """
    n_problem = n**2 / drawn.var("resample")
    ends: tuple[xr.DataArray, xr.DataArray] = xr.apply_ufunc(
        percentiles, resamples, n_problem, kwargs={"level": level}, input_core_dims=[["resample"], []],
        output_core_dims=[[], []], dask="parallelized", output_dtypes=["float64", "float64"],
    )  # fmt: skip
    return ends


def ratio_interval(part: np.ndarray, whole: np.ndarray, draws: np.ndarray, level: float) -> list[float]:
    """Ratio of two sums over rows (row,), and its percentile interval over resamples of rows (row, resample)."""
    with np.errstate(invalid="ignore", divide="ignore"):  # resamples that hold none
        resampled = (part @ draws) / (whole @ draws)
    ends = percentiles(resampled, problems_drawn(len(part), draws.sum(0)), level)
    return [float(part.sum() / whole.sum()), *map(float, ends)]
