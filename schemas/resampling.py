"""Bootstraps over problems: what is drawn, and intervals of what was drawn.

A resample draws whole problems, each as often as a Poisson draw says, so that it is a sum over examples and takes no
memory that grows with them.
"""

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, np.dtype[Any]]
N_RESAMPLE = 1000
DRAWN_TOGETHER = 512
"""Examples whose draws are held at once: a draw depends on its problem alone."""
MOST_EMPTY = 0.25
"""Share of resamples without a value above which there is no interval."""
FEWEST_PROBLEMS = 5
"""Problems from which on a bootstrap interval is given: of four it would cover .88 of normal means, of two one half."""


def draw_counts(groups: Array, *, n_resample: int, seed: int) -> Array:
    """How often each group is drawn in each resample of a Poisson bootstrap: (example,) to (example, resample).

    Counts are independent Poisson(1) and the same for all examples of a group. One depends on the seed, the group's
    label (a number or a text) and the resample alone: not on order, chunks or which other examples are there.
    """
    unique, inverse = np.unique(groups, return_inverse=True)
    counts = np.empty((len(unique), n_resample), dtype="float32")
    for row, label in zip(counts, unique.tolist(), strict=True):
        row[:] = np.random.default_rng([seed, _seed_of(label)]).poisson(1.0, n_resample)
    return np.asarray(counts[inverse])


def _seed_of(label: Any) -> int:
    """A number of its own for each label: of a whole number from 0 on itself, of any other label a digest of it."""
    if isinstance(label, int) and label >= 0:
        return label
    return int.from_bytes(hashlib.blake2b(repr(label).encode(), digest_size=16).digest())


def tail(n_problem: ArrayLike, level: float = 0.95) -> Array:
    """Share of resamples that lies below a bootstrap interval, and above it; NaN of fewer than five problems.

    A percentile interval of n problems is too narrow: what it covers is t-distributed with n - 1 degrees of freedom
    where its own tails are a normal distribution's. They are therefore taken at P(Z < t), t being that distribution's
    quantile: of 5 problems at .0027, of 20 at .018, of many at .025.

    Parameters
    ----------
    n_problem : (...)
        How many are resampled; need not be whole.

    References
    ----------
    Hesterberg, *What teachers should know about the bootstrap*, The American Statistician 69 (2015) 371-386, expanded
    percentile intervals. The factor sqrt(n / (n - 1)) there is that of drawing n of n; the ratio of Poisson draws is
    as wide by itself (``benchmarks/calibration.py``).
    """
    from scipy.special import ndtr, stdtrit

    n: Array = np.asarray(n_problem, dtype="float64")
    enough = n >= FEWEST_PROBLEMS - 0.5
    return np.where(enough, ndtr(stdtrit(np.where(enough, n, 2) - 1, (1 - level) / 2)), np.nan)


def problems_drawn(n: ArrayLike, drawn: Array) -> Array:
    """How many problems of equal size are resampled, (sum c)^2 / sum c^2 of c examples each (Kish), from the draws.

    Parameters
    ----------
    n : (...)
        Examples.
    drawn : (..., resample)
        Examples in each resample, whose variance over Poisson draws is the sum of c^2.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.asarray(n, dtype="float64") ** 2 / drawn.var(-1))


def percentiles(resampled: Array, n_problem: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Ends (...) of the percentile interval over resamples (..., resample), its tails by :func:`tail`.

    NaN is a resample without a value, and the ends where more than a quarter are, or fewer than five problems.

    Parameters
    ----------
    n_problem : (...)
        How many problems are resampled.
    """
    ordered = np.sort(resampled, axis=-1)  # NaN last
    known = (~np.isnan(ordered)).sum(-1)
    tails = np.where(known >= (1 - MOST_EMPTY) * ordered.shape[-1], tail(n_problem, level), np.nan)
    ends = []
    for share in (tails, 1 - tails):
        place = np.nan_to_num(share) * np.maximum(known - 1, 0)
        below, above = (
            np.take_along_axis(ordered, edge(place).astype(int)[..., None], -1)[..., 0] for edge in (np.floor, np.ceil)
        )
        with np.errstate(invalid="ignore"):  # of what is infinite
            between = np.where(below == above, below, below + (above - below) * (place % 1))
        ends.append(np.where(np.isnan(tails), np.nan, between))
    return ends[0], ends[1]


