"""Reading a lake: runs, models and results as lazy, labelled datasets."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from xarray.core.indexing import LazilyIndexedArray
from zarr.abc.store import Store
from zarr.core.sync import sync

from schemas import CorruptLakeError, MissingRunError, UsageError, canonical_json, filled, fingerprint
from schemas.commands import COMMANDS, n_option
from store.files import read_bytes, read_group
from store.layout import RunLayout
from store.location import local_path, open_store
from store.shards import ShardedArray, is_laid_out
from store.write import RunWriter, check_format, write_result_group

RESULTS = "results"
BLOCK_BYTES = 32 * 2**20
"""Aim for the size of one dask block: whole shards of one layer and position, up to this many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A stored analysis."""

    name: str
    """Group below the lake."""
    kind: str
    """What was computed: ``heads``, ``probes``, ``patch`` and so on."""
    runs: tuple[str, ...]
    """Runs it was computed from."""
    spec: Mapping[str, Any]
    """Settings of the analysis."""
    fingerprint: str
    """Digest of kind, settings and the fingerprints of the runs."""
    inputs: Mapping[str, str]
    """Fingerprint of each run it was computed from."""
    command: tuple[str, ...] = ()
    """Words of the command that made it, ``PATH`` for the lake; none where it came from Python or an older version."""
    n_example: int = 0
    """Examples it was computed from; 0 where it does not say."""

    def describe(self, location: object) -> str:
        """What tells it from others of its kind: its number of examples, and its command or settings."""
        how = filled(self.command, location) or f"settings {canonical_json(dict(self.spec))}"
        return f"{self.n_example or 'an unknown number of'} examples, {how}"


def preferred(results: Iterable[Result]) -> list[Result]:
    """Results that all answer one question, the one to take first.

    That is the one over the most examples; of several the one whose command had the fewest options, so that default
    settings come first; then by the settings themselves. Nothing depends on names, which end in a digest.
    """
    return sorted(results, key=lambda each: (-each.n_example, n_option(each.command), canonical_json(dict(each.spec))))


class Lake:
    """A lake opened for reading. ``lake["MODEL/DATASET"]`` is a run's lazy dataset of its committed examples.

    Parameters
    ----------
    location
        Folder or URL.

    Raises
    ------
    UsageError
        If no lake lies there, or one of a newer format.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = location
        self.folder = local_path(location)
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"there is no lake at {location}; make one with lake extract")
        self.store: Store = open_store(location)
        attributes = read_group(self.store, "")
        if attributes is None or attributes.get("kind") != "lake":
            raise UsageError(f"{location} is no lake (no zarr.json that says so); make one with lake extract")
        check_format(location, attributes)

    def __repr__(self) -> str:
        """Location and runs."""
        return f"Lake({str(self.location)!r}, runs={self.runs()})"

    def __iter__(self) -> Iterator[str]:
        """Names of the runs."""
        return iter(self.runs())

    def __contains__(self, run: object) -> bool:
        """Whether a run is in the lake."""
        return isinstance(run, str) and self._kind(run) == "run"

    def _children(self, path: str) -> list[str]:
        async def names() -> list[str]:
            return [name async for name in self.store.list_dir(path)]

        return sorted(name for name in sync(names()) if name and name != "zarr.json" and not name.endswith(".partial"))

    def _kind(self, path: str) -> str | None:
        attributes = read_group(self.store, path)
        return None if attributes is None else attributes.get("kind")

    def models(self) -> list[str]:
        """Names of the models."""
        return [name for name in self._children("") if name != RESULTS and self._kind(name) == "model"]

    def runs(self) -> list[str]:
        """Names of the runs, ``MODEL/DATASET``."""
        found = (f"{model}/{name}" for model in self.models() for name in self._children(model))
        return [run for run in found if self._kind(run) == "run"]

    def attributes(self, run: str) -> dict[str, Any]:
        """Attributes of a run: spec, layout, fingerprints, provenance.

        Raises
        ------
        MissingRunError
            If the run is not in the lake.
        """
        attributes = read_group(self.store, run)
        if attributes is None or attributes.get("kind") != "run":
            raise MissingRunError(f"{self.location} has no run {run!r}; it has {', '.join(self.runs()) or 'none'}")
        return attributes

    def layout(self, run: str) -> RunLayout:
        """Axes of a run."""
        return RunLayout.from_json(self.attributes(run)["layout"])

    def committed(self, run: str) -> np.ndarray:
        """Which shards of a run are committed: (shard,) bool."""
        return RunWriter(self.location, run).committed()

    def __getitem__(self, run: str) -> xr.Dataset:
        """Lazy dataset of a run's committed examples.

        Dask blocks are whole shards along ``example`` (as many as ``BLOCK_BYTES`` hold), one layer, and one position
        of a state or one 32-block of attention: what one read of the store brings.

        Raises
        ------
        MissingRunError
            If the run is not in the lake.
        """
        return self.open(run)

    def open(self, run: str, *, uncommitted: bool = False, chunks: Literal["auto"] | None = "auto") -> xr.Dataset:
        """Lazy dataset of a run, as ``lake[run]`` or otherwise.

        Parameters
        ----------
        run
            ``MODEL/DATASET``.
        uncommitted
            Keep the examples that no writer has finished.
        chunks
            ``None``: without dask, whose tasks take longer than the reading where that is of one (layer, position).

        Raises
        ------
        MissingRunError
            If the run is not in the lake.
        """
        attributes = self.attributes(run)
        layout = RunLayout.from_json(attributes["layout"])
        dataset = _open_group(self.store, run)
        if self.folder is not None:
            dataset = _read_directly(dataset, self.folder.absolute() / run, layout)
        committed = np.asarray(dataset["committed"].values)
        if not uncommitted and not committed.all():
            dataset = _take(dataset, committed)
        for name, blocks in _block_shapes(layout).items() if chunks == "auto" else ():
            dataset[name] = dataset[name].variable.chunk(blocks)
        dataset.attrs = {
            key: value if isinstance(value, str | int | float) else canonical_json(value)
            for key, value in attributes.items()
            if key not in ("seal", "coordinates", "kind")
        }
        return dataset

    def model_attributes(self, name: str) -> dict[str, Any]:
        """Attributes of a model: sizes, special tokens, checkpoint, fingerprints.

        Raises
        ------
        MissingRunError
            If the model is not in the lake.
        """
        attributes = read_group(self.store, name)
        if attributes is None or attributes.get("kind") != "model":
            raise MissingRunError(f"{self.location} has no model {name!r}; it has {', '.join(self.models()) or 'none'}")
        return attributes

    def model(self, name: str) -> xr.Dataset:
        """Unembedding, final norm and token strings of a model, loaded.

        Raises
        ------
        MissingRunError
            If the model is not in the lake.
        """
        attributes = self.model_attributes(name)
        dataset = _open_group(self.store, name).load()
        dataset.attrs = {key: value for key, value in attributes.items() if key not in ("seal", "files", "kind")}
        return dataset

    def write_result(
        self, kind: str, dataset: xr.Dataset, *, runs: list[str], spec: Mapping[str, Any], command: Sequence[str] = ()
    ) -> str:
        """Store an analysis beside the runs, replacing an earlier one of the same kind, runs and settings.

        Parameters
        ----------
        kind
            What was computed, as the command names it.
        dataset
            Labelled result of numbers, bools and texts; small, as it is written in one piece.
        runs
            Runs it was computed from.
        spec
            Settings, as JSON values.
        command
            Words of the command that makes it again, ``PATH`` for the lake.

        Returns
        -------
        str
            Name of the result: its group below the lake.
        """
        inputs = {run: self.attributes(run)["fingerprint"] for run in runs}
        identity = {"kind": kind, "runs": list(runs), "spec": dict(spec), "inputs": inputs}
        label = "+".join(run.replace("/", ".") for run in runs)
        if len(label) > 80:
            label = f"{len(runs)}-runs"
        name = f"{RESULTS}/{kind}/{label}~{fingerprint({'runs': list(runs), 'spec': dict(spec)})[:8]}"
        attributes = {
            "kind": "result",
            "result": kind,
            "runs": list(runs),
            "spec": dict(spec),
            "inputs": inputs,
            "fingerprint": fingerprint(identity),
            "command": list(command),
            "n_example": _n_example(dataset),
            "attrs": {key: _plain(value) for key, value in dataset.attrs.items()},
        }
        write_result_group(self.location, name, dataset, attributes)
        return name

    def results(self, kind: str | None = None) -> list[Result]:
        """Stored analyses, of one kind or of all, in order of their names."""
        kinds = [kind] if kind is not None else self._children(RESULTS)
        found = []
        for each in kinds:
            for child in self._children(f"{RESULTS}/{each}"):
                name = f"{RESULTS}/{each}/{child}"
                attributes = read_group(self.store, name)
                if attributes is not None and attributes.get("kind") == "result":
                    found.append(
                        Result(
                            name=name,
                            kind=attributes["result"],
                            runs=tuple(attributes["runs"]),
                            spec=attributes["spec"],
                            fingerprint=attributes["fingerprint"],
                            inputs=attributes["inputs"],
                            command=tuple(attributes.get("command", ())),
                            n_example=self._examples_of(name, attributes),
                        )
                    )
        return found

    def _examples_of(self, name: str, attributes: Mapping[str, Any]) -> int:
        """Examples of a result; of one that an older version wrote, as far as its documents say."""
        if "n_example" in attributes:
            return int(attributes["n_example"])
        labels = json.loads(read_bytes(self.store, f"{name}/example/zarr.json") or "{}")
        return int(attributes["attrs"].get("n_example", 0) or math.prod(labels.get("shape", [0])))

    def find(self, kind: str, run: str, **spec: Any) -> Result:
        """Of the results of a kind that a run has part in, whose settings include ``spec``, the preferred one.

        Raises
        ------
        MissingRunError
            If there is none; the command that makes it is named.
        """
        results = [
            each
            for each in self.results(kind)
            if run in each.runs and all(each.spec.get(key) == value for key, value in spec.items())
        ]
        if not results:
            wanted = f" with {canonical_json(spec)}" if spec else ""
            how = filled(COMMANDS[kind], self.location, [run]) if kind in COMMANDS else ""
            raise MissingRunError(
                f"{self.location}: {run} has no result of kind {kind!r}{wanted}"
                + (f"; {how} makes it" if how else f"; there are {', '.join(COMMANDS)}")
            )
        return preferred(results)[0]

    def result(self, kind: str, *runs: str, **spec: Any) -> xr.Dataset:
        """Stored analysis of a kind, of these runs, whose settings include ``spec``.

        Raises
        ------
        MissingRunError
            If none or several fit; they are named.
        """
        fitting = [
            result
            for result in self.results(kind)
            if (not runs or result.runs == runs) and all(result.spec.get(key) == value for key, value in spec.items())
        ]
        if len(fitting) != 1:
            wanted = f"{kind} of {', '.join(runs) or 'any run'}" + (f" with {canonical_json(spec)}" if spec else "")
            names = [result.name for result in (fitting or self.results(kind))]
            how = "several results fit" if fitting else "no result fits"
            raise MissingRunError(
                f"{self.location}: {how} {wanted}; there {'are' if names else 'is'} {', '.join(names) or 'none'}"
            )
        return self.open_result(fitting[0].name)

    def open_result(self, name: str) -> xr.Dataset:
        """Stored analysis by the name of its group, loaded; ``attrs`` carry settings and fingerprints."""
        attributes = read_group(self.store, name)
        if attributes is None or attributes.get("kind") != "result":
            raise MissingRunError(f"{self.location} has no result {name!r}")
        dataset = _open_group(self.store, name).load()
        dataset.attrs = dict(attributes["attrs"]) | {
            key: attributes[key] for key in ("result", "runs", "spec", "inputs", "fingerprint")
        }
        return dataset


