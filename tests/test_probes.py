"""Linear probes: the same numbers as scikit-learn, planted truth found and nothing else, honest on noise."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from synthetic import make_model, make_run, write_run

import lake as command_line
from analyze.probes import figures as plot_probes
from analyze.probes import logistic as logistic
from analyze.probes.command import ProbeSettings, as_they_come
from analyze.probes.linear import NOTE, linear_probes, summarise_probes
from analyze.probes.logistic import Problems, logistic_path
from analyze.probes.nested import _Race, nested_logistic, training_sets
from analyze.probes.ridge import nested_ridge
from analyze.probes.tasks import PENALTIES
from schemas import SchemaError, UsageError
from store import open_lake

N_FOLD = 4


def states_and_classes(n, hidden, n_class, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n_class, n)
    label[: n_class * N_FOLD] = np.arange(n_class * N_FOLD) % n_class
    centre = rng.normal(size=(n_class, hidden))
    spread = 1.0 / np.sqrt(1 + np.arange(hidden))
    states = (
        5 + centre[label] * 0.5 + rng.normal(size=(n, hidden)) @ (spread[:, None] * rng.normal(size=(hidden, hidden)))
    )
    states[:, -1] = 3.0  # a component that never varies
    return states, label, (np.arange(n) // n_class) % N_FOLD


def sklearn_nested(model, grid, states, label, fold, scoring):
    """Outer folds one by one, the rest of the folds inside, scaling in the pipeline: the slow way."""
    for outer in range(N_FOLD):
        train = fold != outer
        inner = fold[train]
        splits = [
            (np.flatnonzero(inner != part), np.flatnonzero(inner == part)) for part in range(N_FOLD) if part != outer
        ]
        search = GridSearchCV(make_pipeline(StandardScaler(), model), grid, cv=splits, scoring=scoring)
        yield ~train, search.fit(states[train], label[train])


@pytest.mark.parametrize(
    ("n", "hidden", "n_class", "leading"),
    [(60, 90, 2, 256), (120, 12, 2, 256), (60, 190, 2, 5), (120, 12, 3, 256), (60, 190, 3, 256), (96, 30, 4, 15)],
    ids=["wide", "narrow", "few-rows-rough", "narrow-3", "few-rows-3", "narrow-rough-4"],
)
def test_logistic_probe_agrees_with_sklearn(monkeypatch, n, hidden, n_class, leading):
    monkeypatch.setattr(logistic, "_MOST_EXACT", leading)
    monkeypatch.setattr(logistic, "_LEADING", 5)
    states, label, fold = states_and_classes(n, hidden, n_class)
    penalty = [1e-3, 1e-1, 1.0, 10.0]
    control = np.roll(label, 7)
    fit = nested_logistic(states, np.stack([label, control], 1), fold, penalty=penalty, tolerance=1e-5)
    grid = {"logisticregression__C": penalty}
    model = LogisticRegression(tol=1e-10, max_iter=20_000)
    for target, truth in enumerate((label, control)):
        for outer, (held_out, search) in enumerate(sklearn_nested(model, grid, states, truth, fold, "neg_log_loss")):
            assert fit.chosen[outer, target] == search.best_params_["logisticregression__C"]
            np.testing.assert_allclose(fit.score[held_out, target], search.predict_proba(states[held_out]), atol=2e-4)
            train_score = search.best_estimator_.score(states[~held_out], truth[~held_out])
            assert fit.training[outer, target] == pytest.approx(train_score)
            if target == 0:
                scaler, probe = search.best_estimator_
                np.testing.assert_allclose(
                    fit.coefficient[outer] * scaler.scale_, probe.coef_, atol=3e-4 * np.abs(probe.coef_).max()
                )
    accuracy = nested_logistic(states, label[:, None], fold, penalty=penalty, selection="accuracy", tolerance=1e-5)
    for outer, (_, search) in enumerate(sklearn_nested(model, grid, states, label, fold, "accuracy")):
        assert accuracy.chosen[outer, 0] == search.best_params_["logisticregression__C"]


@pytest.mark.parametrize(("n", "hidden"), [(60, 90), (150, 60)])
def test_barely_separable_classes_are_solved(n, hidden):
    """Weak penalties on noise, where the Hessian is all but singular."""
    rng = np.random.default_rng(0)
    states, label, fold = rng.normal(size=(n, hidden)), rng.integers(0, 2, n), np.arange(n) % N_FOLD
    fit = nested_logistic(states, label[:, None], fold, penalty=[1.0, 1e3], tolerance=1e-5)
    for outer in range(N_FOLD):
        train = fold != outer
        model = make_pipeline(StandardScaler(), LogisticRegression(C=fit.chosen[outer, 0], tol=1e-10, max_iter=50_000))
        expected = model.fit(states[train], label[train]).predict_proba(states[~train])
        np.testing.assert_allclose(fit.score[~train, 0], expected, atol=2e-4)


@pytest.mark.parametrize("seed", [1, 3, 4, 12, 20, 23, 35, 38, 46, 47])
def test_random_problems_agree_with_converged_sklearn(seed, benchmark_of_probes):
    """A small part of the benchmark's 200: noise, weak, separable, imbalanced and correlated ones, 2 to 5 classes."""
    _, states, label, fold = benchmark_of_probes.random_problem(seed, most_example=300, most_hidden=200)
    fit = nested_logistic(states, label[:, None], fold, penalty=PENALTIES)
    assert fit.unsolved == 0
    search = benchmark_of_probes.converged_search(states, label, fold, 0)
    assert fit.chosen[0, 0] == search.best_params_["logisticregression__C"]
    held_out = fold == 0
    np.testing.assert_allclose(fit.score[held_out, 0], search.predict_proba(states[held_out].astype(float)), atol=2e-3)


