"""Heads and thoughts from run to run: scipy by hand, planted heads, shuffles, models of other shapes, bad input."""

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from scipy.stats import spearmanr
from synthetic import make_model, make_run, write_run

from analyze.context import Context
from analyze.heads.scores import head_scores
from analyze.lens.logit import logit_lens
from analyze.page import write_section
from analyze.stability.between import SCORES, _moved, _overlap, _share_alike, _sure_and_possible, stability
from analyze.stability.section import SECTIONS
from schemas import UsageError
from store import open_lake

MODEL = make_model()
FEW = {"resamples": 30, "shuffles": 99}


def planted(seed: int, heads: int, name: str, **more) -> xr.Dataset:
    """A run whose heads have patterns of their own, drawn by the seed ``heads``, under noise of each example."""
    run = make_run(name=name, n_example=40, n_layer=3, n_head=6, seed=seed, model=MODEL, **more)
    attention = run["attention"].transpose("layer", "head", "position", "key_position", "example")
    pattern = np.random.default_rng(heads).normal(size=attention.shape[:-1])
    raised = attention**0.3 * np.exp(3 * pattern)[..., None]
    total = raised.sum("key_position")
    return run.assign(
        attention=(raised / total.where(total > 0, 1)).transpose(*run["attention"].dims),
        question=("example", np.array([f"{name} {index}" for index in range(40)], dtype=object)),
    )


def test_scores_types_and_hubs_are_compared_as_scipy_does_and_thoughts_by_a_slow_loop() -> None:
    runs = {"a/x": planted(0, 0, "a/x"), "b/x": planted(1, 1, "b/x")}
    found = stability(runs, lambda _: MODEL, **FEW)
    scores = [head_scores(run["attention"]) for run in runs.values()]
    pair = found.sel(run="a/x", other="b/x")
    for name in SCORES:
        slow = spearmanr(*(one[name].values.ravel() for one in scores)).statistic
        assert float(pair["correlation"].sel(score=name)) == pytest.approx(slow)
    for key, name in (("same_type", "type"), ("same_hub", "hub_position")):
        assert float(pair[key]) == float((scores[0][name] == scores[1][name]).mean())
    shares = []
    for run in runs.values():
        lens = logit_lens(run.isel(layer=[-1]), MODEL, top=1).isel(layer=0)
        share = np.zeros((7, 5))
        for place, position in enumerate(["bot", *(f"ct{i}" for i in range(6))]):
            for example in range(40):
                one = lens.sel(position=position).isel(example=example)
                hit = np.flatnonzero(one["result_rank"].values == 1)
                share[place, hit[0] if len(hit) else 3 if one["is_number"] == 1 else 4] += 1 / 40
        shares.append(share)
    assert float(pair["overlap"]) == pytest.approx(np.minimum(*shares).sum() / 7)
    np.testing.assert_allclose(found["role_share"].sel(run="b/x"), shares[1])
    np.testing.assert_array_equal(found["overlap"], found["overlap"].values.T)


def test_planted_heads_are_found_again_and_shuffled_ones_are_not() -> None:
    runs = {"a/x": planted(0, 0, "a/x"), "a/y": planted(1, 0, "a/y"), "b/x": planted(2, 5, "b/x")}
    found = stability(runs, lambda _: MODEL, resamples=30, shuffles=1999)
    composite = found.sel(score="composite")
    same, apart = composite.sel(run="a/x", other="a/y"), composite.sel(run="a/x", other="b/x")
    assert float(same["correlation"]) > 0.9
    assert float(same["same_hub"]) > 0.8
    assert float(same["correlation_p_corrected"]) < 0.05 < float(apart["correlation_p_corrected"])
    assert float(same["correlation_low"]) <= float(same["correlation"]) <= float(same["correlation_high"])
    assert abs(float(same["correlation_null"])) < 0.05
    assert float(composite["correlation"].sel(run="b/x", other="b/x")) > 0.8  # halves of its problems


