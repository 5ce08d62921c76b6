"""What is written beside a lake is whole, or what was there before; a limit of files' sizes stands for a full disk."""

import os
import resource
import signal
from pathlib import Path

import pytest
from called import forked_lake, run_lake
from small_runs import tree
from synthetic import make_model, make_run, write_run

import analyze.query.export
import analyze.report.build  # noqa: F401  -- a forked command need not load it

RUN = "made-up/problems"


def limited(words: list[str], n_byte: int) -> int:
    """Exit status of a command none of whose files may be larger."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_byte, n_byte))

    child = forked_lake(words, limit)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "words",
    [
        ["problems", "--out", "OUT", "--stories", "40"],
        ["export", "LAKE", RUN, "--variable", "token", "--to", "OUT/a.npz"],
        ["analyze", "heads", "LAKE", "--resamples", "9", "--csv", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place, out = tmp_path / "a.lake", tmp_path / "out"
    write_run(place, make_run(n_example=40), make_model())
    named = [word.replace("LAKE", str(place)).replace("OUT", str(out)) for word in words]
    assert run_lake(*named) == 0
    first = tree(out)
    largest = max(path.stat().st_size for path in out.iterdir())
    capfd.readouterr()
    assert limited(named, largest // 2) in (1, 2)
    said = capfd.readouterr().err
    assert all(line.startswith("lake: ") for line in said.splitlines())
    assert "File too large" in said
    assert tree(out) == first
