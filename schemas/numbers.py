r"""Numbers as people and models write them: each is read for what it says, or not at all.

Read are: every minus sign in use, before or after a currency or in words; commas, apostrophes, underscores and spaces
between thousands (lakhs, too); scientific notation and powers of ten; fractions and mixed numbers, as characters, with
a slash, or in LaTeX; digits of any script; ``hundred`` to ``trillion``. A percent sign and a unit are not part of the
number: 50% is 50. A hyphen that joins (``10-2``, ``x-5``, ``3-5``) or follows a word (``debt - 5``) is no sign. Not
read, as they could be two things, are a comma that does not part thousands (``1,5``), a number alone in brackets,
``5k``, ``5 dozen``, ``5:30``, ``1.2.3``, ``2^5`` and ``5-``; nor is what a LaTeX command makes something else of
(``\sqrt{2}``, ``2\pi``).
"""

import re
import sys
import unicodedata
from fractions import Fraction
from functools import cache

_SPELLINGS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"),  # hyphens and the shorter dashes
    **dict.fromkeys("\u2212\u207b\u208b\u2796\u02d7", "\u2212"),  # minus signs that are nothing else
    **dict.fromkeys("\u2014\u2015\ufe58", "\u2014"),
    **dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"),
    **dict.fromkeys("\u2044\u2215\u00f7", "/"),
    **dict.fromkeys("\u00d7\u00b7\u22c5\u2219", "*"),
    "\u066a": "%",
    "\u066b": ".",
    "\u066c": ",",
}
_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_LATEX = (
    (r"{,}", ","), *((rf"\{space}", "\u00a0") for space in ",;: "), (r"\!", ""), (r"\$", "$"), (r"\%", "%"),
    (r"\times", "*"), (r"\cdot", "*"), (r"\pm", "±"), (r"\approx", "≈"), (r"\sim", "~"),
    (r"^{\circ}", ""), (r"^\circ", ""),
)  # fmt: skip
_LATEX_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s?(?:\{([^{}]*)\}|(\d))\s?(?:\{([^{}]*)\}|(\d))")
# Commands beside a number that do nothing to it: fonts, boxes, brackets, arrows, line ends, currencies.
_SET = (
    r"\\(?!(?:text|math|box|fbox|mbox|hbox|big|Big|left|right|Right|Left|Long|long)|(?:approx|sim|simeq|equiv|q?quad|to"
    r"|implies|iff|therefore|displaystyle|l?dots|cdots|degrees?|circ|square|qed|blacksquare|end|begin|pounds|euro|yen"
    r"|[nrt])(?![A-Za-z]))[A-Za-z]+"
)
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\^[-+]?\d|(?<=\b[cdkm]m)[23]\b|(?<=\bm)[23]\b|(?<=\b(?:ft|in|yd|mi))[23]\b")

# What may belong to one number, however it is grouped; what it says is another matter.
_RUN = r"(?:[1-9]\d{0,2}(?:[ \u00a0]\d{3})+(?!\d)|\.?\d+)(?:[.,'_]\d+)*"
_POWER = r"\s?(?:\^|\*\*)\s?[{{(]?(?P<{}>[-+\u2212]?\d+)[)}}]?"
_NUMBER = re.compile(
    rf"(?:(?P<whole>{_RUN})(?:[ \u00a0]+|[ ]and[ ]))?(?P<over>{_RUN})\s?/\s?(?P<under>{_RUN})(?P<more>(?:\s?/\s?\d+)+)?"
    rf"|(?<![\d.,'_])10{_POWER.format('power')}"
    rf"|(?P<plain>{_RUN})(?:\.?[eE](?P<exponent>[-+\u2212]?\d+)(?!\w|[.,]\d)|\s?(?:[*xX]|times)\s?10{_POWER.format('ten')})?"
)
_DECIMAL = re.compile(
    r"(?:\d+|[1-9]\d{0,2}(?:(?P<mark>[ \u00a0,'_])\d{3})(?:(?P=mark)\d{3})*|[1-9]\d?(?:,\d\d)+,\d{3})?(?:\.\d+)?"
)
_SCALES = {
    "hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12, "quadrillion": 15,
    "quintillion": 18,
}  # fmt: skip
_SCALE = re.compile(rf"(?:[ \u00a0-]?(?:{'|'.join(_SCALES)})s?\b)+", re.IGNORECASE)

