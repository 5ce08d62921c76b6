"""Shape of states: scikit-learn's components, known dimensions, planted rotations and loads, readings, the command."""

from itertools import permutations

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from scipy import stats
from sklearn.decomposition import PCA
from synthetic import make_model, make_run, normalise, write_run

from analyze.context import Context
from analyze.geometry import rotations_section, shape_section
from analyze.geometry.components import fit, kept_share, principal_components, shares
from analyze.geometry.procrustes import procrustes
from analyze.geometry.shape import Cells, geometry, participation_ratio, shape_of
from analyze.lens.readout import ReadOut
from analyze.page import write_section
from store import open_lake

FEW = {"resamples": 10, "shuffles": 3}


@pytest.mark.parametrize(("n", "width"), [(30, 8), (12, 20)])
def test_components_are_those_of_scikit_learn(n: int, width: int) -> None:
    states = np.random.default_rng(0).normal(size=(2, n, width)) * np.linspace(1, 3, width)
    for cell, share in zip(states, shape_of(states, 5)["explained"], strict=True):
        np.testing.assert_allclose(share, PCA().fit(cell).explained_variance_ratio_[:5], atol=1e-10)
    mean, axes, share = fit(states, 5)
    known = PCA().fit(states.reshape(-1, width))
    np.testing.assert_allclose(mean, known.mean_)
    np.testing.assert_allclose(axes, known.components_[:5], atol=1e-8)
    np.testing.assert_allclose(share, known.explained_variance_ratio_[:5], atol=1e-10)


