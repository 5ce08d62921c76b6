"""What tells stored results apart, and which of several to take."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import xarray as xr
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import LocalStore

from schemas import canonical_json, filled, fingerprint
from schemas.meaning import explained
from schemas.words import n_option
from store.claim import lake_lock
from store.files import (
    COMING,
    REMOVED,
    RESULTS,
    assemble,
    column,
    flush_folders,
    read_bytes,
    read_group,
    settle,
    unseal,
    write_files,
)
from store.local_files import identity_of
from store.location import local_path
from store.write import ensure_lake


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
    beside: tuple[str, ...] = ()
    """Names of all results, its own too, that the command made together."""

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any], n_example: int) -> Self:
        """From the attributes of its group."""
        return cls(
            name=name,
            kind=attributes["result"],
            runs=tuple(attributes["runs"]),
            spec=attributes["spec"],
            fingerprint=attributes["fingerprint"],
            inputs=attributes["inputs"],
            command=tuple(attributes.get("command", ())),
            n_example=n_example,
            beside=tuple(attributes.get("beside", ())),
        )

    def describe(self, location: object) -> str:
        """How it differs from others of its kind: number of examples, and its command or settings."""
        how = filled(self.command, location) or f"settings {canonical_json(dict(self.spec))}"
        return f"{self.n_example or 'an unknown number of'} examples, {how}"


def preferred(results: Iterable[Result]) -> list[Result]:
    """Results that all answer one question, the one to take first.

    That is the one over the most examples; of several the one whose command had the fewest options, so that default
    settings come first; then by the settings themselves. Nothing depends on names, which end in a digest.
    """
    return sorted(
        results, key=lambda result: (-result.n_example, n_option(result.command), canonical_json(dict(result.spec)))
    )


def n_example_of(dataset: xr.Dataset) -> int:
    """Examples a result was computed from, as it says itself; 0 where it does not."""
    if "n_example" in dataset.attrs:
        return int(dataset.attrs["n_example"])
    if "example" in dataset.sizes:  # it may hold what is drawn of some of them alone
        return int(dataset.sizes["example"])
    return int(np.nanmax(dataset["n_example"].values)) if "n_example" in dataset.data_vars else 0


def plain(value: Any) -> Any:
    """An attribute as JSON holds it; :func:`handed_out` gives it back."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def handed_out(value: Any) -> Any:
    """An attribute as it was before :func:`plain`: what is not finite is a number again, not its name."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def name_of(kind: str, runs: Sequence[str], spec: Mapping[str, Any]) -> str:
    """Group of a result below the lake."""
    label = "+".join(run.replace("/", ".") for run in runs)
    if len(label) > 80:
        label = f"{len(runs)}-runs"
    return f"{RESULTS}/{kind}/{label}~{fingerprint({'runs': list(runs), 'spec': dict(spec)})[:8]}"


def described(
    kind: str,
    dataset: xr.Dataset,
    runs: Sequence[str],
    spec: Mapping[str, Any],
    inputs: Mapping[str, str],
    command: Sequence[str],
    beside: Sequence[str],
) -> tuple[str, dict[str, Any]]:
    """Name and attributes of a result's group; ``inputs`` are fingerprints of the runs."""
    settings = {"runs": list(runs), "spec": dict(spec)}
    name = name_of(kind, runs, spec)
    attributes = {
        "kind": "result",
        "result": kind,
        **settings,
        "inputs": dict(inputs),
        "fingerprint": fingerprint({"kind": kind, **settings, "inputs": dict(inputs)}),
        "command": list(command),
        "beside": list(beside or (name,)),
        "n_example": n_example_of(dataset),
        "attrs": {key: plain(value) for key, value in dataset.attrs.items()},
    }
    return name, attributes


def state_of(store: Store, name: str) -> list[object]:
    """What changes when a result is replaced, if only by one of the same contents."""
    keys = [f"{place}/zarr.json" for place in (name, f"{name}{COMING}")]
    return [identity_of(store.root / key) if isinstance(store, LocalStore) else read_bytes(store, key) for key in keys]


def write_result_group(
    location: str | os.PathLike[str],
    name: str,
    dataset: xr.Dataset,
    attributes: Mapping[str, Any],
) -> None:
    """Write a small labelled dataset as a sealed group below the lake's results, replacing what was there.

    What its variables are is added where it is known (:func:`schemas.meaning.explained`).
    """
    build, dataset = [], explained(str(attributes["result"]), dataset)
    for key in [*dataset.coords, *dataset.data_vars]:
        array = dataset[key]
        stated = {k: v for k, v in array.attrs.items() if isinstance(v, str | int | float | bool | list)}
        build.append(column(str(key), array.values, tuple(str(dim) for dim in array.dims), **stated))
    coordinates = [str(key) for key in dataset.coords if key not in dataset.dims]
    named = {"coordinates": " ".join(coordinates)} if coordinates else {}
    contents = assemble({**attributes, **named}, build, files={})
    with lake_lock(location):
        put_result(ensure_lake(location), local_path(location), name, contents)


def put_result(store: Store, folder: Path | None, name: str, contents: Mapping[str, bytes]) -> None:
    """Put the files of a result in its place, those of an earlier one away; call it under a lock."""
    parents = name.split("/")[:-1]
    for depth in range(1, len(parents) + 1):
        if read_group(store, "/".join(parents[:depth])) is None:
            write_files(store, "/".join(parents[:depth]), assemble({"kind": "results"}), folder)
    if folder is not None:
        _exchange(store, folder, name, contents)
    else:
        _exchange_remote(store, name, contents)


def _exchange_remote(store: Store, name: str, contents: Mapping[str, bytes]) -> None:
    """Write a group where it counts once the one before is gone, then in its place: stopped anywhere, one is whole."""
    coming = f"{name}{COMING}"
    if (stopped := unseal(read_bytes(store, f"{coming}/zarr.json") or b"")) is not None:
        if read_bytes(store, f"{name}/zarr.json") is None:
            files = [*stopped["files"], "zarr.json"]
            write_files(store, name, {key: read_bytes(store, f"{coming}/{key}") or b"" for key in files}, None)
        remove_group(store, coming)
    replaces = read_bytes(store, f"{name}/zarr.json") is not None
    if replaces:
        write_files(store, coming, contents, None)
    remove_group(store, name)
    write_files(store, name, contents, None)
    if replaces:
        remove_group(store, coming)


def remove_group(store: Store, name: str) -> None:
    """Remove a group of an object store, its document first: nobody opens a part of it."""
    if read_bytes(store, f"{name}/zarr.json") is not None:
        sync(store.delete(f"{name}/zarr.json"))
    sync(store.delete_dir(name))


def _exchange(store: Store, folder: Path, name: str, contents: Mapping[str, bytes]) -> None:
    """Write a group where no reader looks, then put it in its place: stopped anywhere, one is whole and found."""
    away, place = f"{REMOVED}/{uuid4().hex}", folder / name
    coming = place.with_name(f"{place.name}{COMING}")
    try:
        write_files(store, f"{away}/new", contents, folder)
        if place.exists():
            (folder / away / "new").rename(coming)
            flush_folders(folder, [f"{name}/"])
            place.rename(folder / away / "old")
            coming.rename(place)
        else:
            (folder / away / "new").rename(place)
        flush_folders(folder, [f"{name}/"])
    finally:
        settle(folder)
