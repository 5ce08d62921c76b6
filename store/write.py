"""Writing a lake: groups written whole, then shards, each made durable and recorded before it counts."""

import fnmatch
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from zarr.abc.store import Store

from schemas import SchemaError, UsageError, fingerprint
from store.blocks import BlockArray
from store.check import check_model, check_place, check_run, differences, has_keys, lake_format, run_identity
from store.claim import CLAIMED, ShardClaim, lake_lock
from store.encode import ShardFile, encode_column, encode_shard, encoders
from store.files import (
    LEFTOVER,
    RECORD,
    RESULTS,
    Replacement,
    assemble,
    digests_of,
    group_document,
    read_bytes,
    read_group,
    settle,
    unseal,
    write_files,
)
from store.layout import SHARDED_VARIABLES, RunLayout
from store.location import local_path, open_store, place_of
from store.processes import FileProcesses, ProcessFile
from store.record import PARTS, RunRecord, ShardRecord
from store.skeleton import model_arrays, record_arrays, run_arrays

SHARDED_FILES = (*SHARDED_VARIABLES, "committed", *(f"{RECORD}/{part}" for part in PARTS))
"""Arrays of a run that grow shard by shard; everything else is written when the run is created."""
Encoded = dict[str, ShardFile]
"""A shard's file by sharded variable."""


