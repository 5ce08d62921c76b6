"""Checkpoints of others: adapters and their config, quantised weights, every file of a tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from codi_models import write_checkpoint
from safetensors.torch import save_file
from transformers import GPT2Config, LlamaConfig

from extract import load_reasoner
from extract.model.checkpoint import TOKENIZER_FILES
from extract.model.load import new_reasoner
from schemas import UsageError

RANK, ALPHA = 4, 32.0
MODULE = "codi.base_model.model.transformer.h.0.attn.c_attn"
ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "gpt2", "bias": "none", "r": RANK,
    "lora_alpha": ALPHA, "lora_dropout": 0.1, "fan_in_fan_out": True, "inference_mode": True, "use_rslora": False,
    "use_dora": False, "modules_to_save": None, "target_modules": ["c_attn", "c_proj", "c_fc"], "rank_pattern": {},
    "alpha_pattern": {}, "init_lora_weights": True, "layers_to_transform": None, "loftq_config": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A folder with a random checkpoint and its base, and the merged model."""
    folder = tmp_path_factory.mktemp("made")
    config = GPT2Config(n_positions=64, n_embd=32, n_head=2, n_layer=2, bos_token_id=0, eos_token_id=0)
    _, _, model, _ = write_checkpoint(folder, config, rank=RANK, alpha=ALPHA)
    return folder, model


def checkpoint(made: Path, folder: Path, adapter: Any = None, **changes: torch.Tensor | None) -> tuple[Path, Path]:
    """A copy with an adapter's config and other weights (``None``: without), names as in ``MODULE + name``."""
    shutil.copytree(made / "codi", folder / "codi")
    shutil.copytree(made / "base", folder / "base")
    if adapter is not None:
        (folder / "codi" / "adapter_config.json").write_text(json.dumps(adapter))
    state = torch.load(made / "codi" / "pytorch_model.bin", weights_only=True) | changes
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "codi/pytorch_model.bin")
    return folder / "codi", folder / "base"


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize(
    "changes",
    [None, {}, {"use_rslora": True, "lora_alpha": ALPHA / RANK**0.5}, {"target_modules": r"transformer\.h\.\d+\..*"},
     {"target_modules": "all-linear"}, {"r": 8, "rank_pattern": {"c_attn": RANK, "c_(proj|fc)": RANK}}],
)  # fmt: skip
def test_the_adapters_config_gives_its_scale(made, tmp_path, changes, alpha):
    folder, model = made
    files = checkpoint(folder, tmp_path, None if changes is None else ADAPTER | changes)
    if alpha is not None and changes is not None:
        alpha = changes.get("lora_alpha", alpha)
    reasoner = load_reasoner(*files, lora_alpha=alpha)
    weights = reasoner.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value)
    assert len(reasoner.notes) == (changes is None and alpha is None)  # a scale that nobody says is told


def test_another_scale_is_another_model(made, tmp_path):
    folder, model = made
    reasoner = load_reasoner(*checkpoint(folder, tmp_path, ADAPTER | {"lora_alpha": 2 * ALPHA}))
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.allclose(reasoner.model.state_dict()[name], model.state_dict()[name])


