"""What somebody may have meant by a word that is not there."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from numbers import Integral

ENOUGH = 0.6
"""Share of letters in common from which a known word is offered instead."""


def nearest(word: object, known: Iterable[object]) -> str:
    """Question to append to an error about an unknown word; empty where no known word is like it.

    Letters count alike in either case, and o as 0; of numbers, the closest is near.

    >>> nearest("smal-gpt2/test", ["small-gpt2/test", "small-llama/test"])
    "; did you mean 'small-gpt2/test'?"
    >>> nearest(12, range(12))
    '; did you mean 11?'
    """
    known = list(known)
    if isinstance(word, Integral):
        numbers = [int(label) for label in known if isinstance(label, Integral)]
        return f"; did you mean {min(numbers, key=lambda label: abs(label - int(word)))}?" if numbers else ""
    scored = [(SequenceMatcher(None, _seen(label), _seen(word)).ratio(), str(label)) for label in known]
    best = max(scored, default=(0.0, ""))  # of equals the last: for ct9, ct5
    return f"; did you mean {best[1]!r}?" if best[0] >= ENOUGH else ""


def _seen(word: object) -> str:
    return str(word).casefold().replace("o", "0")
