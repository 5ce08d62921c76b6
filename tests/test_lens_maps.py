"""Lenses by position: Jacobians, thoughts each with a map of its own, and readings beside edits."""

import numpy as np
import pytest
import xarray as xr
from lens_runs import planted_run
from synthetic import make_model, make_run

from analyze import fit_tuned_lens, logit_lens
from analyze.lens.edits import edit_agreement
from analyze.lens.jacobian import compare_lenses, jacobian_maps, with_fed
from analyze.lens.thoughts import thought_lenses
from schemas import UsageError
from schemas.statistics import split_problems


def planted_jacobians(run: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    """Jacobians of a run whose vectors fed are made of the state before by one matrix; forward ones at random."""
    positions = run["position"].values.tolist()
    mixing = rng.normal(size=(64, 64)).astype("float32")
    fed = run["latent_embedding"].values.copy()
    for index, latent in enumerate(run["latent"].values):
        fed[:, index] = run["final_state"].values[:, positions.index(latent) - 1] @ mixing.T
    run["latent_embedding"] = run["latent_embedding"].copy(data=fed)
    layers = [-1, *run["layer"].values.tolist()]
    shape = (len(layers), len(positions), 64, 64)
    origin = np.full(shape, np.nan, dtype="float32")
    origin[0] = mixing
    left = np.full(shape, np.nan)
    left[0] = np.cov(rng.normal(size=(64, 99)) / 100)
    return xr.Dataset(
        {
            "jacobian": (("target", "layer", "position", "to", "hidden"), rng.normal(size=(1, *shape))),
            "origin": (("layer", "position", "hidden", "before"), origin),
            "left_out": (("layer", "position", "hidden", "other"), left),
            "fit_example": ("fit", run["example"].values[:4]),
        },
        coords={"target": ["ct3"], "layer": layers, "position": positions},
        attrs={"run": run.attrs.get("run")},
    )


def test_jacobian_lens_reads_a_fed_vector_as_the_state_before_it():
    run, model = planted_run(120)
    jacobian = planted_jacobians(run, np.random.default_rng(0))
    result = compare_lenses(run, model, jacobian, positions=["ct0", "ct1", "ct2"])
    fed = result.sel(layer=-1, position="ct1")
    share = {name: float(fed["step_share"].sel(lens=name).isel(step=0)) for name in result["lens"].values}
    assert share["jacobian"] > 0.8
    assert max(share["logit"], share["tuned"], share["jacobian, rotated"]) < 0.3
    assert float(fed["step_reciprocal_rank"].sel(lens="jacobian").isel(step=0)) > 0.85
    # The problems that the Jacobians are a mean over are not read.
    assert 120 * 0.15 - 5 <= result.attrs["n_example"] <= 120 * 0.15 + 1
    with pytest.raises(UsageError, match="never computed; run lake reenter jacobian first"):
        compare_lenses(run, model)
    with pytest.raises(UsageError, match="lead to before, ct3, not to 'ct33'"):
        jacobian_maps(with_fed(run), jacobian, target="ct33")
    with pytest.raises(UsageError, match="do not say what their mean leaves out; lake reenter jacobian computes it"):
        jacobian_maps(with_fed(run), jacobian.drop_vars("left_out"))


def test_reading_back_is_the_best_linear_estimate():
    run, _ = planted_run(90)
    jacobian = planted_jacobians(run, np.random.default_rng(2))
    states = with_fed(run)
    maps = jacobian_maps(states, jacobian).sel(layer=-1, position="ct1")
    back, left = (jacobian[name].sel(layer=-1, position="ct1").values for name in ("origin", "left_out"))
    x = states["hidden_state"].sel(layer=-1, position="ct1").values.astype("float64")
    y = run["final_state"].sel(position="ct0").values.astype("float64")
    signal = np.cov(y.T)
    noise = float(maps["left_out"]) * left + float(maps["even"]) * np.trace(left) / 64 * np.eye(64)
    plain = (x - x.mean(0)) @ np.linalg.solve(back @ signal @ back.T + noise, back @ signal)
    wanted = plain * np.sqrt(((y - y.mean(0)) ** 2).mean() / (plain**2).mean()) + y.mean(0)
    np.testing.assert_allclose(x @ maps["weight"].values + maps["bias"].values, wanted, atol=2e-3)


def test_maps_by_position_are_products_by_hand():
    run, model = planted_run(6)
    jacobian = planted_jacobians(run, np.random.default_rng(1))
    states = with_fed(run)
    maps = jacobian_maps(states, jacobian, target="ct3")
    lens = logit_lens(states, model, positions=["ct1", "ct2"], tuned=maps)
    lazy = logit_lens(states.chunk(example=2, layer=1, position=1), model, positions=["ct1", "ct2"], tuned=maps)
    xr.testing.assert_allclose(lens, lazy.compute())
    for layer, position in ((-1, "ct1"), (1, "ct2")):
        x = states["hidden_state"].sel(layer=layer, position=position).values.astype("float64")
        matrix = jacobian["jacobian"].sel(target="ct3", layer=layer, position=position).values
        logit = (x - x.mean(0)) @ matrix.T @ model["unembedding"].values.T
        best = lens["top_token"].sel(layer=layer, position=position).isel(rank=0)
        assert best.values.tolist() == logit.argmax(1).tolist()
    # Nothing comes after ct3 but ct3 itself.
    late = logit_lens(states, model, positions=["ct4"], tuned=maps.reindex(position=["ct4"]))
    assert (late["top_token"] == -1).all()


def test_lenses_of_thoughts_read_their_own_best_and_sums_are_those_of_pooled_rows():
    rng = np.random.default_rng(6)
    run, model = planted_run(160)
    state = rng.normal(size=run["hidden_state"].shape).astype("float32")
    mixing = rng.normal(size=(2, 64, 64)) / 8
    final = run["final_state"].values.copy()
    for k, name in enumerate(run["position"].values):
        if str(name).startswith("ct"):
            final[:, k] = state[:, 1, k] @ mixing[int(str(name)[2:]) % 2]
    run = run.assign(hidden_state=run["hidden_state"].copy(data=state), final_state=run["final_state"].copy(data=final))
    found = thought_lenses(run, model)
    own, other = (found["kl"].sel(layer=1, position="ct1", fit=fit) for fit in ("ct1", "ct2"))
    assert float(own) < 0.05 < 1 < float(other)
    sides = [found["kl"].sel(layer=1, position="ct3", fit=fit).item() for fit in ("odd", "even", "all")]
    assert sides[0] < 0.05 < min(sides[1:])
    assert float(found["excess"].sel(layer=1, position="ct1", fit="ct1")) == 0
    whole = fit_tuned_lens(run, model, positions=[f"ct{k}" for k in range(6)])
    held = np.flatnonzero(split_problems(run["problem"].values, 0) == 2)
    x, y = (run[name].isel(example=held).sel(position="ct2").values for name in ("hidden_state", "final_state"))
    read = x[:, 1] @ whole["weight"].values[1] + whole["bias"].values[1]
    assert float(found["r2"].sel(layer=1, position="ct2", fit="all")) == pytest.approx(
        1 - ((y - read) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(), abs=1e-4
    )
    lazy = thought_lenses(run.chunk(example=7, layer=1, position=2), model)
    xr.testing.assert_allclose(lazy, found, rtol=1e-3, atol=1e-4)


def test_readings_and_edits_agree_as_counted_by_hand():
    named = np.array([1, 1, 1, 0, 0, -1], dtype="int8")
    hit = np.array([True, True, False, False, True, True])
    place = {"lens": ["one"], "layer": [-1], "position": ["ct1"], "step": [0]}
    comparison = xr.Dataset(
        {"reads_result": (("lens", "example", "layer", "position", "step"), named[None, :, None, None, None])},
        coords=place | {"example": np.arange(6)},
    )
    labels = {"site": "latent_embedding", "changed": "ct1", "step": 0, "method": "donor", "also": "", "control": "",
              "dose": 1.0, "layer": -1}  # fmt: skip
    edit = xr.Dataset(
        {"hit": (("condition", "example"), np.stack([hit, hit])), "wanted_answer": (("condition", "example"),
         np.ones((2, 7))[:, :6])},
        coords={"example": np.arange(6)} | {name: ("condition", [x, x]) for name, x in labels.items()}
        | {"dose": ("condition", [1.0, 2.0])},
    )  # fmt: skip
    one = edit_agreement(comparison, edit).isel(lens=0)
    assert one.sizes["edit"] == 1  # a dose of 2 is another edit
    told = {name: float(one[name][0]) for name in ("n", "read_share", "follow_share", "agreement", "chance")}
    assert told == pytest.approx({"n": 5, "read_share": 0.6, "follow_share": 0.6, "agreement": 0.6, "chance": 0.52})
    assert float(one["difference"][0]) == pytest.approx(2 / 3 - 1 / 2)


@pytest.mark.parametrize("unit", [1e-9, 1e5])
def test_a_tuned_lens_reads_states_of_any_unit_and_nothing_from_constants(unit):
    model = make_model(hidden=6)
    run = make_run(n_example=90, n_layer=2, hidden=6, model=model)
    tuned = fit_tuned_lens(run, model)
    scaled = fit_tuned_lens(run.assign(hidden_state=run["hidden_state"] * unit), model)
    np.testing.assert_allclose(scaled["weight"] * unit, tuned["weight"], rtol=1e-3, atol=1e-6)
    run["hidden_state"][:, 0, :, 2] = 25000.1  # a component that is the same everywhere, and a layer of them
    run["hidden_state"][:, 1] = 25000.1
    constant = fit_tuned_lens(run, model)
    np.testing.assert_array_equal(constant["weight"].isel(layer=0, hidden=2), 0)
    np.testing.assert_array_equal(constant["weight"].isel(layer=1), 0)


def test_a_layer_that_is_infinite_everywhere_has_no_lens():
    model = make_model()
    run = make_run(n_example=60, n_layer=2, model=model)
    run["hidden_state"][:, 0] = np.inf
    tuned, thoughts = fit_tuned_lens(run, model), thought_lenses(run, model)
    for name in ("weight", "kl", "r2"):
        assert tuned[name].isel(layer=0).isnull().all()
        assert tuned[name].isel(layer=1).notnull().all()
    assert thoughts[["kl", "agreement", "r2"]].isel(layer=0).sel(fit="ct1").isnull().to_array().all()
    run["hidden_state"].loc[{"layer": 1, "position": "ct2"}] = np.inf
    one = thought_lenses(run, model).sel(layer=1, fit="all")
    assert one["kl"].isnull().values.tolist() == [False, False, True, False, False, False]
