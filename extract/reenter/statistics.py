"""Intervals, paired tests and corrections on what a sweep measured."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from schemas import Scoring, UsageError
from schemas.problem_sums import problem_of
from schemas.resampling import N_RESAMPLE, draw_counts, mean_interval, percentiles, problems_drawn
from schemas.statistics import adjust, mcnemar_exact, mean_share, share_interval
from schemas.wording import interval_columns


def by_problem(value: np.ndarray, problem: np.ndarray) -> np.ndarray:
    """Means ``(.., problem)`` of values ``(.., example)`` over the examples of each problem."""
    unique = np.unique(problem)
    if len(unique) == len(problem):
        return value
    return np.stack([value[..., problem == one_problem].mean(-1) for one_problem in unique], axis=-1)


def strata_of(strata: np.ndarray | None, n_example: int) -> dict[str, np.ndarray]:
    """Examples ``(example,)``, bool, of which figures are given: ``all``, and each level of several."""
    levels = np.unique([] if strata is None else strata)
    groups = {str(level): np.asarray(strata == level) for level in levels} if len(levels) > 1 else {}
    return {"all": np.ones(n_example, dtype=bool), **groups}


def with_accuracy(
    measured: xr.Dataset, gold: np.ndarray, *, counted: np.ndarray | None = None, strata: np.ndarray | None = None,
    outcomes: bool = False, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Add what conditions did to right answers, against the untouched run on the same examples.

    Parameters
    ----------
    measured
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
        intervals; of drawn answers ``sample_correct(condition, example)``, the share that is right, and its mean
        likewise. Where ``measured`` has a coordinate ``problem`` that examples share, intervals and tests are over
        problems (:mod:`schemas.statistics`).
    """
    predicted = measured["predicted_answer"].values
    scoring = Scoring(measured.attrs.get("answer_kind", "number"), measured.attrs.get("rule", "default"))
    correct = scoring.equal(predicted, gold[None, :])
    counted = np.ones_like(correct) if counted is None else counted
    control = measured["control"].values if "control" in measured.coords else np.full(len(correct), "", dtype=object)
    tested = np.array([not str(label) for label in control])
    tested[0] = False
    groups = strata_of(strata, len(gold))
    if outcomes and 0 < correct[0].sum() < len(gold):
        groups |= {"right": correct[0], "wrong": ~correct[0]}
    if "sample_answer" in measured:
        drawn = scoring.equal(measured["sample_answer"].values, gold[None, None, :]).mean(1)
        measured = measured.assign(sample_correct=(("condition", "example"), drawn))
    columns = [_stratum(measured, correct, counted & rows[None, :], tested, seed) for rows in groups.values()]
    added: dict[str, tuple[tuple[str, str], np.ndarray]] = {
        "correct": (("condition", "example"), correct),
        "counted": (("condition", "example"), counted),
    }
    added |= {name: (("stratum", "condition"), np.stack([column[name] for column in columns])) for name in columns[0]}
    return measured.assign(added).assign_coords(stratum=np.array(list(groups), dtype=object))


def _stratum(
    measured: xr.Dataset, correct: np.ndarray, use: np.ndarray, tested: np.ndarray, seed: int
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
    problem = problem_of(measured)
    figures["accuracy_low"], figures["accuracy_high"] = share_interval(correct, use, problem)
    figures["importance_low"], figures["importance_high"] = share_interval(~correct, before, problem)
    p = np.array([mcnemar_exact(*pair, problem).p for pair in zip(before, after, strict=True)])
    p[n == 0] = np.nan
    figures["p"], figures["p_holm"] = p, adjust(p, family=tested)
    logprob = measured["answer_logprob"].values[:, 0]
    changes = {"kl": measured["kl"].values, "logprob_change": logprob - logprob[0][None, :]}
    means = {name: mean_interval(np.where(use, value, np.nan), seed, problem) for name, value in changes.items()}
    if "sample_correct" in measured:
        means["sample_correct"] = mean_share(np.where(use, measured["sample_correct"].values, np.nan), problem)
    for name, interval in means.items():
        figures |= interval_columns(name, interval, "_mean")
    return figures


def first_that_wins(
    wins: np.ndarray, losses: np.ndarray, counts: Sequence[int], seed: int = 0, problem: np.ndarray | None = None
) -> dict[str, float]:
    """Smallest N from which on the donor's answer is more frequent than the target's own, with a bootstrap interval.

    Parameters
    ----------
    wins, losses
        Whether the donor's, or the target's own, answer was given ``(N, example)``, in order of ``counts``.
    counts
        The values of N.
    problem
        Problem of each example; by default every example is its own.

    Returns
    -------
    dict
        ``n`` (NaN: never), ``n_low``, ``n_high`` (interval of the resamples in which it wins) and
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
    draws = draw_counts(np.arange(n) if problem is None else problem, n_resample=N_RESAMPLE, seed=seed)
    draws = draws[:, draws.any(0)]  # of few problems a resample may hold none
    resampled = first(margin @ draws.astype("float64"))
    won = resampled[~np.isnan(resampled)]
    low, high = percentiles(won, problems_drawn(n, draws.sum(0))) if len(won) else (np.nan, np.nan)
    return {
        "n": float(first(margin.sum(1, keepdims=True))[0]),
        "n_low": float(low),
        "n_high": float(high),
        "never": float(np.isnan(resampled).mean()),
    }
