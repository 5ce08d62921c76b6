"""Mixtures of words as thoughts, against a loop by hand over plain transformers, without a cache."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import run_lake
from safetensors.torch import save_file
from slow_protocols import GPT2, answer_slowly, plain_model, write_questions
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig

from extract import load_reasoner
from extract.model.feeding import Mixture
from extract.model.protocols import PROTOCOLS
from extract.reenter.jacobian.passes import Probes, read_question, think_through
from extract.run.extract import extract, prepare
from extract.run.recompute import compare
from schemas import RunSpec, UsageError
from schemas.naming import FED
from store import open_lake

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 48, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
         "pad_token_id": None}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(n_positions=128, n_embd=32, n_head=2, n_layer=2, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
}
TEMPLATE = (
    "{{ strftime_now('%B') }} {% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}[model]:{% endif %}"
)
QUESTIONS = ["Ann had 12 pens.", "Tom has 7 apples and buys 5 more.", "Why?"]
N, N_NEW, PREFIX = 3, 9, "The answer is:"


def model_of(folder: Path, kind: str, template: str | None = TEMPLATE) -> Any:
    """A random model in a folder, with a chat template or without; LLaMA's head is not tied."""
    model = plain_model(folder, CONFIGS[kind])
    if kind == "llama":
        save_file(dict(model.state_dict()), folder / "model.safetensors")
    if template:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return model


def mixed(logits: torch.Tensor, words: torch.Tensor, rule: Any) -> torch.Tensor:
    """The official sampler's mixture for logits ``(word,)`` of one place, word by word; ``words (word, hidden)``."""
    share = {word: float(p) for word, p in enumerate(torch.softmax(logits.double() / rule.temperature, 0))}

    def renormed(kept: list[int]) -> None:
        total = sum(share[word] for word in kept)
        for word in list(share):
            share[word] = share[word] / total if word in kept else 0.0

    by_share = sorted(share, key=lambda word: -share[word])
    renormed(by_share[: rule.top_k or len(by_share)])
    nucleus, reached = [], 0.0
    for word in by_share:
        if reached < rule.top_p:
            nucleus.append(word)
            reached += share[word]
    renormed(nucleus)
    renormed([word for word in nucleus if share[word] >= rule.min_p * share[by_share[0]]])
    renormed(by_share[: rule.max_topk])
    return torch.stack([share[word] * words[word].double() for word in by_share[: rule.max_topk]]).sum(0).float()


def think_by_hand(model: Any, rule: Any, prompt: list[int], closing: list[int], moved: Any = 0.0) -> Any:
    """Vectors ``(place, hidden)`` of prompt, thoughts and closing; the first thought moved by a vector."""
    words = model.get_input_embeddings()(torch.arange(model.config.vocab_size))
    vectors = words[prompt]
    for index in range(N):
        logits = model(inputs_embeds=vectors[None]).logits[0, -1]
        vector = mixed(logits.detach(), words, rule) if isinstance(moved, float) else mixture(logits, words, rule)
        vectors = torch.cat([vectors, (vector + (0 if index else moved))[None]])
    return torch.cat([vectors, words[closing]])


def mixture(logits: torch.Tensor, words: torch.Tensor, rule: Any) -> torch.Tensor:
    """The same where only ``max_topk`` and temperature are set, in operations that torch differentiates."""
    kept = logits.topk(rule.max_topk).indices
    return torch.softmax(logits[kept] / rule.temperature, 0) @ words[kept]


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 0}, {"top_k": 6, "top_p": 0.5}, {"top_p": 1, "min_p": 0.3}, {"temperature": 3, "max_topk": 40}],
)
def test_the_words_mixed_are_those_of_the_official_sampler(changes: dict[str, Any]) -> None:
    torch.manual_seed(4)
    logits, words = 3 * torch.randn(5, 60), torch.randn(60, 8)
    rule = replace(PROTOCOLS["soft"], **{"temperature": 1.0, **changes})
    mixture = Mixture(rule)
    mixture.logits, mixture.embed = lambda state: state, lambda tokens: words[tokens]
    wanted = torch.stack([mixed(each, words, rule) for each in logits])
    np.testing.assert_allclose(mixture(logits), wanted, atol=1e-6)
    assert mixture(logits.bfloat16()).dtype == torch.bfloat16


