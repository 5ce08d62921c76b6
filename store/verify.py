"""Every byte of a lake against its checksum, every shard against the record, the layout against the schema."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store
from zarr.core.sync import sync

from schemas import COMMANDS, MissingRunError, UsageError, canonical_json, filled
from store.files import LEFTOVER, RECORD, join, read_bytes, unseal
from store.layout import ArrayLayout, RunLayout
from store.location import local_path, open_store
from store.record import RunRecord

THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One thing that is wrong."""

    path: str
    """File below the lake."""
    group: str
    """Run, model or result it belongs to; empty: the lake itself."""
    kind: str
    """Kind of that group: ``lake``, ``model``, ``run``, ``result``."""
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
    """Unfinished files of writers at work, or of killed ones; the next extraction removes those."""
    incomplete: dict[str, list[int]] = field(default_factory=dict)
    """Shards that no writer has committed, by run."""
    commands: list[str] = field(default_factory=list)
    """What mends it: one command for each run, model or result that is damaged."""


def verify(
    location: str | os.PathLike[str], run: str | None = None, *, progress: Callable[[int, int], None] | None = None
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
        If there is no lake, or no such run.
    """
    folder = local_path(location)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"there is no lake at {location}; make one with lake extract")
    return _Verifier(location, open_store(location), folder).verify(run, progress)


class _Verifier:
    def __init__(self, location: str | os.PathLike[str], store: Store, folder: Path | None) -> None:
        self.location = location
        self.store = store
        self.folder = folder
        self.found = Verification()
        self.keys: set[str] = set()
        self.expected: dict[str, tuple[set[str], str, str, int | None]] = {}
        """Digests it may have, group, kind and shard by key."""
        self.known: set[str] = set()
        """Keys that belong here and were looked at otherwise."""

    def verify(self, run: str | None, progress: Callable[[int, int], None] | None) -> Verification:
        self.keys = set(sync(_keys(self.store)))
        if not any(key.endswith("zarr.json") for key in self.keys):
            raise UsageError(f"{self.location} is no lake: it holds no zarr.json at all")
        self.found.leftovers = sorted(key for key in self.keys if Path(key).match(LEFTOVER))
        self.keys -= set(self.found.leftovers)
        groups = self._groups()
        runs = sorted(group for group, kind in groups.items() if kind == "run")
        if run is not None and run not in runs:
            raise MissingRunError(f"{self.location} has no run {run!r}; it has {', '.join(runs) or 'none'}")
        wanted = {
            group: kind
            for group, kind in groups.items()
            if run is None or group in ("", run, run.split("/")[0])
        }  # fmt: skip
        for group, kind in sorted(wanted.items()):
            self._document(group, kind)
            if kind == "run":
                self._run(group)
        self._digests(progress)
        if run is None:
            for key in sorted(self.keys - set(self.expected) - self.known):
                self._wrong(key, "", "lake", "nothing of the lake is called that; remove it")
        self.found.damage.sort(key=lambda damage: damage.path)
        self.found.commands = [*self._commands()]
        return self.found

    def _groups(self) -> dict[str, str]:
        """Kind of every group, by its place: also of one whose own document is damaged or lost."""
        groups = {"": "lake"}
        for key in self.keys:
            parts = key.split("/")
            if parts[0] == "results":
                for depth in range(1, min(len(parts), 4)):
                    groups["/".join(parts[:depth])] = "result" if depth == 3 else "results"
            elif len(parts) > 2 and parts[2:4] == [RECORD, "zarr.json"]:
                groups["/".join(parts[:2])] = "run"
                groups.setdefault(parts[0], "model")
            elif len(parts) == 2 and parts[1] == "zarr.json":
                groups.setdefault(parts[0], "model")
        return groups

    def _wrong(self, path: str, group: str, kind: str, problem: str, shard: int | None = None) -> None:
        self.found.damage.append(Damage(path=path, group=group, kind=kind, problem=problem, shard=shard))

    def _document(self, group: str, kind: str, below: str = "") -> dict[str, Any] | None:
        """Check a group's own document; expect what it lists."""
        key = join(join(group, below), "zarr.json")
        self.known.add(key)
        content = read_bytes(self.store, key)
        attributes = unseal(content or b"")
        if content is not None:
            self.found.files += 1
            self.found.bytes += len(content)
        if attributes is None:
            self._wrong(key, group, kind, "is not there" if content is None else "does not agree with its own seal")
            if group and kind != "results":
                # Its files are no strangers, only out of reach until the document is back.
                self.known |= {each for each in self.keys if each.startswith(f"{group}/")}
            return None
        for name, digest in attributes.get("files", {}).items():
            listed = join(group, name.removeprefix("../") if below else name)
            if below and not name.startswith("../"):
                listed = join(join(group, below), name)
            self.expected[listed] = ({digest}, group, kind, None)
        return attributes

    def _run(self, run: str) -> None:
        record = self._document(run, "run", RECORD)
        attributes = unseal(read_bytes(self.store, f"{run}/zarr.json") or b"")
        if attributes is None:
            return
        if record and record["fingerprint"] != attributes["fingerprint"]:
            self._wrong(f"{run}/{RECORD}/zarr.json", run, "run", "is the record of a run made otherwise")
        layout = RunLayout.from_json(attributes["layout"])
        arrays = layout.arrays()
        if record is None:
            return
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
        records = known.records(contents)
        for index, key in enumerate(files):
            sizes = [int(record.size[index]) for record in records]
            if key in self.keys or min(sizes, default=-1) >= 0:
                digests = {record.digest(index) for record, size in zip(records, sizes, strict=True) if size >= 0}
                if digests:
                    self.expected[key] = (digests, run, "run", shard)
                elif records:
                    self._wrong(key, run, "run", "is there, but the record says that the shard has no such file", shard)

    def _schema(self, run: str, name: str, array: ArrayLayout) -> None:
        """Dims, shape and chunks of an array as the schema has them."""
        key = f"{run}/{name}/zarr.json"
        if not self._as_listed(key):
            return  # named for that
        document = json.loads(read_bytes(self.store, key) or b"")
        grid = list(array.shards or array.chunks)
        stated = {
            "dims": (document.get("dimension_names"), list(array.dims)),
            "shape": (document.get("shape"), list(array.shape)),
            "shards": (document.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape"), grid),
            "type": (document.get("data_type"), array.dtype),
        }
        for what, (found, expected) in stated.items():
            if found != expected:
                self._wrong(key, run, "run", f"{what} {found}; the schema has {expected}")

    def _as_listed(self, key: str) -> bool:
        """Whether a file that never changes is as its group says."""
        return hashlib.sha256(read_bytes(self.store, key) or b"").hexdigest() in self.expected[key][0]

    def _digests(self, progress: Callable[[int, int], None] | None) -> None:
        def check(key: str) -> tuple[int, str] | None:
            if key not in self.keys:
                return None
            if self.folder is not None:
                with (self.folder / key).open("rb") as file:
                    return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
            content = read_bytes(self.store, key) or b""
            return len(content), hashlib.sha256(content).hexdigest()

        keys = sorted(self.expected)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="lake-verify") as pool:
            for done, (key, result) in enumerate(zip(keys, pool.map(check, keys), strict=True), start=1):
                digests, group, kind, shard = self.expected[key]
                if result is None:
                    self._wrong(key, group, kind, "is not there", shard)
                else:
                    self.found.files += 1
                    self.found.bytes += result[0]
                    if result[1] not in digests:
                        recorded = " or ".join(f"{digest[:12]}.." for digest in sorted(digests))
                        problem = f"has SHA-256 {result[1][:12]}.. over {result[0]:,} bytes; {recorded} was recorded"
                        self._wrong(key, group, kind, problem, shard)
                if progress is not None:
                    progress(done, len(keys))

    def _commands(self) -> Iterator[str]:
        broken: dict[tuple[str, str], list[Damage]] = {}
        for damage in self.found.damage:
            broken.setdefault((damage.kind, damage.group), []).append(damage)
        for (kind, group), damages in broken.items():
            if kind == "run":
                parts = sorted({damage.shard for damage in damages if damage.shard is not None})
                what = [*map(str, parts), *(["static"] if any(damage.shard is None for damage in damages) else [])]
                yield self._extract_command(group, ",".join(what))
            elif kind in ("lake", "model") and not all("remove it" in damage.problem for damage in damages):
                run = next((each for each in self._runs() if kind == "lake" or each.startswith(f"{group}/")), None)
                if run is not None:
                    yield self._extract_command(run, "static")
            elif kind == "result":
                yield self._result_command(group)
            elif kind == "results":
                below = sorted(name for name, what in self._groups().items() if what == "result" and group in name)
                remove = shlex.join(["rm", "-f", f"{self.location}/{group}/zarr.json"])
                yield " && ".join([remove, *map(self._result_command, below[:1])])

    def _runs(self) -> Iterable[str]:
        return sorted(group for group, kind in self._groups().items() if kind == "run")

    def _extract_command(self, run: str, rebuild: str) -> str:
        attributes = unseal(read_bytes(self.store, f"{run}/zarr.json") or b"")
        model, _, data = run.partition("/")
        if attributes is None:
            words = ["lake", "extract", "--model", f"{model}=CHECKPOINT", "--data", f"{data}=FILE"]
            words += ["--lake", str(self.location), "--rebuild", rebuild]
            return f"{shlex.join(words)}  # with CHECKPOINT, FILE and settings that {run} was made with"
        if command := attributes.get("provenance", {}).get("command"):
            return filled([*command, "--rebuild", rebuild], self.location)
        described = unseal(read_bytes(self.store, f"{model}/zarr.json") or b"") or {}
        spec: Mapping[str, Any] = attributes["spec"]
        source = attributes.get("provenance", {}).get("data", f"{data}.jsonl")
        options = {name: value for name, value in spec.items() if value is not None}
        checkpoint = described.get("checkpoint", "CHECKPOINT")
        words = ["lake", "extract", "--model", f"{model}={checkpoint}", "--data", f"{data}={source}"]
        words += ["--lake", str(self.location)]
        words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return shlex.join([*words, "--rebuild", rebuild])

    def _result_command(self, result: str) -> str:
        """Command that makes a result again, in its place."""
        kind, label = result.split("/")[1:3]
        attributes = unseal(read_bytes(self.store, f"{result}/zarr.json") or b"")
        if attributes is not None and attributes.get("command"):
            return filled(attributes["command"], self.location)
        # Made in Python or by an older version, or no longer readable: its settings are at best known, not how one
        # types them.
        named = label.rpartition("~")[0]
        runs = [run for run in self._runs() if run.replace("/", ".") in named.split("+")]
        settings = canonical_json(attributes["spec"]) if attributes else "it was made with"
        command = filled(COMMANDS[kind], self.location, runs) if kind in COMMANDS else ""
        remove = shlex.join(["rm", "-r", f"{self.location}/{result}"])
        return f"{command}  # with the settings {settings}; where that makes another result: {remove}".strip()


async def _keys(store: Store) -> list[str]:
    return [key async for key in store.list()]
