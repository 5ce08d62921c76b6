"""What ``gpu.py`` measures: rates of the machine, extraction beside answering, and a sweep."""

import contextlib
import hashlib
import io
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_session import N_NEW, HostPeak, Session

from extract.run.extract import extract
from extract.run.precision import calibration
from extract.run.prepare import batches, think
from store import write_model

PROFILED = 4
"""Batches whose kernels are looked at: their profile takes longer than they do."""


def rates(session: Session) -> None:
    """What disk, hashing and the way off the card take by themselves."""
    session.say("rates", "disk, MB/s", session.disk_rate() / 1e6)
    big = np.random.default_rng(0).bytes(2**28)
    session.say("rates", "SHA-256, one thread, MB/s", 2**28 / session.timed(lambda: hashlib.sha256(big)) / 1e6)
    if session.cuda:
        source = torch.ones(2**29, dtype=torch.uint8, device=session.device)
        pinned = torch.ones(2**29, dtype=torch.uint8, pin_memory=True)
        session.say("rates", "GPU to fresh memory, GB/s", 0.537 / session.timed(lambda: source.cpu()))
        copies = [session.timed(lambda: pinned.copy_(source, non_blocking=True)) for _ in range(3)]
        session.say("rates", "GPU to page-locked memory, GB/s", 0.537 / min(copies))


def extraction(name: str, dtype: str, capture: str, n: int, session: Session) -> None:
    """Extraction to disk beside answering the same batches, in turns."""
    say = partial(session.say, f"{name} {dtype} {capture}")
    place = session.folder / f"{name}-{dtype}-{capture}.lake"
    prepared = session.ready(name, capture, dtype, place, n)
    layout, reasoner, gold = prepared.layout, prepared.reasoner, prepared.problems.gold_answer
    n = layout.n_example
    every = [rows for shard in range(layout.n_shard) for rows in batches(prepared, shard)]
    tokens = np.mean([len(prompt) for prompt in prepared.prompts])
    say("questions, tokens, shards, rows of a batch", f"{n}, {tokens:.0f}, {layout.n_shard}, {n / len(every):.0f}")

    def answer(scored: bool) -> None:
        for rows in every:
            reasoner.think(
                [prepared.prompts[i] for i in rows], capture=None, max_new_tokens=N_NEW,
                gold=[gold[i] for i in rows] if scored else None,
            )  # fmt: skip

    def capture_all() -> None:
        for rows in every:
            think(prepared, rows)

    def to_disk() -> None:
        shutil.rmtree(place / name / "gsm8k", ignore_errors=True)
        written.append(to_disk_timed(prepared, place))

    written: list[tuple[int, float]] = []
    calibrations: list[dict[str, Any]] = []
    write_model(place, name, prepared.model_arrays, prepared.model_attributes)
    think(prepared, every[-1])
    start = session.timed(lambda: calibrations.append(calibration(prepared)))
    say("its start, some questions alone and in a batch, s: once a run, not in what follows", start)
    if session.cuda:
        torch.cuda.reset_peak_memory_stats()
    rounds = []
    with HostPeak() as host, mock.patch("extract.run.extract.calibration", return_value=calibrations[0]):
        for _ in range(session.options.rounds):
            works = (partial(answer, False), partial(answer, True), capture_all, to_disk)
            times = [session.timed(work) for work in works]
            rounds.append([*times, written[-1][0] / session.disk_rate()])
    best = np.min(rounds, axis=0)
    n_byte = written[-1][0]
    say("ms a question: answering; scoring, too; capturing, too; extraction to disk; disk alone",
        "; ".join(f"{1e3 * seconds / n:.2f}" for seconds in best))  # fmt: skip
    answering, scoring, capturing, extracting, disk = (float(seconds) for seconds in best)
    say("capturing / answering and scoring", capturing / scoring)
    say("extraction, ms a question of the second half, all written", 1e3 * min(each for _, each in written))
    say("extraction / answering", extracting / answering)
    say("extraction / answering and scoring", extracting / scoring)
    say("extraction / the slower of answering and disk", extracting / max(answering, disk), "at most 1.25")
    say("MB a question; written, MB/s", f"{n_byte / n / 1e6:.2f}; {n_byte / extracting / 1e6:.0f}")
    say("host memory peak, GB", host.gb)
    if session.cuda:
        say("GPU memory peak, GB", torch.cuda.max_memory_allocated() / 1e9)
        some = every[:: max(1, len(every) // PROFILED)]
        kernels, copies, launches = profiled(lambda: [think(prepared, rows) for rows in some])
        share = sum(map(len, some)) / n
        say("GPU waits, of the extraction's time", 1 - kernels / share / extracting)
        say("kernels and copies, ms a question; launches a batch",
            f"{1e3 * kernels / share / n:.2f}, {1e3 * copies / share / n:.2f}; {launches / len(some):.0f}")  # fmt: skip
    hours = (7473 * extracting / n + start) / 3600
    say("all 7,473 training questions: hours, GB", f"{hours:.3f}, {7473 * n_byte / n / 1e9:.1f}")


def to_disk_timed(prepared: Any, place: Path) -> tuple[int, float]:
    """Extract; bytes written, and seconds a question of the second half, when all is under way."""
    halves: list[tuple[float, int]] = []

    def halfway(done: int, total: int, _: int) -> None:
        if 2 * done >= total and not halves:
            halves.append((time.perf_counter(), done))

    n_byte = extract(prepared, place, progress=halfway).bytes_written
    ((begin, done),) = halves
    return n_byte, (time.perf_counter() - begin) / max(prepared.layout.n_example - done, 1)


def profiled(work: Callable[[], Any]) -> tuple[float, float, int]:
    """Seconds of kernels and of copies on the GPU, and how many kernels were launched."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    kernels = copies = 0.0
    launches = 0
    for each in seen.key_averages():
        if str(each.device_type).endswith("CUDA"):
            seconds = float(each.self_device_time_total) / 1e6
            if each.key.startswith(("Memcpy", "Memset")):
                copies += seconds
            else:
                kernels, launches = kernels + seconds, launches + each.count
    return kernels, copies, launches


def sweep(name: str, session: Session) -> None:
    """A sweep beside its conditions one by one: ``reentry.py``, one condition in several."""
    argv, printed = sys.argv, io.StringIO()
    sys.argv = ["reentry.py", "--device", session.device]
    if name:
        checkpoint, base = session.checkpoint(name)
        sys.argv += ["--model", f"{name}={checkpoint}", "--base", str(base), "--every", "12", "--examples", "64"]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(Path(__file__).with_name("reentry.py")), run_name="__main__")
    finally:
        sys.argv = argv
    for line in printed.getvalue().splitlines():
        session.say(f"sweep {name}".rstrip(), line.split("  ")[0], line)
