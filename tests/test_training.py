"""Training adapters for a base: exactness against load_reasoner, losses against a slow reference, resuming, stories."""

import functools
import itertools
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import forked_lake, run_lake
from safetensors.torch import load_file
from torch.nn import functional
from training_bases import CONFIGS, EXAMPLES, QUESTIONS, make_base, settings, stirred, write_sums
from transformers import Gemma2Config

from extract import load_reasoner
from extract.training.data import read_examples
from extract.training.loop import BEST, Training, Watch, train
from extract.training.losses import draw_exchanged, losses
from extract.training.state import STATE, read_state
from extract.training.table import Table
from schemas import Control, UsageError
from schemas.controls import control_among
from store import open_lake


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of a small random base of an architecture, made once."""
    return functools.cache(lambda architecture: make_base(tmp_path_factory.mktemp(architecture), architecture))


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


TRAINED = ("codi", "codi-pause", "codi-multipass-pause", "coconut", "pause", "multipass-pause", "direct", "cot")


@pytest.mark.parametrize(
    ("architecture", "protocol"),
    [*((name, "codi") for name in CONFIGS), *((("gpt2", "llama-untied")[i % 2], p) for i, p in enumerate(TRAINED[1:]))],
)
def test_what_was_trained_is_what_loads(base: Any, tmp_path: Path, architecture: str, protocol: Any) -> None:
    training = stirred(Training(settings(base(architecture), protocol=protocol), "cpu"))
    training.save_checkpoint(tmp_path, dtype=torch.float32)
    reasoner = load_reasoner(tmp_path)
    assert reasoner.protocol.name == protocol
    student = training.student
    batch = Table(training.reasoner, EXAMPLES).batch(np.arange(len(EXAMPLES)))
    with torch.no_grad():
        student.merge()
        thinking = student.think(batch)
        fed = [student.projection(state).detach() for state in thinking.states[:, 1:-1].unbind(1)]
        words, extra = student.logits(student.follow(thinking, batch, batch.answer))
    logits = words if extra is None else torch.cat([words, extra], -1)
    answers = [example.answer for example in EXAMPLES]
    prompts = [reasoner.encode(question) for question in QUESTIONS]
    found = reasoner.think(prompts, gold=answers, stored_dtype="float32")
    if reasoner.n_latent:
        np.testing.assert_allclose(torch.stack(fed, 1), found.latent_embedding, atol=1e-5)
    if protocol == "cot":  # judged after the steps that it writes itself
        return
    chosen = logits.log_softmax(-1).gather(-1, batch.answer.clamp_min(0)[..., None])[..., 0]
    for row, answer in enumerate(answers):
        asked = slice(reasoner.prefix_length(answer), len(reasoner.answer_tokens(answer)))
        assert float(chosen[row, asked].sum()) == pytest.approx(found.answer_logprob[row], abs=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_losses_are_those_of_whole_sequences_without_cache_or_padding(
    base: Any, tmp_path: Path, architecture: str
) -> None:
    scale: Any = "component" if architecture == "gpt2" else "layer"
    training = stirred(Training(settings(base(architecture), last_step=True, distillation_scale=scale), "cpu"))
    training.save_checkpoint(tmp_path, dtype=torch.float32)
    reasoner = load_reasoner(tmp_path)
    model: Any = reasoner.model
    embed = model.get_input_embeddings()
    sides: dict[str, list[Any]] = {"answer": [], "teacher": []}
    with torch.no_grad():
        for example in EXAMPLES:
            prompt = reasoner.encode(example.question)
            answer = reasoner.answer_tokens(example.answer)
            colon = len(answer) - reasoner.answer_start(example.answer)
            vectors = embed(torch.tensor([prompt]))
            for _ in range(6):
                state = model.base_model(inputs_embeds=vectors).last_hidden_state[:, -1:]
                vectors = torch.cat([vectors, reasoner.projection(state)], 1)
            vectors = torch.cat([vectors, embed(torch.tensor([[reasoner.eot_id, *answer[:-1]]]))], 1)
            chain = reasoner.tokenizer(" ".join(example.steps), add_special_tokens=False)["input_ids"]
            written = embed(torch.tensor([[*prompt[:-1], *chain, *answer[:-1]]]))
            for side, fed, text in (("answer", vectors, answer), ("teacher", written, [*chain, *answer])):
                out = model(inputs_embeds=fed, output_hidden_states=True)
                loss = functional.cross_entropy(out.logits[0, -len(text) :], torch.tensor(text), reduction="sum")
                sides[side].append((float(loss), len(text), torch.stack(out.hidden_states)[:, 0, -colon]))
    expected = {side: sum(row[0] for row in rows) / sum(row[1] for row in rows) for side, rows in sides.items()}
    student, teacher = (torch.stack([row[2] for row in sides[side]], 1) for side in ("answer", "teacher"))
    over = [t.std(0, correction=0).clamp_min(0.01 * t.std()) if scale == "component" else t.std() for t in teacher[1:]]
    distances = [
        functional.smooth_l1_loss(s / d, t / d) if scale == "component" else functional.smooth_l1_loss(s, t) / d
        for s, t, d in zip(student[1:], teacher[1:], over, strict=True)
    ]
    expected["distillation"] = float(torch.stack(distances).sum()) / (len(distances) + 1)
    table = Table(training.reasoner, EXAMPLES, last_step=True)
    with torch.no_grad():
        found = losses(training.student, table.batch(np.arange(len(EXAMPLES))))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-5)


def test_gradient_is_the_slope_of_the_loss(base: Any) -> None:
    training = stirred(Training(settings(base("llama")), "cpu"))
    table = Table(training.reasoner, EXAMPLES)
    batch = table.batch(np.arange(len(EXAMPLES)))
    student = training.student

    def loss() -> torch.Tensor:
        return losses(student, batch)["answer"]

    loss().backward()
    for parameter in (
        student.extra_rows,
        *list(student.adapters.values())[3].parameters(),
        *student.projection.parameters(),
    ):
        direction = torch.randn_like(parameter)
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * 1e-3)
                values.append(float(loss()))
                parameter.add_(direction, alpha=-sign * 1e-3)
        assert slope == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2, abs=2e-3)


def test_parts_of_a_step_give_the_gradient_of_the_whole(base: Any) -> None:
    gradients = []
    for parts in (1, 3):
        training = stirred(Training(settings(base("gpt2"), accumulate=parts, distillation_weight=0.0), "cpu"))
        table = Table(training.reasoner, [EXAMPLES[0]] * 6)
        training._gradient(table, np.arange(6))
        found = [each.grad.flatten() for each in training.parameters if each.grad is not None]
        gradients.append(torch.cat(found))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_training_learns_and_measures_what_is_held_out(base: Any, sums: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("\n".join(sums.read_text(encoding="utf-8").splitlines()[:4]).upper(), encoding="utf-8")
    held_out.write_text(held_out.read_text().replace("QUESTION", "question").replace("ANSWER", "answer"))
    lines: list[str] = []
    wanted = settings(base("llama"), sums, "stories:5*2", steps=20, batch_size=16, learning_rate=2e-2)
    watch = Watch(say=lines.append, log_every=10, save_every=0)
    out = train(wanted, tmp_path / "out", validation=[str(held_out)], watch=watch)
    record = json.loads((out / "training.json").read_text())
    saves = [entry for entry in record["curve"] if "held-out" in entry]
    best = json.loads((out / BEST / "training.json").read_text())
    assert best["step"] == max(saves, key=lambda entry: entry["held-out"])["step"] < record["step"]
    assert load_reasoner(out / BEST).n_latent == 6
    assert not any("begin anew" in line for line in lines)
    curve = [entry["answer"] for entry in record["curve"] if "answer" in entry]
    assert curve[-1] < 0.8 * curve[0]
    assert lines[0] == "sums: 32 problems, 4 left out because they are held out"
    assert set(record["curve"][-1]) == {"step", "seconds", "held-out", "held-out without thoughts"}
    reasoner = load_reasoner(out)
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    thinking = reasoner.think([reasoner.encode(row["question"]) for row in rows], capture=None, max_new_tokens=12)
    golds = [row["answer"].rpartition(" ")[2] for row in rows]
    prefix = reasoner.answer_prefix
    right = np.mean([text == f"{prefix} {gold}" for text, gold in zip(thinking.generated_text, golds, strict=True)])
    assert record["curve"][-1]["held-out"] == pytest.approx(right)


def test_a_training_begins_with_what_another_has_learned(base: Any, sums: Path, tmp_path: Path) -> None:
    first = train(settings(base("llama"), sums, steps=3), tmp_path / "first")
    begun = Training(settings(base("llama"), sums, start=str(first)), "cpu").student.named()
    learned = load_file(first / "model.safetensors")
    assert all(torch.equal(begun[name], value.float()) for name, value in learned.items())
    assert any(name.endswith("lora_B.default.weight") and value.any() for name, value in learned.items())
    for changes, said in (
        ({"lora_alpha": 8.0}, "lora_alpha is 32.0 there, 8.0 here"),
        ({"lora_rank": 2}, "holds other weights than these"),
        ({"protocol": "codi-pause"}, "protocol is codi there, codi-pause here"),
        ({"base": str(base("gpt2"))}, "base is "),
    ):
        with pytest.raises(UsageError, match=said):
            Training(replace(settings(base("llama"), sums, start=str(first)), **changes), "cpu")


def test_a_loss_that_rises_is_told(base: Any, sums: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    wanted = settings(base("llama"), sums, steps=6, learning_rate=2.0, warmup=0.0)
    train(wanted, tmp_path, watch=Watch(say=lines.append, log_every=1))
    assert any("begin anew with a --learning-rate below 2" in line for line in lines)


def test_a_killed_training_goes_on_to_the_same_weights(base: Any, sums: Path, tmp_path: Path) -> None:
    wanted = settings(base("gpt2"), sums, steps=8)
    whole = load_file(train(wanted, tmp_path / "whole") / "model.safetensors")
    cut = tmp_path / "cut"
    options = ["--lora-rank", "4", "--steps", "8", "--batch-size", "8", "--learning-rate", "5e-3", "--save-every", "0"]
    words = ["train", "--base", str(base("gpt2")), "--data", str(sums), *options, "--out", str(cut)]
    save, count = torch.save, itertools.count()

    def save_or_die(*given: Any) -> None:
        save(*given)
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    child = forked_lake(words, lambda: setattr(torch, "save", save_or_die))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert 0 < torch.load(cut / STATE, weights_only=True)["step"] < 8
    train(wanted, cut)
    again = load_file(cut / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_minutes_are_kept_and_the_rate_follows_them(base: Any, sums: Path, tmp_path: Path) -> None:
    training = Training(settings(base("gpt2"), sums, steps=None, minutes=2.0, warmup=0.5), "cpu")
    rates = []
    for training.seconds in (30.0, 60.0, 120.0):
        rates.append(training.rate() / training.settings.learning_rate)
    assert rates == pytest.approx([0.502 * 0.8565, 0.51, 0.02], abs=1e-3)
    out = train(settings(base("gpt2"), sums, steps=None, minutes=0.01), tmp_path)
    assert 0.6 <= json.loads((out / "training.json").read_text())["seconds"] < 30


def test_a_step_whose_gradient_is_not_finite_changes_nothing(base: Any) -> None:
    training = stirred(Training(settings(base("llama")), "cpu"))
    table = Table(training.reasoner, EXAMPLES)
    training.learn(table, np.arange(3))
    before = [parameter.detach().clone() for parameter in training.parameters]
    training.settings = replace(training.settings, teacher_weight=3e38)
    training.learn(table, np.arange(3))
    assert all(torch.equal(old, new) for old, new in zip(before, training.parameters, strict=True))


def test_wider_batches_change_no_loss(base: Any) -> None:
    training = stirred(Training(settings(base("llama")), "cpu"))
    table = Table(training.reasoner, EXAMPLES)
    rows = np.arange(len(EXAMPLES))
    with torch.no_grad():
        narrow, wide = (losses(training.student, table.batch(rows, widths)) for widths in (None, (48, 24, 64)))
    torch.testing.assert_close(narrow, wide, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": None}, "either --steps or --minutes"),
        ({"minutes": 3.0}, "either --steps or --minutes"),
        ({"lora_rank": 0}, "--lora-rank is 0"),
        ({"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ({"protocol": "direkt"}, "direkt is not one of codi, codi-pause"),
        ({"compute_dtype": "float16"}, "not one of float32, bfloat16"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        settings(Path("base"), **changes)


def test_other_settings_and_missing_data_are_refused(base: Any, sums: Path, tmp_path: Path) -> None:
    train(settings(base("gpt2"), sums), tmp_path / "out", watch=Watch(stop_after=1))
    with pytest.raises(UsageError, match="training with other settings"):
        train(settings(base("gpt2"), sums, seed=1), tmp_path / "out")
    with pytest.raises(UsageError, match="nothing.jsonl cannot be read"):
        train(settings(base("gpt2"), tmp_path / "nothing.jsonl"), tmp_path / "other")
    with pytest.raises(UsageError, match="no problem is left"):
        train(settings(base("gpt2"), sums), tmp_path / "third", validation=[str(sums)])
    with pytest.raises(UsageError, match="whole number above 0"):
        read_examples(f"{sums}*x")


def test_a_base_that_squashes_scores_is_refused(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    squashing = Gemma2Config(
        vocab_size=400, max_position_embeddings=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, eos_token_id=0,
    )  # fmt: skip
    monkeypatch.setitem(CONFIGS, "gemma2", lambda: squashing)
    with pytest.raises(UsageError, match="gemma2 squashes scores or logits"):
        Training(settings(base("gemma2")), "cpu")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems whose answer is a word and whose steps are sentences."""
    rows = [
        {"question": f"Tom has {a} + {b} caps. Ann has 8. Who has more?", "answer": "Tom" if a + b > 8 else "Ann",
         "steps": [f"Tom has {a + b} caps.", f"{'Tom' if a + b > 8 else 'Ann'} has more."]}
        for a in range(8) for b in range(8) if a + b != 8
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("words") / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_model_and_its_twins_say_what_they_are(base: Any, words: Path, tmp_path: Path, capsys: Any) -> None:
    kinds = ("decodable", "pause", "cot")
    given = ["train", "--base", base("llama"), "--data", words, "--protocol", "coconut", "--out", tmp_path / "mine"]
    given += ["--thoughts", 2, "--steps", 3, "--batch-size", 8, "--lora-rank", 4]
    assert run_lake(*given, "--twins", "pause") == 0
    before = (tmp_path / "mine-pause" / "training.json").read_bytes()
    assert run_lake(*given, "--twins", ",".join(kinds)) == 0
    assert (tmp_path / "mine-pause" / "training.json").read_bytes() == before
    place = tmp_path / "x.lake"
    for kind in ("", *kinds):
        folder = tmp_path / f"mine-{kind}".rstrip("-")
        assert run_lake("extract", "--model", f"a{kind}={folder}", "--data", words, "--lake", place, "--limit", 3) == 0
    lake = open_lake(place)
    found = control_among({f"a{kind}": lake.model_attributes(f"a{kind}") for kind in ("", *kinds)})
    assert found == {f"a{kind}": Control("a", kind) for kind in kinds}  # found by its checkpoint
    protocols = {kind: lake.model_attributes(f"a{kind}")["protocol"] for kind in kinds}
    assert protocols == {kind: kind for kind in kinds} | {"decodable": "coconut"}


def test_thoughts_take_the_place_of_steps_one_after_another(base: Any) -> None:
    training = Training(settings(base("gpt2"), protocol="coconut", thoughts=2, steps=8), "cpu")
    table = Table(training.reasoner, EXAMPLES)
    decode = training.reasoner.tokenizer.decode
    seen = []
    for training.step in range(8):
        dropped = training.stage if training.stage <= 2 else table.most_steps
        batch = table.batch(np.arange(3), dropped=dropped)
        text = batch.text[2]
        seen.append((training.stage, decode(text[text >= 0]), decode(text[: int(batch.chain_length[2])])))
    steps = "<<9-2=7>>\n", "<<7+20=27>>\n", "<<27+5=32>>\n"
    expected = ["".join(steps[n:]) for n in (0, 0, 1, 2, 3, 3, 3, 3)]
    assert [stage for stage, _, _ in seen] == [0, 0, 1, 2, 3, 3, 3, 3]
    assert [chain for _, _, chain in seen] == expected
    assert [text for _, text, _ in seen] == [f"{chain}### 32<|endoftext|>" for chain in expected]


@pytest.mark.parametrize("protocol", ["codi", "coconut"])
def test_a_decodable_control_keeps_its_models_thoughts_and_not_their_use(
    base: Any, sums: Path, tmp_path: Path, protocol: Any
) -> None:
    wanted = settings(base("llama"), sums, protocol=protocol, thoughts=2, steps=2, seed=3)
    train(wanted, tmp_path / "mine")
    twin = Training(wanted, "cpu", tmp_path / "mine")
    model = Training(wanted, "cpu")
    model.load_state(read_state(tmp_path / "mine" / STATE))
    table = Table(twin.reasoner, EXAMPLES * 2)
    rows = np.arange(6)
    batch = table.batch(rows)
    with torch.no_grad():
        model.student.merge()
        own = model.student.think(batch).states
        torch.testing.assert_close(twin.student.kept_states(batch), own)
        everything = losses(twin.student, batch)
        assert float(everything["thought"]) == 0
        # Rows 0 to 2 are fed what rows 3 to 5 think at ct1: the same problems, so nothing changes; else it does.
        exchanged = np.zeros((6, 2), dtype=bool)
        exchanged[:3, 1] = True
        same = twin.student.think(table.batch(rows, exchanged=exchanged)).states
        torch.testing.assert_close(same, own)
        other = twin.student.think(table.batch(np.array([0, 1, 2, 1, 2, 0]), exchanged=exchanged)).states
        torch.testing.assert_close(other[:, :3], own[[0, 1, 2, 1, 2, 0], :3])
        assert all(not torch.allclose(other[row, 3], own[row, 3]) for row in range(3))
    twin._gradient(table, rows)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters, model.parameters, strict=True))
    drawn = draw_exchanged(np.random.default_rng(0), 4000, 4)
    number = drawn.sum(1)
    assert set(number) == {0, 1, 4}
    np.testing.assert_allclose(np.bincount(number)[[0, 1, 4]] / 4000, [0.5, 0.25, 0.25], atol=0.03)
    with pytest.raises(UsageError, match="its decodable control needs the same"):
        Training(replace(wanted, seed=4), "cpu", tmp_path / "mine")


@pytest.mark.parametrize("kind", ["pause", "multipass-pause"])
def test_one_pass_or_many_feed_the_same_vector(base: Any, kind: str) -> None:
    training = stirred(Training(settings(base("gpt2"), protocol=f"codi-{kind}", thoughts=3), "cpu"))
    batch = Table(training.reasoner, EXAMPLES).batch(np.arange(3))
    student = training.student
    passes: list[int] = []
    student.body.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        student.merge()
        states = student.think(batch).states
        student.rule = replace(student.rule, name="codi-pause")
        together = student.think(batch).states
    assert len(passes) - 2 == {"pause": 2, "multipass-pause": 4}[kind]
    torch.testing.assert_close(states, together, atol=1e-5, rtol=1e-4)
