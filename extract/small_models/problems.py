"""Seeded short story problems whose every intermediate result is known.

A story gives one person a number of things and changes it one to four times, in the order told. All values stay within
0..30 and every number is one token, so the answer and every intermediate result are single tokens too. The chain of
operations is written the way GSM8K writes it (``<<26/2=13>>``); `read_operations` gets the operations back from that
text, and `continue_from` says what the rest of a story makes of any given intermediate result.
"""

import itertools
import re
from collections.abc import Sequence
from operator import add, floordiv, mul, sub
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from schemas.errors import UsageError
from schemas.whole_files import write_json, write_json_lines

LARGEST_NUMBER = 30
LARGEST_OPERAND = 9
MAX_OPERATION = 4
N_DRAWN = 500
"""Pairs drawn at least, of which those handed out are taken: held out from training, all of them."""

PEOPLE = {"Tom": "He", "Ben": "He", "Sam": "He", "Max": "He", "Anna": "She", "Lucy": "She", "Mia": "She", "Eva": "She"}
THINGS = ("apples", "books", "coins", "pens", "cards", "shells", "stamps", "marbles")
# Every sentence of a change is five tokens long: the length of a question tells its number of operations and no more.
SENTENCES = {
    "+": ("{person} finds {operand} more.", "{person} buys {operand} more.", "{person} gets {operand} more."),
    "-": ("{person} gives {operand} away.", "{person} throws {operand} away.", "{person} loses {operand} again."),
    "*": ("{person} then doubles them.", "Their number then doubles."),
    "/": ("Half of them vanish.", "Their number then halves."),
}
OPERATORS = tuple(SENTENCES)
APPLY = {"+": add, "-": sub, "*": mul, "/": floordiv}
OPERATOR_RATES = (0.3, 0.3, 0.2, 0.2)
SPLIT_SIZES = {
    "train": {1: 20_000, 2: 40_000, 3: 60_000, 4: 80_000},
    "validation": {1: 250, 2: 250, 3: 250, 4: 250},
    "test": {2: 667, 3: 667, 4: 666},
    "test-one": {1: 500},
}


class Operation(NamedTuple):
    """One change of the number of things: an operator of ``+ - * /`` and what it is applied with."""

    operator: str
    operand: int

    def apply(self, value: int) -> int | None:
        """Return the new number, or None where the story's world (whole numbers 0..30) has none."""
        if self.operator == "/" and value % self.operand:
            return None
        result = APPLY[self.operator](value, self.operand)
        return result if 0 <= result <= LARGEST_NUMBER else None


class Problem(NamedTuple):
    """A story problem: its text, the number it starts with and its operations in the order told."""

    question: str
    start: int
    operations: tuple[Operation, ...]

    @property
    def values(self) -> list[int]:
        """The start and the result of every operation, the answer last: ``len(operations) + 1`` numbers."""
        values = [self.start]
        for operation in self.operations:
            result = operation.apply(values[-1])
            if result is None:
                raise UsageError(f"the story {self.question!r} leaves the numbers 0..{LARGEST_NUMBER}")
            values.append(result)
        return values

    @property
    def answer(self) -> int:
        """The final number."""
        return self.values[-1]

    @property
    def chain(self) -> str:
        """Every operation with its result, in GSM8K's notation: ``<<26/2=13>> <<13-2=11>>``."""
        values = self.values
        steps = zip(values, self.operations, values[1:], strict=False)
        return " ".join(f"<<{before}{step.operator}{step.operand}={after}>>" for before, step, after in steps)

    @property
    def full_answer(self) -> str:
        """The chain and the answer, as GSM8K's ``answer`` field writes them."""
        return f"{self.chain}\n#### {self.answer}"


def read_operations(text: str) -> tuple[int, tuple[Operation, ...]]:
    """Return the start value and the operations written in a chain such as ``<<26/2=13>> <<13-2=11>>``."""
    steps = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", text)
    if not steps:
        raise UsageError(f"no step like <<26/2=13>> found in {text!r}; give the answer text of a story problem")
    return int(steps[0][0]), tuple(Operation(operator, int(operand)) for _, operator, operand, _ in steps)


