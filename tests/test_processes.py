"""Processes that write the files of shards: the same bytes, nothing lost with them, and none left behind."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_runs import tree

from schemas import LakeError
from store import RunLayout, RunWriter, create_run
from store.blocks import BlockArray
from store.processes import PROGRAM, FileProcesses

pytestmark = pytest.mark.skipif(not FileProcesses.possible(), reason="this system has no memory of no file")

LAYOUT = RunLayout(
    n_example=27, n_layer=20, n_head=2, hidden=64, n_latent=6, longest_question=3, n_answer=2, capture="latent",
    dtype="float16", shard_bytes=600_000,
)  # fmt: skip
"""Of more layers, so parts of a file, than are in memory at a time."""


@pytest.fixture(scope="module")
def processes() -> Iterator[FileProcesses]:
    with FileProcesses() as started:
        yield started


def new_run(place: Path) -> RunWriter:
    columns = {
        "example": (("example",), np.arange(27)),
        "problem": (("example",), np.arange(27)),
        "question": (("example",), np.full(27, "How many?", dtype=object)),
        "gold_answer": (("example",), np.full(27, "1", dtype=object)),
        "intermediate_result": (("example", "step"), np.ones((27, 1))),
        "operation": (("example", "step"), np.full((27, 1), "+", dtype=object)),
    }
    return create_run(place, "toy/gsm8k", LAYOUT, identity={"spec": {}}, columns=columns)


def values_of(writer: RunWriter, shard: int) -> dict[str, np.ndarray | BlockArray]:
    """Two batches of noise, the second with a constant; vectors fed are all fill."""
    rng, values = np.random.default_rng(shard), writer.empty(shard)
    for name in ("hidden_state", "final_state", "attention"):
        array = values[name]
        n_row, *sizes = array.shape
        for rows in (np.arange(0, n_row, 2), np.arange(1, n_row, 2)):
            block = rng.standard_normal((len(rows), *sizes)).astype("float16")
            block[:, -1] = rows[0]
            array.add(rows, [0] * len(sizes), block)
    return values


def test_processes_write_what_threads_write(tmp_path: Path, processes: FileProcesses) -> None:
    by_threads, by_processes = new_run(tmp_path / "threads"), new_run(tmp_path / "processes")
    assert LAYOUT.n_shard > 2
    for shard in range(LAYOUT.n_shard):
        n_byte = by_threads.write_shard(shard, values_of(by_threads, shard))
        values = values_of(by_processes, shard)
        assert by_processes.write_shard(shard, values, processes) == n_byte
        assert not any(value.blocks() for value in values.values() if isinstance(value, BlockArray))
    assert by_processes.committed().all()
    assert tree(tmp_path / "processes") == tree(tmp_path / "threads")


def test_what_a_process_cannot_write_is_raised_here(tmp_path: Path, processes: FileProcesses) -> None:
    writer = new_run(tmp_path / "lake")
    (tmp_path / "lake" / "toy" / "gsm8k" / "attention" / "c").write_text("in the way")
    with pytest.raises(NotADirectoryError):
        writer.write_shard(0, values_of(writer, 0), processes)
    assert not writer.is_committed(0)
    (tmp_path / "lake" / "toy" / "gsm8k" / "attention" / "c").unlink()
    writer.write_shard(0, values_of(writer, 0), processes)
    assert writer.is_committed(0)


def test_a_process_that_is_killed_costs_a_line_and_no_lake(tmp_path: Path) -> None:
    writer = new_run(tmp_path / "lake")
    with FileProcesses(1) as processes:
        os.kill(processes.ids()[0], signal.SIGKILL)
        with pytest.raises(LakeError, match=r"wrote .* has ended \(signal 9\); give the command again"):
            writer.write_shard(0, values_of(writer, 0), processes)
    assert not writer.committed().any()
    whole = new_run(tmp_path / "whole")
    for shard in range(LAYOUT.n_shard):
        writer.write_shard(shard, values_of(writer, shard))
        whole.write_shard(shard, values_of(whole, shard))
    assert tree(tmp_path / "lake") == tree(tmp_path / "whole")


def test_an_encoder_that_is_killed_costs_a_line(tmp_path: Path) -> None:
    writer = new_run(tmp_path / "lake")
    with FileProcesses(1) as processes:
        writer.write_shard(0, values_of(writer, 0), processes)
        encoders_of(processes.ids())[0].kill()
        with pytest.raises(LakeError, match=r"encoded .* has ended \(killed\); give the command again"):
            writer.write_shard(1, values_of(writer, 1), processes)
    assert list(writer.committed()) == [True] + [False] * (LAYOUT.n_shard - 1)


def encoders_of(processes: list[int]) -> list[psutil.Process]:
    """Processes that these have started, once there are any."""
    deadline = time.monotonic() + 20
    while not all(children := [psutil.Process(number).children() for number in processes]):
        assert time.monotonic() < deadline, "no encoder was started"
        time.sleep(0.05)
    return [child for some in children for child in some]


def test_processes_end_with_the_one_that_started_them() -> None:
    program = "import time; from store.processes import FileProcesses; print(*FileProcesses().ids(), flush=True)"
    command = [sys.executable, "-c", f"{program}; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        children = [int(number) for number in starter.stdout.readline().split()]
        assert len(children) == 2
        children += [encoder.pid for encoder in encoders_of(children)]
        starter.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}/stat").exists() for child in children):
        assert time.monotonic() < deadline, "a process outlived the one that started it"
        time.sleep(0.05)


def test_a_process_ends_within_a_request_that_nobody_finishes() -> None:
    file = os.memfd_create("shared")
    command = [sys.executable, "-c", PROGRAM, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[file]) as process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(b"x" * 1000)[:500])
        process.stdin.close()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
    os.close(file)
