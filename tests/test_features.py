"""Tables of all features against each feature by itself; features that two models share: all, none, and by chance."""

import json

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import roc_auc_score
from synthetic import make_model, make_run, normalise, write_run

from analyze.context import Context
from analyze.explorer.features import feature_lists
from analyze.features import effects_section, shared_section
from analyze.features import section as features_section
from analyze.features.command import EFFECT
from analyze.features.dashboard import write_dashboards
from analyze.features.pages import feature_pages
from analyze.features.probe import feature_probes, frequent_values
from analyze.features.shared import correlation, shared_features
from analyze.page import write_section
from analyze.sae.dictionary import SAESpec, sae_codes, select_cells, train_sae
from store import Lake, open_lake

SPEC = SAESpec(features=12, epochs=20, batch_size=64, k=3)
FEW = {"resamples": 20, "permutations": 39}


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_pages_are_what_one_feature_alone_gives(norm: str) -> None:
    model = make_model(final_norm=norm)
    run = make_run(n_example=30, model=model)
    sae = train_sae(select_cells(run), SPEC, n_top=4)
    pages = feature_pages(sae, run, model, tokens=5)
    codes = sae_codes(sae, select_cells(run))
    strings = model["token_string"].values
    for feature in (0, 7):
        one = pages.isel(feature=feature)
        place = {name: one[f"top_{name}"].values[0] for name in ("example", "layer", "position")}
        scale = sae["input_scale"].sel(layer=codes["layer"], position=codes["position"])
        largest = (codes.isel(feature=feature) / scale).sel(place)
        assert float(largest) == pytest.approx(float((codes.isel(feature=feature) / scale).max()), rel=1e-5)
        assert one["top_question"].values[0] == f"question {place['example']}"
        state = run["hidden_state"].sel(place).values
        assert one["top_reading"].values[0] == strings[(model["unembedding"].values @ normalise(state, model)).argmax()]
        direction = sae["decoder"].values[feature].astype("float64")
        direction = direction - direction.mean() * (norm == "layer_norm")
        logits = model["unembedding"].values @ (direction * model["final_norm_weight"].values)
        assert one["writes"].sel(sign="+").values.tolist() == strings[np.argsort(-logits)[:5]].tolist()
        assert one["writes"].sel(sign="-").values[0] == strings[logits.argmin()]
        assert float(one["written"].sel(sign="+", token=0)) == pytest.approx(
            (logits.max() - logits.mean()) / logits.std(), rel=1e-4
        )


def test_a_feature_tells_what_was_planted_and_nothing_where_nothing_was() -> None:
    model = make_model()
    plain = make_run(n_example=260, n_layer=2, model=model)
    has = plain["operation"].isel(step=0).values == "*"
    states = plain["hidden_state"].copy()
    states.loc[{"layer": 1, "position": "ct2"}] += 6 * has[:, None] * np.eye(8)[0]
    planted = plain.assign(hidden_state=states, intermediate_result=plain["intermediate_result"] * np.nan)
    nothing = planted.assign(hidden_state=plain["hidden_state"])
    for run, told in ((planted, True), (nothing, False)):
        sae = train_sae(select_cells(run), SPEC)
        found = feature_probes(sae, run, permutations=99)
        assert found is not None
        best = found.isel(feature=int(found["area_p"].values.argmin()))
        assert (float(best["area_p"]) < 0.05) == told
        rows = np.flatnonzero((sae["example_split"] == "test").values)
        told_text = str(best["tells"].item())
        step, sign = told_text.removeprefix("not ").split(" ")[1], told_text[-1]
        operators = run["operation"].values[rows, int(step)]
        cell = sae["frequency"].sel(feature=best["feature"])
        place = {dim: label.item() for dim, label in cell.isel(cell.argmax(...)).coords.items() if dim in cell.dims}
        code = sae_codes(sae, select_cells(run)).sel(place).sel(feature=best["feature"]).values[rows]
        there = operators != ""
        area = roc_auc_score(operators[there] == sign, code[there])
        assert float(best["area"]) == pytest.approx(1 - area if told_text.startswith("not") else area)
        assert best["area_low"] <= best["area"] <= best["area_high"]
        if told:
            assert (step, sign, place) == ("0", "*", {"layer": 1, "position": "ct2"})
            again = feature_probes(sae, run.chunk(example=9, position=2), permutations=99)
            xr.testing.assert_allclose(again, found)
    assert feature_probes(sae, run.drop_vars(["operation", "intermediate_result"])) is None


