"""Writing a lake: groups assembled whole, then shards, each made durable and recorded before it counts."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.abc.buffer import Buffer
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from schemas import (
    FORMAT_VERSION,
    MODEL_VARIABLES,
    RUN_VARIABLES,
    SchemaError,
    SpecMismatchError,
    UsageError,
    canonical_json,
    fingerprint,
    position_offset,
    segment_of,
)
from store.claim import ShardClaim
from store.layout import COLUMN_CHUNK, COLUMN_CODECS, SHARDED_VARIABLES, RunLayout
from store.location import local_path, open_store

RECORD = "record"
"""Group below a run that holds the checksum and size of each shard's files."""


class RecordingStore(WrapperStore[Store]):
    """Passes everything on, and keeps the digest and size of every value set through it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: dict[str, tuple[str, int]] = {}

    async def set(self, key: str, value: Buffer) -> None:
        """Store a value and note its SHA-256 and size."""
        await super().set(key, value)
        content = value.to_bytes()
        self.written[key] = (hashlib.sha256(content).hexdigest(), len(content))


def read_bytes(store: Store, key: str) -> bytes | None:
    """Value of a key, or ``None``."""
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()


def set_bytes(store: Store, key: str, content: bytes) -> None:
    """Store a value; on a local disk it appears whole or not at all."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(content)))


def group_document(attributes: Mapping[str, Any], files: Mapping[str, str] | None) -> bytes:
    """A group's ``zarr.json`` that vouches for its static files and for itself.

    Parameters
    ----------
    attributes
        What the group says of itself.
    files
        SHA-256 of each static file, by its key below the group; ``None`` where another group vouches for them.

    Returns
    -------
    bytes
        Canonical JSON; ``attributes.seal`` is the SHA-256 of the same document without ``seal``.
    """
    stated = dict(attributes)
    if files is not None:
        stated["files"] = dict(sorted({**stated.get("files", {}), **files}.items()))
    document = {"zarr_format": 3, "node_type": "group", "attributes": stated}
    stated["seal"] = fingerprint(document)
    return canonical_json(document).encode()


def assemble(
    attributes: Mapping[str, Any], build: Iterable[tuple[str, Mapping[str, Any]]], *, listed: bool = True
) -> dict[str, bytes]:
    """Files of a group with the given arrays, the group's own document last.

    Parameters
    ----------
    attributes
        Attributes of the group.
    build
        Name and ``zarr.Group.create_array`` arguments of each array.
    listed
        Whether the group's own document lists the digests of the others.

    Returns
    -------
    dict
        Content by key below the group, deterministic in its arguments.
    """
    memory = MemoryStore()
    group = zarr.create_group(memory)
    for name, arguments in build:
        group.create_array(name, **arguments)
    contents: dict[str, bytes] = {}
    for key in sorted(memory._store_dict):
        if key != "zarr.json":
            contents[key] = memory._store_dict[key].to_bytes()
    files = {key: hashlib.sha256(content).hexdigest() for key, content in contents.items()}
    contents["zarr.json"] = group_document(attributes, files if listed else None)
    return contents


def column(name: str, values: Any, dims: tuple[str, ...], **attributes: Any) -> tuple[str, dict[str, Any]]:
    """Arguments of a small array whose values are known when its group is made."""
    values = np.asarray(values)
    if values.dtype.kind in "OUT":
        values = values.astype(np.dtypes.StringDType())
    chunks = tuple(max(1, min(size, COLUMN_CHUNK)) for size in values.shape[:1]) + tuple(
        max(1, size) for size in values.shape[1:]
    )
    return name, {
        "data": values,
        "chunks": chunks if values.shape else "auto",
        "compressors": COLUMN_CODECS,
        "dimension_names": dims,
        "attributes": {key: value for key, value in attributes.items() if value},
    }


def write_files(store: Store, prefix: str, contents: Mapping[str, bytes]) -> None:
    """Write a group's files, its own document last: a group that can be opened is whole."""
    for key, content in contents.items():
        set_bytes(store, f"{prefix}/{key}" if prefix else key, content)


