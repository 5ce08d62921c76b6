"""What a section can ask of the lake: runs, stored results, and how each run is named and drawn."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

import xarray as xr

from analyze.drawing import Look, looks
from schemas import Control, LakeError, RemovedError
from schemas.controls import control_among
from store.read import Lake
from store.results import Result, preferred

Where = Callable[[Mapping[str, Any]], bool]
FOLDERS = re.compile(r"""(?<![^\s'"=(\[,:])/(?:[^\s/'"]+/)+(?=[^\s/'"])""")


def without_folders(text: str) -> str:
    """A text whose absolute paths are only the names of their files: where they lay is nobody's business."""
    return FOLDERS.sub("", text)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A stored result of one run, opened."""

    run: str
    stored: Result
    data: xr.Dataset
    look: Look

    @property
    def label(self) -> str:
        """The run's name on the page."""
        return self.look.label


Key = Callable[[StoredResult], Any]
"""By what results are the same to a section."""


def controls_in(lake: Lake, models: Iterable[str] | None = None) -> dict[str, Control]:
    """Which models of a lake are controls, of whom, and of what kind; one that cannot be read says it by its name."""
    described: dict[str, Mapping[str, Any]] = {}
    for model in dict.fromkeys(lake.models() if models is None else models):
        try:
            described[model] = lake.model_attributes(model)
        except LakeError:
            described[model] = {}
    return control_among(described)


