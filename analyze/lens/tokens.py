"""What the tokens of a vocabulary mean, and which of them say a step of a written chain."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from schemas import is_number_token, number_text

Array = np.ndarray[Any, np.dtype[Any]]

_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


_SIGNS = {"\n": "\u21b5", "\r": "\u240d", "\t": "\u21e5"}
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060\ufeff]")


def visible(token: str) -> str:
    """A token as it can be seen in a table: without the space before a word, with signs for what has no shape.

    As the page's explorer shows it; a token of blanks only has a sign for each, or one and their number.
    """
    text = token.strip() or re.sub(r"[^\S\n\r\t]", "\u2423", token)
    text = re.sub("\u2423{4,}", lambda run: f"\u2423\u00d7{len(run[0])}", text)
    return _UNSEEN.sub(lambda sign: _SIGNS.get(sign[0], f"U+{ord(sign[0]):04X}"), text) or "\u2205"


def in_a_line(tokens: Iterable[str]) -> str:
    """Tokens one after the other; of two that read alike, `` great`` and ``great``, the first has its space's sign."""
    tokens = list(dict.fromkeys(tokens))
    texts = [visible(token) for token in tokens]
    return " ".join(
        f"\u2423{text}" if texts.count(text) > 1 and token[:1] == " " else text
        for token, text in zip(tokens, texts, strict=True)
    )


class Tokens:
    """What the tokens of a vocabulary mean: which are numbers, of which value, which begin a text."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._known = np.zeros(len(strings), dtype=bool)
        self._is_number = np.zeros(len(strings), dtype=bool)
        self._value = np.full(len(strings), np.nan)
        self._stripped = np.full(len(strings), "", dtype=object)
        self._id = {text: index for index, text in reversed(list(enumerate(strings)))}  # of equal texts the first

    def meaning(self, token: Array) -> tuple[Array, Array, Array]:
        """Whether each token is a number, its value (NaN: none), and its text without spaces; each is read once."""
        met = np.unique(token)
        for index in met[~self._known[met]]:
            text = self._stripped[index] = self._strings[index].strip()
            self._is_number[index] = is_number_token(self._strings[index])
            self._value[index] = float(text) if _INTEGER.fullmatch(text) else np.nan
        self._known[met] = True
        return self._is_number[token], self._value[token], self._stripped[token]

    def first(self, text: str) -> tuple[int, int]:
        """Longest tokens that begin a text, with a leading space and without; -1: none, or the same again."""
        text = text.strip().replace(",", "")
        first_tokens = []
        for spelling, least in ((" " + text, 2), (text, 1)):
            lengths = range(len(spelling), least - 1, -1) if text else range(0)
            first_tokens.append(next((self._id[spelling[:k]] for k in lengths if spelling[:k] in self._id), -1))
        return (first_tokens[0], -1 if first_tokens[0] == first_tokens[1] else first_tokens[1])

    def whole(self, text: str) -> tuple[int, int]:
        """Tokens that are a text, with a leading space and without; -1: none."""
        return self._id.get(" " + text, -1), self._id.get(text, -1)

    def say(self, numbers: Array) -> Array:
        """Whether a token is each number, the whole of it; NaN is no number."""
        value, place = np.unique(numbers, return_inverse=True)
        said = [bool(x == x) and max(self.whole(number_text(float(x)))) >= 0 for x in value]
        return np.array(said, dtype=bool)[place].reshape(numbers.shape)

    def begin(self, texts: Iterable[str]) -> Array:
        """:meth:`first` of each text: (text, spelling)."""
        return np.array([self.first(text) for text in texts], dtype="int64").reshape(-1, 2)


def results_in_one_token(run: xr.Dataset, model: xr.Dataset) -> dict[str, int]:
    """How many results the chains have, and how many of them are one token: only these can be read out.

    Returns
    -------
    dict
        ``n_result`` and ``n_result_token``; empty where results are words, which are found by their first token.
    """
    if "intermediate_result" not in run or run.attrs.get("answer_kind", "number") != "number":
        return {}
    results = run["intermediate_result"].values
    tokens = Tokens([str(text) for text in model["token_string"].values])
    return {"n_result": int(np.isfinite(results).sum()), "n_result_token": int(tokens.say(results).sum())}


class Chain:
    """What the steps of each example arrive at, to be found among tokens.

    Parameters
    ----------
    steps : (example, step)
        Numbers, NaN: none; or words, empty: none.
    tokens
        Of the vocabulary.
    """

    def __init__(self, steps: Array, tokens: Tokens) -> None:
        self._numbers = steps.dtype.kind == "f"
        self._steps = steps if self._numbers else tokens.begin(map(str, steps.ravel())).reshape(*steps.shape, 2)

    def found(self, token: Array, value: Array, owner: Array) -> Array:
        """Which tokens ``(state, rank)``, of the given values, are a step of the state's example: (.., step)."""
        steps = self._steps[owner][:, None]
        if self._numbers:
            return np.asarray(np.isclose(value[:, :, None], steps, rtol=1e-9, atol=0))
        return np.asarray(((token[:, :, None, None] == steps) & (steps >= 0)).any(-1))
