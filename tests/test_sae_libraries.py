"""Dictionaries of other libraries: what they compute, what is refused, and ``lake analyze sae --load``."""

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sae_states import python_with
from safetensors.torch import save_file
from synthetic import make_model, make_run, write_run

from analyze.sae.dictionary import load_sae, sae_codes, sae_reconstruction, save_sae, train_sae
from analyze.sae.elsewhere import block_of, measure_sae
from analyze.sae.spec import SAESpec
from schemas.errors import UsageError
from store import open_lake

D_IN, D_SAE, K = 8, 20, 3
X = np.random.default_rng(1).normal(size=(40, D_IN)).astype(np.float32)
STATE = xr.DataArray(X, {"example": np.arange(len(X))}, ("example", "hidden"))
Tensors = dict[str, torch.Tensor]


def drawn(**shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_sparsify(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True)
    stated = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": K,
              "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D_IN}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(stated | config))
    save_file(tensors, folder / "sae.safetensors")
    return folder


def write_dictionary_learning(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True)
    stated = {"activation_dim": D_IN, "dict_size": D_SAE, "lr": 1e-3, "layer": 1, "submodule_name": "resid_post"}
    (folder / "config.json").write_text(json.dumps({"trainer": stated | config, "buffer": {"d_submodule": D_IN}}))
    torch.save(tensors, folder / "ae.pt")
    return folder


LINEAR = drawn(**{"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,), "decoder.weight": (D_IN, D_SAE)})
BIAS = drawn(b_dec=(D_IN,))["b_dec"]
PARAMETERS = drawn(W_enc=(D_IN, D_SAE), b_enc=(D_SAE,), W_dec=(D_SAE, D_IN), b_dec=(D_IN,))
SPARSIFY = {name: LINEAR[name] for name in ("encoder.weight", "encoder.bias")} | {
    "W_dec": PARAMETERS["W_dec"],
    "b_dec": BIAS,
}
SCALARS = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(1.5)}
THRESHOLD = {"threshold": torch.linspace(-1, 3, D_SAE)}
GROUPS = {"group_sizes": torch.tensor([5, 15])}

# What each library's class makes of the same tensors, from its published formulas, in float64.
Made = Callable[[Path], Path]
READ: dict[str, tuple[Made, Tensors, str, bool]] = {
    "sparsify": (lambda to: write_sparsify(to, SPARSIFY), SPARSIFY, "topk", True),
    "AutoEncoder": (
        lambda to: write_dictionary_learning(to, LINEAR | {"bias": BIAS}, dict_class="AutoEncoder"),
        LINEAR | {"b_dec": BIAS}, "unit", True,
    ),
    "AutoEncoderNew": (
        lambda to: write_dictionary_learning(to, LINEAR | {"decoder.bias": BIAS}, dict_class="AutoEncoderNew"),
        LINEAR | {"b_dec": BIAS}, "relu", False,
    ),
    "AutoEncoderTopK": (
        lambda to: write_dictionary_learning(to, LINEAR | {"b_dec": BIAS} | SCALARS, dict_class="AutoEncoderTopK", k=K),
        LINEAR | {"b_dec": BIAS}, "topk", True,
    ),
    "BatchTopKSAE": (
        lambda to: write_dictionary_learning(to, LINEAR | {"b_dec": BIAS} | SCALARS, dict_class="BatchTopKSAE", k=K),
        LINEAR | {"b_dec": BIAS, "threshold": SCALARS["threshold"]}, "jump", True,
    ),
    "MatryoshkaBatchTopKSAE": (
        lambda to: write_dictionary_learning(
            to, PARAMETERS | SCALARS | GROUPS, dict_class="MatryoshkaBatchTopKSAE", k=K
        ),
        PARAMETERS | {"threshold": SCALARS["threshold"]}, "jump", True,
    ),
    "JumpReluAutoEncoder": (
        lambda to: write_dictionary_learning(to, PARAMETERS | THRESHOLD, dict_class="JumpReluAutoEncoder"),
        PARAMETERS | THRESHOLD, "jump", False,
    ),
}  # fmt: skip


def forward(tensors: Tensors, kind: str, subtract: bool) -> tuple[Any, Any]:
    """Codes and reconstruction, in float64."""
    w = {name: value.double() for name, value in tensors.items()}
    encoder = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    decoder = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    pre = (torch.from_numpy(X).double() - subtract * w["b_dec"]) @ encoder + w.get("b_enc", w.get("encoder.bias"))
    code = pre.relu()
    if kind == "topk":
        keep = code.topk(K).indices
        code = torch.zeros_like(code).scatter(-1, keep, code.gather(-1, keep))
    if kind == "jump":
        code = code * (pre > w["threshold"])
    back = code @ decoder + w["b_dec"]
    return (code * decoder.norm(dim=1) if kind == "unit" else code).numpy(), back.numpy()


def made_gemma_scope(folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in (PARAMETERS | THRESHOLD).items()})
    return folder


@pytest.mark.parametrize("name", [*READ, "Gemma Scope"])
def test_what_is_read_computes_what_its_library_computes(tmp_path: Path, name: str) -> None:
    make, tensors, kind, subtract = READ.get(name, (made_gemma_scope, PARAMETERS | THRESHOLD, "jump", False))
    sae = load_sae(make(tmp_path / "layers.1"))
    code, back = forward(tensors, kind, subtract)
    codes = sae_codes(sae, STATE)
    assert 0 < int((codes != 0).sum()) < codes.size
    np.testing.assert_allclose(codes, code, atol=1e-5)
    np.testing.assert_allclose(sae_reconstruction(sae, codes), back, atol=1e-5)


def test_the_libraries_themselves_compute_the_same(tmp_path: Path) -> None:
    """The real ones, in an interpreter of their own."""
    python = python_with("dictionary_learning", "sparsify")
    np.save(tmp_path / "x.npy", X)
    for name, (make, *_) in READ.items():
        make(tmp_path / name)
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        import torch
        from dictionary_learning.dictionary import AutoEncoderNew
        from dictionary_learning.utils import load_dictionary
        from sparsify import SparseCoder
        folder = Path(sys.argv[1])
        x = torch.from_numpy(np.load(folder / "x.npy"))
        for name in sys.argv[2:]:
            with torch.no_grad():
                if name == "sparsify":
                    coder = SparseCoder.load_from_disk(folder / name)
                    encoded = coder.encode(x)
                    code = torch.zeros(len(x), coder.num_latents)
                    code.scatter_(-1, encoded.top_indices, encoded.top_acts)
                    back = coder(x).sae_out
                else:
                    sae, _ = load_dictionary(str(folder / name), "cpu")
                    code = sae.encode(x)
                    back = sae.decode(code)
            np.savez(folder / name / "out.npz", code=code.numpy(), back=back.numpy())
    """
    subprocess.run([python, "-c", textwrap.dedent(script), str(tmp_path), *READ], check=True, capture_output=True)
    for name in READ:
        found, sae = np.load(tmp_path / name / "out.npz"), load_sae(tmp_path / name)
        codes = sae_codes(sae, STATE)
        np.testing.assert_allclose(codes, found["code"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(sae_reconstruction(sae, codes), found["back"], atol=1e-5, err_msg=name)


TOPK = LINEAR | {"b_dec": BIAS} | SCALARS
REFUSED: dict[str, tuple[Made, str]] = {
    "gated": (lambda to: write_dictionary_learning(to, LINEAR, dict_class="GatedAutoEncoder"), "'GatedAutoEncoder' is"),
    "no class": (lambda to: write_dictionary_learning(to, LINEAR), "class 'None' is not known"),
    "two k": (
        lambda to: write_dictionary_learning(to, TOPK, dict_class="AutoEncoderTopK", k=5),
        "k is 5 in its config and 3 in its weights",
    ),
    "no k": (lambda to: write_dictionary_learning(to, TOPK, dict_class="AutoEncoderTopK"), "k is missing"),
    "another class's tensors": (
        lambda to: write_dictionary_learning(to, PARAMETERS | {"r_mag": BIAS}, dict_class="AutoEncoder"),
        "not known: r_mag",
    ),
    "no threshold": (
        lambda to: write_dictionary_learning(to, PARAMETERS, dict_class="JumpReluAutoEncoder"), "threshold missing",
    ),
    "size": (
        lambda to: write_dictionary_learning(to, TOPK, dict_class="AutoEncoderTopK", k=K, dict_size=7),
        "d_sae is 7, but W_enc has shape",
    ),
    "no numbers": (
        lambda to: write_dictionary_learning(to, TOPK | {"b_dec": BIAS / 0}, dict_class="AutoEncoderTopK", k=K),
        "b_dec has numbers that are not finite",
    ),
    "groups": (lambda to: write_sparsify(to, SPARSIFY, activation="groupmax"), "activation is 'groupmax'"),
    "transcoder": (lambda to: write_sparsify(to, SPARSIFY, transcode=True), "transcode is True"),
    "skip": (lambda to: write_sparsify(to, SPARSIFY | {"W_skip": torch.zeros(8, 8)}, skip_connection=True), "W_skip"),
    "field": (lambda to: write_sparsify(to, SPARSIFY, post_scale=2), "post_scale is 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_known_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as raised:
        load_sae(make(tmp_path / "layers.1"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("file", "content"), [("ae.pt", b"abc"), ("config.json", b"[1]"), ("params.npz", b"PK")])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, file: str, content: bytes) -> None:
    folder = tmp_path / "one"
    if file == "params.npz":
        made_gemma_scope(folder)
    else:
        READ["AutoEncoder"][0](folder)
    (folder / file).write_bytes(content)
    with pytest.raises(UsageError, match=file):
        load_sae(folder)
    (folder / file).unlink()
    with pytest.raises(UsageError, match="which has none of these" if file != "config.json" else r"lacks config.json"):
        load_sae(folder)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "made.lake"
    model = make_model(hidden=D_IN)
    write_run(path, make_run(name="one/problems", n_example=60, twins=True, model=model, hidden=D_IN), model)
    return path


def test_a_dictionary_saved_and_loaded_measures_the_same(lake: Path) -> None:
    state = open_lake(lake)["one/problems"]["hidden_state"].sel(layer=[1], position=["ct0", "ct1"])
    spec = SAESpec(features=12, k=3, epochs=2, normalize="pool", seed=5)
    own = train_sae(state, spec)
    (folder,) = save_sae(own, lake.parent / "saved")
    measured = measure_sae(load_sae(folder), state, spec)
    for name in ("explained_variance", "l0", "dead_share", "frequency", "input_scale"):
        xr.testing.assert_allclose(measured[name], own[name], rtol=1e-3, atol=1e-5)
    assert (measured["example_split"] == own["example_split"]).all()
    assert (measured["top_example"] == own["top_example"]).mean() > 0.95  # of codes that tie, either


def test_one_that_was_learned_elsewhere_is_as_good_as_one_learned_here(lake: Path, call: Any) -> None:
    """Stored beside those learned here, under settings of its own, and asked what its features tell."""
    folder = READ["AutoEncoderTopK"][0](lake.parent / "theirs")
    code, out, err = call("analyze", "sae", lake, "one/problems", "--load", folder)
    assert (code, err) == (0, "")
    assert "one/problems: topk, 20 features, explained variance of test rows" in out
    assert "learned elsewhere (dictionary_learning), from what is not known" in out
    (stored,) = open_lake(lake).results("sae")
    expected = {"activation": "topk", "k": K, "features": D_SAE, "library": "dictionary_learning", "epochs": None}
    assert stored.spec.items() >= (expected | {"learning_rate": None}).items()
    assert stored.spec["layers"] == [1]
    code, out, err = call("analyze", "features", lake, "one/problems")
    assert (code, err) == (0, "")
    assert "of 20 features that fire most often" in out
    code, _, err = call("analyze", "sae", lake, "one/problems", "--load", folder, "--layers", "0,1")
    assert code == 0
    assert "the dictionary reads resid_post layer 1, which is layer 1, and is measured at layers [0, 1]\n" in err
    other = write_dictionary_learning(
        lake.parent / "other", {name: value * 2 for name, value in TOPK.items() if name != "k"} | {"k": SCALARS["k"]},
        dict_class="AutoEncoderTopK", k=K,
    )  # fmt: skip
    assert call("analyze", "sae", lake, "one/problems", "--load", other)[0] == 0
    assert len(open_lake(lake).results("sae")) == 3  # other weights are another result
    code, out, _ = call("analyze", "errors", lake, "one/problems", "--resamples", 20)
    assert code == 0
    assert "the dictionary was learned elsewhere (dictionary_learning), perhaps from these problems" in out
    assert call("report", lake, "--out", lake.parent / "page")[0] == 0
    page = (lake.parent / "page" / "index.html").read_text()
    assert "one was learned elsewhere (dictionary_learning); whether these problems were among its own" in page
    assert "one: the dictionary was learned elsewhere (dictionary_learning), perhaps from these" in page


@pytest.mark.parametrize(("words", "message"), [
    (("--epochs", 3), "--epochs: says how a dictionary is learned"),
    (("--k", 4, "--scope", "cell"), "--k, --scope: says how"),
    (("--preset", "gpt2"), "--preset"),
])  # fmt: skip
def test_what_says_how_to_learn_is_refused_beside_load(lake: Path, call: Any, words: Any, message: str) -> None:
    folder = READ["sparsify"][0](lake.parent / "layers.1")
    code, _, err = call("analyze", "sae", lake, "--load", folder, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_other_places_and_widths_are_refused(lake: Path, call: Any) -> None:
    folder = READ["sparsify"][0](lake.parent / "layers.1.mlp")
    code, _, err = call("analyze", "sae", lake, "--load", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "reads layers.1.mlp; a lake holds for dictionaries states after whole blocks alone" in err
    assert call("analyze", "sae", lake, "--load", folder, "--variable", "latent_embedding")[0] == 0
    narrow = make_model(hidden=6)
    path = lake.with_name("narrow.lake")
    write_run(path, make_run(name="one/problems", n_example=20, model=narrow, hidden=6), narrow)
    code, _, err = call("analyze", "sae", path, "--load", READ["sparsify"][0](lake.parent / "layers.1"))
    assert (code, err.count("\n")) == (2, 1)
    assert "6 hidden numbers, the dictionary reads 8" in err


@pytest.mark.parametrize(("hook", "block"), [
    ("blocks.3.hook_resid_post", 3), ("blocks.3.hook_resid_pre", 2), ("blocks.3.hook_out", 3), ("blocks.3.hook_in", 2),
    ("model.layers.7", 7), ("transformer.h.5", 5), ("model.layers.3.input", 2), ("resid_pre_layer_3", 2),
    ("run2", None), ("width_16k", None), ("", None),
])  # fmt: skip
def test_a_place_by_the_name_that_a_library_gives_it(hook: str, block: int | None) -> None:
    assert block_of(hook) == block


@pytest.mark.parametrize("hook", [
    "blocks.3.hook_resid_mid", "blocks.0.hook_resid_pre", "blocks.0.hook_in", "model.layers.3.input_layernorm",
    "blocks.3.attn.hook_q", "layers.3.something", "embed_tokens",
])  # fmt: skip
def test_a_place_that_no_lake_holds(hook: str) -> None:
    with pytest.raises(UsageError, match="states after whole blocks alone"):
        block_of(hook)
