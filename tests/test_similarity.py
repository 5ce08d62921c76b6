"""CKA between runs: closed forms, a slow double loop, whole problems, shuffles, and what cannot be compared."""

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from synthetic import make_model, make_run, write_run

from analyze.context import Context
from analyze.page import write_section
from analyze.similarity.cka import similarity
from analyze.similarity.section import SECTIONS
from schemas import UsageError
from store import open_lake

FEW = {"resamples": 20, "permutations": 19}


def hsic(k: np.ndarray, m: np.ndarray, estimator: str) -> float:
    """Eq. 5 of Song et al. 2012 from its traces and sums, or tr(K H L H) of the first form, entry by entry."""
    n = len(k)
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return float(np.trace(k @ h @ m @ h))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    trace = sums_k = sums_m = cross = 0.0
    for i in range(n):
        for j in range(n):
            trace += k[i, j] * m[j, i]
            sums_k += k[i, j]
            sums_m += m[i, j]
            for q in range(n):
                cross += k[i, j] * m[j, q]
    return (trace + sums_k * sums_m / (n - 1) / (n - 2) - 2 * cross / (n - 2)) / n / (n - 3)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_it_is_what_a_slow_double_loop_gives(estimator: str) -> None:
    run, other = make_run(n_example=9, n_layer=2), make_run(n_example=9, n_layer=1, hidden=5, seed=1)
    cells = {"position": ["bot", "ct4"]}
    found = similarity(run.sel(cells), other.sel(cells), estimator=estimator, **FEW)
    for layer in (0, 1):
        for position in cells["position"]:
            x = run["hidden_state"].sel(layer=layer, position=position).values.astype("float64")
            y = other["hidden_state"].sel(layer=0, position="ct4").values.astype("float64")
            k, m = x @ x.T, y @ y.T
            slow = hsic(k, m, estimator) / np.sqrt(hsic(k, k, estimator) * hsic(m, m, estimator))
            fast = found["cka"].sel(layer=layer, position=position, other_layer=0, other_position="ct4")
            assert float(fast) == pytest.approx(slow, abs=1e-6)
    shared = [found["cka"].isel(position=i, other_position=i).transpose("layer", "other_layer") for i in (0, 1)]
    np.testing.assert_allclose(found["layer_cka"], (shared[0] + shared[1]) / 2)


def published(x: np.ndarray, y: np.ndarray, debiased: bool) -> float:
    """Linear CKA in the space of components, as Kornblith et al.'s published notebook computes it."""

    def product(x: np.ndarray, y: np.ndarray) -> float:
        n, similarity = len(x), np.linalg.norm(x.T @ y) ** 2
        rows_x, rows_y = (x**2).sum(1), (y**2).sum(1)
        bias = n / (n - 2) * rows_x @ rows_y - rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
        return float(similarity - bias if debiased else similarity)

    x, y = x - x.mean(0), y - y.mean(0)
    return product(x, y) / np.sqrt(product(x, x) * product(y, y))


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_it_is_what_the_published_code_gives(estimator: str) -> None:
    run, other = (
        make_run(n_example=40, seed=seed, hidden=width).sel(position=["ct2"]) for seed, width in ((0, 8), (1, 30))
    )
    found = similarity(run, other, estimator=estimator, **FEW)["cka"].squeeze()
    x, y = (one["hidden_state"].sel(layer=1, position="ct2").values.astype("float64") for one in (run, other))
    assert float(found.sel(layer=1, other_layer=1)) == pytest.approx(published(x, y, estimator == "debiased"), abs=1e-9)


def test_rotation_and_scale_change_nothing_and_independent_states_have_nothing_in_common() -> None:
    run = make_run(n_example=60, hidden=40).sel(position=["ct0", "ct1"])
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    state = run["hidden_state"]
    moved = run.assign(hidden_state=(state.dims, (3 * state.values @ turn + 7).astype("float32")))
    found = similarity(run, moved, **FEW)
    own = found["cka"].values.reshape(6, 6)
    np.testing.assert_allclose(np.diag(own), 1, atol=1e-5)
    np.testing.assert_allclose(own, similarity(run, **FEW)["cka"].values.reshape(6, 6), atol=1e-5)
    apart = own[~np.eye(6, dtype=bool)]
    assert abs(apart.mean()) < 0.02  # as many components as two thirds of the problems: the first form is far from 0
    first_form = similarity(run, estimator="biased", **FEW)["cka"].values.reshape(6, 6)
    assert first_form[~np.eye(6, dtype=bool)].min() > 0.3
    p = found["p"].values.reshape(6, 6)
    assert (np.diag(p) == 1 / 20).all()
    assert (p[~np.eye(6, dtype=bool)] > 1 / 20).mean() > 0.8
    assert (found["cka_low"] <= found["cka"] + 1e-9).all()


