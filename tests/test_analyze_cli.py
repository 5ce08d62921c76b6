"""lake analyze heads, attention, lens, correlate: one lake, tables, results, CSV, JSON, mistakes."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic import make_model, make_run, write_run

from analyze import head_scores, importance_of, lens_summary, logit_lens
from analyze.lens.readout import ReadOut
from schemas import SchemaError
from store import open_lake


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake with two runs, and the runs as they were made."""
    path = tmp_path_factory.mktemp("lakes") / "made.lake"
    runs = []
    for seed, name in enumerate(("one/problems", "two/problems")):
        model = make_model(seed=seed)
        run = make_run(name=name, n_example=30, twins=True, seed=seed, model=model)
        write_run(path, run, model)
        runs.append((run, model))
    return path, runs


def test_workers_read_a_read_out_that_is_in_a_lake_and_get_any_other(made):
    model = open_lake(made[0]).model("one")
    stored, other = ReadOut(model), ReadOut(model.assign(unembedding=2 * model["unembedding"]))
    assert len(pickle.dumps(stored)) < 1000 < len(pickle.dumps(other))
    for readout in (stored, other):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(readout)).unembedding, readout.unembedding)


def test_a_lake_gives_what_memory_gives(made):
    path, runs = made
    lake = open_lake(path)
    for run, model in runs:
        found = lake[run.attrs["run"]]
        stored, direct = head_scores(found["attention"]), head_scores(run["attention"])
        for name in ("flow", "hub", "composite", "type"):
            np.testing.assert_array_equal(stored[name].values, direct[name].values) if name == "type" else (
                np.testing.assert_allclose(stored[name], direct[name], rtol=1e-5)
            )
        offline = lens_summary(logit_lens(found, lake.model(run.attrs["run"].split("/")[0])))
        again = lens_summary(logit_lens(run, model))
        xr.testing.assert_allclose(offline.sel(position=again["position"].values).compute(), again, rtol=1e-4)


def test_heads(made, call, tmp_path):
    path, _ = made
    code, out, err = call("analyze", "heads", path, "--resamples", 20, "--top", 4, "--csv", tmp_path)
    assert (code, err) == (0, "")
    assert "one/problems: 6 heads, 30 examples" in out
    assert out.count("rank 95%") == 2
    table = pd.read_csv(tmp_path / "one.problems-heads-layer_head.csv")
    assert {"layer", "head", "flow", "hub", "composite_low", "top_share"} <= set(table.columns)
    stored = open_lake(path).result("heads", "one/problems", convention="thoughts")
    assert stored["pattern"].sizes == {"layer": 3, "head": 2, "position": 6, "key_position": 6}
    code, out, _ = call("analyze", "heads", path, "one/problems", "--convention", "reports", "--resamples", 5, "--json")
    assert code == 0
    assert len(json.loads(out)["one/problems"]["layer_head"]) == 6


def test_attention_and_lens(made, call):
    path, _ = made
    code, out, _ = call("analyze", "attention", path, "two/problems", "--resamples", 5)
    assert code == 0
    assert "attention of eot" in out
    code, out, _ = call("analyze", "lens", path, "two/problems", "--lens", "logit,tuned")
    assert code == 0
    assert "plain lens, layer 2" in out
    assert "tuned lens, on problems it was not fitted on" in out
    lake = open_lake(path)
    assert {x.kind for x in lake.results()} >= {"attention", "lens", "lens_tests", "tuned_lens"}
    assert "step_share" in lake.result("lens", "two/problems", lens="tuned")


def test_correlate(made, call):
    path, _ = made
    options = ("--permutations", 20, "--resamples", 10)
    code, out, _ = call("analyze", "correlate", path, "one/problems", "--importance", "answer_logprob", *options)
    assert code == 0
    assert "attention of eot against answer_logprob" in out
    code, _, err = call("analyze", "correlate", path, "one/problems", "--importance", "nothing", *options)
    assert code == 2
    assert "not a number by example" in err
    assert "answer_logprob" in err
    assert err.count("\n") == 1


def test_importance_without_positions_has_nothing_within_problems(made):
    from analyze import answer_attention, attention_importance

    run = made[1][0][0]
    result = attention_importance(
        answer_attention(run["attention"]), importance_of(run, "answer_logprob"), n_permutation=5, n_resample=5
    )
    assert result["within_r"].isnull().all()
    assert result["position_r"].notnull().all()
    with pytest.raises(SchemaError, match="such are predicted_answer, correct, answer_logprob"):
        importance_of(run, "question")


