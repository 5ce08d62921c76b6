"""What the program prints about itself: commands that it suggests run, and every number says what it is of."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from called import forked_lake, run_lake
from conftest import MadeOnce
from printed_lake import RUN, TWIN, make_bare, run_printed

from analyze.compare.differences import compare, comparison_table, difference_table
from analyze.context import Context
from analyze.report import build_report, explore
from lake import stopping
from store import open_lake, verify


@pytest.fixture(scope="module")
def bare(made_once: MadeOnce) -> Path:
    return made_once("printed", make_bare) / "toy.lake"


@pytest.fixture
def place(bare: Path, tmp_path: Path) -> Path:
    """A lake of one's own."""
    return Path(shutil.copytree(bare, tmp_path / "my toy.lake"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "words",
    [
        ["analyze", "heads", "--top", "3", "--resamples", "20"],
        ["reenter", "corrupt", "--corruptions", "zero", "--limit", "8"],
        ["reenter", "heads", "--counts", "1", "--draws", "1", "--limit", "6"],
    ],
    ids=lambda words: words[1],
)
def test_what_verify_prints_mends_a_result(place: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if words[1:2] == ["heads"] and words[0] == "reenter":
        run_printed(shlex.join(["lake", "analyze", "heads", str(place), RUN]))
    run_printed(shlex.join(["lake", *words[:2], str(place), RUN, *words[2:]]))
    kind = {"reenter heads": "ablate_heads"}.get(" ".join(words[:2]), words[1])
    (result,) = open_lake(place).results(kind)
    before = open_lake(place).open_result(result.name)
    flip(next(path for path in sorted((place / result.name).rglob("c/*")) if path.is_file()))
    (command,) = verify(place).commands
    capsys.readouterr()
    run_printed(command)
    assert verify(place).damage == []
    xr.testing.assert_identical(open_lake(place).open_result(result.name), before)


def test_what_verify_prints_of_a_result_without_a_command_is_one(place: Path) -> None:
    lake = open_lake(place)
    name = lake.write_result("ablate_heads", xr.Dataset({"x": ("head", np.arange(3.0))}), runs=[RUN], spec={"seed": 3})
    flip(place / name / "x" / "c" / "0")
    (command,) = verify(place).commands
    assert command.startswith(f"lake reenter heads '{place}' {RUN}  # with the settings ")
    flip(place / name / "zarr.json")
    (command,) = verify(place).commands
    assert command.startswith(f"lake reenter heads '{place}' {RUN}  # with the settings it was made with")


def test_an_extraction_is_mended_by_the_command_that_made_it(tmp_path: Path, bare: Path) -> None:
    lake, data = tmp_path / "own.lake", bare.with_name("hard.jsonl")
    run_printed(f"lake extract --model small-gpt2 --data mine={data} --lake {lake} --limit 4 --max-new-tokens 5")
    flip(lake / "small-gpt2" / "mine" / "token" / "c" / "0" / "0")
    (command,) = verify(lake).commands
    assert f"mine={data}" in command
    run_printed(command)
    assert verify(lake).damage == []


def corrupted(n: int, seed: int) -> xr.Dataset:
    """A re-entry's result over ``n`` examples; every number in it is ``n``."""
    shape = ("stratum", "condition")
    frame = {name: (shape, np.full((1, 2), float(n))) for name in ("n", "accuracy", "untouched_accuracy", "importance")}
    return xr.Dataset(
        frame, coords={"stratum": ["all"], "example": np.arange(n), "condition": ["untouched", str(seed)]}
    )


def test_of_several_results_the_one_over_most_examples_is_taken_and_named(place: Path) -> None:
    lake = open_lake(place)
    few = ["lake", "reenter", "corrupt", "PATH", RUN, "--limit", "8", "--seed"]
    # Names end in a digest: among several seeds one of the small ones comes first by name.
    for seed in range(6):
        lake.write_result(
            "corrupt", corrupted(8, seed), runs=[RUN], spec={"seed": seed, "limit": 8}, command=[*few, str(seed)]
        )
    whole = ["lake", "reenter", "corrupt", "PATH", RUN]
    lake.write_result("corrupt", corrupted(20, 9), runs=[RUN], spec={"seed": 9}, command=[*whole, "--seed", "9"])
    lake.write_result("corrupt", corrupted(20, 0), runs=[RUN], spec={"seed": 0}, command=whole)
    assert lake.find("corrupt", RUN).command == tuple(whole)
    context = Context(lake, [RUN])
    (found,) = context.find("corrupt")
    assert found.data.sizes["example"] == 20
    assert found.stored.command == tuple(whole)
    (said,) = context.choices([found.stored])
    whole_command = f"lake reenter corrupt '{place.name}' {RUN}"
    assert f"Of 8 results of corrupt of {RUN}" in said
    assert f"of several the one with the fewest options: 20 examples, {whole_command}." in said
    assert said.count("8 examples, lake reenter corrupt") == 6


def test_several_results_on_the_page_and_in_commands_that_go_on_from_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ("--limit 8 --seed 3", ""):
        run_printed(f"lake reenter corrupt '{place}' {RUN} --corruptions zero {options}")
    run_printed(f"lake analyze correlate '{place}' {RUN} --importance corrupt:failure --permutations 20 --resamples 20")
    assert "of 2 results of corrupt, " in capsys.readouterr().err
    assert int(open_lake(place).result("correlate", RUN)["n_example"]) > 8
    page = build_report(place, place.with_name("page"), n_problem=2).page.read_text()
    assert "Of 2 results of corrupt of" in page


def test_a_comparison_takes_from_another_run_only_what_needs_pairs_and_says_so(place: Path) -> None:
    lake = open_lake(place)
    pairs = "small-gpt2/pairs"
    run_printed(f"lake analyze heads '{place}' {pairs} {TWIN} --resamples 20")
    run_printed(f"lake reenter patch '{place}' {pairs} --sites latent_embedding --subsets none")
    result = compare(lake, [RUN, TWIN], n_resample=20)
    # The heads were scored on the pairs only: no number of this run.
    assert np.isnan(result["composite"].sel(model=RUN)).all()
    assert f"{RUN}: heads; lake analyze heads PATH {RUN}" in json.loads(result.attrs["missing"])
    assert json.loads(result.attrs["origins"]) == {"patch_clean": {RUN: pairs}}
    assert comparison_table(result).set_index("model").loc[RUN, "patched_run"] == pairs
    both = compare(lake, [RUN, pairs], n_resample=20)
    rows = difference_table(both).query("what == 'patch_clean'")
    assert set(rows["first_of"]) == set(rows["second_of"]) == {pairs}
    assert set(rows["first"]) == {RUN}


def test_a_result_of_a_run_that_is_no_more_is_not_compared(place: Path) -> None:
    lake = open_lake(place)
    run_printed(f"lake reenter patch '{place}' small-gpt2/pairs --sites latent_embedding --subsets none")
    (stored,) = lake.results("patch")
    data = lake.open_result(stored.name)
    data.attrs = {}
    shutil.rmtree(place / "small-gpt2" / "pairs")
    result = compare(lake, [RUN, TWIN], n_resample=20)
    assert "patch_clean" not in result


def test_raw_and_corrected_p_stand_in_columns_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_lake("reenter", "corrupt", place, RUN, "--corruptions", "zero", "--limit", "12") == 0
    said = capsys.readouterr().out
    assert re.search(r"\bdrop +p +p Holm +log p 95% +KL", said)
    result = open_lake(place).result("corrupt", RUN).sel(stratum="all")
    rows = [re.split(" {2,}", line.strip()) for line in said.splitlines()]
    assert [row[-3] for row in rows if "self (stored)" in row] == ["-"]  # not among the tests corrected for
    first = next(row for row in rows if "zero" in row and "ct0" in row)
    at = result.isel(condition=1)
    assert first[-4:-2] == [f"{float(at['p']):.1e}", f"{float(at['p_holm']):.1e}"]


def test_as_many_problems_as_asked_for_or_a_word(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explore, "WINDOW", 4)
    context = Context(open_lake(place), [RUN])
    for n in (2, 4, 20, 24):
        assert len(explore.choose_problems(context, n, 0)[RUN]) == n
    words = ["report", str(place), RUN, "--out", str(place.with_name("page")), "--problems"]
    assert run_lake(*words, "2000") == 0
    assert f"{RUN}: 24 problems can be picked, not 2000" in capsys.readouterr().err
    planned = place.with_name("planned")
    assert run_lake("report", place, RUN, "--out", planned, "--plan") == 0
    told = r"problems to pick: 40; [\d.]+ MB of memory, about \d+ s of processor time on this machine"
    assert re.search(told, capsys.readouterr().out)
    assert not planned.exists()
    assert run_lake(*words, "-1") == 2


def interrupted(
    words: list[str], begun: Callable[[], bool], tmp_path: Path, number: int = signal.SIGINT
) -> tuple[int, str]:
    """Exit code and errors of a command that gets a signal, by default that of Ctrl-C, once it has begun."""
    errors = tmp_path / "errors"

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
        stopping.catch_signals()
        os.chdir(tmp_path)
        sys.stderr, sys.stdout = errors.open("w"), StringIO()

    child = forked_lake(words, prepare)
    while not begun() and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.002)
    os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), errors.read_text()


