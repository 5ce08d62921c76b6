"""Fits of one run tested on another: planted directions, scikit-learn fold by fold, shared problems, bad input."""

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from scipy.special import log_softmax
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from synthetic import make_model, make_run, write_run

from analyze.context import Context
from analyze.lens.tuned import fit_tuned_lens
from analyze.page import write_section
from analyze.sae.dictionary import SAESpec, sae_codes, sae_reconstruction, select_cells, train_sae
from analyze.transfer.command import TransferSettings
from analyze.transfer.dictionary import transfer_dictionaries
from analyze.transfer.linear import Linear, mean_difference, transfer_probes
from analyze.transfer.matrix import pairs_of, squared_errors
from analyze.transfer.problems import comparable, problem_groups
from analyze.transfer.section import SECTIONS
from analyze.transfer.tuned import transfer_lenses
from schemas import UsageError
from schemas.statistics import split_problems
from store import open_lake

FEW = {"penalties": (0.1,), "controls": 1, "resamples": 50, "permutations": 99}


def planted(seed: int, direction: np.ndarray, name: str, n: int = 120, offset: float = 0.0, **more) -> xr.Dataset:
    """A run whose states at ct1 of layer 1 carry ``correct`` along a direction; elsewhere noise."""
    run = make_run(name=name, n_example=n, n_layer=2, hidden=8, seed=seed, **more).sel(position=["ct1", "ct2"])
    rng = np.random.default_rng([seed, 7])
    side = rng.random(n) < 0.5
    state = rng.normal(size=run["hidden_state"].shape) + offset
    state[:, 1, 0] += 4 * np.outer(side - 0.5, direction)
    questions = np.array([f"{name} {index}" for index in range(n)], dtype=object)
    return run.assign(
        hidden_state=(run["hidden_state"].dims, state), correct=("example", side), question=("example", questions)
    )


UP, ACROSS = np.eye(8)[:2]


def test_a_shared_direction_transfers_and_a_rotated_one_does_not() -> None:
    runs = {
        "a/x": planted(0, UP, "a/x"), "a/y": planted(1, UP, "a/y", 100, 0.3), "b/x": planted(2, ACROSS, "b/x"),
    }  # fmt: skip
    names = list(runs)
    runs = {name: run.isel(layer=[1]) for name, run in runs.items()}
    found = transfer_probes(runs, names, names, TransferSettings(**FEW | {"permutations": 1499}))
    for kind in ("probe", "direction"):
        there = found.sel(kind=kind, layer=1, position="ct1")
        for fit, test in (("a/x", "a/y"), ("a/y", "a/x")):
            pair = there.sel(fit=fit, test=test)
            assert float(pair["accuracy"]) > 0.9
            assert abs(float(pair["gap"])) < 0.05
            assert float(pair["p_corrected"]) < 0.05
        for fit, test in (("a/x", "b/x"), ("b/x", "a/y")):
            pair = there.sel(fit=fit, test=test)
            assert abs(float(pair["auroc"]) - 0.5) < 0.2
            assert float(pair["gap_low"]) > 0.2
        xr.testing.assert_equal(
            there["own_accuracy"].sel(test="b/x", drop=True), there["accuracy"].sel(fit="b/x", test="b/x", drop=True)
        )
    away = found.sel(position="ct2")
    assert abs(float(away["accuracy"].mean()) - 0.5) < 0.05
    assert (away["p_corrected"] > 0.05).all()
    for row in pairs_of(found):
        cells = found["p_corrected"].sel({dim: row[dim] for dim in ("kind", "fit", "test")}).values.ravel()
        assert (row["carried"], row["n_cell"]) == (sum(p < 0.05 for p in cells), 2)


def by_hand(one: xr.Dataset, other: xr.Dataset, fold_of, make) -> np.ndarray:
    """Predictions on another run's rows by a model fitted to the other folds of the first, fold by fold."""
    (x, y, fold), (x2, _, fold2) = (
        (run["hidden_state"].sel(layer=1, position="ct1").values, run["correct"].values, fold_of[name])
        for name, run in (("one", one), ("other", other))
    )
    predicted = np.zeros(len(x2))
    for left_out in np.unique(fold):
        scaler = StandardScaler().fit(x[fold != left_out]) if make is not NearestCentroid else None
        scale = scaler.transform if scaler else (lambda values: values)
        model = make().fit(scale(x[fold != left_out]), y[fold != left_out])
        predicted[fold2 == left_out] = model.predict(scale(x2[fold2 == left_out]))
    return predicted


