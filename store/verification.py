"""Every byte of a lake against its checksum, every shard against the record, the layout against the schema."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from zarr.abc.store import Store

from schemas import MODEL_VARIABLES, UsageError
from schemas.progress import Progress
from store.check import check_format
from store.files import LEFTOVER, RECORD, REMOVED, join, read_bytes, read_size, unseal, without_checksum
from store.labels import missing
from store.large_files import on_disk
from store.layout import SHARDED_VARIABLES, ArrayLayout, RunLayout
from store.location import keys_of, local_path, open_store
from store.mend import (
    analyze_command,
    extract_command,
    foreign_weights,
    has_other_model,
    is_passing,
    is_result_of,
    of_another_place,
)
from store.range_check import CHECKSUM_BYTES
from store.record import ROWS, RunRecord
from store.shard_check import Read, Shard, chunk_checksums, damage_of, is_array

THREADS = 4
LAST = {"lake": "; if a lake push to this place was stopped, give that again: it sends this file last"}
"""What is added of a document that is not there, by the kind of its group."""
FIRST = "; if a lake rm of it was stopped, give that again: there it takes this file first"
"""And of a run's record, in an object store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One thing that is wrong."""

    path: str
    """File below the lake."""
    group: str
    """Run, model or result it belongs to; empty: the lake itself."""
    kind: str
    """Kind of that group: ``lake``, ``model``, ``run``, ``result``; ``weights`` of a run whose model is another one,
    ``stranger`` of a file that the lake knows nothing of."""
    problem: str
    """What was found, and what was expected."""
    shard: int | None = None
    """Shard of the run, where the file belongs to one."""