def continue_from(operations: Sequence[Operation], step: int, value: int) -> int | None:
    """Return the answer the rest of a story gives if the result of one of its steps were another number.

    Parameters
    ----------
    operations
        All operations of the story, in order.
    step
        The step whose result is replaced: 0 is the first intermediate result, -1 the number the story starts with.
    value
        What its result is taken to be.

    Returns
    -------
    int or None
        The answer; None where the rest of the story cannot be told (a number outside 0..30, half of an odd number).
    """
    if not -1 <= step < len(operations):
        raise UsageError(
            f"step {step} of a story with {len(operations)} operations; steps are -1..{len(operations) - 1}"
        )
    result: int | None = value
    for operation in operations[step + 1 :]:
        if result is None:
            return None
        result = operation.apply(result)
    return result


def carried_step(n_operation: int, number_thought: int) -> int:
    """Return the step whose result the small models keep at ct0, ct2, ct4 (`number_thought` 0, 1, 2).

    The answer itself is never kept in a thought: a story with fewer operations repeats its last result before the
    answer (-1: the number it starts with, for stories of one operation).
    """
    return min(number_thought, n_operation - 2)


def draw_problem(rng: np.random.Generator, n_operation: int, largest_operand: int = LARGEST_OPERAND) -> Problem:
    """Draw one story with the given number of operations, adding and subtracting at most ``largest_operand``."""
    start = value = int(rng.integers(1, LARGEST_NUMBER + 1))
    operations: list[Operation] = []
    while len(operations) < n_operation:
        operator = OPERATORS[int(np.searchsorted(np.cumsum(OPERATOR_RATES)[:-1], rng.random(), side="right"))]
        operation = Operation(operator, int(rng.integers(1, largest_operand + 1)) if operator in "+-" else 2)
        result = operation.apply(value)
        if result is not None and (operator in "+-" or value > 0):
            operations.append(operation)
            value = result
    name = list(PEOPLE)[int(rng.integers(len(PEOPLE)))]
    thing = THINGS[int(rng.integers(len(THINGS)))]
    sentences = [SENTENCES[o.operator][int(rng.integers(len(SENTENCES[o.operator])))] for o in operations]
    return Problem(_tell(name, thing, sentences, start, operations), start, tuple(operations))


def _tell(name: str, thing: str, sentences: Sequence[str], start: int, operations: Sequence[Operation]) -> str:
    changes = [
        sentence.format(person=PEOPLE[name], operand=operation.operand)
        for sentence, operation in zip(sentences, operations, strict=True)
    ]
    return " ".join([f"{name} has {start} {thing}.", *changes, f"How many {thing} does {name} have?"])


def make_splits(seed: int = 0, sizes: dict[str, dict[int, int]] | None = None) -> dict[str, list[Problem]]:
    """Draw all splits, no question occurring twice in or across them.

    Stricter than that for two operations and more: no held-out problem shares its numbers and operations with a
    training problem, whatever the words around them. (Stories of one operation are too few for that.)

    Parameters
    ----------
    seed
        Seed of the drawing; the same seed gives the same splits.
    sizes
        Number of problems by split and number of operations; `SPLIT_SIZES` if not given.
        Held-out splits are drawn before the training split, so that its size does not change them.

    Returns
    -------
    dict
        Split name to its problems, operations mixed in a seeded order.
    """
    sizes = SPLIT_SIZES if sizes is None else sizes
    seen: set[str] = set()
    splits: dict[str, list[Problem]] = {}
    names = sorted({*SPLIT_SIZES, *sizes} - {"train"})
    for split in sorted(set(sizes) - {"train"}):
        index = names.index(split)
        splits[split] = _draw_split(np.random.default_rng([seed, 1, index]), sizes[split], seen, set())
    if "train" in sizes:
        held_out = [problem for split in splits.values() for problem in split]
        for pair in make_pairs(seed=seed):
            for side in ("clean", "corrupted"):
                start, operations = read_operations(pair[side]["full_answer"])
                held_out.append(Problem(pair[side]["question"], start, operations))
                seen.add(pair[side]["question"])
        skeletons = {problem[1:] for problem in held_out if len(problem.operations) > 1}
        splits["train"] = _draw_split(np.random.default_rng([seed, 0]), sizes["train"], seen, skeletons)
    return splits


def _draw_split(
    rng: np.random.Generator,
    size: dict[int, int],
    seen: set[str],
    skeletons: set[tuple[int, tuple[Operation, ...]]],
) -> list[Problem]:
    problems: list[Problem] = []
    for n_operation, count in size.items():
        wanted = len(problems) + count
        while len(problems) < wanted:
            problem = draw_problem(rng, n_operation)
            if problem.question not in seen and problem[1:] not in skeletons:
                seen.add(problem.question)
                problems.append(problem)
    return [problems[i] for i in rng.permutation(len(problems))]


