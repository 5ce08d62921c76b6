"""The layer of a correlation chosen on some problems, and the correlation there on the others."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from schemas.statistics import draw_counts

Array = np.ndarray


class HeldOut(NamedTuple):
    """A correlation at a layer that was chosen on other problems."""

    layer: int
    r: float
    low: float
    high: float
    n: int
    """Problems it is measured on."""


def weighted_correlation(x: Array, y: Array, weight: Array, kind: str) -> float:
    """Pearson's r of all points, each example counted as often as its weight says; NaN where one side is constant.

    Taken out before, by the kind: ``pooled`` the mean of all points, ``within`` each example's mean, ``partial`` each
    position's mean over examples, ``two_way`` both.

    Parameters
    ----------
    x, y : (example, position)
    weight : (example,)
    """
    sides = []
    for values in (x, y):
        centred = values - values.mean(1, keepdims=True) if kind in ("within", "two_way") else values
        if kind in ("partial", "two_way"):
            centred = centred - weight @ centred / weight.sum()
        elif kind == "pooled":
            centred = centred - (weight @ centred).mean() / weight.sum()
        sides.append(centred)
    one, other = sides
    size = (weight @ one**2).sum() * (weight @ other**2).sum()
    return float((weight @ (one * other)).sum() / np.sqrt(size)) if size > 1e-24 else float("nan")


def held_out_layer(result: xr.Dataset, kind: str, *, choose_by: str = "pooled", seed: int = 0) -> HeldOut | None:
    """Layer with the largest correlation on half of the problems, and the correlation there on the other half.

    A layer chosen by the largest of the very figures that are then told would make chance look like a finding.

    Parameters
    ----------
    result
        Of :func:`analyze.correlate.correlation.attention_importance`, of one number for each layer.
    kind
        Correlation that is told.
    choose_by
        Correlation by which the layer is chosen.
    seed
        Of the halves and of the bootstrap over problems.

    Returns
    -------
    HeldOut or None
        ``None`` where there are not two problems, or no correlation on the first half.
    """
    attention = result["attention"].transpose("layer", "example", "position").values.astype("float64")
    importance = result["importance"].transpose("example", "position").values
    group = np.asarray(result["problem"].values if "problem" in result.coords else result["example"].values)
    unique, inverse = np.unique(group, return_inverse=True)
    if len(unique) < 2:
        return None
    first = np.isin(inverse, np.random.default_rng([seed, 7]).permutation(len(unique))[: len(unique) // 2])
    chosen = [weighted_correlation(x[first], importance[first], np.ones(first.sum()), choose_by) for x in attention]
    if np.isnan(chosen).all():
        return None
    place = int(np.nanargmax(np.abs(chosen)))
    x, y = attention[place][~first], importance[~first]
    draws = draw_counts(inverse[~first], n_resample=500, seed=seed).astype("float64")
    drawn = [weighted_correlation(x, y, weight, kind) for weight in draws.T if weight.any()]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    r = weighted_correlation(x, y, np.ones(len(y)), kind)
    n = len(np.unique(inverse[~first]))
    return HeldOut(int(result["layer"].values[place]), r, float(low), float(high), n)
