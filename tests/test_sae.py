"""Sparse autoencoders: planted dictionaries, gradients, bounded reading, metrics, files."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import load_file
from synthetic import make_run

from analyze.sae.batches import Batches, Rows
from analyze.sae.dictionary import (
    REPORT_POSITIONS,
    SAESpec,
    load_sae,
    sae_codes,
    sae_metrics,
    sae_reconstruction,
    save_sae,
    split_by_group,
    train_sae,
    with_final_state,
)
from analyze.sae.train import Trainer
from schemas.errors import SchemaError, UsageError

CELLS = {"layer": [0, 1], "position": ["bot", "ct0", "ct1"]}
SMALL = {"features": 12, "epochs": 2, "batch_size": 64, "k": 3}


def dictionary(n_true: int, hidden: int, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng([seed, 9]).normal(size=(n_true, hidden))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def plant(run: xr.Dataset, directions: np.ndarray, code: np.ndarray, seed: int = 0) -> xr.Dataset:
    """The run with hidden states that are a sparse sum of directions, off centre and not of unit norm."""
    rng = np.random.default_rng([seed, 8])
    shape = run["hidden_state"].shape
    state = 7 * (code @ directions + 0.01 * rng.normal(size=shape) + 3 * rng.normal(size=shape[-1]))
    state[np.isnan(run["hidden_state"].values)] = np.nan
    return run.assign(hidden_state=(run["hidden_state"].dims, state.astype("float32")))


def sparse_code(
    shape: tuple[int, ...], n_true: int, active: float = 3, rng: np.random.Generator | None = None
) -> np.ndarray:
    rng = rng or np.random.default_rng(7)
    return (rng.random((*shape, n_true)) < active / n_true) * rng.uniform(0.5, 1.5, (*shape, n_true))


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return make_run(n_example=90, n_layer=2, hidden=6, n_question=2, n_answer=2, n_head=1, twins=True)


@pytest.fixture(scope="module")
def planted() -> xr.Dataset:
    run = make_run(n_example=1500, n_layer=2, hidden=16, n_question=2, n_answer=1, n_head=1, twins=True)
    return plant(run, dictionary(20, 16), sparse_code(run["hidden_state"].shape[:3], 20))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("topk", {"k": 3}),
        ("batch_topk", {"k": 3}),
        ("relu", {"sparsity": 0.2}),
        ("jumprelu", {"sparsity": 0.03, "bandwidth": 0.4}),
    ],
)
def test_planted_dictionary_is_recovered(planted, activation, options):
    state = planted["hidden_state"].sel(CELLS).chunk(example=128, layer=1, position=1)
    sae = train_sae(state, SAESpec(activation=activation, features=28, epochs=50, learning_rate=5e-3, **options))
    cosine = dictionary(20, 16) @ sae["decoder"].values.T
    assert cosine.max(1).mean() > 0.9
    assert sae["explained_variance_all"].sel(split="test", definition="squared_error") > 0.75
    assert sae["l0"].max() < 8
    np.testing.assert_allclose(np.linalg.norm(sae["decoder"], axis=1), 1, atol=1e-5)
    assert sae["train_reconstruction"][-1] < sae["train_reconstruction"][0]


@pytest.mark.parametrize("share", [0.0, 1.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("activation", ["relu", "topk", "abs_topk", "batch_topk", "jumprelu"])
def test_gradients_are_those_of_the_loss(monkeypatch, activation, share):
    """Against autograd on the formulas of the docstring, with missing rows in a grid of two."""
    monkeypatch.setattr("analyze.sae.train._SPARSE_SHARE", share)
    spec = SAESpec(activation=activation, k=3, sparsity=0.05, schedule=False, initial_threshold=0.05, bandwidth=0.02)
    trainer = Trainer(2, 5, 9, spec, 100)
    trainer.b_enc += 0.1 * torch.randn(2, 9, generator=trainer.generator)
    trainer.b_dec += 0.1 * torch.randn(2, 5, generator=trainer.generator)
    x = torch.randn(2, 7, 5, generator=trainer.generator)
    weight = torch.ones(2, 7)
    weight[1, 2] = 0
    n_row = weight.sum(1)
    names = ("w_enc", "w_dec", "b_enc", "b_dec")
    leaf = {name: getattr(trainer, name).clone().requires_grad_() for name in names}
    pre = torch.einsum("gbd,gnd->gbn", x - leaf["b_dec"][:, None], leaf["w_enc"]) + leaf["b_enc"][:, None]
    size = torch.where(weight[..., None] > 0, pre.abs() if activation == "abs_topk" else pre, -torch.inf)
    if activation in ("topk", "abs_topk"):
        keep = size >= size.topk(3, -1).values[..., -1:]
    elif activation == "batch_topk":
        last = [v.flatten().topk(3 * int(n)).values[-1] for v, n in zip(size, n_row, strict=True)]
        keep = size >= torch.stack(last)[:, None, None]
    else:
        keep = size > (0.05 if activation == "jumprelu" else 0)
    f = pre * keep * (weight[..., None] > 0)
    f = f if activation == "abs_topk" else f.relu()
    residual = (f @ leaf["w_dec"] + leaf["b_dec"][:, None] - x) * weight[..., None]
    penalty = f.sum((1, 2)) if activation == "relu" else torch.zeros(2)
    ((residual.square().sum((1, 2)) + 0.05 * penalty) / n_row).sum().backward()

    reconstruction, _, active, _ = trainer._gradients(x, weight, n_row, 0.05)
    np.testing.assert_allclose(reconstruction, (residual.square().sum((1, 2)) / n_row).detach(), rtol=1e-5)
    np.testing.assert_array_equal(active, (f != 0).sum(1))
    for name in names:
        np.testing.assert_allclose(getattr(trainer, name).grad, leaf[name].grad, atol=2e-6, err_msg=name)
    if activation == "jumprelu":  # equations 11 and 12 of the paper: only entries in the rectangle speak
        near = ((pre - 0.05).abs() < 0.01) & (weight[..., None] > 0)
        upstream = 2 * torch.einsum("gbd,gnd->gbn", residual, leaf["w_dec"]) / n_row[:, None, None]
        expected = -((upstream * 0.05 + 0.05 / n_row[:, None, None]) * near / 0.02).sum(1)
        assert near.any()
        np.testing.assert_allclose(trainer.threshold.grad, expected.detach(), atol=2e-6)


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


@pytest.mark.parametrize("normalize", ["pool", "cell", "none"])
def test_folded_crosscoder_does_too(run, normalize):
    state = run["hidden_state"].sel(CELLS)
    models = {"a": state, "b": 10 * state.isel(hidden=slice(4)) + 3}
    sae = train_sae(models, SAESpec(normalize=normalize, activation="relu", **SMALL), scope="crosscoder")
    codes = sae_codes(sae, models)
    loss: xr.DataArray | float = 0.0
    for source in sae["source"].values:
        model, layer = source.split("/")
        error = models[model].sel(layer=int(layer), drop=True) - sae_reconstruction(sae, codes, source=source)
        loss = loss + np.square(error).sum("hidden", skipna=False) / sae["input_scale"].sel(source=source) ** 2
    held = sae["example_split"].drop_vars(["problem", "variant"]) == "validation"
    np.testing.assert_allclose(loss.where(held).mean(), sae["validation_reconstruction"][-1], rtol=1e-4)


@pytest.mark.parametrize("normalize", ["pool", "cell", "none"])
@pytest.mark.parametrize("activation", ["topk", "relu", "abs_topk"])
def test_folded_weights_do_on_stored_values_what_was_learned(run, activation, normalize):
    """Codes and reconstruction by labels equal the loss that training measured in its own units."""
    state = run["hidden_state"].sel(CELLS)
    spec = SAESpec(activation=activation, normalize=normalize, pre_bias=activation != "relu", **SMALL)
    sae = train_sae(state, spec)
    back = sae_reconstruction(sae, sae_codes(sae, state))
    error = (back - state).where(sae["example_split"].drop_vars(["problem", "variant"]) == "validation")
    loss = (np.square(error).sum("hidden", skipna=False) / sae["input_scale"] ** 2).mean()
    np.testing.assert_allclose(loss, sae["validation_reconstruction"][-1], rtol=1e-4)


def test_grid_is_one_dictionary_for_each_cell(planted):
    """Each cell of a grid holds its own truth, and codes and metrics know which is which."""
    shape = planted["hidden_state"].shape[:3]
    found = [dictionary(8, 16, seed=layer) for layer in range(2)]
    code = sparse_code(shape, 8, active=1.5)
    state = planted["hidden_state"].copy(data=np.stack([code[:, i] @ found[i] for i in range(2)], 1).astype("float32"))
    state = state.sel(layer=[0, 1], position=["bot", "ct0"]).chunk(example=256, layer=1, position=1)
    sae = train_sae(state, SAESpec(features=12, k=2, epochs=40, batch_size=64, learning_rate=5e-3), scope="cell")
    assert sae["decoder"].dims == ("layer", "position", "feature", "hidden")
    for layer in range(2):
        for position in ("bot", "ct0"):
            learned = sae["decoder"].sel(layer=layer, position=position).values
            assert (found[layer] @ learned.T).max(1).mean() > 0.9
            assert (found[1 - layer] @ learned.T).max(1).mean() < 0.85
    codes = sae_codes(sae, state)
    assert codes.chunks is not None
    one = sae_codes(sae, state.sel(layer=1, position="ct0"))
    np.testing.assert_allclose(codes.sel(layer=1, position="ct0"), one, atol=1e-4)
    assert set(sae["top_example"].dims) == {"layer", "position", "feature", "rank"}


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


def test_crosscoder_finds_what_models_share():
    """Two models of different width: shared, first-only and second-only directions."""
    rng = np.random.default_rng(5)
    runs = {
        name: make_run(name=f"{name}/x", n_example=1500, n_layer=1, hidden=h, n_question=2, n_answer=1, n_head=1)
        for name, h in (("a", 12), ("b", 18))
    }
    position = ["bot", "ct0"]
    code = (rng.random((1500, 2, 12)) < 0.2) * rng.uniform(0.5, 1.5, (1500, 2, 12))
    use = {"a": [0, 1, 2, 3, 4, 5, 6, 7], "b": [0, 1, 2, 3, 8, 9, 10, 11]}  # four shared, four of each alone
    truth, state = {}, {}
    for factor, (name, run) in enumerate(runs.items(), 1):
        h = run["hidden_state"].sel(position=position)
        truth[name] = np.zeros((12, h.sizes["hidden"]))
        truth[name][use[name]] = dictionary(8, h.sizes["hidden"], seed=factor)
        state[name] = h.copy(data=(code @ truth[name])[:, None].astype("float32") * 10**factor)
    state["b"] = state["b"].isel(example=slice(None, None, -1))  # joined by label, not by place
    sae = train_sae(
        state, SAESpec(features=16, activation="batch_topk", k=2, epochs=60, learning_rate=5e-3), scope="crosscoder"
    )
    assert list(sae["source"].values) == ["a/0", "b/0"]
    assert (sae["explained_variance_all"].sel(split="test", definition="squared_error") > 0.8).all()
    np.testing.assert_allclose(sae["source_share"].sum("source"), 1, atol=1e-5)
    share = []
    for j in range(12):
        name = "a" if j in use["a"] else "b"
        learned = sae["decoder"].sel(source=f"{name}/0").isel(hidden=slice(truth[name].shape[1])).values
        cosine = learned @ truth[name][j] / np.maximum(np.linalg.norm(learned, axis=1), 1e-9)
        weight = sae["source_share"].sel(source=f"{name}/0").values
        best = int(np.argmax(cosine * np.sqrt(weight)))
        assert cosine[best] > 0.85
        share.append(float(sae["source_share"].sel(source="a/0")[best]))
    assert min(share[4:8]) > 0.9
    assert max(share[8:]) < 0.1
    assert all(0.2 < s < 0.8 for s in share[:4])
    codes = sae_codes(sae, state)
    assert codes.dims == ("example", "position", "feature")
    back = sae_reconstruction(sae, codes, source="b/0")
    assert back.sizes["hidden"] == 18
    with pytest.raises(SchemaError, match=r"\['b/0'\] are missing"):
        sae_codes(sae, {"a": state["a"]})
    moved = state["b"].assign_coords(problem=("example", state["b"]["problem"].values + 1))
    with pytest.raises(UsageError, match="another problem"):
        train_sae({"a": state["a"], "b": moved}, scope="crosscoder")


def test_metrics_follow_their_definitions(run):
    """Three explained variances, L0, dead features and top problems, by the plain formulas on whole arrays."""
    state = run["hidden_state"].sel(CELLS)
    sae = train_sae(state, SAESpec(activation="relu", sparsity=0.3, **SMALL), n_top=4)
    codes = sae_codes(sae, state)
    residual = state - sae_reconstruction(sae, codes)
    test = (sae["example_split"] == "test").values
    for layer, position in ((0, "bot"), (1, "ct1")):
        x = state.sel(layer=layer, position=position).values[test].astype("f8")
        r = residual.sel(layer=layer, position=position).values[test].astype("f8")
        found = sae["explained_variance"].sel(layer=layer, position=position, split="test")
        expected = [1 - (r**2).sum() / ((x - x.mean(0)) ** 2).sum(), 1 - r.var(0).mean() / x.var(0).mean()]
        np.testing.assert_allclose(found, [*expected, 1 - r.var() / x.var()], rtol=1e-4)
        code = codes.sel(layer=layer, position=position).values
        np.testing.assert_allclose(
            sae["l0"].sel(layer=layer, position=position, split="test"), (code[test] > 0).sum(1).mean()
        )
        np.testing.assert_allclose(sae["frequency"].sel(layer=layer, position=position), (code > 0).mean(0))
    x, r = (a.values[test].reshape(-1, 6).astype("f8") for a in (state, residual))
    expected = 1 - (r**2).sum() / ((x - x.mean(0)) ** 2).sum()
    np.testing.assert_allclose(sae["explained_variance_all"].sel(split="test")[0], expected, rtol=1e-4)
    flat = codes.values
    np.testing.assert_allclose(sae["dead_share"].sel(split="test"), (flat[test].max((0, 1, 2)) == 0).mean())
    codes = codes / sae["input_scale"]  # comparable between cells
    np.testing.assert_allclose(sae["max_activation"], codes.max(["example", "layer", "position"]), rtol=1e-5)
    assert int(sae["activation_count"].sum()) == int((flat > 0).sum())
    per_example = codes.max(["layer", "position"])
    feature = int(per_example.sum("example").argmax("feature"))
    order = per_example.sel(feature=feature).sortby(-per_example.sel(feature=feature))
    top = sae.sel(feature=feature)
    np.testing.assert_array_equal(top["top_example"], order["example"][:4])
    np.testing.assert_allclose(top["top_activation"], order[:4], rtol=1e-5)
    where = {dim: top[f"top_{dim}"][0].item() for dim in ("example", "layer", "position")}
    np.testing.assert_allclose(codes.sel(where).sel(feature=feature), top["top_activation"][0], rtol=1e-5)
    assert run["question"].sel(example=top["top_example"]).sizes == {"rank": 4}


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


@pytest.mark.parametrize(("activation", "options"), [("topk", {"k": 3}), ("relu", {"sparsity": 0.2})])
def test_dead_features_are_revived(activation, options):
    """Half the features are silenced at the start, and the truth needs them all."""
    directions, rng = dictionary(24, 16), np.random.default_rng(0)
    found = {}
    for revive in ("resample", "none"):
        spec = SAESpec(activation=activation, learning_rate=3e-3, revive=revive, **options)
        trainer = Trainer(1, 16, 24, spec, 800)
        trainer.b_enc[:, ::2] = -100
        for _ in range(800):
            step = trainer.step((sparse_code((1, 64), 24, rng=rng) @ directions / 2).astype("float32"))
        found[revive] = step
    assert found["none"].dead_share[0] == 0.5
    assert found["resample"].dead_share[0] < 0.25
    assert found["resample"].reconstruction < 0.8 * found["none"].reconstruction


def test_report_settings_are_reachable(run):
    """GPT-2: mean squared error over all elements plus 1e-3 times the mean of all codes, nothing normalised."""
    spec = SAESpec(preset="gpt2")
    assert (spec.features, spec.epochs, spec.batch_size, spec.learning_rate) == (4096, 25, 256, 1e-3)
    trainer = Trainer(1, 6, 12, SAESpec(preset="gpt2", features=12), 10)
    x = run["hidden_state"].sel(layer=0, position="bot").values[None]
    weights = {name: value.copy() for name, value in trainer.weights().items()}
    step = trainer.step(x)
    code = np.maximum(x[0] @ weights["w_enc"][0].T + weights["b_enc"][0], 0)
    error = code @ weights["w_dec"][0] + weights["b_dec"][0] - x[0]
    np.testing.assert_allclose(step.loss, (error**2).mean() + 1e-3 * code.mean(), rtol=1e-5)
    summed = SAESpec(preset="llama", features=12, epochs=1)
    assert (summed.penalty, summed.sparsity) == ("sum", 5e-4)
    assert SAESpec.of_spec(summed.spec()) == summed
    assert SAESpec(preset="llama", activation="jumprelu").sparsity == 0.003  # its own, not that of relu
    all_layers = with_final_state(run)
    assert all_layers["layer"].values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(all_layers.sel(layer=2), run["final_state"])
    sae = train_sae(all_layers.sel(position=list(REPORT_POSITIONS)), summed)
    assert (sae["example_split"] == "train").all()


def test_messages_name_what_to_do(run):
    with pytest.raises(UsageError, match="gelu is not one of topk, batch_topk, relu"):
        SAESpec(activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="k=16 codes of 4 features"):
        train_sae(run["hidden_state"], SAESpec(features=4))
    with pytest.raises(SchemaError, match="hidden_state"):
        train_sae(run["attention"], SAESpec())
    sae = train_sae(run["hidden_state"].sel(CELLS), SAESpec(**SMALL), scope="cell")
    with pytest.raises(SchemaError, match=r"has no position \['ct5'\]"):
        sae_codes(sae, run["hidden_state"].sel(layer=[0, 1], position=["ct5"]))
    with pytest.raises(SchemaError, match="3 hidden numbers, the dictionary reads 6"):
        sae_codes(sae, run["hidden_state"].sel(CELLS).isel(hidden=slice(3)))


def sae_lens_forward(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SAELens' inference in a few lines, from its description of the layout."""
    config = json.loads((folder / "cfg.json").read_text())
    w = load_file(folder / "sae_weights.safetensors")
    assert config["normalize_activations"] == "none"
    pre = (x - config["apply_b_dec_to_input"] * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    if config["architecture"] == "standard":
        code = np.maximum(pre, 0)
    elif config["architecture"] == "jumprelu":
        code = np.maximum(pre, 0) * (pre > w["threshold"])
    else:
        size = pre if config["architecture"] == "topk" else np.abs(pre)
        code = np.where(size >= np.sort(size, axis=-1)[:, [-config["k"]]], pre, 0)
        code = np.maximum(code, 0) if config["architecture"] == "topk" else code
    return code, code @ w["W_dec"] + w["b_dec"]


ARCHITECTURE = {
    "relu": "standard",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "abs_topk": "abstopk",
}


@pytest.mark.parametrize("activation", list(ARCHITECTURE))
def test_files_hold_what_sae_lens_reads(run, tmp_path, activation):
    state = run["hidden_state"].sel(CELLS)
    sae = train_sae(state, SAESpec(activation=activation, normalize="pool", **SMALL))
    assert save_sae(sae, tmp_path, metadata={"model_name": "made-up"}) == [tmp_path]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == (ARCHITECTURE[activation], 6, 12)
    assert config["metadata"]["model_name"] == "made-up"
    shapes = {name: value.shape for name, value in load_file(tmp_path / "sae_weights.safetensors").items()}
    expected = {"W_enc": (6, 12), "b_enc": (12,), "W_dec": (12, 6), "b_dec": (6,)}
    if config["architecture"] == "jumprelu":
        expected["threshold"] = (12,)
    assert shapes == expected
    codes = sae_codes(sae, state)
    code, back = sae_lens_forward(tmp_path, state.values.reshape(-1, 6))
    np.testing.assert_allclose(codes.values.reshape(-1, 12), code, atol=1e-5)
    np.testing.assert_allclose(sae_reconstruction(sae, codes).values.reshape(-1, 6), back, atol=1e-5)
    xr.testing.assert_allclose(sae_codes(load_sae(tmp_path), state), codes, atol=1e-5)


def test_grid_and_crosscoder_files(run, tmp_path):
    state = run["hidden_state"].sel(CELLS)
    folders = save_sae(train_sae(state, SAESpec(**SMALL), scope="cell"), tmp_path / "grid")
    assert [f.name for f in folders][:2] == ["layer-0_position-bot", "layer-0_position-ct0"]
    pool = train_sae(state, SAESpec(**SMALL))  # one dictionary, but each cell's own centre and scale
    folders = save_sae(pool, tmp_path / "pool")
    assert len(folders) == 6
    code, _ = sae_lens_forward(folders[4], state.sel(layer=1, position="ct0").values)
    np.testing.assert_allclose(sae_codes(pool, state).sel(layer=1, position="ct0"), code, atol=1e-5)
    other = run["hidden_state"].isel(hidden=slice(4)).sel(CELLS)
    sae = train_sae({"a": state, "b": other}, SAESpec(normalize="pool", **SMALL), scope="crosscoder")
    (folder,) = save_sae(sae, tmp_path / "cross")
    assert json.loads((folder / "cfg.json").read_text())["metadata"]["source_width"] == [6, 6, 4, 4]
    joined = np.concatenate([state.sel(layer=0), state.sel(layer=1), other.sel(layer=0), other.sel(layer=1)], axis=-1)
    code, _ = sae_lens_forward(folder, joined.reshape(-1, 20))
    np.testing.assert_allclose(sae_codes(sae, {"a": state, "b": other}).values.reshape(-1, 12), code, atol=1e-5)
    with pytest.raises(UsageError, match=r"cfg.json and sae_weights.safetensors missing"):
        load_sae(tmp_path / "grid")


def test_sae_lens_loads_the_files(run, tmp_path):
    """The real library, in an interpreter of its own: that of ``make peers``, or the one LAKE_PEERS_PYTHON names."""
    peers = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
    python = os.environ.get("LAKE_PEERS_PYTHON") or (str(peers) if peers.is_file() else sys.executable)
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sae_lens') is None)"
    if subprocess.run([python, "-c", probe], check=False).returncode:
        pytest.skip("sae_lens is not installed; make peers installs it apart")
    state = run["hidden_state"].sel(CELLS)
    rows = state.values.reshape(-1, 6)
    np.save(tmp_path / "x.npy", rows)
    expected = {}
    for activation in ARCHITECTURE:
        sae = train_sae(state, SAESpec(activation=activation, normalize="pool", **SMALL))
        save_sae(sae, tmp_path / activation)
        codes = sae_codes(sae, state)
        expected[activation] = codes.values.reshape(-1, 12), sae_reconstruction(sae, codes).values.reshape(-1, 6)
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        import torch
        from sae_lens import SAE
        folder = Path(sys.argv[1])
        x = torch.from_numpy(np.load(folder / "x.npy"))
        for name in sys.argv[2:]:
            sae = SAE.load_from_disk(folder / name)
            with torch.no_grad():
                code, back = sae.encode(x).numpy(), sae(x).numpy()
            np.savez(folder / name / "out.npz", code=code, back=back, kind=sae.cfg.architecture())
    """
    subprocess.run([python, "-c", textwrap.dedent(script), str(tmp_path), *ARCHITECTURE], check=True)
    for activation, (code, back) in expected.items():
        found = np.load(tmp_path / activation / "out.npz")
        assert str(found["kind"]) == ARCHITECTURE[activation]
        np.testing.assert_allclose(found["code"], code, atol=1e-5, err_msg=activation)
        np.testing.assert_allclose(found["back"], back, atol=1e-5, err_msg=activation)


def test_using_a_dictionary_needs_no_torch(run, tmp_path):
    """Nor does importing the analyses: torch and transformers are blocked in a fresh interpreter."""
    save_sae(train_sae(run["hidden_state"].sel(CELLS), SAESpec(normalize="pool", **SMALL)), tmp_path)
    script = """
        import sys
        sys.modules["torch"] = sys.modules["transformers"] = None
        import numpy as np, xarray as xr
        from analyze.sae.dictionary import load_sae, sae_codes
        state = xr.DataArray(np.ones((3, 6), "float32"), dims=("example", "hidden"))
        assert sae_codes(load_sae(sys.argv[1]), state).shape == (3, 12)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True)