def open_lake(location: str | os.PathLike[str]) -> Lake:
    """Open a lake for reading.

    Parameters
    ----------
    location
        Folder or URL.

    Returns
    -------
    Lake
        ``open_lake(path)["MODEL/DATASET"]`` is a run's lazy ``xarray.Dataset``.

    Raises
    ------
    UsageError
        If no lake lies there.
    """
    return Lake(location)


def _open_group(store: Store, path: str) -> xr.Dataset:
    try:
        dataset: xr.Dataset = xr.open_zarr(store, group=path, consolidated=False, chunks=None)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CorruptLakeError(f"{path} cannot be opened ({error}); run lake verify") from error
    for name, variable in dataset.variables.items():
        # numpy's own string type travels badly: sorting, pandas and JSON know objects
        if isinstance(variable.dtype, np.dtypes.StringDType) and variable.size < 10**6:
            text = dataset[name].astype(object)
            dataset = dataset.assign_coords({name: text}) if name in dataset.coords else dataset.assign({name: text})
    return dataset[sorted(dataset.variables, key=str)]  # Zarr lists arrays as they come, in another order each time


def _read_directly(dataset: xr.Dataset, folder: Path, layout: RunLayout) -> xr.Dataset:
    """The same run of a local lake with its sharded arrays read by :class:`store.shards.ShardedArray`."""
    direct = {}
    for name, array in layout.arrays().items():
        variable = dataset[name].variable
        if is_laid_out(variable, array):
            data = LazilyIndexedArray(ShardedArray(folder / name, array))
            direct[name] = xr.Variable(variable.dims, data, variable.attrs, variable.encoding)
    return dataset.assign(direct)