class Context:
    """The lake as the sections see it.

    The page is about ``runs``, in their order. A ``lazy`` one is for one problem at a time: results are opened without
    reading them whole, runs without dask.
    """

    def __init__(self, lake: Lake, runs: Sequence[str], *, lazy: bool = False) -> None:
        self.lake = lake
        self.lazy = lazy
        self._named = list(runs)
        self._runs: dict[str, xr.Dataset] = {}
        self._opened: dict[str, xr.Dataset] = {}
        self.columns: dict[Any, Any] = {}
        """By the name of a re-entry: what became of each problem, once it was read."""
        self.passed_over: dict[str, list[Result]] = {}
        """By the name of a result that is shown: those that would have done as well."""
        # what stands for its model first, each model after its family
        models = list(dict.fromkeys(run.partition("/")[0] for run in runs))
        self.runs = sorted(runs, key=lambda run: (self.weight(run)[:2], models.index(run.partition("/")[0]), run))
        self.looks = looks(self.runs, controls=self.controls)

    @property
    def shown_location(self) -> str:
        """The lake as commands on the page name it: as it was given, of an absolute path the last part."""
        given = str(self.lake.location)
        return PurePath(given).name if PurePath(given).is_absolute() else given

    @cached_property
    def controls(self) -> dict[str, Control]:
        """Which models of the page are controls, of whom, and of what kind."""
        return controls_in(self.lake, [run.partition("/")[0] for run in self.runs])

    def controls_of(self, model: str) -> list[str]:
        """Models of the page that are controls of a model."""
        return [name for name, control in self.controls.items() if control.of == model]

    @cached_property
    def results(self) -> list[Result]:
        """Results of the page's runs that are up to date: each run's fingerprint is the one they were computed from."""
        current = {run: self.lake.attributes(run)["fingerprint"] for run in self.runs}
        return [
            result
            for result in self.lake.results()
            if result.runs and all(current.get(run) == mark for run, mark in result.inputs.items())
        ]

    def run(self, name: str) -> xr.Dataset:
        """Lazy dataset of a run."""
        if name not in self._runs:
            self._runs[name] = self.lake.open(name, chunks=None) if self.lazy else self.lake[name]
        return self._runs[name]

    def rows(self, name: str) -> xr.Dataset:
        """A run for a few problems at a time, without dask; the one that the results are of.

        Raises
        ------
        RemovedError
            If another run is in its place by now.
        """
        if self.lazy:
            return self.run(name)
        rows = self.lake.open(name, chunks=None)
        if rows.attrs["fingerprint"] != self.run(name).attrs["fingerprint"]:
            raise RemovedError(
                f"{self.lake.location}: {name} was made anew since it was opened; give the command again"
            )
        return rows

    def model(self, run: str) -> xr.Dataset:
        """What lenses need of a run's model; the lake keeps the last one that was asked for."""
        return self.lake.model(run.partition("/")[0])

    def open(self, result: Result) -> xr.Dataset:
        """Dataset of a result."""
        if result.name not in self._opened:
            self._opened[result.name] = self.lake.open_result(result.name, load=not self.lazy)
        return self._opened[result.name]

    def find(self, kind: str, where: Where | None = None) -> list[StoredResult]:
        """Results of a kind, one for each model, each of one run.

        A model shows the result of its main run; where that has none, of its next run that has one. Of several results
        of one run whose settings fit the preferred one is taken (:func:`store.results.preferred`); the others are in
        ``passed_over``, and the section says so.

        ``where`` is a condition on the settings.
        """
        fitting: dict[str, list[Result]] = {}
        for result in self.results:
            if result.kind == kind and len(result.runs) == 1 and (where is None or where(result.spec)):
                fitting.setdefault(result.runs[0], []).append(result)
        taken: dict[str, Result] = {}
        for run, results in fitting.items():
            taken[run], *others = preferred(results)
            self.passed_over[taken[run].name] = others
        best: dict[str, str] = {}
        for run in sorted(taken, key=self.weight):
            best.setdefault(run.partition("/")[0], run)
        chosen = [run for run in self.runs if run in best.values()]
        look_of = self.relabel(chosen)
        return [StoredResult(run, taken[run], self.open(taken[run]), look_of[run]) for run in chosen]

    def joint(
        self, kind: str, key: Key | None = None, *, where: Callable[[Result], bool] = bool,
        best: Callable[[Result], int] | None = None, word: str = "and",
    ) -> list[StoredResult]:  # fmt: skip
        """Results of a kind over several runs together, each named by all of its runs.

        Of results with the same ``key`` the preferred one is taken; by default the key is the runs, in any order.
        ``where`` says which results are taken at all; with ``best`` only the one for which it is largest is. ``word``
        stands between the labels of the runs.
        """
        results = preferred(one for one in self.results if one.kind == kind and where(one))
        first: dict[Any, StoredResult] = {}
        for result in results if best is None else sorted(results, key=best, reverse=True)[:1]:
            looks = list(self.relabel(result.runs).values())
            look = replace(looks[0], label=f" {word} ".join(look.label for look in looks))
            stored = StoredResult("_".join(result.runs), result, self.open(result), look)
            first.setdefault(key(stored) if key else tuple(sorted(result.runs)), stored)
        return list(first.values())

    def choices(self, sources: Iterable[Result]) -> list[str]:
        """Which of several results that fit are shown, and which are not, in a sentence for each run."""
        lines = []
        for shown in {source.name: source for source in sources}.values():
            if others := self.passed_over.get(shown.name):
                taken, *left = (without_folders(result.describe(self.shown_location)) for result in (shown, *others))
                lines.append(
                    f"Of {len(others) + 1} results of {shown.kind} of {', '.join(shown.runs)} that fit, the one over"
                    f" the most examples is shown, of several the one with the fewest options: {taken}. Left out:"
                    f" {'; '.join(left)}."
                )
        return lines

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
        return paired, -sum(name.partition("/")[2] == dataset for name in self._named), -data.sizes["example"]

    def relabel(self, runs: Iterable[str]) -> dict[str, Look]:
        """Looks of some runs: named by the model alone where they are its main run, or its pairs."""
        main = self.main_runs()
        labels = [run.partition("/")[0] if run in main or self.weight(run)[0] else run for run in self.runs]
        everywhere = looks(self.runs, labels, self.controls)
        return {run: everywhere[run] for run in self.runs if run in set(runs)}
