"""Linear probes: the same numbers as scikit-learn, planted truth found and nothing else, honest on noise."""

import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from called import run_lake
from sklearn.metrics import roc_auc_score
from synthetic import make_model, make_run, write_run
from threadpoolctl import threadpool_info, threadpool_limits

from analyze.probes import figures as plot_probes
from analyze.probes import logistic as logistic
from analyze.probes.command import ProbeSettings, as_they_come
from analyze.probes.linear import NOTE, linear_probes, summarise_probes
from analyze.probes.nested import nested_logistic
from analyze.probes.tasks import PENALTIES, folds_of
from schemas import SchemaError, UsageError
from store import open_lake


def test_threads_do_not_matter():
    """The same states give the same table with one and two BLAS threads."""
    rng = np.random.default_rng(0)
    word = np.array(list("+-*"))[rng.integers(0, 3, 150)]
    states = rng.normal(size=(150, 1, 2, 64)) + (word == "+")[:, None, None, None] * rng.normal(size=64)
    run = xr.Dataset(
        {"hidden_state": (("example", "layer", "position", "hidden"), states), "operation": ("example", word)},
        coords={"layer": [0], "position": ["bot", "ct0"], "problem": ("example", np.arange(150))},
    )
    settings = ProbeSettings(target="operation", controls=1, resamples=50, permutations=50)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {threads}
            results.append(linear_probes(run, settings))
    xr.testing.assert_allclose(*results, rtol=0, atol=1e-6)


def planted_run(n_example=240, hidden=24, strength=2.5, seed=0, **changes):
    """Correctness planted along one direction at (layer 1, ct1) and (layer 2, ct4), noise everywhere else."""
    run = make_run(n_example=n_example, n_layer=3, hidden=hidden, twins=True, seed=seed, **changes)
    rng = np.random.default_rng([seed, 9])
    direction = rng.normal(size=hidden)
    direction /= np.linalg.norm(direction)
    states = run["hidden_state"].copy()
    sign = xr.where(run["correct"], 0.5, -0.5)
    for layer, position in ((1, "ct1"), (2, "ct4")):
        states.loc[{"layer": layer, "position": position}] += strength * sign * xr.DataArray(direction, dims="hidden")
    return run.assign(hidden_state=states), direction


THOUGHTS = ["bot", "ct0", "ct1", "ct2", "ct3", "ct4"]


def test_planted_direction_is_found_where_it_is_and_nowhere_else():
    run, direction = planted_run()
    result = linear_probes(run, ProbeSettings(positions=THOUGHTS, controls=1))
    found = result["p_corrected"] < 0.05
    cells = set(found.to_series()[lambda hit: hit].index)
    assert cells == {(1, "ct1"), (2, "ct4")}
    best = result.sel(layer=1, position="ct1")
    cosine = float(best["direction"] @ xr.DataArray(direction, dims="hidden") / np.linalg.norm(best["direction"]))
    assert cosine > 0.85
    assert best["accuracy_low_joint"] > best["majority_accuracy"]
    assert best["selectivity"] > 0.15
    table = summarise_probes(result).iloc[0]
    assert (table["best_layer"], table["best_position"]) in cells
    assert table["found"] == 2
    assert result.attrs["note"] == NOTE


@pytest.mark.parametrize("selection", ["accuracy", "log_loss"])
def test_noise_trains_to_certainty_and_tests_at_chance(selection):
    # The reports' setting: 50 + 50 examples, more components than examples.
    run = make_run(n_example=160, n_layer=2, hidden=256, seed=4)
    result = linear_probes(
        run, ProbeSettings(positions=THOUGHTS, per_class=50, selection=selection, controls=1, seed=1)
    )
    assert (result["n_example"] == 100).all()
    assert (result["accuracy_low_joint"] <= 0.5).all()
    assert (result["accuracy_high_joint"] >= 0.5).all()
    assert (result["p_corrected"] > 0.05).all()
    assert float(result["training_accuracy"].mean()) > 0.95
    assert float(result["refit_training_accuracy"].mean()) > 0.95
    assert float(result["accuracy"].mean()) == pytest.approx(0.5, abs=0.05)