NONSENSE = [
    {"features": 0}, {"features": -3}, {"features": 2.5}, {"features": True}, {"expansion": 0}, {"k": 0},
    {"k": 1.5}, {"epochs": 0}, {"batch_size": 0}, {"buffer_bytes": 0}, {"seed": -1}, {"sparsity": -0.1},
    {"sparsity": float("nan")}, {"learning_rate": 0}, {"learning_rate": float("inf")}, {"learning_rate": "fast"},
    {"encoder_scale": 0}, {"revive_scale": -1}, {"bandwidth": 0}, {"initial_threshold": -1}, {"schedule": 1},
    {"unit_norm": "no"}, {"fractions": (0.7, 0.3)}, {"fractions": (0.0, 0.5, 0.5)}, {"fractions": (0.5, 0.1, 0.1)},
    {"fractions": (1.2, -0.2, 0.0)}, {"fractions": "abc"}, {"fractions": (float("nan"), 0, 1)}, {"split": "half"},
]  # fmt: skip


@pytest.mark.parametrize("changes", NONSENSE, ids=str)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        SAESpec(**changes)


def made_rows(n_row: int = 1000) -> xr.DataArray:
    rng = np.random.default_rng(0)
    directions = dictionary(64, 32)
    state = ((rng.random((n_row, 64)) < 0.06) * rng.exponential(1, (n_row, 64))) @ directions
    state = (state + 0.05 * rng.normal(size=state.shape)).astype("f4")
    return xr.DataArray(state, {"example": np.arange(n_row)}, ("example", "hidden"), name="hidden_state")


