"""Numbers that texts answer, and which of them are the same; other kinds of answers are :mod:`schemas.scoring`'s."""

import math
import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np

from schemas.numbers import as_float, before, find_numbers, overlooks, plain, value_of

NumberRule = Literal["default", "reports"]

_NUMBER = r"-?\d+(?:\.\d+)?"
_NO_MORE_THAN_A_SIGN = re.compile(r"[\W_]*(?:(?:[a-z]{1,3}|minus|negative)[\W_]+)?", re.IGNORECASE)
_RESULT_FOLLOWS = re.compile(r"(?:[=:\u2192]|->|>>|\b(?:is|are|equals|be))\s*$", re.IGNORECASE)
_ANOTHER_UNKNOWN = re.compile(r"\d\W*(?:,|;|\b(?:and|or)\b)\s*[A-Za-z]\s*=\s*$")  # x = 5, y =
# The reports try these in order; the first that is found anywhere wins.
_REPORTS = (
    re.compile(rf"####\s*({_NUMBER})", re.IGNORECASE),
    re.compile(rf"(?:answer|total|result)(?:\s+is)?\s*[:=]?\s*\$?\s*({_NUMBER})", re.IGNORECASE),
    re.compile(rf"\$?\s*({_NUMBER})\s*$", re.IGNORECASE),
)
_REPORTS_ANYWHERE = re.compile(_NUMBER)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
ANSWER_TOLERANCE = 0.01
"""Difference of two answers that are the same: of the numbers, or relative where both are below 1."""


@lru_cache(maxsize=2**14)  # the conditions of a sweep mostly give the same few texts
def extract_number(text: str, rule: NumberRule = "default") -> float | None:
    """Number that a text answers, or ``None`` if it holds none.

    Parameters
    ----------
    text
        Generated text, or an answer of a data file.
    rule
        ``"default"``: the number after ``####`` if there is one, else the last number, written in any of the ways that
        :mod:`schemas.numbers` reads; ``None`` also where that number could be two things (``5:30``, ``1,5``), or is one
        that float64 does not hold: a whole one beyond 2^53, any beyond 1.8e308. ``"reports"``: the rule of the patching
        scripts: after ``####``; else the first number after "answer", "total" or "result"; else a number that ends the
        text; else the last number. It knows no thousands commas ("1,234" is read as 1 where it follows "answer is").

    Returns
    -------
    float or None
    """
    if rule == "reports":
        for pattern in _REPORTS:
            if match := pattern.search(text):
                return float(match.group(1))
        matches = _REPORTS_ANYWHERE.findall(text)
        return float(matches[-1]) if matches else None
    text = plain(text)
    numbers = find_numbers(text)
    if not numbers:
        return None
    start = text.find("####") + 4
    after = next((number for number in numbers if number.start() >= start), None) if start >= 4 else None
    if after is None or not _NO_MORE_THAN_A_SIGN.fullmatch(text[start : after.start()]):
        after = numbers[-1]
    return as_float(value_of(text, after))


def read_gold_answer(answer: str | float | Decimal) -> float:
    """Number of a data file's answer, which must be one and the same however it is read.

    Parameters
    ----------
    answer
        A number, or a text: with one number after ``####``; without ``####``, with one number in all, or one that ends
        it after ``=``, ``:``, ``is`` or the like.

    Raises
    ------
    ValueError
        If there is no number, or more than one, if it could be read in two ways, or if float64 does not hold it
        (exactly, beyond 2^53). The message ends a sentence that begins with the answer.
    """
    if isinstance(answer, str):
        value: Fraction | None = _one_number(answer)
    else:
        if isinstance(answer, float) and not math.isfinite(answer):
            raise ValueError("which is no number")
        far = isinstance(answer, Decimal) and abs(answer.adjusted()) > 400  # not worth billions of digits
        value = None if far else Fraction(answer)
    number = as_float(value)
    if number is None:
        raise ValueError("which float64 does not hold: it takes whole numbers exactly up to 2^53, others up to 1.8e308")
    return number


def _one_number(answer: str) -> Fraction:
    text = plain(answer)
    parts = text.split("####")
    if len(parts) > 2:
        raise ValueError("which has #### more than once; write the answer after one")
    numbers = find_numbers(parts[-1])
    if not numbers:
        raise ValueError("which is no number")
    last = numbers[-1]
    left, prefix = before(parts[-1], last)
    alone = _RESULT_FOLLOWS.search(left) and not _ANOTHER_UNKNOWN.search(left)
    if len(numbers) > 1 and (len(parts) == 2 or not alone):
        raise ValueError("which has several numbers; write one, after ####")
    value = None if overlooks(parts[-1], last) else value_of(parts[-1], last)
    if value is None:
        raise ValueError("which can be read in more than one way; write it like -1234.5, 3/4 or 1.5e-3")
    return value


def equal_answers(answer: np.ndarray, other: np.ndarray, rule: NumberRule = "default") -> np.ndarray:
    """Which answers are the same number; arrays that broadcast, NaN (no number) equals nothing.

    The same is what differs by less than ``ANSWER_TOLERANCE``, or less than that part of the larger of the two where
    both are below 1; by the reports' rule always the former.
    """
    answer, other = np.asarray(answer, dtype=np.float64), np.asarray(other, dtype=np.float64)
    size = np.maximum(np.abs(answer), np.abs(other)) if rule == "default" else 1.0
    with np.errstate(invalid="ignore"):  # infinite less infinite
        near = np.abs(answer - other) < ANSWER_TOLERANCE * np.minimum(size, 1.0)
    return np.asarray(near | ((answer == other) & np.isfinite(answer)))


def answers_match(answer: float | None, other: float | None, rule: NumberRule = "default") -> bool:
    """Whether two answers are the same number, see :func:`equal_answers`; ``None`` matches nothing."""
    return answer is not None and other is not None and bool(equal_answers(np.array(answer), np.array(other), rule))


_ADDED = re.compile(r"<\|.*\|>|<[^\W\d][\w.:/-]*>|\[[^\W\d][\w.-]*\]", re.DOTALL)
"""How tokens that are not words are written: in brackets, beginning with a letter."""


def is_number_token(token: str) -> bool:
    """Whether a token's text holds any digit (the reports' rule: "x2" and "000" count, number words do not).

    Bytes of a token that is a part of a character, told as ``<0xE2>``, are no digits; nor has a token that a tokenizer
    adds to its vocabulary's words one, as ``<|reserved_special_token_17|>``, ``<extra_id_0>`` or ``[unused12]``.
    """
    return not _ADDED.fullmatch(token.strip()) and any(character.isdigit() for character in _BYTE.sub("", token))
