"""Protocols: what the official code of each computes, layouts of checkpoints, controls without thoughts, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import run_lake
from codi_models import ORACLE, VOCABULARY, write_checkpoint
from safetensors.torch import save_file
from slow_protocols import GPT2, answer_slowly, plain_model, think_in_rounds_slowly, write_questions
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from extract import load_reasoner
from extract.model.protocols import CODI, PROTOCOLS
from extract.model.settings import pccot_settings
from extract.model.wording import byte_signs, with_bytes
from extract.reenter.target import open_target
from schemas import Places, UsageError
from store import open_lake

DATA = Path(__file__).parent / "data"
HERE = {"coconut_oracle/coconut-gpt2", "codi_eos_oracle/codi-llama"}
GOLDEN: dict[str, list[str]] = {
    "coconut_oracle/coconut-gpt2": [],
    "codi_eos_oracle/codi-llama": ["--protocol", "codi-eos"],
    "coconut_oracle/coconut-llama": [],
    "codi_eos_oracle/codi-gpt2": ["--protocol", "codi-eos"],
    "codi_simcot_oracle/codi-gpt2": [],
    "codi_simcot_oracle/codi-llama": [],
    "codi_qwen_oracle/codi-qwen2": [],
    "codi_qwen_oracle/codi-qwen3": [],
    "codi_multimode_oracle/codi-gpt2": [],
    "codi_multimode_oracle/codi-llama": [],
    "latenttts_oracle/codi-gpt2": ["--thoughts", "6"],
    "latenttts_oracle/coconut-gpt2": ["--thoughts", "6"],
}


def folder_of(name: str, request: pytest.FixtureRequest) -> Path:
    return (DATA if name in HERE else request.getfixturevalue("shared_data")) / name


def compare(run: Any, expected: Any) -> float:
    """Largest difference of a run in float32 from what the official code computed on each question alone."""
    run = run.load()
    n = len(expected["0/latents"]) - 1
    places = Places(n, len(expected["0/eot_hidden"]))
    off = 0.0
    for example in range(run.sizes["example"]):
        one = run.isel(example=example)
        ids, tokens = expected[f"{example}/ids"], expected[f"{example}/answer_tokens"]
        labels = places.labels(len(ids) - 1, len(tokens))
        middle = len(ids) + n + places.n_closing
        np.testing.assert_array_equal(one["token"].sel(position=labels[: len(ids)]), ids)
        np.testing.assert_array_equal(one["token"].sel(position=labels[middle:]), tokens)
        assert f"q-{len(ids)}" not in labels
        assert (one["token"].sel(position=f"q-{len(ids)}") == -1).all()
        hidden = [expected[f"{example}/prompt_hidden"].swapaxes(0, 1), expected[f"{example}/latent_hidden"],
                  expected[f"{example}/eot_hidden"]]  # fmt: skip
        want = np.concatenate(hidden)
        states = one.sel(position=labels[:middle]).transpose("position", "layer", ...)
        pairs = [
            (states["hidden_state"].values[:, :-1], want[:, 1:-1]),
            (states["final_state"].values, want[:, -1]),
            (one["latent_embedding"].values, expected[f"{example}/latents"][:n]),
        ]
        seen = states["attention"].sel(key_position=labels[:middle]).values
        start = 0
        for part in (expected[f"{example}/prompt_attention"].transpose(2, 0, 1, 3),
                     expected[f"{example}/latent_attention"], expected[f"{example}/eot_attention"]):  # fmt: skip
            pairs.append((seen[start : start + len(part), ..., : part.shape[-1]], part))
            start += len(part)
        off = max(off, *(float(np.abs(found - wanted).max()) for found, wanted in pairs))
    return off


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in HERE else pytest.mark.slow) for name in GOLDEN]
)
def test_the_official_code_computes_the_same(name, tmp_path, request):
    folder = folder_of(name, request)
    base = folder.parent / f"base-{folder.name.split('-')[1]}"
    meta = json.loads((folder / "meta.json").read_text())
    data = write_questions(tmp_path / "d.jsonl", meta["questions"])
    file = folder.name if "latenttts" in name else folder.name.split("-")[1]
    place, where = tmp_path / "a.lake", ["--base", base] if base.is_dir() else []
    words = ["--model", f"m={folder}", "--data", data, "--lake", place, "--capture", "full", "--dtype", "float32"]
    words += ["--max-new-tokens", 16, "--batch-size", 3, *GOLDEN[name], *where]
    assert run_lake("extract", *words) == 0
    opened = open_lake(place)
    run = opened["m/d"]
    protocol = opened.model_attributes("m")["protocol"]
    reasoner = load_reasoner(folder, base if base.is_dir() else None, protocol=protocol, thoughts=6)
    state = torch.from_numpy(run["final_state"].isel(example=0).sel(position=reasoner.places.middle[-1]).values)
    with np.load(folder.parent / f"expected-{file}.npz") as expected:
        assert compare(run, expected) < 1e-4
        first = expected["0/first_logits"]
        np.testing.assert_allclose(reasoner.logits(state).numpy()[: len(first)], first, atol=1e-4)
    if name in HERE:  # each by itself
        assert run_lake("verify", place, "--recompute", 2, "--model", folder, *where) == 0


@pytest.mark.parametrize("places", [Places(), Places(8, 2), Places(0, 1), Places(0, 0, bot=False), Places(1, 2)])
def test_every_place_has_a_name_and_an_offset(places):
    labels = places.labels(4, 3)
    assert len(set(labels)) == len(labels) == 4 + places.n_middle + 3
    assert [places.offset(label) for label in labels] == list(range(-4, places.n_middle + 3))
    for label in {"bot", "eot", "eos", "ct0", "ct8", "q-0", "x"} - set(labels):
        with pytest.raises(ValueError, match=f"{label}.*; positions are q-N"):
            places.offset(label)


@pytest.mark.parametrize("capture", ["latent", "full"])
def test_a_model_without_thoughts_answers_from_the_questions_last_token(tmp_path, capture):
    model = plain_model(tmp_path / "m")
    questions = ["Ann had 12 pens.", "Tom has 7 apples and buys 5 more.", "Why?"]
    data = write_questions(tmp_path / "d.jsonl", questions)
    place = tmp_path / "x.lake"
    words = [
        "--model",
        f"m={tmp_path / 'm'}",
        "--data",
        data,
        "--lake",
        place,
        "--dtype",
        "float32",
        "--protocol",
        "cot",
    ]
    assert run_lake("plan", *words, "--capture", capture) == 0
    assert run_lake("extract", *words, "--capture", capture, "--max-new-tokens", 4) == 0
    run = open_lake(place)["m/d"].load()
    assert run["latent_embedding"].shape == (3, 0, 32)
    assert (str(run["segment"].sel(position="q-1").item()), int(run["offset"].sel(position="q-1"))) == ("question", 0)
    reasoner = load_reasoner(tmp_path / "m", protocol="cot")
    for row, question in enumerate(questions):
        prompt = reasoner.encode(question)
        assert prompt == reasoner.tokenizer(question + "\n")["input_ids"]
        tokens, out = answer_slowly(model, model.get_input_embeddings()(torch.tensor([prompt])), 4)
        labels = reasoner.places.labels(len(prompt) - 1, len(tokens))
        some = labels if capture == "full" else labels[len(prompt) - 1 :]
        found = run.isel(example=row).sel(position=some)
        assert found["token"].values[-len(tokens) :].tolist() == tokens
        np.testing.assert_allclose(found["final_state"], out.hidden_states[-1][0, -len(some) :], atol=1e-4)
        want = torch.stack(out.attentions)[:, 0, :, -len(some) :]
        np.testing.assert_allclose(found["attention"].sel(key_position=labels), want, atol=1e-5)
    assert run_lake("verify", place, "--recompute", 3, "--model", tmp_path / "m") == 0


def test_pause_feeds_one_vector_at_every_thought(tmp_path):
    model = plain_model(tmp_path / "base", vocabulary=VOCABULARY + 3)
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "base" / "config.json").read_text()) | {"vocab_size": VOCABULARY})
    )
    vector = torch.randn(32)
    state = {f"base_causallm.{name}": value for name, value in model.state_dict().items()}
    embedding = {"embedding.weight": model.get_input_embeddings().weight.detach()}
    torch.save(state | embedding | {"pause_embedding": vector[None]}, tmp_path / "checkpoint_7")
    with pytest.raises(UsageError, match="does not say how many thoughts it has; pass --thoughts N"):
        load_reasoner(tmp_path / "checkpoint_7", tmp_path / "base")
    reasoner = load_reasoner(tmp_path / "checkpoint_7", tmp_path / "base", thoughts=4)
    assert reasoner.protocol.name == "pause"
    prompts = [reasoner.encode("Ann had 12 pens."), reasoner.encode("Why?")]
    found = reasoner.think(prompts, stored_dtype="float32", max_new_tokens=3)
    embed = model.get_input_embeddings()
    for row, prompt in enumerate(prompts):
        assert prompt[-1] == VOCABULARY
        parts = [embed(torch.tensor(prompt)), vector.expand(4, -1), embed(torch.tensor([VOCABULARY + 1]))]
        tokens, out = answer_slowly(model, torch.cat(parts)[None], 3)
        assert found.token[row, 6 : 6 + len(tokens)].tolist() == tokens
        n = 6 + len(tokens)
        np.testing.assert_allclose(found.final_state[row, :n], out.hidden_states[-1][0, -n:], atol=1e-4)


def write_pccot(
    folder: Path, base: Path, saved: dict[str, torch.Tensor], tokens: list[int], *, n: int, rounds: int, projected: bool
) -> Any:
    """The folder that PCCoT's trainer leaves: adapters, rows trained apart, and its own settings; the tokenizer."""
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": value for name, value in saved.items()}, folder / "adapter_model.safetensors"
    )
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True,
               "layers_to_transform": [0],
               "modules_to_save": ["prj"] if projected else None, "base_model_name_or_path": str(base),
               "trainable_token_indices": {"wte": tokens}}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "pccot-gpt2", "num_iterations": rounds, "use_projection": projected,
               "vocab_size": VOCABULARY + 4}  # fmt: skip
    config |= {f"{mark}_token_id": VOCABULARY + row for row, mark in enumerate(("bot", "eot", "latent"))}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pccot_args.json").write_text(json.dumps({"num_latent_tokens": n, "answer_prompt": "The answer is:"}))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<pcot.bot>", "<pcot.eot>", "<pcot.latent>", "[PAD]"]})
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("projected", [True, False])
def test_thoughts_side_by_side_are_jacobis_iteration(projected, tmp_path):
    """PCCoT in the folder that PEFT saves: rows trained apart, tokenizer and config its own, weights with the base."""
    n, rounds = 5, 2
    model = plain_model(tmp_path / "base")
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    torch.manual_seed(2)
    grown, rows = torch.randn(VOCABULARY + 4, 32), torch.randn(5, 32)
    tokens = [*range(VOCABULARY, VOCABULARY + 4), 0]
    projection = torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32), torch.nn.LayerNorm(32)
    )
    folder = tmp_path / "m"
    down, up, module = torch.randn(2, 32), 0.1 * torch.randn(96, 2), "transformer.h.0.attn.c_attn"
    saved = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    saved |= {f"{where}.token_adapter.{kind}": value.clone() for where in ("transformer.wte", "lm_head")
              for kind, value in (("base_layer.weight", grown), ("trainable_tokens_delta", rows))}  # fmt: skip
    if projected:
        saved |= {f"prj.{name}": value for name, value in projection.state_dict().items()}
    tokenizer = write_pccot(folder, tmp_path / "base", saved, tokens, n=n, rounds=rounds, projected=projected)
    whole = grown.clone()
    whole[tokens] = rows
    weights["transformer.wte.weight"] = weights["lm_head.weight"] = whole
    weights[f"{module}.weight"] = weights[f"{module}.weight"] + 2 * (up @ down).T
    model.resize_token_embeddings(VOCABULARY + 4)
    model.load_state_dict(weights)
    questions = ["Ann had 12 pens.", "Tom has 7 apples and buys 5 more.", "Why?"]
    data, place = write_questions(tmp_path / "d.jsonl", questions), tmp_path / "x.lake"
    words = ["--data", data, "--lake", place, "--dtype", "float32", "--max-new-tokens", 12, "--batch-size", 3]
    assert run_lake("extract", "--model", f"m={folder}", *words) == 0
    assert run_lake("verify", place, "--recompute", 3, "--model", folder) == 0
    run = open_lake(place)["m/d"].load()
    given = tokenizer("The answer is:")["input_ids"]
    for row, question in enumerate(questions):
        prompt = [*tokenizer(question)["input_ids"], VOCABULARY]
        fed, vectors = think_in_rounds_slowly(
            model, projection if projected else torch.nn.Identity(), prompt, n, rounds
        )
        vectors = torch.cat([vectors, model.get_input_embeddings()(torch.tensor([given]))], 1)
        written, out = answer_slowly(model, vectors, 12 - len(given))
        labels = Places(n).labels(0, len(given) + len(written))
        one = run.isel(example=row).sel(position=labels)
        assert one["token"].values[n + 2 :].tolist() == given + written
        np.testing.assert_allclose(one["iteration_embedding"], fed.detach(), atol=1e-5)
        np.testing.assert_allclose(one["latent_embedding"], fed[-1].detach(), atol=1e-5)
        np.testing.assert_allclose(one["final_state"], out.hidden_states[-1][0, -len(labels) :], atol=1e-4)
        np.testing.assert_allclose(
            one["iteration_state"][-1], out.hidden_states[-1][0, len(prompt) : len(prompt) + n], atol=1e-4
        )
    with pytest.raises(UsageError, match="computes its thoughts side by side in 2 rounds"):
        open_target(open_lake(place), "m/d", checkpoint=str(folder))
    config = json.loads((folder / "config.json").read_text())
    for field, there in (("bot_token_id", VOCABULARY + 1), ("latent_token_id", None)):
        (folder / "config.json").write_text(json.dumps(config | {field: there}))
        with pytest.raises(
            UsageError, match=f"{field} is {there}, with this tokenizer it is {config[field]}; the token"
        ):
            load_reasoner(folder)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("pccot_args.json", "num_latent_tokens", None, "has no num_latent_tokens, which PCCoT's trainer writes"),
        ("pccot_args.json", "num_latent_tokens", 0, "num_latent_tokens is 0; it must be a whole number of at least 1"),
        ("pccot_args.json", "answer_prompt", 5, "answer_prompt is 5; it must be a text"),
        ("config.json", "num_iterations", None, "has no num_iterations"),
        ("config.json", "num_iterations", 2.0, "num_iterations is 2.0; it must be a whole number"),
        ("config.json", "use_projection", "false", "use_projection is 'false'; it must be true or false"),
    ],
)
def test_settings_of_rounds_that_are_lost_or_of_another_type_are_refused(file, field, value, message, tmp_path):
    said = {
        "pccot_args.json": {"num_latent_tokens": 5, "answer_prompt": "The answer is:"},
        "config.json": {"num_iterations": 2, "use_projection": False},
    }
    for name, fields in said.items():
        fields |= {field: value} if name == file else {}
        (tmp_path / name).write_text(json.dumps({key: one for key, one in fields.items() if one is not None}))
    with pytest.raises(UsageError, match=f"{file}.*{message}"):
        pccot_settings(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "pccot-llama"}')
    (tmp_path / "pccot_args.json").unlink()
    with pytest.raises(UsageError, match="is PCCoT's, but pccot_args.json, which its trainer writes, is not beside it"):
        pccot_settings(tmp_path)


