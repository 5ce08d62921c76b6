"""The reasoner: official checkpoints, exact thinking at every batch size, capture, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codi_models import ORACLE, think_slowly, write_checkpoint
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from analyze.lens.readout import final_norm
from extract import Reasoner, load_reasoner
from extract.model.recorder import Recorder
from extract.model.thinking import Thinking
from extract.small_models.problems import draw_problem
from schemas import LakeError, UsageError, extract_answer


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def reasoner(request: pytest.FixtureRequest) -> Reasoner:
    return load_reasoner(ORACLE / f"codi-{request.param}", ORACLE / f"base-{request.param}")


def questions(architecture: str) -> list[str]:
    return json.loads((ORACLE / f"codi-{architecture}" / "meta.json").read_text())["questions"]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_oracle(reasoner: Reasoner, batch: int) -> None:
    prompts = [reasoner.encode(question) for question in questions(reasoner.architecture)]
    n_layer = reasoner.n_layer
    with np.load(ORACLE / f"expected-{reasoner.architecture}.npz") as expected:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            found = reasoner.think(
                part, capture="full", stored_dtype="float32", max_new_tokens=8, gold=["7"] * len(part)
            )
            n, thoughts = found.n_before, slice(found.n_before + 1, found.n_before + 7)
            for row, prompt in enumerate(part):
                want = {key: expected[f"{start + row}/{key}"] for key in (
                    "ids", "latents", "latent_hidden", "latent_attention", "prompt_hidden", "prompt_attention",
                    "first_logits", "answer_tokens")}  # fmt: skip
                asked = slice(n + 1 - len(prompt), n + 1)
                hidden, final, attention = found.hidden_state[row], found.final_state[row], found.attention[row]
                pairs = [
                    (found.token[row, asked], want["ids"]),
                    (found.latent_embedding[row], want["latents"][:6]),
                    (hidden[: n_layer - 1, thoughts].swapaxes(0, 1), want["latent_hidden"][:, 1:n_layer]),
                    (final[thoughts], want["latent_hidden"][:, n_layer]),
                    (hidden[: n_layer - 1, asked], want["prompt_hidden"][1:n_layer]),
                    (final[asked], want["prompt_hidden"][n_layer]),
                    (attention[:, :, thoughts, asked.start : n + 7].transpose(2, 0, 1, 3), want["latent_attention"]),
                    (attention[:, :, asked, asked], want["prompt_attention"]),
                    (final[n + 7] @ reasoner.unembedding[:-1].T, want["first_logits"]),
                ]
                for got, wanted in pairs:
                    np.testing.assert_allclose(got, wanted, atol=1e-4)
                tokens = found.token[row, n + 8 :]
                tokens = tokens[tokens >= 0]
                np.testing.assert_array_equal(tokens, want["answer_tokens"][: len(tokens)])
                assert len(tokens) == 8 or tokens[-1] == reasoner.eos_id
                # Padding: no state, no token, no attention from it or to it.
                assert np.isnan(hidden[:, : asked.start]).all()
                assert (found.token[row, : asked.start] == -1).all()
                assert not attention[:, :, : asked.start].any()
                assert not attention[..., : asked.start].any()


def test_batch_moves_nothing(reasoner: Reasoner) -> None:
    prompts = [reasoner.encode(question) for question in questions(reasoner.architecture)]
    gold = [str(number) for number in (3, 12, 140, 7, 0, 55, 6, 1)]
    together = reasoner.think(prompts, stored_dtype="float32", max_new_tokens=5, gold=gold)
    for row, prompt in enumerate(prompts):
        alone = reasoner.think([prompt], stored_dtype="float32", max_new_tokens=5, gold=[gold[row]])
        assert alone.generated_text[0] == together.generated_text[row]
        np.testing.assert_allclose(alone.answer_logprob[0], together.answer_logprob[row], atol=1e-4)
        np.testing.assert_allclose(
            alone.hidden_state[0], together.hidden_state[row, :, : alone.hidden_state.shape[2]], atol=1e-4
        )
    # From bot on, a latent capture is a full one.
    full = reasoner.think(prompts, capture="full", stored_dtype="float32", max_new_tokens=5)
    np.testing.assert_allclose(together.attention, full.attention[:, :, :, full.n_before :], atol=1e-5)
    np.testing.assert_array_equal(together.token, full.token[:, full.n_before :])


@pytest.mark.parametrize("n_new", [24, 6])
@pytest.mark.parametrize("name", ["small-gpt2", "small-llama"])
def test_gold_answers_move_nothing_and_right_ones_are_not_written_twice(name: str, n_new: int) -> None:
    reasoner, rng, passes = load_reasoner(name), np.random.default_rng(0), []
    prompts = [reasoner.encode(draw_problem(rng, 2).question) for _ in range(8)]
    plain = reasoner.think(prompts, capture="full", stored_dtype="float32", max_new_tokens=n_new)
    whole = reasoner.think(prompts, capture=None, max_new_tokens=24).generated_text
    said = [str(int(extract_answer(text) or 0)) for text in whole]
    mixed = [
        said[0],
        said[1] + "7",
        said[2][:-1] or "5",
        said[3][:-1] + str(9 - int(said[3][-1])),
        "1",
        "204",
        *said[6:],
    ]
    hook = reasoner._body.register_forward_hook(lambda *_: passes.append(1))
    for gold in (said, mixed, [said[0], *mixed[1:2] * 7]):
        passes.clear()
        found = reasoner.think(prompts, capture="full", stored_dtype="float32", max_new_tokens=n_new, gold=gold)
        assert found.generated_text == plain.generated_text
        np.testing.assert_array_equal(found.token, plain.token)
        for values in ("hidden_state", "final_state", "attention"):
            np.testing.assert_allclose(getattr(found, values), getattr(plain, values), atol=1e-4)
        assert gold is not said or len(passes) == 1 + reasoner.n_latent + 1
    hook.remove()


def test_answer_logprob_is_that_of_a_plain_forward(reasoner: Reasoner) -> None:
    prompt = reasoner.encode(questions(reasoner.architecture)[0])
    found = reasoner.think([prompt], stored_dtype="float32", max_new_tokens=4, gold=["112"])
    embed = reasoner.model.get_input_embeddings()
    answer = reasoner.answer_tokens("112")
    with torch.no_grad():
        vectors = torch.cat(
            [
                embed(torch.tensor(prompt)),
                torch.from_numpy(found.latent_embedding[0]),
                embed(torch.tensor([reasoner.eot_id, *answer])),
            ]
        )
        log_p = reasoner.model(inputs_embeds=vectors[None]).logits[0].log_softmax(-1)
    each = log_p[len(prompt) + 6 : -1].gather(-1, torch.tensor(answer)[:, None])[:, 0]
    assert float(found.answer_logprob[0]) == pytest.approx(float(each[reasoner.prefix_length("112") :].sum()), abs=1e-4)


ROPE = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 10000.0}  # fmt: skip
GPT2 = {"n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = {"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 128, "pad_token_id": None}
CONFIGS = {
    "gpt2": (GPT2Config(n_embd=40, n_head=5, n_layer=2, **GPT2), {"inner": 24}),
    "gpt2 plain, with fields of other architectures": (
        GPT2Config(n_embd=32, n_head=2, n_layer=3, n_inner=48, scale_attn_by_inverse_layer_idx=True,
                   head_dim=4, num_key_value_heads=1, final_logit_softcapping=3.0, **GPT2),
        {"rank": None, "norm": False}),
    "llama3 rope, wide heads": (
        LlamaConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=3,
                    intermediate_size=64, rope_parameters=ROPE, tie_word_embeddings=True, **LLAMA), {"rank": 3}),
    "linear rope, biases, untied": (
        LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=1, num_hidden_layers=2,
                    intermediate_size=48, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                    rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, **LLAMA),
        {"norm": False}),
    "qwen2, tied": (
        Qwen2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
                    intermediate_size=48, tie_word_embeddings=True, **LLAMA), {}),
    "mistral, short window": (
        MistralConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
                      intermediate_size=48, sliding_window=7, **LLAMA), {}),
    "phi3, queries, keys and values in one": (
        Phi3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
                   intermediate_size=48, sliding_window=9, **LLAMA), {"rank": None}),
    "smollm3, a layer without rotary positions": (
        SmolLM3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4,
                      intermediate_size=48, no_rope_layer_interval=2, **LLAMA), {}),
    "olmo2, norms after": (
        Olmo2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
                    intermediate_size=48, **LLAMA), {}),
    "gemma2, soft caps and windows": (
        Gemma2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=12, num_hidden_layers=4,
                     intermediate_size=48, sliding_window=6, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
                     query_pre_attn_scalar=12, **LLAMA), {}),
    "gemma3, windows of some layers": (
        Gemma3TextConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=1, head_dim=8, num_hidden_layers=4,
                         intermediate_size=48, sliding_window=6, sliding_window_pattern=2, query_pre_attn_scalar=8,
                         **LLAMA), {}),
    "gpt_neox, in parallel": (
        GPTNeoXConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48,
                      rotary_pct=0.5, bos_token_id=0, eos_token_id=0, max_position_embeddings=128), {}),
    "qwen3, heads of their own width, untied": (
        Qwen3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=2,
                    intermediate_size=48, tie_word_embeddings=False, **LLAMA), {}),
}  # fmt: skip


ASKED = (
    "Ann had 12 pens and 3 caps. How many?", "Why 4 or 15 or more?", "Two?", "Tom has 7 apples and buys 5 more.",
    "What is 3 and 4?", "Why?", "Ann had 12 pens.", "Bo gave 2 of 9 caps to Tom, and Tom gave 1 to Ann. And now?",
)  # fmt: skip


@pytest.mark.parametrize("name", list(CONFIGS))
def test_other_settings(name: str, tmp_path: Path) -> None:
    config, options = CONFIGS[name]
    checkpoint, base, model, projection = write_checkpoint(tmp_path, config, **options)
    reasoner = load_reasoner(checkpoint, base)
    prompts = [reasoner.encode(question) for question in ASKED]
    wanted = [think_slowly(model, projection, prompt, 3) for prompt in prompts]
    for batch in (1, 3, 8):
        found = reasoner.think(prompts[-batch:], capture="full", stored_dtype="float32", max_new_tokens=3)
        for row, (prompt, want) in enumerate(zip(prompts[-batch:], wanted[-batch:], strict=True)):
            check_row(reasoner, found, row, len(prompt), want)


def check_row(reasoner: Reasoner, found: Thinking, row: int, n_prompt: int, want: dict[str, Any]) -> None:
    """Hold one row of a batch against what transformers computes of that prompt alone, the whole sequence anew."""
    start = found.n_before + 1 - n_prompt
    end = start + want["hidden"].shape[1]
    np.testing.assert_allclose(found.latent_embedding[row], want["latents"], atol=1e-4)
    np.testing.assert_allclose(found.hidden_state[row, :-1, start:end], want["hidden"][1:-1], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(found.final_state[row, start:end], want["hidden"][-1], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(found.attention[row, :, :, start:end, start:end], want["attention"], atol=1e-5)
    tokens = found.token[row, found.n_before + 8 :]
    assert tokens[tokens >= 0].tolist() == want["tokens"]
    normed = final_norm(  # as a lens does it from what the lake keeps of the model
        found.hidden_state[row, -1, start:end], kind=reasoner.final_norm, weight=reasoner.final_norm_weight,
        bias=reasoner.final_norm_bias, epsilon=reasoner.final_norm_epsilon,
    )  # fmt: skip
    np.testing.assert_allclose(normed, want["hidden"][-1], atol=2e-4, rtol=1e-4)
    logits = reasoner.logits(torch.as_tensor(found.final_state[row, found.n_before + 7]))
    np.testing.assert_allclose(logits.numpy(), want["first_logits"], atol=2e-4, rtol=1e-4)


def test_a_head_of_an_older_name_is_the_same_model(tmp_path: Path) -> None:
    checkpoint, base, _, _ = write_checkpoint(tmp_path, CONFIGS["gpt_neox, in parallel"][0])
    found = load_reasoner(checkpoint, base).unembedding
    file = checkpoint / "pytorch_model.bin"
    state = torch.load(file)
    torch.save({key.replace("lm_head", "embed_out"): value for key, value in state.items()}, file)
    np.testing.assert_array_equal(load_reasoner(checkpoint, base).unembedding, found)


def test_safetensors_without_one_of_the_tied_keys_is_the_same_model(tmp_path: Path) -> None:
    state = torch.load(ORACLE / "codi-gpt2" / "pytorch_model.bin", weights_only=True)
    embedding = "codi.base_model.model.transformer.wte.weight"
    prompt = None
    for dropped in (embedding, "codi.base_model.model.lm_head.weight"):
        folder = tmp_path / dropped
        folder.mkdir()
        save_file(
            {key: value.contiguous() for key, value in state.items() if key != dropped}, folder / "model.safetensors"
        )
        reasoner = load_reasoner(folder, ORACLE / "base-gpt2")
        prompt = reasoner.encode("Ann had 12 pens.")
        found = reasoner.think([prompt], stored_dtype="float32", max_new_tokens=2)
        whole = load_reasoner(ORACLE / "codi-gpt2", ORACLE / "base-gpt2").think(
            [prompt], stored_dtype="float32", max_new_tokens=2
        )
        np.testing.assert_array_equal(found.final_state, whole.final_state)


def test_model_comes_out_as_it_went_in(reasoner: Reasoner) -> None:
    def state() -> list[object]:
        return [
            reasoner.device, reasoner.model.dtype, reasoner.model.config._attn_implementation,
            [module.training for module in reasoner.model.modules()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in reasoner.model.modules()],
            [parameter.requires_grad for parameter in reasoner.model.parameters()],
        ]  # fmt: skip

    class Breaking:
        def touches(self, *_: object) -> bool:
            raise RuntimeError("in the middle of it")

    reasoner.model.train()
    before = state()
    prompt = reasoner.encode("Ann had 12 pens.")
    reasoner.think([prompt], max_new_tokens=2)
    assert state() == before
    with pytest.raises(RuntimeError, match="in the middle"):
        reasoner.think([prompt], max_new_tokens=2, editor=Breaking())  # type: ignore[arg-type]
    assert state() == before
    reasoner.model.eval()


def test_states_beyond_the_stored_type_are_refused(tmp_path: Path) -> None:
    state = torch.load(ORACLE / "codi-gpt2" / "pytorch_model.bin", weights_only=True)
    state["codi.base_model.model.transformer.h.2.mlp.c_proj.base_layer.bias"] += 1e5
    torch.save(state, tmp_path / "pytorch_model.bin")
    reasoner = load_reasoner(tmp_path, ORACLE / "base-gpt2")
    prompt = reasoner.encode("Ann had 12 pens.")
    with pytest.raises(LakeError, match="layer 2 reach .*--dtype float32"):
        reasoner.think([prompt], max_new_tokens=2)
    assert reasoner.think([prompt], stored_dtype="float32", max_new_tokens=2).hidden_state is not None


@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_attention_to_what_comes_later_is_an_error(share: float) -> None:
    recorder = Recorder(
        rows=2, layers=1, heads=1, hidden=2, columns=3, first=0, latents=1, rounds=0, stored=torch.float32,
        device=torch.device("cpu"), parts={},
    )  # fmt: skip
    past = torch.ones(3, 3).tril() / torch.arange(1, 4)[:, None]
    later = torch.tensor([[-share, share, 0], [0, 0, 0], [0, 0, 0]])
    padded = past.clone()
    padded[0] = torch.nan
    recorder.probabilities(0, torch.stack([past + later, padded])[:, None], 0, None)
    measured = recorder.finish(torch.tensor([[True, True, True], [False, True, True]]), 3)[1]
    if share:
        with pytest.raises(LakeError, match="past sum to 1 only within 1.0e-03"):
            recorder.check(measured)
    else:
        recorder.check(measured)


@pytest.mark.parametrize("config", [
    Phi3Config(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, **LLAMA,
               original_max_position_embeddings=30, rope_parameters={
                   "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4}),
    LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48,
                **LLAMA | {"max_position_embeddings": 30}, rope_parameters={
                    "rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
])  # fmt: skip
def test_a_long_question_beside_it_does_not_turn_a_short_ones_positions(config: Any, tmp_path: Path) -> None:
    checkpoint, base, model, projection = write_checkpoint(tmp_path, config)
    reasoner = load_reasoner(checkpoint, base)
    short, fits, long = (reasoner.encode(question) for question in ("Two?", ASKED[1], ASKED[7]))
    with pytest.raises(UsageError, match="question 1 of the batch has .* has 30"):
        reasoner.think([short, long], max_new_tokens=3)
    found = reasoner.think([short, fits], capture="full", stored_dtype="float32", max_new_tokens=3)
    check_row(reasoner, found, 0, len(short), think_slowly(model, projection, short, 3))