def test_twins_do_not_straddle_folds():
    """Twins with one state and one label: any split between them would make a perfect probe of pure noise."""
    run = make_run(n_example=200, n_layer=1, hidden=64, twins=True, seed=2)
    first = run["hidden_state"].values[::2]
    run["hidden_state"].values[:] = np.repeat(first, 2, axis=0)
    label = np.repeat(np.random.default_rng(3).random(100) < 0.5, 2)
    result = linear_probes(run.assign(correct=("example", label)), ProbeSettings(positions=["bot", "ct3"], controls=0))
    assert (result["auroc_low_joint"] < 0.5).all()
    assert (result["auroc"] < 0.7).all()


def test_steps_numbers_and_classes():
    run = make_run(n_example=150, n_layer=2, hidden=16, n_step=2, seed=5)
    states = run["hidden_state"].copy()
    value = run["intermediate_result"].isel(step=0)
    states.loc[{"layer": 1, "position": "ct0", "hidden": 3}] = value + np.random.default_rng(0).normal(size=150)
    states.loc[{"layer": 0, "position": "ct1", "hidden": 5}] = 4.0 * (run["operation"].isel(step=0) == "*")
    run = run.assign(hidden_state=states)
    number = linear_probes(
        run, ProbeSettings(target="intermediate_result", positions=["bot", "ct0", "ct1"], controls=1)
    )
    assert number["r2"].dims == ("step", "layer", "position")
    assert float(number["r2"].sel(layer=1, position="ct0").isel(step=0)) > 0.9
    rest = number["r2"].isel(step=0).where((number.layer != 1) | (number.position != "ct0"))
    assert float(rest.max()) < 0.1
    assert int(number["n_example"].isel(step=1).max()) < 150  # problems of one step have no second result
    operation = linear_probes(run, ProbeSettings(target="operation", layers=[0], positions=["ct0", "ct1"], controls=1))
    assert operation["direction"].dims == ("step", "class", "layer", "position", "hidden")
    first = operation.isel(step=0, layer=0)
    assert float(first["accuracy"].sel(position="ct1")) > float(first["majority_accuracy"].sel(position="ct1")) + 0.1
    assert float(first["p_value"].sel(position="ct1")) < 0.01
    assert (operation["class"].values == ["*", "+", "-", "/"]).all()


def test_a_step_of_two_classes_beside_one_of_more_has_a_direction_for_each():
    run = make_run(n_example=150, n_layer=1, hidden=8, n_step=2, seed=5)
    word = run["operation"].values.copy()
    word[:, 1] = np.where(word[:, 1] == "", "", np.where(word[:, 1] == "*", "+", "-"))
    run = run.assign(operation=(("example", "step"), word))
    settings = ProbeSettings(target="operation", layers=[0], positions=["ct0"], controls=0, resamples=20)
    both = linear_probes(run, settings).isel(step=1)
    alone = linear_probes(run.isel(step=[1]), settings)
    for name in ("direction", "intercept"):
        by_class = both[name].sel({"class": ["+", "-"]})
        np.testing.assert_allclose(by_class.diff("class").squeeze(), alone[name].squeeze(), rtol=1e-5)
        assert np.isnan(both[name].sel({"class": ["*", "/"]})).all()


def test_certain_scores_do_not_tie():
    """Under weak penalties noise is predicted with probabilities that round to 1, rightly or wrongly."""
    run = make_run(n_example=120, n_layer=1, hidden=100, seed=3)
    run["hidden_state"].values[:] *= 1 + 30 * np.random.default_rng(4).random((120, 1, 1, 1), dtype=np.float32)
    settings = ProbeSettings(positions=["ct1"], controls=0, permutations=20, resamples=20, penalties=(1e4,))
    found = linear_probes(run, settings)
    label, fold = run["correct"].values, folds_of(run["correct"].values, run["problem"].values, 5, 0)
    states = run["hidden_state"].sel(layer=0, position="ct1").values
    score = nested_logistic(states, label.astype(int)[:, None], fold, penalty=[1e4]).score[:, 0, 1]
    assert (score.astype(np.float32) == 1).sum() > 5
    parts = [fold == part for part in range(5)]
    pairs = [label[part].sum() * (~label[part]).sum() for part in parts]
    areas = [roc_auc_score(label[part], score[part]) for part in parts]
    assert float(found["auroc"].item()) == pytest.approx(np.average(areas, weights=pairs))


