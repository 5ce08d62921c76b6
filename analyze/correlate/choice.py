"""The layer of a correlation chosen on some problems, and the correlation there on the others."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from analyze.correlate.moments import Correlations, resolution_of
from schemas.problem_sums import problem_of
from schemas.resampling import draw_counts, percentiles
from schemas.statistics import half_of_problems


class HeldOut(NamedTuple):
    """A correlation at a layer that was chosen on other problems."""

    layer: int
    r: float
    low: float
    high: float
    n: int
    """Problems it is measured on."""


def held_out_layer(result: xr.Dataset, kind: str, *, seed: int = 0) -> HeldOut | None:
    """Layer with the largest pooled correlation on half of the problems, and the correlation on the other half.

    Chosen and measured on the same problems, the largest of many chance correlations would look like a finding.

    Parameters
    ----------
    result
        Of :func:`analyze.correlate.correlation.attention_importance`, of one number for each layer.
    kind
        Correlation that is reported.
    seed
        Of the halves and of the bootstrap over problems.

    Returns
    -------
    HeldOut or None
        ``None`` where there are not two problems, or no correlation on the first half.
    """
    attention = result["attention"].transpose("example", "layer", "position")
    x = attention.values.astype("float64")
    y = result["importance"].transpose("example", "position").values
    rounding = resolution_of(attention), resolution_of(result["importance"])
    problem = np.unique(problem_of(result), return_inverse=True)[1]
    first = half_of_problems(problem, seed, 7)
    if not first.any():
        return None
    chosen = Correlations(x[first], y[first], rounding).observed["pooled"]
    if np.isnan(chosen).all():
        return None
    place = int(np.nanargmax(np.abs(chosen)))
    other = Correlations(x[~first, place : place + 1], y[~first], rounding)
    draws = draw_counts(problem[~first], n_resample=500, seed=seed).astype("float64").T
    some, drawn = draws.any(1), np.full(len(draws), np.nan)
    drawn[some] = other.resampled(draws[some])[kind][:, 0]
    n = len(np.unique(problem[~first]))
    low, high = percentiles(drawn, n)
    return HeldOut(int(result["layer"].values[place]), float(other.observed[kind][0]), float(low), float(high), n)