def test_what_a_file_beside_the_weights_states_is_the_protocol(tmp_path):
    folder = shutil.copytree(DATA / "codi_eos_oracle" / "codi-llama", tmp_path / "codi")
    base = DATA / "codi_eos_oracle" / "base-llama"
    named = load_reasoner(folder, base, protocol="codi-eos")
    plain = load_reasoner(folder, base)
    assert named.fingerprint["weights"] != plain.fingerprint["weights"]
    prompt = named.encode("  Two  apples ")
    assert prompt == [*named.tokenizer("Two apples")["input_ids"], named.eos_id, VOCABULARY + 1]
    assert named.places.middle[-2:] == ["eot", "eos"]
    fields = {"name": "codi", "before_bot": ["eos"], "closing": ["[EOT]", "eos"]}
    for said in ("codi-eos", fields):
        (folder / "codi.json").write_text(json.dumps({"protocol": said}))
        assert load_reasoner(folder, base).fingerprint == named.fingerprint
    for said, message in [
        ("codi-eso", "'codi-eso' is not one of .*codi-eos"),
        ({"name": "codi", "before": "eos"}, "no field 'before'"),
        ({"name": "codi", "n_unwritten": "1"}, "n_unwritten of the protocol is '1', codi has 1"),
        ({"name": "codi", "fed": "noise"}, "not projection, state, vector, mixture or nothing"),
        ({"name": "codi", "before_bot": ["<|eot_id|>"]}, r"needs the token <\|eot_id\|>, which the tokenizer lacks"),
        (7, "must be a name, or fields"),
    ]:
        (folder / "codi.json").write_text(json.dumps({"protocol": said}))
        with pytest.raises(UsageError, match=message):
            load_reasoner(folder, base)


