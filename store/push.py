"""A lake, or some runs of it, to another place: files first, checked there, then what makes a lake of them."""

import hashlib
import os
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from zarr.abc.store import Store

from schemas import MODEL_VARIABLES, CorruptLakeError, LakeError, UsageError, fingerprint
from schemas.progress import Progress
from store.check import check_holds, check_outer, check_place
from store.claim import lake_lock
from store.files import COMING, LEFTOVER, NEXT, REMOVED, RESULTS, read_bytes, read_size, set_bytes
from store.labels import missing
from store.large_files import copy_large
from store.location import keys_of, local_path, open_store
from store.mend import is_passing
from store.merge import check_agreement
from store.read import Lake
from store.verification import Verification, verify

LARGE_BYTES = 2**22
"""Files above it are sent in parts, and not read at the place they go to before it is known whether they are there."""
N_STAGE = 4
"""Stages in which files are sent; those of one may be sent in any order."""
UPLOADS = 4
"""Files on their way at once."""


@dataclass(kw_only=True, slots=True)
class Pushed:
    """What a push did."""

    sent: int
    """Files that were written."""
    sent_bytes: int
    there: int
    """Files that were there already, the same."""
    checked: int
    """Files that were read at the other place and agree with their checksums."""
    checked_bytes: int


def push(lake: Lake, to: str | os.PathLike[str], runs: Sequence[str] = (), progress: Progress | None = None) -> Pushed:
    """Copy a lake to another place, and read it there, every byte against its checksum.

    Until everything is there and right, nobody can open the place as a lake: the lake's own document is sent last.
    (Where a lake of the same models lies already, it is brought up to date: of each group and shard, what says that it
    is there is sent after the rest.) A push that was stopped goes on where it was: what is there is not sent again. It
    holds some parts of a few files in memory, whatever their size.

    Parameters
    ----------
    lake
        What is copied; only read. Nobody should write it meanwhile.
    to
        Folder or URL.
    runs
        Those that are copied, with their models and the results that are of them alone; everything if none is named.
    progress
        Told how many files are there, and how many are to be.

    Raises
    ------
    UsageError
        If something else than a lake lies at that place, or it is the lake itself.
    MissingRunError
        If the lake has no such run.
    SpecMismatchError
        If a lake lies there in which models or runs of those that are copied were made otherwise, or another process
        makes them otherwise.
    CorruptLakeError
        If the lake is damaged; nothing is written.
    LakeError
        If what was written does not read back as it should.
    """
    source, target = local_path(lake.location), local_path(to)
    places = [
        str(location.resolve() if location else name).rstrip("/")
        for location, name in ((source, lake.location), (target, to))
    ]
    if places[0] == places[1]:
        raise UsageError(f"{to} is the lake itself; name another place")
    check_outer(to)
    chosen = _Chosen(lake, runs)
    damage = [damage_found for damage_found in verify(lake.location).damage if damage_found.path in chosen]
    broken = [damage_found for damage_found in damage if damage_found.kind != "stranger"]
    if broken:
        raise CorruptLakeError(
            f"{lake.location}: {broken[0].path} {broken[0].problem}; lake verify {lake.location} says what mends it"
        )
    strangers = {damage_found.path for damage_found in damage}
    there = _keys(lake.store)
    if moving := next((key for key in there if key.startswith(f"{RESULTS}/") and f"{COMING}/" in key), None):
        raise LakeError(
            f"{lake.location}: the writer of {moving.partition(COMING)[0]} was stopped as it put that in its place;"
            " give its command again, or any other that stores a result in that lake, then push"
        )
    keys = sorted((key for key in there if key in chosen and key not in strangers), key=_order)
    if target is None or target.exists():
        _check_target(chosen, to, {key.split("/")[0] for key in keys})
    with _held(chosen, to):
        _check_target(chosen, to, {key.split("/")[0] for key in keys})  # another process may have pushed meanwhile
        return _sent(lake, to, keys, progress)


@contextmanager
def _held(chosen: "_Chosen", to: str | os.PathLike[str]) -> Iterator[None]:
    """Keep others from making what is sent from something else: on a disk the lake, in an object store each group."""
    lake = chosen.lake
    made = {name: fingerprint(lake.model_attributes(name)["fingerprint"]) for name in chosen.models}
    made |= {run: lake.attributes(run)["fingerprint"] for run in chosen.runs}
    with ExitStack() as held:
        for group, made_from in made.items() if local_path(to) is None else [("", "")]:
            held.enter_context(lake_lock(to, group, made_from))
        yield


def _sent(lake: Lake, to: str | os.PathLike[str], keys: Sequence[str], progress: Progress | None) -> Pushed:
    """Send files in stages, and read them at the other place."""
    store = open_store(to, read_only=False)
    sent = _Sending(lake.store, store, len(keys), progress)
    for stage in range(N_STAGE - 1):
        sent.send([key for key in keys if _order(key)[0] == stage])
    keys_there, wrong = _wrong(to, keys)
    if wrong:  # of equal size, but of another push
        sent.send(list(wrong), force=True)
        keys_there, wrong = _wrong(to, keys)
    if wrong:
        key, problem = next(iter(wrong.items()))
        raise LakeError(
            f"{to}: {key} {problem}; {len(wrong)} files are not as they were sent. Give the same command again"
        )
    sent.send(["zarr.json"])
    return Pushed(
        sent=sent.files,
        sent_bytes=sent.bytes,
        there=sent.there,
        checked=keys_there.files,
        checked_bytes=keys_there.bytes,
    )


