"""Intervals of figures that were picked among several for what they came to, as the largest is."""

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from schemas.statistics import trials_of_interval

Triple = list[float]
"""Estimate and the ends of its interval."""


class Pick(NamedTuple):
    """How a figure was picked."""

    n: int
    """Among how many."""
    by: Literal["largest", "smallest", "any"] = "largest"
    """As what; ``any``: by its size whichever its sign, by a test, or by another figure."""
    share: bool = False
    """Whether they are shares with Wilson's intervals; else each side of an interval is taken as a normal law's."""


def of_picked(figure: Iterable[Any], pick: Pick, level: float = 0.95) -> Triple:
    """A figure that was picked, with an interval that holds as often as that of one that was not.

    The largest of N. Below: one end for all N together, each at a tail of (1 - level) / 2N, so that whichever is
    picked, its end lies too high in (1 - level) / 2 of draws at most (Bonferroni). Above: its own end. What is picked
    is at least as large as the one whose true value is largest, so that where its end lies too low, so does the end of
    that one, which was not picked. The interval thus holds both what is true of the one picked and the largest true
    value. Of the smallest it is the other way round; of one picked in any other way both ends are for all N.

    Parameters
    ----------
    figure : (3,)
        Estimate and the ends of its own interval at ``level``.

    Returns
    -------
    (3,)
        As given where it is one of one, or an end is NaN.

    References
    ----------
    Benjamini and Yekutieli, *False discovery rate-adjusted multiple confidence intervals for selected parameters*,
    Journal of the American Statistical Association 100 (2005): one of N selected has the level of all N. Of shares the
    ends are exact (Clopper and Pearson, 1934), as Wilson's hold too seldom so far out.
    """
    value, low, high = map(float, figure)
    if pick.n <= 1 or not all(map(math.isfinite, (value, low, high))):
        return [value, low, high]
    tail = (1 - level) / 2 / pick.n
    own = low, high
    if pick.by != "smallest":
        low = _lower(value, *own, tail, level, pick.share)
    if pick.by != "largest":
        whole = 1.0 if pick.share else 0.0  # what is small of one is large of the rest
        high = whole - _lower(whole - value, whole - own[1], whole - own[0], tail, level, pick.share)
    return [value, low, high]


def of_largest(figures: ArrayLike) -> tuple[int, Triple, list[int]]:
    """Which of several figures is the largest, itself with the interval of one so picked, and those not told from it.

    Parameters
    ----------
    figures : (3, n)
        Estimates and the ends of their own intervals; NaN is none.

    Returns
    -------
    Place of the largest, figure (3,), and the places of the others whose upper ends reach its lower one.
    """
    values: np.ndarray[Any, np.dtype[Any]] = np.asarray(figures, dtype="float64")
    most = int(np.nanargmax(values[0]))
    figure = of_picked(values[:, most], Pick(int(np.isfinite(values[0]).sum())))
    return most, figure, [place for place in np.flatnonzero(values[2] >= figure[1]).tolist() if place != most]


def _lower(value: float, low: float, high: float, tail: float, level: float, share: bool) -> float:
    """Lower end at a tail, from the ends at a level."""
    from scipy.special import betaincinv, ndtri

    if not share:
        return value - (value - low) * float(ndtri(tail) / ndtri((1 - level) / 2))
    trials = trials_of_interval(value, low, high, level)
    if value <= 0 or math.isinf(trials):
        return low
    return min(low, float(betaincinv(value * trials, (1 - value) * trials + 1, tail)))
