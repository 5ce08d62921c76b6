"""Answers that are no numbers, from data file to outcomes: a Coconut checkpoint whose own texts are taken as right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from called import run_lake

from analyze.context import Context
from analyze.report.explore import page_data
from extract import load_reasoner
from extract.reenter import ablate, corrupt, integrated_gradients, open_target, patch
from extract.reenter.ablation.command import AblateSettings, CorruptSettings
from extract.reenter.gradients.command import GradientSettings
from extract.reenter.patching.command import PatchSettings
from extract.run.extract import extract
from extract.run.prepare import prepare
from schemas import RunSpec, UsageError
from store import open_lake

COCONUT = Path(__file__).parent / "data" / "coconut_oracle"
NEW = 5


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """Folder with ``model``, which begins its answer at once, and questions with what it answers them."""
    folder = tmp_path_factory.mktemp("answering")
    shutil.copytree(COCONUT / "coconut-gpt2", folder / "model")
    settings = {"protocol": {"name": "coconut", "answer_prefix": ""}, "base": str(COCONUT / "base-gpt2")}
    (folder / "model" / "codi.json").write_text(json.dumps(settings))
    reasoner = load_reasoner(str(folder / "model"))
    names, nodes = ("Bob", "Sally", "Max", "Fae"), ("wumpus", "lorpus", "sterpus", "rempus")
    asked = [
        f"Every {a} is a {b}. {name} is a {a}. Is {name} a {b} or {c}?"
        for name in names for a in nodes for b in nodes for c in nodes if len({a, b, c}) == 3
    ]  # fmt: skip
    texts = reasoner.think([reasoner.encode(each) for each in asked], capture=None, max_new_tokens=NEW).generated_text
    answers: dict[str, str] = {}
    for question, text in zip(asked, texts, strict=True):
        if text.strip() and text.isascii() and not set("#,") & set(text):
            answers.setdefault(text.strip(), question)
    rows = [{"question": question, "answer": text} for text, question in answers.items()]
    assert len(rows) >= 8, rows
    half = len(rows) // 2
    pairs = [{"clean": a, "corrupted": b} for a, b in zip(rows[:half], rows[half:], strict=False)]
    pairs.append({"clean": rows[0], "corrupted": {"question": rows[1]["question"], "answer": "another"}})
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="module")
def lake(answering):
    spec = RunSpec(max_new_tokens=NEW, dtype="float32")
    prepared = prepare(f"m={answering / 'model'}", str(answering / "pairs.json"), answering / "a.lake", spec)
    assert prepared.spec.answer == prepared.layout.answer_kind == "text"
    extract(prepared, answering / "a.lake")
    return open_lake(answering / "a.lake")


@pytest.fixture
def target(lake, answering):
    return open_target(lake, "m/pairs", checkpoint=str(answering / "model"))


def test_a_run_says_its_kind_and_holds_texts(lake):
    run = lake["m/pairs"]
    assert run.attrs["answer_kind"] == "text"
    right = run["predicted_answer"].values == run["gold_answer"].values
    assert right.tolist() == run["correct"].values.tolist() == [True] * (len(right) - 1) + [False]
    assert np.isfinite(run["answer_logprob"].values).all()


def test_patched_texts_are_clean_corrupted_or_other(target):
    found = patch(target, PatchSettings(layers=(1,), subsets="none"))
    assert found.attrs["n_counted"] == found.sizes["example"] == target.data.sizes["example"] // 2 - 1
    assert found.attrs["n_corrupted_wrong"] == 1
    gold = target.data["gold_answer"].values
    position = {int(label): row for row, label in enumerate(target.data["example"].values)}
    for condition in range(found.sizes["condition"]):
        for example, outcome in zip(found["example"].values, found["outcome"].values[condition], strict=True):
            row = position[int(example)]  # the corrupted half; the clean one stands before it
            text = str(found["generated_text"].sel(example=example).values[condition]).strip()
            wanted = "clean_answer" if text == gold[row - 1] else "corrupted_answer" if text == gold[row] else None
            assert outcome == wanted if wanted else outcome in ("other", "gibberish"), (text, outcome)
    assert (found["outcome"].values[0] == "corrupted_answer").all()  # untouched
    assert (found["outcome"].values == "other").any()
    own = found["control"].values.astype(str)
    assert (found["outcome"].values[np.char.startswith(own, "self")] == "corrupted_answer").all()


def test_ablation_and_corruption_count_texts(target):
    settings = AblateSettings(layers=(0,), operations=("zero",)), CorruptSettings(corruptions=("zero",))
    for found in (ablate(target, settings[0]), corrupt(target, settings[1])):
        assert found["correct"].values[0].tolist() == target.data["correct"].values.tolist()
        gold = target.data["gold_answer"].values
        assert (found["correct"].values == (found["predicted_answer"].values == gold)).all()
        assert found["drop"].sel(stratum="all").max() > 0


def test_carrying_thoughts_are_those_that_begin_a_word_of_the_answers(target):
    tokenizer = target.reasoner.tokenizer
    first = {
        tokenizer(space + str(text), add_special_tokens=False)["input_ids"][0]
        for text in target.data["gold_answer"].values
        for space in ("", " ")
    }
    best = (target.data["final_state"].sel(position="ct2").values @ target.reasoner.unembedding.T).argmax(1)
    assert target.number_states("ct2").tolist() == [int(token) in first for token in best]


def test_gradients_are_of_the_difference_to_the_twins_answer(target):
    found = integrated_gradients(target, GradientSettings(steps=64))
    assert found.attrs["relative_residual"] < 0.05


def test_the_page_shows_texts(lake):
    (run,) = page_data(Context(lake, ["m/pairs"]), n_problem=3, seed=0)["runs"]
    for item in run["problems"]["items"]:
        stored = lake["m/pairs"].sel(example=item["id"])
        assert item["predicted"] == (str(stored["predicted_answer"].item()) or None)
        assert item["gold"] == str(stored["gold_answer"].item())
    json.dumps(run, allow_nan=False)


@pytest.mark.parametrize(
    ("answer", "message"),
    [("number", "line 1|clean side"), ("choice", "no letter from A to E"), ("boolean", "none of")],
)
def test_answers_of_another_kind_are_refused(answering, answer, message):
    spec = RunSpec(max_new_tokens=NEW, answer=answer)
    with pytest.raises(UsageError, match=message):
        prepare(f"m={answering / 'model'}", str(answering / "pairs.json"), answering / "b.lake", spec)
    assert not (answering / "b.lake").exists()


def test_answers_that_are_not_of_the_datas_kind_are_told(tmp_path, capsys):
    """A model that answers with numbers is asked for yes or no: all wrong, and not for what it thinks."""
    question = "Ann has 3 apples. She buys 4 more. How many apples does Ann have?"
    for name, answer, said in (("kind", "yes", True), ("number", "7", False)):
        data = tmp_path / f"{name}.jsonl"
        data.write_text(json.dumps({"question": question, "answer": answer}) + "\n")
        words = ("--data", data, "--lake", tmp_path / "a.lake", "--max-new-tokens", 8)
        assert run_lake("extract", "--model", "small-gpt2", *words) == 0
        told = "in 1 of 1 answers no yes or no can be read, and they count as wrong; the first is '"
        assert (told in capsys.readouterr().err) == said
