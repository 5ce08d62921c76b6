"""A result that is replaced: wherever its writer is killed, and whoever reads meanwhile, one whole result is there."""

import errno
import inspect
import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import xarray as xr
from fsspec.implementations.memory import MemoryFileSystem
from small_runs import tree
from synthetic import make_model, make_run, write_run

from schemas import CorruptLakeError, LakeError, MissingRunError, RemovedError
from schemas.errors import OTHER_DISK
from store import Lake, open_lake, push, verify
from store.files import COMING, settle
from store.location import keys_of
from store.opening import open_group
from store.removal import remove, select_removable

KEEPING, RESULTS = import_module("store.keeping"), import_module("store.results")
RUN = "made-up/problems"
OLD = xr.Dataset({"score": ("layer", [1.0, 2.0]), "gone": ("layer", [0, 0])})
NEW = xr.Dataset({"score": ("layer", [3.0, 4.0])})


class Killed(BaseException):
    """Stands for a kill, after which nothing runs."""


def write(lake: Lake, result: xr.Dataset) -> str:
    return lake.write_result("heads", result, runs=[RUN], spec={})


def value(lake: Lake) -> list[float]:
    """Value of the lake's one result, which must be whole."""
    (found,) = lake.results()
    result = lake.open_result(found.name)
    assert ("gone" in result) == (result["score"].values[0] == 1)
    return [float(number) for number in result["score"].values]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("replaced") / "a.lake"
    write_run(place, make_run(name=RUN, n_example=4), make_model())
    write(open_lake(place), OLD)
    return place


def counted(function: Callable[..., object], left: Iterator[int], stop: Callable[[], object]) -> Callable[..., object]:
    def called(*given: object, **named: object) -> object:
        if next(left) == 0:
            for coroutine in filter(inspect.iscoroutine, given):
                coroutine.close()
            stop()
        return function(*given, **named)

    return called


def killed_after(lake: Lake, steps: int) -> bool:
    """Replace the result in a process that is killed before a step; whether it came to that."""
    if (child := os.fork()) == 0:
        left, patch = itertools.count(-steps), pytest.MonkeyPatch()
        for owner, name in ((Path, "rename"), (shutil, "rmtree"), (import_module("store.files"), "set_bytes")):
            patch.setattr(owner, name, counted(getattr(owner, name), left, lambda: os._exit(9)))
        write(lake, NEW)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_anywhere_on_a_disk_one_is_whole_and_the_next_writer_tidies(made: Path, tmp_path: Path) -> None:
    fresh, seen = open_lake(shutil.copytree(made, tmp_path / "fresh.lake")), []
    write(fresh, NEW)
    for steps in itertools.count():
        lake = open_lake(shutil.copytree(made, tmp_path / f"{steps}.lake"))
        if not killed_after(lake, steps):
            break
        seen.append(value(lake))
        assert verify(lake.location).damage == []
        if any(COMING in key for key in tree(Path(lake.location))) and seen[-1] == [3.0, 4.0]:
            with pytest.raises(LakeError, match="was stopped as it put that in its place"):
                push(lake, tmp_path / "other.lake")
        write(lake, NEW)
        assert tree(Path(lake.location)) == tree(Path(fresh.location))
    assert seen == sorted(seen)
    assert [OLD["score"].values.tolist(), NEW["score"].values.tolist()] == [seen[0], seen[-1]]
    assert value(lake) == [3.0, 4.0]