SHARP = {"temperature": 0.15}
"""At which words of a random model differ enough for every bound to matter."""


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("llama", {"top_k": 0, "top_p": 0.6, "max_topk": 25}),
        ("gemma3", {"top_p": 1, "min_p": 0.1, "bot": "<think>\n", "closing": [":", "\n"]}),
    ],
)
def test_a_loop_by_hand_in_plain_transformers_thinks_the_same(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(tmp_path / "m", kind, None if kind == "gpt2" else TEMPLATE)
    reasoner = load_reasoner(tmp_path / "m", protocol={"name": "soft", **SHARP, **changes}, thoughts=N)
    tokenizer, embed = reasoner.tokenizer, model.get_input_embeddings()

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    closing = [token for text in changes.get("closing", ["\n"]) for token in plain(text)]
    batch = reasoner.think(
        [reasoner.encode(question) for question in QUESTIONS], capture="full", stored_dtype="float32",
        max_new_tokens=N_NEW,
    )  # fmt: skip
    for row, question in enumerate(QUESTIONS):
        if kind == "gpt2":
            prompt = [*tokenizer(question)["input_ids"], *plain("\n")]
        else:
            prompt = [*plain(f"26 Jul 2024 [user] {question} [model]:"), *plain(str(changes.get("bot", "")))]
        with torch.no_grad():
            vectors = think_by_hand(model, reasoner.protocol, prompt, closing)
            fed = torch.cat([vectors, embed(torch.tensor(plain(PREFIX)))])[None]
        tokens, out = answer_slowly(model, fed, N_NEW - len(plain(PREFIX)))
        tokens = [*prompt, *[-1] * N, *closing, *plain(PREFIX), *tokens]
        first = batch.n_before + 1 - len(prompt)
        assert batch.token[row, first : first + len(tokens)].tolist() == tokens
        thoughts, final = vectors[len(prompt) : len(prompt) + N].numpy(), out.hidden_states[-1][0].numpy()
        np.testing.assert_allclose(batch.latent_embedding[row], thoughts, atol=1e-5 * np.abs(thoughts).max())
        found = batch.final_state[row, first : first + len(tokens)]
        np.testing.assert_allclose(found, final, atol=1e-5 * np.abs(final).max())


def test_a_lake_knows_the_fields_of_a_protocol_wherever_their_file_is(tmp_path: Path) -> None:
    model_of(tmp_path / "m", "gpt2", None)
    fields, place = tmp_path / "mine.json", tmp_path / "a.lake"
    fields.write_text(json.dumps({"name": "soft", "temperature": 1}))
    data = write_questions(tmp_path / "d.jsonl", QUESTIONS)
    words = ["--model", f"m={tmp_path / 'm'}", "--protocol", fields, "--thoughts", N, "--data", data, "--lake", place]
    assert run_lake("extract", *words, "--dtype", "float32", "--max-new-tokens", N_NEW) == 0
    fields.unlink()
    assert open_lake(place).model_attributes("m")["protocol_fields"] == {"name": "soft", "temperature": 1}
    assert run_lake("verify", place, "--recompute", 3, "--model", tmp_path / "m") == 0
    assert run_lake("reenter", "graph", place, "m/d", "--checkpoint", tmp_path / "m") == 0


def test_the_control_feeds_the_likeliest_words_themselves(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", "llama")
    for protocol, same in (("hard", True), ("soft", False)):
        reasoner = load_reasoner(tmp_path / "m", protocol=protocol, thoughts=N)
        prompts = [reasoner.encode(question) for question in QUESTIONS]
        found = reasoner.think(prompts, stored_dtype="float32", max_new_tokens=5)
        for row, prompt in enumerate(prompts):
            tokens: list[int] = []
            for _ in range(N):
                tokens.append(int(model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].argmax()))
            fed = model.get_input_embeddings()(torch.tensor(tokens)).detach().numpy()
            assert np.array_equal(found.latent_embedding[row], fed) == same
            whole = torch.tensor([[*prompt, *tokens, *reasoner.closing_ids, *found.token[row, -found.n_answer :]]])
            if same:
                final = model(whole, output_hidden_states=True).hidden_states[-1][0, len(prompt) - 1 :].detach()
                np.testing.assert_allclose(found.final_state[row], final, atol=1e-5)


def test_gradients_pass_through_the_mixture(tmp_path: Path) -> None:
    model = model_of(tmp_path / "m", "llama")
    rule = {"name": "soft", "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "max_topk": 6}
    reasoner = load_reasoner(tmp_path / "m", protocol=rule, thoughts=N)
    prompt = reasoner.encode(QUESTIONS[1])
    moved = torch.zeros(32, requires_grad=True)
    vectors = think_by_hand(model, reasoner.protocol, prompt, reasoner.closing_ids, moved)
    final = model(inputs_embeds=vectors[None], output_hidden_states=True).hidden_states[-1][0, -1]
    wanted = torch.stack([torch.autograd.grad(each, moved, retain_graph=True)[0] for each in final])
    with reasoner.session():
        flight, bot = read_question(reasoner, [prompt], 0)
        flight.editor = probes = Probes([(FED, 1)], 32, reasoner.device)
        state = think_through(flight, bot, ())[-1][0]
        batch = torch.eye(32)
        (found,) = torch.autograd.grad(state, probes.zeros[FED, 1], batch, is_grads_batched=True)
    np.testing.assert_allclose(found.reshape(32, 32), wanted, atol=1e-4 * float(wanted.abs().max()))
    # Without the thoughts after the first it would be another.
    later = vectors.detach()
    place = later[len(prompt)].clone().requires_grad_(True)
    cut = torch.cat([later[: len(prompt)], place[None], later[len(prompt) + 1 :]])
    final = model(inputs_embeds=cut[None], output_hidden_states=True).hidden_states[-1][0, -1]
    direct = torch.stack([torch.autograd.grad(each, place, retain_graph=True)[0] for each in final])
    assert float((direct - wanted).abs().max()) > 0.05 * float(wanted.abs().max())


def test_a_mixture_of_other_words_is_counted_and_ends_the_comparison(tmp_path: Path) -> None:
    model_of(tmp_path / "m", "gpt2", None)
    data = write_questions(tmp_path / "d.jsonl", [f"Ann had {n} pens." for n in range(12)])
    spec = RunSpec(dtype="float32", max_new_tokens=N_NEW)
    prepared = prepare(f"m={tmp_path / 'm'}", str(data), tmp_path / "a.lake", spec, protocol="soft", thoughts=N)
    extract(prepared, tmp_path / "a.lake")
    lake = open_lake(tmp_path / "a.lake")
    run, precision = lake["m/d"].load(), lake.attributes("m/d")["precision"]
    assert precision["other_thoughts"] == 0

    def turned(n_example: int, first: str = "ct1") -> Any:
        """Verdict on a run some of whose examples differ from a thought on."""
        other = run.copy(deep=True)
        start = other["position"].values.tolist().index(first)
        for name in ("hidden_state", "final_state"):
            other[name][:n_example, ..., start:, :] *= 1.05
        other["latent_embedding"][:n_example, 1:] *= 1.05
        other["generated_text"][:n_example] = "something else"
        return compare(prepared.reasoner, other, prepared.spec, 12, precision=precision)

    for n_example, agrees in ((0, True), (2, True), (3, False)):
        found = turned(n_example)
        assert (found.other_thoughts, found.other_texts, found.agrees) == (n_example, 0, agrees)
    assert turned(1, "ct0").beyond  # before the thought nothing may be another
    # Any but a mixture's are rounding or wrong.
    prepared.reasoner.protocol = replace(
        prepared.reasoner.protocol, fed="state", max_topk=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
    )
    assert "latent_embedding" in turned(1).beyond


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_topk": 0}, "fed is 'mixture', max_topk 0; a mixture is of 1 word at least"),
        ({"top_p": 0.0}, "temperature is 0.6, top_p 0.0, min_p 0.001; they lie above 0"),
        ({"temperature": "1"}, "temperature of the protocol is '1', soft has 0.6"),
        ({"closing": ["</think>"]}, r"closes the thoughts with '</think>', which this tokenizer makes \d tokens"),
        ({"closing": ["", "a b"]}, r"closes the thoughts with '' 'a b', which this tokenizer makes \d tokens"),
        ({"temperature": 10**400}, "temperature of the protocol is 10+, soft has 0.6"),
        ({"fed": "state", "max_topk": 0}, "temperature, top_k, top_p, min_p set how words are mixed; fed is 'state'"),
        ({"writes_steps": True}, "writes no steps before it"),
        ({"name": "soft-think"}, r"closes the thoughts with '</think>', which this tokenizer makes \d tokens"),
        ({"top": 3}, "protocol has no field 'top'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    plain_model(tmp_path / "m", GPT2)
    with pytest.raises(UsageError, match=said):
        load_reasoner(tmp_path / "m", protocol={"name": "soft", **changes}, thoughts=2)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0].content }}", "the chat template ends with the question"),
        ("{{ raise_exception('roles must alternate') }}", "chat template cannot be filled in: roles must alternate"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template: str, said: str, tmp_path: Path) -> None:
    model_of(tmp_path / "m", "gpt2", template)
    with pytest.raises(UsageError, match=said):
        load_reasoner(tmp_path / "m", protocol="soft", thoughts=2)
