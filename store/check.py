"""What has to hold before a lake, a model or a run is written, and what differs where it does not."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from zarr.abc.store import Store
from zarr.core.sync import sync

from schemas import (
    FORMAT_VERSION,
    MODEL_VARIABLES,
    SpecMismatchError,
    UsageError,
    canonical_json,
    device_kind,
    fingerprint,
)
from schemas.whole_files import lake_around
from store.files import LEFTOVER, RECORD, names_below, read_bytes, read_group, unseal
from store.layout import RunLayout
from store.location import local_path, open_store
from store.record import ROWS

MAX_CARDS = 16
"""Cards of one machine, among which the one that made an older run is looked for."""
NEWER_FINGERPRINTS = {"tokenizer_files"}
"""Of a model; lakes that were made earlier do not hold them."""


def check_place(location: str | os.PathLike[str]) -> None:
    """Raise ``UsageError`` if no lake can be made or written at a place; nothing is touched."""
    folder = local_path(location)
    folder = folder if folder is None else folder.resolve()  # of new/../.. there is nothing until new is made
    check_outer(location)
    if folder is not None and not folder.is_dir():
        if folder.exists():
            raise UsageError(f"{location} is a file; a lake is a folder. Name another --lake")
        return
    store = open_store(folder or location)
    check_format(location, store)
    attributes = read_group(store, "")
    if attributes is None and folder is not None:
        known = sorted(child.name for child in folder.iterdir() if not child.match(LEFTOVER))
        if known:
            raise UsageError(
                f"{location} is a folder with other content ({known[0]}, ...) and no lake; name another --lake"
            )
    elif attributes is not None and attributes.get("kind") != "lake":
        raise UsageError(f"{location} is a Zarr group but no lake; name another --lake")


def check_outer(location: str | os.PathLike[str]) -> None:
    """Raise ``UsageError`` if a place for a lake is inside another one."""
    folder = local_path(location)
    if folder is not None and (outer := lake_around(folder.resolve().parent)):
        raise UsageError(f"{location} is inside the lake {outer}, which holds nothing but its own files; name another")


def check_format(location: str | os.PathLike[str], store: Store) -> None:
    """Raise ``UsageError`` if a lake is of a newer format than this version knows; a newer one may seal otherwise."""
    try:
        stated = int(json.loads(read_bytes(store, "zarr.json") or b"")["attributes"]["format"])
    except (ValueError, KeyError, TypeError):
        return
    if stated > FORMAT_VERSION:
        raise UsageError(
            f"{location} has lake format {stated}; this version reads up to {FORMAT_VERSION}. Update activation-lake"
        )


def check_holds(location: str | os.PathLike[str], store: Store, run: str, layout: RunLayout) -> None:
    """Raise ``UsageError`` if a lake is of an older format than a run that is to be in it."""
    if (stated := lake_format(store)) < layout.format:
        raise UsageError(
            f"{location} is a lake of format {stated} and {run} a run of format {layout.format}, which versions"
            " that know this lake do not read; put it into another lake"
        )


def lake_format(store: Store) -> int:
    """Format of a lake; where its own document is damaged, lost or not yet there, the highest of its runs'."""
    stated = (unseal(read_bytes(store, "zarr.json") or b"") or {}).get("format")
    if stated is not None:
        return int(stated)
    runs = (f"{model}/{name}" for model in names_below(store, "") for name in names_below(store, model))
    return max((known for run in runs if (known := run_format(store, run))), default=FORMAT_VERSION)


def run_format(store: Store, run: str) -> int | None:
    """Format of a run by its record, which has it where its own document is damaged; ``None``: no such run."""
    recorded = unseal(read_bytes(store, f"{run}/{RECORD}/zarr.json") or b"")
    return None if recorded is None else 2 if f"{ROWS}/zarr.json" in recorded["files"] else 1