_LETTER = r"[A-Za-z\u00c0-\u024f\u0370-\u04ff]"
"""Of scripts that put spaces between words."""
_CURRENCY = r"(?:(?:\b[A-Z]{1,3})?\$|\b(?:Rs\.?|USD|EUR|GBP|JPY|INR|CNY|RMB|CHF|CAD|AUD|NZD|MXN|BRL|KRW))"
_MINUS = r"(?:[-\u2212\u2014]|\b(?:minus|negative)(?=[\s$]))"
_SIGN = rf"(?:{_MINUS}|[+±])"
_PREFIX = re.compile(rf"(?:{_SIGN}|{_CURRENCY}|[ \t\u00a0])*$", re.IGNORECASE)
_ENDS_IN_CURRENCY = re.compile(rf"{_CURRENCY}$")
_ENDS_IN_OPERAND = re.compile(r"[\d)\]}%]$")
_ENDS_IN_LETTER = re.compile(rf"{_LETTER}$")
_SIGN_FOLLOWS = re.compile(r"(?:^|[#=:(\[{*\"'`]|\b(?:is|are|was|were|be|equals|to|of|at))$", re.IGNORECASE)
_UNCLEAR_BEFORE = re.compile(
    r"\d:$|\d\s?/\s?$|\^\s?[{(]?$|\d\s?\*\*\s?$"  # 5:30, 3/-4, 2^5
    r"|\d\s?[eE]\s?[-+]?\s?$|\d[A-WYZa-wyz][A-Za-z]*$|\b0[xX]$"  # 1e6kg, 5m30, 0x10
    r"|(?:^|\s)[<>]=?\s?$|[\u2264\u2265\u2260]\s?$"
    r"|(?:^|[\s=:(#])[-\u2212]\s?[*_`{(\[]+$"  # -(5), -**5**
    rf"|\b(?:{'|'.join(_SCALES)})s?,?\s(?:and\s)?$"
    r"|[)\]}]\s?/\s?$|(?<![A-Za-z])[A-Za-z]/$"  # (3 + 4)/2, x/2
    r"|[\u221a\u221b\u221c]\s?[({]?$|\b(?:sqrt|log|ln|exp|sin|cos|tan)\s?$"  # a root of it, a function of it
    r"|&#$"  # the 53 of &#53;
    rf"|(?-i:{_SET})\*?(?:_\{{?\w+\}}?)?\s?(?:\[[^\]]*\]|\{{[^{{}}]*\}})*[\s{{(/]*$",  # \sqrt{2}, \log_2 8, \pi/2
    re.IGNORECASE,
)
_UNCLEAR_AFTER = re.compile(  # 2^5, 5:30, 3/(4), 5k and 5 with a power of ten in Chinese, 5 tenths, dozen, per mille
    r"\s?\^|\s?\*\*\s?[\d(]|:\d|\s?/\s?[-(\u2212]"
    r"|\s?(?:[kKMBT]|[bm]n|ml[nd]|mi[lo]|thou)\b(?!&)|\s?[\u5341\u767e\u5343\u842c\u4e07\u5104\u4ebf\u5146]"
    r"|[ -](?:dozens?\b|halves|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand|million)ths?)\b"
    r"|\s?[\u2030\u2031]|\$?[-\u2212](?=\s*$|[$)])|[ ]and[ ](?:a|one)[ ](?:half|third|quarter)\b"
    rf"|\s?{_SET}|\s?[\u221a\u03c0]|[\u0304\u0305]"  # 2\pi, and a bar above what repeats
)
_MULTIPLIED = re.compile(r"\b(?:(?:half|third|quarter)\sof|twice|thrice|double|triple)$", re.IGNORECASE)
_INEXACT_BEFORE = re.compile(  # bounds, about, and what is said not to be the number
    r"\b(?:at (?:least|most)|(?:more|less|fewer|greater|smaller|other) than|up to|over|under|above|below|beyond"
    r"|exceed(?:s|ing)|(?:max|min)(?:imum)?(?: of)?|about|approx(?:imately|\.)?|circa|ca?\.|roughly|around|almost"
    r"|nearly|close to|not|neg\.?)$"
    r"|[~\u2248\u223c\u2243\u2245\u2272\u2273]$",
    re.IGNORECASE,
)
_INEXACT_AFTER = re.compile(
    r"\s?\+(?!\s?[\d$])|\s?-\s*$|\s(?:and|or) (?:more|less|fewer|above|below|over|under|so)\b|ish\b"
    r"|(?:\s\w+)?\s\(?(?:at (?:most|least)|max(?:imum)?|minimum|approx(?:imately)?|negative|below zero|or so)\b",
    re.IGNORECASE,
)
_BRACKETED = re.compile(rf"\s?(?:%|{_CURRENCY})?\s?\)")
_WINDOW = 80


