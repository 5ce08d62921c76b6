"""Sparse autoencoders: planted dictionaries, gradients, bounded reading, metrics, files."""

import numpy as np
import pytest
import torch
import xarray as xr
from sae_states import CELLS, SMALL, dictionary, made_rows, plant, small_run, sparse_code
from synthetic import make_run

from analyze.sae.dictionary import REPORT_POSITIONS, SAESpec, sae_codes, sae_reconstruction, train_sae, with_final_state
from analyze.sae.metrics import _explained
from analyze.sae.train import Trainer
from schemas.errors import SchemaError, UsageError


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return small_run()


@pytest.fixture(scope="module")
def planted() -> xr.Dataset:
    run = make_run(n_example=1500, n_layer=2, hidden=16, n_question=2, n_answer=1, n_head=1, twins=True)
    return plant(run, dictionary(20, 16), sparse_code(run["hidden_state"].shape[:3], 20))


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
    assert ((sae["threshold"] > 0) == (activation in ("batch_topk", "jumprelu"))).all()


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
    one = {name: np.array([[[3.1, 0.1]]]) for name in ("x", "xx", "r", "rr")} | {"xx": np.array([[[9.61, 0.01]]])}
    assert np.isnan(_explained(np.ones((1, 1)), one, np.array([0]))[:2]).all()  # of one row, nothing to explain
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


def test_rows_that_are_alike_have_no_variance_to_be_explained_by_any_definition():
    count, ones = np.array([4.0]), np.full((1, 3), 0.1)
    sums = {"x": 4 * ones, "xx": 4 * ones**2, "r": 0.1 * ones, "rr": 0.1 * ones**2}
    assert np.isnan(_explained(count, sums, np.array([0]))).all()
