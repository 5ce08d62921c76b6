"""Statistics of plain arrays that analyses and re-entries share: intervals, paired tests, corrections.

Examples of one problem (a question and its rephrasings, the halves of a pair) are not independent of each other, so
what is uncertain is the problems: resamples draw whole problems, and intervals and tests take ``problem``. Where every
example is a problem of its own, each figure is the textbook's.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from schemas.errors import UsageError
from schemas.problem_sums import sums_by_problem, trials_of
from schemas.spelling import nearest

Array = np.ndarray[Any, np.dtype[Any]]
SPLIT_SHARES = (0.7, 0.15, 0.15)
"""Shares of problems that a thing is fitted on, chosen by, and measured on."""


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
        Successes and trials; need not be whole.
    level
        Coverage, between 0 and 1.
    """
    from scipy.special import ndtri

    count, n = np.broadcast_arrays(np.asarray(count, dtype="float64"), np.asarray(n, dtype="float64"))
    known = n > 0
    trials = np.where(known, n, 1)
    share, z = np.where(known, count, 0) / trials, float(ndtri(0.5 + level / 2))
    # By hand: statsmodels' function takes a second to import, at the end of an analysis that needs nothing else of it.
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low, high = np.where(count > 0, middle - half, 0), np.where(count < n, middle + half, 1)  # exactly at the ends
    return Interval(np.where(known, low, np.nan), np.where(known, high, np.nan))


