"""What a section of the page is made of, and what a section can ask of the lake."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from analyze.report.figures import Look, looks
from schemas import LakeError, filled
from store.read import Lake, Result, preferred

Kind = Literal["text", "count", "share", "number", "signed", "points", "p", "code"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table as it is shown; the CSV has every column of the frame, unrounded."""

    label: str
    key: str
    kind: Kind = "number"
    low: str = ""
    """Columns with the ends of the interval, shown beside the value."""
    high: str = ""
    digits: int = 2


@dataclass(kw_only=True, slots=True)
class Table:
    """A table of a section."""

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    limit: int = 40
    """Rows shown; the rest is in the CSV."""


@dataclass(kw_only=True, slots=True)
class Panel:
    """One drawing."""

    name: str
    figure: Figure
    wide: bool = False


@dataclass(kw_only=True, slots=True)
class Illustration:
    """A figure of a section: one drawing, or several under one caption."""

    name: str
    caption: str
    panels: Sequence[Panel]


@dataclass(kw_only=True, slots=True)
class Section:
    """One experiment on the page."""

    headline: str
    """What was found, in one sentence, computed from the results."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """The same for each run: its label, and the rest of the sentence."""
    method: str = ""
    illustrations: list[Illustration] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    sources: list[Result] = field(default_factory=list)
    """Results the numbers come from."""
    runs: list[str] = field(default_factory=list)
    """Runs read directly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An entry of the registry: where an experiment of the reports stands on the page, and how it is made."""

    slug: str
    title: str
    report: str
    """Number of the report it comes from, or ``""``."""
    commands: Sequence[str]
    """Commands that make it, with ``PATH`` for the lake and ``RUNS`` for its runs."""
    make: Callable[["Context"], Section | None]
    """The section, or ``None`` where its results are not in the lake."""
    on_pairs: bool = False
    """Whether it takes runs over clean/corrupted pairs."""
    on_several: bool = False
    """Whether it takes at least two runs."""


@dataclass(frozen=True, slots=True)
class Found:
    """A stored result of one run, opened."""

    run: str
    result: Result
    data: xr.Dataset
    look: Look


class Context:
    """The lake as the sections see it.

    Parameters
    ----------
    lake
        Opened lake.
    runs
        Runs the page is about, in order.
    """

    def __init__(self, lake: Lake, runs: Sequence[str]) -> None:
        self.lake = lake
        self._named = list(runs)
        self._runs: dict[str, xr.Dataset] = {}
        self._opened: dict[str, xr.Dataset] = {}
        self.passed_over: dict[str, list[Result]] = {}
        """By the name of a result that is shown: those that would have done as well."""
        # what stands for its model first, each model after its family
        models = list(dict.fromkeys(run.partition("/")[0] for run in runs))
        self.runs = sorted(runs, key=lambda run: (self.weight(run)[:2], models.index(run.partition("/")[0]), run))
        self.looks = looks(self.runs)

    @cached_property
    def results(self) -> list[Result]:
        """Results of the page's runs whose runs are still what they were computed from."""
        current = {run: self.lake.attributes(run)["fingerprint"] for run in self.runs}
        kept = []
        for result in self.lake.results():
            if all(current.get(run) == mark for run, mark in result.inputs.items()) and result.runs:
                kept.append(result)
        return kept

    def run(self, name: str) -> xr.Dataset:
        """Lazy dataset of a run."""
        if name not in self._runs:
            self._runs[name] = self.lake[name]
        return self._runs[name]

    def open(self, result: Result) -> xr.Dataset:
        """Dataset of a result."""
        if result.name not in self._opened:
            self._opened[result.name] = self.lake.open_result(result.name)
        return self._opened[result.name]

    def find(self, kind: str, where: Callable[[Mapping[str, Any]], bool] | None = None) -> list[Found]:
        """Results of one run each: for every model that of the run that stands for it, or of the next that has one.

        Of several results of one run whose settings fit the preferred one is taken (:func:`store.read.preferred`); the
        others are in ``passed_over``, and the section says so.

        Parameters
        ----------
        where
            Condition on the settings.
        """
        fitting: dict[str, list[Result]] = {}
        for result in self.results:
            if result.kind == kind and len(result.runs) == 1 and (where is None or where(result.spec)):
                fitting.setdefault(result.runs[0], []).append(result)
        found: dict[str, Result] = {}
        for run, results in fitting.items():
            found[run], *others = preferred(results)
            self.passed_over[found[run].name] = others
        best: dict[str, str] = {}
        for run in sorted(found, key=self.weight):
            best.setdefault(run.partition("/")[0], run)
        chosen = [run for run in self.runs if run in best.values()]
        looks = self.relabel(chosen)
        return [Found(run, found[run], self.open(found[run]), looks[run]) for run in chosen]

    def choices(self, sources: Iterable[Result]) -> list[str]:
        """Which of several results that fit are shown, and which are not, in a sentence for each run."""
        lines = []
        for shown in {each.name: each for each in sources}.values():
            if others := self.passed_over.get(shown.name):
                taken, *left = (each.describe(self.lake.location) for each in (shown, *others))
                lines.append(
                    f"Of {len(others) + 1} results of {shown.kind} of {', '.join(shown.runs)} that fit, the one over"
                    f" the most examples is shown, of several the one with the fewest options: {taken}. Left out:"
                    f" {'; '.join(left)}."
                )
        return lines

    def commands(self, experiment: "Experiment") -> list[str]:
        """Commands that make an experiment's results, for the lake and the runs of this page."""
        runs = self.main_runs()
        if experiment.on_pairs:
            runs = [run for run in self.runs if self.weight(run)[0]] or ["MODEL/PAIRS"]
        elif experiment.on_several and len(runs) < 2:
            runs = self.runs if len(self.runs) > 1 else [*self.runs, "MODEL/DATASET"]
        return [filled(command, self.lake.location, runs) for command in experiment.commands]

    def main_runs(self) -> list[str]:
        """The run that stands for each model: not of pairs, with the most examples."""
        best: dict[str, str] = {}
        for run in sorted(self.runs, key=self.weight):
            best.setdefault(run.partition("/")[0], run)
        return [run for run in self.runs if run in best.values()]

    def weight(self, run: str) -> tuple[bool, int, int]:
        """Order of a model's runs, the main one first: no pairs, data that most models share, most examples."""
        data = self.run(run)
        paired = "pair" in data and bool((data["pair"] >= 0).any())
        dataset = run.partition("/")[2]
        return paired, -sum(each.partition("/")[2] == dataset for each in self._named), -data.sizes["example"]

    def relabel(self, runs: Iterable[str]) -> dict[str, Look]:
        """Looks of some runs: named by the model alone where they are its main run, or its pairs."""
        main = self.main_runs()
        labels = [run.partition("/")[0] if run in main or self.weight(run)[0] else run for run in self.runs]
        everywhere = looks(self.runs, labels)
        return {run: everywhere[run] for run in self.runs if run in set(runs)}


def share(value: float, digits: int = 1) -> str:
    """A share as a percentage, a typographic minus in front of a negative one."""
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}%".replace("-", "\N{MINUS SIGN}")


def points(value: float, digits: int = 1, *, unit: bool = True) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = 0.0 if abs(value) < 0.5 * 10.0 ** -(digits + 2) else value
    return (
        "n/a"
        if math.isnan(value)
        else f"{100 * value:+.{digits}f}{' points' if unit else ''}".replace("-", "\N{MINUS SIGN}")
    )


def p_text(p: float) -> str:
    """A p-value for a sentence."""
    if math.isnan(p):
        return "n/a"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def listed(parts: Sequence[str]) -> str:
    """Parts as a list in a sentence."""
    parts = list(parts)
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def checked(make: Callable[[Context], Section | None], context: Context) -> tuple[Section | None, str]:
    """A section, and why there is none where its results cannot be read.

    A result written by another version must not cost the reader the whole page; what is wrong with it stands in place.
    """
    try:
        return make(context), ""
    except (LakeError, KeyError, ValueError, IndexError) as error:
        return None, f"{type(error).__name__}: {error}"
