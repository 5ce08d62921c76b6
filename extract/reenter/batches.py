"""Batches of questions: which go together, and what is said where one does not fit on the device."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from extract.model.device import device_errors


def by_length(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Places of prompts in batches of at most ``size``, ordered by length so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def batch_errors(n: int, what: str = "rows") -> AbstractContextManager[None]:
    """Errors of the device in one line that names the batch size to try next (:func:`device_errors`)."""
    return device_errors(f"a batch of {n} {what}", f"pass --batch-rows {max(1, n // 2)}")
