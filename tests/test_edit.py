"""Values written into thoughts, and subspaces of them: known truth of the small models, closed forms, bad requests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reentry_lake
import xarray as xr
from reentry_lake import figure, story_lake
from sklearn.linear_model import LogisticRegression

from extract.reenter import EditSettings, SubspaceSettings, edit, subspaces
from extract.reenter.edit.methods import by_probe, by_regression
from extract.reenter.retelling import Chains, evaluate, references
from extract.reenter.subspace.command import tables
from extract.reenter.subspace.fits import FITS, Fit, logistic_probe, one_hot
from extract.reenter.subspace.stored import spanned
from extract.reenter.target import Target
from extract.reenter.trial import Place, Trial, open_trial
from extract.reenter.wanted import draw_wanted
from extract.small_models.problems import continue_from, read_operations
from schemas import UsageError
from schemas.intervention import read_interventions
from store import open_lake

CT1 = Place("latent_embedding", -1, "ct1", 0)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = ("small-llama", "small-llama-decodable")
    return story_lake(tmp_path_factory.mktemp("edit"), models, {2: 100, 3: 100, 4: 100})


def target(lake: Path, model: str = "small-llama", limit: int | None = 120) -> Target:
    return reentry_lake.target(lake, model, limit=limit)


def test_a_probe_of_many_classes_of_few_examples_warns_of_nothing() -> None:
    probe, *_ = logistic_probe(np.random.default_rng(0).normal(size=(6, 3)), np.array([1.0, 2, 3, 4, 5, 5]))
    assert probe.classes_.tolist() == [1, 2, 3, 4, 5]


def test_what_a_chain_comes_to_is_what_the_stories_do(lake: Path) -> None:
    run = open_lake(lake)["small-llama/test"]
    chains = Chains(run)
    n = 0
    for row in range(0, run.sizes["example"], 5):
        text = " ".join(
            f"<<{e}={r:.0f}>>" for e, r in zip(chains.expression[row], chains.result[row], strict=True) if e
        )
        _, operations = read_operations(text)
        for step in range(len(operations) - 1):
            for value in range(31):
                new = chains.retell(row, step, value=value)
                assert (None if new is None else new[len(operations) - 1]) == continue_from(operations, step, value)
                n += 1
    assert n > 3000
    assert chains.retell(0, int(chains.n_step[0]) - 1, value=3) is None


def test_numbers_of_an_expression_refer_to_the_latest_step_that_made_them() -> None:
    assert references("8-6", [6, 8], "Tom has 2 pens. He loses 6 again.") == {0: 1}
    assert references("6+8", [6, 8], "How many are both boxes together?") == {0: 0, 1: 1}
    assert references("2*2", [2], "They double.") == {0: 0}
    assert evaluate("(3 + 4)*2") == 14
    assert evaluate("1/0") is None
    assert evaluate("__import__('os')") is None


@pytest.mark.parametrize("fit", list(FITS))
def test_subspaces_find_what_was_planted(fit: str) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 600)
    planted = np.linalg.qr(rng.standard_normal((10, 2)))[0].T
    states = rng.standard_normal((600, 10)) * 0.1 + 3 * rng.standard_normal((4, 2))[label] @ planted
    found: Fit = FITS[fit](states, label)
    np.testing.assert_allclose(found.dual @ found.basis.T, np.eye(len(found.basis)), atol=1e-9)
    erased = states - (states - found.mean) @ found.dual.T @ found.basis
    if fit == "probe":
        # On scaled states it also uses what varies little; what is left is the same to it for every state.
        scaled = (states - found.mean) / states.std(0)
        probe = LogisticRegression(C=1.0, max_iter=500).fit(scaled, label)
        assert np.ptp(probe.decision_function((erased - found.mean) / states.std(0)), axis=0).max() < 1e-6
        return
    basis = np.linalg.qr(found.basis[:2].T)[0].T
    assert np.linalg.svd(basis @ planted.T)[1].min() > 0.95
    if fit == "leace":
        # The defining property: what is left has no covariance with any class, so no linear read-out beats chance.
        classes = one_hot(label)
        np.testing.assert_allclose((erased - erased.mean(0)).T @ (classes - classes.mean(0)) / 600, 0, atol=1e-9)
        # And no change is smaller: of oblique projections it is the one that whitened states see as orthogonal.
        whiten = np.linalg.cholesky(np.linalg.inv(np.cov(states.T, bias=True))).T
        onto = whiten @ (found.basis.T @ found.dual) @ np.linalg.inv(whiten)
        np.testing.assert_allclose(onto, onto.T, atol=1e-6)


def test_a_probe_is_left_at_its_boundary_and_a_regression_at_the_value(lake: Path) -> None:
    trial = open_trial(target(lake), 0)
    wanted = draw_wanted(trial, CT1)
    values, states = trial.target.values, trial.column(CT1)[trial.tried].astype(np.float64)
    assert 20 < wanted.counted.sum() <= len(trial.tried) < 75
    assert not set(trial.fitted) & set(trial.tried)

    def written(method: Any) -> tuple[np.ndarray, np.ndarray]:
        made = method(trial, wanted, "intermediate_result")
        line = values.subspaces[made.intervention["subspace"]]["basis"].values[:, 0]
        to = values.directions[made.intervention["direction"]].values
        return states + ((to - states) * line).sum(1, keepdims=True) * line, made.counted

    labels, fitted = trial.chains.result[:, 0], trial.column(CT1)[trial.fitted].astype(np.float64)
    mean, scale = fitted.mean(0), fitted.std(0)
    probe = LogisticRegression(C=1.0, max_iter=500).fit((fitted - mean) / scale, labels[trial.fitted])
    new, counted = written(by_probe)
    logit = (new - mean) / scale @ probe.coef_.T + probe.intercept_
    places = [np.searchsorted(probe.classes_, np.where(counted, each, 0)) for each in (wanted.own, wanted.value)]
    own, other = (logit[np.arange(len(new)), place] for place in places)
    np.testing.assert_allclose(own[counted], other[counted], atol=1e-3)
    new, counted = written(by_regression)
    scaled = (fitted - mean) / scale
    weights = np.linalg.solve(scaled.T @ scaled + np.eye(64), scaled.T @ labels[trial.fitted])
    predicted = (new - mean) / scale @ weights + labels[trial.fitted].mean()
    np.testing.assert_allclose(predicted[counted], wanted.value[counted].astype(float), atol=1e-2)


def test_a_regression_writes_the_same_in_any_unit(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = open_trial(target(lake), 0)
    wanted = draw_wanted(trial, CT1)
    column, written = trial.column(CT1), []
    for unit in (1.0, 1 / 1024):
        monkeypatch.setattr(Trial, "column", lambda self, place, unit=unit: column * np.float32(unit))
        made = by_regression(trial, wanted, "intermediate_result")
        written.append(trial.target.values.directions[made.intervention["direction"]].values[made.counted] / unit)
    np.testing.assert_allclose(written[1], written[0], rtol=1e-4, atol=1e-4)


def test_an_edited_thought_moves_the_answer_where_it_is_used(lake: Path) -> None:
    settings = EditSettings(methods=("means", "probe", "donor"), doses=(0.5, 1), also="noise ct5 strength=2; zero ct3")
    used = edit(target(lake), settings)
    assert sorted(set(used["changed"].values)) == ["", "ct1", "ct3", "ct5"]
    at = {"changed": "ct1", "also": ""}
    for method in ("means", "donor"):
        assert figure(used, "hit_share", method=method, dose=1.0, **at) > 0.75
        assert figure(used, "p_hit_holm", method=method, dose=1.0, **at) < 1e-4
        assert figure(used, "hit_share", method=method, dose=1.0, **(at | {"control": "noise of the same norm"})) < 0.1
        follow = used.isel(condition=(used["method"] == method) & (used["changed"] == "ct1") & (used["dose"] == 1.0)
                           & (used["control"] == "") & (used["also"] == ""))  # fmt: skip
        assert float(follow["follow_share"].sel(position="ct2").item()) > 0.75
        assert float(follow["side_share"].sel(position=["ct1", "ct3", "ct5", "eot"]).max()) < 0.1
    for control in ("self (forward)", "self (stored)"):
        assert figure(used, "kept_share", method="", changed="ct1", control=control) == 1
    assert figure(used, "kept_share", method="", changed="ct1", control="donor of the own value") > 0.9
    single = [figure(used, "accuracy", method="", also=text.strip()) for text in settings.also.split(";")]
    assert figure(used, "accuracy", method="", also=settings.also) <= min(single) + 0.05
    settings = EditSettings(methods=("means",), doses=(1,), positions=("ct1",), sample=2, temperature=1e-6)
    twin = edit(target(lake, "small-llama-decodable"), settings)
    np.testing.assert_array_equal(twin["sample_hit"].fillna(0), twin["hit"])  # the coldest draws
    assert figure(twin, "hit_share", method="means", dose=1.0) < 0.1


def test_a_subspace_of_few_dimensions_carries_the_result(lake: Path) -> None:
    settings = SubspaceSettings(
        subspaces=("means", "das"), ranks=(8,), positions=("ct1",), draws=1, das_steps=40, das_rows=48
    )
    used = subspaces(target(lake), settings)
    whole = figure(used, "importance", change="erase", subspace="all of it")
    assert whole > 0.8
    for name in ("means", "das"):
        assert figure(used, "importance", change="erase", subspace=name, rank=8) > whole - 0.15
        assert figure(used, "p_right_holm", change="erase", subspace=name, rank=8) < 1e-4
        assert figure(used, "hit_share", change="exchange", subspace=name, rank=8) > 0.75
    random = {"subspace": "random #1", "rank": 8, "control": "random subspace"}
    assert figure(used, "importance", change="erase", **random) < 0.15
    apart = {"subspace": "random apart #1", "rank": 8, "control": "random, apart"}
    assert figure(used, "importance", change="erase", **apart) == 0
    assert figure(used, "held_share", change="erase", **apart) < 0.1
    assert figure(used, "held_share", change="erase", subspace="means", rank=8) > 0.9
    assert figure(used, "held_share", change="erase", **random) == pytest.approx(8 / 64, abs=0.1)
    assert figure(used, "hit_share", change="exchange", **random) < 0.1
    assert figure(used, "kept_share", change="exchange", subspace="all of it", control="self (stored)") == 1
    learned = replace(settings, subspaces=("das",), das_steps=5)
    first, again = (subspaces(target(lake), learned) for _ in range(2))
    xr.testing.assert_identical(first, again)
    settings = SubspaceSettings(subspaces=("means",), ranks=(8,), positions=("ct1",), sample=1, temperature=1e-6)
    twin = subspaces(target(lake, "small-llama-decodable"), settings)
    assert [table.columns[-1] for table in tables(twin, {})[:2]] == ["drawn right 95%", "drawn: follows 95%"]
    assert figure(twin, "importance", change="erase", subspace="means", rank=8) < 0.1


def test_vectors_of_a_result_span_a_subspace_at_every_place() -> None:
    rng = np.random.default_rng(1)
    vectors = xr.DataArray(rng.standard_normal((3, 2, 6)), dims=("class", "layer", "hidden"), coords={"layer": [0, 1]})
    vectors[2] = vectors[0] + vectors[1]
    found = spanned(vectors)
    for layer in (0, 1):
        basis = found["basis"].sel(layer=layer).values
        onto = basis.T @ basis
        np.testing.assert_allclose(vectors.sel(layer=layer).values @ onto, vectors.sel(layer=layer).values, atol=1e-9)
        assert np.isclose(np.trace(onto), 2)


def test_interventions_are_read_from_a_line() -> None:
    first, second = read_interventions("noise ct5 strength=2 seed=3; project_out ct1+ct2 layers=0+1 subspace=a:b")
    assert (first.site, first.positions, first.strength, first.seed) == ("latent_embedding", ("ct5",), 2.0, 3)
    assert (second.site, second.positions, second.layers) == ("hidden_state", ("ct1", "ct2"), (0, 1))
    for text, message in [
        ("noise", "'noise' is no intervention; write OPERATION POSITION"),
        ("melt ct1", "operation 'melt' is not one of"),
        ("noise ct5 power=2", "'power' in 'noise ct5 power=2' is not one of"),
        ("noise ct5 strength=much", "strength='much' is no float"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_interventions(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EditSettings(to="99"), "99.0 is not a value of step 0 in at least 3 problems"),
        (EditSettings(to="many"), "--to is 'many'"),
        (EditSettings(step=7), "--step is 7; chains of .* go on after steps 0 to 2"),
        (EditSettings(positions=("ct2",)), "ct2 reads most often as .* with --step"),
        (EditSettings(positions=("ct9",)), "position 'ct9' is not there"),
        (EditSettings(positions=("a0",)), "a result is looked for at ct0, .*, not at a0"),
        (EditSettings(layers=(0,)), "latent_embedding is fed below all layers"),
        (EditSettings(also="noise ct8"), "position 'ct8' is not there"),
        (EditSettings(also="noise ct5 strength=nan"), "strength is nan"),
        (EditSettings(also="add ct1 direction=probes:direction"), "was never computed for .* lake analyze probes"),
        (SubspaceSettings(ranks=(65,)), "rank 65 is not there; states of .* have 64 components"),
        (SubspaceSettings(stored=("sae:decoder",)), "was never computed"),
        (SubspaceSettings(site="hidden_state", layers=(4,)), "layer 4 is not there"),
    ],
)
def test_bad_requests_are_one_line(lake: Path, settings: Any, message: str) -> None:
    run = edit if isinstance(settings, EditSettings) else subspaces
    with pytest.raises(UsageError, match=message) as caught:
        run(target(lake), settings)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_a_run_without_chains_is_refused(lake: Path) -> None:
    found = target(lake)
    found.lake, found.data = None, found.data.drop_vars("expression")
    with pytest.raises(UsageError, match="has no written chains"):
        edit(found)


def test_a_run_without_right_answers_is_refused_for_that(lake: Path) -> None:
    found = target(lake)
    found.lake, found.data = None, found.data.assign(correct=found.data["correct"] & False)
    with pytest.raises(UsageError, match="examples of small-llama/test that are tried none is answered rightly"):
        edit(found)


def test_answers_that_are_words_need_graphs(lake: Path) -> None:
    found = target(lake)
    found.lake, found.data = None, found.data.assign_attrs(answer_kind="choice")
    with pytest.raises(UsageError, match="of kind choice and its problems carry no graphs"):
        edit(found)


def test_a_huge_or_a_constant_component_hides_nothing() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 400)
    states = rng.standard_normal((400, 8))
    states[:, :2] += 2 * one_hot(label)[:, :2]
    huge = states.copy()
    huge[:, 5], huge[:, 6] = 25000 * states[:, 5], 0.1
    found = FITS["leace"](huge, label)
    erased = huge - (huge - found.mean) @ found.dual.T @ found.basis
    left = (erased - erased.mean(0)).T @ (one_hot(label) - one_hot(label).mean(0)) / 400
    np.testing.assert_allclose(left / huge.std(0).clip(1)[:, None], 0, atol=1e-9)
    assert abs(FITS["probe"](huge, label).basis[:, 6]).max() < 1e-6