def test_it_is_what_scikit_learn_gives_fold_by_fold() -> None:
    from sklearn.model_selection import StratifiedKFold

    one, other = planted(0, UP, "one"), planted(1, (UP + ACROSS) / 2, "other")
    fold = np.zeros(240, dtype=int)
    both = np.concatenate([one["correct"].values, other["correct"].values])
    for index, (_, held_out) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(both, both)):
        fold[held_out] = index
    folds = {"one": fold[:120], "other": fold[120:]}
    found = transfer_probes({"one": one, "other": other}, ["one"], ["other"], TransferSettings(**FEW))
    makers = {"probe": lambda: LogisticRegression(C=0.1, tol=1e-8), "direction": NearestCentroid}
    for kind, make in makers.items():
        slow = accuracy_score(other["correct"].values, by_hand(one, other, folds, make))
        fast = float(found["accuracy"].sel(kind=kind, layer=1, position="ct1", fit="one", test="other"))
        assert fast == pytest.approx(slow, abs=1e-6)


def test_numbers_are_ridge_and_partial_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, fold = rng.normal(size=(60, 5)) + 2, np.arange(60) % 3
    y = x @ rng.normal(size=5) + rng.normal(size=60)
    found = mean_difference(x, y, fold, None).scores(x, fold)[:, 0]
    slow = np.zeros(60)
    for left_out in range(3):
        rows = fold != left_out
        fitted = PLSRegression(1, scale=False).fit(x[rows], y[rows])
        slow[~rows] = fitted.predict(x[~rows]).ravel()
    np.testing.assert_allclose(found, slow, atol=1e-9)
    run = make_run(n_example=60, hidden=5).sel(position=["ct1"]).isel(layer=[0])
    run = run.assign(hidden_state=(run["hidden_state"].dims, x[:, None, None]), number=("example", y))
    other = run.assign(hidden_state=run["hidden_state"] + 0.5 * rng.normal(size=(60, 1, 1, 5)))
    settings = TransferSettings(**FEW | {"penalties": (3.0,)}, target="number")
    result = transfer_probes({"a": run, "b": other}, ["a", "b"], ["a"], settings)
    assert float(result["r2"].sel(kind="probe", fit="a").squeeze()) > 0.5
    own = result["own_r2"] - result["r2"]
    np.testing.assert_allclose(result["gap"], own.transpose(*result["gap"].dims), atol=1e-6)
    weight, bias = np.zeros((3, 1, 5)), np.zeros((3, 1))
    for left_out in range(3):
        fitted = Ridge(3.0).fit(x[fold != left_out], y[fold != left_out])
        weight[left_out, 0], bias[left_out, 0] = fitted.coef_, fitted.intercept_
    np.testing.assert_allclose(
        Linear(weight, bias).scores(x, fold)[:, 0],
        [x[i] @ weight[f, 0] + bias[f, 0] for i, f in enumerate(fold)],
    )


def test_shared_problems_are_never_fitted_and_tested() -> None:
    run, twins = make_run(n_example=6, name="a"), make_run(n_example=6, twins=True, name="b")
    twins = twins.assign(question=("example", np.array([f"Question  {i} " for i in (0, 9, 1, 8, 7, 6)], dtype=object)))
    groups = problem_groups({"a": run, "b": twins})
    assert groups["b"][0] == groups["b"][1] == groups["a"][0]  # the twin of a shared question is shared
    assert len(np.unique(np.concatenate(list(groups.values())))) == 7
    # Labels that belong to single problems: only what was fitted on could be known. States are the problem's own.
    rng = np.random.default_rng(0)
    states, label = 3 * rng.normal(size=(200, 2, 2, 8)), rng.random(200) < 0.5
    questions = np.array([f"question {i}" for i in range(200)], dtype=object)
    runs = {}
    for name in ("a/x", "b/x"):
        one = planted(0, UP, name, 200)
        runs[name] = one.assign(
            hidden_state=(one["hidden_state"].dims, states), correct=("example", label), question=("example", questions)
        )
    found = transfer_probes(runs, ["a/x"], ["b/x"], TransferSettings(**FEW | {"penalties": (1000.0,)}))
    assert float(found["accuracy"].mean()) < 0.52  # 0.6 where it was fitted on what it is tested on
    assert found["n_shared"].item() == 200


