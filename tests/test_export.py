"""A selection of a run as a file for other tools holds what xarray selects, whatever the blocks."""

import json

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from safetensors import safe_open
from synthetic import make_model, make_run, write_run

from analyze.query import export as exporting
from schemas import UsageError
from store import Lake, open_lake

RUN = "made-up/problems"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    place = tmp_path_factory.mktemp("lakes") / "some.lake"
    write_run(place, make_run(n_example=19, dtype="float16", twins=True), make_model(), shard_examples=8)
    return open_lake(place)


@pytest.fixture
def write(lake, tmp_path, monkeypatch, capsys):
    """``lake export`` in blocks of 7 examples: file, the selection as xarray makes it, and what was printed."""
    monkeypatch.setattr("analyze.blocks.CHUNK_EXAMPLES", 7)

    def run(ending: str, variables: str, *options: str):
        file = tmp_path / f"a.{ending}"
        words = ["export", str(lake.location), RUN, "--variable", variables, "--to", str(file), "--limit", "17"]
        code = run_lake(*words, "--layers", "0,2", "--positions", "ct1,eot,a0", "--json", *options)
        chosen = lake[RUN].isel(example=slice(0, 17)).sel(layer=[0, 2], position=["ct1", "eot", "a0"])
        return code, file, chosen.load(), capsys.readouterr()

    return run


def test_npz_and_safetensors_hold_values_and_labels(write):
    variables = "hidden_state,attention,correct,question"
    code, file, chosen, said = write("npz", variables)
    assert (code, said.err) == (0, "")
    assert json.loads(said.out)["variables"]["hidden_state"] == dict(chosen["hidden_state"].sizes)
    with np.load(file) as found:
        for name in (*variables.split(","), "example", "problem", "layer", "position", "key_position"):
            np.testing.assert_array_equal(found[name], chosen[name].values.astype(found[name].dtype))
        assert found["hidden_state"].dtype == np.float32
    code, file, chosen, said = write("safetensors", variables, "--stored")
    with safe_open(file, "np") as found:
        for name in ("hidden_state", "attention", "correct", "layer", "problem"):
            np.testing.assert_array_equal(found.get_tensor(name), chosen[name].values)
        assert found.get_tensor("hidden_state").dtype == np.float16
        texts = found.metadata()
    assert json.loads(texts["position"]) == ["ct1", "eot", "a0"]
    assert json.loads(texts["question"]) == chosen["question"].values.tolist()
    assert json.loads(texts["dims"])["hidden_state"] == ["example", "layer", "position", "hidden"]


def test_netcdf_is_opened_again_by_xarray(write):
    code, file, chosen, _ = write("nc", "hidden_state,question")
    assert code == 0
    with xr.open_dataset(file) as found:
        np.testing.assert_array_equal(found["hidden_state"].values, chosen["hidden_state"].values)
        assert found["question"].values.astype(str).tolist() == chosen["question"].values.tolist()


def test_parquet_has_a_row_for_each_example_layer_and_position(write):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    code, file, chosen, said = write("parquet", "hidden_state,correct,question")
    assert code == 0, said.err
    rows = parquet.read_table(file).to_pylist()
    assert len(rows) == 17 * 2 * 3
    for row in rows:
        here = chosen.sel(example=row["example"], layer=row["layer"], position=row["position"])
        np.testing.assert_array_equal(row["hidden_state"], here["hidden_state"].values)
        assert [row[name] for name in ("correct", "question", "problem")] == [
            here[name].item() for name in ("correct", "question", "problem")
        ]
    code, _, _, said = write("parquet", "hidden_state,attention")
    assert code == 2
    assert "a file of its own" in said.err


def test_what_cannot_be_written_leaves_no_file(write):
    for ending, variables, words in (
        ("npy", "hidden_state", "did you mean '.npz'"),
        ("npz", "hidden_sate", "did you mean 'hidden_state'"),
    ):
        code, file, _, said = write(ending, variables)
        assert (code, said.out, said.err.count("\n")) == (2, "", 1)
        assert words in said.err
        assert list(file.parent.iterdir()) == []
    code, _, _, said = write("nc", "hidden_state", "--stored")
    assert code == 2
    assert "float16" in said.err


def test_a_format_holds_a_column_as_it_is_or_is_refused(tmp_path, capsys):
    big = xr.Dataset({"big": ("example", np.arange(12, dtype="uint64") + 2**63)})
    exporting._write_safetensors(big, tmp_path / "a.safetensors", lambda done, total: None)
    with safe_open(tmp_path / "a.safetensors", "np") as found:
        np.testing.assert_array_equal(found.get_tensor("big"), big["big"])
    with pytest.raises(UsageError, match="netCDF cannot hold big: .* name another format"):
        exporting._write_netcdf(big, tmp_path / "a.nc", lambda done, total: None)
    run = make_run(question=np.array(["How many?\0"] * 12, dtype=object))
    write_run(tmp_path / "a.lake", run, make_model())
    for ending, words in (("npz", "texts of question end in NUL"), ("nc", "end in NUL"), ("safetensors", "")):
        run_lake("export", tmp_path / "a.lake", RUN, "--variable", "question", "--to", tmp_path / f"b.{ending}")
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("b.*")] == ["b.safetensors"]


@pytest.mark.parametrize(("place", "problem"), [("/dev/null/a.npz", "name another place"), ("here", "inside the lake")])
def test_places_where_nothing_is_written(lake, capsys, place, problem):
    to = str(lake.folder / "a.npz") if place == "here" else place
    code = run_lake("export", lake.location, RUN, "--to", to)
    error = capsys.readouterr().err
    assert code == 2
    assert problem in error
    assert error.count("\n") == 1
