"""The command line in daily use: help, version, misspelt words, results shown again, removal, queries, top places."""

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from itertools import product

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from synthetic import make_model, make_run, write_run

import lake as command_line
from analyze import activation_of, sae_codes
from analyze.query import top
from extract.small_models.problems import make_pairs, write_pairs
from lake import printing
from schemas import FORMAT_VERSION, Intervention, UsageError, nearest
from store import open_lake, remove, select_removable, verify
from store.info import describe_results


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            command_line.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def refused(done, *words):
    """A user's mistake: exit 2, one line that has these words, and nothing on standard output."""
    code, out, err = done
    assert (code, out, err.count("\n")) == (2, "", 1), done
    assert all(word in err for word in words), err


def two_runs(path):
    """A lake of two models, a run each."""
    for seed, name in enumerate(("one/problems", "two/problems")):
        model = make_model(seed=seed)
        write_run(path, make_run(name=name, n_example=30, twins=True, seed=seed, model=model), model)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake that is only read."""
    return two_runs(tmp_path_factory.mktemp("lakes") / "made.lake")


def test_no_command_prints_help_and_the_version_is_told(call):
    for words, shown in (((), ("extract", "--version")), (("analyze",), ("heads", "lens")), (("reenter",), ("patch",))):
        code, out, err = call(*words)
        assert (code, err) == (0, "")
        assert all(word in out for word in ("Usage: lake", *shown))
    assert call("--version") == (0, f"activation-lake {version('activation-lake')}, lake format {FORMAT_VERSION}\n", "")
    assert "--capture latent|full" in call("extract", "--help")[1]


def test_a_misspelt_word_is_answered_with_the_nearest(call, made):
    refused(call("extarct"), "'extract'")
    refused(call("info", made, "--jsn"), "'--json'")
    refused(call("analyze", "heads", made, "one/problem"), "'one/problems'")
    refused(call("analyze", "heads", made, "--convention", "thought"), "'thoughts'")
    refused(call("analyze", "probes", made, "--positions", "cto"), "'ct0'")
    refused(call("analyze", "probes", made, "--layers", "3"), "did you mean 2?")
    refused(call("verify", made, "tow/problems"), "'two/problems'")
    with pytest.raises(UsageError, match=r"did you mean 'ct5'\?"):
        Intervention(site="hidden_state", operation="zero", layers=(0,), positions=("ct6",)).check(n_layer=1, n_head=1)
    with pytest.raises(UsageError, match=r"did you mean 'resample'\?"):
        Intervention(site="hidden_state", operation="resampel", layers=(0,), positions=("ct0",))  # type: ignore[arg-type]


COMMANDS = {
    "heads": ("--resamples", 20, "--top", 4),
    "attention": ("--resamples", 20),
    "lens": (),
    "correlate": ("--permutations", 20, "--resamples", 20),
    "probes": ("--target", "operation", "--layers", 1, "--positions", "bot,ct0", "--resamples", 20, "--controls", 1),
    "sae": ("--epochs", 1, "--features", 8, "--k", 2),
}


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """A lake with results, and what the commands that made them printed."""
    path, printed = two_runs(tmp_path_factory.mktemp("lakes") / "analysed.lake"), {}
    for name, options in COMMANDS.items():
        with redirect_stdout(StringIO()) as out:
            command_line.app(["analyze", name, str(path), "one/problems", *map(str, options)], standalone_mode=False)
        printed[name] = out.getvalue()
    return path, printed


def test_a_result_is_shown_as_its_command_printed_it(call, analysed, tmp_path):
    path, printed = analysed
    for kind, text in printed.items():
        code, out, err = call("show", path, kind, "one/problems")
        assert (code, err) == (0, "")
        assert out.endswith("\n")
        assert text.startswith(out)  # a lens keeps its tests too
    found = open_lake(path).find("heads", "one/problems")
    for word in (found.name, found.name.removeprefix("results/"), found.fingerprint, found.fingerprint[:6]):
        assert call("show", path, word)[1] == printed["heads"]
    code, out, _ = call("show", path, "heads", "--json", "--csv", tmp_path)
    shown = json.loads(out)
    assert (code, shown["result"], len(shown["layer_head"])) == (0, found.name, 6)
    assert pd.read_csv(*tmp_path.glob("*-heads-layer_head.csv"))["flow"].tolist() == pytest.approx(
        [row["flow"] for row in shown["layer_head"]]
    )
    assert all(kind in call("show", path)[1] for kind in printed)


def test_which_results_there_are_is_said_where_none_or_several_fit(call, analysed, tmp_path):
    path, _ = analysed
    refused(call("show", path, "haeds"), "no result fits", "did you mean 'heads'?", "heads, lens, lens_tests,")
    refused(call("show", path, "heads", "two/problems"), "no result fits 'heads two/problems'")
    refused(call("show", path, "one/problems"), "results fit", "results/probes/one.problems~", "--top 4")
    refused(call("show", two_runs(tmp_path / "empty.lake"), "heads"), "it has none")
    refused(
        call("show", path, "heads", "one/problems", "--csv", "/dev/null/tables"), "/dev/null/tables", "another place"
    )
    refused(call("top", path, "one/problems", "--by", "corect"), "'corect': Binder Error")
    refused(call("top", path, "one/problems", "--by", " "), "--by is empty")


def test_a_result_of_python_is_shown_as_its_tables(call, tmp_path):
    lake = open_lake(two_runs(tmp_path / "a.lake"))
    result = xr.Dataset({"score": ("layer", [0.5, 0.25, 1.5])}, coords={"layer": [0, 1, 2]})
    for kind in ("my_scores", "heads"):
        lake.write_result(kind, result, runs=["one/problems"], spec={})
        code, out, err = call("show", lake.location, kind)
        assert (code, err) == (0, "")
        assert [line.split() for line in out.splitlines()[1:3]] == [["layer", "score"], ["0", "0.500"]]


def test_a_re_entry_is_shown_as_its_command_printed_it(call, tmp_path):
    write_pairs(make_pairs(4, 0), tmp_path / "pairs.json")
    path = tmp_path / "pairs.lake"
    assert call("extract", "--model", "small-gpt2", "--data", tmp_path / "pairs.json", "--lake", path)[0] == 0
    for command, kind, *options in (
        ("patch", "patch", "--layers", 0),
        ("gradients", "gradients", "--steps", 2),
        ("edges", "edges", "--layers", 0),
    ):
        code, out, err = call("reenter", command, path, *options)
        assert (code, err) == (0, "")
        assert call("show", path, kind) == (0, out, "")


def test_what_is_removed_is_gone_and_the_rest_is_whole(call, tmp_path, monkeypatch):
    path = two_runs(tmp_path / "a.lake")
    result = xr.Dataset({"score": ("layer", [0.5])})
    names = [open_lake(path).write_result("scores", result, runs=["one/problems"], spec={"n": n}) for n in (0, 1)]
    refused(call("rm", path, "one/problems"), names[0], "--yes")
    refused(call("rm", path, "one", "--yes"), "one/problems")
    refused(call("rm", path, "../a.lake", "--yes"), "no result fits")
    refused(call("rm", path, "scores", "--yes"), "2 results fit")
    for answer, code in (("n", 1), ("y", 0)):
        monkeypatch.setattr("sys.stdin", StringIO(answer))
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        assert call("rm", path, names[1])[0] == code
        assert (names[1] in [each.name for each in open_lake(path).results()]) == (answer == "n")
    code, out, _ = call("rm", path, "one/problems", "--yes")
    assert code == 0
    assert f"stays: {names[0]}" in out
    assert call("rm", path, "one", "--yes")[0] == 0
    assert call("verify", path)[0] == 0
    assert (open_lake(path).runs(), open_lake(path).models()) == (["two/problems"], ["two"])
    assert not describe_results(open_lake(path))[names[0]]["current"]
    assert not list(path.glob("*.partial"))
    two_runs(path)  # it can be made again
    assert open_lake(path).runs() == ["one/problems", "two/problems"]


def test_a_killed_removal_leaves_nothing_that_is_read(made, tmp_path, monkeypatch):
    path = two_runs(tmp_path / "a.lake")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    lake = open_lake(path)
    remove(path, select_removable(lake, ["one/problems"]))
    monkeypatch.undo()
    assert lake.runs() == ["two/problems"]
    found = verify(path)
    assert (found.damage, bool(found.leftovers)) == ([], True)
    lake.write_result("scores", xr.Dataset({"score": 1.0}), runs=["two/problems"], spec={})
    assert not verify(path).leftovers


def test_a_run_that_is_written_is_not_removed(tmp_path):
    path = two_runs(tmp_path / "a.lake")
    writer = subprocess.run([sys.executable, "-c", HOLD, path], capture_output=True, text=True, check=False)
    assert "another process is writing one/problems" in writer.stdout, writer.stderr
    assert open_lake(path).runs() == ["one/problems", "two/problems"]


HOLD = """
import subprocess, sys
from pathlib import Path
from store.claim import ShardClaim
path = sys.argv[1]
with ShardClaim(Path(path) / "one/problems/zarr.json", 0) as held:
    words = [sys.executable, "-m", "lake", "rm", path, "one/problems", "--yes"]
    print(held, subprocess.run(words, capture_output=True, text=True).stderr)