def test_chunks_change_nothing_and_missing_positions_are_unknown() -> None:
    one, other = planted(0, UP, "one", 60), planted(1, UP, "other", 60)
    other["hidden_state"][:40, :, 1] = np.nan
    names = ["one", "other"]
    found = transfer_probes({"one": one, "other": other}, names, names, TransferSettings(**FEW))
    chunked = {"one": one.chunk(example=7, layer=1), "other": other.chunk(example=11, hidden=3)}
    xr.testing.assert_identical(transfer_probes(chunked, names, names, TransferSettings(**FEW)), found)
    assert int(found["n_example"].sel(test="other", position="ct2").max()) <= 20
    assert found["accuracy"].sel(test="one", fit="one").notnull().all()


def test_a_number_is_compared_with_the_mean_of_the_other_folds() -> None:
    rng, fold = np.random.default_rng(0), np.repeat([0, 1, 2], [3, 4, 5])
    predicted, value = rng.normal(size=(2, 12))
    wrong, spread = squared_errors(predicted, value, fold)
    np.testing.assert_allclose(wrong, (predicted - value) ** 2)
    np.testing.assert_allclose(spread, (value - [value[fold != own].mean() for own in fold]) ** 2)


def test_the_command_keeps_a_matrix_the_page_shows_it_and_bad_input_is_one_line(tmp_path, capsys) -> None:
    place, model = tmp_path / "a.lake", make_model()
    names = [
        write_run(place, make_run(name=name, n_example=60, seed=seed), model)
        for seed, name in enumerate(("one/x", "other/x", "two/x"))
    ]
    write_run(place, make_run(name="wide/x", n_example=60, hidden=12), make_model(hidden=12))

    def call(*words: str) -> tuple[int, str, str]:
        return run_lake("analyze", "transfer", place, *words), *capsys.readouterr()

    few = ["--penalties", "0.1", "--resamples", "9", "--permutations", "9", "--positions", "ct0,ct1", "--layers", "0,2"]
    code, out, err = call("--fit", names[0], "--test", names[1], "--test", names[2], *few)
    assert (code, err) == (0, "")
    assert "probe for correct: accuracy on each run (column) of a fit to each run (row)" in out
    lake = open_lake(place)
    (stored,) = lake.results("transfer")
    assert stored.runs == tuple(names)
    result = lake.open_result(stored.name)
    assert dict(result.sizes) == {"kind": 2, "fit": 1, "test": 2, "layer": 2, "position": 2}
    page = write_section(SECTIONS[0], Context(lake, names))
    assert page is not None
    assert [label for label, _ in page.lines] == ["one/x on other/x", "one/x on two/x"] * 2
    wrong = {
        ("--fit", names[0], "--test", "wide/x"): "one/x has width 8, wide/x has width 12",
        ("--fit", names[0], "--test", names[1], "--target", "corect"): "need 'corect'",
        ("--fit", names[0], "--test", names[1], "--folds", "2"): "--folds is 2",
        ("--fit", names[0], "--test", "one/z"): "one/z",
        ("--fit", names[0], "--test", names[1], "--limit", "8"): "two classes with 5 problems",
        ("--fit", names[0], "--test", names[1], "--positions", "ct9"): "ct9",
    }
    for words, text in wrong.items():
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert text in err
    one, other = (make_run(n_example=4).sel(position=[label]) for label in ("ct0", "ct1"))
    with pytest.raises(UsageError, match="no position in common"):
        comparable({"a": one, "b": other}, None)


