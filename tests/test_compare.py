import json
import shutil

import numpy as np
import pytest
from codi_models import ORACLE
from report_lake import MODELS, missing_of
from small_runs import write_questions

from analyze.compare.differences import compare, comparison_table, difference_table
from extract.run.extract import extract
from extract.run.prepare import prepare
from schemas import RunSpec, UsageError
from schemas.statistics import mcnemar_exact
from store import open_lake

RUNS = [f"{model}/test" for model in MODELS]


@pytest.fixture(scope="module")
def lake(report_lake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    made = open_lake(shutil.copytree(report_lake, folder / "toy.lake"))
    other = write_questions(folder / "other.jsonl", 10)
    spec = RunSpec(max_new_tokens=3)
    base = str(ORACLE / "base-gpt2")
    extract(prepare(f"deep={ORACLE / 'codi-gpt2'}", str(other), made.location, spec, base=base), made.location)
    return made


def test_model_is_a_dim_and_values_are_the_results_own(lake):
    result = compare(lake, RUNS, n_resample=50)
    assert result["model"].values.tolist() == RUNS
    for run in RUNS:
        one = result.sel(model=run)
        assert one["accuracy"].item() == pytest.approx(lake[run]["correct"].values.mean())
        stored = lake.result("corrupt", run).sel(stratum="all")
        row = stored.isel(condition=((stored["corruption"] == "mean") & (stored["group"] == "ct1")).values)
        got = one["importance"].sel(corruption="mean", position="ct1")
        np.testing.assert_allclose(got, row["importance"].values[0])
        lens = lake.result("lens", run).isel(layer=-1).sel(position="ct0")
        np.testing.assert_allclose(one["number_share"].sel(position="ct0").isel(depth=-1), lens["number_share"])
    positions = [str(x) for x in result["position"].values]
    assert positions == ["bot", *(f"ct{i}" for i in range(6)), "eot"]


def test_same_problems_are_paired_by_example(lake):
    result = compare(lake, RUNS, n_resample=200)
    first, second = (lake[run]["correct"].values for run in RUNS)
    one = result.sel(model=RUNS[0], other_model=RUNS[1])
    assert one["paired_accuracy"].item() == 1
    assert one["n_shared_accuracy"].item() == len(first)
    assert one["accuracy_difference"].item() == pytest.approx(first.mean() - second.mean())
    back = result.sel(model=RUNS[1], other_model=RUNS[0])
    np.testing.assert_allclose(one["importance_difference_low"], -back["importance_difference_high"])
    p = mcnemar_exact(first, second).p if "accuracy_p" in one else 1.0
    assert one.get("accuracy_p", p) == pytest.approx(p)
    # known truth: the twin's answer does not need the thought that the model's cannot do without
    gap = one.sel(corruption="mean", position="ct1")
    assert gap["importance_difference_low"] > 0.5


def test_other_problems_are_unpaired_and_layers_meet_by_depth(lake):
    result = compare(lake, [RUNS[0], "deep/other"], n_resample=20)
    one = result.sel(model=RUNS[0], other_model="deep/other")
    assert one["paired_accuracy"].item() == 0
    assert "different data" in result.attrs["note"]
    low, high = one["accuracy_difference_low"], one["accuracy_difference_high"]
    assert low < one["accuracy_difference"] < high
    assert result["layer_at_depth"].sel(model="deep/other").values.tolist() == [0, 1, 2, 3]
    assert result["layer_at_depth"].sel(model=RUNS[0]).values.tolist() == [0, 0, 1, 1]
    missing = missing_of(result)
    assert "deep/other: heads; lake analyze heads PATH deep/other" in missing
    assert not any(line.startswith(f"{RUNS[0]}: heads") for line in missing)


def test_patching_comes_from_the_models_pairs(lake):
    result = compare(lake, RUNS, n_resample=20)
    source = lake.result("patch", "small-gpt2/pairs")
    assert source.attrs["fingerprint"][:12] in result.attrs["sources"]
    clean = result["patch_clean"].sel(place="fed").isel(n_thought=-1)
    assert clean.sel(model=RUNS[0]) > clean.sel(model=RUNS[1])
    assert result["paired_patch_clean"].sel(model=RUNS[0], other_model=RUNS[1]) == 1


def test_tables_have_a_row_for_each_model_and_difference(lake):
    result = open_lake(lake.location).result("compare")
    table = comparison_table(result)
    assert table["model"].tolist() == RUNS
    differences = difference_table(result)
    assert set(differences["what"]) >= {"accuracy", "importance", "number_share", "patch_clean", "attention"}
    assert (differences["low"] <= differences["high"]).all()


def test_a_comparison_needs_two_runs(lake):
    with pytest.raises(UsageError, match="at least two different runs"):
        compare(lake, RUNS[:1])


def test_runs_made_with_other_settings_are_told(lake, call, tmp_path):
    place = shutil.copytree(lake.location, tmp_path / "own.lake")
    code, _, err = call("analyze", "compare", place, RUNS[0], "deep/other", "--resamples", 20)
    longest = json.loads(lake[RUNS[0]].attrs["spec"])["max_new_tokens"]
    assert code == 0
    assert f"a difference may come: max_new_tokens {longest} of {RUNS[0]}, 3 of deep/other\n" in err
    code, _, err = call("analyze", "compare", place, *RUNS, "--resamples", 20)
    assert (code, "a difference may come" in err) == (0, False)
