"""What is lost, damaged, older or swapped is never read as another value, and is named with what mends it."""

import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from called import forked_lake
from run_rows import Rows
from small_runs import prepared_run, tree, write_questions
from synthetic import make_model

import store.chunked  # takes ROW_SHARE from store.shards, which is patched below for a while
import store.shards
from extract.run.extract import extract
from schemas import MODEL_VARIABLES, CorruptLakeError, MissingRunError, UsageError
from store import Lake, RunLayout, RunWriter, create_run, open_lake, verify, write_model
from store.files import column

KINDS = ("flip", "truncate", "delete", "swap", "older", "zero", "append")
NAMES = np.array(list("abcd"), dtype=object)
HEADS = xr.Dataset({"score": ("layer", np.arange(4.0)), "name": ("layer", NAMES)}, coords={"layer": np.arange(4)})


def make_lake(place: Path, seed: int) -> Path:
    """A lake of two runs, one of them in three shards, one model and two results."""
    folder = place.parent / f"data-{seed}"
    folder.mkdir()
    data = write_questions(folder / "toy.jsonl", 10, seed=seed)
    extract(prepared_run(place, data, shard_examples=4), place)
    shutil.copy(data, folder / "other.jsonl")
    extract(prepared_run(place, write_questions(folder / "other.jsonl", 4, seed=seed + 9), capture="full"), place)
    for number in range(2):
        scores = HEADS.assign(score=HEADS["score"] + number + seed)
        open_lake(place).write_result("heads", scores, runs=["toy/toy"], spec={"top": number})
    return place


@pytest.fixture(scope="module", autouse=True)
def _rows_alone() -> Iterator[None]:
    """One row of a chunk is read alone, though these chunks are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.shards, "ROW_SHARE", 2)
        yield


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A lake, and an older one of the same shapes and other values."""
    folder = tmp_path_factory.mktemp("fuzz")
    return make_lake(folder / "new.lake", 0), make_lake(folder / "old.lake", 1)


def everything(place: Path) -> dict[str, object]:
    """Each thing that a lake hands out, by name; those that are refused are missing."""
    found: dict[str, object] = {}

    def note(name: str, read: Callable[[], object]) -> object:
        with suppress(CorruptLakeError, MissingRunError, UsageError):
            found[name] = read()
        return found.get(name)

    lake = note("", lambda: open_lake(place))
    if isinstance(lake, Lake):
        del found[""]
        note("runs", lake.runs)
        note("model", lambda: lake.model("toy"))
        for number in range(2):
            note(f"result {number}", lambda number=number: lake.result("heads", top=number))  # type: ignore[misc]
        for run in ("toy/toy", "toy/other"):
            note(f"{run} attributes", lambda run=run: lake.attributes(run))  # type: ignore[misc]
            opened = note(run, lambda run=run: lake.open(run, chunks=None))  # type: ignore[misc]
            for name in opened.data_vars if isinstance(opened, xr.Dataset) else ():
                one = opened[name].isel(example=1)  # type: ignore[union-attr]
                note(f"{run} {name} of one problem", one.copy(deep=False).load)
            for name in opened.variables if isinstance(opened, xr.Dataset) else ():
                note(f"{run} {name}", lambda name=name, opened=opened: opened[name].load())  # type: ignore[misc]
            found.pop(run, None)
    return found


def damage(rng: np.random.Generator, place: Path, older: Path, key: str, keys: list[str], kind: str) -> set[str]:
    """Do something to a file; the keys of those that hold other bytes now."""
    path, content = place / key, (place / key).read_bytes()
    touched = {key: content}
    at = int(rng.integers(len(content)))
    if kind == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[:at])
    elif kind == "delete":
        path.unlink()
    elif kind == "zero":
        path.write_bytes(bytes(len(content)))
    elif kind == "append":
        path.write_bytes(content + rng.bytes(int(rng.integers(1, 40))))
    elif kind == "older":
        path.write_bytes((older / key).read_bytes())
    else:
        alike = [each for each in keys if each != key and len(each.split("/")) == len(key.split("/"))]
        same = [each for each in alike if (place / each).stat().st_size == len(content)]
        other = str(rng.choice(same or alike or keys))
        touched[other] = (place / other).read_bytes()
        path.write_bytes(touched[other])
        (place / other).write_bytes(content)
    return {each for each, was in touched.items() if not (place / each).exists() or (place / each).read_bytes() != was}


