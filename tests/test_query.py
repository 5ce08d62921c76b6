"""Questions in SQL, the largest values anywhere, and places in their context."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic import make_model, make_run, write_run
from two_runs import refused, two_runs

from analyze import activation_of, sae_codes
from analyze.query import top
from analyze.query.sql import SETTINGS
from analyze.sae.dictionary import SAESpec, select_cells, train_sae
from store import open_lake


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake that is only read."""
    return two_runs(tmp_path_factory.mktemp("lakes") / "made.lake")


@pytest.fixture
def ask(call, analysed_lake):
    """Put a question in SQL to the lake with results: (exit code, stdout, stderr)."""
    pytest.importorskip("duckdb")
    return lambda *words: call("query", analysed_lake, *words)


def test_a_query_gives_what_xarray_gives(ask, analysed_lake, tmp_path):
    lake = open_lake(analysed_lake)
    run = lake["one/problems"]
    right = run["correct"].values
    sql = "select correct, count(*) as n, avg(answer_logprob) as logprob from one_problems group by correct order by 1"
    found = json.loads(ask(sql, "--json")[1])
    assert [row["n"] for row in found] == [(~right).sum(), right.sum()]
    assert [row["logprob"] for row in found] == pytest.approx(
        [float(run["answer_logprob"].values[which].mean()) for which in (~right, right)]
    )
    assert ask('select problem, operation[1] from "one/problems" where example = 3')[1].split()[-4:] == [
        str(int(run["problem"][3])), run["operation"].values[3, 0], "1", "rows"
    ]  # fmt: skip
    steps = 'select operation, intermediate_result, null::boolean as missing from "one/problems" where example = 3'
    (found,) = json.loads(ask(steps, "--json")[1])
    assert found["operation"] == [name for name in run["operation"].values[3] if name]
    assert f"[{', '.join(found['operation'])}]" in ask(steps)[1]
    joined = "heads_one_problems join heads_one_problems_layer_head_position_key_position using (layer, head)"
    (found,) = json.loads(ask(f"select count(*) as n from {joined}", "--json")[1])
    assert found["n"] == lake.result("heads", "one/problems")["pattern"].size
    flow = lake.result("heads", "one/problems")["flow"]
    code, out, err = ask(
        "select flow from heads_one_problems where layer = 2 and head = 1", "--csv", tmp_path / "a.csv"
    )
    assert (code, err) == (0, "")
    assert pd.read_csv(tmp_path / "a.csv")["flow"].item() == pytest.approx(float(flow.sel(layer=2, head=1)))
    listed = json.loads(ask("--json")[1])
    assert listed["one_problems"]["columns"][:4] == ["example", "problem", "variant", "question"]
    assert {"lens_one_problems", "probes_one_problems"} <= listed.keys()
    assert "committed" not in listed["one_problems"]["columns"]


def test_no_digit_of_a_number_is_lost(ask):
    sql = "select 0.5 as half, sum(1) as n, 12345678901234567.89::decimal(20, 2) as long, 100000.25::double as price"
    assert json.loads(ask(sql, "--json")[1]) == [
        {"half": 0.5, "n": 1, "long": "12345678901234567.89", "price": 100000.25}
    ]
    assert ask(sql)[1].split()[4:8] == ["0.5", "1", "12345678901234567.89", "100000.25"]


def test_what_is_not_there_is_null(call, tmp_path):
    pytest.importorskip("duckdb")
    model = make_model()
    run = make_run(name="one/problems", model=model)
    run["predicted_answer"][3] = np.nan
    write_run(tmp_path / "a.lake", run, model)
    sql = "select count(predicted_answer) as n, avg(predicted_answer) as mean from one_problems"
    (found,) = json.loads(call("query", tmp_path / "a.lake", sql, "--json")[1])
    assert found == {"n": 11, "mean": pytest.approx(np.nanmean(run["predicted_answer"].values))}


def test_lists_that_are_empty_in_a_thousand_rows_are_of_the_type_of_the_one_that_is_not():
    duckdb = pytest.importorskip("duckdb")
    steps: list[list[float]] = [[] for _ in range(3000)]
    steps[1204] = [7.0]
    with duckdb.connect(":memory:", config=SETTINGS) as connection:
        connection.register("run", pd.DataFrame({"steps": steps}))
        assert connection.execute("select steps from run where len(steps) > 0").fetchall() == [([7.0],)]