@pytest.mark.parametrize(("n", "width"), [(40, 50), (40, 6)])
def test_a_draw_is_told_from_shared_products_as_it_is_alone(n: int, width: int) -> None:
    rng = np.random.default_rng(1)
    states = 50 + rng.normal(size=(3, n, width))
    half = rng.permutation(n)[: n // 2]
    (_, drawn), alone = Cells(states).shapes([half[::-1], half], 4), shape_of(states[:, half], 4)
    for name, values in alone.items():
        np.testing.assert_allclose(drawn[name], values, rtol=1e-8, atol=1e-10)
    apart = states[:, half] - states[:, half].mean(1, keepdims=True)
    cosine = [(a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(apart[0], apart[2], strict=True)]
    assert drawn["centred_cosine"][0, 2] == pytest.approx(np.mean(cosine))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_reading_with_few_components_is_that_of_their_sum(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.lens.readout.VOCABULARY_BLOCK", 16)
    readout = ReadOut(make_model(final_norm=norm))
    rng = np.random.default_rng(0)
    width = readout.unembedding.shape[1]
    states = rng.normal(size=(2, 15, width))
    mean, axes, _ = fit(states, width)
    whole = (readout.norm(states) @ readout.unembedding.T).argmax(-1)
    share = kept_share(states, whole, mean, axes, [1, 3, width - 1], readout)
    for place, k in enumerate([1, 3, width - 1]):
        short = mean + (states - mean) @ axes[:k].T @ axes[:k]
        first = (readout.norm(short) @ readout.unembedding.T).argmax(-1)
        np.testing.assert_allclose(share[:, place], (first == whole).mean(1))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_dimensions_of_known_sets(dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    turn = np.linalg.qr(rng.normal(size=(20, 20)))[0][:dimension]
    flat = rng.uniform(-1, 1, size=(1, 1500, dimension))
    found = shape_of(flat @ turn + 3.0, 6)
    assert found["two_nn"][0] == pytest.approx(dimension, rel=0.12)
    assert found["participation_ratio"][0] == pytest.approx(dimension, rel=0.05)
    angle = np.pi * flat[..., :1]  # a curve fills two directions and has one dimension
    curve = shape_of(np.concatenate([np.cos(angle), np.sin(angle)], -1), 2)
    assert curve["two_nn"][0] == pytest.approx(1, rel=0.12)
    assert curve["participation_ratio"][0] == pytest.approx(2, rel=0.05)


def test_directions_of_few_problems_are_counted_without_bias() -> None:
    states = np.random.default_rng(0).exponential(size=(6, 3)) @ [[2.0, 0, 0], [1, 1, 0], [0, 1, 0.5]]
    between = states[:, None] - states
    square = np.einsum("ijh,ijh->ij", between, between)
    sums = np.zeros(2)
    for i, j, k, m in permutations(range(6), 4):  # of four different problems both products are unbiased
        sums += square[i, j] * square[k, m], (between[i, j] @ between[k, m]) ** 2
    centred = states - states.mean(0)
    assert participation_ratio(centred @ centred.T) == pytest.approx(sums[0] / sums[1])


def test_no_interval_holds_what_cannot_be() -> None:
    run = make_run(n_example=9).sel(position=["bot", "ct0"])
    result = geometry(run, resamples=30, shuffles=1, components=2)
    assert float(result["participation_ratio_low"].min()) == 1.0  # there is no less than one direction
    assert float(result["explained_high"].max()) <= 1.0


def test_lengths_and_cosines_are_those_one_by_one_and_chunks_change_nothing() -> None:
    cells = {"position": ["bot", "ct0", "ct3"]}
    run = make_run(n_example=20).sel(cells)
    found = geometry(run, **FEW)
    state = run["hidden_state"].sel(layer=1).values.astype("float64")
    at, other = state[:, 0], state[:, 2]
    slow = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(at, other, strict=True)])
    cell = found.sel(layer=1, position="bot", other_position="ct3")
    assert float(cell["cosine"]) == pytest.approx(slow)
    assert float(cell["norm"]) == pytest.approx(np.mean([np.linalg.norm(a) for a in at]))
    assert float(cell["norm_low"]) < float(cell["norm"]) < float(cell["norm_high"])
    chunked = make_run(n_example=20, chunks={"example": 3, "hidden": 3}).sel(cells)
    xr.testing.assert_identical(geometry(chunked, **FEW), found)
    run["hidden_state"][:, 0, 0] = 2.0
    assert geometry(run, **FEW)["two_nn"].isel(layer=0).isnull().values.tolist() == [True, False, False]


def test_a_rotation_is_found_on_problems_left_out_and_shuffles_have_none() -> None:
    run = make_run(n_example=80).sel(position=["bot", "ct0"])
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    state = run["hidden_state"]
    moved = run.assign(hidden_state=(state.dims, (0.2 * state.values @ turn + 4).astype("float32")))
    found = procrustes(run, moved, shuffles=19, resamples=20)
    fits = found["r2"].values.reshape(6, 6)
    np.testing.assert_allclose(np.diag(fits), 1, atol=1e-6)
    assert fits[~np.eye(6, dtype=bool)].max() < 0.1
    assert (np.diag(found["p"].values.reshape(6, 6)) == 1 / 20).all()
    assert float(found["r2_null"]) < 0.2


def test_what_a_component_carries_and_how_many_a_reading_takes() -> None:
    model = make_model()
    run = make_run(n_example=120, model=model).sel(position=["bot", "ct0", "ct1"])
    result = run["intermediate_result"].values[:, 0]
    run["hidden_state"][:, 2, 1, :] = 0.1 * run["hidden_state"][:, 2, 1, :]
    run["hidden_state"][:, 2, 1, 3] += xr.DataArray(2 * result, dims="example")
    found = principal_components(run, model, components=3, permutations=19)
    share = found["carried_share"].sel(layer=2, component=0, carried="result 1")
    assert float(share.sel(position="ct0")) > 0.98
    assert float(share.sel(position="bot")) < float(found["carried_null"].sel(carried="result 1"))
    assert found["kept_reading"].sel(n_component=4).mean() > found["kept_reading_random"].sel(n_component=4).mean()
    assert (found["position_share"].sel(layer=2, component=0) > 0.1).item()
    all_kept = principal_components(run.isel(example=slice(90)), model, components=3, permutations=1)
    np.testing.assert_allclose(all_kept["score"].mean(["example", "position"]), 0, atol=1e-6)
    states = run["hidden_state"].sel(layer=2).transpose("position", "example", "hidden").values.astype("float64")
    mean, axes, _ = fit(states, 1)
    spread = ((states - mean) @ axes[0]).std()
    logits = [normalise(state, model) @ model["unembedding"].values.T for state in (mean + spread * axes[0], mean)]
    best = np.argsort(logits[1] - logits[0])[:5]
    words = " ".join(str(model["token_string"].values[token]).strip() for token in best)
    assert found["tokens"].sel(layer=2, component=0, sign="+").item() == words


def test_the_command_and_its_sections(tmp_path, capsys) -> None:
    place = tmp_path / "a.lake"
    names = [
        write_run(place, make_run(name=f"{name}/problems", n_example=24, seed=seed, model=model), model)
        for seed, name in enumerate(("one", "two"))
        for model in [make_model(seed=seed)]
    ]
    words = ["analyze", "geometry", str(place), *names, "--resamples", "5", "--shuffles", "2", "--components", "3"]
    code = run_lake(*words)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.count("shape of the states, 24 problems") == 2
    assert out.count("held-out r2") == 3
    lake = open_lake(place)
    assert [len(result.runs) for result in lake.results("procrustes")].count(2) == 1
    context = Context(lake, names)
    for section in (*shape_section.SECTIONS, *rotations_section.SECTIONS):
        page = write_section(section, context)
        assert page is not None
        assert page.headline
        assert page.method
        assert page.tables
        assert page.illustrations


def test_infinite_and_constant_states_have_no_components() -> None:
    model = make_model()
    run = make_run(n_example=40, n_layer=2, model=model).sel(position=["bot", "ct0"])
    whole = principal_components(run.isel(example=slice(1, None)), model, components=3, permutations=5, max_problems=99)
    run["hidden_state"][0, 0, 1, 4] = np.inf
    found = principal_components(run, model, components=3, permutations=5, max_problems=99)
    assert found["n"].values.tolist() == [39, 40]
    for name in ("pooled_explained", "position_share", "carried_share"):
        np.testing.assert_allclose(found[name].isel(layer=0), whole[name].isel(layer=0), atol=1e-10, err_msg=name)
    run["hidden_state"][:, 0], run["hidden_state"][:, 1, 0] = 25000.1, 0.1
    found = principal_components(run, model, components=3, permutations=5)
    for name in ("pooled_explained", "position_share", "carried_share", "kept_reading"):
        assert found[name].isel(layer=0).isnull().all(), name
    assert found["carried_share"].sel(layer=1, position="bot").isnull().all()
    assert found["carried_share"].sel(layer=1, position="ct0").notnull().all()


def test_what_goes_with_a_result_is_the_squared_rank_correlation_and_with_an_operation_the_share_between() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 30, 3)) + np.arange(30)[:, None] / 10
    number, word = np.where(np.arange(30) % 7, rng.integers(0, 9, 30), np.nan), rng.choice(["+", "-", "", "*"], 30)
    orders = np.stack([rng.permutation(30) for _ in range(4)])
    for values in (number, word):
        known = np.isfinite(values) if values is number else values != ""

        def share(column, values=values, known=known):
            ranks = stats.rankdata(column[known])
            if values is number:
                return stats.spearmanr(ranks, values[known])[0] ** 2
            groups = [ranks[values[known] == one] for one in ("+", "-", "*")]
            between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups)
            return between / ((ranks - ranks.mean()) ** 2).sum()

        np.testing.assert_allclose(shares(scores, values), np.apply_along_axis(share, 1, scores))
        drawn = shares(scores, values, orders)
        assert drawn.shape == (4, 2, 3)
        held = np.flatnonzero(known)
        for order, found in zip(orders, drawn, strict=True):
            again = scores.copy()
            again[:, order[known[order]]] = scores[:, held]
            np.testing.assert_allclose(found, np.apply_along_axis(share, 1, again))
