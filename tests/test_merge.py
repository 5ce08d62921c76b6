"""Lakes of several machines become one, byte for byte, or are refused before anything is written."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from small_runs import tree, uncommit
from synthetic import make_model, make_run, write_run

from schemas import CorruptLakeError, LakeError, SpecMismatchError, UsageError
from store import merge, open_lake, verify

RUN = "one/problems"


def make_lake(place: Path, name: str = RUN, seed: int = 0) -> Path:
    model = make_model(seed=seed)
    write_run(place, make_run(name=name, n_example=20, seed=seed, model=model), model, shard_examples=8)
    return place


def test_shards_of_one_run_and_other_groups_come_together(tmp_path, capsys):
    whole = make_lake(tmp_path / "whole.lake")
    halves = [shutil.copytree(whole, tmp_path / f"{half}.lake") for half in "ab"]
    uncommit(halves[0] / RUN, 1)
    uncommit(halves[1] / RUN, 0)
    make_lake(halves[1], "two/problems", seed=1)
    scores = [open_lake(half).write_result("scores", xr.Dataset({"score": ("layer", [0.5, number])}),
                                           runs=[RUN], spec={}) for number, half in enumerate(halves)]  # fmt: skip
    into = tmp_path / "c.lake"
    before = [tree(half) for half in halves]
    words = ["merge", *map(str, halves), "--into", str(into)]
    for _ in range(2):  # the second time everything is there
        assert run_lake(*words) == 0
    assert [tree(half) for half in halves] == before
    assert not verify(into).damage
    files = tree(into)
    assert {key: files[key] for key in files if key.startswith("one/")} == {
        key: digest for key, digest in tree(whole).items() if key.startswith("one/")
    }
    lake = open_lake(into)
    assert lake.runs() == [RUN, "two/problems"]
    xr.testing.assert_identical(lake["two/problems"].load(), open_lake(halves[1])["two/problems"].load())
    assert lake.open_result(scores[0])["score"].values.tolist() == [0.5, 0.0]  # the first lake's
    again = {(each.name, Path(each.source).name): each for each in merge([open_lake(half) for half in halves], into)}
    assert (again[RUN, "a.lake"].copied, again[RUN, "a.lake"].there, again[RUN, "a.lake"].kept) == (0, 2, 0)
    assert (again[scores[0], "a.lake"].there, again[scores[0], "b.lake"].kept) == (1, 1)


def test_a_merge_that_was_stopped_is_unfinished_not_damaged_and_goes_on(tmp_path):
    whole, into = make_lake(tmp_path / "whole.lake"), tmp_path / "c.lake"
    open_lake(whole).write_result("scores", xr.Dataset({"score": ("layer", [0.5])}), runs=[RUN], spec={})
    for lost, begun in [
        ([f"{RUN}/zarr.json", f"{RUN}/committed/c", f"{RUN}/gold_answer"], [RUN]),
        ([RUN.split("/")[0] + "/zarr.json", RUN], ["one"]),
    ]:
        shutil.copytree(whole, into)
        shutil.rmtree(into / "results")
        for key in lost:
            (into / key).unlink() if (into / key).is_file() else shutil.rmtree(into / key)
        found = verify(into)
        assert (found.damage, found.begun) == ([], begun)
        merge([open_lake(whole)], into)
        assert tree(into) == tree(whole)
        shutil.rmtree(into)


def test_what_does_not_fit_together_is_refused_before_anything_is_written(tmp_path):
    first, other = make_lake(tmp_path / "a.lake"), make_lake(tmp_path / "b.lake", seed=1)
    model = make_lake(tmp_path / "d.lake", "one/others")
    for place, what in ((other, "run one/problems"), (model, "model one")):
        with pytest.raises(SpecMismatchError, match=f"{what} of .*a.lake and that of .* were made otherwise"):
            merge([open_lake(first), open_lake(place)], tmp_path / "c.lake")
    assert not (tmp_path / "c.lake").exists()
    with pytest.raises(UsageError, match="one of the lakes"):
        merge([open_lake(first)], first)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        merge([open_lake(first)], tmp_path / "file")


@pytest.mark.parametrize("what", ["hidden_state/c/1/0/0/0", "question/c/0", "../unembedding/c/0/0"])
def test_a_damaged_file_is_not_copied_and_a_mended_lake_goes_on(tmp_path, what):
    first, into = make_lake(tmp_path / "a.lake"), tmp_path / "c.lake"
    file = first / RUN / what
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CorruptLakeError, match=Path(what).parts[0 if ".." not in what else 1]):
        merge([open_lake(first)], into)
    assert not verify(into).damage
    file.write_bytes(content)
    merge([open_lake(first)], into)
    np.testing.assert_array_equal(
        open_lake(into)[RUN]["hidden_state"].values, open_lake(first)[RUN]["hidden_state"].values
    )
    assert not verify(into).damage


def test_a_run_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    first = make_lake(tmp_path / "a.lake")
    monkeypatch.setattr("store.claim.ShardClaim.__enter__", lambda claim: False)
    with pytest.raises(LakeError, match="another process is writing"):
        merge([open_lake(first)], tmp_path / "c.lake")
