"""What a sweep costs against its conditions run one by one, and how its cost grows with examples and conditions.

    python benchmarks/reentry.py [--model small-gpt2] [--examples 128] [--every 1] [--device cpu] [--processor]

One by one, every condition thinks every question through from its beginning, in batches of 32 questions, with the same
edits and the same measurements. Both sides give the same answers, which is checked. ``--processor`` compares processor
seconds instead of wall-clock ones, for a machine that is busy with other things; ``--every 6`` takes one condition in
six.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.reenter.armed import Armed
from extract.reenter.intervene import arm
from extract.reenter.sweep import Condition, sweep
from extract.reenter.values import StoredValues
from extract.run.extract import extract, prepare
from extract.small_models.problems import make_splits, write_problems
from schemas import Intervention, RunSpec
from store import open_lake

BATCH = 32
CHANGES: tuple[dict[str, Any], ...] = (
    {"operation": "zero"},
    {"operation": "mean"},
    {"operation": "resample"},
    {"operation": "noise", "strength": 0.5},
    {"operation": "noise", "strength": 2.0},
)


def conditions_of(n_layer: int) -> list[Condition]:
    """Every layer and thought, changed in five ways."""
    return [
        Condition(
            name=f"{layer} {position} {index}",
            interventions=(Intervention(site="hidden_state", layers=(layer,), positions=(position,), **change),),
        )
        for layer in range(n_layer)
        for position in ("ct0", "ct1", "ct2", "ct3", "ct4", "ct5")
        for index, change in enumerate(CHANGES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small-gpt2")
    parser.add_argument("--base", help="of a checkpoint that does not come with the project")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    clock: Callable[[], float] = time.process_time if options.processor else time.perf_counter
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "problems.jsonl"
        write_problems(make_splits(0, {"train": {}, "validation": {}, "test": {4: options.examples}})["test"], data)
        spec = RunSpec(batch_size=64, max_new_tokens=10, device=options.device)
        prepared = prepare(options.model, str(data), f"{folder}/b.lake", spec, base=options.base)
        extract(prepared, f"{folder}/b.lake")
        run = open_lake(f"{folder}/b.lake")[prepared.run].load()
        reasoner = prepared.reasoner
    conditions = conditions_of(reasoner.n_layer)[:: options.every]
    gold = [str(text) for text in run["gold_answer"].values]
    values = StoredValues(run, reasoner)
    prompts = [reasoner.encode(str(text)) for text in run["question"].values]
    n = len(prompts)

    def one_by_one(chosen: list[Condition]) -> list[list[str]]:
        found = []
        for condition in chosen:
            texts: list[str] = []
            for start in range(0, n, BATCH):
                rows = np.arange(start, min(start + BATCH, n))
                armed = Armed(len(rows), reasoner.device)
                for stage, each in enumerate(condition.interventions):
                    arm(armed, each, values, rows, np.arange(len(rows)), stage=stage)
                part = [prompts[row] for row in rows]
                texts += reasoner.think(
                    part, capture=None, max_new_tokens=10, gold=[gold[row] for row in rows], editor=armed
                ).generated_text
            found.append(texts)
        return found

    def together(chosen: list[Condition]) -> np.ndarray:
        found = sweep(reasoner, run, chosen, answers={"gold": gold}, values=values, max_new_tokens=10)
        counts.update(found.attrs)
        return found["generated_text"].values[1:]

    def timed(work: Callable[[], object]) -> tuple[float, object]:
        start = clock()
        out = work()
        return clock() - start, out

    counts: dict[str, object] = {}
    together(conditions[:5])
    one_by_one(conditions[:1])
    whole, texts = timed(lambda: together(conditions))
    alone, single = timed(lambda: one_by_one(conditions))
    same = np.mean(np.asarray(texts) == np.array(single, dtype=object))
    kind = "processor" if options.processor else "wall-clock"
    print(f"{options.model} on {options.device}, {n} examples, {len(conditions)} conditions, {kind} seconds")
    print(f"one by one  {alone:8.2f}")
    print(f"sweep       {whole:8.2f}   {whole / alone:.2f} of it; same texts: {same:.1%}")
    print(f"positions fed {counts['positions_fed']}, one by one {counts['positions_one_by_one']}")
    half, _ = timed(lambda: together(conditions[::2]))
    print(f"half of the conditions {half:8.2f}   {half / whole:.2f} of the whole")


if __name__ == "__main__":
    main()
