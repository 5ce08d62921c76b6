"""What the shipped small models can do, measured through ``lake extract`` and the stored thoughts put back into them.

``python benchmarks/small_models.py [--work DIR] [NAME...]`` writes the held-out problems, extracts each model over them
into ``DIR/small.lake``, measures everything from the lake, and puts thoughts of the lake back into the model for the
interventions. It prints a table per model and writes ``DIR/NAME.json``; ``extract.small_models.evaluate`` measures
the same with code of its own. ``NAME-seedN=FOLDER`` measures a model that was trained again; what is in
``benchmarks/small_models`` was measured so.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from analyze.written import at_places
from extract import load_reasoner
from extract.reenter.armed import Armed
from extract.small_models.evaluate import Rate, add_by_operations
from extract.small_models.problems import (
    SPLIT_SIZES,
    Operation,
    carried_step,
    continue_from,
    make_pairs,
    make_splits,
    write_pairs,
    write_problems,
)
from schemas import Scoring
from schemas.scoring import Answer
from schemas.whole_files import write_json
from store import open_lake

LATENTS = [f"ct{k}" for k in range(6)]
STATES = ["bot", *LATENTS]
SHIPPED = [
    "small-gpt2", "small-llama", "small-gpt2-decodable", "small-llama-decodable", "small-gpt2-cot", "small-gpt2-pause",
]  # fmt: skip


def write_data(folder: Path) -> dict[str, Path]:
    """Write the held-out problems and the pairs; returns the files by data set."""
    files = {"test": folder / "test.jsonl", "test-one": folder / "test-one.jsonl", "pairs": folder / "pairs.json"}
    if not files["pairs"].exists():
        splits = make_splits(0, {split: size for split, size in SPLIT_SIZES.items() if split != "train"})
        for split in ("test", "test-one"):
            write_problems(splits[split], files[split])
        write_pairs(make_pairs(500), files["pairs"])
    return files


def operations_of(run: xr.Dataset) -> list[tuple[int, tuple[Operation, ...]]]:
    """Start and operations of every story, from the lake's columns."""
    found = []
    for expressions in run["expression"].values:
        steps = []
        for text in filter(None, expressions):
            operator = next(mark for mark in "+-*/" if mark in text)
            before, operand = text.split(operator)
            steps.append((int(before), Operation(operator, int(operand))))
        found.append((steps[0][0], tuple(step for _, step in steps)))
    return found


