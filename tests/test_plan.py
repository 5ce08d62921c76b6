"""The plan says what extraction will write, and writes nothing itself."""

import json
from itertools import islice
from pathlib import Path

import pytest
from called import run_lake
from small_runs import checkpoint, prepared_run, write_questions

from extract.run.extract import extract, prepare
from extract.run.plan import plan
from schemas import RunSpec, UsageError
from store import open_lake


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("architecture", "capture"), [("gpt2", "full"), ("llama", "latent")])
def test_bytes_are_those_that_extraction_writes(tmp_path: Path, architecture: str, capture: str) -> None:
    data = write_questions(tmp_path / "toy.jsonl", 40)
    place = tmp_path / "planned.lake"
    options = {"architecture": architecture, "capture": capture, "max_new_tokens": 12, "batch_size": 16}
    prepared = prepared_run(place, data, shard_examples=16, **options)
    planned = plan(prepared, place)
    assert not place.exists()
    extract(prepared, place)
    assert planned.expected_bytes == pytest.approx(on_disk(place), rel=0.15)
    assert planned.remaining_bytes == planned.expected_bytes
    assert planned.files == pytest.approx(sum(path.is_file() for path in place.rglob("*")), abs=2 * planned.n_shard)
    for variable in planned.variables:
        assert variable.shape == open_lake(place)["toy/toy"][variable.name].shape
        if variable.expected_bytes > 2**16:
            assert variable.expected_bytes == pytest.approx(on_disk(place / "toy/toy" / variable.name), rel=0.15)
    assert plan(prepared, place).remaining_bytes == 0


def test_gsm8k_questions(tmp_path: Path, shared_data: Path) -> None:
    data = tmp_path / "gsm8k.jsonl"
    with (shared_data / "gsm8k" / "test.jsonl").open() as file:
        data.write_text("".join(islice((line for line in file if len(line) < 500), 60)))
    folder, base = checkpoint("gpt2")
    place = tmp_path / "gsm8k.lake"
    prepared = prepare(
        f"toy={folder}", str(data), place, RunSpec(capture="full", max_new_tokens=8), base=base, skip_long=True
    )
    planned = plan(prepared, place)
    extract(prepared, place)
    assert planned.expected_bytes == pytest.approx(on_disk(place), rel=0.15)


def test_the_command_says_what_it_will_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_questions(tmp_path / "toy.jsonl", 8)
    folder, base = checkpoint("gpt2")
    words = ["plan", "--model", f"toy={folder}", "--base", base, "--data", str(data), "--max-new-tokens", "2"]
    words += ["--lake", str(tmp_path / "none.lake")]
    assert run_lake(*words) == 0
    said = capsys.readouterr().out
    for word in ("hidden_state", "attention", "8x4x10x48", "memory", "time: about", "free"):
        assert word in said
    run_lake(*words, "--json")
    planned = json.loads(capsys.readouterr().out)
    assert planned["fits"] is True
    assert {variable["name"] for variable in planned["variables"]} > {"hidden_state", "attention", "token"}


def test_memory_too_small_for_one_example(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "toy.jsonl", 2)
    folder, base = checkpoint("gpt2")
    with pytest.raises(UsageError, match="shards of 1 of these examples take"):
        prepare(f"toy={folder}", str(data), tmp_path / "x.lake", RunSpec(), base=base, memory=1e-5)
