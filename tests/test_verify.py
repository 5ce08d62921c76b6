"""Every kind of damage is found and named, and mended by the command that is given for it."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from small_runs import checkpoint, prepared_run, tree, uncommit, write_questions

from extract.run.command import shards_of
from extract.run.extract import extract
from extract.run.recompute import recompute
from schemas import MissingRunError, SpecMismatchError, UsageError
from store import open_lake, verify


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "toy.jsonl", 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A lake of one run in two shards, with a result."""
    place = tmp_path_factory.mktemp("whole") / "whole.lake"
    extract(prepared_run(place, data, shard_examples=4, capture="full"), place)
    scores = xr.Dataset({"score": ("layer", np.arange(4.0))}, coords={"layer": np.arange(4)})
    open_lake(place).write_result("heads", scores, runs=["toy/toy"], spec={"top": 3})
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "hurt.lake"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 0x04
    path.write_bytes(bytes(content))


def test_a_whole_lake_is_whole(whole: Path) -> None:
    found = verify(whole)
    assert (found.damage, found.leftovers, found.incomplete, found.commands) == ([], [], {}, [])
    assert found.files == len(tree(whole))


def test_one_flipped_byte_is_found_in_every_file(place: Path) -> None:
    rng = np.random.default_rng(0)
    for key in tree(place):
        content = (place / key).read_bytes()
        at = int(rng.choice([0, len(content) - 1, rng.integers(len(content))]))
        flip(place / key, at)
        assert [damage.path for damage in verify(place).damage] == [key], at
        (place / key).write_bytes(content)


def test_what_lies_elsewhere_by_a_link_is_checked_and_what_cannot_be_listed_is_an_error(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "results").rename(tmp_path / "results")
    (place / "results").symlink_to(tmp_path / "results")
    (tmp_path / "results" / "round").symlink_to(place)
    scores = next(key for key in (tmp_path / "results").rglob("score/c/0"))
    flip(scores, 3)
    damage = [Path(damage.path).parts for damage in verify(place).damage]
    assert [(parts[0], parts[-3:]) for parts in damage] == [("results", ("score", "c", "0"))]
    listed = os.scandir

    def denied(path: str) -> Any:
        if Path(path).name == "results":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError):
        verify(place)


def test_lost_and_strange_files_are_named(place: Path) -> None:
    lost = [
        "toy/toy/hidden_state/c/1/0/0/0", "toy/toy/record/size/c/0/0", "toy/toy/position/c/0",
        "toy/unembedding/c/0/0", "results/heads/zarr.json",
    ]  # fmt: skip
    for key in lost:
        (place / key).unlink()
    (place / "toy" / "toy" / "notes.txt").write_text("mine")
    (place / "toy" / "toy" / "token" / "c" / "0" / "0.1f.partial").write_text("half")
    found = verify(place)
    assert {damage.path for damage in found.damage} == {*lost, "toy/toy/notes.txt"}
    assert found.leftovers == ["toy/toy/token/c/0/0.1f.partial"]


def test_an_uncommitted_shard_is_incomplete_not_damaged(place: Path) -> None:
    uncommit(place / "toy" / "toy", 1)
    found = verify(place)
    assert found.damage == []
    assert found.incomplete == {"toy/toy": [1]}


@pytest.mark.parametrize(
    ("key", "rebuild"),
    [
        ("toy/toy/attention/c/1/0/0/0/0", "1"),
        ("toy/toy/record/sha256/c/0/0/0", "0"),
        ("toy/toy/committed/c/0", "0"),
        ("toy/toy/question/c/0", "static"),
        ("toy/toy/hidden_state/zarr.json", "static"),
        ("toy/toy/zarr.json", "static"),
        ("toy/toy/record/zarr.json", "static"),
        ("toy/unembedding/c/0/0", "static"),
        ("toy/zarr.json", "static"),
        ("zarr.json", "static"),
    ],
)
def test_what_is_named_mends_it(place: Path, whole: Path, data: Path, key: str, rebuild: str) -> None:
    flip(place / key, 100)
    (command,) = verify(place).commands
    assert command.startswith("lake extract")
    assert shlex.split(command, comments=True)[-2:] == ["--rebuild", rebuild]
    shards, static = shards_of(rebuild)
    prepared = prepared_run(place, data, shard_examples=4, rebuild_static=static, capture="full")
    done = extract(prepared, place, rebuild=shards, rebuild_static=static)
    assert done.shards_written == shards
    assert tree(place) == tree(whole)


def test_the_command_says_all_in_one_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(place / "toy" / "toy" / "token" / "c" / "0" / "0", 50)
    (result,) = open_lake(place).results()
    flip(place / result.name / "score" / "c" / "0", 3)
    assert run_lake("verify", place) == 1
    said = capsys.readouterr()
    assert "toy/toy/token/c/0/0 has SHA-256" in said.out
    assert f"{result.name}/score/c/0 has SHA-256" in said.out
    assert "--data toy=toy.jsonl" in said.out
    assert "--capture full" in said.out
    assert "--rebuild 0" in said.out
    assert "lake analyze heads" in said.out
    assert said.err.count("\n") == 1
    run_lake("verify", place, "--json")
    assert len(json.loads(capsys.readouterr().out)["damage"]) == 2


def test_places_that_cannot_be_verified(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no lake"):
        verify(tmp_path / "none.lake")
    with pytest.raises(UsageError, match="is no lake"):
        verify(tmp_path)
    with pytest.raises(MissingRunError, match="it has toy/toy"):
        verify(whole, "toy/other")


def test_the_model_agrees_with_its_run(whole: Path, place: Path) -> None:
    folder, base = checkpoint("gpt2")
    found = recompute(whole, "toy/toy", 3, checkpoint=folder, base=base)
    assert found.agrees
    assert found.examples == [0, 4, 7]
    assert max(state.worst for state in found.states.values()) < 1e-5
    with pytest.raises(SpecMismatchError, match="other weights"):
        recompute(whole, "toy/toy", 3, checkpoint=checkpoint("llama")[0], base=checkpoint("llama")[1])
    with pytest.raises(UsageError, match="--model"):
        recompute(whole, "toy/toy", 3)


def test_a_run_that_its_model_did_not_write_disagrees(place: Path, data: Path) -> None:
    prepared = prepared_run(place, data, shard_examples=4, capture="full")
    from store import RunWriter

    run = open_lake(place).open("toy/toy")
    values = {name: run[name][4:8].values for name in prepared.layout.arrays()}
    values["hidden_state"] = values["hidden_state"] * np.float16(1.01)
    RunWriter(place, "toy/toy").write_shard(1, values)
    assert verify(place).damage == []  # its bytes are as recorded
    folder, base = checkpoint("gpt2")
    found = recompute(place, "toy/toy", 8, checkpoint=folder, base=base)
    assert not found.agrees
    assert found.beyond == ["hidden_state"]
    assert found.states["hidden_state"].worst == pytest.approx(0.01, rel=0.2)