def test_lens_of_a_part(made, call):
    """The part of a run gives what the whole gives there; layers and positions in the run's order."""
    path, runs = made
    part = ("--layers", "2,0", "--positions", "ct1, bot", "--limit", 20, "--lens", "logit,tuned")
    code, out, err = call("analyze", "lens", path, "one/problems", *part, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["one/problems"]
    names = [each["result"] for each in (found, found["lens-1"], found["tuned_lens"])]
    assert "lens_tests" not in found  # one thought has none to be compared with
    lake = open_lake(path)
    plain, tuned, fitted = (lake.open_result(name) for name in names)
    run, model = runs[0]
    whole = lens_summary(logit_lens(run.isel(example=slice(0, 20)), model))
    at = {"layer": [0, 2], "position": ["bot", "ct1"]}
    xr.testing.assert_allclose(plain.drop_attrs(), whole.sel(at).drop_attrs(), rtol=1e-4)
    assert plain["layer"].values.tolist() == tuned["layer"].values.tolist() == fitted["layer"].values.tolist() == [0, 2]
    assert fitted.attrs["positions"] == "bot ct1"
    assert next(each for each in lake.results("lens") if each.name == names[0]).spec["limit"] == 20


def test_cost_of_the_lens_beforehand(made, call):
    path, runs = made
    both = ("--lens", "logit,tuned")
    code, out, err = call("analyze", "lens", path, "one/problems", "--plan", "--layers", "0", "--json", *both)
    assert (code, err) == (0, "")
    cost = json.loads(out)["one/problems"]
    state = runs[0][0]["hidden_state"].isel(layer=0, hidden=0)
    assert cost["n_state"] == int(np.isfinite(state).sum())
    assert cost["operations"] == 5 * 2 * cost["n_state"] * 40 * 8  # over 40 tokens of 8 components; a fit takes four
    code, out, err = call("analyze", "lens", path, "one/problems", "--plan")
    assert (code, err) == (0, "")
    assert "30 examples" in out
    assert "of processor time on this machine" in out


COMMANDS = {
    "lens": ("layers", "positions", "limit"),
    "heads": ("limit",),
    "attention": ("layers", "limit"),
    "correlate": ("layers", "positions", "limit"),
    "probes": ("layers", "positions", "limit"),
    "sae": ("layers", "positions", "limit"),
    "errors": ("limit",),
}


@pytest.mark.parametrize(("command", "options"), COMMANDS.items())
def test_a_part_that_is_not_there(made, call, command, options):
    mistakes = {"layers": ("7", "did you mean 2?"), "positions": ("bot,ct22", "did you mean 'ct2'?"), "limit": (0, "1")}
    for option in options:
        value, said = mistakes[option]
        code, out, err = call("analyze", command, made[0], f"--{option}", value)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_parts_of_other_analyses(made, call):
    path, _ = made
    few = ("one/problems", "--json")
    options = ("--permutations", 5, "--resamples", 5)
    part = ("--limit", 20, "--layers", "1", "--positions", "ct0,ct3")
    code, out, err = call("analyze", "correlate", path, *few, *options, *part)
    assert (code, err) == (0, "")
    rows = json.loads(out)["one/problems"]["layer_position"]
    assert {(row["layer"], row["position"]) for row in rows} == {(1, "ct0"), (1, "ct3")}
    code, out, err = call("analyze", "attention", path, *few, "--resamples", 5, *part[:4])
    assert (code, err) == (0, "")
    assert open_lake(path).open_result(json.loads(out)["one/problems"]["result"])["layer"].values.tolist() == [1]
    code, out, err = call("analyze", "heads", path, *few, "--resamples", 5, *part[:2])
    assert (code, err) == (0, "")
    assert open_lake(path).open_result(json.loads(out)["one/problems"]["result"]).attrs["n_example"] == 20


def test_mistakes(made, call):
    path, _ = made
    code, _, err = call("analyze", "heads", path, "three/problems")
    assert code == 2
    assert "three/problems" in err
    code, _, err = call("analyze", "heads", path, "--convention", "other")
    assert code == 2
    assert "--convention other is not one of thoughts, reports" in err


def test_that_there_are_no_jacobians_is_said_before_another_lens_is_read(made, call, monkeypatch):
    monkeypatch.setattr("analyze.lens.command.read_out", None)
    code, _, err = call("analyze", "lens", made[0], "one/problems", "--lens", "logit,jacobian")
    assert code != 0
    assert "lake reenter jacobian" in err