def test_a_stopped_re_entry_says_what_is_kept_and_goes_on(place: Path, tmp_path: Path) -> None:
    kept = Path(f"{place}.reenter.corrupt")
    words = ["reenter", "corrupt", str(place), RUN, "--batch-rows", "8"]
    code, said = interrupted(words, lambda: len([*kept.rglob("*.json")]) > 2, tmp_path)
    assert code == 130
    assert said.count("\n") == 1
    assert said.startswith("lake: stopped; results of the runs before")
    assert "finished batches of that one beside it, and the same command takes them up" in said
    assert len([*kept.rglob("*.json")]) > 2
    run_printed(shlex.join(["lake", *words]))
    assert not kept.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_extraction_says_what_is_kept(tmp_path: Path, bare: Path, number: int) -> None:
    words = ["extract", "--model", "small-gpt2", "--data", str(bare.with_name("hard.jsonl")), "--lake", "new.lake"]
    code, said = interrupted([*words, "--batch-size", "1"], (tmp_path / "new.lake").is_dir, tmp_path, number)
    assert (code, said) == (
        128 + number,
        "lake: stopped; shards that are committed stay, and the same command goes on after them\n",
    )
    assert not [*tmp_path.rglob("*.partial")]


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run below nohup
        stopping.catch_signals()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # still the first
            monkeypatch.setattr(stopping, "AGAIN", 0.0)
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert capfd.readouterr().err == "lake: ended at once; the next writer removes what is unfinished\n"


def test_work_goes_on_without_its_terminal(tmp_path: Path, bare: Path) -> None:
    words = ["extract", "--model", "small-gpt2", "--data", str(bare.with_name("hard.jsonl")), "--lake", "new.lake"]
    terminal, of_child = os.openpty()

    def prepare() -> None:
        os.close(terminal)
        os.chdir(tmp_path)
        sys.stderr, sys.stdout = os.fdopen(of_child, "w"), StringIO()
        stopping.outlive_terminal()

    child = forked_lake([*words, "--batch-size", "2"], prepare)
    os.close(of_child)
    os.read(terminal, 1)  # a bar
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert open_lake(tmp_path / "new.lake")["small-gpt2/hard"].sizes["example"] == 24


def test_what_an_encoding_lacks_is_escaped() -> None:
    words = [sys.executable, "-c", "from lake import printing; printing.show(['\\u00e9'])"]
    shown = subprocess.run(words, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert shown.stdout == b"\\xe9\n"
