"""Error prediction from sparse codes: a planted cause, noise, scikit-learn's optimum, resampled intervals."""

import numpy as np
import pytest
import xarray as xr
from sae_states import CELLS
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_score, recall_score, roc_auc_score
from synthetic import make_run

from analyze.errors.design import Spool, moments
from analyze.errors.fit import fit
from analyze.errors.prediction import judge, predict_errors
from analyze.errors.spec import ErrorSpec
from analyze.sae.dictionary import SAESpec, train_sae
from schemas.errors import SchemaError, UsageError

SAE = SAESpec(features=24, k=4, epochs=4, batch_size=64, fractions=(0.6, 0.15, 0.25))
QUICK = ErrorSpec(resamples=200, penalties=(1e-2, 1e-1))


def make(n_problem: int, strength: float, seed: int = 0) -> xr.Dataset:
    """Twins whose answers are wrong where one direction is written at layer 1, ct0; ``strength`` 0 writes nothing."""
    rng = np.random.default_rng(seed)
    run = make_run(
        n_example=2 * n_problem, n_layer=2, hidden=12, n_question=2, n_answer=1, n_head=1, twins=True, seed=seed
    )
    wrong = np.repeat(rng.random(n_problem) < 0.4, 2)  # twins share their fate, as they do in real pairs
    direction = np.eye(12)[0]
    state = run["hidden_state"].copy(data=run["hidden_state"].values)
    place = {"layer": 1, "position": "ct0"}
    state.loc[place] = state.sel(place) + strength * wrong[:, None] * direction
    words = np.array([" ".join(["word"] * int(n)) for n in rng.integers(3, 30, 2 * n_problem)], dtype=object)
    return run.assign(hidden_state=state, correct=("example", ~wrong), question=("example", words))


@pytest.fixture(scope="module")
def caused() -> tuple[xr.Dataset, xr.Dataset]:
    run = make(400, 6.0)
    return run, train_sae(run["hidden_state"].sel(CELLS), SAE)


def test_planted_cause_of_errors_is_found(caused):
    run, sae = caused
    found = predict_errors(run, sae, spec=QUICK)
    codes, baseline = found.sel(predictor="sae_codes"), found.sel(predictor=["question_length", "majority"])
    assert codes["auroc"] > 0.95
    assert codes["accuracy_low"] > baseline["accuracy"].max()
    assert (codes["recall"] > 0.8).all()
    assert (baseline["auroc_low"] <= 0.5).all()
    assert (baseline["auroc_high"] >= 0.5).all()
    assert (found["auroc_gain_low"].sel(predictor=baseline["predictor"]) > 0.3).all()
    top = found.isel(carrier=0)
    assert (top["carrier_layer"].item(), top["carrier_position"].item()) == (1, "ct0")
    assert top["carrier_rate"].sel(outcome="wrong") != top["carrier_rate"].sel(outcome="right")
    assert found["weight"].dims == ("layer", "position", "feature")
    direction = sae["decoder"].sel(feature=int(top["carrier_feature"]))[0]
    assert abs(direction) > 0.4  # a random one of 12 numbers has 0.29
    assert int(found["n_test"].sum()) == int((sae["example_split"] == "test").sum())
    sides = found["example_split"].to_series().groupby(run["problem"].values).nunique()
    assert (sides == 1).all()


