"""Attention against importance: what is planted is found where it is, joins by label, refuses the rest."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from synthetic import make_run

from analyze import answer_attention, attention_importance, failure_importance, reentry_importance
from analyze.attention.shares import writing_position
from analyze.correlate.choice import HeldOut, held_out_layer
from analyze.correlate.command import CorrelationSettings, importance_for
from analyze.correlate.moments import Correlations
from analyze.correlate.section import sentence
from schemas import SchemaError, UsageError

POSITIONS = np.array([f"ct{i}" for i in range(6)], dtype=object)


def pair(attention: np.ndarray, importance: np.ndarray, **coords: object) -> tuple[xr.DataArray, xr.DataArray]:
    labels = {"example": np.arange(len(importance)), "position": POSITIONS, **coords}
    return (
        xr.DataArray(attention, dims=("example", "layer", "position"), coords=labels, name="attention"),
        xr.DataArray(importance, dims=("example", "position"), coords=labels, name="importance"),
    )


def test_a_between_position_effect_is_not_taken_for_more():
    rng = np.random.default_rng(1)
    level = np.array([0, 0, 0, 0, 0, 3.0])
    attention, importance = pair(rng.normal(size=(80, 2, 6)) + level, rng.normal(size=(80, 6)) + level)
    result = attention_importance(attention, importance, n_permutation=200, n_resample=100)
    assert (result["pooled_r"] > 0.5).all()  # the published kind of figure
    assert (result["within_r"] > 0.5).all()
    assert (result["partial_p_adjusted"] > 0.05).all()
    assert (result["two_way_p_adjusted"] > 0.05).all()
    assert (result["position_p_adjusted"] > 0.05).all()


def test_agrees_with_scipy_and_finds_a_planted_effect():
    rng = np.random.default_rng(2)
    importance = rng.normal(size=(60, 6))
    attention = np.stack([rng.normal(size=(60, 6)), importance + rng.normal(size=(60, 6))], axis=1)
    result = attention_importance(*pair(attention, importance), n_permutation=200, n_resample=200)
    pooled = stats.pearsonr(attention[:, 1].ravel(), importance.ravel())
    assert result["pooled_r"][1] == pytest.approx(pooled.statistic)
    for p in range(6):
        one = stats.pearsonr(attention[:, 0, p], importance[:, p])
        assert result["position_r"][0, p] == pytest.approx(one.statistic)
        assert result["position_p"][0, p] == pytest.approx(one.pvalue, abs=0.1)
    centred = [x - x.mean(0) for x in (attention[:, 1], importance)]
    assert result["partial_r"][1] == pytest.approx(stats.pearsonr(centred[0].ravel(), centred[1].ravel()).statistic)
    within = [x - x.mean(1, keepdims=True) for x in (attention[:, 1], importance)]
    assert result["within_r"][1] == pytest.approx(stats.pearsonr(within[0].ravel(), within[1].ravel()).statistic)
    low, high = pooled.confidence_interval()
    assert result["pooled_r_low"][1] == pytest.approx(low, abs=0.06)
    assert result["pooled_r_high"][1] == pytest.approx(high, abs=0.06)
    for name in ("within", "partial", "two_way"):
        assert result[f"{name}_p_adjusted"][1] == pytest.approx(2 / 201)
        assert result[f"{name}_p_adjusted"][0] > 0.05


def test_a_resample_is_the_examples_repeated():
    rng, eps = np.random.default_rng(0), np.finfo("float64").eps
    x = rng.normal(5, 1, (12, 2, 3))
    y, counts = x[:, 0] + rng.normal(3, 1, (12, 3)), rng.poisson(1.0, (4, 12))
    found = Correlations(x, y, (eps, eps)).resampled(counts)
    for draw, count in enumerate(counts):
        own_x, own_y = np.repeat(x, count, axis=0), np.repeat(y, count, axis=0)
        expected = Correlations(own_x, own_y, (eps, eps)).observed
        expected |= {"mean_attention": own_x.mean(0), "mean_importance": own_y.mean(0)}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][draw], value, err_msg=name)


def test_twins_count_as_one_problem():
    rng = np.random.default_rng(3)
    once = rng.normal(size=(20, 1, 6)), rng.normal(size=(20, 6))
    single = attention_importance(*pair(*once), n_permutation=50, n_resample=300)
    problem = ("example", np.arange(40) // 2)
    twice = pair(*(x.repeat(2, 0) for x in once), problem=problem)
    double = attention_importance(*twice, n_permutation=50, n_resample=300)
    wide = [r["partial_r_high"] - r["partial_r_low"] for r in (single, double)]
    assert wide[1] == pytest.approx(wide[0], rel=0.15)  # and not narrower by sqrt 2


def test_constant_importance_says_so():
    rng = np.random.default_rng(4)
    importance = rng.integers(0, 2, (30, 6)).astype(float)
    importance[:, 2] = 0
    result = attention_importance(*pair(rng.normal(size=(30, 1, 6)), importance), n_permutation=20, n_resample=20)
    assert result["position_r"].sel(position="ct2").isnull().all()
    assert result["position_p_adjusted"].sel(position="ct2").isnull().all()
    assert result["position_r"].sel(position="ct3").notnull().all()


UNITS = [(1, 0, 1e-8, 0), (1e-6, 0, 1, 0), (1, 0, 1, 1e6), (1, 0, 1, 1e8), (1e-150, 0, 1e150, 0), (1, -1e8, -3, 5),
         (1e-8, 1, 1, 0)]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "c", "d"), UNITS)
def test_units_and_origin_change_nothing(a, b, c, d):
    rng = np.random.default_rng(6)
    x = rng.random((60, 2, 6)) * 0.1
    y = 10 * x[:, 0] + rng.normal(size=(60, 6)) * 0.5
    if not b:
        x *= [1, 1, 1e-5, 1, 1, 1e3]  # positions of very different sizes
    numbers = {"n_permutation": 20, "n_resample": 20}
    plain = attention_importance(*pair(x, y), **numbers)
    moved = attention_importance(*pair(x * a + b, y * c + d), **numbers)
    sign = np.sign(a * c)
    for name in ("pooled", "position", "within", "partial", "two_way"):
        np.testing.assert_allclose(moved[f"{name}_r"], sign * plain[f"{name}_r"], atol=1e-6, err_msg=name)
        ends = ("low", "high") if sign > 0 else ("high", "low")
        np.testing.assert_allclose(moved[f"{name}_r_low"], sign * plain[f"{name}_r_{ends[0]}"], atol=1e-6, err_msg=name)
        if name != "pooled":
            np.testing.assert_array_equal(moved[f"{name}_p"], plain[f"{name}_p"], err_msg=name)
    np.testing.assert_allclose(moved["slope"], plain["slope"] * c / a, rtol=1e-6)
    np.testing.assert_allclose(moved["mean_importance"], (y * c + d).mean(0), rtol=1e-6)
    np.testing.assert_allclose(moved["mean_attention"], (x * a + b).mean(0), rtol=1e-6)


@pytest.mark.parametrize("level", [0.1, 1e-8, 1e8])
def test_constants_stay_constant_whatever_their_size(level):
    rng = np.random.default_rng(7)
    attention = rng.random((30, 1, 6))
    by_example = np.full((30, 6), level) * rng.random((30, 1))  # the same at every position
    result = attention_importance(*pair(attention, by_example), n_permutation=5, n_resample=5)
    assert result[["within_r", "two_way_r"]].isnull().all().to_array().all()
    assert result["position_r"].notnull().all()
    constant = attention_importance(*pair(attention, np.full((30, 6), level)), n_permutation=5, n_resample=5)
    assert all(constant[name].isnull().all() for name in constant if str(name).endswith("_r"))


def test_joins_by_example_whatever_the_order():
    run = make_run(n_example=40, twins=True)
    attention = answer_attention(run["attention"])
    ablated = xr.DataArray(
        np.random.default_rng(0).random((40, 6)) < 0.5,
        dims=("example", "position"),
        coords={"example": run["example"], "position": POSITIONS},
    )
    importance = failure_importance(run["correct"], ablated)
    assert importance.isnull().all("position").sum() == (~run["correct"]).sum()
    straight = attention_importance(attention, importance, n_permutation=5, n_resample=5)
    turned = attention_importance(
        attention, importance.isel(example=slice(None, None, -1)), n_permutation=5, n_resample=5
    )
    np.testing.assert_allclose(straight["partial_r"], turned["partial_r"])
    assert straight["n_example"] == run["correct"].sum()
    lazy = answer_attention(run.chunk(example=7, layer=1)["attention"], heads=True)
    assert lazy.chunks is not None
    assert lazy.dims == ("example", "layer", "head", "position")
    xr.testing.assert_allclose(lazy.mean("head").compute(), attention, atol=1e-6)


def test_importance_from_a_reentry_by_condition_and_by_position():
    right = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    by_condition = xr.Dataset(
        {"correct": (("condition", "example"), right)},
        coords={
            "condition": ["untouched", "a", "b", "c", "d", "e"],
            "group": ("condition", ["", "ct0", "ct1", "ct0", "ct1", "all"]),
            "corruption": ("condition", ["", "zero", "zero", "mean", "mean", "mean"]),
            "control": ("condition", [""] * 6),
            "example": [3, 5, 7, 9],
        },
    )
    both = reentry_importance(by_condition)
    assert both["position"].values.tolist() == ["ct0", "ct1"]
    np.testing.assert_array_equal(both, [[1, 0], [0.5, 0.5], [0, 0], [np.nan, np.nan]])
    counted = np.ones_like(right)
    counted[1, 0] = False  # not armed on it: neither lost nor kept
    np.testing.assert_array_equal(
        reentry_importance(by_condition.assign(counted=(("condition", "example"), counted))),
        [[np.nan, 0], [0.5, 0.5], [0, 0], [np.nan, np.nan]],
    )
    zero = reentry_importance(by_condition, corruption="zero")
    np.testing.assert_array_equal(zero, [[1, 0], [0, 1], [0, 0], [np.nan, np.nan]])
    by_position = xr.Dataset(
        {"correct": (("layer", "position", "example"), right[None, 1:3]), "untouched_correct": ("example", right[0])},
        coords={"layer": [1], "position": ["ct0", "ct1"], "example": [3, 5, 7, 9]},
    )
    np.testing.assert_array_equal(reentry_importance(by_position), zero)
    with pytest.raises(SchemaError, match="conditions have no 'kind'"):
        reentry_importance(by_condition, kind="zero")
    with pytest.raises(UsageError, match="measures are failure, logprob, kl"):
        reentry_importance(by_condition, "loss")


def test_refuses_what_does_not_line_up():
    rng = np.random.default_rng(5)
    attention, importance = pair(rng.normal(size=(20, 2, 6)), rng.normal(size=(20, 6)))
    with pytest.raises(SchemaError, match=r"holds 3 examples that attention lacks \(20, 21, 22\)"):
        attention_importance(attention, importance.assign_coords(example=np.arange(3, 23)))
    with pytest.raises(SchemaError, match="no labels along example"):
        attention_importance(attention, importance.drop_vars("example"))
    with pytest.raises(SchemaError, match="lacks eot"):
        attention_importance(attention, importance.assign_coords(position=[*POSITIONS[:-1], "eot"]))
    with pytest.raises(SchemaError, match="has an example more than once"):
        attention_importance(attention, importance.assign_coords(example=np.arange(20) // 2))
    with pytest.raises(SchemaError, match="is of run 'a/x', importance of 'b/x'"):
        attention_importance(attention.assign_attrs(run="a/x"), importance.assign_attrs(run="b/x"))
    with pytest.raises(SchemaError, match="example 0 is problem 1 on one side and 0"):
        attention_importance(
            attention.assign_coords(problem=("example", np.arange(20) + 1)),
            importance.assign_coords(problem=("example", np.arange(20))),
        )
    with pytest.raises(UsageError, match="0 of 20 examples"):
        attention_importance(attention, importance * np.nan)
    with pytest.raises(SchemaError, match="attention of query 'end'"):
        answer_attention(make_run()["attention"], query="end")


def test_a_layer_is_chosen_on_one_half_and_told_on_the_other():
    rng = np.random.default_rng(0)
    attention, importance = rng.random((5, 60, 4)), rng.random((60, 4))
    attention[3] += importance  # one layer in truth
    coords = {"layer": np.arange(5), "example": np.arange(60), "problem": ("example", np.arange(60))}
    data = xr.Dataset(
        {
            "attention": (("layer", "example", "position"), attention),
            "importance": (("example", "position"), importance),
        },
        coords=coords,
    )
    found = held_out_layer(data, "pooled")
    first = np.isin(np.arange(60), np.random.default_rng([0, 7]).permutation(60)[:30])
    assert found.layer == 3
    assert found.n == 30
    assert found.r == pytest.approx(np.corrcoef(attention[3][~first].ravel(), importance[~first].ravel())[0, 1])
    assert 0 < found.low < found.r < found.high
    # of noise, what is told is not the largest of what was looked at
    noise = data.assign(attention=(("layer", "example", "position"), rng.random((5, 60, 4))))
    told = [held_out_layer(noise, "pooled", seed=seed) for seed in range(20)]
    assert abs(np.mean([one.r * np.sign(one.r) for one in told])) < 0.15
    for one, other, offset in ((1e-9, 1e-9, 0), (1, 1e3, 1e6)):  # neither unit nor origin changes what is told
        moved = data.assign(attention=data["attention"] * one, importance=data["importance"] * other + offset)
        np.testing.assert_allclose(held_out_layer(moved, "pooled"), found, rtol=1e-6)
    assert held_out_layer(data.isel(example=[0]), "pooled") is None
    assert held_out_layer(data.assign(importance=data["importance"] * 0 + 0.1), "pooled") is None
    assert held_out_layer(data.assign(importance=data["importance"] * 0), "pooled") is None


def test_sentences_of_a_correlation_say_null_where_the_interval_holds_zero():
    sure, null = HeldOut(1, 0.4, 0.2, 0.6, 100), HeldOut(1, 0.1, -0.1, 0.3, 100)
    assert sentence(sure, sure, "two_way")[0] == "two_way"
    name, values = sentence(sure, null, "two_way")
    assert name == "two_way_null"
    assert values["smallest"] == pytest.approx(0.277, abs=0.001)
    assert sentence(None, None, "pooled") == ("nothing", {})


def test_the_answer_is_written_where_its_tokens_first_differ():
    positions = ["q-1", "bot", "ct0", "eot", "a0", "a1", "a2"]
    token = np.array([[1, 1, 1, 1, 7, 8, n] for n in range(10)])
    run = xr.Dataset({"token": (("example", "position"), token)}, coords={"position": positions})
    assert writing_position(run) == "a1"
    token[0, 5] = 9  # one of ten is no other word
    assert writing_position(run) == "a1"
    token[:, 4] = range(10)
    assert writing_position(run) == "eot"
    assert writing_position(run.isel(position=slice(0, 4))) == "eot"
    run["token"][:] = -1
    assert writing_position(run) == "eot"


@pytest.mark.parametrize(("importance", "where", "message"), [
    ("answer_logprob", ("corruption=mean",), "of a re-entry.*answer_logprob is a column of the run"),
    ("corrupt:failure", ("corruption=mean", "corruption=zero"), "names a key twice"),
])  # fmt: skip
def test_conditions_that_would_choose_nothing_are_refused(importance, where, message):
    with pytest.raises(UsageError, match=message):
        importance_for(None, xr.Dataset(), CorrelationSettings(importance=importance, where=where))


def test_one_problem_has_no_interval_and_what_is_infinite_is_left_out():
    rng = np.random.default_rng(8)
    attention, importance = rng.random((20, 1, 6)), rng.normal(size=(20, 6))
    numbers = {"n_permutation": 5, "n_resample": 20}
    alone = pair(attention, importance, problem=("example", np.full(20, "p")))
    result = attention_importance(*alone, **numbers)
    assert result["pooled_r"].notnull().all()
    assert all(result[name].isnull().all() for name in result if str(name).endswith(("_low", "_high")))
    attention[3, 0, 2] = np.inf
    result = attention_importance(*pair(attention, importance), **numbers)
    without = attention_importance(*(side.drop_sel(example=3) for side in pair(attention, importance)), **numbers)
    assert result["n_example"] == 19
    xr.testing.assert_allclose(result, without)
