"""Reading shards directly: the same values as Zarr reads, nothing damaged, nothing out of date."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import store.layout
import store.shards
from schemas import CorruptLakeError
from store import RunLayout, RunWriter, create_run, open_lake, verify
from store.blocks import BlockArray
from store.codecs import compressor, decompress
from store.encode import encode_shard, encoders
from store.files import assemble, column
from store.frames import is_plain, read_part
from store.range_check import ABSENT
from store.shards import ShardedArray

ARRAYS = ("hidden_state", "final_state", "latent_embedding", "attention")
COLUMNS = ("token", "generated_text", "answer_logprob")
"""Of those without inner chunks."""
CAPTURES = ("latent", "full")
LAYOUT = RunLayout(
    n_example=27, n_layer=2, n_head=2, hidden=64, n_latent=6, longest_question=3, n_answer=2,
    capture="latent", dtype="float16",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    """Several chunks of a shard's examples, as only large models have them; half a chunk is read by rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.layout, "INNER_BYTES", 2**9)
        patch.setattr(store.shards, "ROW_SHARE", 2)
        yield


def fill(writer: RunWriter, shard: int, seed: int = 0) -> None:
    """Write a shard of noise; some chunks are constant, which compresses, and some absent."""
    rng, values = np.random.default_rng([seed, shard]), writer.empty(shard)
    for name in ARRAYS:
        values[name] = rng.standard_normal(values[name].shape).astype("float16")
    values["hidden_state"][:, 1, 3:5] = 2.0
    values["hidden_state"][:, 0, 3:5] = np.nan
    values["attention"][:2, 1] = 0.0
    values["token"] = rng.integers(0, 99, values["token"].shape).astype("int32")
    values["generated_text"][:] = [f"{number}è" for number in rng.integers(0, 10**6, len(values["generated_text"]))]
    values["answer_logprob"] = rng.standard_normal(values["answer_logprob"].shape).astype("float32")
    writer.write_shard(shard, values)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run per capture: 27 examples in shards of 8, of which the second is all fill and the third unfinished."""
    place = tmp_path_factory.mktemp("shards") / "some.lake"
    for capture in CAPTURES:
        layout = replace(LAYOUT, capture=capture)
        layout = replace(layout, shard_bytes=8 * layout.example_bytes)
        writer = create_run(
            place, f"m/{capture}", layout, identity={"spec": {}}, columns={"example": (("example",), np.arange(27))}
        )
        writer.write_shard(1, writer.empty(1))
        for shard in (0, 3):
            fill(writer, shard)
    return place


@pytest.fixture(scope="module")
def direct(place: Path) -> dict[str, xr.Dataset]:
    """The runs as the lake reads them."""
    return {name: open_lake(place).open(f"m/{name}", uncommitted=True, chunks=None, stored=True) for name in CAPTURES}


@pytest.fixture(scope="module")
def plain(place: Path) -> dict[str, xr.Dataset]:
    """The runs as Zarr alone reads them."""
    return {name: xr.open_zarr(place, group=f"m/{name}", consolidated=False, chunks=None).load() for name in CAPTURES}


def indices(size: int) -> st.SearchStrategy[object]:
    number = st.integers(-size, size - 1)
    array = st.lists(number, max_size=9).map(lambda each: np.array(each, dtype=int))
    mask = st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
    slices = st.slices(size).filter(lambda each: len(range(size)[each]) > 0)  # xarray fails at `[::-1][:0]` itself
    return st.one_of(number, slices, array, mask, st.just(slice(None)))


@pytest.mark.parametrize("n_example", [8, 5])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_shard_is_what_zarr_writes_but_for_the_order_of_its_chunks(name: str, n_example: int) -> None:
    layout = RunLayout(
        n_example=n_example, n_layer=2, n_head=2, hidden=64, n_latent=6, longest_question=3, n_answer=2,
        capture="full", dtype="float16",
    )  # fmt: skip
    array, nothing = layout.arrays()[name], layout.empty(n_example)[name]
    values = np.full(nothing.shape, array.fill, dtype=array.dtype)
    values[:3, :1] = np.random.default_rng(0).standard_normal(values[:3, :1].shape)
    values[:, -1:] = 2.0  # compresses; what is in neither is fill, and has no chunk
    written: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(written), shape=array.shape, chunks=array.chunks, shards=array.shards, dtype=array.dtype,
        fill_value=array.fill, compressors=array.codecs,
    )[:] = values  # fmt: skip
    key = array.key(0)
    with encoders() as pool:
        blocks = BlockArray.of(values, array.dtype, array.fill)
        file, theirs = b"".join(encode_shard(array, blocks, pool).pieces), written[key].to_bytes()
        assert list(encode_shard(array, nothing, pool).pieces) == []

    def chunks(content: bytes) -> dict[int, bytes | None]:
        index = np.frombuffer(content[-array.index_bytes : -4], dtype="<u8").reshape(-1, 2).tolist()
        return {n: None if at == ABSENT else content[at : at + size] for n, (at, size) in enumerate(index)}

    assert chunks(file) == chunks(theirs)
    assert len(file) == len(theirs)
    written[key] = default_buffer_prototype().buffer.from_bytes(file)
    np.testing.assert_array_equal(zarr.open_array(MemoryStore(written), mode="r")[:], values)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_box_of_blocks_is_that_of_the_whole_array(seed: int) -> None:
    rng, shape = np.random.default_rng(seed), (6, 5, 7)
    blocks, whole = BlockArray(shape, "int16", -1), np.full((9, 9, 9), -1, dtype="int16")
    touched = np.zeros(whole.shape, dtype=bool)
    for rows in np.split(rng.permutation(6), [2, 3]):
        corner = rng.integers(0, shape[1:])
        block = rng.integers(0, 99, (len(rows), *rng.integers(1, np.array(shape[1:]) - corner + 1)))
        blocks.add(rows, corner.tolist(), block)
        where = (rows, *(slice(at, at + size) for at, size in zip(corner, block.shape[1:], strict=True)))
        whole[where], touched[where] = block, True
    begin = rng.integers(0, shape)
    box = tuple(slice(at, at + size) for at, size in zip(begin, rng.integers(1, 4, 3), strict=True))
    room = np.full(whole[box].shape, 123, dtype="int16")
    reached = blocks.rows(int(begin[0]), len(room)).read(begin[1:].tolist(), room)
    assert reached == touched[box].any()
    np.testing.assert_array_equal(room, whole[box] if reached else 123)


def test_a_block_over_the_edge_is_refused() -> None:
    blocks = BlockArray((4, 3), "float16", 0)
    for rows, corner in (([0, 4], (0,)), ([0, 1], (2,)), ([0], (0,))):
        with pytest.raises(IndexError, match="is not within"):
            blocks.add(np.array(rows), corner, np.ones((2, 2)))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_index_gives_what_zarr_gives(
    direct: dict[str, xr.Dataset], plain: dict[str, xr.Dataset], data: st.DataObject
) -> None:
    capture, name = data.draw(st.sampled_from(CAPTURES)), data.draw(st.sampled_from((*ARRAYS, *COLUMNS)))
    found, expected = direct[capture][name].variable, plain[capture][name].variable
    assert name in COLUMNS or isinstance(found._data.array, ShardedArray)
    for _ in range(2):  # an index, and one of what that leaves
        index = {dim: data.draw(indices(size), label=str(dim)) for dim, size in found.sizes.items() if size}
        found, expected = found.isel(index), expected.isel(index)
        np.testing.assert_array_equal(found.values, expected.values)


def test_points_give_what_zarr_gives(direct: dict[str, xr.Dataset], plain: dict[str, xr.Dataset]) -> None:
    points = {"example": xr.DataArray([26, 0, 9], dims="point"), "position": xr.DataArray([3, 3, -1], dims="point")}
    np.testing.assert_array_equal(direct["full"]["hidden_state"][points], plain["full"]["hidden_state"][points])


def test_arrays_of_a_result_are_what_zarr_writes_and_reads(tmp_path: Path) -> None:
    """Of any type and number of axes, of more rows than a chunk has, of nothing but fill, or of nothing."""
    n, rng = 2 * store.layout.COLUMN_CHUNK + 5, np.random.default_rng(0)
    types = ("float64", "float32", "float16", "int64", "int32", "uint8", "bool", "complex64")
    made = {name: ("row", rng.integers(0, 9, n).astype(name)) for name in types}
    made |= {
        "one": ((), 2.5),
        "half": ((), np.float16(0.5)),
        "name": ((), "è"),
        "none": ("nothing", np.zeros(0)),
        "zeros": ("row", np.zeros(n)),
    }
    made |= {
        "gaps": ("row", np.full(n, np.nan)),
        "minus": ("row", -np.zeros(n)),
        "texts": (("row", "a"), rng.choice(["", "a", "bè"], (n, 2))),
    }
    made |= {"blank": ("a", ["", ""]), "box": (("a", "b", "nothing"), np.zeros((2, 3, 0)))}
    made |= {"deep": (("b", "a", "row"), rng.standard_normal((3, 2, n)))}
    place, memory = tmp_path / "some.lake", dict[str, Any]()
    build = [column(key, xr.Dataset(made)[key].values, xr.Dataset(made)[key].dims) for key in made]
    group = zarr.create_group(MemoryStore(memory))
    for name, arguments in build:
        group.create_array(name, **arguments)
    written = {key: content.to_bytes() for key, content in memory.items()}
    assert {**assemble({}, build), "zarr.json": written["zarr.json"]} == written
    create_run(place, "m/d", LAYOUT, identity={"spec": {}}, columns={"example": (("example",), np.arange(27))})
    name = open_lake(place).write_result("made", xr.Dataset(made), runs=["m/d"], spec={})
    found = open_lake(place, stored=True).open_result(name).drop_attrs()
    expected = xr.open_zarr(place, group=name, consolidated=False, chunks=None).load().drop_attrs()
    xr.testing.assert_identical(
        found, expected.assign({key: expected[key].astype(object) for key in ("name", "texts", "blank")})
    )
    assert all(found[key].dtype == object for key in ("name", "texts", "blank"))
    widened = open_lake(place).open_result(name)
    assert {widened[key].dtype.name for key in ("float16", "float32", "half")} == {"float32"}
    np.testing.assert_array_equal(found["deep"], made["deep"][1])


@pytest.mark.parametrize("capture", CAPTURES)
def test_without_dask_it_is_the_same_run_and_as_lazy(
    place: Path, capture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("something was read")

    lake = open_lake(place)
    with dask.config.set(scheduler=refuse), monkeypatch.context() as patch:
        patch.setattr(ShardedArray, "_box", refuse)
        bare, blocks = lake.open(f"m/{capture}", chunks=None), lake[f"m/{capture}"]
        bare["hidden_state"].sel(layer=1, position="ct3")
    assert bare["hidden_state"].chunks is None
    assert blocks["hidden_state"].chunks is not None
    assert bare.sizes["example"] == 19
    xr.testing.assert_identical(bare.compute(), blocks.compute())


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_byte_is_named(place: Path, name: str) -> None:
    run = open_lake(place).open("m/full", uncommitted=True, chunks=None)[name]
    path = next((place / "m" / "full" / name / "c" / "0").rglob("0"))
    while path.is_dir():
        path = path / "0"
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(len(whole), size=40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CorruptLakeError, match=f"{re.escape(str(path))} is .* --rebuild 0"):
            run.copy().load()
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptLakeError, match="bytes, .* were recorded; run lake verify"):
        run.load()
    path.write_bytes(whole)


def shard_of_states(place: Path) -> tuple[Path, bytes, np.ndarray]:
    """The first shard of the run's states: its file, what it holds, and begin and length of each chunk in it."""
    layout = open_lake(place).layout("m/latent").arrays()["hidden_state"]
    path = place / "m/latent/hidden_state" / layout.key(0)
    whole = path.read_bytes()
    return path, whole, np.frombuffer(whole[-layout.index_bytes : -4], dtype="<u8").reshape(*layout.grid, 2)


