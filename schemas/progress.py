"""How work reports its progress, and that of several stretches."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with steps done, and steps in all."""


def stretch(progress: Progress | None, begin: int, total: int) -> Progress:
    """Progress of a stretch of the work that begins after ``begin`` of ``total`` steps."""

    def report(done: int, _: int) -> None:
        if progress is not None:
            progress(begin + done, total)

    return report