def draw(
    rng: np.random.Generator, lakes: tuple[Path, Path], place: Path, key: str, kind: str, whole: dict[str, Any]
) -> list[str]:
    """Damage one file of a copy of a lake, read everything, verify, and mend; what went unnoticed."""
    new, older = lakes
    hurt = damage(rng, place, older, key, sorted(tree(new)), kind)
    silent = []
    for what, value in everything(place).items():
        expected = whole[what]
        if not (value.identical(expected) if isinstance(value, xr.Dataset | xr.DataArray) else value == expected):
            silent.append(f"{kind} {key}: {what}")
    found = verify(place)
    silent += [f"{kind} {key}: verify misses {each}" for each in sorted(hurt - {each.path for each in found.damage})]
    silent += [f"{kind} {key}: {each.problem}" for each in found.damage if "remove" in each.problem]
    for each in hurt:
        (place / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new / each, place / each)
    return silent


def fuzz(lakes: tuple[Path, Path], folder: Path, n_draw: int, seed: int) -> list[str]:
    """Draws over all files of a lake and all kinds of damage; what went unnoticed."""
    rng, place, whole = np.random.default_rng(seed), folder / "hurt.lake", everything(lakes[0])
    shutil.copytree(lakes[0], place)
    keys = sorted(tree(place))
    assert len(whole) > 40
    silent: list[str] = []
    for number, key in enumerate(rng.permutation(keys * (1 + n_draw // len(keys)))[:n_draw].tolist()):
        silent += draw(rng, lakes, place, key, KINDS[number % len(KINDS)], whole)
    assert tree(place) == tree(lakes[0])
    return silent


def test_damage_of_any_kind_to_any_file_is_an_error_and_named(lakes: tuple[Path, Path], tmp_path: Path) -> None:
    assert fuzz(lakes, tmp_path, int(os.environ.get("LAKE_FUZZ_DRAWS", "28")), seed=0) == []


def model_arrays() -> dict[str, np.ndarray]:
    """Arrays of a made-up model."""
    return {key: make_model()[key].values for key in MODEL_VARIABLES}


def run_in_shards(place: Path | str, n_example: int = 12) -> RunWriter:
    """A model and a run of random numbers in shards of four examples, stored in float16."""
    layout = RunLayout(
        n_example=n_example, n_layer=2, n_head=2, hidden=16, n_latent=2, longest_question=3, n_answer=2,
        capture="latent", dtype="float16",
    )  # fmt: skip
    layout = replace(layout, shard_bytes=4 * layout.example_bytes)
    write_model(place, "m", model_arrays, {"fingerprint": {}})
    columns = {"example": (("example",), np.arange(n_example)), "question": (("example",), ["why?"] * n_example)}
    return create_run(place, "m/d", layout, identity={"spec": {"dtype": "float16"}}, columns=columns)


def fill(writer: RunWriter, shard: int, version: int) -> None:
    """Write a shard all of whose values say which version of it they are of."""
    values = writer.empty(shard)
    for name, buffer in values.items():
        array = writer.layout.arrays()[name]
        plain = np.full(buffer.shape, version, dtype=object if array.dtype == "string" else array.dtype)
        values[name] = plain.astype(str).astype(object) if array.dtype == "string" else plain
    values["correct"][:] = True
    writer.write_shard(shard, values)


def versions(run: xr.Dataset) -> set[object]:
    """What a run's values say: versions, and whether all answers are right."""
    found: set[object] = {bool(run["correct"].values.all())}
    for name in ("hidden_state", "attention", "latent_embedding", "token", "predicted_answer", "generated_text"):
        found |= {float(value) for value in np.unique(run[name].values.astype(float))}
    return found


def rebuilding(place: Path | str) -> int:
    """A forked process that writes a shard again and again, in two versions."""
    if (child := os.fork()) == 0:
        for turn in range(10**6):
            fill(RunWriter(place, "m/d"), 1, 2 + turn % 2)
    return child


def test_a_shard_that_is_written_again_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    place = tmp_path / "some.lake"
    writer = run_in_shards(place)
    for shard in range(3):
        fill(writer, shard, 2)
    lake = open_lake(place)
    opened = lake.open("m/d", chunks=None)
    for attempt in range(3):
        child = rebuilding(place)
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            for run in (opened.copy(), lake["m/d"]):
                assert versions(run) <= {True, 2.0, 3.0}
                assert run.sizes["example"] == 12
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert versions(open_lake(place)["m/d"]) <= {True, 2.0, 3.0}, attempt
        assert verify(place).damage == []
    fill(RunWriter(place, "m/d"), 1, 2)
    assert versions(lake["m/d"]) == {True, 2.0}
    assert verify(place).leftovers == []


def test_a_rebuild_that_is_killed_between_two_files_leaves_right_values(tmp_path: Path) -> None:
    place = tmp_path / "some.lake"
    writer = run_in_shards(place)
    for shard in range(3):
        fill(writer, shard, 2)
    into = Path.replace
    for n_replaced in (0, 1, 2, 6, 10, 12, 14, 15):
        if (child := os.fork()) == 0:
            left = iter(range(n_replaced))

            def replace_or_die(self: Path, target: Path, left: Iterator[int] = left) -> Path:
                if next(left, None) is None:
                    os._exit(0)
                return into(self, target)

            Path.replace = replace_or_die  # type: ignore[method-assign]
            fill(RunWriter(place, "m/d"), 1, 3)
            os._exit(1)
        os.waitpid(child, 0)
        assert versions(open_lake(place)["m/d"]) <= {True, 2.0, 3.0}
        assert verify(place).damage == []
        mended = RunWriter(place, "m/d")
        assert mended.committed().tolist() == [True, n_replaced == 0 or n_replaced == 15, True]
        fill(mended, 1, 2)
        assert versions(open_lake(place)["m/d"]) == {True, 2.0}
        assert verify(place).leftovers == []


def test_what_is_lost_of_a_run_is_named_and_no_file_is_to_be_removed(lakes: tuple[Path, Path], tmp_path: Path) -> None:
    for lost in ("record/zarr.json", "zarr.json", "committed/c/0", "record/sha256/c/0/0/0"):
        place = Path(shutil.copytree(lakes[0], tmp_path / lost.replace("/", "-")))
        (place / "toy" / "toy" / lost).unlink()
        (place / "toy" / "toy" / "notes.txt").write_text("mine")
        assert "toy/toy" in open_lake(place).runs()
        with pytest.raises(CorruptLakeError, match=rf"toy/toy/{lost} is not there.*run lake verify"):
            open_lake(place)["toy/toy"]["hidden_state"].load()
        found = verify(place)
        named = {each.path: each for each in found.damage}
        assert f"toy/toy/{lost}" in named
        assert set(named) <= {f"toy/toy/{lost}", "toy/toy/notes.txt"}
        assert not any("remove" in each.problem for each in found.damage)
        (command,) = found.commands
        assert command.startswith("lake extract")


def test_a_run_of_other_weights_than_its_model_is_named(tmp_path: Path) -> None:
    merged, other = tmp_path / "one.lake", tmp_path / "two.lake"
    layout = RunLayout(
        n_example=2, n_layer=1, n_head=1, hidden=8, n_latent=2, longest_question=3, n_answer=2,
        capture="latent", dtype="float16",
    )  # fmt: skip
    for place, name, weights in ((merged, "m/a", "1" * 64), (other, "m/b", "2" * 64)):
        write_model(place, "m", model_arrays, {"fingerprint": {"weights": weights}})
        identity, columns = {"spec": {}, "weights": weights}, {"example": (("example",), np.arange(2))}
        create_run(place, name, layout, identity=identity, columns=columns)
        assert verify(place).damage == []
    shutil.copytree(other / "m" / "b", merged / "m" / "b")  # what cp -r of a lake onto another leaves
    (damage,) = verify(merged).damage
    assert (damage.group, damage.kind) == ("m/b", "weights")
    assert "other weights" in damage.problem
    assert verify(merged).commands == []
    with pytest.raises(CorruptLakeError, match="m/b was made with other weights"):
        open_lake(merged).model("m")
    for moved in (
        (other / "m" / "b").rename(other / "m" / "c"),
        shutil.copytree(merged / "m" / "a", merged / "m" / "c"),
    ):
        place, stated = moved.parents[1], "m/b" if moved.is_relative_to(other) else "m/a"
        (damage,) = (each for each in verify(place).damage if each.group == "m/c")
        assert f"m/c holds the run {stated}, whose folder was renamed" in damage.problem
        with pytest.raises(CorruptLakeError, match=f"move it back to {stated}"):
            open_lake(place)["m/c"]


def test_what_is_not_the_lakes_blocks_nothing(lakes: tuple[Path, Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(lakes[0], tmp_path / "some.lake"))
    for name in ("mine", "toy/mine"):
        (place / name).mkdir()
        (place / name / "zarr.json").write_text("{")
    extract(prepared_run(place, write_questions(tmp_path / "test.partial.jsonl", 4)), place)
    lake = open_lake(place)
    assert lake.runs() == ["toy/other", "toy/test.partial", "toy/toy"]
    assert lake["toy/test.partial"].sizes["example"] == 4
    assert lake.models() == ["toy"]
    assert {each.path: each.kind for each in verify(place).damage} == {
        "mine/zarr.json": "stranger", "toy/mine/zarr.json": "stranger",
    }  # fmt: skip
    with pytest.raises(UsageError, match="cannot be called unembedding"):
        create_run(place, "toy/unembedding", lake.layout("toy/other"), identity={}, columns={})


@pytest.mark.parametrize(("method", "n_worker"), [("fork", 2), ("spawn", 1)])
def test_workers_read_after_their_parent_has_read(lakes: tuple[Path, Path], method: str, n_worker: int) -> None:
    runs = [open_lake(lakes[0]).open("toy/toy", chunks=chunks) for chunks in ("auto", None)]
    rows = torch.utils.data.ConcatDataset([Rows(run) for run in runs])
    expected = [rows[index] for index in range(len(rows))]
    loader = torch.utils.data.DataLoader(
        rows, batch_size=5, num_workers=n_worker, multiprocessing_context=method, timeout=120
    )
    found = [float(value) for batch in loader for value in batch]
    assert found == pytest.approx(expected, rel=1e-8)  # a worker's blocks may be others, and so the order of a sum
    for run in runs:
        xr.testing.assert_identical(pickle.loads(pickle.dumps(run)).load(), run.load())  # noqa: S301


def test_the_first_line_one_writes_is_right(lakes: tuple[Path, Path], tmp_path: Path) -> None:
    lake = open_lake(lakes[0])
    run, stored = lake["toy/toy"], open_lake(lakes[0], stored=True)["toy/toy"]
    assert (run["attention"].dtype, stored["attention"].dtype) == (np.float32, np.float16)
    exact = stored["attention"].astype("float64").mean("example")
    np.testing.assert_allclose(run["attention"].mean("example"), exact, atol=1e-7)
    bare = xr.open_zarr(lakes[0], group="toy/toy", consolidated=False)
    assert {key: type(value) for key, value in run.attrs.items()} == {
        key: type(bare.attrs[key]) for key in run.attrs
    }  # fmt: skip
    for number, each in enumerate(
        (run, run.isel(example=[0, 5]), run[["token", "question"]], stored, lake.model("toy"))
    ):
        each.to_zarr(tmp_path / f"{number}.zarr", consolidated=False)
        back = xr.open_zarr(tmp_path / f"{number}.zarr", consolidated=False)
        np.testing.assert_array_equal(back[list(each)[0]], each[list(each)[0]])
        if each is not stored:  # netCDF has no float16
            each.to_netcdf(tmp_path / f"{number}.nc")
            back = xr.open_dataset(tmp_path / f"{number}.nc")
            for name in set(each.data_vars) & {"hidden_state", "token", "question", "unembedding"}:
                np.testing.assert_array_equal(back[name], each[name])
    lake.result("heads", top=1).to_netcdf(tmp_path / "result.nc")
    run["attention"].isel(example=0).to_netcdf(tmp_path / "part.nc")


def test_urls_of_files_name_the_folder_they_say(lakes: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a b.lake", "a#b.lake", "a?b.lake", "a%b.lake"):
        shutil.copytree(lakes[0], tmp_path / name)
        for url in ((tmp_path / name).as_uri(), f"file://localhost{tmp_path}/{name.replace('%', '%25')}"):
            assert open_lake(url).folder == tmp_path / name
            assert open_lake(url)["toy/other"]["token"].shape[0] == 4
            assert verify(url).damage == []
    with pytest.raises(UsageError, match="names the host"):
        open_lake("file://elsewhere/tmp/a.lake")


def test_one_long_text_does_not_widen_the_others() -> None:
    texts = ["x"] * 10**5 + ["y" * 10**5]  # 40 GB as text of one width
    name, arguments = column("question", texts, ("example",))
    assert arguments["data"].dtype == np.dtypes.StringDType()
    assert arguments["data"][-1] == texts[-1]


def test_an_analysis_of_a_lake_that_cannot_be_written_shows_its_result(
    lakes: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(shutil.copytree(lakes[0], Path(folder) / "read-only.lake"))
        Path(folder).chmod(0o755)
        before = tree(place)
        for path in (place, *place.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        words = ["analyze", "heads", str(place), "toy/toy", "--resamples", "20"]
        child = forked_lake(words, lambda: os.setuid(65534) if os.getuid() == 0 else None)  # no permission stops root
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        said = capfd.readouterr()
        assert "composite" in said.out
        assert [line.startswith("lake: ") for line in said.err.splitlines() if "cannot be written" in line] == [True]
        assert tree(place) == before
