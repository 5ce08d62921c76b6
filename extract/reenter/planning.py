"""What an experiment would take, by its own first batches: it is begun, and stopped once its bar could tell."""

import resource
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from extract.reenter.target import Target
from schemas.command import Experiment, Settings
from schemas.wording import duration_text, size_text

TRIAL = 10.0
"""Seconds of processor time after the first batch; the trial stops at the end of the batch in which they pass."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What an experiment takes, by a trial of it."""

    n_row: int
    """Rows of its first sweep, mostly all there is: examples times conditions, or what its progress bar counts."""
    n_tried: int
    """Rows of the trial."""
    memory: int
    """Most bytes held during the trial: later batches are as large."""
    seconds: float
    """Processor time on this machine, of all threads together, from before the first batch on."""

    def text(self) -> str:
        """In one line."""
        return (
            f"{self.n_row:,} rows; {size_text(self.memory)} of memory, about {duration_text(self.seconds)} of processor"
            f" time on this machine, estimated from the first {self.n_tried:,} rows; what follows, such as a second"
            " sweep, is not counted"
        )


class _Enough(Exception):
    """The trial has told what it can."""


def trial_plan(command: Experiment, target: Target, settings: Settings) -> tuple[str, dict[str, Any]]:
    """Begin an experiment, and say what it would take; nothing is kept of it.

    The first batch is of the untouched run, from the question on, so that the rate is that of those after it.
    """
    begun = time.process_time()
    told: list[tuple[float, int, int]] = []

    def report(done: int, total: int) -> None:
        if done:
            told.append((time.process_time() - begun, done, total))
            if done == total or told[-1][0] - told[0][0] > TRIAL:
                raise _Enough

    with suppress(_Enough):
        command.run(replace(target, folder=None, progress=report), settings)
    told = told or [(time.process_time() - begun, 0, 0)]
    (before, first, _), (seconds, done, total) = told[0], told[-1]
    rate = (seconds - before) / (done - first) if done > first else seconds / max(1, done)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    plan = TrialPlan(n_row=total, n_tried=done, memory=memory, seconds=seconds + rate * (total - done))
    return plan.text(), asdict(plan)
