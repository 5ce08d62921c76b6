"""The command line in daily use: help, version, misspelt words, results shown again, removal, queries, top places."""

import json
import re
from importlib.metadata import version
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from called import claimed_elsewhere, run_lake
from rich.console import Console
from two_runs import refused, two_runs

from extract.small_models.problems import make_pairs, write_pairs
from lake import printing
from schemas import FORMAT_VERSION, Intervention, UsageError, nearest
from schemas.command import Table
from schemas.csv_files import plain_numbers
from schemas.meaning import explained
from store import open_lake, remove, select_removable, verify
from store.info import describe_results


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lake that is only read."""
    return two_runs(tmp_path_factory.mktemp("lakes") / "made.lake")


@pytest.mark.parametrize(("width", "n_table"), [(40, 2), (60, 2), (200, 1)])
def test_tables_that_are_wider_than_the_terminal_lose_nothing(monkeypatch, width, n_table):
    out = StringIO()
    monkeypatch.setattr(printing, "console", Console(width=width, file=out, soft_wrap=True))
    rows = [[place, control, "0.995 [0.97, 1.00]", "1.0e+00", "+0.00"]
            for place in ("ct0", "ct1") for control in ("", "noise of the same norm")]  # fmt: skip
    columns = ["place", "control", "accuracy 95%", "p", "drop"]
    printing.show([Table(title="corrupt", columns=columns, rows=rows, caption="Wilson")])
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert (lines[0], lines[-1]) == ("corrupt", "Wilson")
    heads = [line.split("  ") for line in lines if line.startswith("place")]
    assert len(heads) == n_table
    assert [name.strip() for head in heads for name in head if name and name.strip() not in columns[:2]] == columns[2:]
    text = " ".join(lines)
    assert all(text.count(word) == len(heads) * 2 for word in ("ct0", "ct1", "noise", "norm"))
    assert text.count("0.995 [0.97, 1.00]") == 4


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


@pytest.fixture(scope="module")
def analysed(analysed_lake):
    """A lake with results, and what the commands that made them printed."""
    return analysed_lake, json.loads(analysed_lake.with_name("printed.json").read_text())


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


def test_a_lake_stays_where_it_is_when_the_process_goes_elsewhere(tmp_path, monkeypatch):
    two_runs(tmp_path / "a.lake")
    monkeypatch.chdir(tmp_path)
    lake, there = open_lake("a.lake"), tmp_path / "elsewhere"
    there.mkdir()
    monkeypatch.chdir(there)
    lake.write_result("scores", xr.Dataset({"score": ("layer", [0.5])}), runs=["one/problems"], spec={})
    assert (lake["one/problems"].load().sizes["layer"], lake.result("scores")["score"].item()) == (3, 0.5)
    assert lake.model("one").sizes["hidden"] > 0
    assert (str(lake.location), list(there.iterdir())) == ("a.lake", [])
    for nowhere in (open_lake, verify):
        with pytest.raises(UsageError, match="is empty and names no place"):
            nowhere("")


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
    with monkeypatch.context() as closed:
        closed.setattr("sys.stdin", None)
        refused(call("rm", path, "one/problems"), "--yes")
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


def test_a_run_that_is_written_is_not_removed(call, tmp_path):
    path = two_runs(tmp_path / "a.lake")
    with claimed_elsewhere(path, "one/problems"):
        code, out, err = call("rm", path, "one/problems", "--yes")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "another process is writing one/problems" in err
    assert open_lake(path).runs() == ["one/problems", "two/problems"]


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
    clock = iter([0, 90, 100, 170])
    monkeypatch.setattr(printing.time, "monotonic", lambda: next(clock))
    with printing.progress("a") as report:
        report(9, 9)
        report(0, 4)  # a part of its own, whose time says nothing of the one before
        report(1, 4)
    assert capsys.readouterr().err.splitlines()[-1] == printing.progress_line("a", "", 1, 4, 70)
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
        run_lake()
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
        assert run_lake("--install-completion") == 0
        assert "_LAKE_COMPLETE" in (tmp_path / place).read_text()
    monkeypatch.setenv("SHELL", "/bin/dash")
    assert run_lake("--install-completion") == 2


def test_numbers_of_single_precision_have_no_noise_in_tables_and_all_others_stay():
    kept = [0.1, 1 / 3, float("nan"), float("inf"), 1e300, -0.0, 2.0**53, 123456792.0, 5 / 8192, -0.375]
    frame = pd.DataFrame({"x": [float(np.float32(0.3)), float(np.float32(-1e-7)), *kept], "name": "a", "n": 1})
    before = frame.copy()
    plain = plain_numbers(frame)
    np.testing.assert_array_equal(plain["x"], [0.3, -1e-7, *kept])
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(plain[["name", "n"]], before[["name", "n"]])
    empty = plain_numbers(frame.iloc[:0])
    assert empty.empty


def test_a_direction_of_ones_own_is_kept_under_its_own_kind_and_found_there(call, tmp_path):
    path = two_runs(tmp_path / "own.lake")
    lake = open_lake(path)
    states = lake["one/problems"]["hidden_state"]
    vector = np.arange(states.sizes["hidden"], dtype="float32")
    mine = xr.Dataset({"weight": ("hidden", vector), "length": 2.0, "length_low": 1.0}).assign_attrs(n_example=3)
    lake.write_result("my_probe", mine, runs=["one/problems"], spec={})
    code, out, err = call("top", path, "one/problems", "--direction", "my_probe:weight", "--json")
    assert (code, err) == (0, "")
    best = float((states @ xr.DataArray(vector, dims="hidden") / np.linalg.norm(vector)).max())
    assert json.loads(out)[0]["value"] == pytest.approx(best, rel=1e-3)
    assert "weight (hidden)" in call("show", path, "my_probe")[1]
    refused(call("top", path, "one/problems", "--direction", "my_probe:wieght"), "it has weight", "did you mean")
    refused(call("top", path, "one/problems", "--direction", "my_prob:weight"), "no results of kind", "'my_probe'")
    refused(call("top", path, "two/problems", "--direction", "my_probe:weight"), "my_probe is of one/problems")
    held = json.loads(call("show", path, "my_probe", "--variables", "--json")[1])["variables"]
    assert [(row["variable"], row["dims"]) for row in held] == [("length, _low", ""), ("weight", "hidden")]
    assert explained("my_probe", mine)["length_low"].attrs["long_name"] == "lower end of the interval: length"
