"""What differs between runs and lakes is what was changed, where and by how much."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
from synthetic import make_model, make_run, write_run

from store import open_lake


@pytest.mark.parametrize("second", [8, 4])  # the same shards, of which equal ones are not read, or others
def test_changed_values_are_named_with_place_and_size(call, tmp_path, second):
    model, run = make_model(), make_run(name="one/problems", n_example=14)
    other = make_run(name="one/others", n_example=14, model=model)
    write_run(tmp_path / "a.lake", run, model, shard_examples=8)
    other["hidden_state"][3, 1, 4, 2] += 0.5
    other["hidden_state"][12, 2, 5, 6] -= 2.0
    other["answer_logprob"][6] = np.nan
    other["generated_text"][7] = "else"
    write_run(tmp_path / "b.lake", other, model, shard_examples=second)
    code, out, err = call("diff", tmp_path / "a.lake", tmp_path / "b.lake", "one/problems", "one/others", "--json")
    found = {row["variable"]: row for row in json.loads(out)["values"]}
    assert (code, err, found.keys()) == (1, "", {"hidden_state", "answer_logprob", "generated_text"})
    state = found["hidden_state"]
    assert (state["differ"], state["examples"], state["where"]) == (2, 2, "example 12 layer 2 position ct4 hidden 6")
    assert state["largest"] == pytest.approx(2.0, rel=1e-5)
    size = run["hidden_state"].size
    scale = np.sqrt(np.square(np.nan_to_num(run["hidden_state"].values)).sum() / state["compared"])
    assert state["compared"] >= size  # with the padding of the layout
    assert state["mean"] == pytest.approx(2.5 / state["compared"], rel=1e-5)
    assert state["relative"] == pytest.approx(2.0 / scale, rel=1e-5)
    assert (found["answer_logprob"]["differ"], found["answer_logprob"]["where"]) == (1, "example 6")
    assert float(found["answer_logprob"]["largest"]) == np.inf  # a number and none
    assert found["generated_text"]["second"] == "else"
    assert call("diff", tmp_path / "a.lake", tmp_path / "a.lake", "one/problems")[0] == 0
    out = call("diff", tmp_path / "a.lake", tmp_path / "b.lake", "one/problems", "one/others")[1]
    assert ("layout.shard_bytes" in out) == (second == 4)


def test_two_lakes_are_compared_group_by_group(call, tmp_path):
    write_run(tmp_path / "a.lake", make_run(name="one/problems"), make_model())
    score = xr.Dataset({"score": ("layer", [0.5, 1.0])})
    name = open_lake(tmp_path / "a.lake").write_result("scores", score, runs=["one/problems"], spec={})
    shutil.copytree(tmp_path / "a.lake", tmp_path / "b.lake")
    code, out, _ = call("diff", tmp_path / "a.lake", tmp_path / "b.lake")
    assert (code, "3 models, runs and results are the same" in out) == (0, True)
    open_lake(tmp_path / "b.lake").write_result("scores", score + [0, 0.25], runs=["one/problems"], spec={})
    write_run(tmp_path / "b.lake", make_run(name="two/problems"), make_model())
    _, out, _ = call("diff", tmp_path / "a.lake", tmp_path / "b.lake", "--json")
    found = {row["name"]: (row["state"], row["how"]) for row in json.loads(out) if row["state"] != "same"}
    assert found == {
        name: ("differs", "score: 1 of 2 values, by 0.25 at most"),
        "two": ("second alone", ""),
        "two/problems": ("second alone", ""),
    }
    code, _, err = call("diff", tmp_path / "a.lake", tmp_path / "b.lake", "one/problem")
    assert code == 2
    assert "did you mean 'one/problems'" in err
