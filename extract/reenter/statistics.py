"""Intervals, paired tests and corrections on what a sweep measured."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from schemas import Scoring, UsageError

N_BOOTSTRAP = 1000


def wilson(count: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson 95% interval of shares; NaN where there is nothing to count."""
    count, total = np.broadcast_arrays(np.asarray(count), np.asarray(total))
    low, high = np.full(count.shape, np.nan), np.full(count.shape, np.nan)
    some = total > 0
    if some.any():
        low[some], high[some] = proportion_confint(count[some], total[some], method="wilson")
    return low, high


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Exact two-sided p of paired yes/no outcomes ``(example,)``: are changes as frequent one way as the other."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won, 0.5).pvalue)


def holm(p: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Holm's correction over the tests of a family; NaN outside it."""
    out = np.full(p.shape, np.nan)
    family = tested & ~np.isnan(p)
    order = np.argsort(p[family], kind="stable")
    # By hand: the library's function collects garbage at every call, which takes seconds in a large process.
    scaled = p[family][order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    out[family] = corrected
    return out


def mean_interval(value: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis, ignoring NaN, and its percentile bootstrap 95% interval over examples."""
    flat = value.reshape(-1, value.shape[-1])
    known = ~np.isnan(flat)
    filled = np.where(known, flat, 0.0)
    n = flat.shape[-1]
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP).T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(1) / known.sum(1)
        resampled = (filled @ draws) / (known.astype(np.float64) @ draws)
    low, high = np.full(len(flat), np.nan), np.full(len(flat), np.nan)
    some = known.any(1)
    if some.any():
        low[some], high[some] = np.nanpercentile(resampled[some], [2.5, 97.5], axis=1)
    shape = value.shape[:-1]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def by_problem(value: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """Means ``(.., problem)`` of values ``(.., example)`` over the examples of each problem."""
    unique = np.unique(problem)
    if len(unique) == len(problem):
        return value
    return np.stack([value[..., problem == each].mean(-1) for each in unique], axis=-1)


def with_accuracy(
    found: xr.Dataset, gold: np.ndarray, *, counted: np.ndarray | None = None, strata: np.ndarray | None = None,
    outcomes: bool = False, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Add what conditions did to right answers, against the untouched run on the same examples.

    Parameters
    ----------
    found
        Of :func:`extract.reenter.sweep.sweep`; conditions whose coordinate ``control`` is not empty are no part of the
        family that is corrected for.
    gold
        Right answers ``(example,)``.
    counted
        Examples on which a condition was armed ``(condition, example)``; all by default.
    strata
        Difficulty ``(example,)``; every figure is given for each, and for ``all``.
    outcomes
        Give every figure, too, for the examples that the untouched run answers rightly (``right``) and wrongly
        (``wrong``), where there are both.

    Returns
    -------
    xr.Dataset
        With ``correct(condition, example)``, ``counted``, and along ``stratum`` and ``condition``: ``n``,
        ``accuracy`` (Wilson interval ``_low``, ``_high``), ``untouched_accuracy`` on the same examples, ``drop``,
        ``importance`` (share of the examples right before that are wrong after, Wilson), ``broken`` and ``mended``
        counts, ``p`` (exact McNemar), ``p_holm``, and mean changes of ``kl`` and ``answer_logprob`` with bootstrap
        intervals.
    """
    predicted = found["predicted_answer"].values
    scoring = Scoring(found.attrs.get("answer_kind", "number"), found.attrs.get("rule", "default"))
    correct = scoring.equal(predicted, gold[None, :])
    counted = np.ones_like(correct) if counted is None else counted
    control = found["control"].values if "control" in found.coords else np.full(len(correct), "", dtype=object)
    tested = np.array([not str(label) for label in control])
    tested[0] = False
    strata_of = {"all": np.ones(len(gold), dtype=bool)}
    if strata is not None and len(np.unique(strata)) > 1:
        strata_of |= {str(level): strata == level for level in np.unique(strata)}
    if outcomes and 0 < correct[0].sum() < len(gold):
        strata_of |= {"right": correct[0], "wrong": ~correct[0]}
    columns = [_stratum(found, correct, counted & rows[None, :], tested, seed) for rows in strata_of.values()]
    added: dict[str, tuple[tuple[str, str], np.ndarray]] = {
        "correct": (("condition", "example"), correct),
        "counted": (("condition", "example"), counted),
    }
    added |= {name: (("stratum", "condition"), np.stack([column[name] for column in columns])) for name in columns[0]}
    return found.assign(added).assign_coords(stratum=np.array(list(strata_of), dtype=object))


def _stratum(
    found: xr.Dataset, correct: np.ndarray, use: np.ndarray, tested: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Figures by condition ``(condition,)`` over the examples ``(condition, example)`` that are used."""
    before, after = correct[0][None, :] & use, correct & use
    n, right, right_before = use.sum(1), after.sum(1), before.sum(1)
    broken, mended = (before & ~after).sum(1), (after & ~before).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = {
            "n": n,
            "accuracy": right / n,
            "untouched_accuracy": right_before / n,
            "drop": (right_before - right) / n,
            "importance": broken / right_before,
            "broken": broken,
            "mended": mended,
        }
    figures["accuracy_low"], figures["accuracy_high"] = wilson(right, n)
    figures["importance_low"], figures["importance_high"] = wilson(broken, right_before)
    p = np.array([mcnemar(*pair) for pair in zip(before, after, strict=True)])
    p[n == 0] = np.nan
    figures["p"], figures["p_holm"] = p, holm(p, tested)
    logprob = found["answer_logprob"].values[:, 0]
    for name, value in (("kl", found["kl"].values), ("logprob_change", logprob - logprob[0][None, :])):
        mean, low, high = mean_interval(np.where(use, value, np.nan), seed)
        figures |= {f"{name}_mean": mean, f"{name}_low": low, f"{name}_high": high}
    return figures


def first_that_wins(wins: np.ndarray, losses: np.ndarray, counts: Sequence[int], seed: int = 0) -> dict[str, float]:
    """Smallest N from which on the donor's answer is more frequent than the target's own, bootstrapped over examples.

    Parameters
    ----------
    wins, losses
        Whether the donor's, or the target's own, answer was given ``(N, example)``, in order of ``counts``.
    counts
        The values of N.

    Returns
    -------
    dict
        ``n`` (NaN: never), ``n_low``, ``n_high`` (2.5 and 97.5 percentile among the resamples in which it wins) and
        ``never``, the share of resamples in which it does not.
    """
    if wins.shape != losses.shape or len(wins) != len(counts):
        raise UsageError("wins, losses and counts differ in length")
    n = wins.shape[1]
    margin = wins.astype(np.float64) - losses.astype(np.float64)

    def first(totals: np.ndarray) -> np.ndarray:
        stays = np.flip(np.logical_and.accumulate(np.flip(totals > 0, axis=0), axis=0), axis=0)
        return np.where(stays.any(0), np.asarray(counts, dtype=np.float64)[stays.argmax(0)], np.nan)

    if not n:
        return {"n": np.nan, "n_low": np.nan, "n_high": np.nan, "never": np.nan}
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP).T
    resampled = first(margin @ draws)
    won = resampled[~np.isnan(resampled)]
    low, high = np.percentile(won, [2.5, 97.5]) if len(won) else (np.nan, np.nan)
    return {
        "n": float(first(margin.sum(1, keepdims=True))[0]),
        "n_low": float(low),
        "n_high": float(high),
        "never": float(np.isnan(resampled).mean()),
    }
