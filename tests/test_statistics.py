"""Statistics that analyses and re-entries share: closed forms, published functions, several examples a problem."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest, pearsonr
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from analyze.compare.differences import _paired
from analyze.statistics import bootstrap_weights, percentile_interval, weighted_mean
from schemas import UsageError
from schemas.resampling import draw_counts, mean_interval, way_interval
from schemas.statistics import (
    adjust,
    cochran_q,
    difference_interval,
    mcnemar_exact,
    mean_share,
    problems_needed,
    share_interval,
    smallest_correlation,
    smallest_share,
    uncertain,
    wilson_interval,
)
from schemas.wording import range_text, with_interval

Z = 1.959963984540054


def test_wilsons_interval_has_its_closed_form():
    low, high = wilson_interval([0, 5, 0], [10, 10, 0])
    assert (low[0], wilson_interval(7, 7).high) == (0, 1)
    np.testing.assert_allclose(high[0], Z**2 / (10 + Z**2))
    np.testing.assert_allclose(low[1] + high[1], 1)
    assert np.isnan([low[2], high[2]]).all()
    rng = np.random.default_rng(0)
    n = rng.integers(1, 500, 200)
    count = rng.integers(0, n + 1)
    oracle = proportion_confint(count, n, 0.1, method="wilson")
    np.testing.assert_allclose(wilson_interval(count, n, 0.9), oracle, atol=1e-12)


def test_an_effective_number_of_trials_is_that_of_independent_problems():
    rng = np.random.default_rng(1)
    yes = rng.random((3, 60)) < [[0.2], [0.5], [1.0]]
    counted = rng.random((3, 60)) < 0.8
    single = share_interval(yes, counted, rng.permutation(60))
    np.testing.assert_array_equal(single, wilson_interval((yes & counted).sum(1), counted.sum(1)))
    np.testing.assert_array_equal(single, share_interval(yes, counted))
    # examples that always agree with their problem: as many trials as problems
    three, order = np.repeat(np.arange(60), 3), rng.permutation(180)
    grouped = share_interval(np.repeat(yes, 3, 1)[:, order], np.repeat(counted, 3, 1)[:, order], three[order])
    np.testing.assert_allclose(grouped, single)
    # examples independent of their problem: about as many trials as examples
    yes = np.random.default_rng(2).random(4000) < 0.4
    low, high = share_interval(yes, np.ones(4000), np.repeat(np.arange(2000), 2))
    assert high - low == pytest.approx(2 * Z * np.sqrt(0.24 / 4000), rel=0.05)
    assert np.isnan(share_interval([True], [False], [0])).all()


def test_intervals_over_problems_hold_what_they_say():
    rng = np.random.default_rng(3)
    hit = 0
    for _ in range(300):
        chance = rng.beta(0.5, 0.5, 40)  # problems differ much, examples of one little: the mean over all is 0.5
        low, high = share_interval(rng.random(200) < np.repeat(chance, 5), np.ones(200), np.repeat(np.arange(40), 5))
        hit += low <= 0.5 <= high
    assert 0.9 < hit / 300 < 0.99


def test_mcnemars_test_counts_examples_and_its_sign_test_problems():
    before, after = np.array([True] * 7 + [False] * 3), np.array([False] * 6 + [True] + [False] * 3)
    assert mcnemar_exact(before, after).p == pytest.approx(2 * 0.5**6)
    assert mcnemar_exact(before, before) == (0, 1)
    order = np.random.default_rng(0).permutation(10)
    assert mcnemar_exact(before, after, order) == mcnemar_exact(before, after)
    # problems 0 and 1 lose, 2 is even, 3 wins
    first = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)
    second = np.array([0, 0, 0, 0, 0, 1, 1, 1], dtype=bool)
    test = mcnemar_exact(first, second, [0, 0, 1, 1, 2, 2, 3, 3])
    assert test == (3, pytest.approx(binomtest(2, 3).pvalue))
    with pytest.raises(UsageError, match="one to one"):
        mcnemar_exact(before, after[:3])


@pytest.mark.parametrize(("method", "published"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_corrections_are_the_published_ones(method, published):
    p = np.array([[0.01, 0.02, 0.5], [np.nan, 0.004, 0.02]])
    corrected = adjust(p, method)
    np.testing.assert_allclose(corrected[np.isfinite(p)], multipletests(p[np.isfinite(p)], method=published)[1])
    assert np.isnan(corrected[1, 0])
    part = adjust(p, method, family=p < 0.1)
    np.testing.assert_allclose(part[p < 0.1], multipletests(p[p < 0.1], method=published)[1])
    assert np.isnan(part[0, 2])


def test_resamples_draw_whole_problems(monkeypatch):
    problem = np.array([5, 2, 5, 9])
    counts = draw_counts(problem, n_resample=4000, seed=1)
    np.testing.assert_array_equal(counts[0], counts[2])
    assert abs(counts.mean() - 1) < 0.05
    assert abs(np.corrcoef(counts[0], counts[1])[0, 1]) < 0.06
    values = np.random.default_rng(0).normal(size=(2, 3, 50))
    values[0, 0, :10] = np.nan
    mean, low, high = mean_interval(values, seed=2)
    np.testing.assert_allclose(mean, np.nanmean(values, -1))
    np.testing.assert_allclose((high - low)[1, 1], 2 * Z * values[1, 1].std() / np.sqrt(50), rtol=0.15)
    again = mean_interval(np.repeat(values, 2, -1), seed=2, problem=np.repeat(np.arange(50), 2))
    np.testing.assert_allclose(again, (mean, low, high), rtol=1e-6)
    assert np.isnan(mean_interval([[np.nan, np.nan]])).all()
    monkeypatch.setattr("schemas.resampling.DRAWN_TOGETHER", 7)
    np.testing.assert_allclose(mean_interval(values, seed=2), (mean, low, high), rtol=1e-12)


def test_a_bootstrap_of_few_problems_is_as_wide_as_students_t_and_of_four_none():
    rng = np.random.default_rng(0)
    for n in (6, 10, 30):
        values = rng.normal(size=(200, n))
        _, low, high = mean_interval(values)
        half = student.ppf(0.975, n - 1) * values.std(-1, ddof=1) / np.sqrt(n)
        np.testing.assert_allclose((high - low).mean(), 2 * half.mean(), rtol=0.06)
    four = xr.DataArray(rng.normal(size=8), dims="example", coords={"example": np.arange(8)})
    problem = np.repeat(np.arange(4), 2)
    assert np.isnan(mean_interval(four, problem=problem)[1:]).all()
    assert np.isfinite(mean_interval(four)[1:]).all()
    weights = bootstrap_weights(xr.DataArray(problem, dims="example"))
    assert np.isnan(percentile_interval(weighted_mean(four, weights), 8, weights.sum("example"))).all()
    sides = four.assign_coords(problem=("example", problem)), 0 * four
    assert np.isfinite(_paired(sides[0], sides[1], None, {}, 500, 0.95, 0)).tolist() == [True, False, False]


@pytest.mark.parametrize(("n", "each", "least"), [(3, 20, 0.93), (5, 20, 0.93), (10, 10, 0.94)])
def test_shares_over_few_problems_of_many_examples_are_held(n, each, least):
    rng = np.random.default_rng(0)
    chance = rng.beta(2, 2, (2000, n))
    yes = rng.random((2000, n * each)) < np.repeat(chance, each, axis=1)
    low, high = share_interval(yes, np.ones_like(yes), np.repeat(np.arange(n), each))
    assert ((low <= 0.5) & (high >= 0.5)).mean() > least  # .80, .85 and .92 with the normal distribution's quantile


def test_a_share_of_a_way_draws_both_of_its_ends():
    rng = np.random.default_rng(0)
    start, end = rng.normal(-5, 2, 40), rng.normal(4, 2, 40)
    half = (start + end) / 2 + rng.normal(0, 0.3, 40)
    share, low, high = way_interval([start, half, end], start, end, seed=1)
    np.testing.assert_allclose(share, [0, 0.5, 1], atol=0.01)
    np.testing.assert_allclose([low[[0, 2]], high[[0, 2]]], [[0, 1], [0, 1]], atol=1e-12)  # it is the end itself
    drawn = draw_counts(np.arange(40), n_resample=1000, seed=1)
    ways = np.sort(((half - start) @ drawn) / ((end - start) @ drawn))
    assert ways[15] < low[1] < ways[30] < 0.5 < ways[-30] < high[1] < ways[-15]
    assert np.isnan(way_interval([half[:4]], start[:4], end[:4])[1:]).all()
    few = np.where(np.arange(len(end)) < 4, end, np.nan)  # an end of four problems is none to be a share of
    assert np.isnan(way_interval([half], start, few)[1:]).all()


def test_shares_of_drawn_answers_are_never_certain():
    shares = np.zeros((2, 10))
    shares[1, :3] = 0.5, np.nan, 1.0
    mean, low, high = mean_share(shares)
    np.testing.assert_allclose((low, high), np.transpose([wilson_interval(0, 10), wilson_interval(1.5, 9)]))
    np.testing.assert_allclose(mean, [0, 1 / 6])
    assert mean_share(shares, np.repeat([0, 1], 5))[2][0] == wilson_interval(0, 2).high


def test_a_difference_of_shares_has_newcombes_interval():
    # 56 of 70 against 48 of 80, method 10 of Newcombe (1998), table II a: 0.2000 [0.0524, 0.3339]
    first, second = ([count / n, *wilson_interval(count, n)] for count, n in ((56, 70), (48, 80)))
    np.testing.assert_allclose(difference_interval(first, second), [0.2, 0.0524, 0.3339], atol=5e-5)


def test_what_a_number_of_problems_can_tell_is_what_trying_them_finds():
    for share, least in ((0.0, 0.1), (0.3, 0.1), (0.12, 0.1)):
        needed = problems_needed(share, least)
        low, high = wilson_interval(share * np.arange(1, 9000), np.arange(1, 9000))
        assert needed == 1 + np.flatnonzero((low > least) | (high < least))[0]
    assert problems_needed(0.1, 0.1) is None
    assert np.isnan(smallest_share(0, 0.1))
    assert smallest_share(100) == 0.01
    rng = np.random.default_rng(0)
    r = smallest_correlation(50)
    x = rng.standard_normal((4000, 50))
    y = r * x + np.sqrt(1 - r**2) * rng.standard_normal((4000, 50))
    assert np.mean(pearsonr(x, y, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)
    assert np.isnan(smallest_correlation(3))


@pytest.mark.parametrize("labels", [[-3, 3, 5], ["b", "a", "c"], [0.2, 0.7, 1.5], [2**62, 2**62 + 1, -(2**62)]])
def test_problems_may_be_called_anything(labels):
    """Each label draws for itself (-3 as 3, .2 as .7 would be one problem), and sums are those of numbered problems."""
    problem, number = np.repeat(np.array(labels), 4), np.repeat(np.arange(3), 4)
    drawn = draw_counts(problem, n_resample=50, seed=0)[::4]
    assert len(np.unique(drawn, axis=0)) == 3
    np.testing.assert_array_equal(drawn[2], draw_counts(problem[-4:], n_resample=50, seed=0)[0])
    rng = np.random.default_rng(0)
    yes, other = rng.random(12) < 0.6, rng.random(12) < 0.3
    counted = np.ones(12, dtype=bool)
    np.testing.assert_allclose(share_interval(yes, counted, problem), share_interval(yes, counted, number))
    assert mcnemar_exact(yes, other, problem) == mcnemar_exact(yes, other, number)


def test_an_answer_that_is_missing_is_no_yes():
    for test in (lambda: mcnemar_exact([1, np.nan, 0], [0, 0, 0]), lambda: cochran_q([[1, np.nan], [0, 1]])):
        with pytest.raises(UsageError, match="1 of . answers are NaN"):
            test()


def test_answers_that_are_all_alike_are_not_certain():
    all_right, some = ([share, *wilson_interval(share * 20, 20)] for share in (1.0, 0.5))
    low, high = uncertain([0.0, 0.4], [0.0, 0.6], np.transpose([all_right, all_right]), np.transpose([all_right, some]))
    np.testing.assert_allclose([low[0], high[0]], [-(1 - all_right[1]), 1 - all_right[1]])
    assert (low[1], high[1]) == (0.4, 0.6)


def test_a_figure_without_an_interval_is_printed_alone() -> None:
    nan = float("nan")
    assert [with_interval(figure) for figure in ((0.5, 0.1, 0.9), (0.5, nan, nan), (nan, nan, nan))] == [
        "0.500 [0.10, 0.90]", "0.500", "-",
    ]  # fmt: skip
    assert [range_text(*ends) for ends in ((0.1, 0.9), (nan, nan), (nan, 0.9))] == ["0.10..0.90", "-", "-"]
