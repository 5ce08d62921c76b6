"""What capturing everything costs beside plain answering, and beside other tools that capture the same.

    python benchmarks/extraction.py [CASE ..] [--questions N] [--rounds N] [--threads N]

gpt2      A CODI model of GPT-2's sizes (124M), random weights: question, six thoughts, answer.
smollm2   SmolLM2-135M with a random projection, likewise; its weights are real, its thoughts mean nothing.
tiny      A small model, to try this script.
NAME-prompts
          The prompt part alone, which is all that other tools do by themselves: one pass over the questions.

Everybody loads the same weights, gets the same batches, padded on the left, and keeps states after every block and
after the final norm and all attention in float16. Where a tool has no latent loop it is written by hand around
its passes. What was captured is compared with the lake before anything is timed. Others write one npz file a batch,
padded, and wait until it is on the disk. This project also scores the gold answer (with prefix and end six tokens of
the made-up GPT-2, as of GPT-2's own tokenizer, eight of SmolLM2), checks what it captured, compresses and checksums.
TransformerLens is used as its page on hooks has it (docs/source/content/hook_system.md:
run_with_cache with a names_filter), nnsight as its page on attention patterns (docs/patterns/attention-patterns.md),
nnterp by its accessors. What one of its runs begins with, whatever its length (some questions alone and in a batch,
the model's read-out), lies in the lake already and is timed by itself. What it takes beyond capturing is compressing,
checksums of rows, chunks and files, and writing.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside.sides import OURS, Side, compared, peers_python, take_turns, versions
from checkpoints import GPT2, TINY, write_checkpoint
from results import keep
from torch import nn
from transformers import AutoModelForCausalLM

from extract.model.bases import packaged_base

SMALL = TINY | {"key_heads": TINY["heads"]}
NAMES = ("Ann", "Ben", "Cleo", "Dora", "Emil")
THINGS = ("apples", "pencils", "old books", "small green marbles", "cups of tea")
CLOSE = {"hidden_state": 0.02, "final_state": 0.02, "attention": 2e-3, "token": 0.0}
"""How far two captures may be apart: a few steps of float16, of states relative to each state's root mean square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is extracted."""

    model: str
    prompts: bool = False
    """Whether it is the prompt part alone."""

    @property
    def title(self) -> str:
        """For the table."""
        part = "the questions alone, in one pass" if self.prompts else "question, six thoughts and answer"
        return f"Extraction of {NAMES_OF[self.model]}: {part}"


NAMES_OF = {
    "gpt2": "a 124M GPT-2 (random weights)",
    "smollm2": "SmolLM2-135M (random projection)",
    "tiny": "a small GPT-2 (random weights)",
}
CASES = {
    f"{model}{suffix}": Case(model=model, prompts=bool(suffix)) for suffix in ("", "-prompts") for model in NAMES_OF
}


def write_questions(path: Path, n: int) -> Path:
    """Questions of about 40 to 90 tokens, as GSM8K's."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(n):
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        text = [f"{name} has {rng.integers(10, 99)} {thing}."]
        text += [
            f"{name} buys {rng.integers(10, 99)} more {thing} in the morning and sells {rng.integers(1, 9)} of them."
            for _ in range(rng.integers(2, 5))
        ]
        question = " ".join([*text, f"How many {thing} does {name} have left?"])
        lines.append(json.dumps({"question": question, "answer": str(rng.integers(10, 99))}))
    path.write_text("\n".join(lines))
    return path


def codi_of_smollm2(folder: Path) -> tuple[Path, str]:
    """SmolLM2-135M in CODI's layout with a random projection; checkpoint and base."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(packaged_base("smollm2-135m"), dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    hidden, state = model.config.hidden_size, {f"codi.{key}": value for key, value in model.state_dict().items()}
    for key, layer in (
        ("1", nn.Linear(hidden, hidden)),
        ("3", nn.Linear(hidden, hidden)),
        ("ln", nn.LayerNorm(hidden)),
    ):
        scale = model.get_input_embeddings().weight.std() if key == "ln" else 1
        state |= {f"prj.{key}.{name}": value * scale for name, value in layer.state_dict().items()}
    (folder / "smollm2").mkdir()
    torch.save(state, folder / "smollm2" / "pytorch_model.bin")
    return folder / "smollm2", "smollm2-135m"


def write_job(case: Case, folder: Path, arguments: argparse.Namespace) -> Side:
    """The folder ``job`` for all sides, and this project's side."""
    data = write_questions(folder / "questions.jsonl", arguments.questions)
    if case.model == "smollm2":
        checkpoint, base = map(str, codi_of_smollm2(folder))
    else:
        sizes = {"gpt2": GPT2, "tiny": SMALL}[case.model]
        checkpoint, base = map(str, write_checkpoint(folder, "gpt2", sizes, data))
    settings: dict[str, Any] = {"capture": "full", "batch_size": arguments.batch_size}
    (folder / "job").mkdir()
    side = partial(Side, "this_project.py", threads=arguments.threads)
    ours = side(f"m={checkpoint}", base, data, json.dumps({**settings, "max_new_tokens": arguments.max_new_tokens}))
    ours("job", out=str(folder / "job"), n_answer=arguments.max_new_tokens)
    if case.prompts:
        ours.end()
        (folder / "job").rename(folder / "plain")
        (folder / "job").mkdir()
        # One answer token is the least that this project writes; others stop after the question.
        settings |= {"max_new_tokens": 1, "protocol": "direct"}
        ours = side(f"m={folder / 'plain' / 'model'}", "", data, json.dumps(settings))
        ours("job", out=str(folder / "job"), n_answer=0)
    return ours