@pytest.fixture(scope="module")
def benchmark_of_probes():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    import probes

    yield probes
    sys.path.remove(folder)


@pytest.mark.parametrize("size", [3e4, 1e8])
@pytest.mark.parametrize("hidden", [8, 500])
def test_held_out_values_of_another_size_decide_nothing(size, hidden):
    """A component that carries the label, with one example of another size (a massive activation) in one fold."""
    rng = np.random.default_rng(0)
    label, fold = np.arange(100) % 2, np.arange(100) // 2 % 5
    states = rng.normal(size=(100, hidden))
    states[:, 2] = 4 * label + rng.normal(size=100) * 0.5
    states[:, 3] = 7.0  # does not vary in training where the other one is held out
    states[0, 2:4] = size
    fit = nested_logistic(states, label[:, None], fold, penalty=[1.0])
    ridge = nested_ridge(states, label[:, None], fold, penalty=[1.0])
    for outer in range(5):
        train = fold != outer
        exact = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10_000))
        exact.fit(states[train], label[train])
        np.testing.assert_allclose(fit.score[~train, 0], exact.predict_proba(states[~train]), atol=1e-3)
        weights = exact[1].coef_ / exact[0].scale_
        np.testing.assert_allclose(fit.coefficient[outer], weights, atol=1e-3 * abs(weights).max())
        value = make_pipeline(StandardScaler(), Ridge()).fit(states[train], label[train])
        np.testing.assert_allclose(ridge.score[~train, 0, 0], value.predict(states[~train]), rtol=1e-5)


def test_solved_regression_beside_one_that_shortens_its_step_stays_solved():
    """No slope along no step: nothing may be divided by it, at any penalty."""
    rng = np.random.default_rng(0)
    rows, label = rng.normal(size=(40, 4)), np.arange(40) % 2
    features = np.hstack([np.ones((40, 1)), rows * 1e3 + 1e3 * label[:, None]])[None]
    scale = np.array([[1.0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1]])
    problems = Problems(
        features=features,
        view=np.zeros(2, int),
        scale=scale,
        weight=np.ones((2, 40)),
        label=np.stack([label, label])[None].astype(float),
        group=np.zeros(2, int),
    )
    for found in logistic_path(problems, [1e-6, 1e-3, 1.0, 1e3], tolerance=1e-6):
        assert found.solved.all()
        np.testing.assert_array_equal(found.weights[:, 0], 0.0)