def make_hard(n_problem: int = 1000, seed: int = 0) -> list[Problem]:
    """Draw stories that the small models often get wrong, for error prediction.

    All have four operations, so that a question's length tells nothing; they add and subtract up to twelve, where
    training stopped at nine. About half have such a number, and those are mostly answered wrongly.
    """
    rng = np.random.default_rng([seed, 3])
    return [draw_problem(rng, MAX_OPERATION, largest_operand=12) for _ in range(n_problem)]


def corrupt_problem(rng: np.random.Generator, problem: Problem) -> tuple[Problem, str] | None:
    """Change one number of a story so that its answer changes; None if no such change was found in 100 draws.

    Returns
    -------
    tuple or None
        The corrupted problem, and the change written as ``4 -> 5``.
    """
    numbers = list(re.finditer(r"\d+", problem.question))
    adjustable = [-1] + [i for i, operation in enumerate(problem.operations) if operation.operator in "+-"]
    for _ in range(100):
        which = int(rng.integers(len(adjustable)))
        place = adjustable[which]
        operations = list(problem.operations)
        start = problem.start
        if place < 0:
            start = new = int(rng.integers(1, LARGEST_NUMBER + 1))
        else:
            new = int(rng.integers(1, LARGEST_OPERAND + 1))
            operations[place] = Operation(operations[place].operator, new)
        old = numbers[which]
        answer = continue_from(operations, -1, start)
        if new == int(old.group()) or answer is None or answer == problem.answer:
            continue
        question = problem.question[: old.start()] + str(new) + problem.question[old.end() :]
        return Problem(question, start, tuple(operations)), f"{old.group()} -> {new}"
    return None


def make_pairs(n_pair: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """Draw clean/corrupted pairs: two stories that differ in one number and in the answer.

    At least 500 are drawn, of two to four operations. Those handed out come in turn from each number of operations and
    each first step whose result differs, as long as there are such pairs. How often an answer can follow a thought
    depends on that step: where only the last step differs, whose result is the answer, no thought holds what differs.

    Returns
    -------
    list of dict
        Records with ``pair_id``, ``clean``, ``corrupted`` (question, answer, full_answer), ``changed_number``
        (``4 -> 5``), ``n_operation`` and ``first_step``, counted from 1. No question of a split of the same seed is
        among them (for the training split: of the first 500 pairs).
    """
    rng = np.random.default_rng([seed, 2])
    held_out = {split: size for split, size in SPLIT_SIZES.items() if split != "train"}
    seen = {problem.question for split in make_splits(seed, held_out).values() for problem in split}
    pairs: list[dict[str, Any]] = []
    while len(pairs) < max(n_pair, N_DRAWN):
        count = 2 + len(pairs) % 3
        clean = draw_problem(rng, count)
        changed = corrupt_problem(rng, clean)
        if changed is None or clean.question in seen or changed[0].question in seen:
            continue
        corrupted, change = changed
        seen |= {clean.question, corrupted.question}
        pairs.append(
            {
                "clean": _side(clean),
                "corrupted": _side(corrupted),
                "changed_number": change,
                "n_operation": count,
                "first_step": 1 + next(k for k in range(count) if clean.values[k + 1] != corrupted.values[k + 1]),
            }
        )
    return [{"pair_id": number, **pair} for number, pair in enumerate(_in_turn(pairs)[:n_pair])]


def _in_turn(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of each number of operations and first step that differs in turn, in each the order of drawing."""
    kinds: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for pair in pairs:
        kinds.setdefault((pair["first_step"], pair["n_operation"]), []).append(pair)
    rounds = itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    return [pair for round_of_pairs in rounds for pair in round_of_pairs if pair is not None]


def _side(problem: Problem) -> dict[str, Any]:
    return {"question": problem.question, "answer": problem.answer, "full_answer": problem.full_answer}


def write_problems(problems: Sequence[Problem], path: Path | str) -> None:
    """Write problems as JSON Lines in GSM8K's own format, with the number of operations as one more field."""
    records = ({"question": p.question, "answer": p.full_answer, "n_operation": len(p.operations)} for p in problems)
    write_json_lines(path, records)


def write_pairs(pairs: Sequence[dict[str, Any]], path: Path | str) -> None:
    """Write clean/corrupted pairs as a JSON list."""
    write_json(path, pairs)
