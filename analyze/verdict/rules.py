"""When a measure says yes or no, when several together do, and what would overturn it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analyze.beside import compared
from analyze.page import share
from schemas.statistics import problems_needed, smallest_share

YES, NO, UNDECIDED, UNMEASURED = "yes", "no", "undecided", "not measured"
READABLE, USED, ROUTE = "readable", "used", "route"
QUESTIONS = (READABLE, USED, ROUTE)
ALL = "all"
"""Stands for all thoughts at once."""
TAKEN_OUT = ("mean", "resample")
"""Methods that take out all that a thought holds and keep it where thoughts lie: what loses nothing by them does not
use it. Of patch and edit, which put another content in, and of erase, which takes a part out, only a yes counts."""
HINTS = ("zero", "shuffle", "noise", "edges cut", "attribution")
"""Methods that put a thought where none stands, or implicate thoughts that are not used (docs/methods.md); and
attribution, which is of the same pairs as patching and would be counted twice."""
APART = ("heads", "head attribution")
"""Methods with a figure for each head: their intervals hold together among themselves, or so many would leave no other
figure of their question its interval."""
Triple = tuple[float, float, float]
"""Estimate and the ends of its interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One figure on one thought: what a method found there, and how its interval follows from a level."""

    thought: str
    question: str
    method: str
    n: int
    """Problems it is as sure as; where each has one example, those it is of."""
    interval: Callable[[float], Triple]
    source: str
    """Stored result."""
    what: str
    """The figure in words."""
    target: str = ""
    """Where a route leads."""

    @property
    def counts(self) -> bool:
        """Whether verdicts rest on it."""
        return self.method not in HINTS

    @property
    def family(self) -> str:
        """Figures whose intervals hold jointly with its own."""
        return f"{self.question} by {self.method}" if self.method in APART else self.question

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from other measures of a run."""
        return self.thought, self.question, self.method, self.target


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """A measure with its interval and what it says."""

    measure: Measure
    value: float
    low: float
    high: float
    says: str
    smallest: float
    """Smallest share that so many problems tell from the margin."""
    control: str = ""
    """Whether the control shows it too."""


def decide(low: float, high: float, margin: float) -> str:
    """Yes above the margin, no below it, else undecided: bounds that touch it decide nothing."""
    if math.isnan(low) or math.isnan(high):
        return UNMEASURED
    return YES if low > margin else NO if high < margin else UNDECIDED


def weigh(measure: Measure, margin: float, level: float) -> Evidence:
    """What a measure says at a level."""
    value, low, high = measure.interval(level)
    return Evidence(
        measure=measure, value=value, low=low, high=high, says=decide(low, high, margin),
        smallest=smallest_share(measure.n, margin, level),
    )  # fmt: skip


def against_control(own: Evidence, other: Evidence | None, margin: float) -> str:
    """Whether a control shows what a model shows; empty where the model does not, or the control was not measured."""
    if other is None:
        return ""
    mine, theirs = ((one.value, one.low, one.high) for one in (own, other))
    return compared(mine, theirs, nothing=margin, least=margin)


def together(question: str, evidence: Sequence[Evidence]) -> str:
    """What several measures of one thought say together.

    Yes where one says yes. No to *readable* and *route* where all say no; to *used* where the mean and another
    problem's value, as far as they were measured, say no.
    """
    known = [one for one in evidence if one.measure.counts and one.says != UNMEASURED]
    if not known:
        return UNMEASURED
    if any(one.says == YES for one in known):
        return YES
    decisive = [one.says for one in known if question != USED or one.measure.method in TAKEN_OUT]
    return NO if decisive and all(says == NO for says in decisive) else UNDECIDED


def overturned_by(
    question: str, verdict: str, evidence: Sequence[Evidence], missing: Sequence[str], margin: float, level: float
) -> str:
    """What would overturn a verdict."""
    known = [one for one in evidence if one.measure.counts and one.says != UNMEASURED]
    absent = f"; not measured: {', '.join(missing)}" if missing else ""
    if not known:
        return f"any measure{absent}"
    if verdict == YES:
        sure = max((one for one in known if one.says == YES), key=lambda one: one.low)
        methods = dict.fromkeys(one.measure.method for one in known if one.says == YES)
        others = {one.measure.method for one in known if one.says == NO} - methods.keys()
        against = f"; {', '.join(sorted(others))}: no" if others and question != ROUTE else ""
        without = "" if sure.control else "; a control without the content that shows it too"
        return f"{', '.join(methods)} below {share(margin, 0)} on other problems{against}{without}"
    if verdict == NO:
        decisive = [one for one in known if question != USED or one.measure.method in TAKEN_OUT]
        largest = max(one.high for one in decisive)
        return f"an effect above {share(margin, 0)}; one below {share(largest)} is not excluded{absent}"
    undecided = [one for one in known if one.says == UNDECIDED]
    if question == USED and any(one.measure.method in TAKEN_OUT for one in known):
        undecided = [one for one in undecided if one.measure.method in TAKEN_OUT]
    wanted = []
    for one in undecided:
        needed = problems_needed(min(max(one.value, 0.0), 1.0), margin, level)
        count = f"about {needed:,} problems" if needed else "no number of problems"
        wanted.append(f"{count}, if {one.measure.method} stays at {share(one.value)}")
    return f"{'; '.join(dict.fromkeys(wanted)) or 'the mean or the value of another problem in its place'}{absent}"
