"""What the small models can do and which thought carries what, by a plain script of its own.

It is slow, simple and independent of the extraction command, whose figures the model cards give; the two should agree.
``python -m extract.small_models.evaluate FOLDER`` prints the table.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from extract.small_models.network import SmallCodi, load_checkpoint, make_tokenizer
from extract.small_models.problems import SPLIT_SIZES, Problem, make_pairs, make_splits, read_operations
from extract.small_models.thinking import (
    N_NUMBER_THOUGHT,
    ProblemTable,
    Words,
    continue_values,
    read_question,
    tabulate,
    think,
)
from extract.small_models.train import DATA_SEED
from schemas import N_LATENT, extract_answer

Replacement = dict[int, tuple[torch.Tensor, torch.Tensor]]
LONGEST = 8
"""Tokens that are written of an answer."""


class Rate(NamedTuple):
    """A share with its 95% Wilson interval."""

    share: float
    low: float
    high: float
    n_problem: int

    @classmethod
    def of(cls, hits: NDArray[np.bool_]) -> "Rate":
        """Count the hits."""
        if len(hits) == 0:
            return cls(float("nan"), float("nan"), float("nan"), 0)
        low, high = proportion_confint(int(hits.sum()), len(hits), method="wilson")
        return cls(float(hits.mean()), float(low), float(high), len(hits))

    def __str__(self) -> str:
        return f"{self.share:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n_problem}"


def add_by_operations(
    rates: dict[str, Rate], n_operation: NDArray[Any], name: str, hits: NDArray[np.bool_],
    among: NDArray[np.bool_] | None = None,
) -> None:  # fmt: skip
    """Add the share of hits among some problems, of all of these together and of each number of operations."""
    among = np.ones(len(hits), dtype=bool) if among is None else among
    rates[name] = Rate.of(hits[among])
    for count in np.unique(n_operation[among]):
        rates[f"{name}, {count} operations"] = Rate.of(hits[among & (n_operation == count)])


class Answers(NamedTuple):
    """What a model did on problems: predicted answers, final states at bot, ct0..ct5, and the vectors fed."""

    predicted: NDArray[np.float64]  # (problem,)
    states: torch.Tensor  # (problem, 7, hidden)
    fed: torch.Tensor  # (problem, 6, hidden)


@torch.no_grad()
def answer_problems(
    model: SmallCodi, table: ProblemTable, replace: Replacement | None = None, thoughts: bool = True
) -> Answers:
    """Answer greedily, with thoughts replaced as `extract.small_models.thinking.think` says."""
    tokenizer = make_tokenizer()
    sequence, state = read_question(model, torch.from_numpy(table.question))
    states, fed = think(model, sequence, state, replace) if thoughts else (state[:, None], state[:, None])
    token = torch.full((len(table.question),), model.eot_id)
    written = []
    for _ in range(LONGEST):
        (final,) = sequence.feed(model.embedding[token][:, None])
        logits = final[:, 0] @ model.embedding.T
        logits[:, model.eot_id] = -torch.inf
        token = logits.argmax(1)
        written.append(token)
    predicted = []
    for row in torch.stack(written, 1).tolist():
        end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        number = extract_answer(tokenizer.decode([t for t in row[:end] if t < model.pad_id]))
        predicted.append(np.nan if number is None else number)
    return Answers(np.array(predicted), states, fed)


def exchange(
    table: ProblemTable, number_thought: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a donor for every problem and say what its number would make of the story.

    Returns rows of donors (-1 where none fits in 200 draws) and counterfactual answers, which differ from the problem's
    own.
    """
    n = len(table.n_operation)
    rows = np.arange(n)
    donor, answer = np.full(n, -1), np.full(n, -1)
    step = table.carried[:, number_thought]
    for _ in range(200):
        drawn = rng.integers(n, size=n)
        given = table.value[drawn, table.carried[drawn, number_thought]]
        changed = continue_values(table, step, given)[rows, table.n_operation]
        fits = (donor < 0) & (changed >= 0) & (changed != table.answer)
        donor[fits], answer[fits] = drawn[fits], changed[fits]
    return donor, answer


