"""Dictionaries as files: what SAELens reads of ours, its layouts 1 to 6, refusals of what is not known."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sae_states import CELLS, SMALL, python_with, small_run
from safetensors.torch import load_file, save_file

from analyze.sae.dictionary import SAESpec, load_sae, sae_codes, sae_reconstruction, save_sae, train_sae
from schemas.errors import UsageError

D_IN, D_SAE, K = 6, 20, 3
X = np.random.default_rng(1).normal(size=(40, D_IN)).astype(np.float32)
STATE = xr.DataArray(X, {"example": np.arange(len(X))}, ("example", "hidden"))
NEW = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
       "normalize_activations": "none", "reshape_activations": "none",
       "metadata": {"sae_lens_version": "6.5.1", "hook_name": "blocks.3.hook_resid_post"}}  # fmt: skip
OLD = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "model_name": "gpt2", "context_size": 128,
       "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "hook_head_index": None, "prepend_bos": True,
       "activation_fn_kwargs": {}, "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
       "normalize_activations": "none", "sae_lens_training_version": "4.0.0", "seqpos_slice": [None]}  # fmt: skip
OLDEST = {"d_in": D_IN, "d_sae": D_SAE, "hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3,
          "hook_point_head_index": None, "activation_fn": "relu", "normalize_activations": False, "noise_scale": 0.0,
          "tokens_per_buffer": 4096, "l1_coefficient": 1e-3, "use_ghost_grads": True}  # fmt: skip
TOPK = {"architecture": "topk", "k": K}


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return small_run()


def weights(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Random weights; ``None`` takes one away."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, torch.Tensor | None] = {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator),
        "b_enc": 0.1 * torch.randn(D_SAE, generator=generator),
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator),
        "b_dec": torch.randn(D_IN, generator=generator),
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def forward(
    tensors: dict[str, torch.Tensor], kind: str, x: np.ndarray = X, *, subtract: bool = True, rescale: bool = False
) -> Any:
    """Codes and reconstruction as SAELens' sources compute them, in float64."""
    w = {name: value.double() for name, value in tensors.items()}
    pre = (torch.from_numpy(x).double() - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    norm = w["W_dec"].norm(dim=1) if rescale else torch.ones(len(w["W_dec"]))
    pre = pre * norm
    if kind in ("topk", "abstopk"):
        keep = (pre.abs() if kind == "abstopk" else pre).topk(K).indices
        code = torch.zeros_like(pre).scatter(-1, keep, pre.gather(-1, keep))
        code = code if kind == "abstopk" else code.relu()
    else:
        code = pre.relu() * (pre > w.get("threshold", torch.zeros(1)))
    scale = w.get("finetuning_scaling_factor", w.get("scaling_factor", torch.ones(1)))
    return code.numpy(), ((code * scale / norm) @ w["W_dec"] + w["b_dec"]).numpy()


FACTOR = torch.linspace(0.5, 2, D_SAE)
READ = {
    "6 standard": (NEW | {"architecture": "standard"}, weights(), "relu", {}),
    "6 topk": (NEW | TOPK, weights(), "topk", {}),
    "6 topk rescaled": (NEW | TOPK | {"rescale_acts_by_decoder_norm": True}, weights(), "topk", {"rescale": True}),
    "6 abstopk": (NEW | {"architecture": "abstopk", "k": K}, weights(), "abstopk", {}),
    "6 jumprelu": (NEW | {"architecture": "jumprelu"}, weights(threshold=FACTOR - 1), "jumprelu", {}),
    "6 bias kept": (NEW | TOPK | {"apply_b_dec_to_input": False}, weights(), "topk", {"subtract": False}),
    "5 topk": (OLD | {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
               weights(), "topk", {}),
    "3 topk": (OLD | {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
               weights(), "topk", {}),
    "3 no architecture": (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, weights(), "topk", {}),
    "3 fine-tuned": (OLD | {"architecture": "standard", "activation_fn_str": "relu", "finetuning_scaling_factor": True},
                     weights(scaling_factor=FACTOR), "relu", {}),
    "4 fine-tuned": (OLD | {"architecture": "standard", "finetuning_scaling_factor": True},
                     weights(finetuning_scaling_factor=FACTOR), "relu", {}),
    "5 jumprelu": (OLD | {"architecture": "jumprelu", "activation_fn_str": "relu"}, weights(threshold=FACTOR),
                   "jumprelu", {}),
    "1": (OLDEST, weights(scaling_factor=torch.ones(D_SAE)), "relu", {}),
    "float64": (NEW | TOPK, {n: t.double() for n, t in weights().items()}, "topk", {}),
    "float16": (NEW | TOPK, {n: t.half() for n, t in weights().items()}, "topk", {}),
    "bfloat16": (NEW | TOPK | {"dtype": "bfloat16"}, {n: t.bfloat16() for n, t in weights().items()}, "topk", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(READ))
def test_what_is_read_computes_what_its_version_computes(tmp_path, name):
    config, tensors, kind, options = READ[name]
    sae = load_sae(write(tmp_path, config, tensors))
    assert sae.attrs["hook_name"] == "blocks.3.hook_resid_post"
    code, back = forward(tensors, kind, **options)
    codes = sae_codes(sae, STATE)
    np.testing.assert_allclose(codes, code, atol=1e-5)
    np.testing.assert_allclose(sae_reconstruction(sae, codes), back, atol=1e-5)


REFUSED = {
    "tanh": (OLD | {"architecture": "standard", "activation_fn_str": "tanh-relu"}, {}, "'tanh-relu' is not known"),
    "gated": (OLD | {"architecture": "gated", "activation_fn_str": "relu"}, {}, "architecture 'gated' with"),
    "training file": (NEW | {"architecture": "batchtopk", "k": K}, {}, "architecture 'batchtopk' is not known"),
    "topk says relu": (OLD | {"architecture": "topk", "activation_fn_str": "relu"}, {}, "'topk' with activation"),
    "no k": (NEW | {"architecture": "topk"}, {}, "k is missing"),
    "no k, old": (OLD | {"architecture": "standard", "activation_fn_str": "topk"}, {}, "k is missing"),
    "two k": (NEW | TOPK | {"activation_fn_kwargs": {"k": 5}}, {}, "k is 3 and 5"),
    "k 0": (NEW | {"architecture": "topk", "k": 0}, {}, "k is 0"),
    "k fraction": (NEW | {"architecture": "topk", "k": 2.5}, {}, "k is 2.5"),
    "k large": (NEW | {"architecture": "topk", "k": 99}, {}, "k is 99, but it has 20 features"),
    "k of relu": (NEW | {"architecture": "standard", "k": 4}, {}, "k is 4, but relu"),
    "argument": (OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "postact_fn": "id"}}, {},
                 "postact_fn"),
    "threshold missing": (NEW | {"architecture": "jumprelu"}, {}, "threshold missing"),
    "threshold of relu": (NEW | {"architecture": "standard"}, {"threshold": FACTOR}, "not known: threshold"),
    "factor": (NEW | TOPK, {"scaling_factor": FACTOR}, "scaling factor that is not 1"),
    "no factor": (OLD | {"finetuning_scaling_factor": True}, {}, "scaling factor is missing"),
    "factor shape": (OLD | {"finetuning_scaling_factor": True}, {"scaling_factor": FACTOR[:3]}, "shape"),
    "hook_z": (NEW | TOPK | {"reshape_activations": "hook_z"}, {}, "hook_z"),
    "hook_z, old": (OLD | {"hook_name": "blocks.3.attn.hook_z"}, {}, "hook_z"),
    "hook_z, oldest": (OLDEST | {"hook_point": "blocks.3.attn.hook_z"}, {}, "hook_z"),
    "head": (OLD | {"hook_head_index": 2}, {}, "single head"),
    "normalises": (NEW | TOPK | {"normalize_activations": "layer_norm"}, {}, r"normalises its input \(layer_norm\)"),
    "normalises, oldest": (OLDEST | {"normalize_activations": True}, {}, "normalises its input"),
    "rescaled relu": (NEW | {"architecture": "standard", "rescale_acts_by_decoder_norm": True}, {}, "rescale_acts"),
    "flag": (NEW | TOPK | {"apply_b_dec_to_input": "no"}, {}, "neither true nor false"),
    "flag null": (NEW | TOPK | {"apply_b_dec_to_input": None}, {}, "apply_b_dec_to_input is None, neither true nor"),
    "field": (NEW | TOPK | {"post_scale": 2.0}, {}, "fields that are not known: post_scale"),
    "tensor": (NEW | TOPK, {"W_skip": torch.zeros(3)}, "tensors that are not known: W_skip"),
    "no bias": (NEW | TOPK, {"b_enc": None, "b_dec": None}, "b_dec, b_enc missing"),
    "transposed": (NEW | TOPK, {"W_dec": torch.zeros(D_IN, D_SAE)}, "W_dec has shape"),
    "size": (NEW | TOPK | {"d_sae": 40}, {}, "d_sae is 40"),
    "int8": (NEW | TOPK, {"W_enc": torch.zeros(D_IN, D_SAE, dtype=torch.int8)}, "W_enc has type I8"),
    "inf": (NEW | TOPK, {"b_dec": torch.full((D_IN,), torch.inf)}, "b_dec has numbers that are not finite"),
    "beyond float32": (NEW | TOPK, {"b_dec": torch.full((D_IN,), 1e300, dtype=torch.float64)}, "not finite in float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_known_is_refused_in_one_line(tmp_path, name):
    config, changes, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as raised:
        load_sae(write(tmp_path, config, weights(**changes)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("file", "content"), [
    ("cfg.json", b"{"), ("cfg.json", b"[1]"), ("cfg.json", b"\xff"), ("sae_weights.safetensors", b"abc"),
    ("sae_weights.safetensors", b""), ("cfg.json", b'{"metadata": 3}'),
])  # fmt: skip
def test_files_that_cannot_be_read_are_named(tmp_path, file, content):
    folder = write(tmp_path, NEW | TOPK, weights())
    (folder / file).write_bytes(content)
    with pytest.raises(UsageError, match=file):
        load_sae(folder)


def forward_of(folder: Path, x: np.ndarray) -> Any:
    """Codes and reconstruction of a dictionary that was saved."""
    config = json.loads((folder / "cfg.json").read_text())
    assert config["normalize_activations"] == "none"
    kind, subtract = config["architecture"], config["apply_b_dec_to_input"]
    return forward(load_file(folder / "sae_weights.safetensors"), kind, x, subtract=subtract)


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
    code, back = forward_of(tmp_path, state.values.reshape(-1, 6))
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
    code, _ = forward_of(folders[4], state.sel(layer=1, position="ct0").values)
    np.testing.assert_allclose(sae_codes(pool, state).sel(layer=1, position="ct0"), code, atol=1e-5)
    other = run["hidden_state"].isel(hidden=slice(4)).sel(CELLS)
    sae = train_sae({"a": state, "b": other}, SAESpec(normalize="pool", **SMALL), scope="crosscoder")
    (folder,) = save_sae(sae, tmp_path / "cross")
    assert json.loads((folder / "cfg.json").read_text())["metadata"]["source_width"] == [6, 6, 4, 4]
    joined = np.concatenate([state.sel(layer=0), state.sel(layer=1), other.sel(layer=0), other.sel(layer=1)], axis=-1)
    code, _ = forward_of(folder, joined.reshape(-1, 20))
    np.testing.assert_allclose(sae_codes(sae, {"a": state, "b": other}).values.reshape(-1, 12), code, atol=1e-5)
    with pytest.raises(UsageError, match=r"has none of these: SAELens: sae_weights.safetensors and"):
        load_sae(tmp_path / "grid")


def test_sae_lens_computes_the_same(run, tmp_path):
    """The real library, in an interpreter of its own.

    It reads every layout that its version 6 still does, and what is saved of dictionaries learned here.
    """
    python = python_with("sae_lens")
    state = run["hidden_state"].sel(CELLS)
    np.save(tmp_path / "x.npy", state.values.reshape(-1, D_IN))
    names = [name for name in READ if "fine-tuned" not in name]  # version 6 no longer reads a scaling factor
    for name in names:
        config, tensors, _, _ = READ[name]
        write(tmp_path / name, {"dtype": "float32"} | config, tensors)
    for activation in ARCHITECTURE:
        sae = train_sae(state, SAESpec(activation=activation, normalize="pool", **SMALL))
        save_sae(sae, tmp_path / activation)
    script = """
        import sys
        from pathlib import Path
        import numpy as np
        import torch
        from sae_lens import SAE
        folder = Path(sys.argv[1])
        x = torch.from_numpy(np.load(folder / "x.npy"))
        for name in sys.argv[2:]:
            sae = SAE.load_from_disk(folder / name, dtype="float32")
            with torch.no_grad():
                code, back = sae.encode(x).numpy(), sae(x).numpy()
            np.savez(folder / name / "out.npz", code=code, back=back, kind=sae.cfg.architecture())
    """
    words = [python, "-c", textwrap.dedent(script), str(tmp_path), *names, *ARCHITECTURE]
    subprocess.run(words, check=True)
    for name in (*names, *ARCHITECTURE):
        found, sae = np.load(tmp_path / name / "out.npz"), load_sae(tmp_path / name)
        assert str(found["kind"]) == ARCHITECTURE.get(name, str(found["kind"]))
        codes = sae_codes(sae, state)
        back = sae_reconstruction(sae, codes)
        np.testing.assert_allclose(codes.values.reshape(found["code"].shape), found["code"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(back.values.reshape(found["back"].shape), found["back"], atol=1e-5, err_msg=name)


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