def differences(stated: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two nested records differ, as ``name: found, wanted``."""
    lines = []
    for key in sorted({*stated, *wanted}):
        old, new = stated.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} {_short(old)} there, {_short(new)} asked for")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 40 else text[:12] + ".."


def check_model(location: str | os.PathLike[str], name: str, attributes: Mapping[str, Any]) -> None:
    """Raise ``SpecMismatchError`` if a lake holds another model under a name."""
    folder = local_path(location)
    if folder is not None and not folder.exists():
        return
    existing = read_group(open_store(location), name)
    if existing is None:
        return
    known = existing.get("fingerprint", {})
    asked = {
        name: value
        for name, value in attributes["fingerprint"].items()
        if name not in NEWER_FINGERPRINTS - known.keys()
    }
    lines = differences(known, asked)
    if lines:
        raise SpecMismatchError(
            f"{location} already holds another model called {name!r} ({'; '.join(lines)});"
            " name this one otherwise or use another lake"
        )


def check_run(
    location: str | os.PathLike[str], run: str, layout: RunLayout, identity: Mapping[str, Any], *, rebuild: bool = False
) -> None:
    """Check that a run can be created or taken up; nothing is touched. Parameters as :func:`store.write.create_run`'s.

    Raises
    ------
    SpecMismatchError
        If the run exists and was made from something else; the differences are named.
    UsageError
        If no lake can be at that place.
    """
    if (name := run.partition("/")[2]) in MODEL_VARIABLES:
        raise UsageError(f"a data set cannot be called {name}: that is an array of the model's; give --data NAME=FILE")
    folder = local_path(location)
    if folder is not None and not folder.exists():
        return
    store = open_store(location)
    if not rebuild:
        check_place(location)
    check_holds(location, store, run, layout)
    content = read_bytes(store, f"{run}/zarr.json")
    if content is None or (rebuild and unseal(content) is None):
        # Damaged or lost: the record says what the run's shards were made from.
        recorded = unseal(read_bytes(store, f"{run}/{RECORD}/zarr.json") or b"")
        same = recorded is not None and recorded["fingerprint"] == fingerprint(
            run_identity(store, run, layout, identity)
        )
        if not (same and rebuild) and has_keys(store, f"{run}/committed/c/"):
            why = "lost its zarr.json; give --rebuild static to write it again" if same else (
                "was made otherwise, or its record is damaged too; remove it or name another"
            )  # fmt: skip
            raise SpecMismatchError(f"{location} holds shards of a run {run!r} that {why}")
        return
    attributes = read_group(store, run) or {}
    wanted = run_identity(store, run, layout, identity)
    lines = differences({key: attributes.get(key) for key in wanted}, wanted)
    if lines:
        raise SpecMismatchError(
            f"{location} already holds {run!r}, made otherwise: {'; '.join(lines)}."
            " Use the same settings to go on with it, or another name"
        )


def taken_up(location: str | os.PathLike[str], run: str, layout: RunLayout) -> RunLayout:
    """A layout, in shards of the size that the run has where it is in the lake already, of the format of its lake."""
    folder = local_path(location)
    if folder is not None and not folder.is_dir():
        return layout
    store = open_store(location)
    attributes = unseal(read_bytes(store, f"{run}/zarr.json") or b"") or {}
    if "layout" in attributes:
        known = RunLayout.from_json(attributes["layout"])
        return replace(layout, shard_bytes=known.shard_bytes, format=known.format)
    return replace(layout, format=run_format(store, run) or lake_format(store))


def run_identity(store: Store, run: str, layout: RunLayout, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made from, as the run has it.

    Older versions wrote ``cuda:0`` for ``cuda``, and knew a tokenizer by one of its files.
    """
    wanted = {**identity, "layout": layout.to_json(), "format": layout.format}
    kind = wanted["spec"].get("device", "")
    existing = unseal(read_bytes(store, f"{run}/zarr.json") or b"")
    if existing is not None:
        words = [word for word in [str(existing["spec"].get("device"))] if device_kind(word) == kind]
        unknown = [NEWER_FINGERPRINTS - existing.keys()]
    else:
        words, unknown = [kind, *(f"{kind}:{card}" for card in range(MAX_CARDS))], [set[str](), NEWER_FINGERPRINTS]
    recorded = existing or unseal(read_bytes(store, f"{run}/{RECORD}/zarr.json") or b"") or {}
    for word, newer in product(words, unknown):
        same = {name: value for name, value in wanted.items() if name not in newer}
        same["spec"] = wanted["spec"] | {"device": word}
        if existing is not None or fingerprint(same) == recorded.get("fingerprint"):
            return same
    return wanted


def has_keys(store: Store, prefix: str) -> bool:
    """Whether any file lies below a place."""

    async def any_key() -> bool:
        async for _ in store.list_prefix(prefix):
            return True
        return False

    return sync(any_key())