@dataclass(kw_only=True, slots=True)
class Verification:
    """What was checked, and all that is wrong."""

    files: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Unfinished files of writers at work, or of killed ones; the next writer removes those."""
    incomplete: dict[str, list[int]] = field(default_factory=dict)
    """Shards that no writer has committed, by run."""
    begun: list[str] = field(default_factory=list)
    """Groups of which nothing counts: who writes or removes them is at work, or was stopped."""
    commands: list[str] = field(default_factory=list)
    """What mends it: one command for each run, model or result that is damaged."""


def verify(
    location: str | os.PathLike[str], run: str | None = None, *, progress: Progress | None = None
) -> Verification:
    """Check a lake, or one run of it with its model, byte by byte; everything that is wrong is listed.

    Parameters
    ----------
    location
        Folder or URL.
    run
        ``MODEL/DATASET``; all runs, models and results if absent.
    progress
        Called with files checked and files in all.

    Returns
    -------
    Verification

    Raises
    ------
    UsageError
        If there is no lake, or no such run, or a newer version made it.
    """
    folder = local_path(location)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"there is no lake at {location}; make one with lake extract")
    store = open_store(location)
    check_format(location, store)
    return _Verifier(location, store, folder).verify(run, progress)


class _Verifier:
    def __init__(self, location: str | os.PathLike[str], store: Store, folder: Path | None) -> None:
        self.location = location
        self.store = store
        self.folder = folder
        self.found = Verification()
        self.keys: set[str] = set()
        self.expected: dict[str, tuple[set[str], str, str, int | None]] = {}
        """Digests it may have, group, kind and shard by key."""
        self.shards: list[Shard] = []
        self.known: set[str] = set()
        """Keys that belong here and were looked at otherwise."""
        self.documents: dict[str, bytes | None] = {}
        """Documents that were read: from an object store each reading is a request."""

    def verify(self, run: str | None, progress: Progress | None) -> Verification:
        self.keys = keys_of(self.store)
        if not any(key.endswith("zarr.json") for key in self.keys):
            raise UsageError(f"{self.location} is no lake: it holds no zarr.json at all")
        if "zarr.json" not in self.keys and (inner := self._lake_inside()):
            raise UsageError(f"{self.location} is no lake, but has one in it: {join(str(self.location), inner)}")
        self.found.leftovers = sorted(
            key
            for key in self.keys
            if Path(key).match(LEFTOVER) or key.startswith(f"{REMOVED}/") or is_passing(key, self.keys)
        )
        self.keys -= set(self.found.leftovers)
        groups = self._groups()
        runs = sorted(group for group, kind in groups.items() if kind == "run")
        if run is not None and run not in runs:
            raise missing(self.location, "run", run, runs)
        wanted = {
            group: kind
            for group, kind in groups.items()
            if run is None or group in ("", run, run.split("/")[0])
        }  # fmt: skip
        for group, kind in sorted(wanted.items()):
            if self._is_begun(group, kind, runs):
                continue
            self._document(group, kind)
            if kind == "run":
                self._run(group)
        self._digests(progress)
        if run is None:
            for key in sorted(self.keys - set(self.expected) - self.known):
                owner = max((group for group in groups if group and key.startswith(f"{group}/")), key=len, default="")
                of = f"{groups[owner]} {owner}" if owner else "lake"
                self._wrong(key, owner, "stranger", f"is no file that the {of} knows of; nothing reads it")
        self.found.damage.sort(key=lambda damage: damage.path)
        self.found.commands = [*self._commands()]
        return self.found

    def _lake_inside(self) -> str | None:
        """The first folder that says that it is a lake."""
        documents = (key for key in sorted(self.keys) if key.endswith("/zarr.json"))
        kinds = ((key, (unseal(read_bytes(self.store, key) or b"") or {}).get("kind")) for key in documents)
        return next((key.removesuffix("/zarr.json") for key, kind in kinds if kind == "lake"), None)

    def _groups(self) -> dict[str, str]:
        """Kind of every group, by its place: also of one whose own document is damaged or lost."""
        groups = {"": "lake"}
        for key in self.keys:
            parts = key.split("/")
            if parts[0] == "results":
                for depth in range(1, min(len(parts), 4)):
                    groups["/".join(parts[:depth])] = "result" if depth == 3 else "results"
            elif len(parts) > 3 and parts[2] in (RECORD, "committed"):
                groups["/".join(parts[:2])] = "run"
                groups.setdefault(parts[0], "model")
            elif len(parts) > 2 and parts[1] in MODEL_VARIABLES:
                groups.setdefault(parts[0], "model")
        return groups

    def _wrong(self, path: str, group: str, kind: str, problem: str, shard: int | None = None) -> None:
        self.found.damage.append(Damage(path=path, group=group, kind=kind, problem=problem, shard=shard))

    def _read(self, key: str) -> bytes | None:
        """Content of a document, read once."""
        if key not in self.documents:
            self.documents[key] = read_bytes(self.store, key)
        return self.documents[key]

    def _document(self, group: str, kind: str, below: str = "") -> dict[str, Any] | None:
        """Check a group's own document; expect what it lists."""
        key = join(join(group, below), "zarr.json")
        self.known.add(key)
        content = self._read(key)
        attributes = unseal(content or b"")
        if content is not None:
            self.found.files += 1
            self.found.bytes += len(content)
        expected = "record" if below else kind
        if attributes is None or attributes.get("kind") != expected:
            problem = "does not agree with its own seal" if attributes is None else "is that of another group"
            stopped = LAST.get(kind, "") if not below else FIRST if self.folder is None else ""
            self._wrong(key, group, kind, f"is not there{stopped}" if content is None else problem)
            if group and kind != "results":
                self._unlisted(group, kind, key)
            return None
        if kind == "result" and not is_result_of(group, attributes):
            self._wrong(key, group, kind, "is that of another result")
        for name, digest in attributes.get("files", {}).items():
            listed = join(group, name.removeprefix("../") if below else name)
            if below and not name.startswith("../"):
                listed = join(join(group, below), name)
            self.expected[listed] = ({digest}, group, kind, None)
        return attributes

    def _is_begun(self, group: str, kind: str, runs: list[str]) -> bool:
        """Whether nothing counts of a group: its document comes after all else, then a model's runs or a run's shards.

        On an object store a result is written so, too, and of what is removed the documents go first.
        """
        below = {key for key in self.keys if key.startswith(f"{group}/")}
        counts = f"{group}/zarr.json" in below or kind in ("lake", "results")
        if kind == "model":
            counts |= any(key.startswith(f"{run}/") for run in runs for key in below)
        elif kind == "run":
            marked = any(key.startswith(f"{group}/committed/c/") for key in below)
            counts |= marked and (self.folder is not None or f"{group}/{RECORD}/zarr.json" in below)
        elif kind == "result":
            counts |= self.folder is not None
        if counts:
            return False
        self.found.begun.append(group)
        self.known |= below
        return True

    def _unlisted(self, group: str, kind: str, document: str) -> None:
        """Check the files of a group whose digests are out of reach by their own checksums: they are no strangers."""
        below = {key for key in self.keys if key.startswith(f"{group}/") and key != document}
        if kind == "model":  # whose runs answer for themselves
            below = {key for key in below if key.split("/")[1] in MODEL_VARIABLES}
        for key in sorted(below - self.known):
            name, content = key.removeprefix(f"{group}/"), read_bytes(self.store, key) or b""
            if name in ("zarr.json", f"{RECORD}/zarr.json"):
                continue  # a document by itself
            if name.endswith("/zarr.json"):
                whole = is_array(content)
            else:
                large = kind == "run" and name.split("/")[0] in SHARDED_VARIABLES  # those end with their index alone
                whole = large or without_checksum(content, len(content) - CHECKSUM_BYTES) is not None
            if not whole:
                self._wrong(key, group, kind, "does not agree with its own checksum, or is another file")
        self.known |= below

    def _run(self, run: str) -> None:
        record = self._document(run, "run", RECORD)
        attributes = unseal(self._read(f"{run}/zarr.json") or b"")
        if attributes is None or attributes.get("kind") != "run":
            return
        if record and record["fingerprint"] != attributes.get("fingerprint"):
            for key in (f"{run}/zarr.json", f"{run}/{RECORD}/zarr.json"):
                self._wrong(key, run, "run", "is of another run than the other of run and record")
            return
        model = unseal(self._read(f"{run.split('/')[0]}/zarr.json") or b"")
        if model is not None and has_other_model(attributes, model):
            self._wrong(f"{run}/zarr.json", run, "weights", foreign_weights(run))
        elif moved := of_another_place(run, attributes):
            self._wrong(f"{run}/zarr.json", run, "weights", moved)
        if record is None:
            return
        layout = RunLayout.from_json(attributes["layout"])
        arrays = layout.arrays()
        for name, array in arrays.items():
            self._schema(run, name, array)
        known = RunRecord(layout, checksums="crc32c/zarr.json" in record["files"])
        for shard in range(layout.n_shard):
            self._shard(run, known, shard)

    def _shard(self, run: str, known: RunRecord, shard: int) -> None:
        """Check a shard's record and mark; expect the files that the record has."""
        keys = {name: f"{run}/{key}" for name, key in known.keys(shard).items()}
        files = [f"{run}/{name}/{array.key(shard)}" for name, array in known.layout.arrays().items()]
        self.known |= {*keys.values(), *files}
        contents = {name: read_bytes(self.store, key) if key in self.keys else None for name, key in keys.items()}
        self.found.files += sum(content is not None for content in contents.values())
        problems = [*known.problems(shard, contents)]
        for problem in problems:
            self._wrong(f"{run}/{problem.key}", run, "run", problem.problem, shard)
        if contents["mark"] is None and not problems:
            self.found.incomplete.setdefault(run, []).append(shard)
            return
        if contents["next"] is not None:
            self.found.leftovers.append(keys["next"])
        records = known.records({name: content for name, content in contents.items() if name != ROWS})
        if not records:
            return
        self.shards.append(Shard(run, shard, known, keys, files, records))
        for index, key in enumerate(files):
            digests = {record.digest(index) for record in records if record.size[index] >= 0}
            if key in self.keys or all(record.size[index] >= 0 for record in records):
                self.expected[key] = (digests, run, "run", shard)

    def _schema(self, run: str, name: str, array: ArrayLayout) -> None:
        """Dims, shape and chunks of an array as the schema has them."""
        key = f"{run}/{name}/zarr.json"
        if not self._as_listed(key):
            return  # named for that
        document = json.loads(self._read(key) or b"")
        grid = list(array.shards or array.chunks)
        stated = {
            "dims": (document.get("dimension_names"), list(array.dims)),
            "shape": (document.get("shape"), list(array.shape)),
            "shards": (document.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape"), grid),
            "type": (document.get("data_type"), array.dtype),
        }
        for what, (stated_there, expected) in stated.items():
            if stated_there != expected:
                self._wrong(key, run, "run", f"{what} {stated_there}; the schema has {expected}")

    def _as_listed(self, key: str) -> bool:
        """Whether a file that never changes is as its group says."""
        return hashlib.sha256(self._read(key) or b"").hexdigest() in self.expected[key][0]

    @contextmanager
    def _content(self, key: str, *, large: bool) -> Iterator[Any]:
        """Bytes of a file; a large one on an object store lies on the disk meanwhile, as several are read at once."""
        if (document := self.documents.get(key)) is not None:
            yield document
            return
        size = read_size(self.store, key) if large or self.folder is not None else None
        if not size:
            yield b"" if size == 0 else read_bytes(self.store, key) or b""
            return
        with on_disk(self.store, key, size) as path:
            yield np.memmap(path, mode="r")

    def _digests(self, progress: Progress | None) -> None:
        sharded = {key: shard for shard in self.shards for key in shard.files}
        owner = {digest: key for key, (digests, *_) in self.expected.items() for digest in digests}

        def check(key: str) -> Read | None:
            if key not in self.keys:
                return None
            array = sharded[key].array(key) if key in sharded else None
            with self._content(key, large=array is not None and array.shards is not None) as content:
                checksums = None if array is None or array.shards is None else chunk_checksums(content, array)
                seal = None if key in sharded else without_checksum(bytes(content), len(content) - CHECKSUM_BYTES)
                return Read(len(content), hashlib.sha256(content).hexdigest(), checksums, seal is not None)

        keys, read_files, doubtful = sorted(self.expected), dict[str, Read | None](), set[str]()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="lake-verify") as pool:
            for done, (key, read) in enumerate(zip(keys, pool.map(check, keys), strict=True), start=1):
                digests, group, kind, shard = self.expected[key]
                read_files[key] = read
                if read is not None:
                    self.found.files += 1
                    self.found.bytes += read.size
                if key not in sharded and (problem := damage_of(read, digests, owner)):
                    self._wrong(key, group, kind, problem, shard)
                    if kind == "result" and read is not None and read.sealed and group not in doubtful:
                        doubtful.add(group)
                        self._wrong(f"{group}/zarr.json", group, kind, "or those files are older: it lists others")
                if progress is not None:
                    progress(done, len(keys))
        for each in self.shards:
            for key, problem in each.problems(read_files, owner):
                self._wrong(key, each.run, "run", problem, each.number)

    def _commands(self) -> Iterator[str]:
        broken: dict[tuple[str, str], list[Damage]] = {}
        for damage in self.found.damage:
            broken.setdefault((damage.kind, damage.group), []).append(damage)
        for (kind, group), damages in broken.items():
            if kind == "run":
                parts = sorted({damage.shard for damage in damages if damage.shard is not None})
                what = [*map(str, parts), *(["static"] if any(damage.shard is None for damage in damages) else [])]
                yield extract_command(self.location, self.store, group, ",".join(what))
            elif kind in ("lake", "model"):
                run = next((name for name in self._runs() if kind == "lake" or name.startswith(f"{group}/")), None)
                if run is not None:
                    yield extract_command(self.location, self.store, run, "static")
            elif kind == "result":
                yield analyze_command(self.location, self.store, group)
            elif kind == "results":
                below = sorted(name for name, what in self._groups().items() if what == "result" and group in name)
                remove = shlex.join(["rm", "-f", f"{self.location}/{group}/zarr.json"])
                again = [analyze_command(self.location, self.store, name) for name in below[:1]]
                yield " && ".join([remove, *again])

    def _runs(self) -> Iterable[str]:
        return sorted(group for group, kind in self._groups().items() if kind == "run")