def test_a_query_reads_and_only_the_lake(ask, tmp_path):
    (tmp_path / "b.csv").write_text("secret")
    refused(ask("selec 1"), "Parser Error", "selec")
    refused(ask("select * from one_problem"), "did you mean 'one_problems'?")
    refused(ask("select nothing from one_problems"), "nothing")
    for sql in ("drop table one_problems", "select 1; select 2", f"copy (select 1) to '{tmp_path}/c.csv'", ""):
        refused(ask(sql), "one SELECT")
    for sql in (f"select * from '{tmp_path}/b.csv'", f"select * from read_text('{tmp_path}/b.csv')", "from tables"):
        refused(ask(sql))
    assert [path.name for path in tmp_path.iterdir()] == ["b.csv"]


def test_a_damaged_lake_answers_no_query(call, tmp_path):
    pytest.importorskip("duckdb")
    path = two_runs(tmp_path / "a.lake")
    (file,) = (path / "one/problems/answer_logprob/c").rglob("0")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    code, out, err = call("query", path, "select sum(answer_logprob) from one_problems")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "--rebuild" in err
    assert call("query", path, "select count(*) from two_problems")[0] == 0


def test_the_largest_are_those_of_the_whole(call, analysed_lake, monkeypatch):
    path = analysed_lake
    run = open_lake(path)["one/problems"]
    monkeypatch.setattr("analyze.blocks.CHUNK_EXAMPLES", 7)
    weights = run["attention"].sel(layer=2, head=1, position=["ct1", "eot"], key_position=["bot", "ct0"]).load()
    options = ("--positions", "ct1,eot", "--keys", "bot,ct0", "--top", 5, "--json")
    found = json.loads(call("top", path, "one/problems", "--head", "L2H1", *options)[1])
    best = np.argsort(-weights.values.reshape(-1), kind="stable")[:5]
    for row, place in zip(found, best, strict=True):
        at = weights.isel(dict(zip(weights.dims, np.unravel_index(place, weights.shape), strict=True)))
        assert row["value"] == pytest.approx(float(at))
        assert [row[dim] for dim in weights.dims] == [at[dim].item() for dim in weights.dims]
        assert row["question"] == run["question"].values[row["example"]]
    assert found[0]["key_token"] == ("<bot>" if found[0]["key_position"] == "bot" else "")

    dictionary = open_lake(path).result("sae", "one/problems")
    codes = sae_codes(dictionary, activation_of(dictionary, {"one/problems": run})).isel(feature=3).compute()
    found = json.loads(call("top", path, "one/problems", "--feature", "sae:3", "--top", 4, "--json")[1])
    flat = codes.values.reshape(-1)
    assert [row["value"] for row in found] == pytest.approx(np.sort(flat[flat > 0])[::-1][:4].tolist(), rel=1e-5)
    for row in found:
        at = codes.sel({dim: row[dim] for dim in codes.dims})
        assert row["value"] == pytest.approx(float(at), rel=1e-5)


def test_a_direction_is_searched_where_it_was_computed_and_both_ways(call, analysed_lake, monkeypatch):
    path = analysed_lake
    lake = open_lake(path)
    run = lake.open("one/problems", chunks=None)
    monkeypatch.setattr("analyze.blocks.CHUNK_EXAMPLES", 7)
    decoder = lake.result("sae", "one/problems")["decoder"].sel(feature=3).values
    probe = lake.result("probes", "one/problems")["direction"]
    step, category = (probe[dim].values[0] for dim in ("step", "class"))
    probe = probe.sel({"step": step, "class": category})
    where = f"probes:direction:step={step},class={category}"
    for name, sign, vectors, options in (
        ("sae:decoder:feature=3", 1, decoder, ("--positions", "ct1,eot", "--layers", "0,2")),
        (f"-{where}", -1, probe, ("--positions", "ct0")),
    ):
        places = json.loads(call("top", path, "one/problems", "--direction", name, "--top", 6, "--json", *options)[1])
        cells = product((0, 2), ("ct1", "eot")) if sign > 0 else [(1, "ct0")]
        along = []
        for layer, position in cells:
            vector = vectors if sign > 0 else vectors.sel(layer=layer, position=position).values
            states = run["hidden_state"].sel(layer=layer, position=position).values
            values = sign * states @ vector / np.linalg.norm(vector)
            along += [(value, example, layer, position) for example, value in enumerate(values) if value > 0]
        expected = sorted(along, reverse=True)[:6]
        assert [row["value"] for row in places] == pytest.approx([value for value, *_ in expected], rel=1e-5)
        assert [[row["example"], row["layer"], row["position"]] for row in places] == [place for _, *place in expected]
    for name, words in (
        ("probes:direction", "leaves"), ("sae:decoder:feature=999", "has no feature '999'"),
        ("sae", "not of the form"), ("seas:decoder", "did you mean"), ("lens:direction", "it has none"),
    ):  # fmt: skip
        refused(call("top", path, "one/problems", "--direction", name), words)