@pytest.mark.parametrize("epochs", [5, 25])
def test_batch_topk_keeps_k_codes_in_use(epochs):
    rows = made_rows()
    sae = train_sae(rows, SAESpec(activation="batch_topk", features=64, k=4, epochs=epochs), n_top=1)
    assert abs(sae["l0"].sel(split="train") - 4) < 0.02  # the threshold is exact on rows that all fit in the sample
    assert abs(sae["l0"].sel(split="test") - 4) < 1
    assert abs(sae["validation_l0"][-1] - 4) < 1


def test_batch_topk_keeps_k_codes_of_each_cell_of_a_grid(run):
    spec = SAESpec(activation="batch_topk", **SMALL)
    sae = train_sae(run["hidden_state"].sel(CELLS), spec, scope="cell", n_top=1)
    np.testing.assert_allclose(sae["l0"].sel(split="train"), spec.k, atol=0.05)


def test_features_that_fire_negatively_have_top_examples():
    rows = made_rows(300)
    sae = train_sae(rows, SAESpec(activation="abs_topk", epochs=8, features=24, k=3, batch_size=64), n_top=3)
    codes = sae_codes(sae, rows).values / float(sae["input_scale"])
    size = np.abs(codes)
    assert (codes.min(0) < -codes.max(0)).any()
    np.testing.assert_allclose(sae["max_activation"], size.max(0), rtol=1e-5)
    fires = size.max(0) > 0
    np.testing.assert_allclose(sae["mean_activation"][fires], (size.sum(0) / (size > 0).sum(0))[fires], rtol=1e-4)
    for feature in np.flatnonzero((size > 0).sum(0) >= 3):
        best = np.argsort(-size[:, feature], kind="stable")[:3]
        np.testing.assert_array_equal(sae["top_example"][feature], best)
        np.testing.assert_allclose(sae["top_activation"][feature], codes[best, feature], rtol=1e-5)


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


def test_training_that_diverges_is_an_error():
    spec = SAESpec(activation="relu", learning_rate=1e30, epochs=3, normalize="none", unit_norm=False)
    with pytest.raises(UsageError, match="diverged"):
        train_sae(made_rows(200), spec)


@pytest.mark.parametrize("unit", [1e-30, 1e25])
def test_a_unit_changes_nothing_but_units(unit):
    rows = made_rows(300)
    spec = SAESpec(epochs=3, features=24, k=3, batch_size=64)
    found, expected = train_sae(rows * np.float32(unit), spec), train_sae(rows, spec)
    name = "explained_variance_all"
    np.testing.assert_allclose(found["top_activation"], expected["top_activation"], rtol=1e-3)
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-3)