class Comparison:
    """One case: its sides, and where they write."""

    def __init__(self, case: Case, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.n_script = folder, arguments.script_questions
        self.ours = write_job(case, folder, arguments)
        self.n = arguments.questions
        python, job = peers_python(), folder / "job"
        nnterp = str(Path(python).parents[1] / "nnterp")
        self.hand = Side("by_hand.py", job, threads=arguments.threads)
        self.others = {
            "by hand, in batches": self.hand,
            "TransformerLens": Side("transformer_lens_.py", job, python=python, path="", threads=arguments.threads),
            "nnsight": Side("nnsight_.py", job, python=python, path="", threads=arguments.threads),
            "nnterp": Side("nnsight_.py", job, "nnterp", python=python, path=nnterp, threads=arguments.threads),
        }
        stated = json.loads((job / "job.json").read_text())
        after = stated["n_latent"] + len(stated["closing"]) + stated["n_answer"]
        self.columns = [max(len(stated["prompts"][i]) for i in batch) + after for batch in stated["batches"]]
        self.count = 0
        self.started = self.place()
        self.start = self.ours("start", out=self.started)["processor"]

    def end(self) -> None:
        """End all sides."""
        for side in (self.ours, *self.others.values()):
            side.end()

    def place(self) -> str:
        """A new folder to write to."""
        self.count += 1
        (self.folder / str(self.count)).mkdir()
        return str(self.folder / str(self.count))

    def cleared(self, work: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Do a work that writes into a folder, and remove the folder."""
        place = self.place()
        done = work(place)
        subprocess.run(["rm", "-r", place], check=True)
        return done

    def check(self) -> dict[str, dict[str, float]]:
        """Largest differences of each side's capture from the lake.

        Raises
        ------
        SystemExit
            If they are more than rounding.
        """
        lake = self.place()
        self.ours("extraction", out=lake)
        found = {}
        for name, side in self.others.items():
            place = self.place()
            side("batched", out=place)
            for number, n_column in enumerate(self.columns):
                npz = f"{place}/{number}.npz"
                apart = self.ours("compare", lake=lake, npz=npz, number=number, n_column=n_column)["value"]
                found[name] = {key: max(value, found.get(name, apart)[key]) for key, value in apart.items()}
            if any(value > CLOSE[key] for key, value in found[name].items()):
                raise SystemExit(f"{name} captured something else than this project: {found[name]}")
            subprocess.run(["rm", "-r", place], check=True)
        subprocess.run(["rm", "-r", lake], check=True)
        return found

    def extraction(self) -> dict[str, Any]:
        """Extraction by this project into a lake that has its beginning."""
        place = self.place()
        subprocess.run(["cp", "-r", f"{self.started}/.", place], check=True)
        done = self.ours("extraction", out=place)
        subprocess.run(["rm", "-r", place], check=True)
        return done

    def script(self, work: str) -> dict[str, Any]:
        """A script of one question at a time, as if over all questions."""
        some = list(range(0, self.n, max(1, self.n // self.n_script)))[: self.n_script]
        done = self.cleared(lambda place: self.hand(work, out=place, questions=some))
        return {key: value * self.n / len(some) for key, value in done.items()}

    def works(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Everything that is timed."""
        kept = {
            f"{name}, npz": partial(self.cleared, lambda place, side=side: side("batched", out=place))
            for name, side in self.others.items()
        }
        scripts = {"JSON": "one_by_one", "pickle": "one_by_one_pickled"}
        return {
            "the bare model, nothing kept": lambda: self.hand("bare"),
            "this project, answering alone": lambda: self.ours("answering"),
            "this project, answering and scoring": lambda: self.ours("answering", scored=True),
            "this project, capturing, nothing written": lambda: self.ours("capturing"),
            OURS: self.extraction,
            **kept,
            **{f"one question at a time, {name}": partial(self.script, work) for name, work in scripts.items()},
        }


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Compare, print and keep one case."""
    comparison = Comparison(CASES[name], folder, arguments)
    apart = comparison.check()
    times = take_turns(comparison.works(), arguments.rounds, warm=0)
    comparison.end()
    rows = compared(times, per=arguments.questions)
    for row in rows:
        size = times[row["who"]][0]["value"]
        row["MB a question"] = size / 1e6 / arguments.questions if size else None
    text = " ".join([*__doc__.split("\n\n")[-1].split(), said(arguments, apart, comparison.start)])
    peers = versions(peers_python(), "transformer-lens", "nnsight", "transformers")
    path = str(Path(peers_python()).parents[1] / "nnterp")
    peers = {"transformers of peers": peers.pop("transformers"), **peers}
    keep(
        f"extraction-{name}",
        CASES[name].title,
        rows,
        text=text,
        versions=peers | versions(peers_python(), "nnterp", path=path),
    )


def said(arguments: argparse.Namespace, apart: dict[str, dict[str, float]], start: float) -> str:
    """Sizes, differences and the start, in words."""
    worst = {key: max(each[key] for each in apart.values()) for key in CLOSE}
    return (
        f"{arguments.questions} questions in batches of {arguments.batch_size}, {arguments.threads} thread(s)."
        f" Seconds are those of a question; times ours: round by round. Its start is {start:.1f} s of"
        " processors, once a run. Largest difference between captures: states"
        f" {max(worst['hidden_state'], worst['final_state']):.1g} of their root mean square, attention"
        f" {worst['attention']:.1g}; all tokens are the same."
    )


def timed(work: Callable[[], object]) -> np.ndarray:
    """Seconds by the clock, and of processors."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - begin, time.process_time() - used])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", choices=[*CASES, []], help="all if none is named")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--script-questions", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    for name in arguments.case or [name for name in CASES if "tiny" not in name]:
        with tempfile.TemporaryDirectory() as place:
            measure(name, Path(place), arguments)


if __name__ == "__main__":
    main()