CODI_HERE = ["--model", f"m={ORACLE / 'codi-gpt2'}", "--base", ORACLE / "base-gpt2"]
COCONUT_HERE = [
    "--model",
    f"m={DATA / 'coconut_oracle' / 'coconut-gpt2'}",
    "--base",
    DATA / "coconut_oracle" / "base-gpt2",
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*CODI_HERE, "--protocol", "cody"], "protocol 'cody' is not one of codi, codi-eos"),
        ([*CODI_HERE, "--protocol", "coconut"], "weights of protocol coconut are named base_causallm.*"),
        ([*CODI_HERE, "--protocol", "codi-multimode"], "403 embedding rows, base has a vocabulary of 400 (+ 2)"),
        ([*CODI_HERE, "--thoughts", "0"], "--thoughts is 0; protocol codi needs a thought at least"),
        ([*CODI_HERE, "--thoughts", "-1"], "--thoughts is -1; it must be a whole number of at least 0"),
        ([*COCONUT_HERE, "--protocol", "pause"], "missing pause_embedding"),
        ([*COCONUT_HERE, "--protocol", "direct"], "403 embedding rows, base has a vocabulary of 400 (+ 0)"),
        (
            [*COCONUT_HERE, "--protocol", "direct", "--thoughts", "3"],
            "--thoughts is 3; protocol direct has no thoughts",
        ),
    ],
)
def test_each_mismatch_is_one_line(words, message, tmp_path, capsys):
    data = write_questions(tmp_path / "d.jsonl", ["Why?"])
    assert run_lake("extract", *words, "--data", data, "--lake", tmp_path / "x.lake") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x.lake").exists()