def ensure_lake(location: str | os.PathLike[str], *, rebuild: bool = False) -> Store:
    """Open a lake for writing, creating it where there is none. Call it under :func:`store.claim.lake_lock`.

    With ``rebuild`` the lake's own document is written again if it is damaged.

    Raises
    ------
    UsageError
        If something else lies there, or a lake of a newer format.
    """
    store = open_store(location, read_only=False)
    folder = local_path(location)
    content = read_bytes(store, "zarr.json")
    if content is None or (rebuild and unseal(content) is None):
        write_files(store, "", assemble({"kind": "lake", "format": lake_format(store)}), folder)
    if folder is not None:
        _sweep(folder)
    return store


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written of groups; shards' files are their writers' business."""
    settle(folder)
    for parent, children, files in os.walk(folder):  # plain text: every write of a result comes by here
        for name in fnmatch.filter(files, LEFTOVER):
            Path(parent, name).unlink(missing_ok=True)
        sharded = parent.replace(os.sep, "/").endswith(SHARDED_FILES)
        children[:] = [name for name in children if not (sharded and name in ("c", "next"))]
        if "zarr.json" in files and Path(parent).parts[-3:-2] == (RESULTS,):
            children.clear()  # the document of a result comes after all else of it


def write_model(
    location: str | os.PathLike[str],
    name: str,
    arrays: Callable[[], Mapping[str, Any]],
    attributes: Mapping[str, Any],
    *,
    rebuild: bool = False,
) -> None:
    """Put what offline lenses need of a model into a lake, once.

    Parameters
    ----------
    location
        Lake; created where there is none.
    name
        Model's name, the first half of its runs' names.
    arrays
        Gives ``unembedding`` (vocabulary, hidden), ``final_norm_weight`` and ``final_norm_bias`` (hidden),
        ``token_string`` (vocabulary); called only where the lake has them not yet.
    attributes
        At least ``fingerprint``: digests of weights and tokenizer.
    rebuild
        Write again what is damaged.

    Raises
    ------
    SpecMismatchError
        If the lake holds another model under that name.
    """
    if not rebuild:
        check_place(location)
        check_model(location, name, attributes)
    with lake_lock(location, name, fingerprint(attributes["fingerprint"])):
        store = ensure_lake(location, rebuild=rebuild)
        if not rebuild and read_group(store, name) is not None:
            check_model(location, name, attributes)  # another process may have written it meanwhile
            return
        contents = assemble({"kind": "model", "model": name, **attributes}, model_arrays(arrays()), files={})
        write_files(store, name, contents, local_path(location))


class RunWriter:
    """Writes the shards of one run. Make one with :func:`create_run`.

    A shard counts once its files are durable, their digests recorded, and its examples marked ``committed``, in this
    order. Only whole shards are written, each under a claim that a second process on the same machine cannot take.

    Parameters
    ----------
    location
        Lake.
    run
        ``MODEL/DATASET``.
    """

    def __init__(self, location: str | os.PathLike[str], run: str) -> None:
        self.location = place_of(location)
        self.run = run
        self.folder = local_path(self.location)
        self.store = open_store(self.location, read_only=False)
        attributes = read_group(self.store, run)
        if attributes is None:
            raise UsageError(f"{location} has no run {run!r}; create it first")
        self.layout = RunLayout.from_json(attributes["layout"])
        listed = (read_group(self.store, f"{run}/{RECORD}") or {}).get("files", {})
        self.record = RunRecord(self.layout, checksums="crc32c/zarr.json" in listed)

    def committed(self) -> np.ndarray:
        """Which shards are committed: (shard,) bool. Not one whose mark is damaged or that is replaced in part."""
        return np.array([self.is_committed(shard) for shard in range(self.layout.n_shard)], dtype=bool)

    def is_committed(self, shard: int) -> bool:
        """Whether one shard is committed."""
        keys = (f"{self.run}/{self.record.keys(shard)[mark]}" for mark in ("mark", "next"))
        return [read_bytes(self.store, key) for key in keys] == [self.record.mark(shard), None]

    def add_provenance(self, facts: Mapping[str, Any]) -> None:
        """Add a writer's facts to ``provenance.others``, unless the creator's or another writer's are the same.

        What the first of two equal writers called the data file is no difference.
        """
        with lake_lock(self.location):
            attributes = unseal(read_bytes(self.store, f"{self.run}/zarr.json") or b"")
            if attributes is None:
                return  # damaged: lake verify says so
            creator = attributes["provenance"]
            known = [{key: creator.get(key) for key in facts}, *creator.get("others", [])]
            if all(differences(run, {**facts, "data": run.get("data")}) for run in known):
                attributes["provenance"] = creator | {"others": [*creator.get("others", []), dict(facts)]}
                write_files(self.store, self.run, {"zarr.json": group_document(attributes)}, self.folder)

    def claim(self, shard: int) -> ShardClaim:
        """Context manager that holds a shard for this process; false inside if another process has it."""
        return ShardClaim(None if self.folder is None else self.folder / self.run / CLAIMED, shard)

    def empty(self, shard: int) -> dict[str, Any]:
        """Arrays for a shard's values that hold nothing yet; see :meth:`RunLayout.empty`."""
        rows = self.layout.shard_slice(shard)
        return self.layout.empty(rows.stop - rows.start)

    def encode(self, shard: int, values: Mapping[str, np.ndarray | BlockArray]) -> Encoded:
        """Compress for :meth:`write_encoded` what one shard is to hold, on all cores.

        ``values`` has an array for each sharded variable, with the shard's examples first.

        Raises
        ------
        SchemaError
            If an array is missing or has another shape.
        """
        with encoders() as pool, ThreadPoolExecutor(len(values)) as files:
            encoded = self._encoding(shard, values, pool)
            list(files.map(ShardFile.collect, encoded.values()))
        return encoded

    def _encoding(self, shard: int, values: Mapping[str, np.ndarray | BlockArray], pool: ThreadPoolExecutor) -> Encoded:
        """Files of a shard that are encoded as they are written."""
        rows = self.layout.shard_slice(shard)
        encoded: Encoded = {}
        for name, array in self.layout.arrays().items():
            expected = (rows.stop - rows.start, *array.shape[1:])
            if name not in values or values[name].shape != expected:
                shape = values[name].shape if name in values else "nothing"
                raise SchemaError(f"shard {shard} of {self.run}: {name} has shape {shape}; expected {expected}")
            value = values[name]
            if array.shards is not None and not isinstance(value, BlockArray):
                value = BlockArray.of(value, array.dtype, array.fill)
            if isinstance(value, BlockArray):
                encoded[name] = encode_shard(array, value, pool)
            else:
                column = value.astype(np.dtypes.StringDType()) if array.dtype == "string" else value
                encoded[name] = encode_column(array, column)
        return encoded

    def write_encoded(self, shard: int, encoded: Encoded) -> int:
        """Write, make durable, record and commit one shard; one that is there is replaced at once, by a whole one.

        ``encoded`` is from :meth:`encode`.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        OSError
            If the disk is full; the shard is then as it was.
        """
        self._sweep(shard)
        keys = {name: f"{self.run}/{key}" for name, key in self.record.keys(shard).items()}
        with self._replacement() as files, self._replacement() as record, self._replacement() as coming:
            # Each file is put together, hashed and written by a thread of its own: one for all would be slower than
            # the encoders and the disk.
            with ThreadPoolExecutor(len(encoded)) as threads:
                places = {name: f"{self.run}/{name}/{array.key(shard)}" for name, array in self.layout.arrays().items()}
                list(threads.map(lambda name: encoded[name].put(files, places[name]), places))
            parts = self.record.encode(self._recorded(encoded))
            for part, content in parts.items():
                record.add(keys[part], [content])
            coming.add(keys["next"], [*parts.values()])
            coming.publish()
            files.publish()
            record.publish()
            record.add(keys["mark"], [self.record.mark(shard)])
            record.publish()
            coming.add(keys["next"], [])
            coming.publish()
        return sum(encoded[name].size for name in self.layout.arrays())

    def _recorded(self, encoded: Encoded) -> ShardRecord:
        """What the record is to say of a shard."""
        files = [encoded[name] for name in self.layout.arrays()]
        checksums = [np.ravel(np.asarray(encoded[name].checksums)) for name in self.record.places]
        rows = [np.ravel(np.asarray(encoded[name].rows)) for name in self.record.row_places]
        if rows:
            checksums.append(np.array([google_crc32c.value(np.concatenate(rows).astype("<u4").tobytes())]))
        return ShardRecord(
            sha256=np.array([list(file.digest() if file.size else bytes(32)) for file in files]),
            size=np.array([file.size or -1 for file in files]),
            crc32c=np.concatenate(checksums),
            row_crc32c=np.concatenate(rows) if rows else None,
        )

    def _replacement(self) -> Replacement:
        return Replacement(self.store, self.folder)

    def write_shard(
        self, shard: int, values: Mapping[str, np.ndarray | BlockArray], processes: FileProcesses | None = None
    ) -> int:
        """Encode and write one shard, side by side; see :meth:`write_encoded`.

        On a local disk processes may do it instead of threads of this one; blocks are let go of as they are copied.
        """
        with encoders() as pool:
            encoded = self._encoding(shard, values, pool)
            if processes is not None and self.folder is not None:
                arrays = self.layout.arrays()
                blocks = {name: value for name, value in values.items() if isinstance(value, BlockArray)}
                encoded |= {name: ProcessFile(arrays[name], value, processes) for name, value in blocks.items()}
            return self.write_encoded(shard, encoded)

    def _sweep(self, shard: int) -> None:
        """Remove what a killed writer left half-written of a shard."""
        if self.folder is not None:
            for name, below in product(SHARDED_FILES, ("c", "next")):
                folder = self.folder / self.run / name / below
                for left in (*folder.glob(f"{shard}/**/{LEFTOVER}"), *folder.glob(f"{shard}.{LEFTOVER}")):
                    left.unlink(missing_ok=True)