def test_numbers_beyond_float32_are_refused():
    run = make_run(n_example=60, n_layer=1)
    with pytest.raises(UsageError, match=r"numbers up to .*e\+39"):
        linear_probes(
            run.assign(large=("example", 1e39 * np.linspace(-2, 9, 60))), ProbeSettings(target="large", controls=0)
        )


def test_scores_are_what_their_definitions_say():
    run, _ = planted_run(n_example=240, strength=1.0)
    result = linear_probes(run, ProbeSettings(layers=[1], positions=["ct1"], controls=0, permutations=400)).isel(
        layer=0, position=0
    )
    label, problem = run["correct"].values, run["problem"].values
    fold = folds_of(label, problem, 5, 0)
    states = run["hidden_state"].sel(layer=1, position="ct1").values
    fit = nested_logistic(states, label.astype(int)[:, None], fold, penalty=PENALTIES)
    score = fit.score[:, 0, 1]
    assert float(result["accuracy"]) == pytest.approx(np.mean((score > 0.5) == label))
    areas = [roc_auc_score(label[fold == part], score[fold == part]) for part in range(5)]
    pairs = [label[fold == part].sum() * (~label[fold == part]).sum() for part in range(5)]
    assert float(result["auroc"]) == pytest.approx(np.average(areas, weights=pairs))
    # Resample problems by hand and take the percentiles of the area itself.
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        weight = rng.poisson(1.0, problem.max() + 1)[problem]
        total = wins = 0.0
        for part in range(5):
            up, down = (fold == part) & label, (fold == part) & ~label
            win = (score[up][:, None] > score[down]) * np.outer(weight[up], weight[down])
            wins, total = wins + win.sum(), total + np.outer(weight[up], weight[down]).sum()
        drawn.append(wins / total)
    area = float(result["auroc"])
    low, high = area + np.sqrt(2) * (np.percentile(drawn, [2.5, 97.5]) - area)
    assert float(result["auroc_low"]) == pytest.approx(low, abs=0.04)
    assert float(result["auroc_high"]) == pytest.approx(high, abs=0.04)


