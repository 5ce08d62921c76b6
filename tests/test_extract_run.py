"""Extraction under stress: killed anywhere, many writers, a full disk, another spec; flat memory; claims."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from called import claimed_elsewhere, forked_lake, run_lake
from small_runs import checkpoint, prepared_run, tree, write_questions

from extract.run.extract import extract, prepare
from extract.run.prepare import IN_FLIGHT, batches, held_bytes
from schemas import LakeError, RunSpec, SpecMismatchError, UsageError
from store import RunWriter, check_run, create_run, open_lake, write_model

CUT = (
    r"lake: toy/toy: \d+ answers had not ended after \d+ tokens; more are allowed with --max-new-tokens\n"
    r"lake: toy/toy: in \d+ of \d+ answers no number can be read, and they count as wrong; the first is .*\n"
)
"""What is said of a model that ends no answer, nor gives any."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "toy.jsonl", 12)


def arguments(lake: Path, data: Path, **changes: str) -> list[str]:
    folder, base = checkpoint("gpt2")
    options = {
        "--model": f"toy={folder}",
        "--base": base,
        "--data": str(data),
        "--lake": str(lake),
        "--lora-alpha": "32",
    }
    options |= {"--max-new-tokens": "3", "--batch-size": "4", **changes}
    return ["extract", *(word for pair in options.items() for word in pair)]


def memory_for(data: Path, shard_examples: int, **spec: str) -> str:
    """GiB that shards of that many examples need."""
    prepared = prepared_run("none.lake", data, **spec)
    return str(held_bytes(prepared, shard_examples) * IN_FLIGHT / 2**30)


def forked(words: list[str], rank: int, world: int) -> int:
    """Start the command as one of several writers in another process; its id."""
    return forked_lake(words, lambda: os.environ.update(RANK=str(rank), WORLD_SIZE=str(world)))