def plain(text: str) -> str:
    """Text with one spelling for what numbers are made of: digits, signs, spaces, currencies, fractions, exponents."""
    if "\\" in text or "{,}" in text:
        text = _LATEX_FRACTION.sub(_slashed, text)
        for written, meant in _LATEX:
            text = text.replace(written, meant)
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda match: "^" + "".join(map(_superscript, match[0])), text)
        text = re.sub(r"[^\x00-\x7f]", _spelled, text)
    return _UNIT_POWER.sub("", text)


def _slashed(match: re.Match[str]) -> str:
    whole, over, digit, under, last = match.groups(default="")
    return f"{whole}{' ' if whole else ''}{over or digit}/{under or last}"


def find_numbers(text: str) -> list[re.Match[str]]:
    """Where numbers stand in a :func:`plain` text."""
    return list(_NUMBER.finditer(text))


def value_of(text: str, match: re.Match[str]) -> Fraction | None:
    """What a number of a :func:`plain` text says, exactly; ``None`` where it could be two things."""
    left, prefix = before(text, match)
    scale = _SCALE.match(text, match.end())
    end = scale.end() if scale else match.end()
    sign, size = _sign(left, prefix), _size(match)
    ahead = left + prefix
    unclear = (
        _UNCLEAR_BEFORE.search(left + (" " if prefix[:1].isspace() else ""))
        or _UNCLEAR_AFTER.match(text, end)
        # (5) and ($5) are negative in accounts, and plain elsewhere; \(5\) is how LaTeX sets a 5
        or (re.search(r"(?<!\\)\($", left) and prefix.strip(" \u00a0$") == "" and _BRACKETED.match(text, end))
        or (match[0].startswith(".") and re.search(rf"(?:{_LETTER}|[.)\d])$", ahead))  # is...5
        or (re.match(r"0\d", match[0]) and re.search(r"\d[ \u00a0]$", ahead))  # the 000 of 1.5 000
        or ("$" in prefix and re.match(r"\s?[mb]\b", text[end : end + 3]))  # $5m
        or (sign == -1 and re.search(r"\|\s?$", left) and re.match(r"\s?\|", text[end:]))  # |-5|
        or (match["over"] and prefix[:1] in ("-", "\u2212") and re.search(r"\d$", left))  # 1-1/2
    )
    if sign is None or size is None or unclear:
        return None
    for word in re.findall(r"[a-z]+", scale[0].lower()) if scale else ():
        size *= 10 ** _SCALES[word.removesuffix("s")]
    return sign * size


def before(text: str, match: re.Match[str]) -> tuple[str, str]:
    """What stands before a number: other text, and signs, currency and spaces that belong to the number."""
    window = text[max(0, match.start() - _WINDOW) : match.start()]
    prefix = _PREFIX.search(window)
    cut = prefix.start() if prefix else len(window)
    return window[:cut], window[cut:]


def overlooks(text: str, match: re.Match[str]) -> bool:
    """Whether a number is read without what is at it: ``x5``, ``2x``, ``5!``, ``5+``, ``twice 5``, ``about 5``."""
    left, prefix = before(text, match)
    if _INEXACT_BEFORE.search(left) or _INEXACT_AFTER.match(text, match.end()):
        return True
    if re.match(r"\s?[xyz]\b|i\b|\s?!", text[match.end() :]) or re.fullmatch(r"\s*[\d.]+\s*:", left):
        return True
    if "." in match[0] and re.match(r"\.\.|\u2026", text[match.end() :]):  # 0.333... goes on
        return True
    if _MULTIPLIED.search(left) or (not prefix and _ENDS_IN_LETTER.search(left.removesuffix("/"))):
        return True
    return _sign(left, prefix) == 1 and re.search(_MINUS, prefix) is not None