def test_problems_without_a_finite_state_say_nothing_of_a_feature() -> None:
    run = make_run(n_example=260, n_layer=2, model=make_model())
    sae = train_sae(select_cells(run), SPEC)
    states = run["hidden_state"].copy()
    states[30:90], states[90:120] = np.nan, np.inf
    found = feature_probes(sae, run.assign(hidden_state=states), permutations=19)
    rest = np.r_[0:30, 120:260]
    alone = feature_probes(sae, run.isel(example=rest), permutations=19)
    every = feature_probes(sae, run, permutations=19)
    assert isinstance(found, xr.Dataset)
    assert isinstance(alone, xr.Dataset)
    assert isinstance(every, xr.Dataset)
    xr.testing.assert_allclose(found, alone)
    assert 0 < found["area_n"].max() < every["area_n"].max()


FIELDS = (
    "feature_index neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices"
    " correlated_neurons_l1 correlated_neurons_pearson correlated_features_indices correlated_features_l1"
    " correlated_features_pearson neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_values"
    " freq_hist_data_bar_heights logits_hist_data_bar_heights logits_hist_data_bar_values n_prompts_total"
    " n_tokens_in_prompt dataset activations decoder_weights_dist vector"
)
"""Of NeuronpediaDashboardFeature in sae-dashboard 0.8.0, which refuses any other."""


def test_dashboards_have_the_fields_of_their_reader_and_what_every_code_says(tmp_path) -> None:
    model = make_model()
    run = make_run(n_example=150, n_layer=2, model=model)  # more than a block of examples
    sae = train_sae(select_cells(run), SPEC, n_top=3)
    folders = write_dashboards(sae, run, model, tmp_path)
    assert [folder.name for folder in folders] == ["0-hidden-state-12", "1-hidden-state-12"]
    batch = json.loads((folders[1] / "batch-0.json").read_text())
    assert (batch.pop("model_id"), batch.pop("layer"), batch.pop("sae_set")) == ("made-up", 1, "hidden-state-12")
    assert set(batch) == {"sae_id_suffix", "features"}
    codes = sae_codes(sae, select_cells(run)).sel(layer=1)
    for feature in batch["features"]:
        assert set(feature) == set(FIELDS.split())
        own = codes.sel(feature=feature["feature_index"]).transpose("example", "position").values
        assert feature["frac_nonzero"] == pytest.approx((own > 0).mean())
        count, edges = np.histogram(own[own > 0], bins=40)
        assert sum(feature["freq_hist_data_bar_heights"]) == count.sum()
        assert np.abs(np.array(feature["freq_hist_data_bar_heights"]) - count).sum() <= 2  # at the edge of a bar
        np.testing.assert_allclose(feature["freq_hist_data_bar_values"], (edges[1:] + edges[:-1]) / 2, atol=1e-3)
        rows = np.argsort(-own.max(1), kind="stable")[: len(feature["activations"])]
        for row, text in zip(rows, feature["activations"], strict=True):
            assert text["tokens"] == ["question", f" {row}", " bot", *(f" ct{index}" for index in range(6))]
            np.testing.assert_allclose(text["values"], [0, 0, *own[row]], atol=1e-4)
            assert text["qualifying_token_index"] == 2 + own[row].argmax()
    assert len(batch["features"]) == 12 - len(
        json.loads((folders[1] / "skipped_indexes.json").read_text())["skipped_indexes"]
    )
    for variable, name in (("final_state", "2-final-state-12"), ("latent_embedding", "0-latent-embedding-12")):
        other = train_sae(select_cells(run, variable=variable), SPEC, n_top=3)
        assert [folder.name for folder in write_dashboards(other, run, model, tmp_path)] == [name]


