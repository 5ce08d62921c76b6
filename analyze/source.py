"""A run as an analysis reads it."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from schemas import UnwritableLakeError
from schemas.command import Shell
from store import Lake
from store.location import local_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A run, and what an analysis may need beside it."""

    lake: Lake
    run: str
    data: xr.Dataset
    """The part of the run that the settings name, lazy."""
    shell: Shell
    folder: Path | None = None
    """Where finished pieces may be kept while the analysis is at work: beside the lake, or nowhere."""

    @property
    def model(self) -> xr.Dataset:
        """What lenses need of the run's model."""
        return self.lake.model(self.run.partition("/")[0])

    def note(self, text: str) -> None:
        """Say something about this run on standard error."""
        self.shell.note(f"{self.run}: {text}")

    def progress(self, what: str = "", unit: str = "") -> AbstractContextManager[Callable[..., None]]:
        """A bar with the run's name; gives ``report(done, total)``."""
        return self.shell.progress(", ".join(filter(None, [self.run, what])), unit)

    def compute(self, lazy: xr.Dataset) -> xr.Dataset:
        """Compute a lazy result, with a bar."""
        from dask.callbacks import Callback

        with self.progress(unit="tasks") as report:

            def count(key: Any, value: Any, graph: Any, state: Mapping[str, Any], worker: Any) -> None:
                waiting = sum(len(state[name]) for name in ("waiting", "ready", "running"))
                report(len(state["finished"]), waiting + len(state["finished"]))

            with Callback(posttask=count):
                return lazy.compute()

    def result(self, kind: str) -> str:
        """Name of the stored result of this run that the analysis goes on from; said where several would do.

        Raises
        ------
        MissingRunError
            If there is none.
        """
        fitting = [result for result in self.lake.results(kind) if self.run in result.runs]
        chosen = self.lake.find(kind, self.run)
        if len(fitting) > 1:
            self.note(
                f"of {len(fitting)} results of {kind}, {chosen.name} is taken: {chosen.describe(self.lake.location)}"
            )
        return chosen.name


def keep(
    lake: Lake, kind: str, result: xr.Dataset, runs: Sequence[str], spec: Mapping[str, Any], shell: Shell
) -> str | None:
    """Store a result with the command that made it and return its name; ``None``, said, where the lake is read-only."""
    try:
        return lake.write_result(kind, result, runs=list(runs), spec=dict(spec), command=shell.words(runs))
    except UnwritableLakeError as error:
        shell.note(str(error))
        return None


def short_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables as JSON holds them, but for those with a row for each example."""
    return {
        name: json.loads(table.to_json(orient="records"))
        for name, table in tables.items()
        if not name.startswith("example")
    }


def fed(result: Any) -> list[str]:
    """What sharing trunks has saved, where a result says so."""
    if "positions_fed" not in result.attrs:
        return []
    together, alone = result.attrs["positions_fed"], result.attrs["positions_one_by_one"]
    return [f"{together} positions fed, {alone} one condition at a time ({together / alone:.0%})"]


def working_folder(lake: Lake, name: str, run: str) -> Path | None:
    """Folder beside a lake on disk for finished pieces of a command at work; none where nothing can be written."""
    place = local_path(lake.location)
    if place is None or not os.access(place.parent, os.W_OK):
        return None
    return place.with_name(f"{place.name}.{name}") / run.replace("/", ".")


def remove_folder(folder: Path | None) -> None:
    """Remove the pieces that a finished command kept while it was at work, and the folder above if it is empty then."""
    if folder is not None and folder.parent.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
