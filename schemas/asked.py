"""Which questions are the same."""

import unicodedata


def asked(question: str) -> str:
    """What makes two questions one problem, which no split may divide: their words, however spaced and encoded.

    >>> asked("Why  are you here? ") == asked("why are you here?")
    True
    """
    return unicodedata.normalize("NFC", " ".join(question.split())).casefold()
