"""Removing a run, a model or a result: gone for every reader at once, and then from the disk."""

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from zarr.core.sync import sync

from schemas import MODEL_VARIABLES, LakeError, MissingRunError, UsageError
from store.claim import CLAIMED, ShardClaim, lake_lock
from store.files import COMING, RECORD, REMOVED, RESULTS, flush_folders, read_bytes, settle
from store.location import local_path, open_store
from store.read import Lake
from store.results import remove_group
from store.select import select_result


@dataclass(frozen=True, kw_only=True, slots=True)
class Removable:
    """Something that can be taken out of a lake by itself."""

    name: str
    """Group below the lake."""
    kind: Literal["run", "model", "result"]
    results: tuple[str, ...] = ()
    """Results that were computed from it; they stay."""


def select_removable(lake: Lake, words: list[str]) -> Removable:
    """What somebody wants to remove: damaged things can be named, too.

    ``words`` name a run, a model or a result, or are what else names one result (:func:`store.select.select_result`).

    Raises
    ------
    MissingRunError
        If nothing or several things are named so.
    UsageError
        If it is a model that has runs.
    """
    name = " ".join(words)
    if name in lake.runs():
        using = tuple(result.name for result in lake.results() if name in result.runs)
        return Removable(name=name, kind="run", results=using)
    left = name in _left(lake)
    if left and "/" in name:
        return Removable(name=name, kind="run")
    if left or name in lake.models():
        if runs := [child for child in lake.children(name) if child not in MODEL_VARIABLES]:
            raise UsageError(
                f"{lake.location}: model {name} has {', '.join(f'{name}/{run}' for run in runs)}; remove"
                f" {'it' if len(runs) == 1 else 'them'} first: a run's states cannot be read out without its model"
            )
        return Removable(name=name, kind="model")
    if name in (
        f"{RESULTS}/{kind}/{child.removesuffix(COMING)}"
        for kind in lake.children(RESULTS)
        for child in lake.children(f"{RESULTS}/{kind}")
    ):
        return Removable(name=name, kind="result")
    try:
        return Removable(name=select_result(lake, words).name, kind="result")
    except MissingRunError as error:
        there = f"runs {', '.join(lake.runs()) or 'none'}; models {', '.join(lake.models()) or 'none'}"
        raise MissingRunError(f"{error}; there are {there}") from error


def _left(lake: Lake) -> list[str]:
    """Models and runs on an object store, those too of which a stopped removal took the documents and nothing else."""
    if lake.folder is not None:
        return []
    models = [name for name in lake.children("") if name != RESULTS]
    runs = (f"{model}/{name}" for model in models for name in lake.children(model) if name not in MODEL_VARIABLES)
    return [*models, *runs]


def remove(location: str | os.PathLike[str], removable: Removable) -> None:
    """Remove a run, a model or a result.

    On a local disk its folder is renamed first, at once and durably, to where no reader looks; what a killed process
    leaves there goes with the next removal or extraction. On an object store the documents go first, without which
    nothing can be opened, and the same removal again takes what a killed one left.

    Raises
    ------
    LakeError
        If a process is writing the run, or it is a link to another place.
    OSError
        If the lake cannot be written; nothing is removed then.
    """
    folder = local_path(location)
    if folder is None:
        store = open_store(location, read_only=False)
        if removable.kind == "result":
            remove_group(store, f"{removable.name}{COMING}")
        for key in (f"{removable.name}/{RECORD}/zarr.json", f"{removable.name}/zarr.json"):
            if read_bytes(store, key) is not None:
                sync(store.delete(key))
        sync(store.delete_dir(removable.name))
        return
    if (place := folder / removable.name).is_symlink():
        raise LakeError(
            f"{location}: {removable.name} is a link to {place.resolve()}, and what lies there would stay; remove it"
            " there first, then the link"
        )
    away = folder / REMOVED / uuid4().hex
    with lake_lock(location), ExitStack() as claims:
        if removable.kind == "run":
            _claim(Lake(location), removable.name, claims)
        settle(folder)
        away.mkdir(parents=True)
        (folder / removable.name).rename(away / "group")
        flush_folders(folder, [f"{removable.name}/", f"{REMOVED}/{away.name}/group"])
    shutil.rmtree(folder / REMOVED, ignore_errors=True)


def _claim(lake: Lake, run: str, claims: ExitStack) -> None:
    """Hold all shards of a run, of which the documents are whole.

    Raises
    ------
    LakeError
        If another process holds one.
    """
    path = None if lake.folder is None else lake.folder / run / CLAIMED
    try:
        n_shard = lake.layout(run).n_shard
    except LakeError:
        return  # damaged: no writer goes on with it
    for shard in range(n_shard):
        if not claims.enter_context(ShardClaim(path, shard)):
            raise LakeError(f"{lake.location}: another process is writing {run}; stop it first, nothing was removed")
