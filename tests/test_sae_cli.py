"""lake analyze sae and errors: results in the lake, tables, CSV, JSON, files, mistakes; and their figures."""

import json

import numpy as np
import pytest
import torch
from synthetic import make_model, make_run, write_run

from analyze.sae.figures import plot_sae_features, plot_sae_reconstruction
from analyze.sae.rows import source_name
from store import open_lake

QUICK = ("--epochs", 2, "--features", 12, "--k", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake of two models that answered the same problems."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("lakes") / "made.lake"
    for seed, (name, hidden) in enumerate((("one/problems", 8), ("two/problems", 10))):
        model = make_model(seed=seed, hidden=hidden)
        write_run(path, make_run(name=name, n_example=80, twins=True, seed=seed, model=model, hidden=hidden), model)
    return path


def test_sae_of_each_run(made, call, tmp_path):
    code, out, err = call("analyze", "sae", made, *QUICK, "--csv", tmp_path / "csv", "--save", tmp_path / "files")
    assert (code, err) == (0, "")
    assert "one/problems: topk, 12 features, explained variance of test rows" in out
    assert "L0 3.0" in out
    assert {p.name for p in (tmp_path / "files").iterdir()} == {"one.problems", "two.problems"}
    assert (tmp_path / "files" / "two.problems" / "layer-2_position-ct5" / "cfg.json").is_file()
    assert (tmp_path / "csv" / "one.problems-sae-split_layer_position.csv").is_file()
    sae = open_lake(made).result("sae", "one/problems", scope="pool")
    assert sae["decoder"].dims == ("feature", "hidden")
    assert sae["explained_variance"].sel(position="ct3").sizes == {"definition": 3, "split": 3, "layer": 3}
    question = open_lake(made)["one/problems"]["question"].sel(example=sae["top_example"].sel(feature=5).values)
    assert len(question) == 10


def test_sae_scopes_and_cells(made, call):
    code, out, err = call(
        "analyze", "sae", made, "one/problems", *QUICK, "--scope", "cell", "--layers", "0,2", "--positions", "ct0,ct1",
        "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (found,) = json.loads(out).values()
    assert len(found["split_layer_position"]) == 12
    assert open_lake(made).open_result(found["result"])["encoder"].shape == (2, 2, 12, 8)
    code, out, err = call("analyze", "sae", made, *QUICK, "--scope", "crosscoder", "--layers", "2")
    assert (code, err) == (0, "")
    assert "one/problems + two/problems" in out
    sae = open_lake(made).result("sae", "one/problems", "two/problems")
    assert sae["source"].values.tolist() == ["one/2", "two/2"]
    assert np.isfinite(sae["decoder"].sel(source="two/2")).all()
    code, out, err = call(
        "analyze", "sae", made, "one/problems", "--preset", "llama", "--layers", "0", "--epochs", 1, "--features", 12,
        "--variable", "all_states",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "explained variance of train rows" in out


def test_errors_learn_a_dictionary_where_there_is_none(made, call, tmp_path):
    path = made.with_name("other.lake")
    model = make_model()
    write_run(path, make_run(name="one/problems", n_example=80, twins=True, model=model), model)
    code, out, err = call("analyze", "errors", path, "--resamples", 20, "--csv", tmp_path)
    assert (code, err) == (0, "lake: one/problems: there is no dictionary yet; learning one\n")
    assert "will the answer be wrong?" in out
    assert (tmp_path / "one.problems-errors-predictor.csv").is_file()
    code, out, err = call("analyze", "errors", path, "--resamples", 20, "--pooling", "mean", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["one/problems"]
    assert [row["predictor"] for row in found["predictor"]] == [
        "sae_codes",
        "raw_activation",
        "question_length",
        "majority",
    ]
    stored = open_lake(path).open_result(found["result"])
    assert stored["weight"].dims == ("feature",)
    code, out, err = call("analyze", "errors", path, "--reports", "--resamples", 20)
    assert (code, err) == (0, "")


def test_mistakes_are_one_line(made, call):
    for arguments, message in (
        (("sae", made, "--activation", "gelu"), "gelu is not one of topk"),
        (("sae", made, "one/problems", "--preset", "gpt2"), "hidden_state has no layer [3, 7, 10]"),
        (("sae", made, "--preset", "gpt3"), "gpt3 is not one of gpt2, llama, pilot, topk"),
        (("errors", made, "one/problems", "--penalties", "much"), "--penalties takes numbers"),
    ):
        code, out, err = call("analyze", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.fixture(scope="module")
def results(made):
    from analyze import SAESpec, select_cells, train_sae

    lake = open_lake(made)
    run = lake["one/problems"]
    spec = SAESpec(epochs=2, features=12, k=3)
    joint = {name.partition("/")[0]: select_cells(lake[name]) for name in lake.runs()}
    pool = train_sae(select_cells(run), spec)
    return pool, train_sae(joint, spec, scope="crosscoder")


def test_figures_draw_what_they_are_given(results):
    pool, joint = results
    axes = plot_sae_reconstruction({"pool": pool, "both": joint})
    shown = pool["explained_variance"].sel(split="test", definition="squared_error").transpose("layer", "position")
    np.testing.assert_allclose([float(text.get_text()) for text in axes[0].texts], shown.values.ravel(), atol=0.005)
    assert [t.get_text() for t in axes[1].get_yticklabels()] == joint["source"].values.tolist()
    often, strong = plot_sae_features(pool)
    assert "L0 3.0" in often.get_title()
    np.testing.assert_allclose(sum(bar.get_height() for bar in strong.patches), 1)


def test_a_source_of_a_crosscoder_in_words():
    assert [source_name(name) for name in ("small-gpt2/0", "small-gpt2", "")] == [
        "layer 0 of small-gpt2",
        "small-gpt2",
        "",
    ]
