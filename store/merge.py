"""Several lakes, as machines wrote them, into one: checked first, copied byte for byte, each file by its digest."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from schemas import LakeError, SpecMismatchError, UsageError, fingerprint
from schemas.progress import Progress
from store.check import check_holds, check_model, check_place, differences
from store.claim import lake_lock
from store.encode import ShardFile
from store.files import RECORD, RESULTS, join, read_bytes, read_group, unseal, write_files
from store.guard import Guard
from store.location import local_path, open_store
from store.read import Lake
from store.record import DamagedFile, ShardRecord
from store.results import put_result
from store.write import RunWriter, ensure_lake

PIECE_BYTES = 2**24
MADE_FROM = ("spec", "weights", "tokenizer", "tokenizer_files", "data", "layout", "format", "fingerprint")
"""Attributes of a run in which two of one name must agree."""


@dataclass(kw_only=True, slots=True)
class Merged:
    """What became of one model, run or result of a lake."""

    name: str
    source: str
    """Lake it came from."""
    copied: int = 0
    """Groups, of a run shards, that were copied."""
    there: int = 0
    """Those that were there already, the same."""
    kept: int = 0
    """Those that were there with other content, which stays: another machine's rounding, or another analysis."""


def merge(sources: Sequence[Lake], into: str | os.PathLike[str], progress: Progress | None = None) -> list[Merged]:
    """Copy models, runs and results of lakes into one; a run may have some shards in one lake and some in another.

    All is checked before anything is written, and every file against its digest as it is copied. What is there stays,
    so the same merge goes on where it was stopped. Of a shard or a result that several lakes have, the first one's is
    taken. Memory: one file of a model, and one piece of each file of a shard.

    Parameters
    ----------
    sources
        Lakes; they are only read.
    into
        Folder or URL; created where there is none.
    progress
        Told how many models, runs and results are done, and how many there are.

    Raises
    ------
    SpecMismatchError
        If two models of one name have other weights or tokenizers, or two runs of one name were made otherwise.
    CorruptLakeError
        If a file that is to be copied is damaged.
    LakeError
        If another process writes one of the runs.
    """
    places = [lake.folder for lake in sources]
    target = local_path(into)
    if target is not None and any(place is not None and place.resolve() == target.resolve() for place in places):
        raise UsageError(f"{into} is one of the lakes that are to be merged; name another lake --into")
    check_place(into)
    there = [] if target is not None and not target.exists() else [Lake(into)] if _is_lake(into) else []
    check_agreement([*there, *sources])
    if there:
        for source in sources:
            for run in source.runs():
                check_holds(into, there[0].store, run, source.layout(run))
    with lake_lock(into):
        ensure_lake(into)
    work: list[tuple[Callable[..., Merged], Lake, str]] = []
    for lake in sources:
        work += [(_copy_group, lake, name) for name in lake.models()]
        work += [(_copy_run, lake, run) for run in lake.runs()]
    work += [(_copy_group, lake, result.name) for lake in sources for result in lake.results()]
    done = []
    for number, (copy, lake, name) in enumerate(work):
        done.append(copy(lake, name, into))
        if progress is not None:
            progress(number + 1, len(work))
    return done


def _is_lake(location: str | os.PathLike[str]) -> bool:
    return read_bytes(open_store(location), "zarr.json") is not None


def check_agreement(lakes: Sequence[Lake], runs: Sequence[str] | None = None) -> None:
    """Raise :class:`SpecMismatchError` unless models and runs of one name, all or those of ``runs``, are the same."""
    seen: dict[str, tuple[Lake, Mapping[str, Any]]] = {}
    models = None if runs is None else {run.split("/")[0] for run in runs}
    for lake in lakes:
        compared = [name for name in lake.models() if models is None or name in models]
        made = {f"model {name}": lake.model_attributes(name)["fingerprint"] for name in compared}
        for run in lake.runs():
            if runs is not None and run not in runs:
                continue
            attributes = lake.attributes(run)
            made[f"run {run}"] = {key: attributes[key] for key in MADE_FROM if key in attributes}
        for what, facts in made.items():
            first, before = seen.setdefault(what, (lake, facts))
            if lines := differences(before, facts):
                raise SpecMismatchError(
                    f"{what} of {first.location} and that of {lake.location} were made otherwise ({'; '.join(lines)});"
                    " nothing was written. Keep them in lakes of their own, or extract one again under another name"
                )


class _Files(Mapping[str, bytes]):
    """Files of a group, read when they are asked for and compared with their digests; its own document last.

    ``group`` is their place and ``kind`` what it is of (a run, a model or a result); ``digests`` are SHA-256 by key.
    """

    def __init__(self, lake: Lake, group: str, kind: str, document: bytes, digests: Mapping[str, str]) -> None:
        self.lake, self.group, self.kind = lake, group, kind
        self.contents = {"zarr.json": document}
        self.digests = digests

    def __getitem__(self, key: str) -> bytes:
        if key in self.contents:
            return self.contents[key]
        content = read_bytes(self.lake.store, join(self.group, key))
        if content is None or hashlib.sha256(content).hexdigest() != self.digests[key]:
            problem = "is not there" if content is None else "is not what was written"
            group = self.group.removesuffix(f"/{RECORD}")
            raise Guard(self.lake.place, group, self.kind, {}).error(DamagedFile(key, None, problem))
        return content

    def check(self) -> "_Files":
        """Itself, once every file is known to be whole: so that of a damaged group nothing is written."""
        for key in self:
            self[key]
        return self

    def __iter__(self) -> Iterator[str]:
        return iter([*self.digests, *self.contents])

    def __len__(self) -> int:
        return len(self.digests) + 1


