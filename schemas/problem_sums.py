"""Problems of several examples: sums over the examples of each, and how many trials a share over them is worth."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def problem_of(data: Any) -> Array:
    """Problem of each example of a run, result or labelled array: (example,); without any, each example is its own."""
    for name in ("problem", "example"):
        if name in data.coords:
            return np.asarray(data[name].values)
    return np.arange(data.sizes["example"])


def sums_by_problem(values: Array, problem: Array) -> Array:
    """Sums over the examples of each problem, in order of their labels: (..., example) to (..., problem)."""
    number = np.unique(problem, return_inverse=True)[1]
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    return np.asarray(np.add.reduceat(values[..., order].astype("float64"), starts, axis=-1))


def problem_sums(yes_of: Array, counted_of: Array) -> Array:
    """Four sums over problems for :func:`effective_trials`, (..., problem) to (4, ...); sums of several parts add up.

    Sums of squares and products of how many examples of each say yes and are counted, and problems with any counted.
    """
    products = yes_of**2, yes_of * counted_of, counted_of**2, counted_of > 0
    return np.stack([product.sum(-1, dtype="float64") for product in products])


def trials_of(yes: Array, counted: Array, problem: Array) -> Array:
    """:func:`effective_trials` of the share of counted examples that say yes, (..., example), bool, to (...)."""
    n = counted.sum(-1).astype("float64")
    if len(np.unique(problem)) == counted.shape[-1]:
        return np.asarray(n)
    yes_of, counted_of = sums_by_problem(yes & counted, problem), sums_by_problem(counted, problem)
    return effective_trials(yes_of.sum(-1), n, problem_sums(yes_of, counted_of))


def effective_trials(total: Array, n: Array, sums: Array) -> Array:
    """Trials as uncertain as a share ``total / n`` over problems, see :func:`schemas.statistics.share_interval`.

    More than there are problems only as far as a spread estimated from so few of them can say: by the square of the
    quantiles at 95% of a normal and of Student's t distribution.

    Parameters
    ----------
    total, n : (...)
        Examples that say yes, and that are counted.
    sums : (4, ...)
        Of :func:`problem_sums`.
    """
    from scipy.special import ndtri, stdtrit

    squares, products, of_counted, n_problem = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        share = total / n
        spread = squares - 2 * share * products + share**2 * of_counted
        spread = np.where(spread > 1e-12 * of_counted, spread, 0)  # rounding, of problems that all have the same share
        trials = share * (1 - share) * n**2 / spread
    trials = np.clip(np.where(spread > 0, trials, n_problem), np.minimum(1, n), n)
    known = (ndtri(0.975) / stdtrit(np.maximum(n_problem - 1, 1), 0.975)) ** 2
    return np.asarray(np.maximum(known * trials, np.minimum(trials, n_problem)))


def other_rows(problem: Array, rng: np.random.Generator) -> Array:
    """For each example the first one of another problem: all problems in one random ring, each the next one's."""
    unique, first, inverse = np.unique(problem, return_index=True, return_inverse=True)
    order = rng.permutation(len(unique))
    following = np.empty(len(unique), dtype=int)
    following[order] = np.roll(order, -1)
    return np.asarray(first[following[inverse]])
