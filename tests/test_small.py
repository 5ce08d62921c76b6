"""Story problems, training and weights of the small models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extract import load_reasoner
from extract.run.data import read_problems
from extract.small_models.losses import draw_interchange, write_chain
from extract.small_models.network import SmallCodi, load_checkpoint, make_tokenizer, save_checkpoint
from extract.small_models.problems import (
    N_DRAWN,
    SPLIT_SIZES,
    Operation,
    carried_step,
    continue_from,
    make_pairs,
    make_splits,
    read_operations,
    write_pairs,
    write_problems,
)
from extract.small_models.thinking import ProblemTable, Words, continue_values, read_question, tabulate, think
from extract.small_models.train import NAMES, plan, train
from schemas import UsageError, extract_answer

SHIPPED = ("small-gpt2", "small-llama", "small-gpt2-decodable", "small-llama-decodable")
SIZES = {"train": {1: 40, 2: 80, 3: 80, 4: 80}, "validation": {2: 10, 3: 10, 4: 10}, "test": {2: 20, 3: 20, 4: 20}}


def test_splits_are_seeded_and_share_neither_question_nor_skeleton():
    splits = make_splits(3, SIZES)
    assert splits == make_splits(3, SIZES)
    assert splits != make_splits(4, SIZES)
    larger = make_splits(3, {**SIZES, "train": {4: 400}})
    assert larger["test"] == splits["test"]
    questions = [problem.question for split in larger.values() for problem in split]
    assert len(questions) == len(set(questions))
    held_out = {problem[1:] for name in ("test", "validation") for problem in larger[name]}
    assert held_out.isdisjoint(problem[1:] for problem in larger["train"])


def test_every_number_of_a_chain_follows_from_the_one_before_and_is_one_token(tmp_path):
    tokenizer = make_tokenizer()
    problems = make_splits(0, SIZES)["test"]
    write_problems(problems, tmp_path / "test.jsonl")
    data = read_problems(str(tmp_path / "test.jsonl"))
    for problem, question, gold, result, expression in zip(
        problems,
        data.question,
        data.gold_answer,
        data.columns["intermediate_result"][1],
        data.columns["expression"][1],
        strict=True,
    ):
        n = len(problem.operations)
        assert question == problem.question
        assert float(gold) == problem.answer == extract_answer(problem.full_answer)
        assert result[:n].tolist() == problem.values[1:]
        assert [eval(text) for text in expression[:n]] == problem.values[1:]
        assert all(0 <= value <= 30 for value in problem.values)
        ids = tokenizer.encode(question)
        assert len(ids) == 12 + 5 * n
        assert tokenizer.unk_token_id not in ids
        assert read_operations(problem.chain) == (problem.start, problem.operations)
    assert data.columns["n_operation"][1].tolist() == [len(problem.operations) for problem in problems]


def test_the_rest_of_a_story_continues_from_any_number():
    operations = (Operation("+", 3), Operation("*", 2), Operation("/", 2), Operation("-", 4))
    assert continue_from(operations, -1, 5) == 4
    assert continue_from(operations, 0, 10) == 6
    assert continue_from(operations, 2, 10) == 6
    assert continue_from(operations, 3, 7) == 7
    assert continue_from(operations, 0, 16) is None  # 32 things are more than a story has
    assert continue_from(operations, 1, 9) is None  # half of nine
    with pytest.raises(UsageError, match="step 4 of a story with 4 operations"):
        continue_from(operations, 4, 1)


def test_arrays_continue_as_stories_do():
    problems = make_splits(1, SIZES)["test"]
    table = tabulate(problems)
    rng = np.random.default_rng(0)
    step = rng.integers(0, table.n_operation + 1)
    given = rng.integers(0, 31, len(problems))
    changed = continue_values(table, step, given)
    for i, problem in enumerate(problems):
        expected = continue_from(problem.operations, int(step[i]) - 1, int(given[i]))
        assert changed[i, len(problem.operations)] == (-1 if expected is None else expected)
    assert table.carried.tolist() == [
        [carried_step(len(problem.operations), j) + 1 for j in range(3)] for problem in problems
    ]


SIDES = ("clean", "corrupted")


def test_pairs_differ_in_one_number_and_in_the_answer(tmp_path):
    pairs = make_pairs(60, seed=0)
    assert pairs == make_pairs(60, seed=0)
    held_out = make_splits(0, {name: size for name, size in SPLIT_SIZES.items() if name != "train"})
    known = {problem.question for split in held_out.values() for problem in split}
    for pair in pairs:
        clean, corrupted = pair["clean"], pair["corrupted"]
        words = [side["question"].split() for side in (clean, corrupted)]
        different = [(a, b) for a, b in zip(*words, strict=True) if a != b]
        assert len(different) == 1
        assert " -> ".join(different[0]) == pair["changed_number"]
        assert clean["answer"] != corrupted["answer"]
        for side in (clean, corrupted):
            start, operations = read_operations(side["full_answer"])
            assert continue_from(operations, -1, start) == side["answer"]
            assert side["question"] not in known
    write_pairs(pairs, tmp_path / "pairs.json")
    data = read_problems(str(tmp_path / "pairs.json"))
    assert len(data) == 120
    assert data.columns["variant"][1][:2] == ["clean", "corrupted"]


def test_pairs_come_in_turn_from_every_step_that_differs_first():
    pairs = make_pairs(90, seed=0)
    kinds = [(pair["first_step"], pair["n_operation"]) for pair in pairs]
    assert {kinds.count(kind) for kind in set(kinds)} == {10}
    assert set(kinds) == {(step, n) for n in (2, 3, 4) for step in range(1, n + 1)}
    for pair in pairs:
        (start, operations), (other, changed) = (read_operations(pair[side]["full_answer"]) for side in SIDES)
        same = [
            continue_from(operations[:n], -1, start) == continue_from(changed[:n], -1, other)
            for n in range(1, pair["n_operation"] + 1)
        ]
        assert same.index(False) + 1 == pair["first_step"]
    drawn = {pair["clean"]["question"] for pair in make_pairs(N_DRAWN, seed=0)}
    assert {pair["clean"]["question"] for pair in pairs} < drawn  # held out from training, all of them


def test_interchange_replaces_one_number_and_everything_after_it():
    table = tabulate(make_splits(2, SIZES)["train"][:64])
    value, source, thought = draw_interchange(table, np.random.default_rng(0))
    assert (thought[:32] == 3).all()
    assert (thought[32:] < 3).sum() > 24
    for i in np.flatnonzero(thought < 3):
        step, donor = table.carried[i, thought[i]], source[i]
        assert donor < 32
        assert value[i, step] == table.value[donor, table.carried[donor, thought[i]]] != table.value[i, step]
        assert (value[i, :step] == table.value[i, :step]).all()
        assert 0 <= value[i, table.n_operation[i]] <= 30


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_padding_on_the_left_and_the_batch_do_not_matter(architecture):
    torch.manual_seed(0)
    model = SmallCodi(architecture, len(make_tokenizer()))
    table = tabulate(make_splits(0, SIZES)["test"][:6])
    with torch.no_grad():
        states, fed = think(model, *read_question(model, torch.from_numpy(table.question)))
        for i in range(6):
            alone = torch.from_numpy(table.question[i][table.question[i] >= 0])[None]
            one_states, one_fed = think(model, *read_question(model, alone))
            torch.testing.assert_close(one_states[0], states[i], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one_fed[0], fed[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small-gpt2", "small-llama-decodable", "small-gpt2-pause", "small-llama-cot"])
def test_a_killed_training_ends_with_the_same_weights(tmp_path, name):
    data: dict[str, ProblemTable] = {key: tabulate(value) for key, value in make_splits(0, SIZES).items()}
    first, second = (stage for _, stage in plan(name)) if len(plan(name)) == 2 else (plan(name)[0][1],) * 2
    stages = [("first", replace(first, steps=3, batch=8)), (name, replace(second, steps=3, batch=8))]
    seen: list[tuple[int, int]] = []
    kwargs = {"stages": stages, "data": data, "save_every": 2}
    train(name, tmp_path / "whole", 5, progress=lambda done, total: seen.append((done, total)), **kwargs)
    assert seen == [(i, 6) for i in range(1, 7)]
    for _ in range(3):
        written = train(name, tmp_path / "killed", 5, stop_after=2, **kwargs)
    written = train(name, tmp_path / "killed", 5, **kwargs)
    assert [path.name for path in written] == ["first", name]
    for stage in ("first", name):
        whole, killed = (tmp_path / run / stage / "model.safetensors" for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
    other = train(name, tmp_path / "other", 6, **kwargs)[-1]
    assert (other / "model.safetensors").read_bytes() != whole.read_bytes()


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such model; choose one of small-gpt2, "):
        train("small-bert", tmp_path)
    assert len(NAMES) == 10


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["codi", "pause"])
def test_a_checkpoint_thinks_in_the_reasoner_as_in_training(tmp_path, architecture, kind):
    torch.manual_seed(1)
    save_checkpoint(SmallCodi(architecture, len(make_tokenizer()), kind), tmp_path)
    _compare_with_reasoner(tmp_path, 5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_chain_is_written_by_the_reasoner_as_in_training(tmp_path, architecture):
    torch.manual_seed(1)
    model = SmallCodi(architecture, len(make_tokenizer()), "cot")
    with torch.no_grad():
        for parameter in model.parameters():  # so that what it writes first depends on the question
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_checkpoint(model, tmp_path)
    model = load_checkpoint(tmp_path)
    problems = make_splits(0, SIZES)["test"][:6]
    logits, _, _ = write_chain(model, tabulate(problems), Words.of("cpu"))
    reasoner = load_reasoner(tmp_path)
    assert (reasoner.protocol.name, reasoner.n_latent) == ("cot", 0)
    thinking = reasoner.think([reasoner.encode(problem.question) for problem in problems], max_new_tokens=2)
    assert thinking.token[:, 1].tolist() == logits[:, 0, : model.pad_id].argmax(-1).tolist()


def _compare_with_reasoner(folder: Path, n: int) -> float:
    problems = make_splits(0, SIZES)["test"][:n]
    table = tabulate(problems)
    model = load_checkpoint(folder)
    with torch.no_grad():
        states, fed = think(model, *read_question(model, torch.from_numpy(table.question)))
    reasoner = load_reasoner(folder)
    thinking = reasoner.think([reasoner.encode(problem.question) for problem in problems], capture="latent",
                              stored_dtype="float32", max_new_tokens=8)  # fmt: skip
    np.testing.assert_allclose(thinking.latent_embedding, fed.detach(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(thinking.final_state[:, :7], states, rtol=1e-3, atol=1e-4)
    right = [extract_answer(text) == p.answer for text, p in zip(thinking.generated_text, problems, strict=True)]
    return float(np.mean(right))


def test_the_shipped_pause_control_answers_and_is_fed_one_vector():
    reasoner = load_reasoner("small-gpt2-pause")
    problems = make_splits(0, SIZES)["test"]
    prompts = [reasoner.encode(problem.question) for problem in problems]
    thinking = reasoner.think(prompts, capture="latent", stored_dtype="float32", max_new_tokens=8)
    right = [extract_answer(text) == p.answer for text, p in zip(thinking.generated_text, problems, strict=True)]
    assert np.mean(right) >= 0.9
    fed = thinking.latent_embedding
    assert (reasoner.protocol.name, fed.shape[1]) == ("codi-pause", 6)
    np.testing.assert_array_equal(fed, np.broadcast_to(fed[:1, :1], fed.shape))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_answer_and_show_their_numbers(name):
    from extract.model.load import SHIPPED as FOLDER

    folder = FOLDER / name
    assert _compare_with_reasoner(folder, 60) >= 0.9
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert json.loads((folder / "codi.json").read_text())["n_latent"] == 6
    table = tabulate(make_splits(0, SIZES)["test"])
    model = load_checkpoint(folder)
    with torch.no_grad():
        states, _ = think(model, *read_question(model, torch.from_numpy(table.question)))
        read = (states @ model.embedding.T).argmax(2).numpy()
    number = np.array(make_tokenizer().convert_tokens_to_ids([str(n) for n in range(31)]))
    carried = np.take_along_axis(table.value, table.carried, 1)
    assert (read[:, 1::2] == number[carried]).mean() >= 0.95
    assert np.isin(read[:, ::2], number).mean() <= 0.05
