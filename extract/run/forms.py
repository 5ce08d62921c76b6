"""Forms in which data sets come: which fields ask, which answer, and of what kind the answers are."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from schemas import KINDS, AnswerKind, UsageError, nearest, read_gold
from schemas.numbers import plain

CLOSED_KINDS: tuple[AnswerKind, ...] = ("boolean", "choice")
"""Kinds of which there are few answers."""
Read = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Names of a data set's fields."""

    name: str
    needs: tuple[str, ...]
    """Fields of its first row by which it is known; they become no columns."""
    question: Read
    """May raise ValueError, whose message goes on after "has", as may the answer's."""
    answer: Read


def _joined(*names: str) -> Read:
    def read(row: Mapping[str, Any]) -> Any:
        parts = [row.get(name) for name in names]
        texts = [part.strip() for part in parts if isinstance(part, str)]
        return " ".join(texts) if len(texts) == len(parts) else None

    return read


def _field(name: str) -> Read:
    return lambda row: row.get(name)


def _first(name: str) -> Read:
    def read(row: Mapping[str, Any]) -> Any:
        value = row.get(name)
        return value[0] if isinstance(value, list) and len(value) == 1 else None if isinstance(value, list) else value

    return read


def _with_numbers(row: Mapping[str, Any]) -> Any:
    """MAWPS's question with its numbers in their places: whole ones without ``.0``."""
    question, numbers = row.get("Question"), row.get("Numbers")
    if not isinstance(question, str):
        return None
    each = [] if numbers is None or isinstance(numbers, list) else str(numbers).split()
    for index, number in reversed(list(enumerate(each))):
        question = question.replace(f"number{index}", number.removesuffix(".0"))
    if missing := re.search(r"\bnumber\d+", question):
        raise ValueError(f"Numbers {numbers!r} without {missing[0]} of its question")
    return question