def read_group(store: Store, path: str) -> dict[str, Any] | None:
    """Attributes of a group, or ``None`` where there is none."""
    content = read_bytes(store, f"{path}/zarr.json" if path else "zarr.json")
    if content is None:
        return None
    try:
        document = json.loads(content)
        return dict(document["attributes"]) if document["node_type"] == "group" else None
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"{path or 'the lake'}/zarr.json is no Zarr group: {error}; run lake verify") from error


def ensure_lake(location: str | os.PathLike[str]) -> Store:
    """Open a lake for writing, creating it where there is none.

    Raises
    ------
    UsageError
        If something else lies there, or a lake of a newer format.
    """
    store = open_store(location, read_only=False)
    folder = local_path(location)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{location} is a file; a lake is a folder. Name another --lake")
    attributes = read_group(store, "")
    if attributes is None:
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            known = [child.name for child in folder.iterdir() if not child.name.endswith(".partial")]
            if known:
                raise UsageError(f"{location} is a folder with other content ({known[0]}, ...) and no lake; name another --lake")
        write_files(store, "", assemble({"kind": "lake", "format": FORMAT_VERSION}, []))
    elif attributes.get("kind") != "lake":
        raise UsageError(f"{location} is a Zarr group but no lake; name another --lake")
    elif attributes["format"] > FORMAT_VERSION:
        raise UsageError(
            f"{location} has lake format {attributes['format']}; this version reads up to {FORMAT_VERSION}. Update activation-lake"
        )
    return store


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two nested records differ, as ``name: found, wanted``."""
    lines = []
    for key in sorted({*found, *wanted}):
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} {_short(old)} there, {_short(new)} asked for")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 40 else text[:12] + ".."


def write_model(location: str | os.PathLike[str], name: str, arrays: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Put what offline lenses need of a model into a lake, once.

    Parameters
    ----------
    location
        Lake.
    name
        Model's name, the first half of its runs' names.
    arrays
        ``unembedding`` (vocabulary, hidden), ``final_norm_weight`` and ``final_norm_bias`` (hidden), ``token_string``
        (vocabulary).
    attributes
        At least ``fingerprint``: digests of weights and tokenizer.

    Raises
    ------
    SpecMismatchError
        If the lake holds another model under that name.
    """
    store = ensure_lake(location)
    wanted = {"kind": "model", "model": name, **attributes}
    check_model(location, name, attributes)
    if read_group(store, name) is not None:
        return
    build = [
        column(key, np.asarray(arrays[key], dtype=None if variable.dtype == "text" else variable.dtype), variable.dims,
               long_name=variable.long_name, units=variable.units)
        for key, variable in MODEL_VARIABLES.items()
    ]
    write_files(store, name, assemble(wanted, build))


