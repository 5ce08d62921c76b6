"""Checkpoints, bases and tokenizers that do not belong together: refused in one line, never loaded as another model."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from codi_models import ORACLE
from safetensors.torch import save_file

from extract import load_reasoner
from extract.model.checkpoint import SHIPPED
from schemas import UsageError


def altered(change: str, folder: Path) -> tuple[Path, Path]:
    """Checkpoint and base spoilt in one way."""
    shutil.copytree(ORACLE / "codi-llama", folder / "codi")
    shutil.copytree(ORACLE / "base-llama", folder / "base")
    file = folder / "codi" / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    config = json.loads((folder / "base" / "config.json").read_text())
    name = "codi.base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight"
    match change:
        case "missing key":
            del state[name]
        case "missing projection":
            del state["prj.3.bias"]
        case "unexpected key":
            state["codi.base_model.model.extra.weight"] = torch.zeros(2)
        case "shape":
            state["codi.base_model.model.model.layers.1.input_layernorm.weight"] = torch.zeros(3)
        case "untied":
            state["codi.base_model.model.lm_head.weight"] = state["codi.base_model.model.lm_head.weight"] + 1
        case "not finite":
            state[name][0, 0] = torch.nan
        case "two files":
            save_file({key: value * 1.5 for key, value in state.items()}, folder / "codi" / "model.safetensors")
        case "zeros":
            state |= {key: torch.zeros_like(value) for key, value in state.items() if ".layers.2.mlp.up_proj" in key}
        case "zero projection":
            state["prj.3.weight"].zero_()
        case "empty settings":
            (folder / "codi" / "codi.json").touch()
        case "lost adapter config":
            (folder / "codi" / "adapter_config.json").symlink_to(folder / "blobs" / "1f")
        case "broken tokenizer":
            (folder / "base" / "tokenizer_config.json").write_text("{")
        case "tokens by chance":
            tokens = json.loads((folder / "base" / "tokenizer.json").read_text())
            tokens["model"]["dropout"] = 0.5
            (folder / "base" / "tokenizer.json").write_text(json.dumps(tokens))
        case "no codi":
            state = {key.removeprefix("codi.base_model."): value for key, value in state.items()}
        case "truncated":
            file.write_bytes(file.read_bytes()[:5000])
        case "no file":
            file.unlink()
        case "other vocabulary":
            config["vocab_size"] = 410
        case "other layers":
            config["num_hidden_layers"] = 4
        case "other hidden":
            config["hidden_size"] = 80
        case "other heads":
            config["num_attention_heads"] = 4
        case "other type":
            config["model_type"] = "bloom"
        case "updates lost":
            del state[name.replace("base_layer", "lora_A.default")], state[name.replace("base_layer", "lora_B.default")]
        case "looks ahead":
            config["use_bidirectional_attention"] = True
    if file.exists() and change != "truncated":
        torch.save(state, file)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\n"
    (folder / "base" / "config.json").write_text(pointer if change == "pointer" else json.dumps(config))
    return folder / "codi", folder / "base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing key", r"layers\.1\.self_attn\.q_proj"),
        ("missing projection", r"missing prj\.3\.bias"),
        ("unexpected key", r"unexpected extra\.weight"),
        ("shape", r"input_layernorm\.weight \(3,\) instead of \(64,\)"),
        ("untied", r"lm_head\.weight and model\.embed_tokens\.weight differ"),
        ("not finite", "not finite"),
        ("two files", r"has both model\.safetensors and pytorch_model\.bin, whose weights differ: codi"),
        ("zeros", r"zero throughout: model\.layers\.2\.mlp\.up_proj\.weight; is the file complete"),
        ("tokens by chance", r"draws tokens at random \(dropout 0\.5 in tokenizer\.json\)"),
        ("no codi", "no CODI checkpoint"),
        ("truncated", "is the file complete"),
        ("no file", "neither model.safetensors nor pytorch_model.bin"),
        ("other vocabulary", "403 embedding rows, base has a vocabulary of 410"),
        ("other layers", "5 blocks, base has 4"),
        ("other hidden", "hidden size 64, base has 80"),
        ("other heads", "queries of size 64, base has 4 heads of size 8"),
        ("other type", "'bloom'; supported are gemma2, "),
        ("updates lost", r"lacks the low-rank updates of model\.layers\.1\.self_attn\.q_proj\.weight;"),
        ("zero projection", r"zero throughout prj\.3\.weight"),
        ("empty settings", r"settings of the checkpoint cannot be read from .*codi\.json"),
        ("lost adapter config", r"config of the adapter cannot be read from .*adapter_config\.json: .* No such file"),
        ("broken tokenizer", r"tokenizer cannot be read from .*tokenizer_config\.json: Expecting"),
        ("pointer", r"config\.json: it is Git's pointer to a large file.*git lfs pull"),
        ("looks ahead", "has use_bidirectional_attention in its config"),
    ],
)
def test_bad_checkpoints_are_one_line(change: str, message: str, tmp_path: Path) -> None:
    checkpoint, base = altered(change, tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load_reasoner(checkpoint, base)
    assert "\n" not in str(caught.value)


def test_words_that_only_the_tokenizer_has_are_no_marks_of_the_protocol(tmp_path: Path) -> None:
    checkpoint, base = altered("", tmp_path)
    reasoner = load_reasoner(checkpoint, base)
    file = base / "tokenizer.json"
    content = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"].append({"id": reasoner.vocabulary, "content": "pens", **flags})  # where [PAD]'s row is
    file.write_text(json.dumps(content))
    with_more = load_reasoner(checkpoint, base)
    assert with_more.encode("Two caps?") == reasoner.encode("Two caps?")
    for say in (with_more.encode, with_more.answer_tokens):
        with pytest.raises(UsageError, match="'pens' as token 400, the model has 400 words"):
            say("Two pens?")


@pytest.mark.parametrize(
    ("older", "message"),
    [
        ({"rope_theta": 500000.0}, r"rope_theta is 500000\.0, and 10000\.0 in rope_parameters; both cannot be right"),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_type is 'linear', and 'default' in rope_parameters",
        ),
        ({"rope_theta": 10000.0, "rope_scaling": None}, ""),
    ],
)
def test_rotary_positions_that_a_config_names_twice_are_the_same(
    older: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(SHIPPED / "small-llama", tmp_path / "codi")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | older))
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        load_reasoner(folder)


def test_another_answer_prefix_is_another_model(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED / "small-gpt2", tmp_path / "codi")
    known = load_reasoner(folder).fingerprint["weights"]
    settings = json.loads((folder / "codi.json").read_text())
    (folder / "codi.json").write_text(json.dumps(settings | {"answer_prefix": "Result="}))
    assert load_reasoner(folder).fingerprint["weights"] != known == load_reasoner("small-gpt2").fingerprint["weights"]


def test_a_tokenizer_that_is_read_otherwise_than_its_file_says_is_told(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED / "small-gpt2", tmp_path / "codi")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    cut = json.loads((folder / "tokenizer.json").read_text())
    cut["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}  # of a trainer
    (folder / "tokenizer.json").write_text(json.dumps(cut))
    for name, told in (("GPT2Tokenizer", 1), ("PreTrainedTokenizerFast", 0)):
        file.write_text(json.dumps(config | {"tokenizer_class": name}))
        assert sum("cuts text otherwise" in note for note in load_reasoner(folder).notes) == told


def test_a_second_weight_file_holds_nothing_that_is_lost(tmp_path: Path) -> None:
    checkpoint, base = altered("", tmp_path)
    state = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
    beside = checkpoint / "adapter_model.bin"
    torch.save({"base_model.model.updated": torch.ones(2)}, beside)
    with pytest.raises(
        UsageError, match=r"_model\.bin and adapter_model\.bin, and the first lacks .*updated; name the"
    ):
        load_reasoner(checkpoint, base)
    torch.save({"tied.head": state["codi.base_model.model.model.embed_tokens.weight"]}, beside)
    load_reasoner(checkpoint, base)


def test_what_fits_and_may_be_another_model_is_told(tmp_path: Path) -> None:
    checkpoint, base = altered("", tmp_path)
    config = json.loads((base / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1, "vocab_size": 403}))
    assert not [note for note in load_reasoner(checkpoint, base).notes if "contradicts" in note or "is read as" in note]
    (checkpoint / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    file = checkpoint / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    torch.save({key: value[:-1].clone() if len(value) == 403 else value for key, value in state.items()}, file)
    notes = " ".join(load_reasoner(checkpoint, base).notes)
    assert "is read as codi-multimode: it has two rows after the base's vocabulary, codi three" in notes
    assert "codi/config.json contradicts: hidden_act ('silu', there 'relu')" in notes


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    gpt2, llama = ORACLE / "codi-gpt2", ORACLE / "base-llama"
    for arguments, message in [
        ((gpt2, llama), "gpt2 checkpoint, base .* llama"),
        ((tmp_path / "nothing", llama), "no folder, no hub id"),
        ((gpt2, tmp_path), "lacks config.json"),
        ((gpt2, ORACLE / "base-gpt2", "cuda:99"), "device 'cuda:99' does not exist"),
        ((gpt2, ORACLE / "base-gpt2", "abacus"), "device 'abacus' does not exist"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            load_reasoner(*arguments)
        assert "\n" not in str(caught.value)
    reasoner = load_reasoner(gpt2, ORACLE / "base-gpt2")
    with pytest.raises(UsageError, match="question 1 of the batch has .* gpt2 has 256|question 1 of the batch"):
        reasoner.think([reasoner.encode("Why?"), reasoner.encode("Why? " * 150)])
