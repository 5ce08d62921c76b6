"""How work reports its progress, and that of several stretches."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with steps done, and steps in all."""


def silent(done: int, total: int) -> None:
    """Report nothing."""


def stretch(progress: Progress, begin: int, total: int) -> Progress:
    """Progress of a stretch of the work that begins after ``begin`` of ``total`` steps."""
    return lambda done, _: progress(begin + done, total)
