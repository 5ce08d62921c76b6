"""Layouts of checkpoints on hubs: shards and their index, adapters alone, the wrappers of trainers."""

import json
from pathlib import Path

import pytest
import torch
from codi_models import VOCABULARY, write_checkpoint
from safetensors.torch import save_file
from slow_protocols import GPT2
from transformers import LlamaConfig

from extract import load_reasoner
from extract.model.base_model import base_weights
from schemas import UsageError


def layouts(state: dict[str, torch.Tensor], folder: Path) -> dict[str, Path]:
    """One state dict in each layout found on hubs."""
    names = sorted(state)
    half = {name: value.contiguous().clone() for name, value in state.items()}
    found = {kind: folder / kind for kind in ("bin shards", "safetensors shards", "raw", "lightning", "trainer")}
    for place in found.values():
        place.mkdir()
        (place / "config.json").touch()  # of no bytes, as in SIM-CoT's on the hub
    for kind, end in (("bin shards", "bin"), ("safetensors shards", "safetensors")):
        stem = "pytorch_model" if end == "bin" else "model"
        where = {name: f"{stem}-0000{1 + index % 2}-of-00002.{end}" for index, name in enumerate(names)}
        for file in set(where.values()):
            part = {name: half[name] for name in names if where[name] == file}
            (torch.save if end == "bin" else save_file)(part, found[kind] / file)
        (found[kind] / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    torch.save(half, found["raw"] / "checkpoint_33")
    wrapped = {f"model.{name}": value for name, value in half.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, found["lightning"] / "best.ckpt")
    torch.save({"model": half, "optimizer": {"lr": 0.1}, "step": 3}, found["trainer"] / "ckpt.pt")
    return found


def test_layouts_of_hubs_hold_the_same_model(tmp_path):
    folder, base, _, _ = write_checkpoint(tmp_path, GPT2)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    wanted = load_reasoner(folder, base)
    for kind, place in layouts(state, tmp_path).items():
        assert load_reasoner(place, base).fingerprint == wanted.fingerprint, kind
    index = tmp_path / "bin shards" / "pytorch_model.bin.index.json"
    assert load_reasoner(index, base).fingerprint == wanted.fingerprint
    (index.parent / "pytorch_model-00002-of-00002.bin").unlink()
    torch.save(state, tmp_path / "raw" / "checkpoint_34")
    torch.save({"model": state, "ema": state}, tmp_path / "trainer" / "ckpt.pt")
    for place, message in [
        (tmp_path / "trainer", "holds no state dict .*, by itself or as one part of several"),
        (index.parent, "names pytorch_model-00002-of-00002.bin, which is not there"),
        (tmp_path / "raw", r"several others \(checkpoint_33, checkpoint_34\): name the one that is meant"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_reasoner(place, base)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("ghost", "model-00001-of-00002.safetensors", "names weights that are not there: ghost in model-00001-of"),
        ("prj.1.bias", "model-00003-of-00003.safetensors", "names model-00003-of-00003.safetensors, which is not"),
        ("prj.1.bias", None, "does not name weights that are there: prj.1.bias in model-0000"),
    ],
)
def test_an_index_and_its_shards_have_the_same_weights(tmp_path, name, file, message):
    folder, base, _, _ = write_checkpoint(tmp_path, GPT2)
    place = layouts(torch.load(folder / "pytorch_model.bin", weights_only=True), tmp_path)["safetensors shards"]
    index = place / "model.safetensors.index.json"
    written = json.loads(index.read_text())
    written["weight_map"] = {k: v for k, v in (written["weight_map"] | {name: file}).items() if v}
    index.write_text(json.dumps(written))
    with pytest.raises(UsageError, match=message):
        load_reasoner(place, base)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("lm_head.weight", "two.safetensors", "names weights that are not there: lm_head.weight in two.safetensors"),
        ("lm_head.weight", "three.safetensors", "names three.safetensors, which is not there"),
        ("lm_head.weight", "", "does not name weights that are there: lm_head.weight in one.safetensors"),
        ("again", "two.safetensors", "two.safetensors holds weights that another shard has too: again"),
    ],
)
def test_a_base_whose_index_is_not_that_of_its_shards_is_refused(tmp_path, name, file, message):
    save_file({"lm_head.weight": torch.ones(2, 2), "again": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"again" if name == "again" else "other": torch.ones(1)}, tmp_path / "two.safetensors")
    placed = {"lm_head.weight": "one.safetensors", "again": "one.safetensors", "other": "two.safetensors", name: file}
    placed = {weight: shard for weight, shard in placed.items() if shard and (name, weight) != ("again", "other")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(UsageError, match=message):
        base_weights(tmp_path)


def test_a_folder_that_peft_saved_holds_adapters_only(tmp_path):
    folder, base, model, _ = write_checkpoint(tmp_path, LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=48,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    plain = {
        name.removeprefix("codi.base_model.model.").replace(".base_layer.", "."): value[:VOCABULARY]
        if len(value) == VOCABULARY + 3
        else value
        for name, value in state.items()
        if name.startswith("codi.") and ".lora_" not in name
    }
    save_file(
        {name: value.clone() for name, value in plain.items()}, base / "model.safetensors", metadata={"format": "pt"}
    )
    saved = {
        name.removeprefix("codi.").replace(".default.", "."): value.clone()
        for name, value in state.items()
        if ".lora_" in name or name.startswith("prj.") or len(value) == VOCABULARY + 3
    }
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(saved, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "base_model_name_or_path": str(base),
              "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],
              "modules_to_save": ["embed_tokens", "lm_head"]}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = load_reasoner(adapter)
    assert found.protocol.name == "codi"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, msg=name)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["embed_tokens", "norm"]}))
    with pytest.raises(UsageError, match="lacks norm, which its adapter_config.json says were trained"):
        load_reasoner(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa_niter_16"}))
    with pytest.raises(UsageError, match="'pissa_niter_16', which may begin by changing the base"):
        load_reasoner(adapter)
