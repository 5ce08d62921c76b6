"""Reading a lake: runs, models and results as lazy, labelled datasets."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

import dask.threaded
import numpy as np
import xarray as xr
import zarr
from xarray.core.indexing import LazilyIndexedArray, MemoryCachedArray
from zarr.abc.store import Store
from zarr.core.sync import sync

from schemas import (
    MODEL_VARIABLES,
    CorruptLakeError,
    LakeError,
    MissingRunError,
    UnwritableLakeError,
    UsageError,
    canonical_json,
    filled,
    fingerprint,
    nearest,
)
from schemas.registry import by_kind, line
from schemas.words import n_option
from store.files import RECORD, is_ours, join, read_bytes, unseal
from store.guard import Guard
from store.layout import RunLayout
from store.location import local_path, open_store
from store.mend import foreign_weights, has_other_model, is_result_of
from store.record import DamagedFile, RunRecord
from store.shards import HandedOut, ShardedArray
from store.write import check_format, write_result_group

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
    stored
        Hand out floats in the type they are stored in, see :func:`open_lake`.

    Raises
    ------
    UsageError
        If no lake lies there, or one of a newer format.
    CorruptLakeError
        If the lake's own document is damaged.
    """

    def __init__(self, location: str | os.PathLike[str], *, stored: bool = False) -> None:
        self.location = location
        self.stored = stored
        self.folder = local_path(location)
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"there is no lake at {location}; make one with lake extract")
        self._opened: tuple[int, Store] | None = None
        check_format(location, self.store)
        attributes = self._document("", "lake")
        if attributes is None or attributes.get("kind") != "lake":
            raise UsageError(f"{location} is no lake (no zarr.json that says so); make one with lake extract")

    def __repr__(self) -> str:
        """Location and runs."""
        return f"Lake({str(self.location)!r}, runs={self.runs()})"

    def __iter__(self) -> Iterator[str]:
        """Names of the runs."""
        return iter(self.runs())

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.runs())

    def __bool__(self) -> bool:
        """True: a lake without runs is a lake, too."""
        return True

    def keys(self) -> list[str]:
        """Names of the runs."""
        return self.runs()

    def _ipython_key_completions_(self) -> list[str]:
        """What a notebook offers after ``lake["``."""
        return self.runs()

    def _repr_html_(self) -> str:
        """Table of the runs, for notebooks: how complete each is, its sizes, and what was computed from it."""
        from store.info import html_table

        return html_table(self)

    def __contains__(self, run: object) -> bool:
        """Whether a run is in the lake."""
        return isinstance(run, str) and self._kind(run) == "run"

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of; no connection."""
        return {**self.__dict__, "_opened": None}

    @property
    def store(self) -> Store:
        """The lake's files, opened by this process: connections do not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_store(self.location)
        return self._opened[1]

    def children(self, path: str) -> list[str]:
        """Names of what lies directly below a place, in order."""

        async def names() -> list[str]:
            return [name async for name in self.store.list_dir(path)]

        return sorted(name for name in sync(names()) if name and name != "zarr.json")

    def _has(self, key: str) -> bool:
        return read_bytes(self.store, key) is not None

    def _kind(self, path: str) -> str | None:
        """Kind of a group, also of a run or model whose document is damaged or lost; none of what is not the lake's."""
        content = read_bytes(self.store, f"{path}/zarr.json")
        attributes = unseal(content or b"")
        kind = "run" if "/" in path else "model"
        if attributes is not None and attributes.get("kind") == kind:
            return kind
        if kind == "model":
            return kind if content is not None and self._has(f"{path}/unembedding/zarr.json") else None
        whole = content is not None or any(name == "c" for name in self.children(f"{path}/committed"))
        return kind if whole and self._has(f"{path}/{RECORD}/zarr.json") else None

    def _document(self, path: str, kind: str) -> dict[str, Any] | None:
        """Attributes of a group's document; ``None`` if there is none."""
        content = read_bytes(self.store, join(path, "zarr.json"))
        attributes = unseal(content or b"")
        if attributes is None and content is not None:
            if not path and not is_ours(content):
                return None
            self._fail(path, kind, "does not agree with its own seal")
        return attributes

    def _fail(self, path: str, kind: str, problem: str) -> NoReturn:
        """Raise :class:`CorruptLakeError` of a group's document."""
        if kind == "lake":
            where = join(str(self.folder or self.location), "zarr.json")
            command = f"any lake extract of a run of this lake, with --lake {self.location} --rebuild static"
            raise CorruptLakeError(f"{where} {problem}; mend it with: {command}")
        group = path.removesuffix(f"/{RECORD}") if kind == "run" else path
        key = join(path.removeprefix(group).strip("/"), "zarr.json")
        raise Guard(self.location, group, kind, {}).error(DamagedFile(key, None, problem))

    def models(self) -> list[str]:
        """Names of the models."""
        return [name for name in self.children("") if name != RESULTS and self._kind(name) == "model"]

    def runs(self) -> list[str]:
        """Names of the runs, ``MODEL/DATASET``, damaged ones too."""
        models = (name for name in self.children("") if name != RESULTS)
        found = (f"{model}/{name}" for model in models for name in self.children(model) if name not in MODEL_VARIABLES)
        return [run for run in found if self._kind(run) == "run"]

    def attributes(self, run: str) -> dict[str, Any]:
        """Attributes of a run: spec, layout, fingerprints, provenance.

        Raises
        ------
        MissingRunError
            If the run is not in the lake.
        CorruptLakeError
            If the run's document or its record is damaged, or they are of two runs.
        """
        return self._run(run)[0]

    def _run(self, run: str) -> tuple[dict[str, Any], Guard]:
        """Attributes of a run, and what reads its files."""
        attributes = self._document(run, "run")
        if attributes is None and self._kind(run) == "run":
            self._fail(run, "run", "is not there")
        if attributes is None or attributes.get("kind") != "run":
            raise MissingRunError(
                f"{self.location} has no run {run!r}; it has {', '.join(self.runs()) or 'none'}"
                + nearest(run, self.runs())
            )
        record = self._document(f"{run}/{RECORD}", "run")
        if record is None:
            self._fail(f"{run}/{RECORD}", "run", "is not there")
        if (record.get("kind"), record.get("fingerprint")) != ("record", attributes["fingerprint"]):
            self._fail(run, "run", f"is of another run than {RECORD}/zarr.json")
        digests = {key.removeprefix("../"): digest for key, digest in record["files"].items() if key.startswith("../")}
        layout = RunLayout.from_json(attributes["layout"])
        known = RunRecord(layout, checksums="crc32c/zarr.json" in record["files"])
        return attributes, Guard(self.location, run, "run", digests, known)

    def layout(self, run: str) -> RunLayout:
        """Axes of a run."""
        return RunLayout.from_json(self.attributes(run)["layout"])

    def committed(self, run: str) -> np.ndarray:
        """Which shards of a run are committed: (shard,) bool."""
        return self._run(run)[1].committed()

    def shard_digests(self, run: str) -> dict[str, list[str]]:
        """SHA-256 of the file of each committed shard, by variable: where two runs have the same, they are the same."""
        guard = self._run(run)[1]
        records = [sync(guard.records(shard))[0] for shard in np.flatnonzero(guard.committed()).tolist()]
        return {name: [each.digest(at) for each in records] for at, name in enumerate(self.layout(run).arrays())}

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

    def open(
        self,
        run: str,
        *,
        uncommitted: bool = False,
        chunks: Literal["auto"] | None = "auto",
        stored: bool | None = None,
    ) -> xr.Dataset:
        """Lazy dataset of a run, as ``lake[run]`` or otherwise.

        Parameters
        ----------
        run
            ``MODEL/DATASET``.
        uncommitted
            Keep the examples that no writer has finished: fill, and ``committed`` is false.
        chunks
            ``None``: without dask, whose tasks take longer than the reading where that is of one (layer, position).
        stored
            Values in the type they are stored in, see :func:`open_lake`; ``None``: as the lake was opened.

        Raises
        ------
        MissingRunError
            If the run is not in the lake.
        CorruptLakeError
            If a document, coordinate or mark of the run is damaged; of other files when they are read.
        """
        attributes, guard = self._run(run)
        layout = RunLayout.from_json(attributes["layout"])
        stored = self.stored if stored is None else stored
        dataset = _open_group(guard, attributes, stored=stored)
        committed = np.repeat(guard.committed(), layout.shard_examples)[: layout.n_example]
        dataset["committed"] = dataset["committed"].variable.copy(data=committed)
        if not uncommitted and not committed.all():
            dataset = _take(dataset, committed)
        if chunks == "auto":
            for name, blocks in _block_shapes(dataset, layout).items():
                dataset[name] = dataset[name].variable.chunk(blocks)
        return dataset

    def activations(self, run: str, variable: str) -> tuple[ShardedArray | HandedOut, np.ndarray]:
        """One activation of a run as it is stored, to be indexed without labels, and the examples that are committed.

        A dataset costs a tenth of a millisecond at each reading for the labels it brings; what reads chunk after chunk
        does without.
        """
        attributes, guard = self._run(run)
        layout = RunLayout.from_json(attributes["layout"])
        array = layout.arrays()[variable]
        examples = np.flatnonzero(np.repeat(guard.committed(), layout.shard_examples)[: layout.n_example])
        if guard.folder is not None:
            return ShardedArray(guard, array, stored=True), examples
        opened = guard.reading(partial(zarr.open_array, guard, path=variable, mode="r", zarr_format=3))
        return HandedOut(guard, variable, opened, stored=True), examples

    def model_attributes(self, name: str) -> dict[str, Any]:
        """Attributes of a model: sizes, special tokens, checkpoint, fingerprints.

        Raises
        ------
        MissingRunError
            If the model is not in the lake.
        """
        attributes = self._document(name, "model")
        if attributes is None and self._has(f"{name}/unembedding/zarr.json"):
            self._fail(name, "model", "is not there")
        if attributes is None or attributes.get("kind") != "model":
            raise MissingRunError(
                f"{self.location} has no model {name!r}; it has {', '.join(self.models()) or 'none'}"
                + nearest(name, self.models())
            )
        for run in (f"{name}/{child}" for child in self.children(name)):
            made_with = unseal(read_bytes(self.store, f"{run}/zarr.json") or b"") or {}
            if has_other_model(made_with, attributes):
                raise CorruptLakeError(f"{self.location}: {foreign_weights(run)}")
        return attributes

    def model(self, name: str) -> xr.Dataset:
        """Unembedding, final norm and token strings of a model, loaded.

        Raises
        ------
        MissingRunError
            If the model is not in the lake.
        CorruptLakeError
            If one of its files is damaged, or a run of its name was made with other weights.
        """
        attributes = self.model_attributes(name)
        return _open_group(Guard(self.location, name, "model", attributes["files"]), attributes, stored=True).load()

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

        Raises
        ------
        UnwritableLakeError
            If the lake is read-only or the disk full.
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
        try:
            write_result_group(self.location, name, dataset, attributes)
        except LakeError:
            raise
        except Exception as error:  # of a file system or, by other names, of an object store
            if not isinstance(error, OSError) and self.folder is not None:
                raise
            why = getattr(error, "strerror", None) or str(error)
            raise UnwritableLakeError(f"{self.location} cannot be written ({why}); results are not kept") from error
        return name

    def results(self, kind: str | None = None) -> list[Result]:
        """Stored analyses, of one kind or of all, in order of their names."""
        kinds = [kind] if kind is not None else self.children(RESULTS)
        found = []
        for each in kinds:
            for child in self.children(f"{RESULTS}/{each}"):
                name = f"{RESULTS}/{each}/{child}"
                attributes = self._document(name, "result")
                if attributes is not None and attributes.get("kind") == "result":
                    self._check_result(name, attributes)
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
            how = filled(line(kind), self.location, [run])
            raise MissingRunError(
                f"{self.location}: {run} has no result of kind {kind!r}{wanted}"
                + (
                    f"; {how} makes it"
                    if how
                    else f"; there are {', '.join(by_kind())}{nearest(kind, list(by_kind()))}"
                )
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

    def open_result(self, name: str, *, load: bool = True) -> xr.Dataset:
        """Stored analysis by the name of its group, loaded or lazy; ``attrs`` carry settings and fingerprints."""
        attributes = self._document(name, "result")
        if attributes is None or attributes.get("kind") != "result":
            raise MissingRunError(
                f"{self.location} has no result {name!r}" + nearest(name, [each.name for each in self.results()])
            )
        self._check_result(name, attributes)
        guard = Guard(self.location, name, "result", attributes["files"])
        stated = ("result", "runs", "spec", "inputs", "fingerprint")
        handed_out = {**attributes["attrs"], **{key: attributes[key] for key in stated}}
        result = _open_group(guard, attributes, handed_out, stored=self.stored)
        return result.load() if load else result

    def result_digests(self, name: str) -> dict[str, str]:
        """SHA-256 of each file of a stored analysis: two results with the same are the same."""
        return dict((self._document(name, "result") or {}).get("files", {}))

    def _check_result(self, name: str, attributes: Mapping[str, Any]) -> None:
        if not is_result_of(name, attributes):
            self._fail(name, "result", "is that of another result")


def open_lake(location: str | os.PathLike[str], *, stored: bool = False) -> Lake:
    """Open a lake for reading.

    What it hands out is meant for the first line one writes:

    - *The stored value or an error.* What the record has is never fill: a file that is lost, damaged, cut short, older
      or another shard's is a :class:`CorruptLakeError` that names it and the command that mends it, at the first
      reading that needs it. Examples that no writer has finished are left out (``lake.open(run, uncommitted=True)``
      keeps them, as fill, with ``committed`` false). A shard that is written again meanwhile is the old or the new one.
      (In older lakes, whose records lack the checksums of chunks, a shard's file is read whole the first time; on an
      object store its size and its own checksums are compared.)
    - *Float32.* What is stored in float16 is widened as it is read, as sums of float16 are off in the third digit:
      ``run["attention"].mean("example")`` is right. ``stored=True`` hands out the bytes as they are.
    - *Labels and attributes that can be saved.* Texts are ``str`` objects. Attributes are numbers and texts, settings
      as JSON text, as plain Zarr shows them, too; ``.to_zarr()`` and ``.to_netcdf()`` work as they are, in the defaults
      of the format.
    - *Other processes.* Datasets can be pickled, and read in forked and spawned workers. (On an object store: spawned,
      or forked before anything was read.)

    Parameters
    ----------
    location
        Folder or URL.
    stored
        Hand out floats in the type they are stored in.

    Returns
    -------
    Lake
        ``open_lake(path)["MODEL/DATASET"]`` is a run's lazy ``xarray.Dataset``.

    Raises
    ------
    UsageError
        If no lake lies there.
    CorruptLakeError
        If the lake's own document is damaged.
    """
    return Lake(location, stored=stored)


def _open_group(
    guard: Guard, attributes: Mapping[str, Any], handed_out: Mapping[str, Any] | None = None, *, stored: bool
) -> xr.Dataset:
    """Lazy dataset of a group's arrays, in order of their names."""
    guard.read_documents()
    layouts = {} if guard.record is None else guard.record.layout.arrays()
    variables = {}
    for name in guard.arrays():
        array = guard.reading(partial(zarr.open_array, guard, path=name, mode="r", zarr_format=3))
        dims = getattr(array.metadata, "dimension_names", None) or ()  # none of a single number
        if guard.folder is not None and name in layouts and layouts[name].shards is not None:
            data: Any = LazilyIndexedArray(ShardedArray(guard, layouts[name], stored=stored))
        else:
            data = LazilyIndexedArray(HandedOut(guard, name, array, stored=stored))
            data = MemoryCachedArray(data)  # type: ignore[no-untyped-call]
        variables[name] = xr.Variable(dims, data, {key: _savable(value) for key, value in array.attrs.items()})
    named = str(attributes.get("coordinates", "")).split()
    hidden = ("seal", "files", "kind", "coordinates")
    attrs = handed_out or {key: value for key, value in attributes.items() if key not in hidden}
    dataset = xr.Dataset(variables, attrs={key: _savable(value) for key, value in attrs.items()})
    return dataset.set_coords([name for name in named if name in variables])


def _take(dataset: xr.Dataset, keep: np.ndarray) -> xr.Dataset:
    """Examples where ``keep`` holds, as slices where they run together, so that the selection stays lazy."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.astype(np.int8), [0]])))
    if len(edges) == 2:
        return dataset.isel(example=slice(int(edges[0]), int(edges[1])))
    return dataset.isel(example=np.flatnonzero(keep))


def _block_shapes(dataset: xr.Dataset, layout: RunLayout) -> dict[str, dict[str, int]]:
    """Dask blocks of each large variable."""
    shapes = {}
    for name, array in layout.arrays().items():
        if array.shards is not None:
            inner = dict(zip(array.dims, array.chunks, strict=True))
            row = math.prod(size for dim, size in inner.items() if dim != "example") * dataset[name].dtype.itemsize
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


def _savable(value: Any) -> Any:
    """An attribute as every format can hold it: a number or a text."""
    return value if isinstance(value, str | int | float) else canonical_json(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _forget_threads() -> None:
    """A forked process has none of its parent's threads, though dask's pools still count on them."""
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
