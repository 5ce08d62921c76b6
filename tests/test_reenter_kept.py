"""A re-entry that was killed goes on; what it had kept is checked; precisions stand beside each other."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from called import forked_lake, run_lake

from extract.reenter import open_target
from extract.reenter.kept import Kept
from extract.run.extract import extract, prepare
from schemas import RunSpec
from store import open_lake

ROWS = "--batch-rows"
CORRUPT = ["reenter", "corrupt", "PATH", "small-gpt2/test", "--corruptions", "resample"]


@pytest.fixture(scope="module")
def folder(reentry_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared lake, to be written into."""
    return Path(shutil.copytree(reentry_lake.parent, tmp_path_factory.mktemp("kept"), dirs_exist_ok=True)) / "a.lake"


@pytest.fixture(scope="module")
def killed(folder: Path) -> Path:
    """What a re-entry with ``--batch-rows 48`` left behind when it was killed midway."""
    save, count = Kept.save, itertools.count(1)

    def save_or_die(*given: Any) -> None:
        save(*given)
        if next(count) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare() -> None:
        Kept.save = save_or_die  # type: ignore[method-assign]

    child = forked_lake([word.replace("PATH", str(folder)) for word in (*CORRUPT, ROWS, "48")], prepare)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was done before it was killed"
    return folder.with_name("a.lake.reenter.corrupt").rename(folder.with_name("killed"))


def corrupted(folder: Path, *options: str) -> xr.Dataset:
    """A corruption as the command line makes and keeps it."""
    words = [word.replace("PATH", str(folder)) for word in [*CORRUPT, *options]]
    assert run_lake(*words, "--json") == 0
    dtype = options[options.index("--compute-dtype") + 1] if "--compute-dtype" in options else "float32"
    return open_lake(folder).result("corrupt", "small-gpt2/test", compute_dtype=dtype)


@pytest.mark.parametrize("options", [(ROWS, "48"), (ROWS, "20"), (ROWS, "48", "--compute-dtype", "bfloat16")], ids=str)
def test_a_killed_re_entry_goes_on_in_any_batches_and_precision(
    folder: Path, killed: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)
    whole = corrupted(folder, *options)
    name = next(each.name for each in open_lake(folder).results("corrupt"))
    shutil.rmtree(folder / name)
    kept = folder.with_name("a.lake.reenter.corrupt")
    shutil.copytree(killed, kept)
    again = corrupted(folder, *options)
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())
    # The same batches are taken up, others are not.
    assert (again.attrs["model_calls"] < whole.attrs["model_calls"]) == (options == (ROWS, "48"))
    assert not kept.exists()
    assert ("was computed in float32; the model goes on in bfloat16" in capsys.readouterr().err) == (len(options) > 2)


def test_a_kept_batch_says_what_it_holds_and_is_checked(folder: Path, killed: Path) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)
    whole = corrupted(folder, ROWS, "48")
    kept = folder.with_name("a.lake.reenter.corrupt")
    shutil.copytree(killed, kept)
    first, second, third, *_ = sorted(kept.rglob("*.json"))
    first.write_text(second.read_text())  # another batch's
    second.write_text(second.read_text()[:-20])  # cut short
    changed = json.loads(third.read_text())
    changed["values"]["kl"][0] = 7.0
    third.write_text(json.dumps(changed))
    again = corrupted(folder, ROWS, "48")
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())


def test_re_entries_in_two_precisions_stand_beside_each_other(folder: Path) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)
    exact, reduced = corrupted(folder), corrupted(folder, "--compute-dtype", "bfloat16")
    assert {each.spec["compute_dtype"] for each in open_lake(folder).results("corrupt")} == {"float32", "bfloat16"}
    assert exact.attrs["fingerprint"] != reduced.attrs["fingerprint"]
    assert reduced.attrs["compute_dtype"] == "bfloat16"
    assert float(abs(exact["kl"] - reduced["kl"]).max()) > 0


def test_a_run_is_gone_back_into_in_the_precision_it_was_made_in(tmp_path: Path, folder: Path) -> None:
    lake = tmp_path / "half.lake"
    data = str(folder.with_name("test.jsonl"))
    spec = RunSpec(compute_dtype="bfloat16", limit=4, max_new_tokens=4)
    extract(prepare("small-gpt2", data, lake, spec), lake)
    opened = open_target(open_lake(lake), "small-gpt2/test")
    assert opened.compute_dtype == opened.made_in == "bfloat16"
