"""A lake is pushed to another place whole or not at all, and a push that was killed goes on."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread, current_thread

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from huggingface_hub import HfFileSystem
from small_runs import tree
from synthetic import make_model, make_run, write_run
from test_remote import bucket  # noqa: F401
from torch.utils.data import DataLoader
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from analyze.serve.answers import Answers
from schemas import CorruptLakeError, LakeError, MissingRunError, SpecMismatchError, UsageError
from store import Lake, merge, open_lake, push, torch_dataset, verify
from store.files import read_bytes, set_bytes
from store.large_files import PART_BYTES, copy_large
from store.location import open_store

PUSH = import_module("store.push")  # the package has the function under that name
RUN, OTHER = "one/problems", "two/problems"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with a run of two shards each, and a result of each and of both."""
    place = tmp_path_factory.mktemp("made") / "made.lake"
    for name, seed in ((RUN, 0), (OTHER, 1)):
        model = make_model(seed=seed)
        write_run(place, make_run(name=name, n_example=16, seed=seed, model=model), model, shard_examples=8)
    scores = xr.Dataset({"score": ("layer", np.arange(3.0))})
    for kind, runs in (("one", [RUN]), ("two", [OTHER]), ("both", [RUN, OTHER])):
        open_lake(place).write_result(kind, scores, runs=runs, spec={})
    return place