def evaluate(folder: Path, thoughts: bool = True) -> dict[str, Rate]:
    """Measure a checkpoint on held-out problems; every share with its interval, by a short name."""
    model = load_checkpoint(folder)
    splits = make_splits(DATA_SEED, {split: size for split, size in SPLIT_SIZES.items() if split != "train"})
    table = tabulate(splits["test"][:2000])
    n, rng = len(table.n_operation), np.random.default_rng(0)
    clean = answer_problems(model, table, thoughts=thoughts)
    rates: dict[str, Rate] = {}
    by_operations = partial(add_by_operations, rates, table.n_operation)
    by_operations("accuracy", clean.predicted == table.answer)
    one = tabulate(splits["test-one"])
    rates["accuracy, 1 operation"] = Rate.of(answer_problems(model, one, thoughts=thoughts).predicted == one.answer)
    pairs = make_pairs(500, DATA_SEED)
    sides = []
    for side in ("clean", "corrupted"):
        stories = [Problem(p[side]["question"], *read_operations(p[side]["full_answer"])) for p in pairs]
        told = tabulate(stories)
        sides.append(answer_problems(model, told, thoughts=thoughts).predicted == told.answer)
    rates["pairs, both sides right"] = Rate.of(sides[0] & sides[1])
    if not thoughts:
        return rates

    every = torch.ones(n, dtype=torch.bool)
    shuffled = torch.from_numpy((np.arange(n) + rng.integers(1, n, size=n)) % n)
    vectors: dict[str, Callable[[int], torch.Tensor]] = {
        "all zero": lambda k: torch.zeros_like(clean.fed[:, k]),
        "all mean": lambda k: clean.fed[:, k].mean(0).expand(n, -1),
        "all from another problem": lambda k: clean.fed[shuffled, k],
    }
    for name, make in vectors.items():
        replace = {k: (every, make(k)) for k in range(N_LATENT)}
        by_operations(name, answer_problems(model, table, replace).predicted == table.answer)
    for k in range(N_LATENT):
        predicted = answer_problems(model, table, {k: (every, vectors["all mean"](k))}).predicted
        by_operations(f"ct{k} mean", predicted == table.answer)
    for j in range(N_NUMBER_THOUGHT):
        donor, answer = exchange(table, j, rng)
        replace = {2 * j + 1: (torch.from_numpy(donor >= 0), clean.fed[torch.from_numpy(donor), 2 * j + 1])}
        predicted = answer_problems(model, table, replace).predicted
        new = table.n_operation >= j + 2  # later number thoughts of short stories repeat an earlier one
        by_operations(f"ct{2 * j + 1} swapped, follows the donor", predicted == answer, (donor >= 0) & new)
        by_operations(f"ct{2 * j + 1} swapped, keeps its answer", predicted == table.answer, (donor >= 0) & new)

    read = (clean.states @ model.embedding.T).argmax(2).numpy()
    number = Words.of("cpu").number.numpy()
    for k, position in enumerate(["bot", *(f"ct{i}" for i in range(N_LATENT))]):
        rates[f"lens at {position}, a number"] = Rate.of(np.isin(read[:, k], number))
    for j in range(N_NUMBER_THOUGHT):
        right = read[:, 2 * j + 1] == number[table.value[np.arange(n), table.carried[:, j]]]
        by_operations(f"lens at ct{2 * j}, the number carried", right)
    operator = Words.of("cpu").operator.numpy()
    for j, position in enumerate(("bot", "ct1", "ct3", "ct5")):
        rates[f"lens at {position}, the operator"] = Rate.of(read[:, 2 * j] == operator[table.carried_operator[:, j]])
    return rates


def print_rates(rates: dict[str, Rate], *, as_json: bool) -> None:
    """Print what was measured, as JSON or as a table."""
    if as_json:
        sys.stdout.write(json.dumps({name: rate._asdict() for name, rate in rates.items()}, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{name:56s} {rate}\n" for name, rate in rates.items())


def _main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a small CODI checkpoint by a script of its own.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--direct", action="store_true", help="the model answers without thoughts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_rates(evaluate(options.folder, thoughts=not options.direct), as_json=options.json)


if __name__ == "__main__":
    _main()