def as_float(value: Fraction | None) -> float | None:
    """The same number as float64; ``None`` if it is beyond its range, or beyond 2^53 and none of its numbers."""
    if value is None:
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    lost = abs(value) > 2**53 and Fraction(number) != value
    return None if lost or (value and abs(number) < sys.float_info.min) else number


@cache
def _spelling(character: str) -> str:
    category = unicodedata.category(character)
    kind, _, parts = unicodedata.decomposition(character).partition(" ")
    if character in _SPELLINGS:
        return _SPELLINGS[character]
    if category == "Cf":  # zero width: soft hyphens, marks of direction
        return ""
    if category in ("Nd", "Sc", "Zs"):
        return {"Nd": str(unicodedata.digit(character, 0)), "Sc": "$", "Zs": "\u00a0"}[category]
    if kind in ("<fraction>", "<wide>", "<small>"):
        return "".join(chr(int(part, 16)) for part in parts.split()).replace("\u2044", "/")
    return character


def _spelled(match: re.Match[str]) -> str:
    spelling = _spelling(match[0])
    if "/" not in spelling or len(spelling) == 1:
        return spelling
    mixed = match.string[: match.start()][-1:].isdecimal()
    apart = spelling[-1] != "/" and match.string[match.end() :][:1].isdecimal()
    return f"{' ' * mixed}{spelling}{' ' * apart}"


def _superscript(character: str) -> str:
    return {"\u207a": "+", "\u207b": "-"}.get(character) or str(unicodedata.digit(character))


def _size(match: re.Match[str]) -> Fraction | None:
    """Value of a number without its sign."""
    if match["power"]:
        return _times_ten_to(Fraction(1), match["power"])
    if match["plain"]:
        value = _decimal(match["plain"])
        power = match["exponent"] or match["ten"]
        return value if value is None or power is None else _times_ten_to(value, power)
    over, under = _decimal(match["over"]), _decimal(match["under"])
    whole = _decimal(match["whole"]) if match["whole"] else Fraction(0)
    if over is None or not under or whole is None or match["more"] or (match["whole"] and over >= under):
        return None
    return whole + over / under


def _decimal(run: str) -> Fraction | None:
    if len(run) > 400 or not _DECIMAL.fullmatch(run):
        return None
    return Fraction(re.sub(r"[ \u00a0,'_]", "", run))


def _times_ten_to(value: Fraction, power: str) -> Fraction:
    """Powers far beyond float64 are cut where they still are, given that a value has at most 400 digits."""
    digits = power.lstrip("-+\u2212").lstrip("0")
    size = int(digits or 0) if len(digits) < 4 else 999
    return value * Fraction(10) ** (-size if power[0] in "-\u2212" else size)


def _sign(left: str, prefix: str) -> int | None:
    """-1 where a sign says so, ``None`` where that is not clear."""
    signs = list(re.finditer(_SIGN, prefix, re.IGNORECASE))
    if not signs:
        return 1
    sign = signs[0][0].lower()
    if len(signs) > 1 or sign == "±":
        return None
    if sign == "+":
        return 1
    ahead = left + prefix[: signs[0].start()]
    base = _ENDS_IN_CURRENCY.sub("", ahead)
    apart = prefix[signs[0].end() :][:1].isspace()
    if not apart:
        joins = _ENDS_IN_OPERAND.search(base) or _ENDS_IN_LETTER.search(base)
        return 1 if joins else None if sign == "\u2014" else -1
    context = base.rstrip(" \t\u00a0")
    if sign == "\u2014":
        return 1 if context else None
    if _ENDS_IN_OPERAND.search(context):
        return 1
    starts_line = context.endswith("\n") and not context.rstrip().endswith("#")
    if sign == "negative" or (not starts_line and _SIGN_FOLLOWS.search(context.rstrip())):
        return -1
    return None if sign == "\u2212" else 1  # a dash, a bullet, "profit minus 5"
