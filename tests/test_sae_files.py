"""Dictionaries of others: layouts of SAELens 1 to 6 by their sources' formulas, and refusals of what is not known."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from analyze.sae.dictionary import load_sae, sae_codes, sae_reconstruction
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


def forward(tensors: dict[str, torch.Tensor], kind: str, *, subtract: bool = True, rescale: bool = False) -> Any:
    """Codes and reconstruction as SAELens' sources compute them, in float64."""
    w = {name: value.double() for name, value in tensors.items()}
    x = torch.from_numpy(X).double()
    pre = (x - subtract * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    norm = w["W_dec"].norm(dim=1) if rescale else torch.ones(D_SAE)
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


def test_sae_lens_computes_the_same(tmp_path):
    """The real library, in an interpreter of its own, of every layout that its version 6 still reads."""
    peers = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
    python = os.environ.get("LAKE_PEERS_PYTHON") or (str(peers) if peers.is_file() else sys.executable)
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sae_lens') is None)"
    if subprocess.run([python, "-c", probe], check=False).returncode:
        pytest.skip("sae_lens is not installed; make peers installs it apart")
    names = [name for name in READ if "fine-tuned" not in name]  # version 6 no longer reads a scaling factor
    for name in names:
        config, tensors, _, _ = READ[name]
        write(tmp_path / name, {"dtype": "float32"} | config, tensors)
    np.save(tmp_path / "x.npy", X)
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
                np.savez(folder / name / "out.npz", code=sae.encode(x).numpy(), back=sae(x).numpy())
    """
    subprocess.run([python, "-c", textwrap.dedent(script), str(tmp_path), *names], check=True)
    for name in names:
        found, sae = np.load(tmp_path / name / "out.npz"), load_sae(tmp_path / name)
        codes = sae_codes(sae, STATE)
        np.testing.assert_allclose(codes, found["code"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(sae_reconstruction(sae, codes), found["back"], atol=1e-5, err_msg=name)
