"""What is trained on: data files as ``lake extract`` reads them, and stories drawn by the project."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from extract.run.data import Problems, number_text, read_problems
from schemas import UsageError, fingerprint

_STORIES = re.compile(r"stories:(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Example:
    """A problem, its steps (``<<48/2=24>>``, or sentences), and its answer."""

    question: str
    steps: tuple[str, ...]
    answer: str


def read_examples(source: str) -> tuple[str, int, list[Example]]:
    """Read problems: ``FILE``, ``NAME=FILE`` or ``stories:N[:SEED[:LARGEST]]``, which count K times with ``*K`` behind.

    Of problems with numbers, those whose answer is no whole number from 0 on are left out (the token before the number
    would hold its sign).

    Returns
    -------
    tuple
        Name, K, problems.

    Raises
    ------
    UsageError
        If the file cannot be read or nothing in it is of use.
    """
    text, _, count = source.partition("*")
    if count and not (count.isdecimal() and int(count)):
        raise UsageError(f"{source!r}: what follows * is no whole number above 0")
    if match := _STORIES.fullmatch(text):
        from extract.training.stories import draw_stories

        count_of, seed, largest = match.groups()
        name, examples = "stories", draw_stories(int(count_of), int(seed or 0), int(largest) if largest else None)
    else:
        problems = read_problems(text)
        name = problems.name
        examples = [
            Example(question, steps, answer)
            for question, steps, answer in zip(problems.question, _steps(problems), problems.gold_answer, strict=True)
            if problems.answer_kind != "number" or answer.isdecimal()
        ]
    if not examples:
        raise UsageError(f"{source} has no problem whose answer is a whole number from 0 on")
    return name, int(count or 1), examples


def read_held_out(sources: Sequence[str]) -> dict[str, list[Example]]:
    """Problems of each file that is held out, by its name.

    Raises
    ------
    UsageError
        As :func:`read_examples`; and if two are called alike, as only one of them would be asked.
    """
    held_out: dict[str, list[Example]] = {}
    for source in sources:
        name, _, examples = read_examples(source)
        if name in held_out:
            raise UsageError(f"--validation names two data sets called {name}; give one as ANOTHER={source}")
        held_out[name] = examples
    return held_out


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """Problems to train on, without those that are held out."""

    examples: list[Example]
    counts: list[int]
    """How many times each counts."""
    lines: list[str]
    """What is told of each source."""

    @property
    def digest(self) -> str:
        """Of all that decides which batches are drawn."""
        rows = [(each.question, each.steps, each.answer) for each in self.examples]
        return fingerprint({"examples": rows, "counts": self.counts})


def read_trained_on(sources: Sequence[str], held_out: Mapping[str, Sequence[Example]]) -> TrainedOn:
    """Problems of all sources that are not among those that are held out.

    Raises
    ------
    UsageError
        As :func:`read_examples`; and if none is left.
    """
    texts = {normalised(example.question) for examples in held_out.values() for example in examples}
    found = TrainedOn([], [], [])
    for name, count, examples in map(read_examples, sources):
        kept = [example for example in examples if normalised(example.question) not in texts]
        found.examples.extend(kept)
        found.counts.extend([count] * len(kept))
        out = len(examples) - len(kept)
        found.lines.append(f"{name}: {len(kept)} problems, {out} left out because they are held out")
    if not found.examples:
        raise UsageError("no problem is left for training: all are among those of --validation")
    return found


def _steps(problems: Problems) -> Iterator[tuple[str, ...]]:
    """Written steps of each problem: equations, or where it has none sentences."""
    columns = {name: values for name, (_, values) in problems.columns.items()}
    for index, (texts, results) in enumerate(zip(columns["expression"], columns["intermediate_result"], strict=True)):
        equations = [
            f"<<{text}={number_text(value)}>>"
            for text, value in zip(texts, results, strict=True)
            if text and not math.isnan(value)
        ]
        sentences = columns["step_text"][index] if "step_text" in columns else ()
        yield tuple(equations or [text for text in sentences if text])


def normalised(question: str) -> str:
    """Question by its letters and digits alone, to find it again in another data set."""
    return re.sub(r"[^a-z0-9]+", "", question.lower())