def test_chunks_and_copies_of_a_problem_and_the_order_of_the_other_run_change_nothing() -> None:
    run, other = make_run(n_example=20), make_run(n_example=20, seed=1)
    cells = {"position": ["bot", "ct0", "eot"]}
    found = similarity(run.sel(cells), other.sel(cells), **FEW)
    chunked = make_run(n_example=20, chunks={"example": 3, "layer": 2}).sel(cells)
    xr.testing.assert_identical(similarity(chunked, other.sel(cells).isel(example=slice(None, None, -1)), **FEW), found)
    twice = xr.concat([run, run.assign(question="again " + run["question"])], "example", data_vars="all")
    both = xr.concat([other, other.assign(question="again " + other["question"])], "example", data_vars="all")
    xr.testing.assert_identical(similarity(twice.sel(cells), both.sel(cells), **FEW).drop_attrs(), found.drop_attrs())


def test_constant_and_infinite_states_are_unknown_and_the_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(0)
    run = make_run(n_example=150, n_layer=2).sel(position=["ct0", "ct1"])
    common = rng.normal(size=(150, 4))
    for seed, mix in ((1, run), (2, other := run.copy(deep=True))):
        noise = np.random.default_rng(seed).normal(size=(150, 4))
        mix["hidden_state"][:, 0, 0] = np.concatenate([common, noise], 1)
    run["hidden_state"][:, 1, 0] = 5.0
    run["hidden_state"][3, 1, 1, 2] = np.inf
    found = similarity(run, other, resamples=100, permutations=19)
    assert found["cka"].sel(layer=1).isnull().all()
    assert found["p"].sel(layer=1).isnull().all()
    cell = found.sel(layer=0, position="ct0", other_layer=0, other_position="ct0")
    assert cell["cka_low"] < 0.5 < cell["cka_high"]  # half of the components are shared
    assert cell["cka_high"] - cell["cka_low"] < 0.25
    assert similarity(run, max_problems=40, **FEW).attrs["n_example"] == 40


def test_runs_over_other_questions_are_refused() -> None:
    run = make_run()
    other = run.assign(question="other " + run["question"])
    with pytest.raises(UsageError, match="share 0 that have all the positions .of 12 and 12 examples.*same data"):
        similarity(run.sel(position=["bot"]), other.sel(position=["bot"]))
    with pytest.raises(UsageError, match="^of .* 3 problems have all the positions .of 3 examples.; at least 8 are"):
        similarity(run.sel(position=["bot"]).isel(example=slice(3)))


def test_the_command_compares_every_two_runs_and_the_page_shows_them(tmp_path, capsys) -> None:
    place = tmp_path / "a.lake"
    model = make_model()
    names = [
        write_run(place, make_run(name=f"{name}/problems", n_example=20, seed=seed), model)
        for seed, name in enumerate(("one", "two", "three"))
    ]
    for runs in (names, names[:1]):
        assert run_lake("analyze", "similarity", place, *runs, "--resamples", "9", "--permutations", "9") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("mean over layers at the same depth, 20 of 20 shared problems") == 4
    lake = open_lake(place)
    assert sorted(len(result.runs) for result in lake.results("similarity")) == [1, 2, 2, 2]
    pair = lake.result("similarity", *names[:2])
    xr.testing.assert_allclose(
        pair["cka"], similarity(*(lake[name].sel(position=pair["position"].values) for name in names[:2]))["cka"]
    )
    page = write_section(SECTIONS[0], Context(lake, names))
    assert page is not None
    assert [label for label, _ in page.lines] == ["one with itself", "one and two", "one and three", "two and three"]
    assert "from " in page.lines[0][1]
    assert len(page.illustrations[0].panels) == 4
    assert page.tables[0].shown["position"].nunique() == pair.sizes["position"]
    assert page.headline.startswith("Centred kernel alignment")
    assert page.method.startswith("1: the states")