def mean_interval(
    values: ArrayLike, seed: int = 0, problem: ArrayLike | None = None, *, n_resample: int = N_RESAMPLE
) -> tuple[Array, Array, Array]:
    """Mean over the last axis, ignoring NaN, and its bootstrap 95% interval over problems.

    Parameters
    ----------
    values : (..., example)
    problem : (example,), int
        By default every example is its own.

    Returns
    -------
    mean, low, high : (...)
        NaN where there is no value; the ends also where fewer than five problems have one (:func:`tail`).
    """
    return _drawn_mean(np.asarray(values), seed, problem, n_resample).interval()


def way_interval(
    values: ArrayLike, start: ArrayLike, end: ArrayLike, seed: int = 0, problem: ArrayLike | None = None
) -> tuple[Array, Array, Array]:
    """Share of the way from one mean to another that means have gone, and its bootstrap 95% interval over problems.

    Both ends are drawn with the values: what is the end itself has gone all of the way in every resample.

    Parameters
    ----------
    values : (condition, example)
    start, end : (example,)
        0 and 1 of the way; NaN: not known, there the others still count.
    problem : (example,), int
        By default every example is its own.

    Returns
    -------
    share, low, high : (condition,)
        As of :func:`mean_interval`.
    """
    drawn = _drawn_mean(np.vstack([values, start, end]), seed, problem, N_RESAMPLE)
    mean, (resampled, n_problem) = drawn.interval()[0], drawn.resampled()
    with np.errstate(invalid="ignore", divide="ignore"):  # two ends that are one
        share, shares = ((each[:-2] - each[-2]) / (each[-1] - each[-2]) for each in (mean, resampled))
    return share, *percentiles(shares, np.minimum(n_problem[:-2], n_problem[-2:].min()))


def _drawn_mean(values: Array, seed: int, problem: ArrayLike | None, n_resample: int) -> "DrawnMean":
    groups = np.arange(values.shape[-1]) if problem is None else np.asarray(problem)
    drawn = DrawnMean(values.shape[:-1], n_resample)
    for start in range(0, values.shape[-1], DRAWN_TOGETHER):
        part = slice(start, start + DRAWN_TOGETHER)
        drawn.add(values[..., part], draw_counts(groups[part], n_resample=n_resample, seed=seed))
    return drawn


class DrawnMean:
    """Mean over examples that come block by block, and over resamples of them, in memory that does not grow with them.

    ``shape`` is that of one example's values.
    """

    def __init__(self, shape: tuple[int, ...], n_resample: int) -> None:
        self._shape = shape
        size = math.prod(shape)
        self._sum, self._count = np.zeros((2, size))
        self._drawn_sum, self._drawn_count = np.zeros((2, size, n_resample))

    def add(self, values: Array, draws: Array) -> None:
        """Take a block of examples in.

        ``values`` (..., example), NaN: no value, and ``draws`` (example, resample), how often each is drawn
        (:func:`draw_counts`).
        """
        flat = values.reshape(len(self._sum), values.shape[-1]).astype("float64")
        known = ~np.isnan(flat)
        filled = np.where(known, flat, 0.0)
        self._sum += filled.sum(1)
        self._count += known.sum(1)
        draws = draws.astype("float64")
        with np.errstate(invalid="ignore"):  # what is infinite, not drawn
            self._drawn_sum += filled @ draws
        self._drawn_count += known.astype("float64") @ draws

    def interval(self, level: float = 0.95) -> tuple[Array, Array, Array]:
        """Mean, and the ends of its percentile interval over resamples (:func:`percentiles`).

        Each of one example's shape; NaN: no value, or ends of fewer than five problems.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sum / self._count
        low, high = percentiles(*self.resampled(), level)
        return mean.reshape(self._shape), low.reshape(self._shape), high.reshape(self._shape)

    def resampled(self) -> tuple[Array, Array]:
        """Mean of each resample (value, resample), NaN: of none, and how many problems have a value (value,)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._drawn_sum / self._drawn_count, problems_drawn(self._count, self._drawn_count)