def test_a_model_without_markers_or_projection_is_asked_about(tmp_path):
    plain_model(tmp_path / "m")
    with pytest.raises(UsageError, match="say with --protocol how it is asked"):
        load_reasoner(tmp_path / "m")
    folder, base, _, _ = write_checkpoint(tmp_path, GPT2)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: value for name, value in state.items() if "prj" not in name}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"projection of .*protocol codi.*missing prj\.1\.bias"):
        load_reasoner(folder, base)


def test_the_default_protocol_is_the_official_one():
    assert PROTOCOLS["codi"] is CODI
    assert load_reasoner("small-gpt2").protocol == CODI


def test_tokens_that_are_parts_of_characters_are_told_by_their_bytes() -> None:
    assert sorted(byte_signs()) == sorted(ByteLevel.alphabet())
    sign_of = {byte: sign for sign, byte in byte_signs().items()}

    def token(content: bytes) -> str:
        return "".join(sign_of[byte] for byte in content)

    assert with_bytes(token(b" \xed"), " \ufffd") == " <0xED>"
    assert with_bytes(token("\u00e9".encode() + b"\xe2\x82"), "") == "\u00e9<0xE2><0x82>"
    assert with_bytes(token("\ufffd".encode()), "\ufffd") == "\ufffd"  # the character itself
    assert with_bytes("\u2581piece", "\ufffd") == "\ufffd"  # not in signs for bytes


def test_special_tokens_in_questions_are_told() -> None:
    """Words that the tokenizer does not know, special tokens in the text, and a first token that it adds itself."""
    reasoner = load_reasoner("small-gpt2")
    known = "Tom has 3 apples."
    assert reasoner.marks_in([known]) == ()
    lost, note = reasoner.marks_in([known, "日本", "Tom has 3<eos> apples.", "Tom has <unk>."])
    assert lost == "1 of 4 questions have words that the tokenizer does not know; the model reads <unk> in their place"
    assert note == "special tokens stand in 2 of 4 questions and are read as such, not as text: <eos>, <unk>"
    beginning = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    reasoner.tokenizer.backend_tokenizer.post_processor = beginning
    assert reasoner.encode(known)[:2] != reasoner.encode(f"<eos>{known}")[:2] == [0, 0]
    assert reasoner.marks_in([known]) == ()
    (note,) = reasoner.marks_in([known, f"<eos>{known}"])
    assert note.endswith(": <eos>; 1 begin with <eos>, which the tokenizer puts there, too: it stands there twice")
