"""A run as an analysis reads it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from schemas.command import Shell
from store import Lake


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
    block: int | None = None
    """Examples of it that are read together at most, see :class:`schemas.command.Analysis`."""
    n_sampled: int | None = None
    """Examples that were drawn of a run; ``None``: all that the settings name."""

    @property
    def whole(self) -> xr.Dataset:
        """Its examples at every layer and position of the run."""
        run = self.lake.open(self.run, chunks=self.block or "auto")
        if self.n_sampled is None:
            return run.isel(example=slice(0, self.data.sizes["example"]))
        return run.sel(example=self.data["example"].values)

    @property
    def model(self) -> xr.Dataset:
        """What lenses need of the run's model."""
        return self.lake.model(self.run.partition("/")[0])

    @property
    def lazy_model(self) -> xr.Dataset:
        """The same, nothing of it read: for how large it is."""
        return self.lake.lazy_model(self.run.partition("/")[0])

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