def test_the_examples_with_the_largest_value_of_an_expression(call, made):
    pytest.importorskip("duckdb")
    run = open_lake(made)["one/problems"]
    found = json.loads(call("top", made, "one/problems", "--by", "-answer_logprob", "--top", 3, "--json")[1])
    assert [row["example"] for row in found] == np.argsort(run["answer_logprob"].values)[:3].tolist()
    refused(call("top", made, "one/problems", "--by", "answer_logprb"), "answer_logprob")
    refused(call("top", made, "one/problem", "--by", "example"), "'one/problems'")


def test_equal_values_come_in_order_whatever_the_blocks():
    values = np.random.default_rng(0).integers(-2, 4, (50, 3, 4)).astype(float)
    values[7] = np.nan
    expected = np.argsort(-np.nan_to_num(values.reshape(-1)), kind="stable")
    for n in (1, 5, 40, 1000):
        for size in (1, 7, 50):
            blocks = (top.Block(values[at : at + size], (at, 0, 0)) for at in range(0, 50, size))
            found, places = top.largest(blocks, values.shape, n)
            assert (
                np.ravel_multi_index(places, values.shape).tolist() == expected[: min(n, (values > 0).sum())].tolist()
            )
            np.testing.assert_array_equal(found, values[places])


def test_a_place_is_shown_in_its_context(call, made):
    out = call("top", made, "one/problems", "--head", "L0H0", "--positions", "ct1", "--keys", "ct0", "--top", 1)[1]
    assert "<bot> ct0[ct1] ct2 ct3 ct4 ct5" in out
    for words, near in (
        (("--head", "L9H0"), "'L"),
        (("--head", "L0H0", "--keys", "cto"), "'ct0'"),
        (("--feature", "sae"), "sae:17"),
        (("--feature", "sae:1"), "whose are none; lake analyze sae"),
        ((), "--head"),
        (("--head", "L0H0", "--top", 0), "at least 1"),
    ):
        refused(call("top", made, "one/problems", *words), near)


def test_numbers_are_told_whole(call, tmp_path):
    """In JSON as in a file: small ones, sums beyond 2^53, infinity; and steps stay at their numbers."""
    pytest.importorskip("duckdb")
    run = make_run(name="one/problems", n_example=4)
    run["intermediate_result"][0] = [3.0, np.nan, 12.0]
    run["answer_logprob"][:] = [-1.2345678901234e-30, -np.inf, -0.1, -1e300]
    run["predicted_answer"][:] = [1234567, 1234568, 0.1, np.nan]
    write_run(tmp_path / "a.lake", run, make_model())
    sql = (
        "select answer_logprob as p, predicted_answer as a, intermediate_result as r,"
        " (select sum(example + 9007199254740993) from one_problems)::hugeint as n from one_problems order by example"
    )
    code, out, err = call("query", tmp_path / "a.lake", sql, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out, parse_constant=pytest.fail)
    assert [row["p"] for row in rows] == [-1.2345678901234e-30, "-inf", -0.1, -1e300]
    assert rows[0]["r"] == [3, None, 12]
    assert [row["n"] for row in rows] == [4 * (2**53 + 1) + 6] * 4
    assert rows[3]["a"] is None
    shown = call("query", tmp_path / "a.lake", sql)[1]
    assert "1234567 " in shown
    assert "1234568 " in shown
    lake = open_lake(tmp_path / "a.lake")
    values = xr.Dataset({"p": ("layer", [3e-12, np.inf, 0.5])})
    name = lake.write_result("scores", values, runs=["one/problems"], spec={})
    shown = json.loads(call("show", tmp_path / "a.lake", name, "--json")[1], parse_constant=pytest.fail)
    assert [row["p"] for row in shown["layer"]] == [3e-12, "inf", 0.5]


def test_a_feature_with_signs_is_searched_both_ways(call, tmp_path):
    run, model = make_run(name="one/problems", n_example=40), make_model()
    write_run(tmp_path / "a.lake", run, model)
    lake = open_lake(tmp_path / "a.lake")
    cells = select_cells(lake["one/problems"])
    sae = train_sae(cells, SAESpec(activation="abs_topk", features=12, k=3, epochs=2))
    lake.write_result("sae", sae, runs=["one/problems"], spec={})
    codes = sae_codes(sae, cells).compute()
    over = ["example", "layer", "position"]
    feature = int((codes.min(over) + codes.max(over)).values.argmin())
    out = call("top", tmp_path / "a.lake", "one/problems", "--feature", f"sae:{feature}", "--top", 5, "--json")[1]
    flat = codes.sel(feature=feature).values.reshape(-1)
    flat = flat[np.isfinite(flat)]
    expected = flat[np.argsort(-np.abs(flat), kind="stable")[:5]]
    assert expected.min() < 0
    assert [row["value"] for row in json.loads(out)] == pytest.approx(expected.tolist(), rel=1e-4)
