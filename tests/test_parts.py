"""What attention and MLP of each block add: captured, verified, put back, and added up to the read-out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from analyze import attribution_summary, logit_attribution, logits
from extract.reenter import SweepSettings, open_target, sweep_grid
from extract.run.extract import extract, prepare
from extract.run.recompute import recompute
from extract.small_models.problems import make_splits, write_problems
from schemas import RunSpec, SchemaError
from store import open_lake, verify

torch.set_num_threads(1)
MODELS = ("small-gpt2", "small-llama")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_problems(make_splits(5, {"test": {2: 6, 4: 6}})["test"], root / "test.jsonl")
    for model in MODELS:
        for name, capture in (("latent", "latent+parts"), ("full", "full+parts"), ("bare", "latent")):
            spec = RunSpec(capture=capture, dtype="float32", batch_size=5, max_new_tokens=8)  # type: ignore[arg-type]
            extract(prepare(model, f"{name}={root / 'test.jsonl'}", root / "a.lake", spec), root / "a.lake")
    return root / "a.lake"


@pytest.mark.parametrize("model", MODELS)
def test_blocks_add_up_and_the_lake_holds_what_the_model_says(lake: Path, model: str) -> None:
    opened = open_lake(lake)
    full, latent, bare = (opened[f"{model}/{name}"].load() for name in ("full", "latent", "bare"))
    states, added = full["hidden_state"], full["mlp_output"] + full["attention_output"]
    np.testing.assert_allclose(states.diff("layer"), added.sel(layer=slice(1, None)), atol=1e-5)
    np.testing.assert_array_equal(np.isnan(full["mlp_output"]), np.isnan(states))
    for name in ("mlp_output", "attention_output", "hidden_state"):
        np.testing.assert_allclose(latent[name], full[name].sel(position=latent["position"].values), atol=1e-5)
    assert not {"mlp_output", "attention_output"} & set(bare.variables)
    np.testing.assert_allclose(bare["hidden_state"], latent["hidden_state"], atol=1e-5)
    for name in ("full", "latent", "bare"):
        again = recompute(lake, f"{model}/{name}", 2)
        assert again.agrees
        assert ("mlp_output" in again.states) == (name != "bare")
    assert not verify(lake).damage


def test_a_damaged_part_is_named(lake: Path, tmp_path: Path) -> None:
    shutil.copytree(lake, tmp_path / "b.lake")
    (shard,) = (p for p in (tmp_path / "b.lake/small-gpt2/latent/attention_output/c").glob("0/**/0") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    found = verify(tmp_path / "b.lake")
    assert [damage.path for damage in found.damage] == [str(shard.relative_to(tmp_path / "b.lake"))]


@pytest.mark.parametrize("site", ["mlp_output", "attention_output"])
def test_stored_parts_put_back_change_nothing(lake: Path, site: str) -> None:
    target = open_target(open_lake(lake), "small-llama/latent")
    settings = SweepSettings(site=site, operations=("replace",), positions=("ct1", "eot"))  # type: ignore[arg-type]
    result = sweep_grid(target, settings)
    assert target.values.fed == 0  # read, not computed
    np.testing.assert_allclose(result["kl"], 0, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_contributions_are_what_the_norm_and_the_unembedding_make_of_them(lake: Path, model: str) -> None:
    opened = open_lake(lake)
    run, readout = opened[f"{model}/latent"], opened.model(model).load()
    found = logit_attribution(run, readout).compute()
    assert found.dims == ("example", "part", "position")
    every = logits(run["hidden_state"].isel(layer=-1), readout).compute()
    np.testing.assert_allclose(found.sum("part", skipna=False), every.max("vocabulary") - every.mean("vocabulary"),
                               rtol=1e-4, atol=1e-3)  # fmt: skip
    # One of them by hand, as a difference: the norm is linear while its scale is held.
    part = run["mlp_output"].sel(layer=1, position="ct2").isel(example=3).values.astype(np.float64)
    state = run["hidden_state"].sel(layer=1, position="ct2").isel(example=3).values.astype(np.float64)
    if readout.attrs["final_norm"] == "layer_norm":
        part, state = part - part.mean(), state - state.mean()
    scale = np.sqrt((state**2).mean() + readout.attrs["final_norm_epsilon"])
    token = int(every.isel(example=3).sel(position="ct2").argmax("vocabulary"))
    unembedding = readout["unembedding"].values.astype(np.float64)
    want = (unembedding[token] - unembedding.mean(0)) @ (part / scale * readout["final_norm_weight"].values)
    got = found.sel(part="MLP 1", position="ct2").isel(example=3)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    summary = attribution_summary(found, n_resample=50)
    np.testing.assert_allclose(summary["contribution"].sum("part"), summary["logit"], rtol=1e-4)
    assert (summary["contribution_low"] <= summary["contribution_high"]).all()
    chunked = logit_attribution(run.chunk(example=5, position=3), readout).compute()
    xr.testing.assert_allclose(chunked, found, rtol=1e-4, atol=1e-4)


def test_a_run_without_parts_says_how_to_get_them(lake: Path) -> None:
    opened = open_lake(lake)
    with pytest.raises(SchemaError, match="no mlp_output; .* extract with --capture latent\\+parts"):
        logit_attribution(opened["small-gpt2/bare"], opened.model("small-gpt2"))
    assert json.loads(opened["small-gpt2/bare"].attrs["layout"])["capture"] == "latent"
