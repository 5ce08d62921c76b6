"""Traces: what thoughts read as, chained by steps that are valid; planted chains, slow references, chance."""

from itertools import product

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from synthetic import make_model, make_run, normalise, write_run

from analyze.context import Context
from analyze.explorer.problems import problems
from analyze.tables import result_tables, short_tables
from analyze.traces.arithmetic import equations, question_numbers, trees, written_step
from analyze.traces.nodes import nodes_of
from analyze.traces.problems import NumberProblems
from analyze.traces.search import read_graph, ways_read
from analyze.traces.traces import traces
from schemas import SchemaError, UsageError
from store import open_lake

NAN = float("nan")
HIDDEN = 48


@pytest.fixture(scope="module")
def model() -> xr.Dataset:
    made = make_model(hidden=HIDDEN, n_vocabulary=60)
    return made.assign(final_norm_weight=xr.ones_like(made["final_norm_weight"]))


def planted(model: xr.Dataset, n: int = 24) -> xr.Dataset:
    """Problems ``a + b - c``; ct1 of the last layer reads as ``a + b``, other places as a word."""
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(3, 20, n), rng.integers(3, 20, n), rng.integers(1, 6, n)
    result = np.stack([a + b, a + b - c], 1).astype(float)
    run = make_run(n_example=n, hidden=HIDDEN, n_step=2, model=model)
    rows = model["unembedding"].values
    state = run["hidden_state"].values.copy()
    word = rows[56] / np.linalg.norm(rows[56])
    for place, position in enumerate(run["position"].values):
        value = rows[(a + b).astype(int)] if position == "ct1" else np.broadcast_to(word, (n, HIDDEN))
        there = np.isfinite(state[:, -1, place]).all(-1)
        state[there, -1, place] = value[there]
    expression = np.array([[f"{x}+{y}", f"{x + y}-{z}"] for x, y, z in zip(a, b, c, strict=True)], dtype=object)
    question = np.array([f"{x}, then {y} more, {z} fewer" for x, y, z in zip(a, b, c, strict=True)], dtype=object)
    return run.assign(
        hidden_state=(run["hidden_state"].dims, state),
        intermediate_result=(("example", "step"), result),
        expression=(("example", "step"), expression),
        question=("example", question),
        predicted_answer=("example", result[:, 1]),
    )


def test_planted_chains_are_recovered_and_not_by_chance(model: xr.Dataset) -> None:
    run = planted(model)
    result = traces(run, model, permutations=9)
    assert result.attrs["n_counted"] == 24
    assert result["recovered_share"].item() == 1 == result["in_order_share"].item()
    assert result["recovered_null"].item() < 0.15
    assert result["recovered_p"].item() == 0.1
    assert result["result_first_share"].sel(position="ct1", step=0).item() == 1
    assert str(result["tree"].values[0, 0]).endswith("(answer)")
    chunked = run.chunk({"example": 5, "position": 3})
    xr.testing.assert_allclose(result, traces(chunked, model, permutations=9))


def test_three_problems_can_be_exchanged_in_two_ways_and_no_more(model: xr.Dataset) -> None:
    few = traces(planted(model).isel(example=slice(0, 3)), model, permutations=50)
    assert few["recovered_p"].item() >= 1 / 3


def test_stopped_traces_take_up_what_was_found(model: xr.Dataset, tmp_path, monkeypatch) -> None:
    run, solved = planted(model), []
    run = run.assign_attrs(fingerprint="planted")
    solve = NumberProblems.solve
    monkeypatch.setattr(NumberProblems, "solve", lambda *given: solved.append(1) or solve(*given))
    whole = traces(run, model, permutations=5)
    assert len(solved) == 24 * 6
    solved.clear()

    def stop(done: int, total: int) -> None:
        if done == 24 * 3:  # solved, and solved with two shuffles
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        traces(run, model, permutations=5, folder=tmp_path, progress=stop)
    xr.testing.assert_identical(traces(run, model, permutations=5, folder=tmp_path), whole)
    assert len(solved) == 24 * 6
    other = run.assign(predicted_answer=run["predicted_answer"] + 1)  # nothing is taken up for other answers
    traces(other, model, permutations=5, folder=tmp_path)
    assert len(solved) == 2 * 24 * 6


