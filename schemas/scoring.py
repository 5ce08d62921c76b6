"""What a text answers, whichever kind of answer was asked for, and whether that is right."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args, overload

import numpy as np

from schemas.answers import NumberRule, equal_answers, extract_number, read_gold_answer
from schemas.errors import UsageError
from schemas.latex import is_notation, plain_notation
from schemas.numbers import find_numbers, plain
from schemas.spelling import nearest

AnswerKind = Literal["number", "text", "choice", "boolean"]
Rule = Literal["default", "reports", "coconut", "lrms", "codi"]
Outcome = Literal["clean_answer", "corrupted_answer", "other", "gibberish"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Answer = float | str
KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
CHOICES = "ABCDE"
USUAL_PREFIX = "The answer is:"
"""What CODI's models write before an answer; read wherever there is no ``#``."""

_RULES: dict[AnswerKind, tuple[Rule, ...]] = {
    "number": ("default", "reports", "codi"),
    **dict.fromkeys(("text", "choice", "boolean"), ("default", "coconut", "lrms", "codi")),
}
_LETTER = re.compile(r"[\W_]*([A-E])(?![\w'])")
_WORD = re.compile(r"[\W_]*(true|false|yes|no)(?!\w)", re.IGNORECASE)
_TRUTH = {"true": "True", "yes": "True", "false": "False", "no": "False"}
_CODI_NUMBER = re.compile(r"-?\d+\.?\d*")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the answers of a run are read and compared.

    The ``default`` rules. A *number* is read as :func:`schemas.answers.extract_number` says, and is right within its
    tolerance. Other answers stand after the last ``#`` or, where there is none, after the last ``The answer is:`` (or
    the model's own prefix). A *text* is compared as Coconut's code compares ProsQA's answers: without commas, stripped,
    otherwise exactly; mathematical notation (LaTeX, or without words) as MATH's code does
    (:func:`schemas.latex.plain_notation`). A text without a mark before it is no answer. A *choice* is the letter A to
    E, and a *boolean* the word true, false, yes or no in either case, that begins the answer; a text without a mark is
    the answer as a whole, as in CODI's code, and yes is the same as true.

    Rules of published code, for numbers that are to be compared with theirs: ``reports`` (numbers only, see
    :func:`extract_number`); ``coconut`` (run.py of facebookresearch/coconut: exactly what stands after the last ``#``);
    ``lrms`` (connordilgren/are-lrms-easily-interpretable, dataset_performance: after the last ``###``, else after ``The
    answer is:``; case, spaces and commas do not count); ``codi`` (test.py of zhenyi4/codi: the last number of a text
    before anything else; ``True`` anywhere, else ``False`` anywhere; the first character of the answer if it is one of
    A to E, else C).
    """

    kind: AnswerKind = "number"
    rule: Rule = "default"
    prefix: str = USUAL_PREFIX
    """Text that the model writes before its answer; empty: the answer is all it writes."""

    def __post_init__(self) -> None:
        """Check that the rule reads such answers."""
        if self.kind not in KINDS:
            raise UsageError(f"answer {self.kind!r} is not one of {', '.join(KINDS)}{nearest(self.kind, KINDS)}")
        known = _RULES[self.kind]
        if self.rule not in known:
            raise UsageError(
                f"rule {self.rule!r} does not read answers of the kind {self.kind}; there are {', '.join(known)}"
            )

    def answer(self, text: str) -> Answer | None:
        """What a generated text answers: a number, or a text; ``None`` if nothing."""
        if self.kind == "number" and self.rule != "codi":
            rule: NumberRule = "reports" if self.rule == "reports" else "default"
            return extract_number(text, rule)
        if self.rule == "codi":
            return self._codi(text)
        part = self._after_mark(text)
        if part is None or (self.kind == "text" or self.rule != "default"):
            return part or None
        return self._canonical(part)

    def gold(self, text: str) -> Answer:
        """Value of a stored gold answer."""
        return float(text) if self.kind == "number" else text

    def normal(self, answer: str) -> str:
        """Form in which two answers that are not numbers are the same text; empty: no answer."""
        if self.kind == "text" and self.rule == "default" and is_notation(answer):
            return plain_notation(answer)
        answer = answer.replace(",", "")
        if self.rule == "lrms":
            return answer.lower().replace(" ", "")
        if self.kind == "boolean" and self.rule != "coconut":
            answer = self._canonical(answer) or ""
            return _TRUTH.get(answer.lower(), "")
        return answer.strip()

    def equal(self, answer: Any, other: Any) -> np.ndarray:
        """Which answers are the same; arrays that broadcast. What is missing (NaN, or an empty text) equals nothing."""
        if self.kind == "number":
            return equal_answers(answer, other, "reports" if self.rule == "reports" else "default")
        one, two = (self._normals(text) for text in (answer, other))
        return np.asarray((one == two) & (one != ""), dtype=bool)

    def match(self, answer: Answer | None, other: Answer | None) -> bool:
        """Whether two answers are the same; ``None`` matches nothing."""
        return answer is not None and other is not None and bool(self.equal(answer, other))

    def column(self, answers: Iterable[Answer | None]) -> np.ndarray:
        """Answers as they are stored: numbers with NaN for none, or texts, empty for none."""
        if self.kind == "number":
            return np.array([np.nan if answer is None else answer for answer in answers], dtype=np.float64)
        return np.array(["" if answer is None else answer for answer in answers], dtype=object)

    def answers(self, texts: np.ndarray) -> np.ndarray:
        """What texts of any shape answer, as :meth:`column` has it; each different text is read once."""
        answers = {text: self.answer(text) for text in set(map(str, texts.ravel()))}
        return self.column(answers[str(text)] for text in texts.ravel()).reshape(texts.shape)

    def outcome(self, text: str, *, clean: Answer, corrupted: Answer) -> Outcome:
        """Which answer a patched run gave; see :func:`classify_outcome`."""
        answer = self.answer(text)
        if self.match(answer, clean):
            return "clean_answer"
        if self.match(answer, corrupted):
            return "corrupted_answer"
        if answer is not None and (not isinstance(answer, str) or any(character.isalnum() for character in answer)):
            return "other"
        coherent = len(text.strip() if self.rule != "reports" else text) >= 10 and any(c.isalpha() for c in text)
        numeric = self.kind == "number" and self.rule == "default" and find_numbers(plain(text))
        return "other" if coherent or numeric else "gibberish"

    def _after_mark(self, text: str) -> str | None:
        if self.rule == "coconut":
            return text.split("#")[-1].replace(",", "").strip() if "#" in text else None
        if self.rule == "lrms":
            marks = ["###", USUAL_PREFIX]
        else:
            marks = ["#", USUAL_PREFIX, *([self.prefix] if self.prefix.strip("# ") else [])]
        mark = next((mark for mark in marks if mark in text), None)
        if mark is None and (self.rule == "lrms" or (self.kind == "text" and self.prefix)):
            return None
        answer = (text if mark is None else text.split(mark)[-1]).strip()
        return answer.replace(",", "") if self.rule == "lrms" else answer

    def _canonical(self, answer: str) -> str | None:
        """The letter, or the word as it is stored: True, False, yes or no."""
        if self.kind == "choice":
            match = _LETTER.match(answer)
            return match[1] if match else None
        match = _WORD.match(answer)
        word = match[1].lower() if match else None
        return word.capitalize() if word in ("true", "false") else word

    def _codi(self, text: str) -> Answer | None:
        text = text.replace(",", "")
        if numbers := _CODI_NUMBER.findall(text):
            return float(numbers[-1]) if self.kind == "number" else str(float(numbers[-1]))
        answer = text.split(USUAL_PREFIX)[-1].strip()
        if self.kind == "number":
            return None
        if self.kind == "choice":
            return answer[0] if answer[:1] and answer[0] in CHOICES else "C"
        if self.kind == "boolean":
            return next((word for word in ("True", "False") if word in text), None)
        return answer or None

    def _normals(self, answers: Any) -> np.ndarray:
        values = np.asarray(answers, dtype=object)
        known = {answer: self.normal(str(answer)) for answer in set(values.ravel().tolist())}
        return np.array([known[answer] for answer in values.ravel().tolist()], dtype=object).reshape(values.shape)


def is_value(values: np.ndarray) -> np.ndarray:
    """Which of these are there at all: numbers that are no NaN, or texts that are not empty."""
    return np.asarray(values != "" if values.dtype.kind in "OU" else ~np.isnan(values))


@overload
def extract_answer(text: str, rule: Rule = "default", kind: Literal["number"] = "number") -> float | None: ...
@overload
def extract_answer(text: str, rule: Rule, kind: Literal["text", "choice", "boolean"]) -> str | None: ...
@overload
def extract_answer(text: str, *, kind: Literal["text", "choice", "boolean"]) -> str | None: ...
def extract_answer(text: str, rule: Rule = "default", kind: AnswerKind = "number") -> Answer | None:
    """What a text answers: a float, for other kinds than ``number`` a str; ``None`` if nothing. See :class:`Scoring`.

    >>> extract_answer("9 * 2 = 18, so #### 18"), extract_answer("### Bob is a sterpus.", kind="text")
    (18.0, 'Bob is a sterpus.')
    """
    return Scoring(kind, rule).answer(text)


def classify_outcome(
    text: str, *, clean: Answer, corrupted: Answer, rule: Rule = "default", kind: AnswerKind = "number"
) -> Outcome:
    """Which answer a patched run gave.

    Parameters
    ----------
    text
        Generated text.
    clean, corrupted
        The answers of the two problems; they must differ, as the clean one would win a tie.
    rule, kind
        How the answer is read (see :class:`Scoring`). A text without one is ``"gibberish"`` if it has no letter or
        fewer than ten characters, else ``"other"``; so is an answer without a letter or digit.

    Returns
    -------
    "clean_answer", "corrupted_answer", "other" or "gibberish"
    """
    return Scoring(kind, rule).outcome(text, clean=clean, corrupted=corrupted)


def read_gold(answer: Any, kind: AnswerKind) -> str:
    """A data file's answer as it is stored and as the model is to write it.

    Parameters
    ----------
    answer
        A text (of which only what stands after ``####`` counts), a number or a truth value.
    kind
        Of answers.

    Returns
    -------
    str
        A number in plain decimals; a letter A to E; ``True`` or ``False`` for a truth value, else the word as it is
        written; a text as it is written, stripped.

    Raises
    ------
    ValueError
        If it is none of that kind. The message ends a sentence that begins with the answer.
    """
    if kind == "number":
        if isinstance(answer, bool):
            raise ValueError("which is no number")
        return number_text(read_gold_answer(answer))
    text = str(answer).split("####")[-1].strip()
    if kind == "choice":
        letter = re.fullmatch(r"\(?([A-Ea-e])[).:]?", text)
        if not letter:
            raise ValueError("which is no letter from A to E")
        return letter[1].upper()
    if kind == "boolean":
        word = text.removesuffix(".")
        if word.lower() not in _TRUTH:
            raise ValueError("which is none of true, false, yes and no")
        return word
    if not text:
        raise ValueError("which is empty")
    if "#" in text:
        raise ValueError("which has a # in it; what is read is the text after the last one")
    return text


def answer_word(answer: str, kind: AnswerKind = "text") -> str:
    """What a lens looks for of a gold answer: all of it, or the last word of a sentence (with a full stop).

    >>> answer_word("Bob is a sterpus."), answer_word("New York")
    ('sterpus', 'New York')
    """
    words = answer.removesuffix(".").split()
    return words[-1] if kind == "text" and answer.endswith(".") and len(words) > 1 else answer


def number_text(value: float) -> str:
    """Plain decimal text of a number: ``18``, not ``18.0``; ``0.0000012``, not ``1.2e-06``."""
    return str(int(value)) if float(value).is_integer() else format(Decimal(repr(float(value))), "f")


def value_text(value: float | str) -> str:
    """A value of a step as it is written: a number in plain decimals, or a text; empty for NaN."""
    if isinstance(value, str):
        return value
    return "" if value != value else number_text(float(value))