def share_interval(
    yes: ArrayLike, counted: ArrayLike, problem: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """Wilson interval of the share of counted examples that say yes, for problems of several examples.

    The number of trials is the effective one, p (1 - p) / v, where v is the variance of the share over problems:
    sum over problems of (yes - p counted)^2, over the square of the number counted. With one example a problem that is
    the number of examples; with examples that always agree it is the number of problems, as it is where p is 0 or 1.
    What is above that number is estimated from the problems, and less of few (t for z, as in the reference).

    Parameters
    ----------
    yes, counted : (..., example), bool
        A yes that is not counted says nothing.
    problem : (example,)
        By default every example is its own.
    level
        Coverage.

    References
    ----------
    Korn and Graubard, *Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data*, Survey Methodology 24 (1998) 193-201.
    """
    known: Array = np.asarray(counted, dtype=bool)
    agreed: Array = np.asarray(yes, dtype=bool) & known
    total, n = agreed.sum(-1).astype("float64"), known.sum(-1).astype("float64")
    return interval_of_trials(total, n, n if problem is None else trials_of(agreed, known, np.asarray(problem)), level)


def mean_share(values: ArrayLike, problem: ArrayLike | None = None) -> tuple[Array, Array, Array]:
    """Mean over the last axis of shares between 0 and 1, ignoring NaN, and Wilson's interval with problems as trials.

    A bootstrap would be certain of shares that are all 0 or all 1. A share of several draws varies less than one yes or
    no: the interval is too wide, not too narrow.

    Parameters
    ----------
    values : (..., example)
    problem : (example,)
        By default every example is its own.

    Returns
    -------
    mean, low, high : (...)
    """
    values = np.asarray(values, dtype="float64")
    known = ~np.isnan(values)
    total, n = np.where(known, values, 0).sum(-1), known.sum(-1)
    of_problem = sums_by_problem(known, np.arange(values.shape[-1]) if problem is None else np.asarray(problem))
    with np.errstate(invalid="ignore"):
        return total / n, *interval_of_trials(total, n, n**2 / (of_problem**2).sum(-1))


def interval_of_trials(total: ArrayLike, n: ArrayLike, trials: ArrayLike, level: float = 0.95) -> Interval:
    """Wilson interval of a share ``total / n`` that is as uncertain as one of so many trials."""
    total, n, trials = (np.asarray(each, dtype="float64") for each in (total, n, trials))
    with np.errstate(invalid="ignore", divide="ignore"):
        return wilson_interval(total * (trials / n), trials, level)


def trials_of_interval(share: float, low: float, high: float, level: float = 0.95) -> float:
    """Trials of which a share has such a Wilson interval: of problems with several examples the effective number.

    An end b of it is where (b - p)^2 = z^2 b (1 - b) / n. Infinite where the interval has no width.
    """
    from scipy.special import ndtri

    end = high if share < 0.5 else low
    if end == share:
        return math.inf
    return float(ndtri(0.5 + level / 2) ** 2 * end * (1 - end) / (end - share) ** 2)


def difference_interval(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array, Array]:
    """Difference of two independent estimates and its interval, from their own intervals (MOVER).

    d = a - b with the ends d - sqrt((a - l_a)^2 + (u_b - b)^2) and d + sqrt((u_a - a)^2 + (b - l_b)^2). Of two Wilson
    intervals this is Newcombe's. Of estimates on the same problems that agree it is too wide, not too narrow.

    Parameters
    ----------
    first, second : (3, ...)
        Estimate and the ends of its interval.

    References
    ----------
    Newcombe, *Interval estimation for the difference between independent proportions*, Statistics in Medicine 17
    (1998), method 10; Zou and Donner, *Construction of confidence limits about effect measures*, ibid. 27 (2008).
    """
    a, low_a, high_a = np.asarray(first, dtype="float64")
    b, low_b, high_b = np.asarray(second, dtype="float64")
    return a - b, a - b - np.hypot(a - low_a, high_b - b), a - b + np.hypot(high_a - a, b - low_b)


def uncertain(low: ArrayLike, high: ArrayLike, first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    """Ends of a paired difference's bootstrap interval, of which none has no width.

    Resamples of answers that all turn alike, or not at all, are all the same and would be certain of them: there, and
    where problems are too few to be resampled, the interval is that of :func:`difference_interval`.

    Parameters
    ----------
    low, high : (...)
    first, second : (3, ...)
        What is subtracted, with intervals.
    """
    low, high = np.asarray(low, dtype="float64"), np.asarray(high, dtype="float64")
    certain = (low == high) | np.isnan(low)
    _, wider_low, wider_high = difference_interval(first, second)
    return np.where(certain, wider_low, low), np.where(certain, wider_high, high)


def smallest_share(n: int, least: float = 0.0, level: float = 0.95) -> float:
    """Smallest share of ``n`` whose Wilson interval lies above ``least``: what so many problems can tell from it.

    NaN where not even a share of 1 would do.
    """
    count = np.arange(1, n + 1)
    above = wilson_interval(count, np.full(n, n), level).low > least
    return float(count[above][0] / n) if above.any() else float("nan")


def smallest_change(n: int, n_test: int = 1) -> float:
    """Smallest share of ``n`` answers that McNemar's exact test finds changed, if all change the same way.

    The least of ``n_test`` p-values, corrected by Holm's method, is then at most 0.05: 2 n_test / 2^turned. NaN where
    not even all of them would do.
    """
    turned = math.ceil(math.log2(2 * n_test / 0.05) - 1e-9)
    return turned / n if n >= turned else float("nan")


def problems_needed(share: float, least: float, level: float = 0.95) -> int | None:
    """Fewest problems with which a share's Wilson interval leaves out ``least``; ``None`` where a million do not."""
    most = 1_000_000

    def apart(n: int) -> bool:
        low, high = wilson_interval(share * n, n, level)
        return bool(low > least or high < least)

    if not apart(most):
        return None
    too_few, enough = 0, most
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if apart(middle) else (middle, enough)
    return enough


def smallest_correlation(n: int) -> float:
    """Smallest correlation that ``n`` problems find at level 0.95 with power 0.8, by Fisher's z; NaN below four.

    tanh((z_level + z_power) / sqrt(n - 3)).
    """
    from scipy.special import ndtri

    if n < 4:
        return float("nan")
    return float(np.tanh((ndtri(0.975) + ndtri(0.8)) / np.sqrt(n - 3)))


def _yes(answers: ArrayLike) -> Array:
    """Answers as bools; NaN, which would count as a yes, is refused."""
    values = np.asarray(answers)
    lost = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    if lost:
        raise UsageError(f"{lost} of {values.size} answers are NaN, neither yes nor no; leave them out")
    return values.astype(bool)


def cochran_q(answers: ArrayLike) -> PairedTest:
    """Cochran's Q, whether the same examples answer yes equally often under every condition.

    Rows that answer the same everywhere say nothing; if no row differs, Q is 0 and p is 1.

    Parameters
    ----------
    answers : (example, condition), bool
    """
    from statsmodels.stats.contingency_tables import cochrans_q

    table = _yes(answers).astype(int)
    if table.ndim != 2 or table.shape[1] < 2:
        raise UsageError(f"Cochran's Q needs (example, at least two conditions); found an array of shape {table.shape}")
    if not ((table.sum(1) > 0) & (table.sum(1) < table.shape[1])).any():
        return PairedTest(0.0, 1.0)
    result = cochrans_q(table)
    return PairedTest(float(result.statistic), float(result.pvalue))


def mcnemar_exact(first: ArrayLike, second: ArrayLike, problem: ArrayLike | None = None) -> PairedTest:
    """Exact McNemar test of paired yes/no answers; the statistic is the number of pairs that differ.

    With several examples a problem it is the sign test of the problems: each counts once, for the side on which more
    of its examples say yes, and not at all where the sides are even.

    Parameters
    ----------
    first, second : (example,), bool
    problem : (example,)
        By default every example is its own.
    """
    from scipy.stats import binomtest  # takes a second, which most analyses need not spend

    first, second = _yes(first), _yes(second)
    if first.shape != second.shape:
        raise UsageError(f"McNemar's test pairs answers one to one; found {first.shape} and {second.shape}")
    more = first.astype(int) - second.astype(int)
    if problem is not None and len(more):
        more = sums_by_problem(more, np.asarray(problem))
    only_first, only_second = int((more > 0).sum()), int((more < 0).sum())
    differ = only_first + only_second
    return PairedTest(float(differ), float(binomtest(only_first, differ).pvalue) if differ else 1.0)


def adjust(p: ArrayLike, method: str = "holm", family: ArrayLike | None = None) -> Array:
    """P-values corrected for their number; NaN stays NaN and is not counted.

    Parameters
    ----------
    p : (...)
    method
        ``"holm"`` (chance of any false alarm) or ``"bh"`` (share of false alarms, Benjamini and Hochberg).
    family : (...), bool
        Which of them are tested together, all by default; NaN outside.
    """
    if method not in ("holm", "bh"):
        raise UsageError(f"correction {method!r} is not one of holm, bh{nearest(method, ('holm', 'bh'))}")
    p = np.asarray(p, dtype="float64")
    known = np.isfinite(p) if family is None else np.isfinite(p) & np.asarray(family, dtype=bool)
    adjusted = np.full(p.shape, np.nan)
    if not known.any():
        return adjusted
    if method == "bh":
        from scipy.stats import false_discovery_control

        adjusted[known] = false_discovery_control(p[known])
        return adjusted
    # By hand: statsmodels' function collects garbage at every call, which takes seconds in a large process.
    order = np.argsort(p[known], kind="stable")
    scaled = p[known][order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    adjusted[known] = corrected
    return adjusted


def split_problems(problem: ArrayLike, seed: int) -> Array:
    """0, 1 or 2 for each example, by its problem: what is fitted on, what choices are made by, what is measured on.

    The same for the same problems and seed, so that things that are fitted apart can be measured together.
    """
    unique, inverse = np.unique(problem, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    edges = np.cumsum(SPLIT_SHARES)[:-1] * len(unique)
    return np.asarray(np.searchsorted(edges, order, side="right")[inverse])


def half_of_problems(problem: ArrayLike, *seed: int) -> Array:
    """Examples (example,), bool, of half of the problems, drawn by chance; examples of one problem stay together."""
    unique, inverse = np.unique(problem, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(unique))
    return np.isin(inverse, drawn[: len(unique) // 2])