def test_noise_is_at_chance_and_training_accuracy_is_not():
    run = make(150, 0.0, seed=1)
    sae = train_sae(run["hidden_state"].sel(CELLS), SAE)
    found = predict_errors(run, sae, spec=ErrorSpec(penalties=(10.0,), resamples=300))
    for name in ("sae_codes", "raw_activation"):
        one = found.sel(predictor=name)
        assert one["auroc_low"] < 0.5 < one["auroc_high"]
        assert one["train_accuracy"] > 0.85
        assert one["balanced_accuracy_low"] < 0.5 < one["balanced_accuracy_high"]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooled_codes(caused, pooling):
    run, sae = caused
    found = predict_errors(run, sae, spec=ErrorSpec(pooling=pooling, resamples=50, penalties=(0.1,)))
    assert found["weight"].dims == ("feature",)
    assert found["n_input"].sel(predictor=["sae_codes", "raw_activation"]).values.tolist() == [24, 12]
    assert found["auroc"].sel(predictor="sae_codes") > 0.8


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_fit_is_scikit_learns(kind, tmp_path, monkeypatch):
    """Same optimum on standardised training rows, from pieces on disk as from memory."""
    monkeypatch.setattr("analyze.errors.design._SPOOL_BYTES", 2000)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(120, 15)) * (rng.random((120, 15)) < 0.4) + (kind == "dense")).astype("float32")
    wrong = rng.random(120) < 1 / (1 + np.exp(-2 * x[:, 0]))
    side = np.repeat([0, 2], [90, 30])
    spool = Spool(tmp_path, "x")
    for part in np.split(x, 8):
        spool.add(part if kind == "dense" else sparse.csr_array(part))
    assert len(list(tmp_path.iterdir())) > 1
    np.testing.assert_array_equal(
        np.concatenate([np.asarray(p if kind == "dense" else p.toarray()) for _, p in spool.pieces()]), x
    )
    found = fit(spool, wrong, side, "deviation", ErrorSpec(penalties=(0.5,)))
    mean, deviation = x[:90].mean(0), x[:90].std(0)
    peer = LogisticRegression(C=0.5, tol=1e-8, max_iter=2000).fit((x[:90] - mean) / deviation, wrong[:90])
    np.testing.assert_allclose(found.weight * deviation, peer.coef_[0], atol=2e-3)
    np.testing.assert_allclose(found.scores(spool), peer.decision_function((x - mean) / deviation), atol=5e-3)
    balanced = fit(spool, wrong, side, "none", ErrorSpec(penalties=(0.5,), balanced=True))
    peer = LogisticRegression(C=0.5, tol=1e-8, max_iter=2000, class_weight="balanced").fit(x[:90], wrong[:90])
    np.testing.assert_allclose(balanced.weight, peer.coef_[0], atol=2e-3)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("scale", ["deviation", "common", "none"])
def test_few_rows_are_fitted_in_axes_of_their_own(kind, scale, tmp_path, monkeypatch):
    """The optimum is scikit-learn's, also for constant features and missing numbers, and that of passes over rows."""
    monkeypatch.setattr("analyze.errors.design._SPOOL_BYTES", 2000)
    monkeypatch.setattr("analyze.errors.fit._COLUMN_BYTES", 8 * 40 * 7)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 90)) * (rng.random((40, 90)) < 0.6) + (kind == "dense")).astype("float32")
    x[:, 5], x[7] = 2, x[8]
    wrong, side = rng.random(40) < 1 / (1 + np.exp(-2 * x[:, 0])), np.repeat([0, 1, 2], [24, 8, 8])
    spool = Spool(tmp_path, "x")
    for part in np.split(x, 8):
        spool.add(np.where(np.arange(90) == 9, np.nan, part) if kind == "dense" else sparse.csr_array(part))
    if kind == "dense":
        x[:, 9] = 0  # missing everywhere: its mean
    spec = ErrorSpec(penalties=(0.05, 0.5), max_iterations=3000)
    few = fit(spool, wrong, side, scale, spec)
    monkeypatch.setattr("analyze.errors.fit._TURNED_ROWS", 0)
    passes = fit(spool, wrong, side, scale, spec)
    assert few.penalty == passes.penalty
    deviation = x[:24].std(0)
    unit = {"deviation": np.where(deviation > 0, deviation, 1), "common": np.sqrt(np.mean(deviation**2)), "none": 1.0}
    center = 0 if scale == "none" else x[:24].mean(0)
    peer = LogisticRegression(C=few.penalty, tol=1e-9, max_iter=5000).fit((x[:24] - center) / unit[scale], wrong[:24])
    for one in (few, passes):
        np.testing.assert_allclose(one.weight * unit[scale], peer.coef_[0], atol=1e-3)
        np.testing.assert_allclose(one.scores(spool), peer.decision_function((x - center) / unit[scale]), atol=5e-3)


def test_metrics_are_scikit_learns_and_resamples_repeat_rows():
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.3
    score = np.round(rng.normal(size=60) + truth, 1)  # with ties
    draws = np.stack([np.ones(60), rng.poisson(1, 60)], axis=1).astype(float)
    found = judge(score, truth, draws)
    repeated = np.repeat(np.arange(60), draws[:, 1].astype(int))
    for draw, rows in enumerate((np.arange(60), repeated)):
        y, s = truth[rows], score[rows]
        np.testing.assert_allclose(found["auroc"][draw], roc_auc_score(y, s))
        np.testing.assert_allclose(found["accuracy"][draw], (y == (s > 0)).mean())
        for outcome, label in enumerate((True, False)):
            np.testing.assert_allclose(found["precision"][outcome, draw], precision_score(y, s > 0, pos_label=label))
            np.testing.assert_allclose(found["recall"][outcome, draw], recall_score(y, s > 0, pos_label=label))


