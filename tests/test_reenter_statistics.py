"""Statistics of re-entries: paired tests, the first that wins, problems and not rephrasings, right and wrong apart."""

import numpy as np
import xarray as xr

from extract.reenter.intervene import permutation
from extract.reenter.paired import spared, with_pairs
from extract.reenter.statistics import first_that_wins, with_accuracy


def test_paired_tests_have_their_closed_form() -> None:
    outcome = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=bool)
    labels = {"layer": [0, 1, 2, -1], "control": ["", "", "", ""]}
    coords = {"example": range(6), **{name: ("condition", values) for name, values in labels.items()}}
    result = with_pairs(xr.Dataset(coords=coords), outcome, over="layer", within=(), which="all")
    np.testing.assert_array_equal(result["layer_first"], [0, 0, 1])
    np.testing.assert_allclose(result["layer_difference"], [-0.5, -1, -0.5])
    np.testing.assert_allclose(result["layer_p"], [0.25, 2 / 64, 0.25])
    np.testing.assert_allclose(result["layer_p_holm"], [0.5, 6 / 64, 0.5])
    assert spared([1, 0.01, 0.001], [0, 0.2, 0.9], [1, 2, 3]) == 1
    assert spared([1, 1], [0, 0], [1, 2]) == 2


def test_first_that_wins_and_stays() -> None:
    wins = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    wins = np.repeat(wins, 2, axis=1)
    found = first_that_wins(wins, ~wins, [1, 2, 3, 4, 5])
    # Wins at 2, but not at 3: from 4 on it stays.
    assert found["n"] == 4
    assert found["n_low"] <= 4 <= found["n_high"]
    never = first_that_wins(np.zeros((2, 3), dtype=bool), np.ones((2, 3), dtype=bool), [1, 2])
    assert np.isnan(never["n"])
    assert never["never"] == 1


def test_rephrasings_of_a_problem_make_no_figure_surer() -> None:
    rng = np.random.default_rng(0)
    answer = np.where(rng.random((2, 30)) < [[0.9], [0.5]], 7.0, 8.0)
    kl = rng.random((2, 30))

    def swept(times: int, problem: bool) -> xr.Dataset:
        dims = ("condition", "example")
        data = xr.Dataset(
            {
                "predicted_answer": (dims, np.repeat(answer, times, 1)),
                "answer_logprob": (("condition", "answer", "example"), np.repeat(kl, times, 1)[:, None]),
                "kl": (dims, np.repeat(kl, times, 1)),
            }
        )
        data = data.assign_coords(problem=("example", np.repeat(np.arange(30), times))) if problem else data
        return with_accuracy(data, np.full(30 * times, 7.0))

    once, grouped, apart = swept(1, problem=False), swept(4, problem=True), swept(4, problem=False)
    for name in ("accuracy", "importance", "kl_mean", "kl", "logprob_change"):
        for end in ("_low", "_high"):
            name_of = name.removesuffix("_mean") + end
            np.testing.assert_allclose(grouped[name_of], once[name_of], err_msg=name_of)
    np.testing.assert_allclose(grouped["p_holm"], once["p_holm"])
    assert apart["p"][0, 1] < once["p"][0, 1]
    assert apart["accuracy_low"][0, 1] > grouped["accuracy_low"][0, 1]


def test_right_and_wrong_answers_are_told_apart() -> None:
    dims = ("condition", "example")
    answer = np.array([[7.0, 7, 7, 1, 1], [7, 1, 1, 7, 1]])
    found = xr.Dataset(
        {
            "predicted_answer": (dims, answer), "kl": (dims, answer * 0),
            "answer_logprob": (("condition", "answer", "example"), answer[:, None] * 0),
        }
    )  # fmt: skip
    result = with_accuracy(found, np.full(5, 7.0), outcomes=True)
    assert result["stratum"].values.tolist() == ["all", "right", "wrong"]
    np.testing.assert_array_equal(result["n"][:, 1], [5, 3, 2])
    np.testing.assert_allclose(result["accuracy"][:, 1], [2 / 5, 1 / 3, 1 / 2])
    np.testing.assert_array_equal(result["mended"][:, 1], [1, 0, 1])


def test_a_shuffle_always_moves_something() -> None:
    for row in range(200):
        order = permutation(0, row, 2)
        assert order.tolist() == [1, 0]