def test_the_explorer_draws_the_tree_of_each_problem(model: xr.Dataset, tmp_path) -> None:
    run = planted(model, 6)
    write_run(tmp_path / "a.lake", run, model)
    lake = open_lake(tmp_path / "a.lake")
    assert problems(Context(lake, ["made-up/problems"]), "made-up/problems", [2])["items"][0]["trace"] is None
    lake.write_result("traces", traces(run, model, permutations=2), runs=["made-up/problems"], spec={})
    trace = problems(Context(lake, ["made-up/problems"]), "made-up/problems", [2])["items"][0]["trace"]
    total, answer = (f"{value:g}" for value in run["intermediate_result"].values[2])
    at = [trace["places"].index(name) for name in ("ct1", "answer")]
    assert trace["nodes"] == [[at[0], total, []], [at[1], answer, [at[0]]]]
    assert trace["read"][at[0]] == total
    assert (trace["written"], trace["how"]) == (True, "logit lens, layer 2")


def test_ranks_and_entropy_are_those_of_the_whole_distribution(model: xr.Dataset, monkeypatch) -> None:
    monkeypatch.setattr("analyze.lens.readout.VOCABULARY_BLOCK", 7)
    monkeypatch.setattr("analyze.traces.readings.STATES", 11)
    run = planted(model, 6)
    result = traces(run, model, layers=[1, 2], permutations=2)
    strings = model["token_string"].values.tolist()
    for example, layer, position in product(range(6), [1, 2], ["bot", "ct1", "eot"]):
        state = run["hidden_state"].sel(layer=layer, position=position).values[example]
        logit = normalise(state, model) @ model["unembedding"].values.T.astype("float64")
        p = np.exp(logit - logit.max())
        p /= p.sum()
        place = result.sel(layer=layer, position=position).isel(example=example)
        np.testing.assert_allclose(place["entropy"], -(p * np.log(np.maximum(p, 1e-300))).sum(), atol=2e-5)
        token = strings.index(f" {int(run['intermediate_result'].values[example, 0])}")
        assert float(place["result_rank"].sel(step=0)) == 1 + (logit > logit[token]).sum()


def test_intervals_of_results_read_are_over_problems(model: xr.Dataset) -> None:
    """Examples three times over, of the same problems, tell no more than they do once."""
    run = planted(model)
    n = run.sizes["example"]
    once = run.assign_coords(problem=("example", np.arange(n)))
    three = once.isel(example=np.tile(np.arange(n), 3)).assign_coords(example=np.arange(3 * n))
    expected, found = (traces(each, model, permutations=2) for each in (once, three))
    assert ((expected["control_share_low"] < expected["control_share"]) | (expected["control_share"] == 0)).all()
    for name in ("result_share", "control_share"):
        for end in ("", "_low", "_high"):
            xr.testing.assert_allclose(found[name + end], expected[name + end])


def test_every_equation_is_found_and_no_other() -> None:
    numbers, signs = np.array([2.0, 3.0, 7.0, 12.0]), {"+": float.__add__, "-": float.__sub__, "*": float.__mul__}
    signs |= {"/": float.__truediv__}
    for value in (5.0, 6.0, 36.0, 1.75, 11.0):
        slow = {
            (tuple(sorted((i, j))) if sign in "+*" else (i, j), sign)
            for i, j, sign in product(range(4), range(4), signs)
            if abs(signs[sign](float(numbers[i]), float(numbers[j])) - value) < 1e-9
        }
        assert set(equations(numbers, value)) == slow
    three = equations(np.array([2.0, 3.0, 50.0]), 44.0, 3)
    assert ((1, 1), "+") not in three
    assert ((0, 1, 2), "*~") in three  # 50 - 2 * 3