def test_results_do_not_depend_on_chunks(caused):
    run, sae = caused
    calls: list[tuple[int, int]] = []
    whole = predict_errors(run, sae, spec=QUICK)
    state = run["hidden_state"].sel(CELLS).chunk(example=50, layer=1, position=1)
    parts = predict_errors(run, sae, state, QUICK, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    names = ["accuracy", "auroc", "auroc_low", "recall", "penalty", "carrier_feature"]
    xr.testing.assert_allclose(parts[names].isel(carrier=slice(3)), whole[names].isel(carrier=slice(3)), rtol=1e-3)
    np.testing.assert_allclose(parts["probability"], whole["probability"], atol=1e-3)


def test_report_settings_hold_out_a_stratified_fifth(caused):
    run, _ = caused
    sae = train_sae(run["hidden_state"].sel(CELLS), SAESpec(features=24, k=4, epochs=1, split="none"))
    with pytest.raises(UsageError, match="trained on every example"):
        predict_errors(run, sae)
    found = predict_errors(run, sae, spec=ErrorSpec(reports=True))
    assert int(found["n_test"].sum()) == 160
    np.testing.assert_allclose(found["n_test"].sel(outcome="wrong") / 160, (~run["correct"]).mean(), atol=0.01)
    assert found["n_input"].sel(predictor="sae_codes") == 2 * 3 * 24
    with pytest.raises(SchemaError, match="needs 'correct'"):
        predict_errors(run.drop_vars("correct"), sae)


def test_one_outcome_is_said_not_scored(caused):
    run, sae = caused
    found = predict_errors(run.assign(correct=xr.ones_like(run["correct"])), sae, spec=QUICK)
    assert np.isnan(found["auroc"]).all()
    assert (found["accuracy"] == 1).all()
    assert "same outcome" in found["note"].item()
    n = int(found["n_test_problem"])  # Wilson's end; a bootstrap would say 1 to 1
    np.testing.assert_allclose(found["accuracy_low"], n / (n + 1.959963984540054**2))
    np.testing.assert_allclose(found["recall_low"].sel(outcome="right"), n / (n + 1.959963984540054**2))
    assert found["recall_low"].sel(outcome="wrong").isnull().all()


def test_a_feature_that_training_rows_do_not_vary_in_says_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype("float32")
    x[:, 1], x[:, 2] = 0.1, 25000.1 + 0.01 * rng.normal(size=60)
    x[50:, 1] = 5.0  # in test rows alone
    x[:10, 3] = np.nan
    spool = Spool(None, "x")
    for part in np.split(x, 6):
        spool.add(part)
    train = np.arange(60) < 50
    mean, deviation = moments(spool, train)
    assert deviation[1] == 0
    np.testing.assert_allclose(mean, np.nanmean(x[:50].astype("float64"), 0), rtol=1e-12)
    np.testing.assert_allclose(deviation, np.nanstd(x[:50].astype("float64"), 0), rtol=1e-9)
    side = np.where(train, 0, 2)
    wrong = rng.random(60) < 0.5
    assert abs(fit(spool, wrong, side, "deviation", ErrorSpec()).weight[1]) < 1e-12


def test_infinite_states_are_told(caused):
    run, sae = caused
    states = run["hidden_state"].copy()
    states.loc[{"example": run["example"].values[0], "position": states["position"].values[0]}] = np.inf
    found = predict_errors(run.assign(hidden_state=states), sae, spec=ErrorSpec(resamples=10))
    assert "states hold infinite numbers" in str(found["note"].values)


def test_a_fit_that_does_not_converge_is_told(caused):
    found = predict_errors(*caused, spec=ErrorSpec(resamples=10, max_iterations=1))
    assert "did not converge in 1 iterations; give more with --max-iterations" in found["note"].item()
    assert "converge" not in predict_errors(*caused, spec=ErrorSpec(resamples=10))["note"].item()