def killed(lake: Path, data: Path, chance: random.Random, n_write: int, longest: float) -> bool:
    """Extract in a process that may be killed at some time or some write; whether it was."""
    prepared = prepared_run(lake, data, shard_examples=2)
    by_write = chance.random() < 0.6
    fatal, after = chance.randrange(n_write), chance.random() < 0.5
    delay = chance.random() * longest
    if (child := os.fork()) == 0:
        replace, count = Path.replace, itertools.count()

        def replace_or_die(self: Path, target: Path) -> Path:
            fate = by_write and next(count) == fatal
            if fate and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            moved = replace(self, target)
            if fate:
                os.kill(os.getpid(), signal.SIGKILL)
            return moved

        Path.replace = replace_or_die  # type: ignore[method-assign]
        try:
            extract(prepared, lake)
        finally:
            os._exit(0 if sys.exception() is None else 1)
    if not by_write:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_anywhere_and_taken_up_again_gives_the_same_bytes(tmp_path: Path, data: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    begin = time.perf_counter()
    extract(prepared_run(tmp_path / "whole.lake", data, shard_examples=2), tmp_path / "whole.lake")
    longest = (time.perf_counter() - begin) / 2
    whole = tree(tmp_path / "whole.lake")
    assert len(whole) > 100
    kills = 0
    for lake in (tmp_path / f"{index}.lake" for index in itertools.count()):
        last = longest
        # Shards are committed one by one, but what comes before is made at once: kills must fall after it too.
        while killed(lake, data, chance, len(whole) // 3, last):
            last *= 1.2  # another process may have taken the machine since the whole was timed
            kills += 1
        assert tree(lake) == whole, seed
        if kills >= 4:
            break


def test_the_command_killed_and_given_again(tmp_path: Path, data: Path, call: Any) -> None:
    words = arguments(tmp_path / "cut.lake", data, **{"--memory": memory_for(data, 2)})
    first = forked(words, 0, 1)
    flags = tmp_path / "cut.lake" / "toy" / "toy" / "committed" / "c"
    while not flags.exists() and os.waitpid(first, os.WNOHANG)[0] == 0:
        time.sleep(0.002)
    os.kill(first, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == -signal.SIGKILL
    assert open_lake(tmp_path / "cut.lake")["toy/toy"].sizes["example"] < 12
    code, printed, said = call(*words)
    assert code == 0
    assert "kept" in printed
    assert re.fullmatch(CUT, said)
    words[words.index("--lake") + 1] = str(tmp_path / "whole.lake")
    assert call(*words)[0] == 0
    assert tree(tmp_path / "cut.lake") == tree(tmp_path / "whole.lake")


def test_a_run_goes_on_with_other_memory_in_shards_of_its_own_size(tmp_path: Path, data: Path) -> None:
    place = tmp_path / "toy.lake"
    extract(prepared_run(place, data, shard_examples=2), place, part=(0, 2))
    folder, base = checkpoint("gpt2")
    settings = RunSpec(max_new_tokens=3, batch_size=4)
    with pytest.raises(UsageError, match="shards of 2 of these examples take"):
        prepare(f"toy={folder}", str(data), place, settings, base=base, memory=float(memory_for(data, 2)) / 2)
    prepared = prepare(f"toy={folder}", str(data), place, settings, base=base)
    assert prepared.layout.shard_examples == 2
    done = extract(prepared, place)
    assert (done.shards_kept, len(done.shards_written)) == (3, 3)


def test_long_questions_make_small_batches_and_all_of_a_shard_is_in_one(tmp_path: Path) -> None:
    data = write_questions(tmp_path / "toy.jsonl", 48)
    folder, base = checkpoint("gpt2")
    settings, gib = (
        RunSpec(max_new_tokens=3, batch_size=12, capture="full"),
        float(memory_for(data, 16, capture="full")),
    )
    prepared = prepare(f"toy={folder}", str(data), tmp_path / "x.lake", settings, base=base, memory=gib)
    assert held_bytes(prepared, prepared.layout.shard_examples) * IN_FLIGHT <= gib * 2**30
    for shard in range(prepared.layout.n_shard):
        found, rows = list(batches(prepared, shard)), prepared.layout.shard_slice(shard)
        assert sorted(sum(found, [])) == list(range(rows.start, rows.stop))
        longest = [[len(prepared.prompts[index]) for index in batch] for batch in found]
        assert sum(longest, []) == sorted(sum(longest, []))
        assert len(found[0]) > len(found[-1])  # the last are the longest


def test_four_writers_and_a_reader(tmp_path: Path) -> None:
    place = tmp_path / "many.lake"
    n_example = 24  # long enough for the reader to come in between
    data = write_questions(tmp_path / "toy.jsonl", n_example)
    reference = tmp_path / "one.lake"
    extract(prepared_run(reference, data, shard_examples=1), reference)
    expected = open_lake(reference)["toy/toy"]
    words = arguments(place, data, **{"--memory": memory_for(data, 1)})
    writers = [forked(words, rank, 4) for rank in range(4)]
    codes: list[int] = []
    seen: set[int] = set()
    while len(codes) < len(writers):
        time.sleep(0.01)
        if (place / "toy" / "toy" / "zarr.json").exists():
            run = open_lake(place)["toy/toy"]
            seen.add(run.sizes["example"])
            there = run["example"].values
            for name in ("latent_embedding", "token", "correct"):
                found, wanted = run[name].values, expected[name].sel(example=there).values
                np.testing.assert_allclose(found.astype(float), wanted.astype(float), atol=2e-3)
        ended = [os.waitpid(writer, os.WNOHANG) for writer in writers[len(codes) :][:1]]
        codes += [os.waitstatus_to_exitcode(status) for child, status in ended if child]
    assert codes == [0] * 4
    assert len(seen - {0, n_example}) > 0  # the reader met a lake at work
    assert open_lake(place)["toy/toy"].sizes["example"] == n_example
    assert tree(place).keys() == tree(reference).keys()


def test_a_shard_is_written_by_one_process(tmp_path: Path, data: Path) -> None:
    place = tmp_path / "claimed.lake"
    prepared = prepared_run(place, data, shard_examples=4)
    extract(prepared, place, part=(2, 3))
    with claimed_elsewhere(place, "toy/toy"):
        RunWriter(place, "toy/toy").add_provenance({"threads": 99})  # puts another zarr.json in the place of the run's
        done = extract(prepared, place)
    assert (done.shards_written, done.shards_kept, done.shards_elsewhere) == ([1], 1, 1)
    assert extract(prepared, place).shards_written == [0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": {"max_new_tokens": 4}}, "spec.max_new_tokens 3 there, 4 asked for"),
        ({"spec": {"capture": "full"}}, "spec.capture latent there, full asked for"),
        ({"data": 11}, "data.n_example 12 there, 11 asked for"),
        ({"architecture": "llama"}, "weights"),
    ],
)
def test_a_run_made_otherwise_is_refused(tmp_path: Path, data: Path, change: dict[str, object], said: str) -> None:
    place = tmp_path / "there.lake"
    extract(prepared_run(place, data), place)
    before = tree(place)
    spec = change.get("spec", {})
    assert isinstance(spec, dict)
    other = write_questions(tmp_path / "toy.jsonl", 11) if "data" in change else data
    with pytest.raises(SpecMismatchError, match=said):
        prepared_run(place, other, architecture=str(change.get("architecture", "gpt2")), **spec)
    assert tree(place) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_the_run_and_leaves_what_is_committed(
    small_disk: Path, tmp_path: Path, data: Path, call: Any
) -> None:
    # Short answers are assumed before the start; this model never ends one.
    options = {"--capture": "full", "--max-new-tokens": "40", "--memory": "0.004", "--limit": "8"}
    wanted = tmp_path / "wanted.lake"
    code, _, said = call(*arguments(wanted, data, **options))
    assert code == 0
    assert re.fullmatch(CUT, said)
    pages = sum(-(-path.stat().st_size // 4096) for path in wanted.rglob("*") if path.is_file())
    free = pages * 4096 * 2 // 3
    subprocess.run(["mount", "-o", f"remount,size={free}", small_disk], check=True)
    place = small_disk / "full.lake"
    code, _, said = call(*arguments(place, data, **options))
    assert code == 1
    assert said.startswith("lake: the disk is full")
    assert said.count("\n") == 1
    kept = open_lake(place)["toy/toy"]
    assert 0 < kept.sizes["example"] < 8
    xr.testing.assert_identical(
        kept.drop_attrs().load(), open_lake(wanted)["toy/toy"].sel(example=kept["example"]).drop_attrs().load()
    )
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    code, _, said = call(*arguments(place, data, **options))
    assert code == 0
    assert re.fullmatch(CUT, said)
    assert tree(place) == tree(wanted)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    small_disk: Path, data: Path, call: Any
) -> None:
    words = arguments(small_disk / "big.lake", data, **{"--capture": "full"})
    code, _, said = call(*words)
    assert code == 2
    assert "needs about" in said
    assert "nothing was written" in said
    assert list(small_disk.iterdir()) == []
    code, _, said = call("plan", *words[1:])
    assert code == 1
    assert "too small" in said


def test_a_failing_model_lets_go_of_its_shard(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "broken.lake"
    prepared = prepared_run(place, data, shard_examples=4)
    calls = 0
    begin = type(prepared.reasoner).begin

    def fail_later(*given: object, **named: object) -> object:
        nonlocal calls
        calls += named["stored_dtype"] == "float16"  # not those of the calibration
        if calls == 3:
            raise LakeError("attention of layer 0: rows do not sum to 1")
        return begin(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(type(prepared.reasoner), "begin", fail_later)
    with pytest.raises(LakeError, match="rows do not sum"):
        extract(prepared, place)
    assert open_lake(place)["toy/toy"].sizes["example"] == 8
    assert extract(prepared, place).shards_written == [2]


def grown(lake: Path, data: Path) -> int:
    """Bytes by which a process grows while it extracts in shards of 13 MB."""
    (told, tell), spec = os.pipe(), {"capture": "full", "dtype": "float32", "batch_size": 16}

    def held(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    if (child := os.fork()) == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = held("VmRSS")
        extract(prepared_run(lake, data, shard_examples=16, **spec), lake)
        os.write(tell, str(held("VmHWM") - before).encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told) as said:
        answer = said.read()
    os.waitpid(child, 0)
    return int(answer)


def test_memory_does_not_grow_with_examples(tmp_path: Path) -> None:
    # Two shards, and five more: were they kept, 65 MB would be.
    few, many = (
        grown(tmp_path / f"{n_example}.lake", write_questions(tmp_path / f"n{n_example}.jsonl", n_example))
        for n_example in (32, 112)
    )
    assert many < few + 20 * 10**6  # a few MB; 43 where they are kept


def test_rebuilding_a_shard_that_is_not_there(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="shards 0 to 0; there is no shard 7"):
        extract(prepared_run(tmp_path / "x.lake", data), tmp_path / "x.lake", rebuild=[7])
    assert not (tmp_path / "x.lake").exists()


def test_extract_reports_as_json(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_lake(*arguments(tmp_path / "j.lake", data), "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["n_example"] == 12
    assert said["shards_written"] == [0]


def test_a_run_is_of_a_kind_of_device_not_of_one_card(tmp_path: Path, data: Path) -> None:
    assert RunSpec(device="cuda:1").to_json() == RunSpec(device="cuda").to_json()
    lake = tmp_path / "cards.lake"
    prepared = prepared_run(lake, data, device="cpu")
    # An older version wrote the card into what a run is made from.
    older = {**prepared.identity, "spec": prepared.identity["spec"] | {"device": "cpu:0"}}
    write_model(lake, prepared.model, prepared.model_arrays, prepared.model_attributes)
    columns = prepared.problems.columns
    create_run(lake, prepared.run, prepared.layout, identity=older, columns=columns)
    before = open_lake(lake).attributes(prepared.run)
    done = extract(prepared_run(lake, data, device="cpu"), lake)
    assert done.n_committed == len(prepared.problems)
    # Its documents are lost: what the record says of it is enough to write them again, as they were.
    (lake / prepared.run / "zarr.json").unlink()
    again = prepared_run(lake, data, device="cpu", rebuild_static=True)
    extract(again, lake, rebuild_static=True)
    assert open_lake(lake).attributes(prepared.run)["fingerprint"] == before["fingerprint"]
    with pytest.raises(UsageError, match="spec.device cpu:0 there, cuda asked for"):
        check_run(lake, prepared.run, prepared.layout, {**older, "spec": older["spec"] | {"device": "cuda"}})