"""


@pytest.fixture
def ask(call, analysed):
    """Put a question in SQL to the lake with results: (exit code, stdout, stderr)."""
    pytest.importorskip("duckdb")
    return lambda *words: call("query", analysed[0], *words)


def test_a_query_gives_what_xarray_gives(ask, analysed, tmp_path):
    lake = open_lake(analysed[0])
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


def test_what_is_not_there_is_null(call, tmp_path):
    pytest.importorskip("duckdb")
    model = make_model()
    run = make_run(name="one/problems", model=model)
    run["predicted_answer"][3] = np.nan
    write_run(tmp_path / "a.lake", run, model)
    sql = "select count(predicted_answer) as n, avg(predicted_answer) as mean from one_problems"
    (found,) = json.loads(call("query", tmp_path / "a.lake", sql, "--json")[1])
    assert found == {"n": 11, "mean": pytest.approx(np.nanmean(run["predicted_answer"].values))}


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


def test_the_largest_are_those_of_the_whole(call, analysed, monkeypatch):
    path = analysed[0]
    run = open_lake(path)["one/problems"]
    monkeypatch.setattr(top, "BLOCK_EXAMPLES", 7)
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


def test_a_direction_is_searched_where_it_was_computed_and_both_ways(call, analysed, monkeypatch):
    path = analysed[0]
    lake = open_lake(path)
    run = lake.open("one/problems", chunks=None)
    monkeypatch.setattr(top, "BLOCK_EXAMPLES", 7)
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


def test_nothing_is_offered_where_nothing_is_near():
    assert nearest("zebra", ["bot", "ct0"]) == nearest("x", []) == ""
    assert nearest("CT0", ["bot", "ct0"]) == "; did you mean 'ct0'?"


def test_a_lake_is_a_mapping_of_its_runs_and_a_table_in_a_notebook(made, tmp_path):
    lake = open_lake(made)
    assert (len(lake), lake.keys(), lake._ipython_key_completions_()) == (2, lake.runs(), lake.runs())
    assert "<td>one/problems</td><td>30 of 30</td><td>3 x 2 x 8</td>" in lake._repr_html_()
    path = two_runs(tmp_path / "a&b.lake")
    open_lake(path).write_result("scores", xr.Dataset({"score": 1.0}), runs=["two/problems"], spec={})
    (path / "one/problems/zarr.json").write_text("{")
    shown = open_lake(path)._repr_html_()
    assert "<td>one/problems</td><td>damaged; see lake verify</td>" in shown
    assert "<td>scores</td>" in shown
    assert "a&amp;b.lake" in shown


def test_long_work_says_how_far_it_is_where_there_is_no_terminal(capsys, monkeypatch):
    for seconds, lines in ((0.0, 3), (60.0, 0)):
        monkeypatch.setattr(printing, "PIPE_SECONDS", seconds)
        with printing.progress("one/problems", "examples") as report:
            for done in range(5):
                report(done + 1, 4)
        assert capsys.readouterr().err.count("one/problems: ") == lines
    assert printing.progress_line("a", "rows", 25, 100, 120) == "a: 25 of 100 rows after 2 min, about 6 min left"
    assert printing.progress_line("a", "", 0, 4, 61) == "a: 0 of 4 after 61 s"


def test_less_or_more_is_said_beside_the_results(call, made, capsys, monkeypatch):
    monkeypatch.setattr(printing, "PIPE_SECONDS", 0.0)
    for quiet, verbose, lines in ((False, False, 1), (True, False, 0), (False, True, 0)):
        with printing.level(quiet, verbose), printing.progress("one/problems", "examples") as report:
            report(1, 4)
        assert capsys.readouterr().err.count("one/problems: ") == lines
    plain = call("info", made)
    assert call("info", made, "--quiet") == plain
    code, out, err = call("info", made, "-v")
    assert (code, out) == plain[:2]
    assert re.fullmatch(r"lake: lake info: .* s of processor, at most .* MB of memory\n", err)
    code, _, err = call("info", made, "tow/problems", "--verbose")
    assert (code, err.splitlines()[0]) == (2, "Traceback (most recent call last):")


def test_a_shell_completes_commands_choices_lakes_runs_and_results(made, analysed, tmp_path, monkeypatch, capsys):
    def completed(*words):
        monkeypatch.setenv("COMP_WORDS", " ".join(map(str, words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        monkeypatch.setenv("_LAKE_COMPLETE", "bash_complete")
        with pytest.raises(SystemExit):
            command_line.main([])
        monkeypatch.delenv("_LAKE_COMPLETE")
        return [line.partition(",")[2] for line in capsys.readouterr().out.split()]

    assert completed("lake", "analyze", "hea") == ["heads"]
    assert completed("lake", "extract", "--capture", "la") == ["latent", "latent+parts"]
    assert completed("lake", "info", made, "one/") == ["one/problems"]
    assert (
        completed("lake", "diff", made, made, "one/") == completed("lake", "verify", made, "one/") == ["one/problems"]
    )
    assert completed("lake", "show", analysed[0], "one/problems", "le") == ["lens", "lens_tests"]
    assert completed("lake", "rm", analysed[0], "results/le") == [
        result.name for kind in ("lens", "lens_tests") for result in open_lake(analysed[0]).results(kind)
    ]
    assert completed("lake", "analyze", "heads", tmp_path / "none.lake", "o") == []
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell, place in (("zsh", ".zfunc/_lake"), ("fish", ".config/fish/completions/lake.fish")):
        monkeypatch.setenv("SHELL", f"/bin/{shell}")
        with pytest.raises(SystemExit) as left:
            command_line.main(["--install-completion"])
        assert left.value.code == 0
        assert "_LAKE_COMPLETE" in (tmp_path / place).read_text()
    monkeypatch.setenv("SHELL", "/bin/dash")
    with pytest.raises(SystemExit) as left:
        command_line.main(["--install-completion"])
    assert left.value.code == 2
