"""Where answer and results can be read: a slow oracle, closed forms, laziness."""

import numpy as np
import pytest
import xarray as xr
from synthetic import make_model, make_run, no_compute, normalise

from analyze.depth.ranks import depth_summary, readout_depth, settled
from schemas import SchemaError


def test_ranks_agree_with_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.lens.readout.VOCABULARY_BLOCK", 7)
    monkeypatch.setattr("analyze.depth.ranks.STATES", 5)
    model = make_model()
    run = make_run(model=model)
    depth = readout_depth(run, model)
    assert depth["position"].values.tolist() == ["bot", *(f"ct{index}" for index in range(6)), "eot"]
    strings = model["token_string"].values.tolist()
    for example, layer, position in np.ndindex(4, 3, 8):
        place = {"example": example, "layer": layer, "position": position}
        state = run["hidden_state"].sel(position=depth["position"]).isel(place).values
        logit = normalise(state, model) @ model["unembedding"].values.T
        chance = np.exp(logit) / np.exp(logit).sum()
        assert int(depth["top_token"].isel(place)) == int(logit.argmax())
        wanted = {"answer": run["gold_answer"].values[example]}
        wanted |= {f"result {step}": run["intermediate_result"].values[example, step] for step in range(3)}
        for what, value in wanted.items():
            part = depth.isel(place).sel(what=what)
            if isinstance(value, float) and np.isnan(value):
                assert np.isnan(part["rank"])
                continue
            token = strings.index(f" {float(value):g}")
            assert int(part["rank"]) == 1 + int((logit > logit[token]).sum())
            np.testing.assert_allclose(part["probability"], chance[token], rtol=1e-4)


def test_another_problems_results_are_ranked_beside() -> None:
    model = make_model()
    run = make_run(model=model)
    depth = readout_depth(run, model)
    moved = run.assign(intermediate_result=run["intermediate_result"].roll(example=-1))  # of the next problem
    own = readout_depth(moved, model)["rank"].sel(what=[f"result {step}" for step in range(3)])
    other = depth["rank"].sel(what=[f"other {step}" for step in range(3)])
    np.testing.assert_array_equal(own.values, other.values)


@pytest.mark.parametrize("size", [5, 1])  # of one example most numbers of steps are in no block
def test_laziness_and_chunks_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    run = make_run(model=model)
    whole = readout_depth(run, model)
    monkeypatch.setattr("analyze.lens.logit.ROW_BLOCK", 1)  # no blocks are joined
    with no_compute():
        lazy = readout_depth(run.chunk({"example": size, "layer": 1}), model)
    xr.testing.assert_allclose(lazy.compute(), whole)
    xr.testing.assert_allclose(depth_summary(lazy, n_resample=5), depth_summary(whole, n_resample=5))
    xr.testing.assert_allclose(readout_depth(run.sortby(["position", "layer"], ascending=False), model), whole)
    with pytest.raises(SchemaError, match="other weights than the model of"):
        readout_depth(run.assign_attrs(weights="others"), model.assign_attrs(fingerprint='{"weights": "own"}'))


def test_read_outs_settle_where_they_stop_changing() -> None:
    token = np.array([[[1, 2, 3, 3], [3, 2, 3, 3]], [[5, 5, 5, 5], [4, 5, 5, -1]]])  # (example, layer, position)
    rank = np.where(token == 3, 1.0, 2.0)[..., None]
    dims = ("example", "layer", "position")
    depth = xr.Dataset(
        {
            "top_token": (dims, token),
            "rank": ((*dims, "what"), rank),
            "probability": ((*dims, "what"), 1 / rank),
            "n_step": ("example", [2, 3]),
        },
        coords={"what": ["answer"], "layer": [0, 1], "position": ["bot", "ct0", "ct1", "eot"]},
    )
    when = settled(depth)
    np.testing.assert_array_equal(when["settled_position"], [[2, 2], [0, np.nan]])
    np.testing.assert_array_equal(when["settled_layer"], [[1, 0, 0, 0], [1, 0, 0, np.nan]])
    np.testing.assert_array_equal(when["answer_position"], [[2, 2], [np.nan, np.nan]])
    summary = depth_summary(depth, n_resample=10)
    assert summary["stratum"].values.tolist() == ["all", "2", "3"]
    np.testing.assert_allclose(summary["first_share"].sel(stratum="2", layer=1, what="answer"), [1, 0, 1, 1])
    np.testing.assert_allclose(summary["answer_found"].sel(stratum="all"), 0.5)
    depth["rank"][1, :, -1] = np.nan  # no state there: neither found nor not
    np.testing.assert_allclose(depth_summary(depth, n_resample=10)["answer_found"].sel(stratum="all"), 1)
    np.testing.assert_allclose(summary["log_rank"].sel(stratum="2", layer=0, what="answer"), np.log([2, 2, 1, 1]))


def test_a_read_out_of_another_model_is_refused() -> None:
    with pytest.raises(SchemaError, match="width"):
        readout_depth(make_run(), make_model(hidden=16))
