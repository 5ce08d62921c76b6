"""Which rows a dictionary learns from: each once, bounded in memory, of training problems, and none that is missing."""

import dask
import numpy as np
import pytest
import xarray as xr
from sae_states import CELLS, SMALL, small_run

from analyze.sae.batches import Batches, Rows
from analyze.sae.dictionary import SAESpec, sae_codes, sae_metrics, split_by_group, train_sae


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return small_run()


def test_split_keeps_groups_together():
    group = np.repeat(np.arange(200), 2)
    split = split_by_group(group, (0.7, 0.1, 0.2), seed=3)
    assert all(len(set(split[group == g])) == 1 for g in range(200))
    assert {s: int((split == s).sum()) for s in set(split)} == {"train": 280, "validation": 40, "test": 80}
    assert (split != split_by_group(group, (0.7, 0.1, 0.2), seed=4)).any()


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("buffer_rows", [30, 100, 10_000])
def test_an_epoch_gives_each_kept_row_once_in_another_order(run, pooled, buffer_rows):
    state = run["hidden_state"].sel(CELLS).chunk(example=16, layer=1, position=1)
    rows = Rows({"": state}, pooled=pooled)
    keep = np.arange(90) % 3 > 0
    width = 6 if pooled else 36
    batches = Batches(rows, keep, 10, 4 * width * buffer_rows, np.random.default_rng(0))
    expected = state.values[keep].reshape(-1, width)
    for _ in range(2):
        found = np.concatenate([x.reshape(-1, width) for x, _ in batches.epoch()])
        assert len(found) == len(expected)
        assert (found != expected).any()
        np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(expected, axis=0))


def test_reading_visits_a_bounded_part_at_a_time(run):
    """A buffer of 80 rows is never filled from much more than 80 rows, and a chunk is read once an epoch."""
    taken: list[int] = []

    def noted(block: np.ndarray) -> np.ndarray:
        taken.append(len(block))
        return block

    state = run["hidden_state"].sel(CELLS).chunk(example=8, layer=1, position=1)
    state = state.copy(data=state.data.map_blocks(noted, dtype="float32", meta=np.empty((0, 0, 0, 0), "float32")))
    taken.clear()
    batches = Batches(Rows({"": state}, pooled=True), np.ones(90, bool), 10, 4 * 6 * 80, np.random.default_rng(0))
    stream = batches.epoch()
    next(stream)
    assert sum(taken) <= 100
    list(stream)
    assert sum(taken) == 90 * 6


def test_chunks_of_few_examples_are_joined_and_each_is_read_once(run):
    """As chunks of drawn examples are: a matrix product of few rows costs as much as one of many."""
    state = run["hidden_state"].sel(CELLS).chunk(example=(7, 3, 5, 60, 9, 6), layer=1, position=-1)
    walked = list(Rows({"": state}, pooled=True).walk(np.ones(90, bool), max_rows=32))
    assert [block.example.stop for block, _, _ in walked] == [15, 15, 47, 47, 75, 75, 90, 90]
    for block, example, x in walked:
        assert example.tolist() == list(range(90))[block.example]
        np.testing.assert_array_equal(x, state.values[(block.example, *block.cell)].reshape(x.shape))


def test_statistics_come_from_training_rows_alone(run):
    """Changing test problems changes no weight."""
    spec = SAESpec(**SMALL)
    state = run["hidden_state"].sel(CELLS)
    sae = train_sae(state, spec)
    test = sae["example_split"] == "test"
    assert 0 < int(test.sum()) < 90
    other = train_sae(state.where(~test.drop_vars(set(test.coords) - {"example"}), 50.0), spec)
    np.testing.assert_array_equal(sae["encoder"], other["encoder"])
    np.testing.assert_array_equal(sae["decoder_bias"], other["decoder_bias"])
    sides = sae["example_split"].to_series().groupby(run["problem"].values).nunique()
    assert (sides == 1).all()


def test_missing_positions_are_no_rows(run):
    """The second answer token is absent from some examples."""
    state = run["hidden_state"].sel(position=["eot", "a1"])
    missing = np.isnan(state.isel(hidden=0)).sum("example")
    assert missing.sum() > 0
    for scope in ("pool", "cell"):
        sae = train_sae(state, SAESpec(**SMALL), scope=scope)
        assert np.isfinite(sae["train_loss"]).all()
        np.testing.assert_array_equal(sae["n_row"].sum("split").transpose(*missing.dims), 90 - missing)
        assert np.isfinite(sae["encoder"]).all()
        codes = sae_codes(sae, state)
        np.testing.assert_array_equal(np.isnan(codes.isel(feature=0)), np.isnan(state.isel(hidden=0)))


@pytest.mark.parametrize("scope", ["pool", "cell"])
def test_results_do_not_depend_on_chunks(run, scope):
    """Metrics and codes do not; training sees another order of the same rows."""
    state = run["hidden_state"].sel(CELLS)
    sae = train_sae(state, SAESpec(**SMALL), scope=scope)
    names = ["explained_variance", "l0", "frequency", "top_activation", "activation_count"]
    whole = sae_metrics(sae, state)[names]
    for chunks in ({"example": 7}, {"example": 32, "layer": 1, "position": 1}):
        xr.testing.assert_allclose(sae_metrics(sae, state.chunk(chunks))[names], whole, rtol=1e-4, atol=1e-6)
        with dask.config.set(scheduler=_refuse):
            lazy = sae_codes(sae, state.chunk(chunks))
        np.testing.assert_allclose(lazy.values, sae_codes(sae, state).values, atol=1e-5)


def _refuse(*_args, **_kwargs):
    raise AssertionError("computed something that should have stayed lazy")


def test_same_seed_gives_the_same_dictionary_and_progress_ends(run):
    calls: list[tuple[int, int]] = []
    state = run["hidden_state"].sel(CELLS).chunk(example=16, layer=1, position=1)
    first = train_sae(state, SAESpec(**SMALL), progress=lambda done, total: calls.append((done, total)))
    second = train_sae(state, SAESpec(**SMALL))
    xr.testing.assert_identical(first, second)
    assert calls[-1][0] == calls[-1][1]
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)


@pytest.mark.parametrize("scope", ["pool", "cell", "crosscoder"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_no_row(run, scope, bad):
    """The same dictionary as of data where the whole row is missing, and the row is counted."""
    state = run["hidden_state"].sel(CELLS)
    broken, missing = state.copy(deep=True), state.copy(deep=True)
    broken[3, 1, 2, 0] = bad
    missing[3, 1, 2, :] = np.nan
    found, expected = (
        train_sae({"a": each} if scope == "crosscoder" else each, SAESpec(**SMALL), scope=scope)
        for each in (broken, missing)
    )
    assert (int(found["n_infinite"]), int(expected["n_infinite"])) == (1, 0)
    xr.testing.assert_identical(found.drop_vars("n_infinite"), expected.drop_vars("n_infinite"))
    assert np.isfinite(found["encoder"]).all()
    if scope != "crosscoder":
        xr.testing.assert_identical(sae_codes(found, broken), sae_codes(found, missing))