def _choices(row: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """A question's stem, and the text of each choice by its letter."""
    asked = row.get("question")
    stem, given = (asked.get("stem"), asked.get("choices")) if isinstance(asked, Mapping) else (asked, None)
    given = next((choices for choices in (given, row.get("choices"), row.get("options")) if choices is not None), None)
    labels: Any = list("ABCDE")
    texts: Any = given
    if isinstance(given, Mapping):
        labels, texts = given.get("label"), given.get("text")
    elif isinstance(given, list) and all(isinstance(choice, Mapping) for choice in given):
        labels, texts = ([choice.get(field) for choice in given] for field in ("label", "text"))
    elif isinstance(given, list):
        labels = labels[: len(given)]
    plain = isinstance(labels, list) and isinstance(texts, list)
    if not plain or not all(isinstance(each, str) for each in [*labels, *texts]) or len(labels) != len(texts):
        raise ValueError("choices that are not as many letters as texts, or more than A to E")
    if len({*labels}) < len(labels) or not labels:
        raise ValueError(f"choices called {', '.join(labels) or 'nothing'}; each needs a letter of its own")
    return stem, dict(zip(labels, texts, strict=True))


def _with_choices(row: Mapping[str, Any]) -> Any:
    """A question of several choices: its stem, and a line ``A: ...`` for each."""
    stem, choices = _choices(row)
    lines = ["Choices:", *(f"{label}: {text}" for label, text in choices.items())]
    return "\n".join([stem.strip(), *lines]) if isinstance(stem, str) else None


def _choice(name: str) -> Read:
    """The letter of the choice that a field says: by its letter, its text, or its number from 0."""

    def read(row: Mapping[str, Any]) -> Any:
        said, (_, choices) = row.get(name), _choices(row)
        found = {label for label, text in choices.items() if said == text or str(said).strip("(). ") == label}
        if type(said) is int and 0 <= said < len(choices):
            found.add([*choices][said])
        if len(found) != 1:
            raise ValueError(f"the answer {said!r}, which is none of its choices {', '.join(choices)}, or two")
        return found.pop()

    return read


def boxed(text: Any) -> str | None:
    r"""What stands in the last ``\boxed{...}`` of a solution, as MATH's answers do."""
    start = text.rfind(r"\boxed{") if isinstance(text, str) else -1
    if start < 0:
        return None
    depth, begin = 0, start + len(r"\boxed{")
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth < 0:
            return str(text[begin:place])
    return None


FORMS = (
    Form(
        name="prontoqa, as generated",
        needs=("question", "query", "answer"),
        question=_joined("question", "query"),
        answer=_field("answer"),
    ),
    Form(
        name="commonsenseqa", needs=("question", "choices", "answerKey"), question=_with_choices,
        answer=_choice("answerKey"),
    ),
    Form(name="commonsenseqa, as published", needs=("question", "answerKey"), question=_with_choices,
         answer=_choice("answerKey")),
    Form(name="mmlu", needs=("question", "choices", "answer"), question=_with_choices, answer=_choice("answer")),
    Form(name="mmlu-pro", needs=("question", "options", "answer"), question=_with_choices, answer=_choice("answer")),
    Form(name="multiarith", needs=("question", "final_ans"), question=_field("question"), answer=_field("final_ans")),
    Form(name="usual", needs=("question", "answer"), question=_field("question"), answer=_field("answer")),
    Form(name="svamp, of the hub", needs=("question_concat", "Answer"), question=_field("question_concat"),
         answer=_field("Answer")),
    Form(name="mawps", needs=("Question", "Numbers", "Answer"), question=_with_numbers, answer=_field("Answer")),
    Form(name="svamp", needs=("Body", "Question", "Answer"), question=_joined("Body", "Question"),
         answer=_field("Answer")),
    Form(name="mawps, as published", needs=("sQuestion", "lSolutions"), question=_field("sQuestion"),
         answer=_first("lSolutions")),
    Form(name="math-500", needs=("problem", "solution", "answer"), question=_field("problem"),
         answer=_field("answer")),
    Form(name="math", needs=("problem", "solution"), question=_field("problem"),
         answer=lambda row: boxed(row.get("solution"))),
    Form(name="problem", needs=("problem", "answer"), question=_field("problem"), answer=_field("answer")),
    Form(name="gsm-hard", needs=("input", "target"), question=_field("input"), answer=_field("target")),
    Form(name="gsm-hard, of the hub", needs=("instruction", "response"), question=_field("instruction"),
         answer=_field("response")),
    Form(name="capitals", needs=("Question", "Answer"), question=_field("Question"), answer=_field("Answer")),
)  # fmt: skip
USUAL = next(form for form in FORMS if form.name == "usual")


def form_of(
    row: Mapping[str, Any], where: str, question_field: str | None = None, answer_field: str | None = None
) -> Form:
    """Form of a data set by its first row, or with the fields that its user names.

    Raises
    ------
    UsageError
        If a named field is not there, or no form fits: the fields that are there are listed.
    """
    known = next((form for form in FORMS if set(form.needs) <= row.keys()), None)
    for field in (question_field, answer_field):
        if field is not None and field not in row:
            raise UsageError(
                f"{where} has no field {field!r}, but {', '.join(map(str, row)) or 'none'}{nearest(field, row)}"
            )
    if question_field is None and answer_field is None:
        if known is None and not {"question", "answer"} & row.keys():
            raise UsageError(
                f"{where} has no question and answer, but {', '.join(map(str, row)) or 'no field'};"
                " name them with --question-field and --answer-field"
            )
        return known or USUAL
    known = known or USUAL
    question = _field(question_field) if question_field else known.question
    answer = _field(answer_field) if answer_field else known.answer
    needs = (question_field or "question", answer_field or "answer")
    return Form(name="as named", needs=needs, question=question, answer=answer)


_RESULT = re.compile(r"####|=|:|\b(?:is|are|equals)\s+\S+$")


def read_golds(
    answers: Sequence[Any], places: Sequence[str], kind: AnswerKind | Literal["auto"]
) -> tuple[AnswerKind, list[str]]:
    """Kind of a data file's answers, and all of them as they are stored.

    ``answers`` are truth values, numbers or texts; ``places`` say where each is, as errors name it; the kind ``auto``
    is the one that their form shows.

    Raises
    ------
    UsageError
        If one is not of the kind; if some could be numbers and others not, or they are sentences with a number in them.
    """
    auto = kind == "auto"
    others = ", ".join(kind for kind in KINDS if kind != "number")
    hint = (
        f"; if the answers are no numbers, say with --answer which they are ({others})" if auto
        else "" if kind == "text"
        else f"; --answer says that they are of the kind {kind}, --answer text takes any"
    )  # fmt: skip
    if kind == "auto":
        kind = _plain_kind(answers) or "number"
    golds = []
    for answer, where in zip(answers, places, strict=True):
        try:
            golds.append(read_gold(answer, kind))
        except ValueError as error:
            raise UsageError(f"{where} has the answer {str(answer)[-40:]!r}, {error}{hint}") from error
    for answer, where in zip(answers, places, strict=True) if auto and kind == "number" else ():
        if isinstance(answer, str) and len(answer.split()) > 3 and not _RESULT.search(answer):
            raise UsageError(
                f"{where} has the answer {answer[-40:]!r}, which could be a number or a text; say with --answer"
                " number or --answer text which the answers are"
            )
    return kind, golds


def _plain_kind(answers: Sequence[Any]) -> AnswerKind | None:
    """Kind other than numbers that all answers show."""
    for kind in CLOSED_KINDS:
        if all(_reads(answer, kind) for answer in answers):
            return kind
    if not all(isinstance(answer, str) for answer in answers):
        return None
    return None if any(re.search(r"\d", plain(answer.split("####")[-1])) for answer in answers) else "text"


def _reads(answer: Any, kind: AnswerKind) -> bool:
    if not isinstance(answer, str) and not (kind == "boolean" and isinstance(answer, bool)):
        return False
    try:
        read_gold(answer, kind)
    except ValueError:
        return False
    return True


def check_answer(answer: Any, where: str) -> Any:
    """An answer that is a number, a text or a truth value.

    Raises
    ------
    UsageError
        If it is none of these, or an empty text.
    """
    if not isinstance(answer, bool | int | float | Decimal | str) or (isinstance(answer, str) and not answer.strip()):
        raise UsageError(f"{where} has no answer that is a number, a text or a truth value")
    return answer