@pytest.fixture(scope="module")
def small(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the runs with its model and result, for buckets: their server takes milliseconds for each file."""
    place = tmp_path_factory.mktemp("small") / "small.lake"
    push(open_lake(made), place, [RUN])
    return place


def keys(place: str) -> set[str]:
    async def listed() -> set[str]:
        return {key async for key in open_store(place).list()}

    return sync(listed())


def same(place: str, made: Path) -> None:
    """Whether a lake holds what was pushed, byte for byte."""
    there = open_store(place)
    assert keys(place) == set(tree(made))
    assert all(read_bytes(there, key) == (made / key).read_bytes() for key in tree(made))


def test_a_push_that_is_killed_leaves_no_lake_and_goes_on(bucket: str, small: Path) -> None:  # noqa: F811
    place, n_file = f"{bucket}/killed.lake", len(tree(small))
    pushing = subprocess.Popen([sys.executable, "-m", "lake", "push", small, place], stderr=subprocess.DEVNULL)
    while pushing.poll() is None and len(keys(place)) < 8:  # claims and a few files: on a busy machine much is sent
        time.sleep(0.05)  # before the next listing comes
    pushing.kill()
    assert pushing.wait() < 0
    there = len(keys(place))
    assert 0 < there < n_file
    with pytest.raises(UsageError, match="is no lake"):
        open_lake(place)
    assert push(open_lake(small), place).sent < n_file
    same(place, small)
    again = push(open_lake(small), place)
    assert (again.sent, again.there, again.checked) == (1, n_file - 1, n_file) or again.sent == 0


@pytest.mark.parametrize("url", ["memory://pushed/stopped.lake", "folder"])
def test_stopped_after_any_file_it_is_no_lake(
    url: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/some folder.lake" if url == "folder" else url
    left = iter(())

    def stopping(send: Callable[..., None]) -> Callable[..., None]:
        def sending(*words: object) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            send(*words)

        return sending

    monkeypatch.setattr(PUSH, "set_bytes", stopping(PUSH.set_bytes))
    monkeypatch.setattr(PUSH, "copy_large", stopping(PUSH.copy_large))
    monkeypatch.setattr(PUSH, "LARGE_BYTES", 4096)
    for n in (0, 1, 30, len(tree(made)) - 32):  # at last all but one are there
        left = iter(range(n))
        with pytest.raises(KeyboardInterrupt):
            push(open_lake(made), url)
        with pytest.raises(UsageError, match="no lake"):
            open_lake(url)
        if n > 1:
            said = {damage.path: damage.problem for damage in verify(url).damage}
            assert "if a lake push to this place was stopped, give that again" in said["zarr.json"]
    monkeypatch.undo()
    push(open_lake(made), url)
    same(url, made)


def test_some_runs_with_their_models_and_results(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = "memory://pushed/some.lake"
    assert run_lake("push", made, place, RUN, "--json") == 0
    lake = open_lake(place)
    assert (lake.runs(), lake.models(), [each.kind for each in lake.results()]) == ([RUN], ["one"], ["one"])
    assert verify(place).damage == []
    push(open_lake(made), place)
    same(place, made)
    with pytest.raises(MissingRunError, match="has no run 'one/none'"):
        push(open_lake(made), place, ["one/none"])
    with pytest.raises(MissingRunError, match=f"has no run '{RUN}/'.*did you mean '{RUN}'"):
        open_lake(made).attributes(f"{RUN}/")


@pytest.mark.parametrize("command", ["push", "merge"])
@pytest.mark.parametrize("where", ["bucket", "disk"])
def test_of_two_at_once_with_other_weights_the_second_is_refused(
    where: str,
    command: str,
    bucket: str,  # noqa: F811
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second has seen that there is nothing yet before the first writes its first file."""
    other, model = tmp_path / "other.lake", make_model(seed=7)
    run = make_run(name=RUN, n_example=16, seed=7, model=model)
    write_run(other, run, model, shard_examples=8, weights="others")
    place = f"{bucket}/{command}-at-once.lake" if where == "bucket" else str(tmp_path / "at-once.lake")
    module = import_module(f"store.{command}")
    told: list[str] = []

    def copy(lake: Path) -> None:
        try:
            push(open_lake(lake), place, [RUN]) if command == "push" else merge([open_lake(lake)], place)
        except SpecMismatchError as error:
            told.append(str(error))

    second, at_the_lock = Thread(target=copy, args=(other,)), Event()
    first = iter([True])  # several threads write, and none before the second has looked
    lock, write = module.lake_lock, "set_bytes" if command == "push" else "write_files"
    written = getattr(module, write)

    def locked(*arguments: object) -> AbstractContextManager[None]:
        if current_thread() is second and (command == "push" or arguments[1:2] == ("one",) or where == "disk"):
            at_the_lock.set()
        return lock(*arguments)

    def writing(*arguments: object) -> None:
        if current_thread() is not second:
            if next(first, False):
                second.start()
            assert at_the_lock.wait(60)
            if where == "bucket":  # nothing there makes it wait
                second.join()
        written(*arguments)

    monkeypatch.setattr(module, "lake_lock", locked)
    monkeypatch.setattr(module, write, writing)
    copy(made)
    second.join()
    assert len(told) == 1
    assert (
        "from something else" if where == "bucket" else "otherwise" if command == "push" else "other model"
    ) in told[0]
    assert not verify(place).damage
    assert not [key for key in keys(place) if "claim" in key]
    pushed, ours = open_lake(place), open_lake(made)
    xr.testing.assert_equal(pushed[RUN].load(), ours[RUN].load())
    xr.testing.assert_equal(pushed.model("one").load(), ours.model("one").load())


def test_large_files_go_in_parts_and_other_runs_may_differ(
    bucket: str,  # noqa: F811
    made: Path,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a disk and from a bucket, to all kinds of places; a run of another name there may be made otherwise."""
    stores = [open_store(place, read_only=False) for place in (str(tmp_path / "a"), bucket, "memory://large", tmp_path)]
    content = np.random.default_rng(0).bytes(PART_BYTES + 1000)
    set_bytes(stores[0], "large", content)
    for before, after in pairwise(stores):
        copy_large(before, after, "large", len(content))
        assert read_bytes(after, "large") == content
    with pytest.raises(LakeError, match="large is gone or shorter"):
        copy_large(stores[0], stores[1], "large", len(content) + 1)
    monkeypatch.setattr(PUSH, "LARGE_BYTES", 1000)
    source: Path | str = small
    for place in (f"{bucket}/parts.lake", "memory://pushed/parts.lake", str(tmp_path / "parts.lake")):
        push(open_lake(source), place)
        same(place, small)
        source = f"{bucket}/parts.lake"
    mixed, model = tmp_path / "mixed.lake", make_model(seed=7)
    write_run(mixed, make_run(name=OTHER, n_example=16, seed=7, model=model), model, shard_examples=8)
    push(open_lake(made), mixed, [RUN])
    assert open_lake(mixed).runs() == [RUN, OTHER]
    with pytest.raises(SpecMismatchError, match="run two/problems"):
        push(open_lake(made), mixed, [OTHER])


def test_what_is_there_is_checked_and_mended(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "memory://pushed/hurt.lake"
    push(open_lake(made), place)
    monkeypatch.setattr(PUSH, "LARGE_BYTES", 0)
    there, key = open_store(place, read_only=False), f"{RUN}/hidden_state/c/1/0/0/0"
    content = read_bytes(there, key) or b""
    set_bytes(there, key, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    set_bytes(there, f"{RUN}/claim", open_lake(made).attributes(RUN)["fingerprint"].encode())  # of a killed push
    found = verify(place)
    assert ([damage.path for damage in found.damage], found.leftovers) == ([key], [f"{RUN}/claim"])
    assert push(open_lake(made), place).sent >= 1
    same(place, made)


def test_what_is_refused_writes_nothing(made: Path, tmp_path: Path) -> None:
    lake = open_lake(made)
    with pytest.raises(UsageError, match="is the lake itself"):
        push(lake, f"file://{made}")
    strange = open_store("memory://strange", read_only=False)
    set_bytes(strange, "notes.txt", b"mine")
    with pytest.raises(UsageError, match=r"holds other things \(notes.txt"):
        push(lake, "memory://strange")
    other = tmp_path / "other.lake"
    model = make_model(seed=5)
    write_run(other, make_run(name=RUN, n_example=16, seed=5, model=model), model, shard_examples=8)
    before = tree(other)
    with pytest.raises(SpecMismatchError, match="were made otherwise"):
        push(lake, other)
    assert tree(other) == before
    file = other / RUN / "hidden_state/c/1/0/0/0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptLakeError, match="lake verify .* says what mends it"):
        push(Lake(other), tmp_path / "none.lake")
    assert not (tmp_path / "none.lake").exists()


def test_hub_urls_go_to_the_file_system_of_its_own_library() -> None:
    store = open_store("hf://datasets/nobody/nothing/made.lake", read_only=False)
    assert isinstance(store, FsspecStore)
    assert isinstance(getattr(store.fs, "sync_fs", store.fs), HfFileSystem)
    assert store.path == "datasets/nobody/nothing/made.lake"


def test_no_hub_is_one_line(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_lake("push", made, "hf://datasets/nobody/nothing/made.lake")
    said = capsys.readouterr()
    assert code in (1, 2)
    assert said.err.count("\n") == 1
    assert "hf://datasets/nobody/nothing" in said.err


def test_a_pushed_lake_is_asked_served_and_trained_on_as_the_local_one(
    bucket: str,  # noqa: F811
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local, place = tmp_path / "asked.lake", f"{bucket}/asked.lake"
    shutil.copytree(small, local)
    run_on(str(local), "analyze heads", RUN, "--resamples", "5")
    push(open_lake(local), place)
    words = {
        "query": ["SELECT problem, correct, answer_logprob FROM one_problems ORDER BY example", "--json"],
        "top": [RUN, "--head", "L1H1", "--json"],
        "show": ["heads"],
    }
    for command, options in words.items():
        capsys.readouterr()
        said = [run_on(each, command, *options) or capsys.readouterr().out for each in (str(local), place)]
        assert said[0].replace(str(local), place) == said[1], command
    served = [Answers(each) for each in (local, place)]
    for ask in (
        lambda answers: answers.runs(),
        lambda answers: answers.listing(RUN),
        lambda answers: answers.problem(RUN, 15),
        lambda answers: answers.attention(RUN, 15, 1, 0),
        lambda answers: answers.heads(RUN),
    ):
        assert ask(served[0]) == ask(served[1])
    chosen = {"layer": [1], "position": ["ct0", "ct3"], "batch_size": 7}
    rows = [torch_dataset(open_lake(each), RUN, "hidden_state", **chosen) for each in (local, place)]  # type: ignore[arg-type]
    for ours, theirs in zip(*rows, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows[1].set_epoch(0)
    assert sum(map(len, DataLoader(rows[1], batch_size=None, num_workers=2))) == 32


def run_on(place: str, command: str, *words: str) -> None:
    assert run_lake(*command.split(), place, *words) == 0


def test_an_empty_lake_is_pushed_too(made, tmp_path):
    empty = tmp_path / "empty.lake"
    empty.mkdir()
    shutil.copy(made / "zarr.json", empty)
    push(open_lake(empty), tmp_path / "there.lake")
    assert open_lake(tmp_path / "there.lake").runs() == []