def test_one_model_twice_shares_its_features_and_two_that_have_nothing_in_common_share_none() -> None:
    run, other = make_run(n_example=120, n_layer=1), make_run(n_example=120, n_layer=1, seed=5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype("float32")
    state = run["hidden_state"]
    twin = run.assign(hidden_state=(state.dims, 3 * state.values @ turn))
    for second, alike in ((twin, True), (other, False)):
        runs = {"one/p": run, "two/p": second}
        crosscoder = train_sae(
            {name.partition("/")[0]: select_cells(data) for name, data in runs.items()}, SPEC, scope="crosscoder"
        )
        found = shared_features(crosscoder, runs, **FEW)
        np.testing.assert_allclose(found["share"].sum("model"), 1, rtol=1e-5)
        assert float(found["n_shared_null"]) < 0.5
        assert found["n_shared_low"] <= found["n_shared"] <= found["n_shared_high"]
        if alike:
            assert int(found["n_shared"]) == int(found["n_alive"])
            assert float(found["agreement"].min()) > 0.75
        else:
            assert int(found["n_shared"]) <= 1  # of twenty such pairs one counts one, as the threshold is 95%
            assert abs(float(found["agreement"].mean())) < 0.1
        chunked = {name: data.chunk(example=7, position=1) for name, data in runs.items()}
        xr.testing.assert_allclose(shared_features(crosscoder, chunked, **FEW), found)


def test_the_command_and_its_sections(tmp_path, call) -> None:
    place = tmp_path / "a.lake"
    names = []
    for seed, name in enumerate(("one", "two")):
        model = make_model(seed=seed)
        names.append(write_run(place, make_run(name=f"{name}/problems", n_example=60, seed=seed, model=model), model))
    lake = open_lake(place)

    code, out, err = call("analyze", "features", place, names[0])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has no result of kind 'sae'" in err
    states = {name: select_cells(lake[name]) for name in names}
    for name in names:
        lake.write_result("sae", train_sae(states[name], SPEC, n_top=3), runs=[name], spec={"scope": "pool"})
    joint = train_sae(
        {name.partition("/")[0]: state for name, state in states.items()}, SPEC, scope="crosscoder", n_top=3
    )
    lake.write_result("sae", joint, runs=names, spec={"scope": "crosscoder"})
    few = ("--resamples", 5, "--permutations", 5)
    code, out, err = call("analyze", "features", place, *names, *few)
    assert (code, err) == (0, "")
    assert "the 12 of 12 features that fire most often" in out
    assert "features of the crosscoder, 12 test problems" in out
    code, out, err = call("analyze", "features", place, *names, *few, "--sae", "results/sae/one.probs")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no dictionary of one/problems, two/problems; there are results/sae/" in err
    crosscoder = next(one.name for one in lake.results("sae") if len(one.runs) == 2)
    code, out, err = call("analyze", "features", place, names[0], *few, "--sae", crosscoder)
    assert (code, err) == (2, f"lake: --sae {crosscoder} reads {', '.join(names)}; name all of these runs\n")
    taken_out(lake, names[0])
    code, out, err = call("analyze", "features", place, names[0], *few)
    assert (code, err) == (0, "")
    assert "features tell, and do to the answer" in out
    context = Context(lake, names)
    explored = feature_lists(context, names[0], details=True)[0]["pages"]
    assert explored["3"]["does"] == {
        "where": [1, "ct2"],
        "kl": 0.5,
        "kl_random": 0.1,
        "p_kl_holm": 0.01,
        "broken": None,
        "n_right": 0.0,
    }
    for section in (*features_section.SECTIONS, *effects_section.SECTIONS, *shared_section.SECTIONS):
        page = write_section(section, context)
        assert page is not None
        assert page.headline
        assert (
            page.tables[0].frame.shape[0] == {"features": 24, "feature-effects": 12, "shared-features": 1}[section.slug]
        )
        assert page.lines
        assert page.illustrations


def test_each_cell_s_and_a_crosscoder_s_features_have_pages_of_their_own_numbers() -> None:
    model = make_model()
    runs = {name: make_run(n_example=40, n_layer=2, seed=seed, model=model) for seed, name in enumerate(("a/p", "b/p"))}
    runs = {name: run.assign_attrs(run=name) for name, run in runs.items()}
    run, strings = runs["a/p"], model["token_string"].values
    states = select_cells(run, positions=["ct1", "ct4"])
    grid = train_sae(states, SPEC, scope="cell", n_top=2)
    pages = feature_pages(grid, run, model, tokens=2)
    assert pages.sizes["feature"] == 4 * SPEC.features
    for number, (layer, position) in enumerate([(0, "ct1"), (0, "ct4"), (1, "ct1"), (1, "ct4")]):
        cell = {"layer": layer, "position": position}
        own = slice(number * SPEC.features, (number + 1) * SPEC.features)
        np.testing.assert_array_equal(pages["frequency"].isel(feature=own).sel(cell), grid["frequency"].sel(cell))
        alone = grid.sel(cell)
        direction = alone["decoder"].values[3] - alone["decoder"].values[3].mean()
        logits = model["unembedding"].values @ (direction * model["final_norm_weight"].values)
        assert pages["writes"].sel(sign="+", token=0).values[own][3] == strings[logits.argmax()]
        top = int(grid["top_example"].sel(cell).values[3, 0])
        state = run["hidden_state"].sel(cell).sel(example=top).values
        expected = strings[(model["unembedding"].values @ normalise(state, model)).argmax()] if top >= 0 else ""
        assert pages["top_reading"].values[own][3, 0] == expected
    assert float(pages["frequency"].isel(feature=slice(12)).sel(layer=1).max()) == 0
    joint = train_sae(
        {name.partition("/")[0]: select_cells(each) for name, each in runs.items()}, SPEC, scope="crosscoder", n_top=2
    )
    pages = feature_pages(joint, run, model, tokens=2)
    share = joint["source_share"].sel(source=["a/0", "a/1"]).values
    np.testing.assert_allclose(pages["share"], share.sum(0), rtol=1e-6)
    home = share.argmax(0)
    direction = joint["decoder"].sel(source=f"a/{home[5]}").values[5]
    logits = model["unembedding"].values @ ((direction - direction.mean()) * model["final_norm_weight"].values)
    assert pages["writes"].sel(sign="+", token=0).values[5] == strings[logits.argmax()]
    probes = feature_probes(grid, run, permutations=5), feature_probes(joint, *runs.values(), permutations=5)
    sizes = [None if found is None else found.sizes["feature"] for found in probes]
    assert sizes in ([48, 12], [None, None])  # None: no value is frequent enough


def taken_out(lake: Lake, run: str) -> None:
    """Store made-up effects of the features of a run's dictionary, as lake reenter features does."""
    sae = lake.result("sae", run, scope="pool")
    columns = dict.fromkeys([*EFFECT, "p_kl_holm", "p_broken_holm", "n", "n_problem", "n_right"], np.zeros(12)) | {
        "kl": np.full(12, 0.5), "kl_random": np.full(12, 0.1), "kl_more": np.full(12, 0.4),
        "p_kl_holm": np.full(12, 0.01), "broken": np.full(12, np.nan),
    }  # fmt: skip
    made = xr.Dataset(
        {name: ("feature", column) for name, column in columns.items() if name not in ("kl_p", "broken_p")}
    )
    labels = {"layer": ("feature", np.full(12, 1)), "position": ("feature", np.full(12, "ct2", dtype=object))}
    made = made.assign_coords(feature=sae["feature"].values, **labels).assign_attrs(dictionary=sae.attrs["fingerprint"])
    lake.write_result("feature_effects", made, runs=[run], spec={})


def test_features_that_do_not_vary_share_nothing_and_large_results_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(40, 2, 3)) for _ in range(2))
    left[..., 0], right[..., 0] = 0.1, 0.7
    left[..., 1] = 0.1 + 1e-9 * left[..., 1]
    right[..., 2] = left[..., 2]
    np.testing.assert_allclose(correlation(left, right), [0, 0, 1], atol=1e-12)
    result = np.where(np.arange(40) % 2, 1234567.0, 1234568.0)[:, None]
    run = xr.Dataset({"intermediate_result": (("example", "step"), result)})
    ((chosen, _),) = frequent_values(run, np.arange(20), np.arange(20, 40))
    assert chosen.names == ["step 0 = 1234567", "step 0 = 1234568"]