A = torch.zeros(RANK, 32)
QUERY = f"{MODULE}.lora_A"
BAD = {
    "two adapters": ({f"{MODULE}.lora_A.other.weight": A, f"{MODULE}.lora_B.other.weight": torch.zeros(96, RANK)}, None,
                     "has 2 adapters, default, other"),
    "half": ({f"{MODULE}.lora_B.default.weight": None}, None, "only half of a low-rank update"),
    "rank 0": ({f"{QUERY}.default.weight": A[:0], f"{MODULE}.lora_B.default.weight": torch.zeros(96, 0)}, None, "fit"),
    "magnitude": ({f"{MODULE}.lora_magnitude_vector.default.weight": torch.ones(96)}, None, "unexpected"),
    "int8": ({f"{MODULE}.base_layer.weight": torch.zeros(32, 96, dtype=torch.int8)}, None, r"c_attn.* \(int8\)"),
    "float8": ({"prj.1.weight": torch.zeros(32, 32).to(torch.float8_e4m3fn)}, None, r"prj.1.weight \(float8_e4m3fn\)"),
    "bool": ({f"{QUERY}.default.weight": torch.zeros(RANK, 32, dtype=torch.bool)}, None, "quantised or otherwise"),
    "complex": ({f"{QUERY}.default.weight": torch.zeros(RANK, 32, dtype=torch.complex64)}, None, "quantised or"),
    "scale left": ({f"{MODULE}.base_layer.weight_scale": torch.ones(96)}, None, "unexpected"),
    "nan in prj": ({"prj.1.bias": torch.full((32,), torch.nan)}, None, "not finite prj.1.bias"),
    "other method": ({}, {"peft_type": "IA3"}, "peft_type 'IA3'; only 'LORA'"),
    "dora": ({}, {"use_dora": True}, "not merged rightly here: use_dora=True"),
    "alpha pattern": ({}, {"alpha_pattern": {"c_attn": 3}}, "alpha_pattern"),
    "modules to save": ({}, {"modules_to_save": ["wte"]}, "modules_to_save"),
    "invocation": ({}, {"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    "field of later": ({}, {"use_cubist_lora": 1}, "use_cubist_lora"),
    "rank": ({}, {"r": 8}, "says r=8, .* has rank 4"),
    "rank by pattern": ({}, {"r": 8, "rank_pattern": {"c_fc": 4}}, "says r=8, .*c_attn has rank 4"),
    "another block": ({}, {"layers_to_transform": [0]}, r"layers_to_transform \[0\], .* updates of .*h.1"),
    "no alpha": ({}, {"lora_alpha": None}, "names no lora_alpha"),
    "alpha 0": ({}, {"lora_alpha": 0}, "adapter_config.json is 0"),
    "alpha text": ({}, {"lora_alpha": "large"}, "adapter_config.json is 'large'"),
    "targets lacking": ({}, {"target_modules": ["c_attn", "c_proj", "c_fc", "q_proj"]}, "no update of q_proj"),
    "targets beyond": ({}, {"target_modules": ["c_attn", "c_proj"]}, "updates of .*c_fc that it does not name"),
    "targets by pattern": ({}, {"target_modules": r".*c_attn"}, "that it does not name"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_not_merged_rightly_is_refused_in_one_line(made, tmp_path, name):
    weights, config, message = BAD[name]
    files = checkpoint(made[0], tmp_path, None if config is None else ADAPTER | config, **weights)
    with pytest.raises(UsageError, match=message) as caught:
        load_reasoner(*files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("alpha", "message"), [(16.0, "16 in the argument, but 32 in .*adapter_config.json"),
                                                (0.0, "above 0"), (float("nan"), "finite")])  # fmt: skip
def test_a_flag_that_contradicts_the_config_is_refused(made, tmp_path, alpha, message):
    with pytest.raises(UsageError, match=message):
        load_reasoner(*checkpoint(made[0], tmp_path, ADAPTER), lora_alpha=alpha)


def test_a_scale_of_updates_that_are_not_there_is_refused():
    with pytest.raises(UsageError, match="has no low-rank updates that --lora-alpha 3 could scale"):
        load_reasoner("small-gpt2", lora_alpha=3.0)


def test_a_config_without_an_update_is_refused(tmp_path):
    config = GPT2Config(n_positions=64, n_embd=32, n_head=2, n_layer=2, bos_token_id=0, eos_token_id=0)
    folder, base, _, _ = write_checkpoint(tmp_path, config, rank=None)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    with pytest.raises(UsageError, match="no low-rank update in its weights"):
        load_reasoner(folder, base)


def test_int8_in_safetensors_and_a_quantised_base_are_refused(made, tmp_path):
    folder, base = checkpoint(made[0], tmp_path)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state.pop("codi.base_model.model.lm_head.weight")  # shares its memory with the embedding
    state[f"{MODULE}.base_layer.weight"] = state[f"{MODULE}.base_layer.weight"].to(torch.int8)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"\(int8\)"):
        load_reasoner(folder, base)
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="quantised"):
        load_reasoner(made[0] / "codi", base)


def test_a_base_whose_weights_lack_some_or_are_quantised_is_refused(made, tmp_path):
    _, base = checkpoint(made[0], tmp_path)
    weights = {name: value for name, value in made[1].state_dict().items() if name != "lm_head.weight"}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:-3].clone()  # a base has no extra rows
    norm, block = "transformer.ln_f.weight", "transformer.h.0.attn.c_attn.weight"
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert new_reasoner(base).n_layer == 2
    for changes, message in (
        ({norm: None}, rf"lack {norm}"),
        ({block: weights[block].to(torch.int8)}, rf"{block} \(I8\)"),
    ):
        kept = {name: value for name, value in (weights | changes).items() if value is not None}
        save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UsageError, match=message):
            new_reasoner(base)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 16},
        {"lora_alpha": 0},
        {"n_latent": True},
        {"n_latent": 0},
        {"n_latent": 2.5},
        {"answer_prefix": 3},
        {"n_latents": 2},
    ],
)
def test_settings_that_make_no_sense_are_refused(made, tmp_path, settings):
    folder, base = checkpoint(made[0], tmp_path, ADAPTER)
    (folder / "codi.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=next(iter(settings))):
        load_reasoner(folder, base)


def test_the_tokenizers_fingerprint_covers_every_file(made, tmp_path):
    folder, base = checkpoint(made[0], tmp_path)
    seen = {load_reasoner(folder, base).fingerprint["tokenizer_files"]}
    assert load_reasoner(folder, base).fingerprint["tokenizer_files"] in seen
    config = json.loads((base / "tokenizer_config.json").read_text())
    contents = {
        "tokenizer_config.json": json.dumps(config | {"model_max_length": 77}),
        "tokenizer.json": (base / "tokenizer.json").read_text() + "\n",
    }
    for name in TOKENIZER_FILES:
        content = contents.get(name, "{}")
        (base / name).write_bytes(content.encode())
        if name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
            (base / name).write_bytes(b"any")
        found = load_reasoner(folder, base).fingerprint["tokenizer_files"]
        assert found not in seen, name
        seen.add(found)


def test_weights_are_summed_in_float32_and_then_rounded_once(made, tmp_path):
    files = checkpoint(made[0], tmp_path)
    wide, narrow = (load_reasoner(*files, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert wide.fingerprint == narrow.fingerprint
    for name, value in wide.model.named_parameters():
        assert torch.equal(value.to(torch.bfloat16), narrow.model.get_parameter(name)), name


def adapters_alone(made: Path, folder: Path) -> tuple[Path, Path, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A copy in which checkpoint and base are apart: both folders, and what each is to hold."""
    codi, base = checkpoint(made, folder)
    state = torch.load(codi / "pytorch_model.bin", weights_only=True)
    (codi / "pytorch_model.bin").unlink()
    rows = "codi.base_model.model.transformer.wte"
    trained = {name: value for name, value in state.items() if ".lora_" in name or name.startswith("prj.")}
    plain = {
        name.removeprefix("codi.base_model.model.").replace(".base_layer.", "."): value[:-3] if "wte" in name else value
        for name, value in state.items()
        if name.startswith("codi.") and ".lora_" not in name and "lm_head" not in name
    }
    return codi, base, trained | {f"{rows}.extra_rows": state[f"{rows}.weight"][-3:].clone()}, plain


SECOND = "transformer.h.1.attn.c_attn"
SPOILT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    # changes of the checkpoint's weights, the base's, the adapter's config, the base's config; what is said
    "updates lost": ({f"codi.base_model.model.{SECOND}.lora_{side}.default.weight": None for side in "AB"}, {}, {}, {},
                     rf"lacks the low-rank updates of {SECOND}, which its other blocks have"),
    "biases lost": ({}, {}, {"bias": "all"}, {}, "lacks transformer.h.0.attn.c_attn.bias, .*, which its adapter"),
    "head of its own": ({}, {"lm_head.weight": torch.ones(400, 32)}, {}, {}, "lm_head.weight and .*wte.weight differ"),
    "beyond its config": ({}, {"score.weight": torch.ones(2, 32)}, {}, {}, "have what no model .* has: score.weight"),
    "shape": ({}, {f"{SECOND}.bias": torch.ones(95)}, {}, {}, r"another shape .*c_attn.bias \(95,\) instead"),
    "not a number": ({}, {}, {}, {"layer_norm_epsilon": float("nan")}, "config.json: it holds NaN"),
    "another file": ({}, {}, {}, {}, "both model.safetensors and pytorch_model.bin, whose .* differ: .*c_attn"),
    "quantised": ({}, {f"{SECOND}.bias": torch.ones(96, dtype=torch.int8)}, {}, {}, r"c_attn.bias \(int8\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SPOILT))
def test_adapters_and_bases_that_lack_or_hide_weights_are_refused_in_one_line(made, tmp_path, capfd, name):
    in_checkpoint, in_base, in_adapter, in_config, message = SPOILT[name]
    codi, base, trained, plain = adapters_alone(made[0], tmp_path)
    kept = {key: value for key, value in (trained | in_checkpoint).items() if value is not None}
    save_file(kept, codi / "model.safetensors")
    (codi / "adapter_config.json").write_text(json.dumps(ADAPTER | in_adapter))
    (base / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | in_config))
    whole = {key: value.clone() for key, value in (plain | in_base).items()}
    if name != "quantised":
        save_file(whole, base / "model.safetensors", metadata={"format": "pt"})
    if name in ("another file", "quantised"):
        torch.save(
            whole | ({f"{SECOND}.bias": torch.ones(96)} if name == "another file" else {}), base / "pytorch_model.bin"
        )
    with pytest.raises(UsageError, match=message) as caught:
        load_reasoner(codi, base)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # a library's own table of keys is not printed


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "mixed"])
def test_a_base_stored_in_half_the_width_is_the_same_model(made, tmp_path, kind):
    """Adapters beside a base in float16: the model loaded is that of a base with the same numbers in float32."""
    folder, base, trained, plain = adapters_alone(made[0], tmp_path)
    save_file(trained, folder / "model.safetensors")
    half = torch.float16 if kind == "float16" else torch.bfloat16
    plain = {
        name: value.clone() if kind == "mixed" and "ln_" in name else value.to(half) for name, value in plain.items()
    }
    found = []
    for stored in (plain, {name: value.float() for name, value in plain.items()}):
        save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
        found.append(load_reasoner(folder, base))
    assert found[0].fingerprint == found[1].fingerprint
    for name, value in found[0].model.named_parameters():
        assert torch.equal(value, found[1].model.get_parameter(name)), name


FIELDS = {
    "codi.json": [
        ({"protocol": {"name": "codi", "n_unwritten": -5}}, "n_unwritten of the protocol is -5"),
        ({"protocol": {"name": "codi", "n_unwritten": 10**6}}, "n_unwritten is 1000000, of 403 tokens"),
        ({"protocol": {"name": "codi", "projection": ["prj", ["1"]]}}, "projection of the protocol"),
        ({"protocol": {"name": "codi", "closing": [3]}}, "closing of the protocol"),
        ({"protocol": {"name": "codi", "n_latent": "6"}}, "n_latent of the protocol is '6'"),
    ],
    "adapter_config.json": [
        (ADAPTER | {"target_modules": 3}, "target_modules is 3; it must be a list"),
        (ADAPTER | {"target_modules": "("}, r"target_modules is '\(', which is no pattern"),
        (ADAPTER | {"rank_pattern": [1]}, "rank_pattern is "),
        (ADAPTER | {"rank_pattern": {"(": 4}}, r"rank_pattern names '\(', which is no pattern"),
        (ADAPTER | {"layers_to_transform": "0"}, "layers_to_transform is '0'"),
        (ADAPTER | {"modules_to_save": "wte"}, "modules_to_save is 'wte'; it must be a list"),
        (ADAPTER | {"r": "4"}, "r is '4'"),
    ],
    "args.yaml": [({"c_thought": None, "max_latent_stage": 3}, "c_thought is None")],
}


@pytest.mark.parametrize(
    ("file", "content", "message"), [(file, *case) for file, cases in FIELDS.items() for case in cases]
)
def test_fields_of_a_wrong_type_are_one_line(made, tmp_path, file, content, message):
    folder, base = checkpoint(made[0], tmp_path)
    (folder / file).write_text(json.dumps(content))
    if file == "args.yaml":  # of Coconut
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        plain = {name: value for name, value in state.items() if name.startswith("codi.") and ".lora_" not in name}
        plain = {
            name.replace("codi.base_model.model", "base_causallm").replace(".base_layer", ""): value
            for name, value in plain.items()
        }
        torch.save(plain, folder / "pytorch_model.bin")
        (folder / "codi.json").unlink()
    with pytest.raises(UsageError, match=message) as caught:
        load_reasoner(folder, base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc", "Git's pointer to a large file"),
        (b"<html>", "of neither safetensors nor torch.save"),
        ({"a": Path("x")}, "holds Python objects besides tensors"),
    ],
)
def test_files_that_hold_no_tensors_say_so(made, tmp_path, content, message):
    folder, base = checkpoint(made[0], tmp_path)
    file = folder / "pytorch_model.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UsageError, match=message):
        load_reasoner(folder, base)


def test_weights_of_other_rotary_frequencies_are_refused(tmp_path):
    """Older checkpoints hold them; the base's config, from which they are computed, may be another model's."""
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    folder, base, *_ = write_checkpoint(tmp_path, config)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    name = "codi.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq"
    for theta, width in ((10000.0, torch.bfloat16), (500000.0, torch.float32)):
        state[name] = (theta ** (-torch.arange(0, 16, 2) / 16)).to(width)
        torch.save(state, folder / "pytorch_model.bin")
        if theta == 10000.0:
            load_reasoner(folder, base)
            continue
        with pytest.raises(UsageError, match=r"other rotary frequencies .* ends in 1.03e-05.* config.json .0.000316"):
            load_reasoner(folder, base)
