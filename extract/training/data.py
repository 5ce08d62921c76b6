"""What is trained on: data files as ``lake extract`` reads them, and stories drawn by the project."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extract.run.data import number_text, read_problems
from schemas import UsageError

_STORIES = re.compile(r"stories:(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Example:
    """A problem, its steps as ``<<48/2=24>> <<48+24=72>>``, and the number it asks for."""

    question: str
    chain: str
    answer: str


def read_examples(source: str) -> tuple[str, int, list[Example]]:
    """Read problems: ``FILE``, ``NAME=FILE`` or ``stories:N[:SEED]``, each with ``*K`` behind it to count K times.

    Problems whose answer is no whole number from 0 on are left out (the token before the number would hold its sign).

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

        name, examples = "stories", draw_stories(int(match.group(1)), int(match.group(2) or 0))
    else:
        problems = read_problems(text)
        name = problems.name
        expression, result = (problems.columns[key][1] for key in ("expression", "intermediate_result"))
        examples = [
            Example(question, _chain(steps, values), answer)
            for question, steps, values, answer in zip(
                problems.question, expression, result, problems.gold_answer, strict=True
            )
            if answer.isdecimal()
        ]
    if not examples:
        raise UsageError(f"{source} has no problem whose answer is a whole number from 0 on")
    return name, int(count or 1), examples


def _chain(steps: Sequence[str], results: Sequence[float]) -> str:
    return " ".join(
        f"<<{step}={number_text(result)}>>" for step, result in zip(steps, results, strict=True) if not np.isnan(result)
    )


def drop_last_step(chain: str) -> str:
    """Leave out the step whose result is the answer, as the official training does.

    With it the teacher would only copy a number at the token whose states the student is to reproduce.
    """
    return chain[: chain.rfind("<<")].rstrip() if "<<" in chain else ""


def normalised(question: str) -> str:
    """Question by its letters and digits alone, to find it again in another data set."""
    return re.sub(r"[^a-z0-9]+", "", question.lower())
