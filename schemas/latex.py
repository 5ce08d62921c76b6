"""Answers in mathematical notation, in the one spelling under which MATH's own code compares them."""

import re

_WORD = re.compile(r"[^\W\d_]{2,}")
_DROPPED = ("\n", r"\!", r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$", r"\%")
_ARGUMENT = re.compile(r"\\sqrt(?=[^{])(.)", re.DOTALL)
_FRACTION = re.compile(r"\\frac(?=[^{])(.)(?:(\{)|(.))", re.DOTALL)
_RATIO = re.compile(r"(-?(?:0|[1-9]\d*))/(-?(?:0|[1-9]\d*))")


def is_notation(text: str) -> bool:
    r"""Whether a text is mathematical notation: LaTeX, or without a word of two letters.

    >>> is_notation(r"\text{odd}"), is_notation("x+1"), is_notation("Bob is red.")
    (True, True, False)
    """
    return "\\" in text or not _WORD.search(text)


def plain_notation(text: str) -> str:
    r"""Notation with what does not count taken away, as ``is_equiv`` of hendrycks/math does before it compares.

    Fractions and roots get their braces, ``1/2`` and ``0.5`` become fractions; spaces, degrees, percent and dollar
    signs, sizes of brackets, units on the right and ``x =`` on the left go.

    >>> plain_notation(r"x = \dfrac12"), plain_notation("1/2"), plain_notation(r"5\text{ cm}")
    ('\\frac{1}{2}', '\\frac{1}{2}', '5')
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1]
    text = text.replace("\n", "").replace(r"\!", "").replace(r"\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for mark in _DROPPED:
        text = text.replace(mark, "")
    text = text.split(r"\text{ ")[0]
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = _ARGUMENT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    text = _FRACTION.sub(lambda match: rf"\frac{{{match[1]}}}{match[2] or f'{{{match[3]}}}'}", text)
    if text == "0.5":
        return r"\frac{1}{2}"
    ratio = _RATIO.fullmatch(text)
    return rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio else text