def answers_with(checkpoint: str, run: xr.Dataset, thoughts: dict[int, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Predicted answers of every example with vectors (example, hidden) fed at some thoughts where a mask is true."""
    reasoner = load_reasoner(checkpoint)
    scoring = Scoring(run.attrs.get("answer_kind", "number"), prefix=reasoner.answer_prefix)
    prompts = [reasoner.encode(question) for question in run["question"].values.tolist()]
    predicted: list[Answer | None] = []
    for start in range(0, len(prompts), 250):
        rows = np.arange(start, min(start + 250, len(prompts)))
        armed = Armed(len(rows), torch.device("cpu"))
        for k, (mask, vectors) in thoughts.items():
            chosen = np.flatnonzero(mask[rows])
            if len(chosen):
                armed.add(("latent_embedding", -1, k + 1), "set", chosen, value=vectors[rows[chosen]])
        texts = reasoner.think(
            [prompts[row] for row in rows], capture=None, max_new_tokens=8, editor=armed
        ).generated_text
        predicted += [scoring.answer(text) for text in texts]
    return scoring.column(predicted)


def measure(name: str, checkpoint: str, lake_path: Path) -> dict[str, Rate]:
    """All figures of one model, from its runs over the three data sets."""
    lake = open_lake(str(lake_path))
    run = lake[f"{name}/test"]
    n_operation = run["n_operation"].values
    stories = operations_of(run)
    gold = run["gold_answer"].values.astype(float)
    n = len(gold)
    rates: dict[str, Rate] = {}
    by_operations = partial(add_by_operations, rates, n_operation)
    by_operations("accuracy", run["correct"].values)
    rates["accuracy, 1 operation"] = Rate.of(lake[f"{name}/test-one"]["correct"].values)
    pairs = lake[f"{name}/pairs"]
    both = pairs["correct"].groupby("problem").all()  # the sides of a pair are one problem
    rates["pairs, both sides right"] = Rate.of(both.values)

    model = lake.model(name)
    if not run.sizes["latent"]:
        return rates | written_steps(run, model)
    states = run["final_state"].sel(position=STATES).astype("float32").values
    read = (states @ model["unembedding"].values.T).argmax(-1)
    token = model["token_string"].values[read]
    result = run["intermediate_result"].values
    for k, position in enumerate(STATES):
        rates[f"lens at {position}, a number"] = Rate.of(np.char.isdigit(token[:, k].astype(str)))
    for j in range(3):
        carried = np.array([result[i, carried_step(count, j)] for i, count in enumerate(n_operation)])
        text = np.array([str(int(value)) for value in carried])
        by_operations(f"lens at ct{2 * j}, the number carried", np.char.strip(token[:, 2 * j + 1].astype(str)) == text)
    for j, position in enumerate(("bot", "ct1", "ct3", "ct5")):
        mark = np.array([story[1][min(j, len(story[1]) - 1)].operator for story in stories])
        rates[f"lens at {position}, the operator"] = Rate.of(np.char.strip(token[:, 2 * j].astype(str)) == mark)

    fed = run["latent_embedding"].astype("float32").values
    every, rng = np.ones(n, dtype=bool), np.random.default_rng(0)
    other = (np.arange(n) + rng.integers(1, n, size=n)) % n
    vectors: dict[str, Callable[[int], np.ndarray]] = {
        "all zero": lambda k: np.zeros_like(fed[:, k]),
        "all mean": lambda k: np.broadcast_to(fed[:, k].mean(0), fed[:, k].shape).copy(),
        "all from another problem": lambda k: fed[other, k],
    }
    for label, make in vectors.items():
        thoughts = {k: (every, make(k)) for k in range(6)}
        by_operations(label, answers_with(checkpoint, run, thoughts) == gold)
    for k in range(6):
        by_operations(f"ct{k} mean", answers_with(checkpoint, run, {k: (every, vectors["all mean"](k))}) == gold)
    for j in range(3):
        donor, wanted = exchange(stories, result, gold, j, rng)
        new = (n_operation >= j + 2) & (donor >= 0)
        predicted = answers_with(checkpoint, run, {2 * j + 1: (new, fed[donor, 2 * j + 1])})
        by_operations(f"ct{2 * j + 1} swapped, follows the donor", predicted == wanted, new)
        by_operations(f"ct{2 * j + 1} swapped, keeps its answer", predicted == gold, new)
    return rates


def written_steps(run: xr.Dataset, model: xr.Dataset) -> dict[str, Rate]:
    """Of a model that writes its steps: how often each is right, and what the unembedding reads around it."""
    result = run["intermediate_result"].values
    rates: dict[str, Rate] = {}
    for step in range(1, result.shape[1] + 1):
        there = ~np.isnan(result[:, step - 1])
        right = np.array([str(int(value)) for value in result[there, step - 1]])
        taken = at_places(run[["token", "final_state"]], model, [f"step{step}", f"fed{step}"]).isel(example=there)
        strings = model["token_string"].values.astype(str)
        written = taken["token"].sel(position=f"fed{step}").values
        rates[f"step {step} written right"] = Rate.of((written >= 0) & (np.char.strip(strings[written]) == right))
        read = np.char.strip(strings[(taken["final_state"].values @ model["unembedding"].values.T).argmax(-1)])
        rates[f"lens at step{step}, its result"] = Rate.of(read[:, 0] == right)
        rates[f"lens at fed{step}, a number"] = Rate.of(np.char.isdigit(read[:, 1]))
    return rates


def exchange(
    stories: list[tuple[int, tuple[Operation, ...]]],
    result: np.ndarray,
    gold: np.ndarray,
    number_thought: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw donors whose number makes the rest of each story end in another answer; -1 where none was found."""
    n = len(stories)
    donor, wanted = np.full(n, -1), np.full(n, np.nan)
    for i, (_, operations) in enumerate(stories):
        step = carried_step(len(operations), number_thought)
        for drawn in rng.integers(n, size=200):
            given = int(result[drawn, carried_step(len(stories[drawn][1]), number_thought)])
            answer = continue_from(operations, step, given)
            if answer is not None and answer != gold[i]:
                donor[i], wanted[i] = drawn, answer
                break
    return donor, wanted


def main() -> None:
    """Extract, measure and print."""
    with asked(__doc__, SHIPPED) as (models, work):
        files = write_data(work)
        for name, checkpoint in models.items():
            longest = 40 if name.endswith("-cot") else 8
            extract_all(name, checkpoint, files, work / "small.lake", longest)
            report(name, measure(name, checkpoint, work / "small.lake"), work)


@contextmanager
def asked(description: str | None, shipped: list[str]) -> Iterator[tuple[dict[str, str], Path]]:
    """Checkpoints that the arguments name, by the names of the models, and the folder to work in."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", default=shipped, metavar="NAME or NAME=CHECKPOINT")
    parser.add_argument("--work", type=Path, metavar="DIR", help="kept afterwards; a temporary folder if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = [text.partition("=") for text in options.model]
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        yield {name: checkpoint or name for name, _, checkpoint in parts}, work


def extract_all(name: str, checkpoint: str, files: dict[str, Path], lake: Path, longest: int = 8) -> None:
    """Run ``lake extract`` on every data set."""
    for data, file in files.items():
        command = [sys.executable, "-m", "lake", "extract", "--model", f"{name}={checkpoint}"]
        command += ["--data", f"{data}={file}", "--lake", str(lake), "--dtype", "float32"]
        subprocess.run([*command, "--max-new-tokens", str(longest), "--batch-size", "64"], check=True)


def report(name: str, rates: dict[str, Rate], work: Path) -> None:
    """Print the shares, and write them to ``NAME.json``."""
    print(f"\n{name}")
    for label, rate in rates.items():
        print(f"  {label:56s} {rate}")
    write_json(work / f"{name}.json", {label: rate._asdict() for label, rate in rates.items()})


if __name__ == "__main__":
    main()
