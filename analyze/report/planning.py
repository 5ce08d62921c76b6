"""What a report would take, before it is written: from the lake's lists, and a short trial here."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from analyze.context import Context
from analyze.cost import PROGRAM
from analyze.drawing import STYLE
from analyze.explorer.problems import places_of
from analyze.page import Section
from analyze.report import explore
from analyze.report.sections import sections
from analyze.report.view import Writer, section_view
from schemas.wording import duration_text, size_text
from store import Lake
from store.read import MODELS_KEPT

DRAWING = 2**28
"""Bytes of what draws and of all that is drawn."""
TRIED = 5
"""Sections that are written on trial, evenly apart in the order of the page."""
PROBLEMS = 1, 5
"""Problems whose data is put together on trial, those of a little twice, as the first time also loads what it needs."""


@dataclass(frozen=True, kw_only=True)
class ReportPlan:
    """What a report is made of, and how long it takes."""

    n_run: int
    n_result: int
    n_section: int
    """Sections the lake has results for; the others take no time."""
    n_problem: int
    """Of all runs together, at most."""
    memory: float
    """Bytes held at once, the program included."""
    seconds: float
    """Of the processor here."""

    def text(self) -> str:
        """In one line."""
        return (
            f"sections: {self.n_section}, of {self.n_result:,} results; problems to pick: {self.n_problem:,};"
            f" {size_text(self.memory)} of memory, about {duration_text(self.seconds)} of processor time on this"
            " machine"
        )

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def plan_report(lake: Lake, runs: Sequence[str], *, n_problem: int, seed: int = 0) -> ReportPlan:
    """What a report takes, from :data:`TRIED` of its sections and the data of a few problems.

    Nothing is left of the trial. By the processor's time, so that what else the machine is at is not counted.

    Parameters
    ----------
    lake, runs
        What the page is about.
    n_problem, seed
        As for the report.
    """
    context = Context(lake, runs)
    kinds = {result.kind for result in context.results}
    shown = [section for section in sections() if _has(section, kinds)]
    tried = [shown[place] for place in np.unique(np.linspace(0, len(shown) - 1, min(TRIED, len(shown))).astype(int))]
    with tempfile.TemporaryDirectory() as folder, mpl.rc_context(STYLE):
        writer = Writer(Path(folder))
        drawn = _seconds(lambda: [section_view(section, writer, context) for section in tried])
    few, more = PROBLEMS
    first, again, larger = (
        _seconds(partial(explore.page_data, context, n_problem=n, seed=seed)) for n in (few, few, more)
    )
    a_problem = max(0.0, larger - again) / (more - few)
    return ReportPlan(
        n_run=len(runs), n_result=len(context.results), n_section=len(shown), n_problem=n_problem * len(runs),
        memory=_memory(context, n_problem),
        seconds=drawn * len(shown) / max(1, len(tried)) + first + a_problem * (n_problem - few),
    )  # fmt: skip


def _memory(context: Context, n_problem: int) -> float:
    """Bytes of all results, which are opened whole, of the read-outs that are kept, and of one run's problems."""
    lake, runs = context.lake, [context.run(name) for name in context.runs]
    results = sum(lake.open_result(result.name, load=False).nbytes for result in context.results)
    readouts = [lake.lazy_model(name).nbytes for name in dict.fromkeys(run.partition("/")[0] for run in context.runs)]
    attention = [run["attention"].sel(position=places_of(run)).nbytes / run.sizes["example"] for run in runs]
    shown = [min(1, explore.MAX_LAYER / run.sizes["layer"]) for run in runs]
    problems = 2 * n_problem * max(size * share for size, share in zip(attention, shown, strict=True))
    return PROGRAM + DRAWING + results + max(max(readouts), min(sum(readouts), MODELS_KEPT)) + problems


def _has(section: Section, kinds: set[str]) -> bool:
    """Whether the lake has a result that a section needs; one that needs none is always written."""
    return not section.needs or any(need.split()[0] in kinds for need in section.needs)


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