def _wrong(to: str | os.PathLike[str], keys: Sequence[str]) -> tuple[Verification, dict[str, str]]:
    """What reading all that is at a place finds, and what is wrong of the files that were sent, but the last one."""
    if list(keys) == ["zarr.json"]:  # an empty lake: nothing lies there yet
        return Verification(), {}
    verified = verify(to)
    problems = {damage.path: damage.problem for damage in verified.damage}
    return verified, {key: problems[key] for key in keys[:-1] if key in problems}


def _check_target(chosen: "_Chosen", to: str | os.PathLike[str], own: set[str]) -> None:
    """Raise unless a place is empty, what a push left there, or a lake with which what is copied agrees."""
    store = open_store(to)
    if read_bytes(store, "zarr.json") is not None:
        check_place(to)
        there = Lake(to)
        check_agreement([there, chosen.lake], chosen.runs)
        for run in chosen.runs:
            check_holds(to, there.store, run, chosen.lake.layout(run))
        return
    strange = sorted({key.split("/")[0] for key in _keys(store)} - own)
    if strange:
        raise UsageError(f"{to} holds other things ({strange[0]}, ...) and no lake; push to another place")


class _Chosen(Container[object]):
    """Which files of a lake are copied: all, or those of some runs, their models and the results of these alone."""

    def __init__(self, lake: Lake, runs: Sequence[str]) -> None:
        known = lake.runs()
        self.lake, self.runs = lake, list(runs) or known
        self.models = sorted({run.split("/")[0] for run in runs}) if runs else lake.models()
        for run in runs:
            if run not in known:
                raise missing(lake.location, "run", run, known)
        results = [result.name for result in lake.results() if set(result.runs) <= set(runs)] if runs else []
        folders = [*runs, *results, *(f"{model}/{name}" for model in self.models for name in MODEL_VARIABLES)]
        parents = {parent.as_posix() for result in results for parent in PurePosixPath(result).parents}
        self.documents = {"zarr.json", *(f"{group}/zarr.json" for group in {*self.models, *parents} - {"."})}
        self.beginnings = tuple(f"{folder}/" for folder in folders) if runs else ("",)

    def __contains__(self, key: object) -> bool:
        """Whether a file is one of them."""
        return key in self.documents or str(key).startswith(self.beginnings)


def _order(key: str) -> tuple[int, str]:
    """When a file is sent: what others vouch for, marks of shards, documents of groups, that of the lake."""
    path = PurePosixPath(key)
    if key == "zarr.json":
        return 3, key
    if "/committed/c/" in key:
        return 1, key
    is_group = path.name == "zarr.json" and (len(path.parts) <= 3 or path.parts[0] == "results")
    return (2 if is_group else 0), key


class _Sending:
    """Files on their way, and what became of them."""

    def __init__(self, source: Store, target: Store, n_file: int, progress: Progress | None) -> None:
        self.source, self.target = source, target
        self.at_target = frozenset(_keys(target))  # of what is not there nobody need ask
        self.n_file, self.progress = n_file, progress
        self.files = self.bytes = self.there = self.done = 0

    def send(self, keys: Sequence[str], *, force: bool = False) -> None:
        """Write files that are not there; with ``force`` those that seem to be, too."""
        with ThreadPoolExecutor(UPLOADS, thread_name_prefix="lake-push") as pool:
            for size in pool.map(lambda key: self._send(key, force), keys):
                self.files += size is not None
                self.bytes += size or 0
                self.there += size is None
                self.done += not force
                if self.progress is not None:
                    self.progress(min(self.done, self.n_file), self.n_file)

    def _send(self, key: str, force: bool) -> int | None:
        """Bytes that were written; ``None`` if a file was there: a large one of its size, or the same."""
        size = read_size(self.source, key)
        if not force and key in self.at_target:
            if size is not None and size > LARGE_BYTES:
                if size == read_size(self.target, key):
                    return None
            elif _digest(self.source, key) == _digest(self.target, key):
                return None
        if size is not None and size > LARGE_BYTES:
            copy_large(self.source, self.target, key, size)
            return size
        content = read_bytes(self.source, key)
        if content is None:
            raise LakeError(f"{key} is gone: the lake is being changed; give the same push again")
        set_bytes(self.target, key, content)
        return len(content)


def _digest(store: Store, key: str) -> str:
    return hashlib.sha256(read_bytes(store, key) or b"").hexdigest()


def _keys(store: Store) -> list[str]:
    """Files of a lake, without what writers left unfinished."""
    passing = (LEFTOVER, f"{REMOVED}/**")
    keys = keys_of(store)
    return [
        key
        for key in keys
        if not any(PurePosixPath(key).match(pattern) for pattern in passing)
        and f"/{NEXT}/" not in key
        and not is_passing(key, keys)
    ]
