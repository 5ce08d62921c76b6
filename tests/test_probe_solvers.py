"""The solvers of linear probes: scikit-learn's numbers, at any sizes, and what could not be solved is known."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyze.probes import logistic as logistic
from analyze.probes.logistic import Problems, logistic_path
from analyze.probes.nested import _Race, nested_logistic, training_sets
from analyze.probes.ridge import nested_ridge
from analyze.probes.tasks import PENALTIES

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


@pytest.mark.parametrize(("n", "hidden", "n_class"), [(60, 90, 2), (120, 12, 3)])
def test_penalty_chosen_by_accuracy_is_sklearns(n, hidden, n_class):
    states, label, fold = states_and_classes(n, hidden, n_class)
    penalty = [1e-3, 1e-1, 1.0, 10.0]
    grid, model = {"logisticregression__C": penalty}, LogisticRegression(tol=1e-10, max_iter=20_000)
    fit = nested_logistic(states, label[:, None], fold, penalty=penalty, selection="accuracy", tolerance=1e-5)
    for outer, (_, search) in enumerate(sklearn_nested(model, grid, states, label, fold, "accuracy")):
        assert fit.chosen[outer, 0] == search.best_params_["logisticregression__C"]


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
    """Along a step of length zero the slope is zero, and nothing may be divided by it, at any penalty."""
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