def test_chunks_change_nothing_and_other_shapes_compare_by_thoughts_alone() -> None:
    runs = {"a/x": planted(0, 0, "a/x"), "b/x": planted(1, 1, "b/x")}
    models = dict.fromkeys(runs, MODEL)
    found = stability(runs, models.__getitem__, **FEW)
    chunked = {name: run.chunk(example=7, layer=1, head=2) for name, run in runs.items()}
    xr.testing.assert_allclose(stability(chunked, models.__getitem__, **FEW), found)
    wide = make_run(name="w/x", n_example=40, n_layer=2, n_head=3, model=MODEL, seed=3)
    mixed = stability(runs | {"w/x": wide}, (models | {"w/x": MODEL}).__getitem__, **FEW)
    pair = mixed.sel(run="a/x", other="w/x")
    assert np.isnan(pair["same_hub"])
    assert pair["correlation"].isnull().all()
    assert 0 < float(pair["overlap"]) <= 1
    with pytest.raises(UsageError, match="halves of a run's problems, and there is one problem"):
        stability({"a/x": runs["a/x"].isel(example=[0])}, models.__getitem__, **FEW)


def test_the_command_tells_pairs_and_the_page_shows_them(tmp_path, capsys) -> None:
    place = tmp_path / "a.lake"
    names = [write_run(place, planted(seed, 0, name), MODEL) for seed, name in enumerate(("a/x", "b/x"))]
    few = ["--resamples", "9", "--shuffles", "19"]
    assert run_lake("analyze", "stability", place, *names, *few) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "what most examples read out as at layer 2" in out
    page = write_section(SECTIONS[0], Context(open_lake(place), names))
    assert page is not None
    assert [label for label, _ in page.lines] == ["a/x and b/x"]
    assert run_lake("analyze", "stability", place, *names, "--layers", "9") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_thought_without_states_reads_as_nothing() -> None:
    runs = {"a/x": planted(0, 0, "a/x"), "b/x": planted(1, 1, "b/x")}
    runs["b/x"]["hidden_state"].loc[{"position": "ct2"}] = np.inf
    found = stability(runs, lambda _: MODEL, **FEW)
    one = found.sel(run="b/x", position="ct2")
    assert one["role"].item() == ""
    assert one["role_share"].isnull().all()
    assert found["overlap"].sel(run="a/x", other="b/x").isnull()
    roles = found["role"].sel(position=[f"ct{i}" for i in (0, 1, 3, 4, 5)] + ["bot"])
    assert float(found["same_role"].sel(run="a/x", other="b/x")) == (roles[0] == roles[1]).mean()


def profiles(rng: np.random.Generator, law: np.ndarray, n: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of what n problems read as at each of some positions, and those of resamples of the problems."""
    read = np.array([[rng.choice(len(row), p=row) for row in law] for _ in range(n)])
    hot = read[..., None] == np.arange(law.shape[1])
    draws = rng.poisson(1.0, (resamples, n))
    return hot.mean(0), np.tensordot(draws, hot, axes=(1, 0)) / draws.sum(1)[:, None, None]


def test_what_noise_costs_is_made_good() -> None:
    rng, law = np.random.default_rng(0), np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.3, 0.5]])
    held = centred = 0
    for _ in range(150):
        (one, left), (other, right) = (profiles(rng, law, 40, 200) for _ in range(2))
        estimate, draws = _overlap(one, other), _overlap(left, right)
        low, high = _moved(estimate, left, right, _overlap, 40)
        held += low <= 1 <= high
        centred += estimate + np.quantile(draws - draws.mean(), 0.975) >= 1
        assert low <= estimate <= high
    assert centred < 0.2 * 150 < 0.9 * 150 < held
    mirrored = _moved(-estimate, left, right, lambda *sides: -_overlap(*sides), 40)  # noise makes it smaller in size
    np.testing.assert_allclose(mirrored, (-high, -low))
    # what noise can not make less alike, its resamples leave as it is: the interval is that of the resamples
    left, right = rng.normal(size=(2, 4000, 2))
    plain = _moved(np.zeros(()), left, right, lambda one, other: (one + other).mean(-1), 1000)
    np.testing.assert_allclose(plain, [-1.96, 1.96], atol=0.3)


def test_heads_that_lie_between_two_types_are_not_sure_and_possible() -> None:
    left = np.array([["a"] * 100, ["a"] * 99 + ["b"], ["a"] * 50 + ["b"] * 50, ["b"] * 100], dtype=object).T
    right = np.full_like(left, "a")
    assert _sure_and_possible(np.array(0.5), left, right, _share_alike, 1000) == (0.5, 0.75)
    assert _sure_and_possible(np.array(0.9), left, right, _share_alike, 1000) == (0.5, 0.9)
    assert np.isnan(_sure_and_possible(np.array(0.5), left, right, _share_alike, 4)).all()
