"""A lake that commands are tried on, and how a command is run as it was printed."""

import shlex
from pathlib import Path

import torch
from called import run_lake

from extract.run.extract import extract
from extract.run.prepare import prepare
from extract.small_models.problems import make_hard, make_pairs, write_pairs, write_problems
from schemas import RunSpec

torch.set_num_threads(1)
MODELS = ("small-gpt2", "small-gpt2-decodable")
RUN, TWIN = (f"{model}/hard" for model in MODELS)


def make_bare(root: Path) -> None:
    """A lake of two models over problems, half of them answered wrongly, and one over pairs; no results."""
    write_problems(make_hard(24), root / "hard.jsonl")
    write_pairs(make_pairs(6, 0), root / "pairs.json")
    spec = RunSpec(max_new_tokens=8, batch_size=16)
    for model, data in ((MODELS[0], "hard.jsonl"), (MODELS[1], "hard.jsonl"), (MODELS[0], "pairs.json")):
        extract(prepare(model, str(root / data), root / "toy.lake", spec), root / "toy.lake")


def run_printed(command: str) -> None:
    """Run a command as it was printed, in a shell's words; it must do what it says."""
    words = shlex.split(command, comments=True)
    assert words[0] == "lake", command
    assert run_lake(*words[1:], *([] if words[1] in ("extract", "info") else ["--json"])) == 0, command