def test_what_is_not_finite_is_known_and_wins_nothing():
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    states = (rng.normal(size=(60, 5)) + label[:, None]).astype(np.float32)
    features = np.hstack([np.ones((60, 1), np.float32), states])[None]
    problems = Problems(
        features=features,
        view=np.zeros(3, int),
        scale=np.ones((3, 6), np.float32) * np.array([[1.0], [1e30], [1.0]], np.float32),
        weight=np.ones((3, 60), np.float32),
        label=np.equal(label, np.arange(3)[:, None, None]).repeat(3, 1).astype(np.float32),
        group=np.zeros(3, int),
    )
    for found in logistic_path(problems, PENALTIES, tolerance=1e-4):
        assert found.solved[[0, 2]].all()
        assert found.solved[1] <= np.isfinite(found.weights[:, 1]).all()
    fold = np.arange(60) // 3 % N_FOLD
    sets = training_sets(N_FOLD)
    race = _Race(np.equal(label, np.arange(3)[:, None, None]).astype(float), fold, sets, 2, "log_loss")
    logit = rng.normal(size=(3, len(sets), 60))
    race.judge(0, logit)
    for lost in (1, len(sets) - 1):  # an outer training set, and an inner one of the last two folds
        better = 9.0 * np.equal(label, np.arange(3)[:, None])[:, None].repeat(len(sets), 1)
        better[:, lost] = np.nan
        race.judge(1, better)
        best = race.inner.argmax(axis=0)[:, 0]
        assert list(best) == ([0, 1, 1, 1] if lost == 1 else [1, 1, 0, 0])


def test_threads_do_not_matter(tmp_path):
    """The same states give the same table with one and two BLAS threads, in processes of their own."""
    code = """
import sys, numpy as np, xarray as xr
from analyze.probes.command import ProbeSettings
from analyze.probes.linear import linear_probes
rng = np.random.default_rng(0)
word = np.array(list("+-*"))[rng.integers(0, 3, 150)]
states = rng.normal(size=(150, 1, 2, 64)) + (word == "+")[:, None, None, None] * rng.normal(size=64)
run = xr.Dataset(
    {"hidden_state": (("example", "layer", "position", "hidden"), states), "operation": ("example", word)},
    coords={"layer": [0], "position": ["bot", "ct0"], "problem": ("example", np.arange(150))},
)
settings = ProbeSettings(target="operation", controls=1, resamples=50, permutations=50)
linear_probes(run, settings).drop_attrs().to_zarr(sys.argv[1])
"""
    results = []
    for threads in ("1", "2"):
        path = tmp_path / threads
        number = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        subprocess.run(
            [sys.executable, "-c", code, str(path)],
            check=True,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **number},
        )
        results.append(xr.open_zarr(path).load())
    xr.testing.assert_allclose(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "hidden"), [(60, 90), (120, 12)])
def test_ridge_probe_agrees_with_sklearn(n, hidden):
    states, label, fold = states_and_classes(n, hidden, 2)
    value = 3.0 * label + np.random.default_rng(1).normal(size=n) + 10
    penalty = [0.1, 10.0, 1000.0]
    fit = nested_ridge(states, value[:, None], fold, penalty=penalty)
    for outer, (held_out, search) in enumerate(
        sklearn_nested(Ridge(), {"ridge__alpha": penalty}, states, value, fold, "neg_mean_squared_error")
    ):
        assert fit.chosen[outer, 0] == search.best_params_["ridge__alpha"]
        np.testing.assert_allclose(fit.score[held_out, 0, 0], search.predict(states[held_out]), rtol=1e-6)
        direct = states[held_out] @ fit.coefficient[outer, 0] + fit.intercept[outer]
        np.testing.assert_allclose(direct, search.predict(states[held_out]), rtol=1e-6)


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


def test_scores_are_what_their_definitions_say():
    run, _ = planted_run(n_example=240, strength=1.0)
    result = linear_probes(run, ProbeSettings(layers=[1], positions=["ct1"], controls=0, permutations=400)).isel(
        layer=0, position=0
    )
    label, problem = run["correct"].values, run["problem"].values
    from analyze.probes.tasks import folds_of

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
        with pytest.raises(SystemExit) as left:
            command_line.main(["analyze", "probes", str(path), *arguments])
        return left.value.code, *capsys.readouterr()

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
