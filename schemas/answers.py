"""Rules on generated text: which number it answers, which of two answers that is, which token is a number."""

import re
from typing import Literal

Rule = Literal["default", "reports"]
Outcome = Literal["clean_answer", "corrupted_answer", "other", "gibberish"]

_NUMBER = r"-?\d+(?:\.\d+)?"
# A minus sign directly after a digit or a bracket is a subtraction ("10-2"), not a sign.
_GROUPED = r"(?:(?<![\d)])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
_AFTER_HASHES = re.compile(rf"####\s*(?:[$€£]\s*)?({_GROUPED})")
_GROUPED_NUMBER = re.compile(_GROUPED)
# The reports try these in order; the first that is found anywhere wins.
_REPORTS = (
    re.compile(rf"####\s*({_NUMBER})", re.IGNORECASE),
    re.compile(rf"(?:answer|total|result)(?:\s+is)?\s*[:=]?\s*\$?\s*({_NUMBER})", re.IGNORECASE),
    re.compile(rf"\$?\s*({_NUMBER})\s*$", re.IGNORECASE),
)
_REPORTS_ANYWHERE = re.compile(_NUMBER)
ANSWER_TOLERANCE = 0.01


def extract_answer(text: str, rule: Rule = "default") -> float | None:
    """Number that a text answers, or ``None`` if it holds none.

    Parameters
    ----------
    text
        Generated text, or an answer of a data file.
    rule
        ``"default"``: the number after ``####`` if there is one, else the last number; thousands commas are read as
        such, currency and percent signs ignored. ``"reports"``: the rule of the patching scripts: after ``####``; else
        the first number after "answer", "total" or "result"; else a number that ends the text; else the last number.
        It knows no thousands commas ("1,234" is read as 1 where it follows "answer is").

    Returns
    -------
    float or None
    """
    if rule == "reports":
        for pattern in _REPORTS:
            if match := pattern.search(text):
                return float(match.group(1))
        found = _REPORTS_ANYWHERE.findall(text)
        return float(found[-1]) if found else None
    if match := _AFTER_HASHES.search(text):
        return float(match.group(1).replace(",", ""))
    numbers = _GROUPED_NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def answers_match(answer: float | None, other: float | None) -> bool:
    """Whether two answers are the same number, to within ``ANSWER_TOLERANCE``; no number matches nothing."""
    return answer is not None and other is not None and abs(answer - other) < ANSWER_TOLERANCE


def classify_outcome(text: str, *, clean: float, corrupted: float, rule: Rule = "default") -> Outcome:
    """Which answer a patched run gave.

    Parameters
    ----------
    text
        Generated text.
    clean, corrupted
        The answers of the two problems; they must differ, as the clean one would win a tie.
    rule
        How the number is read (see :func:`extract_answer`). A text without a number is ``"gibberish"`` if it has
        no letter or fewer than ten characters, else ``"other"``.

    Returns
    -------
    "clean_answer", "corrupted_answer", "other" or "gibberish"
    """
    answer = extract_answer(text, rule)
    if answer is None:
        coherent = len(text.strip() if rule == "default" else text) >= 10 and any(c.isalpha() for c in text)
        return "other" if coherent else "gibberish"
    if answers_match(answer, clean):
        return "clean_answer"
    if answers_match(answer, corrupted):
        return "corrupted_answer"
    return "other"


def is_number_token(token: str) -> bool:
    """Whether a token's text holds any digit (the reports' rule: "x2" and "000" count, number words do not)."""
    return any(character.isdigit() for character in token)