def create_run(
    location: str | os.PathLike[str],
    run: str,
    layout: RunLayout,
    *,
    identity: Mapping[str, Any],
    columns: Mapping[str, tuple[tuple[str, ...], Any]],
    provenance: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    rebuild: bool = False,
) -> RunWriter:
    """Create a run, or take up one that was made from the same things.

    Parameters
    ----------
    location
        Lake; created where there is none.
    run
        ``MODEL/DATASET``.
    layout
        Axes.
    identity
        What decides the run's values: ``spec``, and the fingerprints of weights, tokenizer and data. Hashed into the
        run's ``fingerprint``.
    columns
        Dims and values of everything known beforehand: ``example``, ``problem``, ``variant``, ``question``,
        ``gold_answer``, ``intermediate_result``, ``operation`` and further columns of the data.
    provenance
        Facts that move numbers only by rounding (versions, device, threads); kept as the creator had them, and those of
        other writers beside them (:meth:`RunWriter.add_provenance`).
    precision
        What the run's compute type loses; kept as the creator had it.
    rebuild
        Write again what is damaged of the run's own documents and coordinates; shards stay.

    Returns
    -------
    RunWriter

    Raises
    ------
    SpecMismatchError
        If the run exists and was made from something else; the differences are named.
    SchemaError
        If a column has the name of an array that the run has of its own.
    """
    clash = sorted({RECORD, *(name for name, _ in run_arrays(layout, {}))} & set(columns))
    if clash:
        raise SchemaError(f"columns {', '.join(clash)} of {run!r} have names of the run's own arrays; rename them")
    check_run(location, run, layout, identity, rebuild=rebuild)
    wanted = run_identity(open_store(location), run, layout, identity)
    with lake_lock(location, run, fingerprint(wanted)):
        check_run(location, run, layout, identity, rebuild=rebuild)  # another process may have made it meanwhile
        store, folder = ensure_lake(location, rebuild=rebuild), local_path(location)
        content = read_bytes(store, f"{run}/zarr.json")
        existing = None if content is None else unseal(content)
        if content is None or rebuild:
            if content is None and not rebuild and folder is not None and (folder / run).exists():
                shutil.rmtree(folder / run)  # a run whose creation was cut short: no shard is ever written before
            precision = existing.get("precision") if existing else precision
            attributes = {
                "kind": "run",
                "run": run,
                **wanted,
                "answer_kind": layout.answer_kind,
                "fingerprint": fingerprint(wanted),
                "provenance": dict(existing["provenance"] if existing else provenance or {}),
                **({"precision": dict(precision)} if precision else {}),
                "coordinates": "problem variant segment offset",
            }
            contents = assemble(attributes, run_arrays(layout, columns))
            record = {"kind": "record", "run": run, "fingerprint": attributes["fingerprint"]}
            files = {f"../{key}": digest for key, digest in digests_of(contents).items()}
            older = has_keys(store, f"{run}/committed/c/") and not has_keys(store, f"{run}/{RECORD}/crc32c/")
            arrays = record_arrays(RunRecord(layout, checksums=not older))
            recorded = assemble({**record, "variables": list(layout.sharded)}, arrays, files=files)
            write_files(store, f"{run}/{RECORD}", recorded, folder)
            write_files(store, run, contents, folder)
    return RunWriter(location, run)
