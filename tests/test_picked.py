"""Intervals of figures that were picked: closed forms, exact ones of another library, and how often they hold."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm

from analyze.tables import as_picked
from schemas.picked import Pick, of_largest, of_picked
from schemas.statistics import trials_of_interval, wilson_interval

Z = 1.959963984540054


@pytest.mark.parametrize("n", [2, 7, 144])
def test_the_largest_of_many_has_the_lower_end_of_all_and_its_own_upper_one(n):
    longer = norm.ppf(1 - 0.025 / n) / Z
    assert of_picked((1.0, 0.4, 1.2), Pick(n)) == pytest.approx([1.0, 1 - 0.6 * longer, 1.2])
    assert of_picked((-1.0, -1.2, -0.4), Pick(n, by="smallest")) == pytest.approx([-1.0, -1.2, -1 + 0.6 * longer])
    assert of_picked((1.0, 0.4, 1.2), Pick(n, by="any")) == pytest.approx([1.0, 1 - 0.6 * longer, 1 + 0.2 * longer])
    # a level of all together: what Bonferroni's does, of an interval at another level too
    low = 1 - 0.6 * norm.ppf(1 - 0.05 / n) / norm.ppf(0.95)
    assert of_picked((1.0, 0.4, 1.2), Pick(n), level=0.9)[1] == pytest.approx(low)


def test_one_of_one_and_what_has_no_interval_stay_as_they_are():
    assert of_picked((0.5, 0.4, 0.6), Pick(1, share=True)) == [0.5, 0.4, 0.6]
    assert of_picked((1.0, 1.0, 1.0), Pick(9, share=True)) == [1.0, 1.0, 1.0]
    assert of_picked((0.5, np.nan, np.nan), Pick(9))[0] == 0.5
    assert np.isnan(of_picked((0.5, np.nan, np.nan), Pick(9))[1:]).all()


@pytest.mark.parametrize(("count", "n"), [(0, 12), (1, 30), (15, 30), (29, 30), (30, 30), (130, 199)])
def test_ends_of_shares_are_exact(count, n):
    own = (count / n, *map(float, wilson_interval(count, n)))
    assert trials_of_interval(*own) == pytest.approx(n)
    exact = binomtest(count, n).proportion_ci(1 - 0.05 / 40, method="exact")
    assert of_picked(own, Pick(40, share=True)) == pytest.approx([own[0], exact.low, own[2]])
    assert of_picked(own, Pick(40, by="smallest", share=True)) == pytest.approx([own[0], own[1], exact.high])
    assert of_picked(own, Pick(40, by="any", share=True)) == pytest.approx([own[0], exact.low, exact.high])


@pytest.mark.parametrize("true", [np.zeros(20), np.linspace(-2, 2, 20), np.r_[np.zeros(19), 6.0]])
def test_the_interval_of_the_largest_holds_and_that_of_one_does_not(true):
    drawn = true + np.random.default_rng(0).standard_normal((4000, 20))
    most = drawn.argmax(1)
    values = drawn.max(1)
    held = {"picked": 0, "largest": 0, "own": 0}
    for value, place in zip(values, most, strict=True):
        _, low, high = of_picked((value, value - Z, value + Z), Pick(20))
        held["picked"] += low <= true[place] <= high
        held["largest"] += low <= true.max() <= high
        held["own"] += abs(value - true[place]) <= Z
    assert held["picked"] > 0.94 * 4000
    assert held["largest"] > 0.94 * 4000
    if not true.any():
        assert held["own"] < 0.65 * 4000  # none of 20 beyond 1.96: .975 ** 20 = .60


def test_what_is_not_told_from_the_largest_reaches_its_lower_end():
    value = np.array([0.0, 5.0, 2.9, 3.5, np.nan])
    most, figure, near = of_largest([value, value - 1, value + 1])
    assert most == 1
    assert figure == of_picked((5.0, 4.0, 6.0), Pick(4))
    assert near == [2, 3]  # 3.9 and 4.5 reach 3.7; by its own lower end of 4 the first would not


def test_rows_have_the_intervals_of_picked_ones():
    rows = pd.DataFrame({"share": [0.5, 0.1], "share_low": [0.4, 0.05], "share_high": [0.6, 0.2]}, index=[3, 8])
    pick = Pick(2, share=True)
    shown = as_picked(rows, pick, "share")
    assert shown.loc[8].tolist() == of_picked((0.1, 0.05, 0.2), pick)
    renamed = rows.rename(columns={"share_low": "low", "share_high": "high"})
    np.testing.assert_array_equal(as_picked(renamed, pick, "share", "low", "high").to_numpy(), shown.to_numpy())
    assert as_picked(rows.head(0), pick, "share").empty
