"""Features taken out of the model one at a time: a slow reference, any batch, known truth, bad requests."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from reentry_lake import story_lake
from slow_interventions import slowly

from analyze.sae.dictionary import SAESpec, activation_of, sae_codes, select_cells, train_sae
from extract.reenter import FeatureEffectSettings, feature_effects, open_target
from extract.reenter.features.command import plan, tables
from extract.reenter.features.firing import dictionary_of, homes_of, vectors_of
from schemas import MissingRunError, UsageError
from store import open_lake

MODELS = ("small-llama", "small-llama-decodable")
SETTINGS = FeatureEffectSettings(draws=1, seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = story_lake(tmp_path_factory.mktemp("features"), MODELS, {2: 20, 3: 20})
    lake = open_lake(path)
    for model in MODELS:
        sae = train_sae(
            select_cells(lake[f"{model}/test"], layers=[0]), SAESpec(features=48, epochs=40, batch_size=64, k=4)
        )
        lake.write_result("sae", sae, runs=[f"{model}/test"], spec={"scope": "pool"})
    few = SAESpec(features=24, epochs=30, batch_size=64, k=3)
    runs = {model: lake[f"{model}/test"] for model in MODELS}
    chosen = select_cells(runs["small-llama"], layers=[0], positions=["ct1", "ct2"])
    lake.write_result("sae", train_sae(chosen, few, scope="cell"), runs=["small-llama/test"], spec={"scope": "cell"})
    both = {model: select_cells(run, positions=["ct1", "ct3"]) for model, run in runs.items()}
    joint = train_sae(both, few, scope="crosscoder")
    lake.write_result("sae", joint, runs=[f"{model}/test" for model in MODELS], spec={"scope": "crosscoder"})
    return path


def effects(
    place: Path, model: str, settings: FeatureEffectSettings, batch_rows: int | None = None, limit: int | None = None
) -> xr.Dataset:
    target = open_target(open_lake(place), f"{model}/test", limit=limit)
    target.batch_rows = batch_rows
    return feature_effects(target, settings)


@pytest.mark.parametrize("scope", ["pool", "cell", "crosscoder"])
def test_a_feature_taken_out_is_what_hooks_on_the_model_do(place: Path, scope: str) -> None:
    lake = open_lake(place)
    run = lake["small-llama/test"]
    name = next(each.name for each in lake.results("sae") if each.spec["scope"] == scope and
                "small-llama/test" in each.runs)  # fmt: skip
    settings = replace(SETTINGS, sae=name)
    found = effects(place, "small-llama", settings, limit=15)
    rare = found.isel(feature=np.flatnonzero((found["n"] <= 3) & (found["kl"] > 1e-3))[:2])
    assert rare.sizes["feature"] == 2
    target = open_target(lake, "small-llama/test")
    homes = homes_of(target, dictionary_of(lake, "small-llama/test", name), settings)
    number = np.concatenate([home.number for home in homes]).tolist()
    vectors = vectors_of(homes, SETTINGS.draws, SETTINGS.seed)
    sae = lake.open_result(name)
    models = MODELS if scope == "crosscoder" else MODELS[:1]
    states = activation_of(sae, {f"{model}/test": lake[f"{model}/test"] for model in models})
    codes = sae_codes(sae, states).load()
    for index in range(2):
        one = rare.isel(feature=index)
        feature, position = int(one["feature"]), str(one["position"].item())
        layer, own = int(one["layer"]), feature % sae.sizes["feature"]
        here = codes.sel(position=position, feature=own).isel(example=slice(15))
        here = here.sel(layer=layer) if "layer" in here.dims else here
        examples = here["example"].values[here.values != 0]
        assert len(examples) == int(one["n"])
        length = np.linalg.norm(vectors[0, number.index(feature)])
        assert float(one["moved"]) == pytest.approx(float(length * abs(here).sum()) / len(examples), rel=1e-4)
        kl, logprob = np.zeros((2, 2, len(examples)))
        for row, example in enumerate(examples):
            prompt = target.reasoner.encode(str(run["question"].sel(example=example).item()))
            gold = str(run["gold_answer"].sel(example=example).item())
            at = len(prompt) - 1 + target.reasoner.places.offset(position)
            base = slowly(target.reasoner, prompt, [], [gold, "99"], n_new=1)
            for draw in range(2):
                part = torch.from_numpy(float(here.sel(example=example)) * vectors[draw, number.index(feature)])
                changes = [("hidden_state", layer, at, lambda state, part=part: state - part)]
                changed = slowly(target.reasoner, prompt, changes, [gold, "99"], n_new=1)
                difference = base["distribution"] - changed["distribution"]
                kl[draw, row] = float((base["distribution"].exp() * difference).sum())
                logprob[draw, row] = changed["answer_logprob"][0] - base["answer_logprob"][0]
        np.testing.assert_allclose(float(one["kl"]), kl[0].mean(), atol=1e-4)
        np.testing.assert_allclose(float(one["kl_random"]), kl[1].mean(), atol=1e-4)
        np.testing.assert_allclose(float(one["logprob_change"]), logprob[0].mean(), atol=1e-3)


def test_features_matter_where_thoughts_are_used_and_no_batch_changes_that(place: Path) -> None:
    used = effects(place, "small-llama", SETTINGS)
    few = [effects(place, "small-llama", SETTINGS, batch_rows=rows, limit=9) for rows in (20, None)]
    xr.testing.assert_allclose(*few, atol=1e-4)
    spared = effects(place, "small-llama-decodable", SETTINGS)
    assert used.attrs["self_kl"] < 1e-5
    telling = (used["p_kl_holm"] < 0.05) & (used["kl_more"] > 0)
    assert telling.sum() >= 5
    assert float(used["kl_more"].max()) > 0.5
    # The twin reads the same off its thoughts and answers from the question: what it thinks changes nothing.
    assert float(spared["kl"].sel(feature=spared["position"] != "bot").max()) < 0.05 * float(used["kl"].max())
    printed = tables(used, {})
    assert f"of {used.sizes['feature']} features that fire" in printed[0].title
    assert printed[1].startswith(f"{int(telling.sum())} features move the answer")
    text, figures = plan(open_target(open_lake(place), "small-llama/test"), SETTINGS)
    assert figures["n_condition"] == used.attrs["n_condition"]
    assert figures["n_feature"] == used.sizes["feature"]
    assert f"{figures['n_row']:,} rows" in text


def test_features_and_places_that_are_not_there_are_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    chosen = effects(place, "small-llama", FeatureEffectSettings(features=(3, 7), positions=("ct1", "ct2"), draws=1))
    assert set(chosen["feature"].values) <= {3, 7}
    assert set(chosen["position"].values) <= {"ct1", "ct2"}
    for settings, message in (
        ({"features": (99,)}, "has no feature 99; it has 0 to 47"),
        ({"positions": ("ct9",)}, "was not learned at position ct9; it was at bot, ct0"),
        ({"layers": (1,)}, "was not learned at layer 1; it was at 0"),
        ({"sae": "results/sae/x"}, "--sae results/sae/x is no dictionary of small-llama/test; there are results/sae/"),
    ):
        with pytest.raises(UsageError, match=message):
            effects(place, "small-llama", FeatureEffectSettings(**settings))
    shutil.copytree(place, tmp_path / "b.lake", ignore=shutil.ignore_patterns("results"))
    with pytest.raises(MissingRunError, match="no result of kind 'sae'.*lake analyze sae"):
        effects(tmp_path / "b.lake", "small-llama", SETTINGS)