def check_model(location: str | os.PathLike[str], name: str, attributes: Mapping[str, Any]) -> None:
    """Raise ``SpecMismatchError`` if a lake holds another model under a name."""
    folder = local_path(location)
    if folder is not None and not folder.exists():
        return
    found = read_group(open_store(location), name)
    if found is None:
        return
    lines = differences(found.get("fingerprint", {}), attributes["fingerprint"])
    if lines:
        raise SpecMismatchError(
            f"{location} already holds another model called {name!r} ({'; '.join(lines)}); name this one otherwise or use another lake"
        )


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
        self.location = location
        self.run = run
        self.folder = local_path(location)
        self.store = RecordingStore(open_store(location, read_only=False))
        attributes = read_group(self.store, run)
        if attributes is None:
            raise UsageError(f"{location} has no run {run!r}; create it first")
        self.layout = RunLayout.from_json(attributes["layout"])
        self._group = zarr.open_group(self.store, path=run, mode="r+")

    def committed(self) -> np.ndarray:
        """Which shards are committed: (shard,) bool."""
        flags = np.asarray(self._group["committed"][:])  # type: ignore[index]
        return flags[:: self.layout.shard_examples]

    def claim(self, shard: int) -> ShardClaim:
        """Context manager that holds a shard for this process; false inside if another process has it."""
        path = None if self.folder is None else self.folder / self.run / "zarr.json"
        return ShardClaim(path, shard)

    def buffers(self, shard: int) -> dict[str, np.ndarray]:
        """Arrays of a shard's shape filled with what stands for absent entries; untouched pages take no memory."""
        rows = self.layout.shard_slice(shard)
        buffers = {}
        for name, array in self.layout.arrays().items():
            shape = (rows.stop - rows.start, *array.shape[1:])
            if array.dtype == "string":
                buffers[name] = np.full(shape, "", dtype=object)
            elif array.fill == 0:
                buffers[name] = np.zeros(shape, dtype=array.dtype)
            else:
                buffers[name] = np.full(shape, array.fill, dtype=array.dtype)
        return buffers

    def write_shard(self, shard: int, values: Mapping[str, np.ndarray]) -> int:
        """Write, make durable, record and commit one shard.

        Parameters
        ----------
        shard
            Its number.
        values
            One array per sharded variable, with the shard's examples first.

        Returns
        -------
        int
            Bytes written.

        Raises
        ------
        SchemaError
            If an array is missing or has another shape.
        OSError
            If the disk is full; nothing of the shard counts then.
        """
        rows = self.layout.shard_slice(shard)
        self._sweep(shard)
        self.store.written.clear()
        layouts = self.layout.arrays()
        for name, array in layouts.items():
            expected = (rows.stop - rows.start, *array.shape[1:])
            if name not in values or values[name].shape != expected:
                found = values[name].shape if name in values else "nothing"
                raise SchemaError(f"shard {shard} of {self.run}: {name} has shape {found}; expected {expected}")
            block = values[name]
            if array.dtype == "string":
                block = block.astype(np.dtypes.StringDType())
            self._group[name][rows] = block  # type: ignore[index]
        digests = np.zeros((1, len(layouts), 32), dtype=np.uint8)
        sizes = np.full((1, len(layouts)), -1, dtype=np.int64)
        for index, (name, array) in enumerate(layouts.items()):
            written = self.store.written.get(f"{self.run}/{name}/{array.key.format(shard)}")
            if written is not None:
                digests[0, index] = np.frombuffer(bytes.fromhex(written[0]), dtype=np.uint8)
                sizes[0, index] = written[1]
        self._sync()
        record = self._group[RECORD]
        record["sha256"][shard : shard + 1] = digests  # type: ignore[index]
        record["size"][shard : shard + 1] = sizes  # type: ignore[index]
        self._sync()
        self._group["committed"][rows] = True  # type: ignore[index]
        self._sync()
        return int(sizes.clip(min=0).sum())

    def revoke(self, shard: int) -> None:
        """Take back a shard's commitment, so that it is written again."""
        self._group["committed"][self.layout.shard_slice(shard)] = False  # type: ignore[index]

    def _sweep(self, shard: int) -> None:
        """Remove what a killed writer of this shard left half-written."""
        if self.folder is None:
            return
        for name in (*SHARDED_VARIABLES, "committed", f"{RECORD}/sha256", f"{RECORD}/size"):
            for left in (self.folder / self.run / name / "c").glob(f"{shard}/**/*.partial"):
                left.unlink(missing_ok=True)
            for left in (self.folder / self.run / name / "c").glob(f"{shard}.*.partial"):
                left.unlink(missing_ok=True)

    def _sync(self) -> None:
        """Flush what was written to the disk, files first, then the folders that name them."""
        if self.folder is None:
            return
        folders = set()
        for key in self.store.written:
            path = self.folder / key
            if path.exists():
                _fsync(path)
                folders.update(parent for parent in path.parents if parent.is_relative_to(self.folder / self.run))
        for folder in sorted(folders, reverse=True):
            _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_run(
    location: str | os.PathLike[str],
    run: str,
    layout: RunLayout,
    *,
    identity: Mapping[str, Any],
    columns: Mapping[str, tuple[tuple[str, ...], Any]],
    provenance: Mapping[str, Any] | None = None,
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
        Facts that move numbers only by rounding (versions, device, threads); kept as the creator had them.

    Returns
    -------
    RunWriter

    Raises
    ------
    SpecMismatchError
        If the run exists and was made from something else; the differences are named.
    """
    store = ensure_lake(location)
    wanted = {**identity, "layout": layout.to_json(), "format": FORMAT_VERSION}
    found = read_group(store, run)
    if found is not None:
        lines = differences({key: found.get(key) for key in wanted}, wanted)
        if lines:
            raise SpecMismatchError(
                f"{location} already holds {run!r}, made otherwise: {'; '.join(lines)}. Use the same settings to go on with it, or another name"
            )
        return RunWriter(location, run)
    attributes = {
        "kind": "run",
        "run": run,
        **wanted,
        "fingerprint": fingerprint(wanted),
        "provenance": dict(provenance or {}),
        "coordinates": "problem variant segment offset",
    }
    contents = assemble(attributes, _run_arrays(layout, columns), listed=False)
    listed = {f"../{key}": hashlib.sha256(content).hexdigest() for key, content in contents.items()}
    record = {"kind": "record", "variables": list(SHARDED_VARIABLES), "files": listed}
    write_files(store, f"{run}/{RECORD}", assemble(record, _record_arrays(layout)))
    write_files(store, run, contents)
    return RunWriter(location, run)


def _record_arrays(layout: RunLayout) -> Iterable[tuple[str, Mapping[str, Any]]]:
    n_file = len(SHARDED_VARIABLES)
    for name, tail, dtype, fill in (("sha256", (32,), "uint8", 0), ("size", (), "int64", -1)):
        yield name, {
            "shape": (layout.n_shard, n_file, *tail),
            "chunks": (1, n_file, *tail),
            "dtype": dtype,
            "fill_value": fill,
            "compressors": COLUMN_CODECS[1:],
            "dimension_names": ("shard", "file", *(("byte",) if tail else ())),
        }


def _run_arrays(
    layout: RunLayout, columns: Mapping[str, tuple[tuple[str, ...], Any]]
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, (dims, values) in columns.items():
        known = RUN_VARIABLES.get(name)
        yield column(name, values, dims, long_name=known.long_name if known else "", units=known.units if known else "")
    positions, keys = layout.positions, layout.key_positions
    yield column("layer", np.arange(layout.n_layer), ("layer",))
    yield column("head", np.arange(layout.n_head), ("head",))
    yield column("latent", layout.latents, ("latent",))
    yield column("position", positions, ("position",))
    yield column("key_position", keys, ("key_position",))
    yield column("segment", [segment_of(label) for label in positions], ("position",))
    yield column("offset", [position_offset(label, layout.n_latent) for label in positions], ("position",))
    for name, array in layout.arrays().items():
        known = RUN_VARIABLES[name]
        yield name, {
            "shape": array.shape,
            "chunks": array.chunks,
            "shards": array.shards,
            "dtype": array.dtype,
            "fill_value": array.fill,
            "compressors": array.codecs,
            "dimension_names": array.dims,
            "attributes": {"long_name": known.long_name, "units": known.units},
        }
    yield "committed", {
        "shape": (layout.n_example,),
        "chunks": (layout.shard_examples,),
        "dtype": "bool",
        "fill_value": False,
        "compressors": COLUMN_CODECS[1:],
        "dimension_names": ("example",),
        "attributes": {"long_name": RUN_VARIABLES["committed"].long_name},
    }


def write_dataset(
    store: Store, path: str, dataset: xr.Dataset, attributes: Mapping[str, Any]
) -> None:
    """Write a small labelled dataset as a sealed group, replacing what was there."""
    build = []
    for name in [*dataset.coords, *dataset.data_vars]:
        array = dataset[name]
        dims = tuple(str(dim) for dim in array.dims)
        build.append(column(str(name), array.values, dims, **{k: v for k, v in array.attrs.items() if isinstance(v, str | int | float | bool | list)}))
    sync(store.delete_dir(path))
    coordinates = [str(name) for name in dataset.coords if name not in dataset.dims]
    write_files(store, path, assemble({**attributes, "coordinates": " ".join(coordinates)} if coordinates else attributes, build))


__all__ = ["LocalStore", "RunWriter", "create_run", "write_dataset", "write_model"]