def test_trees_use_the_question_before_anything_else() -> None:
    best, found = trees("5 shells, 5 more, 8 more; half are lost", [10, 18, 18, NAN], ["ct0", "ct1", "ct2", "eot"], 9)
    assert found
    assert [tree.texts for tree in best] == [("5+5=10 (ct0)", "8+10=18 (ct1)", "18/2=9 (answer)")]
    assert nodes_of("; ".join(best[0].texts))[1:] == [("ct1", "18", ["ct0"]), ("answer", "9", ["ct1"])]
    assert trees("5 shells", [NAN], ["ct0"], NAN) == ([], False)
    assert trees("7 shells, 9 more", [3.0], ["ct0"], 40.0) == ([], False)
    assert question_numbers("Half of 24 eggs in 3 weeks")[0] == (2.0, 3.0, 24.0)
    assert written_step("600*30/100", 180.0) is not None
    assert written_step("sqrt(4)", 2.0) is None
    assert written_step(f"{'1' * 400}+1", 2.0) is None
    assert trees("Tom has 1e200 and 1e200 pens, and loses 1e-200.", [1e200], ["ct0"], 5.0, 3).best == []


def test_ways_follow_edges_in_the_order_of_the_thoughts() -> None:
    graph = read_graph("Tom", "Tom>a Tom>b a>c b>d c>e d>f")
    assert graph.frontiers() == [["a", "b"], ["c", "d"], ["e", "f"]]
    places = ["bot", "ct0", "ct1"]
    ways = ways_read(graph, [["a", "b"], ["d", "c"], ["e", "f"]], places, "f")
    assert [way.texts for way in ways] == [("Tom > b (bot)", "b > d (ct0)", "d > f (ct1)")]
    assert ways_read(graph, [["d"], ["b"], ["f"]], places, "f") == []
    assert ways_read(graph, [["b"], [], ["d"], ["f"]], [*places, "ct2"], "f") == []


def test_json_has_no_row_for_each_example_whatever_the_order_of_dims(model: xr.Dataset) -> None:
    frames = result_tables(traces(planted(model), model, permutations=2))
    assert "layer_example" in frames
    short = short_tables(frames)
    assert set(short) == {name for name in frames if "example" not in name}
    assert short["layer"][0]["recovered_share"] == frames["layer"]["recovered_share"][0]


def test_command_on_graphs_and_without_thoughts(model: xr.Dataset, tmp_path, capsys) -> None:
    data, place = tmp_path / "data", str(tmp_path / "g.lake")
    extract = ["--data", str(data / "graph.jsonl"), "--lake", place, "--limit", "40", "--max-new-tokens", "4"]
    for words in (
        ["problems", "--graph", "--out", str(data)],
        ["extract", "--model", "small-graph", *extract],
        ["analyze", "traces", place, "small-graph/graph", "--permutations", "5"],
    ):
        assert run_lake(*words) == 0
    result = open_lake(place).result("traces", "small-graph/graph")
    assert result["recovered_share"].item() >= 0.95
    assert result["recovered_null"].item() <= 0.05
    reached = result["frontier_share"].isel(layer=0)
    for position, distance in (("bot", 1), ("ct0", 2), ("ct1", 3)):
        assert float(reached.sel(position=position, distance=distance)) > 0.95
    assert "away" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no written chain"):
        traces(planted(model).drop_vars("intermediate_result"), model)
    with pytest.raises(UsageError, match="has no layer 9"):
        traces(planted(model), model, layers=[9])
    with pytest.raises(UsageError, match="top is 1000000; it must lie between 1 and the"):
        traces(planted(model), model, top=1_000_000)
    with pytest.raises(SchemaError, match="lacks zzz"):
        traces(planted(model), model, positions=["zzz"])