def _take(dataset: xr.Dataset, keep: np.ndarray) -> xr.Dataset:
    """Examples where ``keep`` holds, as slices where they run together, so that the selection stays lazy."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.astype(np.int8), [0]])))
    if len(edges) == 2:
        return dataset.isel(example=slice(int(edges[0]), int(edges[1])))
    return dataset.isel(example=np.flatnonzero(keep))


def _block_shapes(layout: RunLayout) -> dict[str, dict[str, int]]:
    """Dask blocks of each large variable."""
    shapes = {}
    for name, array in layout.arrays().items():
        if array.shards is not None:
            inner = dict(zip(array.dims, array.chunks, strict=True))
            row = math.prod(size for dim, size in inner.items() if dim != "example") * np.dtype(array.dtype).itemsize
            shards = max(1, BLOCK_BYTES // (row * layout.shard_examples))
            shapes[name] = inner | {"example": shards * layout.shard_examples}
    return shapes


def _n_example(dataset: xr.Dataset) -> int:
    """Examples a result was computed from, as it says itself; 0 where it does not."""
    if "example" in dataset.sizes:
        return int(dataset.sizes["example"])
    if "n_example" in dataset.attrs:
        return int(dataset.attrs["n_example"])
    return int(np.nanmax(dataset["n_example"].values)) if "n_example" in dataset.data_vars else 0


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