def test_killed_anywhere_on_an_object_store_one_is_whole(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill() -> None:
        raise Killed

    memory = MemoryFileSystem()
    for steps in itertools.count():
        place = f"memory://replaced/{steps}.lake"
        memory.put(str(made), f"/replaced/{steps}.lake", recursive=True)
        lake, left = open_lake(place), itertools.count(-steps)
        try:
            with monkeypatch.context() as patch:
                for owner, name in ((import_module("store.files"), "set_bytes"), (RESULTS, "sync")):
                    patch.setattr(owner, name, counted(getattr(owner, name), left, kill))
                write(lake, NEW)
        except Killed:
            assert value(lake) in ([1.0, 2.0], [3.0, 4.0])
            assert verify(place).damage == []
            write(lake, OLD)  # not what was on its way
            assert value(lake) == [1.0, 2.0]
            write(lake, NEW)
            assert value(lake) == [3.0, 4.0]
            assert sorted(verify(place).leftovers) == []
            continue
        break
    assert steps == 10


def test_who_reads_while_it_is_replaced_has_the_old_or_the_new_one(made: Path, tmp_path: Path) -> None:
    lake = open_lake(shutil.copytree(made, tmp_path / "a.lake"))
    if (child := os.fork()) == 0:
        for number in range(40):
            write(lake, (NEW, OLD)[number % 2])
        os._exit(0)
    seen = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen.add(tuple(value(lake)))
    assert seen <= {(1.0, 2.0), (3.0, 4.0)}
    assert seen


def test_a_result_is_not_kept_as_of_a_run_made_anew_while_it_was_computed(
    made: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(made, tmp_path / "a.lake")
    check = KEEPING.check_still

    def meanwhile(lake: Lake, *given: object) -> None:
        remove(place, select_removable(lake, [RUN]))
        write_run(place, make_run(name=RUN, n_example=4, seed=1), make_model())
        check(lake, *given)

    monkeypatch.setattr(KEEPING, "check_still", meanwhile)
    code, _, err = call("analyze", "heads", place, RUN, "--resamples", "5")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{RUN} was made anew while heads was computed from what it held before" in err
    assert [result.name for result in open_lake(place).results() if result.inputs[RUN] in err] == []


def test_a_link_to_another_place_is_told(
    made: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(made, tmp_path / "a.lake"))
    (stored,) = open_lake(place).results()
    (place / RUN).rename(tmp_path / "elsewhere")
    (place / RUN).symlink_to(tmp_path / "elsewhere")
    code, _, err = call("rm", place, RUN, "--yes")
    assert code == 1
    assert f"{RUN} is a link to {tmp_path / 'elsewhere'}, and what lies there would stay; remove it there first" in err
    assert (tmp_path / "elsewhere" / "zarr.json").exists()

    def to_another_disk(path: Path, target: Path) -> None:  # of a folder; not every machine has two disks
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(path), None, str(target))

    monkeypatch.setattr(Path, "rename", to_another_disk)
    for words in (("rm", place, stored.name, "--yes"), ("analyze", "heads", place, RUN, "--resamples", "5")):
        code, _, err = call(*words)
        assert (code, err.count("\n")) == (1, 1)
        assert OTHER_DISK in err


def test_a_result_replaced_by_one_of_the_same_contents_is_read_anew(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, times = open_lake(shutil.copytree(made, tmp_path / "a.lake")), itertools.count()

    def replaced(*given: object, **named: object) -> xr.Dataset:
        if next(times) == 0:
            write(lake, NEW)
            write(lake, OLD)
            raise CorruptLakeError("of the files between")
        return open_group(*given, **named)

    monkeypatch.setattr("store.read.open_group", replaced)
    assert value(lake) == [1.0, 2.0]
    assert next(times) == 2


def test_two_processes_that_write_one_result_leave_one_whole(made: Path, tmp_path: Path) -> None:
    lake, children = open_lake(shutil.copytree(made, tmp_path / "a.lake")), []
    for result in (NEW, OLD):
        if (child := os.fork()) == 0:
            for _ in range(10):
                write(lake, result)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert value(lake) in ([1.0, 2.0], [3.0, 4.0])
    assert (verify(lake.location).damage, verify(lake.location).leftovers) == ([], [])


def test_what_is_removed_as_it_was_being_replaced_stays_away(made: Path, tmp_path: Path) -> None:
    lake = open_lake(shutil.copytree(made, tmp_path / "a.lake"))
    (name,) = [result.name for result in lake.results()]
    place = Path(lake.location, name)
    place.rename(place.with_name(place.name + COMING))
    assert value(lake) == [1.0, 2.0]
    remove(lake.location, select_removable(lake, [name]))
    assert lake.results() == []
    with pytest.raises(MissingRunError):
        lake.open_result(name)
    settle(Path(lake.location))
    assert lake.results() == []


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_run_removed_or_made_anew_under_its_reader_is_neither_fill_nor_damaged(
    where: str, made: Path, tmp_path: Path
) -> None:
    memory, local = MemoryFileSystem(), Path(shutil.copytree(made, tmp_path / "gone.lake"))
    if where == "memory":
        memory.put(str(made), "/gone.lake", recursive=True)
    lake = open_lake(local if where == "disk" else "memory://gone.lake")
    run, pickled = lake[RUN], pickle.dumps(lake[RUN])
    run["hidden_state"].isel(example=0, layer=0).load()
    remove(lake.location, select_removable(lake, [RUN]))
    for opened in (run, pickle.loads(pickled)):  # noqa: S301
        for name, of in (("hidden_state", 1), ("attention", 3), ("token", 2), ("question", 0)):
            with pytest.raises(RemovedError, match=f"run {RUN} was removed since it was opened"):
                opened[name].isel(example=of).load()
    assert lake.runs() == []
    write_run(lake.location, make_run(name=RUN, n_example=4, seed=1), make_model())
    for opened in (run, pickle.loads(pickled)):  # noqa: S301
        for name in ("hidden_state", "attention", "token", "gold_answer"):
            with pytest.raises(RemovedError, match=f"run {RUN} was made anew since it was opened"):
                opened[name].isel(example=[0, 2]).load()


@pytest.mark.parametrize("what", ["write", "result", "run", "model"])
def test_what_was_stopped_on_an_object_store_is_unfinished_and_the_same_again_ends_it(
    what: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writing of a result, and each kind of removal."""
    memory, removal, seen = MemoryFileSystem(), import_module("store.removal"), []

    def kill() -> None:
        raise Killed

    for steps in itertools.count():
        place = f"memory://stopped/{what}-{steps}.lake"
        memory.put(str(made), f"/stopped/{what}-{steps}.lake", recursive=True)
        lake, left = open_lake(place), itertools.count(-steps)
        (result,) = [found.name for found in lake.results()]
        named = {"result": result, "run": RUN, "model": RUN.split("/")[0]}.get(what, "")
        for gone in {"write": [result], "model": [RUN]}.get(what, []):
            remove(place, select_removable(lake, [gone]))

        def act(lake: Lake = lake, place: str = place, named: str = named) -> None:
            remove(place, select_removable(lake, [named])) if named else write(lake, NEW)

        try:
            with monkeypatch.context() as patch:
                for owner, name in ((import_module("store.files"), "set_bytes"), (RESULTS, "sync"), (removal, "sync")):
                    patch.setattr(owner, name, counted(getattr(owner, name), left, kill))
                act()
        except Killed:
            found = verify(place)
            seen.append((len(found.damage), len(found.begun)))
            if not named or any(key.startswith(f"{named}/") for key in keys_of(lake.store)):
                act()
            assert (verify(place).damage, verify(place).begun) == ([], [])
            continue
        break
    assert (0, 1) in seen
    # Of a run whose record's document has gone, and not yet its own, it cannot be told which of both was lost.
    assert [damaged for damaged, _ in seen] == [0, 1, 0] if what == "run" else all(damaged == 0 for damaged, _ in seen)