def test_a_flipped_byte_in_a_row_is_named(place: Path) -> None:
    path, whole, index = shard_of_states(place)
    begin = int(index[1, 1, 2, 0, 0]) + 16 + 2 * 128  # the third example of the second chunk, after Blosc's header
    run = open_lake(place).open("m/latent", chunks=None)["hidden_state"].isel(layer=1, position=2)
    for at in (begin, begin + 127):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        run.isel(example=5).load()
        for opened in (run, open_lake(place)["m/latent"]["hidden_state"].isel(layer=1, position=2)):
            with pytest.raises(CorruptLakeError, match=r"chunk \(1, 1, 2, 0\) does not.* --rebuild 0"):
                opened.isel(example=6).load()
        assert 0 in {damage.shard for damage in verify(place).damage}
    path.write_bytes(whole)


def test_one_row_reads_little(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    run = open_lake(place).open("m/latent", chunks=None)["hidden_state"]
    monkeypatch.setattr(ShardedArray, "_decode", lambda *words: read.append(words[2:4]))
    run.isel(layer=1, position=slice(5, None), example=[0, 2]).load()
    assert read == []


@pytest.mark.parametrize("share", [0.1, 0.3, 0.99])
def test_parts_of_frames_are_those_of_the_content_or_not_given(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    chunk = rng.standard_normal((150, 768)).astype("float16")
    chunk[rng.random(len(chunk)) < share] = np.nan
    layout = replace(LAYOUT, hidden=768, n_example=150).arrays()["latent_embedding"]
    with encoders() as pool:
        frame = pool.submit(compressor(layout.codecs[0]), chunk).result() + bytes(4)
    (tmp_path / "chunk").write_bytes(b"before" + frame)
    row = 768 * 2
    assert not is_plain(len(frame), chunk.nbytes)
    with (tmp_path / "chunk").open("r+b") as file:
        for n in range(len(chunk)):
            assert read_part(file.fileno(), 6, len(frame), chunk.nbytes, n * row, row) == chunk[n].tobytes()
        for _ in range(200):
            at, n = 6 + int(rng.integers(min(len(frame), 300))), int(rng.integers(len(chunk)))
            file.seek(at)
            was = file.read(1)
            file.seek(at)
            file.write(bytes([was[0] ^ (1 << int(rng.integers(8)))]))
            file.flush()
            read_part(file.fileno(), 6, len(frame), chunk.nbytes, n * row, row)  # its checksum is looked at elsewhere
            file.seek(at)
            file.write(was)
            file.flush()


@pytest.mark.parametrize("name", ["attention", "hidden_state"])
def test_a_chunk_comes_back_and_what_is_none_is_refused(name: str) -> None:
    codec = LAYOUT.arrays()[name].codecs[0]
    chunk = np.where(np.tri(64, 64, dtype=bool), np.random.default_rng(0).random((64, 64)), 0).astype("float16")
    content, back = compressor(codec)(chunk), np.empty(chunk.nbytes, np.uint8)
    decompress(codec, content, back)
    assert back.tobytes() == chunk.tobytes()
    for wrong, room in ((b"none at all", back), (content[: len(content) // 2], back), (content, back[:-1])):
        with pytest.raises((ValueError, RuntimeError)):
            decompress(codec, wrong, room)


def test_the_chunk_that_is_damaged_is_named(place: Path) -> None:
    path, whole, index = shard_of_states(place)
    at = int(index[1, 1, 2, 0].sum()) - 1
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    run = open_lake(place).open("m/latent", chunks=None)["hidden_state"]
    run.isel(example=slice(4)).load()
    for read in (run, open_lake(place)["m/latent"]["hidden_state"]):
        with pytest.raises(CorruptLakeError, match=r"c/0/0/0/0 .*chunk \(1, 1, 2, 0\) does not.* --rebuild 0"):
            read.isel(layer=1, position=2).load()
    path.write_bytes(whole)


def test_a_shard_written_again_is_read_anew(place: Path) -> None:
    lake = open_lake(place)
    opened = [lake.open("m/latent", chunks=None)["hidden_state"], lake["m/latent"]["hidden_state"]]
    cells = [run.sel(layer=1, position="ct5") for run in opened]
    before = [cell.values for cell in cells]
    fill(RunWriter(place, "m/latent"), 0, seed=1)
    after = [cell.values for cell in cells]
    fill(RunWriter(place, "m/latent"), 0)
    np.testing.assert_array_equal(after[0], after[1])
    assert (after[0][:8] != before[0][:8]).all()
    np.testing.assert_array_equal(after[0][8:], before[0][8:])