def test_chunks_do_not_matter_and_each_is_read_once():
    run, _ = planted_run(n_example=100, hidden=8)
    whole = linear_probes(run, ProbeSettings(positions=THOUGHTS[:2], controls=1))
    reads = []

    def count(block, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return block

    chunked = run.chunk({"example": 32, "layer": 1, "position": 1})
    lazy = chunked["hidden_state"].copy(
        data=chunked["hidden_state"].data.map_blocks(count, dtype="float32", meta=np.empty((0,) * 4, "float32"))
    )
    seen = []
    result = linear_probes(
        chunked.assign(hidden_state=lazy),
        ProbeSettings(positions=THOUGHTS[:2], controls=1),
        progress=lambda *at: seen.append(at),
    )
    xr.testing.assert_allclose(result, whole)
    assert len(reads) == len(set(reads)) == 4 * 3 * 2  # 4 chunks of examples, 3 layers, 2 positions
    assert seen[-1] == (6, 6)


def test_cap_draws_whole_problems():
    run, _ = planted_run(n_example=100, hidden=8)
    result = linear_probes(run, ProbeSettings(layers=[0], positions=["bot"], max_examples=61, controls=0))
    assert int(result["n_example"].item()) == 60


def test_positions_that_do_not_exist_are_left_out():
    run = make_run(n_example=60, n_layer=1, n_answer=6, seed=1)
    result = linear_probes(run, ProbeSettings(positions=["bot", "a5"], controls=0))
    exists = int(np.isfinite(run["hidden_state"].sel(position="a5").values).all(-1).sum())
    assert result["n_example"].sel(position="bot").item() == 60
    if exists >= 30:
        assert result["n_example"].sel(position="a5").item() == exists
    else:
        assert np.isnan(result["accuracy"].sel(position="a5")).all()


def test_messages():
    run = make_run(n_example=40)
    with pytest.raises(SchemaError, match="need 'colour'; along 'example' it holds .*correct"):
        linear_probes(run, ProbeSettings(target="colour"))
    with pytest.raises(UsageError, match="has no layer 7; it has 0, 1, 2"):
        linear_probes(run, ProbeSettings(layers=[7]))
    with pytest.raises(UsageError, match=r"probes for 'correct' of run 'made-up/problems': classes .* True \(40\)"):
        linear_probes(run.assign(correct=("example", np.ones(40, bool))))
    with pytest.raises(UsageError, match="50 examples of each class asked for; too few in False"):
        linear_probes(run, ProbeSettings(per_class=50))
    with pytest.raises(UsageError, match="--folds is 2; it must be at least 3"):
        linear_probes(run, ProbeSettings(folds=2))


@pytest.mark.parametrize("n_example", [8, 12, 14, 20])
@pytest.mark.parametrize("target", ["intermediate_result", "n_operation", "operation", "correct"])
def test_few_examples_give_probes_or_one_line(n_example, target):
    run = make_run(n_example=n_example, n_layer=1, hidden=4, n_step=2, seed=2)
    run = run.assign(n_operation=("example", np.array([2] * 5 + [3] * (n_example - 5))))
    message = None
    try:
        result = linear_probes(
            run, ProbeSettings(target=target, positions=["bot"], controls=1, permutations=20, resamples=20)
        )
    except UsageError as error:
        message = str(error)
    if message is None:
        assert np.isfinite(summarise_probes(result)["mean"]).all()
    else:
        assert message.startswith("probes for")
        assert "\n" not in message


def test_settings_of_older_results_are_read():
    old = {"target": "operation", "n_fold": 4, "max_example": None, "n_per_class": 50, "n_permutation": None}
    assert ProbeSettings.of_spec(old) == ProbeSettings(target="operation", folds=4, max_examples=0, per_class=50)
    reports = ProbeSettings(reports=True)
    assert (reports.per_class, reports.selection, reports.seed) == (50, "accuracy", 42)
    assert [as_they_come(spec) for spec in ({}, old, reports.spec())] == [True, False, False]


def test_text_as_a_number_is_refused():
    with pytest.raises(UsageError, match="treated as a number, but could not convert"):
        linear_probes(make_run(n_example=40), ProbeSettings(target="operation", treat="number"))


def test_workers_of_a_scheduler_give_the_same():
    from distributed import Client

    run, _ = planted_run(n_example=60, hidden=8)
    run = run.chunk({"example": 20, "layer": 1, "position": 1})
    here = linear_probes(run, ProbeSettings(positions=THOUGHTS[:2], controls=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
            there = linear_probes(run, ProbeSettings(positions=THOUGHTS[:2], controls=0))
    xr.testing.assert_allclose(there, here)


@pytest.fixture(scope="module")
def probed():
    run, _ = planted_run(n_example=120, hidden=8)
    return linear_probes(run, ProbeSettings(positions=THOUGHTS, controls=1, permutations=1000))


def test_grid_figure_shows_scores_by_layer_and_position(probed):
    (ax,) = plot_probes.plot_probe_grid(probed)
    drawn = [float(text.get_text().rstrip("*")) for text in ax.texts]
    np.testing.assert_allclose(drawn, probed["accuracy"].transpose("layer", "position").values.ravel(), atol=0.005)
    assert [label.get_text() for label in ax.get_xticklabels()] == THOUGHTS
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position", "layer")
    assert "correct" in ax.get_title()
    stars = [text.get_text() for text in ax.texts if text.get_text().endswith("*")]
    assert len(stars) == int((probed["p_corrected"] < 0.05).sum()) > 0
    (bars,) = plot_probes.plot_probe_controls({"one": probed, "two": probed})
    assert [text.get_text() for text in bars.get_legend().get_texts()] == [
        "held out", "commonest class", "shuffled labels", "training rows",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no 'r2'; it holds n_example"):
        plot_probes.plot_probe_grid(probed, metric="r2")
    plt.close("all")


def test_command(tmp_path, capsys):
    model = make_model(hidden=8)
    run = make_run(name="one/problems", n_example=120, n_layer=2, seed=3, model=model)
    path = tmp_path / "made.lake"
    write_run(path, run, model)

    def call(*arguments):
        return run_lake("analyze", "probes", path, *arguments), *capsys.readouterr()

    few = ("--positions", "bot,ct0", "--resamples", "50", "--permutations", "50", "--controls", "1")
    code, out, err = call(*few, "--csv", str(tmp_path / "csv"))
    assert (code, err) == (0, "")
    assert "one/problems: correct, held-out auroc, 120 examples" in out
    assert "accuracy is constant: every cell calls everything the commonest class" in out
    assert "Decoding is not use" in out.replace("\n", " ")
    assert (tmp_path / "csv" / "one.problems-probes-layer_position.csv").exists()
    stored = open_lake(path).result("probes", "one/problems", target="correct")
    assert stored.sizes == {"layer": 2, "position": 2, "hidden": 8}
    code, out, _ = call(*few, "--target", "intermediate_result", "--layers", "1", "--json")
    printed = json.loads(out)["one/problems"]
    assert len(printed["summary"]) == 3
    assert {"step", "layer", "position", "r2", "p_corrected"} <= set(printed["step_layer_position"][0])
    code, out, _ = call(*few, "--per-class", "30", "--layers", "0", "--metric", "auroc")
    assert code == 0
    assert "held-out auroc, 60 examples" in out
    code, out, err = call(*few, "--reports")
    assert (code, out) == (2, "")
    assert "50 examples of each class asked for; too few in False (" in err
    code, out, err = call("--target", "colour")
    assert (code, out) == (2, "")
    assert "need 'colour'" in err


def test_stopped_probes_take_up_their_finished_cells(tmp_path, monkeypatch):
    (run, _), solved = planted_run(n_example=60), []
    options = {"positions": ["bot", "ct3"], "permutations": 50, "resamples": 50}
    whole = linear_probes(run, ProbeSettings(**options))

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    def counted(*arguments, **settings):
        solved.append(1)
        return nested_logistic(*arguments, **settings)

    monkeypatch.setattr("analyze.probes.linear.nested_logistic", counted)
    with pytest.raises(KeyboardInterrupt):
        linear_probes(run, ProbeSettings(**options), folder=tmp_path / "cells", progress=stop)
    assert len(solved) == 2
    again = linear_probes(run, ProbeSettings(**options), folder=tmp_path / "cells")
    assert len(solved) == whole["accuracy"].size
    xr.testing.assert_identical(again, whole)
    other = run.assign(correct=("example", run["correct"].values[::-1]))  # nothing is taken up for other labels
    linear_probes(other, ProbeSettings(**options), folder=tmp_path / "cells")
    assert len(solved) == 2 * whole["accuracy"].size


def test_states_that_say_nothing_are_never_significant():
    """All scores tie: every permutation scores as high, where counting cells instead gave p = 2 / 1000."""
    run = make_run(n_example=60, n_layer=1).sel(position=["ct0"])
    run["hidden_state"][:] = 0.1
    for target in ("correct", "year"):
        labelled = run.assign(year=("example", 1e9 + np.arange(60.0)))
        found = linear_probes(labelled, ProbeSettings(target=target, controls=1, permutations=999, resamples=20))
        assert float(found["p_value"].squeeze()) > 0.05


@pytest.mark.parametrize(("unit", "offset"), [(1e18, 0), (1e-18, 0), (1, 1e9)])
def test_numbers_are_probed_in_any_unit_and_from_any_origin(unit, offset):
    run = make_run(n_example=60, n_layer=1).sel(position=["ct0", "ct1"])
    run = run.assign(year=run["hidden_state"].isel(layer=0, position=0, hidden=0, drop=True).astype("float64"))
    settings = ProbeSettings(target="year", controls=1, permutations=99, resamples=50, penalties=(1.0,))
    plain, moved = (linear_probes(one, settings) for one in (run, run.assign(year=run["year"] * unit + offset)))
    for name in ("r2", "r2_low", "r2_high", "p_value"):
        np.testing.assert_allclose(moved[name], plain[name], rtol=1e-4, atol=1e-6, err_msg=name)
