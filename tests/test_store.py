"""The lake on disk: layout, reading with and without this project, results, claims, archived formats."""

import errno
import itertools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from called import run_lake
from small_runs import prepared_run, tree, uncommit, write_questions
from synthetic import make_model, make_run, no_compute, write_run

import store.files
from extract.run.extract import extract
from schemas import (
    FORMAT_VERSION,
    CorruptLakeError,
    MissingRunError,
    UnwritableLakeError,
    UsageError,
    position_labels,
)  # fmt: skip
from store import RunLayout, create_run, describe, find, open_lake, verify
from store.check import check_place
from store.files import group_document, unseal
from store.layout import BLOCK, KEY_BLOCK, QUERY_BLOCK, round_up
from store.shards import ShardedArray

ARCHIVE = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    data = write_questions(folder / "toy.jsonl", 7)
    extract(prepared_run(folder / "toy.lake", data, shard_examples=4, capture="full"), folder / "toy.lake")
    return folder / "toy.lake"


def layout(**changes: object) -> RunLayout:
    sizes = {"n_example": 1000, "n_layer": 12, "n_head": 12, "hidden": 768, "n_latent": 6, "longest_question": 70}
    return RunLayout(**{**sizes, "n_answer": 24, "capture": "full", "dtype": "float16", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("capture", ["latent", "full"])
@pytest.mark.parametrize("longest", [1, 32, 33, 221])
def test_bot_starts_a_block_and_shards_keep_within_their_bound(capture: str, longest: int) -> None:
    made = layout(longest_question=longest, capture=capture)
    assert made.key_positions.index("bot") % BLOCK == 0
    assert made.positions.index("bot") % BLOCK == 0
    assert made.key_positions == position_labels(round_up(longest, BLOCK), 24)
    assert made.shard_examples * made.example_bytes <= made.shard_bytes
    assert RunLayout.from_json(json.loads(json.dumps(made.to_json()))) == made
    covered = [made.shard_slice(shard) for shard in range(made.n_shard)]
    assert np.concatenate([np.arange(1000)[rows] for rows in covered]).tolist() == list(range(1000))
    attention = made.arrays()["attention"]
    assert attention.chunks[3:] == (QUERY_BLOCK, KEY_BLOCK)
    assert attention.shards is not None
    assert all(whole % part == 0 for whole, part in zip(attention.shards, attention.chunks, strict=True))


def test_blocks_of_zeros_are_not_written(place: Path) -> None:
    run = open_lake(place).open("toy/toy")
    assert run.sizes["position"] == run.sizes["key_position"] == 64 + 8 + 3
    content = (place / "toy/toy/attention/c/0/0/0/0/0").read_bytes()
    array = open_lake(place).layout("toy/toy").arrays()["attention"]
    index = np.frombuffer(content[-array.index_bytes : -4], dtype="<u8").reshape(*array.grid, 2)
    written = (index[..., 1] != 2**64 - 1).any(axis=(0, 2))  # 4 layers, 10 blocks of queries, 2 of keys
    assert written.shape == (4, 10, 2)
    assert not written[:, :8, 1].any()  # what is later than every query of a block
    assert written[:, 8:].all()
    longest = int((run["token"][:4].values[:, :64] >= 0).sum(1).max())
    assert [bool(block.any()) for block in written[:, :8].swapaxes(0, 1)] == [
        longest > 64 - (block + 1) * QUERY_BLOCK for block in range(8)
    ]


def test_a_bare_environment_reads_it_without_warnings(place: Path, tmp_path: Path) -> None:
    script = (
        "import sys, xarray as xr\n"
        f"run = xr.open_zarr({str(place)!r}, group='toy/toy', consolidated=False)\n"
        f"tree = xr.open_datatree({str(place)!r}, engine='zarr', consolidated=False)\n"
        "assert tree['toy/toy']['hidden_state'].dims == run['hidden_state'].dims\n"
        "row = run['attention'].isel(example=0, layer=0, head=0).sel(position='ct5')\n"
        "assert abs(float(row.sum()) - 1) < 1e-2 and 'segment' in run.coords\n"
        "assert not {'store', 'schemas', 'extract'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_opening_computes_nothing_and_blocks_are_few(place: Path) -> None:
    with no_compute():
        run = open_lake(place)["toy/toy"]
        mean = run["hidden_state"].astype("float32").mean("example")
    states = run["hidden_state"]
    assert states.chunksizes["layer"] == (1, 1, 1, 1)
    assert states.chunksizes["position"] == (1,) * 75
    assert states.chunksizes["example"] == (7,)
    assert run["attention"].chunksizes["head"] == (4,)
    np.testing.assert_allclose(
        mean.sel(layer=2, position="ct3"),
        states.sel(layer=2, position="ct3").values.astype("float32").mean(0),
        rtol=1e-6,
    )


INDEXES: list[dict[str, object]] = [
    {"example": 17}, {"example": -1}, {"example": [3, 99, 41]}, {"example": [5, 5, 2]}, {"example": slice(70, 60, -3)},
    {"example": slice(8, 12), "layer": 1}, {"example": [90, 4], "layer": [2, 0]}, {"example": []},
    {"layer": [1], "example": slice(None, None, 30)}, {"example": slice(0, 100)}, {"layer": slice(1, 3)},
]  # fmt: skip


@pytest.mark.parametrize("block_bytes", [2**23, 700])
def test_a_few_examples_are_read_alone_through_dask_too(tmp_path: Path, monkeypatch, block_bytes: int) -> None:
    made = make_run(n_example=100, dtype="float16")
    write_run(tmp_path / "some.lake", made, make_model(), shard_examples=64)
    lake = open_lake(tmp_path / "some.lake")
    run, plain = lake["made-up/problems"], lake.open("made-up/problems", chunks=None)
    monkeypatch.setattr("store.chunked.BLOCK_BYTES", block_bytes)
    for index in INDEXES:
        expected = plain.isel(index).load()
        xr.testing.assert_identical(run.isel(index).load(), expected)
        one_by_one = pickle.loads(pickle.dumps(run))
        for dim in sorted(index, reverse=True):
            one_by_one = one_by_one.isel({dim: index[dim]})
        xr.testing.assert_identical(one_by_one.load(), expected)
    few = lake.open("made-up/problems", chunks=70)  # whole shards, of no more examples
    assert (few["hidden_state"].chunksizes["example"], run["hidden_state"].chunksizes["example"]) == ((64, 36), (100,))
    half = few.isel(example=np.flatnonzero(np.arange(100) % 2))  # a block of each block, so that none is read twice
    assert half["hidden_state"].chunksizes["example"] == (32, 18)
    xr.testing.assert_identical(half.load(), plain.isel(example=np.flatnonzero(np.arange(100) % 2)).load())
    xr.testing.assert_identical(few.load(), plain.load())
    some = run.isel(example=[3, 99, 41])
    assert some["hidden_state"].chunksizes["layer"] == ((3,) if block_bytes > 2**20 else (1, 1, 1))
    with pytest.raises(IndexError):
        run.isel(example=[3, 100])
    # with what was computed of it, which is a plain dask array
    both = run.assign(double=2 * run["hidden_state"])
    np.testing.assert_array_equal(both.compute()["double"], 2 * plain["hidden_state"].values)
    total = xr.apply_ufunc(np.add, run["hidden_state"], both["double"], dask="parallelized", output_dtypes=["float32"])
    np.testing.assert_allclose(total.values, 3 * plain["hidden_state"].values, rtol=1e-6)
    half = run.isel(example=np.flatnonzero(np.arange(100) % 2))
    assert half["hidden_state"].chunksizes["layer"] == (1, 1, 1)
    read, fill = [], ShardedArray._fill  # of few examples, too, one position is read for one that is asked for

    def counted(self, picks, values):
        read.append(values.shape[2])
        return fill(self, picks, values)

    monkeypatch.setattr(ShardedArray, "_fill", counted)
    pickle.loads(pickle.dumps(some["hidden_state"])).isel(position=[2]).load()
    assert set(read) == {1}


def test_variables_come_in_the_same_order_each_time(place: Path) -> None:
    run, model = open_lake(place)["toy/toy"], open_lake(place).model("toy")
    assert list(run.variables) == sorted(run.variables)
    assert list(model.variables) == sorted(model.variables)


def test_only_committed_examples_are_read(place: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(place, tmp_path / "part.lake"))
    uncommit(part / "toy/toy", 0)
    run = open_lake(part)["toy/toy"]
    assert run["example"].values.tolist() == [4, 5, 6]
    assert run["committed"].all()
    everything = open_lake(part).open("toy/toy", uncommitted=True)
    assert everything["committed"].values.tolist() == [False] * 4 + [True] * 3


def test_texts_are_stored_by_place_whatever_their_order_in_memory(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, lake := tmp_path / "texts.lake")
    texts = np.array([[f"{row} {column}" for row in range(6)] for column in range(3)], dtype=object).T
    assert texts.flags.f_contiguous
    opened = open_lake(lake)
    name = opened.write_result("texts", xr.Dataset({"text": (("row", "column"), texts)}), runs=opened.runs(), spec={})
    np.testing.assert_array_equal(opened.open_result(name)["text"].values, texts)


def test_results_are_labelled_and_name_what_they_read(place: Path, tmp_path: Path) -> None:
    lake = open_lake(Path(shutil.copytree(place, tmp_path / "r.lake")))
    kinds = np.array(["a", "b"], dtype=object)
    scores = xr.Dataset({"score": ("head", [0.5, np.nan])}, coords={"head": [0, 1], "type": ("head", kinds)})
    scores.attrs["note"] = "n"
    name = lake.write_result("heads", scores, runs=["toy/toy"], spec={"top": 3})
    assert lake.write_result("heads", scores, runs=["toy/toy"], spec={"top": 3}) == name
    lake.write_result("heads", scores * 2, runs=["toy/toy"], spec={"top": 4})
    xr.testing.assert_equal(lake.result("heads", "toy/toy", top=3), scores)
    assert lake.open_result(name).attrs["note"] == "n"
    xr.testing.assert_identical(lake.open_result(lake.results()[0].fingerprint[:12]), lake.open_result(name))
    with pytest.raises(MissingRunError, match="several results fit"):
        lake.result("heads", "toy/toy")
    with pytest.raises(MissingRunError, match="no result fits"):
        lake.result("heads", top=5)
    described = describe(lake)
    assert described["results"][name]["inputs"] == {"toy/toy": described["runs"]["toy/toy"]["fingerprint"]}
    assert described["results"][name]["current"]
    assert described["runs"]["toy/toy"]["examples_committed"] == 7
    (found,) = find(lake, described["results"][name]["fingerprint"][:10])
    assert (found["what"], found["of"]) == ("result", name)
    assert {each["what"] for each in find(lake, described["runs"]["toy/toy"]["weights"])} == {"weights"}
    with pytest.raises(MissingRunError, match="beginning of a fingerprint"):
        find(lake, "ffff0000")
    assert verify(lake.location).damage == []


def test_a_result_that_cannot_be_written_leaves_the_one_that_is_there(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake(Path(shutil.copytree(place, tmp_path / "r.lake")))
    scores = xr.Dataset({"score": ("head", [0.5, np.nan]), "more": ("head", [1, 2])}, coords={"head": [0, 1]})
    name = lake.write_result("heads", scores, runs=["toy/toy"], spec={})
    before, n_kept = tree(Path(lake.location)), 0
    for fatal in itertools.count():
        left = itertools.count(-fatal)

        def flush(path: Path, left: Iterator[int] = left) -> None:
            if next(left) == 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(store.files, "_flush", flush)
        try:
            lake.write_result("heads", scores[["score"]] * 2, runs=["toy/toy"], spec={})
        except UnwritableLakeError:
            n_kept += tree(Path(lake.location)) == before
            assert lake.open_result(name).sizes == scores.sizes
            continue
        break
    assert n_kept > 3  # and the last flushes are of folders, when the new one is in its place
    xr.testing.assert_identical(lake.open_result(name).drop_attrs(), scores[["score"]] * 2)
    assert not [path for path in Path(lake.location, name).rglob("*") if "more" in path.name]


def test_a_command_whose_result_the_disk_has_no_room_for_prints_it_and_fails(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lake = Path(shutil.copytree(place, tmp_path / "full.lake"))
    monkeypatch.setattr(store.files, "set_bytes", full)
    words = ("analyze", "heads", lake, "toy/toy", "--resamples", "5")
    for more, said in (((), "not kept"), (("--json",), '"result": null')):
        code, out, err = call(*words, *more)
        assert code == 1
        assert said in out
        assert "No space left on device" in err
        assert "give the same command again" in err
        assert err.count("\n") == 1
    assert tree(lake) == tree(place)


def test_info_prints_the_chain(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = open_lake(place).attributes("toy/toy")["fingerprint"]
    for words, said in (([], "7/7"), (["toy/toy"], digest), ([digest[:8]], "run toy/toy")):
        run_lake("info", place, *words)
        assert said in capsys.readouterr().out
    run_lake("info", place, "--json")
    assert json.loads(capsys.readouterr().out)["runs"]["toy/toy"]["shards_committed"] == 2


def test_info_tells_results_of_fewer_examples_than_the_run_has(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose extraction went on, or an analysis of a part."""
    lake = open_lake(shutil.copytree(place, tmp_path / "a.lake"))
    for n in (3, 7):
        scores = xr.Dataset({"score": ("example", np.zeros(n))})
        lake.write_result(f"of{n}", scores, runs=["toy/toy"], spec={})
    lake.write_result("drawn", scores.isel(example=[0]).assign_attrs(n_example=7), runs=["toy/toy"], spec={})
    run_lake("info", tmp_path / "a.lake")
    lines = {line.split("/")[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("results/")}
    assert lines["of3"].rstrip().endswith("of 3 of 7 examples")
    assert "examples" not in lines["of7"] + lines["drawn"]


def test_a_creation_cut_short_is_begun_anew(tmp_path: Path) -> None:
    made = layout(n_example=2, n_layer=1, n_head=1, hidden=4, longest_question=3, n_answer=2)
    columns = {"example": (("example",), np.arange(2)), "question": (("example",), ["a", "b"])}
    for name in ("x", "y"):
        create_run(tmp_path / f"{name}.lake", "m/first", made, identity={"spec": {}}, columns=columns)
    left = tmp_path / "x.lake" / "m" / "d" / "old"
    left.mkdir(parents=True)
    (left / "zarr.json").write_text("{}")
    (tmp_path / "x.lake" / "zarr.0a.partial").write_text("half")
    create_run(tmp_path / "x.lake", "m/d", made, identity={"spec": {}}, columns=columns)
    create_run(tmp_path / "y.lake", "m/d", made, identity={"spec": {}}, columns=columns)
    assert tree(tmp_path / "x.lake") == tree(tmp_path / "y.lake")


def test_a_run_whose_writer_said_nothing_of_it_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = layout(n_example=2, n_layer=1, n_head=1, hidden=4, longest_question=3, n_answer=2)
    create_run(
        tmp_path / "x.lake", "m/d", made, identity={"spec": {}}, columns={"example": (("example",), np.arange(2))}
    )
    for words, text in (([], "m/d  0/2"), (["m/d"], "weights: \n")):
        assert run_lake("info", tmp_path / "x.lake", *words) == 0
        assert text in capsys.readouterr().out


def test_places_that_are_no_lake(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    data = write_questions(tmp_path / "toy.jsonl", 1)
    for wrong, said in (("file", "is a file"), ("full", "other content")):
        with pytest.raises(UsageError, match=said):
            prepared_run(tmp_path / wrong, data)
    with pytest.raises(UsageError, match="other content"):
        check_place(tmp_path / "new" / ".." / "full")
    with pytest.raises(UsageError, match="there is no lake"):
        open_lake(tmp_path / "none")
    newer = Path(shutil.copytree(place, tmp_path / "newer.lake"))
    text = (newer / "zarr.json").read_text()
    (newer / "zarr.json").write_text(text.replace(f'"format":{FORMAT_VERSION}', '"format":99'))
    for read in (open_lake, verify):
        with pytest.raises(UsageError, match="lake format 99"):
            read(newer)
    (newer / "zarr.json").write_text(text)
    document = newer / "toy/toy/zarr.json"
    content, attributes = document.read_bytes(), unseal(document.read_bytes())
    for change, message in ({"tiles": 3}, "says tiles of it"), ({"format": 99}, "made it in lake format 99"):
        document.write_bytes(group_document({**attributes, "layout": attributes["layout"] | change}))
        for read in (lambda: open_lake(newer)["toy/toy"], lambda: verify(newer)):
            with pytest.raises(UsageError, match=f"a newer version {message}. Update"):
                read()
    document.write_bytes(content)
    (newer / "toy/toy/hidden_state/zarr.json").write_text("{}")
    with pytest.raises(CorruptLakeError, match="run lake verify"):
        open_lake(newer)["toy/toy"]


def test_lakes_of_earlier_formats_open() -> None:
    """``format-1.lake``: three questions through the small GPT-2 of ``codi_oracle``, and a made-up result."""
    archived = ARCHIVE / "format-1.lake"
    assert sum(path.stat().st_size for path in archived.rglob("*") if path.is_file()) < 300_000
    lake = open_lake(archived)
    run = lake["toy/toy"].load()
    assert dict(run.sizes) == {
        "example": 3, "layer": 4, "head": 4, "position": 11, "key_position": 75, "hidden": 48, "latent": 6, "step": 2,
    }  # fmt: skip
    assert float(run["hidden_state"].astype("float64").sum()) == pytest.approx(-50.84406250715256, rel=1e-12)
    assert float(run["attention"].astype("float64").sum()) == pytest.approx(528.0013694763184, rel=1e-12)
    assert int(run["token"].sum()) == 5067
    assert run["generated_text"].values[0] == " how how how"
    assert lake.model("toy").sizes["vocabulary"] == 403
    with pytest.raises(ValueError, match="read-only"):  # the next call hands out the same arrays
        lake.model("toy")["unembedding"][0] = 0
    assert float(lake.result("heads", top=3)["score"].sum()) == 120
    assert verify(archived).damage == []


def test_a_missing_run_is_named(place: Path) -> None:
    with pytest.raises(MissingRunError, match="it has toy/toy"):
        open_lake(place)["toy/none"]
    assert "toy/toy" in open_lake(place)
    assert list(open_lake(place)) == ["toy/toy"]
    assert zarr.open_group(place, mode="r").attrs["format"] == FORMAT_VERSION
