"""Lakes that older versions wrote stay what they were: read, verified, gone on with, used in re-entry."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from called import run_lake
from small_runs import tree

from store import open_lake

LAKES = Path(__file__).parent / "data" / "lakes"
RUN = "small-gpt2/pairs"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.unpack_archive(LAKES / "format-1.zip", tmp_path)
    return tmp_path / "old.lake"


def test_a_lake_of_format_1_is_read_and_verified(old: Path) -> None:
    run = open_lake(old)[RUN].load()
    plain = xr.open_zarr(old, group=RUN, consolidated=False).load()
    assert run["correct"].values.all()
    for name in ("hidden_state", "final_state", "latent_embedding", "attention", "answer_logprob"):
        np.testing.assert_array_equal(run[name].values, plain[name].values.astype(run[name].dtype))
    assert run_lake("verify", old, "--recompute", 2) == 0


def test_a_lake_of_format_1_is_gone_on_with(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", "--model", "small-gpt2", "--data", LAKES / "pairs.json", "--lake", old, "--limit", 4]
    words += ["--max-new-tokens", 8]
    before = open_lake(old)[RUN].load()
    assert run_lake(*words) == 0
    assert "1 kept" in capsys.readouterr().out
    assert run_lake(*words, "--rebuild", 0) == 0
    xr.testing.assert_allclose(open_lake(old)[RUN].load(), before, rtol=1e-3, atol=1e-3)
    assert run_lake("verify", old) == 0
    assert run_lake("reenter", "corrupt", old, RUN, "--corruptions", "zero") == 0


def test_a_lake_of_format_1_stays_one(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.lake"
    words = ["--data", f"more={LAKES / 'pairs.json'}", "--limit", 2, "--max-new-tokens", 8, "--lake"]
    first = ["extract", "--model", "small-gpt2", *words, old]
    assert run_lake(*first) == run_lake("extract", "--model", "other=small-gpt2", *words, new) == 0
    layouts = open_lake(old).layout("small-gpt2/more"), open_lake(new).layout("other/more")
    assert [layout.format for layout in layouts] == [1, 2]
    model = {"small-gpt2/zarr.json": "written as this version does"}
    before = tree(old) | model
    for damaged in ("zarr.json", "small-gpt2/more/zarr.json"):
        for content in (b"{}", None):
            (old / damaged).unlink() if content is None else (old / damaged).write_bytes(content)
            assert run_lake(*first, "--rebuild", "static") == 0
            assert tree(old) | model == before
    capsys.readouterr()
    assert run_lake("merge", new, "--into", old) == 2
    assert "is a lake of format 1 and other/more a run of format 2" in capsys.readouterr().err
    assert run_lake("merge", old, "--into", new) == 0
    assert run_lake("verify", new) == run_lake("verify", old) == 0