def _copy_group(lake: Lake, name: str, into: str | os.PathLike[str]) -> Merged:
    """Copy a model or a result."""
    merged = Merged(name=name, source=str(lake.location))
    place = lake.result_place(name)[0] if name.startswith(f"{RESULTS}/") else name
    document = read_bytes(lake.store, f"{place}/zarr.json") or b""
    attributes = unseal(document) or {}
    is_model = attributes["kind"] == "model"
    made_from = fingerprint(attributes["fingerprint"] if is_model else attributes["files"])
    with lake_lock(into, name, made_from):
        store, folder = open_store(into, read_only=False), local_path(into)
        if (group := read_group(store, name)) is not None:
            if is_model:
                check_model(into, name, attributes)  # another process may have written it meanwhile
            same = group["files"] == attributes["files"]
            merged.there, merged.kept = int(same), int(not same)
            return merged
        files = _Files(lake, place, attributes["kind"], document, attributes["files"]).check()
        if is_model:
            write_files(store, name, files, folder)
        else:
            put_result(store, folder, name, files)
    merged.copied = 1
    return merged


def _copy_run(lake: Lake, run: str, into: str | os.PathLike[str]) -> Merged:
    """Copy a run's documents where they are not there, and each committed shard that is not."""
    merged = Merged(name=run, source=str(lake.location))
    attributes, guard = lake._run(run)
    record = guard.record
    assert record is not None
    with lake_lock(into, run, attributes["fingerprint"]):
        store, folder = open_store(into, read_only=False), local_path(into)
        if read_group(store, run) is not None:
            check_agreement([Lake(into), lake], [run])  # another process may have made it meanwhile
        else:
            documents = [read_bytes(lake.store, f"{group}/zarr.json") or b"" for group in (f"{run}/{RECORD}", run)]
            digests: dict[str, str] = (unseal(documents[0]) or {})["files"]
            own = {key: digest for key, digest in digests.items() if not key.startswith("../")}
            recorded = _Files(lake, f"{run}/{RECORD}", "run", documents[0], own).check()
            static = _Files(lake, run, "run", documents[1], guard.digests).check()
            write_files(store, f"{run}/{RECORD}", recorded, folder)
            write_files(store, run, static, folder)
    writer = RunWriter(into, run)
    provenance = dict(attributes["provenance"])
    for facts in (*provenance.pop("others", []), provenance):
        writer.add_provenance(facts)
    if writer.record.shapes.keys() != record.shapes.keys():
        raise UsageError(
            f"{run} was written by an older version in {lake.location} or in {into}, without checksums of its chunks;"
            " extract it again in that lake with --rebuild static and its shards"
        )
    target = Lake(into)._run(run)[1]
    for shard in np.flatnonzero(guard.committed()).tolist():
        with writer.claim(shard) as claimed:
            if not claimed:
                raise LakeError(f"{into}: another process is writing {run}; the same merge goes on once it is done")
            wanted = sync(guard.records(shard))[0]
            if writer.is_committed(shard):
                same = np.array_equal(sync(target.records(shard))[0].sha256, wanted.sha256)
                merged.there, merged.kept = merged.there + same, merged.kept + (not same)
            else:
                writer.write_encoded(shard, _shard_files(guard, shard, wanted))
                merged.copied += 1
    return merged


def _shard_files(guard: Guard, shard: int, wanted: ShardRecord) -> dict[str, ShardFile]:
    """Files of a shard as they are to be written again."""
    assert guard.record is not None
    rows, files = guard.rows(shard)[0] if guard.row_places else np.zeros(0), {}
    for number, (name, array) in enumerate(guard.record.layout.arrays().items()):
        file = files[name] = ShardFile()
        if name in guard.places:
            whole = np.zeros(guard.places[name].stop) if wanted.crc32c is None else wanted.crc32c
            file.checksums = whole[guard.places[name]]
        if name in guard.row_places:
            file.rows = rows[guard.row_places[name]]
        if wanted.size[number] >= 0:
            key, size = f"{name}/{array.key(shard)}", int(wanted.size[number])
            file.pieces = _pieces(guard, file, key, shard, size, wanted.digest(number))
    return files


def _pieces(guard: Guard, file: ShardFile, key: str, shard: int, size: int, digest: str) -> Iterator[bytes]:
    """A file, piece by piece.

    Raises
    ------
    CorruptLakeError
        At its end, if it is not what the record says: it then takes no place.
    """
    prototype = default_buffer_prototype()
    for begin in range(0, size, PIECE_BYTES):
        wanted = RangeByteRequest(begin, min(begin + PIECE_BYTES, size))
        piece = sync(guard.store.get(join(guard.group, key), prototype, wanted))
        if piece is None:
            raise guard.error(DamagedFile(key, shard, "is not there"))
        content = piece.to_bytes()
        file.sha256.update(content)
        file.size += len(content)
        yield content
    if file.sha256.hexdigest() != digest:
        raise guard.error(DamagedFile(key, shard, "is not what was written: it does not agree with its digest"))
