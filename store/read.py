"""Reading a lake: runs, models and results as lazy, labelled datasets."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from weakref import ref

import numpy as np
import xarray as xr
from zarr.core.sync import sync

from schemas import CorruptLakeError, LakeError, MissingRunError, canonical_json, filled, nearest
from schemas.registry import by_kind, line
from store.columns import HandedOut, Stated
from store.files import COMING, RESULTS, read_bytes
from store.groups import Groups
from store.guard import Guard
from store.labels import name_nearest
from store.layout import RunLayout
from store.location import unwritable
from store.mend import is_result_of
from store.opening import block_shapes, committed_examples, open_group, sharded_array
from store.results import Result, described, handed_out, preferred, state_of, write_result_group
from store.shards import ShardedArray

MODELS_KEPT = 2**30
"""Bytes of read-outs that a lake keeps once they were asked for; of larger ones it keeps the last."""


class Lake(Groups):
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

    def shard_digests(self, run: str) -> dict[str, list[str]]:
        """SHA-256 of the file of each committed shard, by variable: where two runs have the same, they are the same."""
        guard = self._run(run)[1]
        records = [sync(guard.records(shard))[0] for shard in np.flatnonzero(guard.committed()).tolist()]
        return {
            name: [record.digest(number) for record in records] for number, name in enumerate(self.layout(run).arrays())
        }

    def __getitem__(self, run: str) -> xr.Dataset:
        """Lazy dataset of a run's committed examples.

        Dask blocks are whole shards along ``example`` (as many as ``BLOCK_BYTES`` hold), one layer, and one position
        of a state or one block of attention: what one read of the store brings. Where few examples are selected, they
        alone are read, see :class:`store.chunked.LakeArray`.

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
        chunks: Literal["auto"] | int | None = "auto",
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
            A number: dask blocks of no more examples than these. ``None``: without dask, whose tasks take longer than
            the reading where that is of one (layer, position).
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
        dataset = open_group(guard, attributes, stored=stored)
        committed = np.repeat(guard.committed(), layout.shard_examples)[: layout.n_example]
        dataset = dataset.assign(committed=dataset["committed"].variable.copy(data=committed))
        if not uncommitted and not committed.all():
            dataset = committed_examples(dataset, committed)
        if chunks is not None:
            from store.chunked import chunked  # dask's arrays take a third of a second to import

            shapes = block_shapes(dataset, layout, None if chunks == "auto" else chunks)
            variables = {name: dataset.variables[name] for name in shapes}
            dataset = dataset.assign({name: v.copy(data=chunked(v, shapes[name])) for name, v in variables.items()})
        return name_nearest(dataset)

    def activations(self, run: str, variable: str) -> tuple[ShardedArray | HandedOut, np.ndarray]:
        """One activation of a run as it is stored, to be indexed without labels, and the examples that are committed.

        A dataset costs a tenth of a millisecond at each reading for the labels it brings; what reads chunk after chunk
        does without.
        """
        attributes, guard = self._run(run)
        layout = RunLayout.from_json(attributes["layout"])
        array = layout.arrays()[variable]
        examples = np.flatnonzero(np.repeat(guard.committed(), layout.shard_examples)[: layout.n_example])
        if array.shards is not None:
            return sharded_array(guard, array, stored=True), examples
        guard.read_documents()
        stated = Stated.of(guard.documents[guard.arrays()[variable]])
        return HandedOut(guard, variable, stated, stored=True), examples

    def model(self, name: str) -> xr.Dataset:
        """Unembedding, final norm and token strings of a model, loaded; its arrays cannot be written to.

        Raises
        ------
        MissingRunError
            If the model is not in the lake.
        CorruptLakeError
            If one of its files is damaged, or a run of its name was made with other weights.
        """
        identity, known = f"{name} {self.model_attributes(name)['files']}", self.__dict__.get("_models", {})
        if identity not in known:  # a gigabyte for 128,000 tokens, and one analysis asks for it several times
            lazy, known = self.lazy_model(name), dict(known)
            while known and sum(model.nbytes for model in known.values()) + lazy.nbytes > MODELS_KEPT:
                known.pop(next(iter(known)))  # before the next one is read: both would be held
            self.__dict__["_models"] = known
            known = {**known, identity: lazy.load()}
            for variable in known[identity].data_vars.values():  # the next call hands out the same arrays
                variable.values.flags.writeable = False
            self.__dict__["_models"] = known
            arrays = {key: ref(variable.values) for key, variable in known[identity].variables.items()}
            self.__dict__["_handed"] = self.__dict__.get("_handed", {}) | {identity: arrays}
        loaded: xr.Dataset = known[identity].copy()
        loaded.encoding["stored"] = self, name
        return loaded

    def lazy_model(self, name: str) -> xr.Dataset:
        """The same, nothing of it read: for how large it is."""
        attributes = self.model_attributes(name)
        return open_group(Guard(self.place, name, "model", attributes["files"]), attributes, stored=True)

    def still_holds(self, model: xr.Dataset, name: str) -> bool:
        """Whether all arrays of a dataset are those that :meth:`model` handed out: others can read them, too."""
        identity = f"{name} {self.model_attributes(name)['files']}"
        handed = self.__dict__.get("_handed", {}).get(identity, {})
        return all(
            key in handed and variable.chunks is None and variable.values is handed[key]()
            for key, variable in model.variables.items()
        )

    def write_result(
        self, kind: str, dataset: xr.Dataset, *, runs: list[str], spec: Mapping[str, Any], command: Sequence[str] = (),
        beside: Sequence[str] = (),
    ) -> str:  # fmt: skip
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
        beside
            Names of all results that the command makes together, where it is not this one alone.

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
        name, attributes = described(kind, dataset, runs, spec, inputs, command, beside)
        try:
            write_result_group(self.place, name, dataset, attributes)
        except LakeError:
            raise
        except Exception as error:  # of a file system or, by other names, of an object store
            if not isinstance(error, OSError) and self.folder is not None:
                raise
            raise unwritable(self.location, error) from error
        return name

    def results(self, kind: str | None = None) -> list[Result]:
        """Stored analyses, of one kind or of all, in order of their names."""
        kinds = [kind] if kind is not None else self.children(RESULTS)
        places = [f"{RESULTS}/{folder}/{child}" for folder in kinds for child in self.children(f"{RESULTS}/{folder}")]
        results = []
        for name in dict.fromkeys(place.removesuffix(COMING) for place in places):
            place, attributes = self.result_place(name)
            if attributes is not None and attributes.get("kind") == "result":
                self._check_result(name, attributes)
                results.append(Result.of(name, attributes, self._examples_of(place, attributes)))
        return results

    def result_place(self, name: str) -> tuple[str, dict[str, Any] | None]:
        """Group in which a result lies, and its attributes: while it is replaced, for a moment beside its own."""
        for place in (name, f"{name}{COMING}", name):
            if (attributes := self._document(place, "result")) is not None:
                return place, attributes
        return name, None

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
            result
            for result in self.results(kind)
            if run in result.runs and all(result.spec.get(key) == value for key, value in spec.items())
        ]
        if not results:
            wanted = f" with {canonical_json(spec)}" if spec else ""
            how = self._made_by(kind, [run])
            raise MissingRunError(f"{self.location}: {run} has no result of kind {kind!r}{wanted}; {how}")
        return preferred(results)[0]

    def _made_by(self, kind: str, runs: Sequence[str]) -> str:
        """The command that makes a kind of result; of an unknown kind, which there are."""
        command = filled(line(kind), self.location, runs)
        return f"{command} makes it" if command else f"there are {', '.join(by_kind())}{nearest(kind, list(by_kind()))}"

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
            there = f"there are {', '.join(names)}" if names else self._made_by(kind, runs)
            raise MissingRunError(f"{self.location}: {how} {wanted}; {there}")
        return self.open_result(fitting[0].name)

    def open_result(self, name: str, *, load: bool = True) -> xr.Dataset:
        """Stored analysis by its name or the beginning of its fingerprint, loaded or lazy.

        ``attrs`` carry settings and fingerprints.

        Raises
        ------
        MissingRunError
            If no result is called so, and none or several begin so.
        """
        if re.fullmatch("[0-9a-f]{6,64}", name):
            fitting = [result.name for result in self.results() if result.fingerprint.startswith(name)]
            name = fitting[0] if len(fitting) == 1 else name
        before = state_of(self.store, name)
        place, attributes = self.result_place(name)
        if attributes is None or attributes.get("kind") != "result":
            raise MissingRunError(
                f"{self.location} has no result {name!r}" + nearest(name, [result.name for result in self.results()])
            )
        self._check_result(name, attributes)
        guard = Guard(self.place, place, "result", attributes["files"])
        told = {key: handed_out(value) for key, value in attributes["attrs"].items()}
        told |= {key: attributes[key] for key in ("result", "runs", "spec", "inputs", "fingerprint")}
        try:
            result = open_group(guard, attributes, told, stored=self.stored)
            return name_nearest(result.load() if load else result)
        except CorruptLakeError:
            if state_of(self.store, name) == before:
                raise
        return self.open_result(name, load=load)  # it was replaced meanwhile

    def result_digests(self, name: str) -> dict[str, str]:
        """SHA-256 of each file of a stored analysis: two results with the same are the same."""
        return dict((self.result_place(name)[1] or {}).get("files", {}))

    def _check_result(self, name: str, attributes: Mapping[str, Any]) -> None:
        if not is_result_of(name, attributes):
            self._fail(name, "result", "is that of another result")


def open_lake(location: str | os.PathLike[str], *, stored: bool = False) -> Lake:
    """Open a lake for reading.

    What it hands out is meant for the first line one writes:

    - *The stored value or an error.* What the record has is never fill: a file that is lost, damaged, cut short, older
      or another shard's is a :class:`CorruptLakeError` that names it and the command that mends it, at the first
      reading that needs it (a ``RemovedError`` if the whole was removed or made anew). Examples that no writer has
      finished are left out (``lake.open(run, uncommitted=True)`` keeps them, as fill, with ``committed`` false). A
      shard written again meanwhile is the old or the new one. (In older lakes, without checksums of chunks, a shard's
      file is read whole at first; on an object store its size and own checksums are compared.)
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
