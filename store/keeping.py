"""Results that a command makes: stored with the command, and what is kept beside the lake while it is at work."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from schemas import RemovedError, UnwritableLakeError
from schemas.command import Shell
from store.read import Lake


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A result that a command has made."""

    kind: str
    data: xr.Dataset
    spec: Mapping[str, Any]
    name: str | None
    """In the lake; ``None`` where that cannot be written."""
    lost: bool = False
    """Whether it should be in the lake, and is not: the disk is full, or fails."""


def keep(
    lake: Lake, kind: str, data: xr.Dataset, runs: Sequence[str], spec: Mapping[str, Any], shell: Shell,
    beside: Sequence[str] = (), *, read: Mapping[str, str],
) -> Kept:  # fmt: skip
    """Store a result with the command that made it; that a lake cannot be written is said, and the result handed on.

    ``beside`` is as :meth:`Lake.write_result` takes it, ``read`` has the fingerprints of the runs that were read.

    Raises
    ------
    RemovedError
        If another run is in the place of one that was read.
    """
    lost = False
    check_still(lake, kind, read)
    try:
        command = shell.words(runs)
        name = lake.write_result(kind, data, runs=list(runs), spec=dict(spec), command=command, beside=beside)
    except UnwritableLakeError as error:
        shell.note(str(error))
        name, lost = None, not error.read_only
    return Kept(kind=kind, data=data, spec=spec, name=name, lost=lost)


def check_still(lake: Lake, kind: str, read: Mapping[str, str]) -> None:
    """Raise ``RemovedError`` if a run is not the one that was read, by its fingerprint: a result is of the latter."""
    for run, mark in read.items():
        if lake.attributes(run)["fingerprint"] != mark:
            raise RemovedError(
                f"{lake.location}: {run} was made anew while {kind} was computed from what it held before; nothing is"
                " kept, give the command again"
            )


def working_folder(lake: Lake, name: str, run: str) -> Path | None:
    """Folder beside a lake on disk for finished pieces of a command at work; none where nothing can be written."""
    place = lake.folder
    if place is None or not os.access(place.parent, os.W_OK):
        return None
    return place.with_name(f"{place.name}.{name}") / run.replace("/", ".")


def remove_folder(folder: Path | None) -> None:
    """Remove the pieces that a finished command kept while it was at work, and the folder above if it is empty then."""
    if folder is not None and folder.parent.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