def test_a_dictionary_explains_what_a_plain_sum_gives_and_only_problems_it_has_not_seen() -> None:
    one, other = planted(0, UP, "one", 40), planted(1, UP, "other", 40)
    one = one.assign(question=("example", np.r_[one["question"].values[:30], other["question"].values[:10]]))
    sae = train_sae(select_cells(one, positions=["ct1", "ct2"]), SAESpec(features=12, k=3, epochs=2), scope="pool")
    runs = {"one": one, "other": other}
    found = transfer_dictionaries({"one": sae}, runs, runs, ["one"], ["other"], TransferSettings(resamples=50))
    split = sae["example_split"].to_series()
    trained = set(one["question"].values[split.isin(["train", "validation"]).to_numpy()])
    unseen = other.isel(example=[question not in trained for question in other["question"].values])
    assert found["n_problem"].item() == unseen.sizes["example"] < 40
    x = unseen["hidden_state"].sel(layer=1, position="ct2")
    codes = sae_codes(sae, x)
    wrong = ((x - sae_reconstruction(sae, codes)) ** 2).sum()
    cell = found.sel(layer=1, position="ct2").squeeze()
    assert float(cell["explained_variance"]) == pytest.approx(float(1 - wrong / ((x - x.mean("example")) ** 2).sum()))
    assert float(cell["dead_share"]) == float(1 - (codes != 0).any("example").mean())
    assert np.isnan(cell["own_explained_variance"])
    own = transfer_dictionaries({"one": sae}, runs, runs, ["one"], ["one"], TransferSettings(resamples=50))
    np.testing.assert_allclose(own["explained_variance"].squeeze(), own["own_explained_variance"].squeeze())
    assert (own["gap"] == 0).all()
    with pytest.raises(UsageError, match="have not seen"):
        transfer_dictionaries({"one": sae}, runs, {"one": one.isel(example=slice(3))}, ["one"], ["one"])


def test_a_lens_reads_as_softmax_by_hand() -> None:
    model = make_model()
    runs = {name: planted(seed, UP, name, 60, model=model) for seed, name in enumerate(("one", "other"))}
    found = transfer_lenses(dict.fromkeys(runs, model), runs, ["one"], ["other"], TransferSettings(resamples=50))
    groups = problem_groups(runs)
    split = split_problems(np.concatenate(list(groups.values())), 0)
    lens = fit_tuned_lens(runs["one"].isel(example=split[:60] != 2), model, positions=["ct1", "ct2"])
    read = runs["other"].isel(example=split[60:] == 2)
    assert found["n_problem"].item() == read.sizes["example"]
    x, y = (read[name].sel(position="ct2").values for name in ("hidden_state", "final_state"))
    mapped = x[:, 1] @ lens["weight"].values[1] + lens["bias"].values[1]
    p, q = (log_softmax(final @ model["unembedding"].values.T, axis=1) for final in (y, mapped))
    cell = found.sel(layer=1, position="ct2").squeeze()
    assert float(cell["kl"]) == pytest.approx(float((np.exp(p) * (p - q)).sum(1).mean()), rel=1e-4)
    assert float(cell["agreement"]) == pytest.approx(float((p.argmax(1) == q.argmax(1)).mean()))
    assert cell["kl_low"] <= cell["kl"] <= cell["kl_high"]
    strings = list(model["token_string"].values)
    best = []
    for line, chain in zip(q, read["intermediate_result"].values, strict=True):
        ranks = [1 + (line > line[strings.index(f" {value:g}")]).sum() for value in chain if np.isfinite(value)]
        best.append(1 / min(ranks))
    assert float(cell["reciprocal_rank"]) == pytest.approx(np.mean(best))


def test_a_place_that_one_problem_reaches_or_where_nothing_varies_has_no_interval() -> None:
    one, other = planted(0, UP, "one", 60), planted(1, UP, "other", 60)
    model = make_model()
    sae = train_sae(select_cells(one, positions=["ct1", "ct2"]), SAESpec(features=12, k=3, epochs=2), scope="pool")
    settings = TransferSettings(resamples=50)
    split = split_problems(np.concatenate(list(problem_groups({"one": one, "other": other}).values())), 0)[60:]
    other["hidden_state"][:, 0, 0] = np.nan
    rows = np.flatnonzero(split == 2)[:2]
    other["hidden_state"][rows[0], 0, 0] = one["hidden_state"][0, 0, 0]
    runs = {"one": one, "other": other}
    lens = transfer_lenses(dict.fromkeys(runs, model), runs, ["one"], ["other"], settings).isel(layer=0, position=0)
    assert np.isfinite(lens["kl"]).all()
    assert lens[["kl_low", "kl_high"]].to_array().isnull().all()
    other["hidden_state"][:, 1, 1] = 0.1
    found = transfer_dictionaries({"one": sae}, runs, runs, ["one"], ["other"], settings).squeeze()
    assert found["explained_variance"].isnull().values.tolist() == [[True, False], [False, True]]
