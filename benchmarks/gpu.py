"""Everything that wants a GPU, checked and measured in one go; docs/gpu.md is its guide.

    python benchmarks/gpu.py [--data train.jsonl] [--oracle oracle.py] [--seconds 600] [--json gpu.json]

Models of the released ones' sizes with random weights are made on the spot; nothing is fetched. Every part is timed;
one that fails is named and the next goes on; one for which no time is left is said to be skipped. A table comes last.
``--device cpu --tiny`` tries the script itself where there is no GPU.
"""

import argparse
import contextlib
import gc
import hashlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from checkpoints import GPT2, LLAMA, TINY, write_checkpoint
from extraction import write_questions

import extract.model.load
import extract.reenter.target
import extract.run.prepare
import extract.run.recompute
import lake as command_line
from extract.reenter import CorruptSettings, PatchSettings, corrupt, open_target, patch
from extract.run.extract import extract as extract_run
from extract.run.extract import prepare
from extract.run.precision import calibration
from extract.run.prepare import Prepared, batches, think
from extract.run.recompute import recompute
from schemas import LakeError, RunSpec
from store import open_lake, write_model

ROOT = Path(__file__).parents[1]
N_NEW = 9
"""Answer places: as many as a trained model fills. Random weights fill them all."""
ORACLE = ROOT / "tests" / "data" / "codi_oracle"

begin_all = time.perf_counter()
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, help="questions, JSON Lines; by default made up, of 40 to 90 tokens")
parser.add_argument(
    "--oracle", type=Path, help="a script that compares `lake extract` with the official code's numbers"
)
parser.add_argument("--device", default="cuda")
parser.add_argument("--seconds", type=float, default=600.0, help="no part is begun that would take longer")
parser.add_argument("--only", default="", help="names of parts, separated by commas")
parser.add_argument("--latent", type=int, default=512, help="questions of a latent capture")
parser.add_argument("--full", type=int, default=128, help="questions of a full capture")
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--memory", type=float, default=24.0, help="GiB of host memory for activations")
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--tiny", action="store_true", help="small models, to try the script")
parser.add_argument("--json", type=Path)
ask = parser.parse_args()
CUDA = ask.device.startswith("cuda")
if CUDA and not torch.cuda.is_available():
    print("no GPU here: nothing was measured; --device cpu --tiny tries the script")
    sys.exit()
WORK = Path(tempfile.mkdtemp(prefix="lake-gpu-"))
rows: list[tuple[str, str, Any, str]] = []


def say(part: str, what: str, value: Any, wanted: str = "") -> None:
    """Note a figure and print it at once."""
    rows.append((part, what, value, wanted))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    print(
        f"[{time.perf_counter() - begin_all:4.0f}s] {part}: {what}: {text}" + (f"   ({wanted})" if wanted else ""),
        flush=True,
    )
    if ask.json is not None:
        ask.json.write_text(json.dumps([[*row[:2], str(row[2]), row[3]] for row in rows], indent=1))


parts: list[tuple[str, float, Callable[[], None]]] = []


def part(name: str, needs: float) -> Callable[[Callable[[], None]], None]:
    """Keep a function as a part, with the seconds it may need."""
    return lambda work: parts.append((name, needs, work))


def run_parts() -> None:
    """Run each part that is wanted and for which there is time; say which failed."""
    for name, needs, work in parts:
        left = ask.seconds - (time.perf_counter() - begin_all)
        if ask.only and not any(name.startswith(each) for each in ask.only.split(",")):
            continue
        if left < needs:
            say(name, "SKIPPED", f"{left:.0f} s left, {needs:.0f} needed")
            continue
        begin = time.perf_counter()
        try:
            work()
        except BaseException as error:
            traceback.print_exc()
            say(name, "FAILED", f"{type(error).__name__}: {str(error)[:300]}")
        say(name, "seconds", round(time.perf_counter() - begin, 1))


def timed(work: Callable[[], Any]) -> float:
    """Seconds by the clock, until the GPU is done, too."""
    if CUDA:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def run_lake(*words: object) -> tuple[int, str, str]:
    """A command in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line.main([str(word) for word in words])
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


class HostPeak:
    """Largest resident memory of this process while the context lasts, in GB."""

    def __enter__(self) -> "HostPeak":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        status = Path("/proc/self/status").read_text()
        self.gb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e9


# One load for all parts and both types: a 1B takes long to merge and to hash.
real_load = extract.model.load.load_reasoner
loaded: dict[str, Any] = {}


def load_once(checkpoint: Any, base: Any = None, device: str = "cpu", dtype: str = "float32", **options: Any) -> Any:
    """As ``load_reasoner``, keeping the last large model."""
    if not str(checkpoint).startswith(str(WORK)):
        return real_load(checkpoint, base, device, dtype, **options)
    if str(checkpoint) not in loaded:
        loaded.clear()
        gc.collect()
        seconds = timed(
            lambda: loaded.update({str(checkpoint): real_load(checkpoint, base, device, "float32", **options)})
        )
        say("load", f"{Path(checkpoint).name}, s", seconds)
    reasoner = loaded[str(checkpoint)]
    if dtype == "float32" != str(reasoner.model.dtype).removeprefix("torch."):
        raise ValueError(f"{checkpoint} was rounded to {reasoner.model.dtype}; measure float32 first")
    if reasoner.model.dtype != getattr(torch, dtype):
        for module in (reasoner.model, reasoner.projection):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(getattr(torch, dtype))
        reasoner._head_weight = None
    return reasoner


for module in (extract.run.prepare, extract.run.recompute, extract.reenter.target):
    module.load_reasoner = load_once  # type: ignore[attr-defined]


def disk_rate() -> float:
    """Bytes a second of plain writing of 2 GB, then flushed."""
    block, path = np.random.default_rng(0).bytes(2**26), WORK / "raw"
    n = 4 if ask.tiny else 32

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(n):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    rate = n * 2**26 / timed(write)
    path.unlink()
    return rate


if ask.data is None:
    ask.data = write_questions(WORK / "questions.jsonl", max(ask.latent, ask.full))
sizes_of = {
    "gpt2": {**GPT2, **(TINY | {"key_heads": 8} if ask.tiny else {})},
    "llama": {**LLAMA, **(TINY | {"key_heads": 2} if ask.tiny else {})},
}


def ready(name: str, capture: str, dtype: str, place: Path, n: int, **options: Any) -> Prepared:
    """A run of one of the large models, prepared."""
    checkpoint, base = write_checkpoint(WORK, name, sizes_of[name], ask.data, ask.device)
    spec = RunSpec(
        capture=capture,
        compute_dtype=dtype,
        device=ask.device,
        batch_size=ask.batch_size,
        max_new_tokens=N_NEW,
        limit=n,
    )
    options = {"memory": ask.memory, "skip_long": True, **options}
    return prepare(f"{name}={checkpoint}", f"gsm8k={ask.data}", place, spec, base=str(base), **options)


def measure(name: str, dtype: str, capture: str, n: int) -> None:
    """Extraction to disk beside answering the same batches, in turns."""
    title = f"{name} {dtype} {capture}"
    place = WORK / f"{name}-{dtype}-{capture}.lake"
    prepared = ready(name, capture, dtype, place, n)
    layout, reasoner, gold = prepared.layout, prepared.reasoner, prepared.problems.gold_answer
    n = layout.n_example
    every = [each for shard in range(layout.n_shard) for each in batches(prepared, shard)]
    tokens = np.mean([len(prompt) for prompt in prepared.prompts])
    say(
        title,
        "questions, tokens, shards, rows of a batch",
        f"{n}, {tokens:.0f}, {layout.n_shard}, {n / len(every):.0f}",
    )

    def answer(scored: bool) -> None:
        for each in every:
            reasoner.think(
                [prepared.prompts[i] for i in each], capture=None, max_new_tokens=N_NEW,
                gold=[gold[i] for i in each] if scored else None,
            )  # fmt: skip

    written = 0
    calibrations: list[dict[str, Any]] = []
    later: list[float] = []

    def capture_all() -> None:
        for rows in every:
            think(prepared, rows)

    halves: list[tuple[float, int]] = []

    def halfway(done: int, total: int, _: int) -> None:
        if 2 * done >= total and not halves:
            halves.append((time.perf_counter(), done))

    def whole() -> None:
        nonlocal written
        shutil.rmtree(place / name / "gsm8k", ignore_errors=True)
        halves.clear()
        written = extract_run(prepared, place, progress=halfway).bytes_written
        later.append((time.perf_counter() - halves[0][0]) / max(n - halves[0][1], 1))

    write_model(place, name, prepared.model_arrays, prepared.model_attributes)
    think(prepared, every[-1])
    start = timed(lambda: calibrations.append(calibration(prepared)))
    say(title, "its start, some questions alone and in a batch, s: once a run, not in what follows", start)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    rounds = []
    with HostPeak() as host, mock.patch("extract.run.extract.calibration", return_value=calibrations[0]):
        for _ in range(ask.rounds):
            times = [timed(work) for work in (partial(answer, False), partial(answer, True), capture_all, whole)]
            rounds.append([*times, written / disk_rate()])
    best = np.min(rounds, axis=0)
    answering, scoring, capturing, extraction, disk = best
    say(title, "ms a question: answering; scoring, too; capturing, too; extraction to disk; disk alone",
        "; ".join(f"{1e3 * seconds / n:.2f}" for seconds in best))  # fmt: skip
    say(title, "capturing / answering and scoring", float(capturing / scoring))
    say(title, "extraction, ms a question of the second half, all written", 1e3 * min(later))
    say(title, "extraction / answering", float(extraction / answering))
    say(title, "extraction / answering and scoring", float(extraction / scoring))
    say(
        title, "extraction / the slower of answering and disk", float(extraction / max(answering, disk)), "at most 1.25"
    )
    say(title, "MB a question; written, MB/s", f"{written / n / 1e6:.2f}; {written / extraction / 1e6:.0f}")
    say(title, "host memory peak, GB", host.gb)
    if CUDA:
        say(title, "GPU memory peak, GB", torch.cuda.max_memory_allocated() / 1e9)
        kernels, copies, launches = profiled(capture_all)
        say(title, "GPU waits, of the extraction's time", 1 - kernels / extraction)
        say(title, "kernels and copies, ms a question; launches a batch",
            f"{1e3 * kernels / n:.2f}, {1e3 * copies / n:.2f}; {launches / len(every):.0f}")  # fmt: skip
    hours = (7473 * extraction / n + start) / 3600
    say(title, "all 7,473 training questions: hours, GB", f"{hours:.3f}, {7473 * written / n / 1e9:.1f}")


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


say("machine", "python, torch, cores", f"{sys.version.split()[0]}, {torch.__version__}, {os.cpu_count()}")
if CUDA:
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    say(
        "machine",
        "GPU, memory, TF32",
        f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, {torch.backends.cuda.matmul.allow_tf32}",
    )


@part("oracle", 30)
def _() -> None:
    """The official code's numbers at several batches; and what reduced types make of them."""
    for architecture in ("gpt2", "llama"):
        meta = json.loads((ORACLE / f"codi-{architecture}/meta.json").read_text())
        expected = np.load(ORACLE / f"expected-{architecture}.npz")
        want = np.stack([expected[f"{i}/latents"][:6] for i in range(len(meta["questions"]))])
        for dtype in ("float32", "bfloat16", "float16"):
            reasoner = real_load(ORACLE / f"codi-{architecture}", ORACLE / f"base-{architecture}", ask.device, dtype)
            prompts = [reasoner.encode(question) for question in meta["questions"]]
            for batch in (1, 3, 8, 64) if dtype == "float32" else (64,):
                found = np.concatenate([
                    reasoner.think(prompts[i : i + batch], stored_dtype="float32", max_new_tokens=4).latent_embedding
                    for i in range(0, len(prompts), batch)
                ])  # fmt: skip
                apart = float(np.abs(found - want).max() / (1 if dtype == "float32" else np.abs(want).max()))
                say("oracle", f"{architecture} {dtype}, batches of {batch}: vectors fed", apart,
                    "at most 1e-4" if dtype == "float32" else "of their scale; nothing is promised")  # fmt: skip
    if ask.oracle is not None:
        say("oracle", "states, attention, logits, tokens by lake extract", official())


def official() -> str:
    """The comparison of ``--oracle`` with the commands it starts run here, on the device: its last lines."""
    real, argv, said = subprocess.run, sys.argv, io.StringIO()

    def in_process(words: list[str], **_: Any) -> Any:
        words = [str(word) for word in words[1:]]
        words[words.index("--device") + 1] = ask.device
        code, _, error = run_lake(*words)
        return subprocess.CompletedProcess(words, code, "", error)

    (WORK / "oracle").mkdir()
    sys.argv = ["oracle.py", str(ORACLE), "lake", str(WORK / "oracle")]
    subprocess.run = in_process  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(ask.oracle), run_name="__main__")
    except SystemExit as stop:
        return f"{said.getvalue()[-300:]} {stop.code}"
    finally:
        subprocess.run, sys.argv = real, argv
    return " ".join(said.getvalue().splitlines()[-2:])


@part("rates", 15)
def _() -> None:
    say("rates", "disk, MB/s", disk_rate() / 1e6)
    big = np.random.default_rng(0).bytes(2**28)
    say("rates", "SHA-256, one thread, MB/s", 2**28 / timed(lambda: hashlib.sha256(big)) / 1e6)
    if CUDA:
        source = torch.ones(2**29, dtype=torch.uint8, device=ask.device)
        pinned = torch.ones(2**29, dtype=torch.uint8, pin_memory=True)
        say("rates", "GPU to fresh memory, GB/s", 0.537 / timed(lambda: source.cpu()))
        say(
            "rates",
            "GPU to page-locked memory, GB/s",
            0.537 / min(timed(lambda: pinned.copy_(source, non_blocking=True)) for _ in range(3)),
        )


def recompute_again(name: str, dtype: str) -> None:
    """What `lake verify --recompute` finds."""
    again = recompute(
        WORK / f"{name}-{dtype}-latent.lake", f"{name}/gsm8k", 6, checkpoint=str(WORK / name),
        base=str(WORK / f"base-{name}"), device=ask.device,
    )  # fmt: skip
    errors = {key: f"{value.worst:.2g}" for key, value in again.states.items()}
    what = f"{errors}, {again.other_texts} other texts; {again.agrees}"
    say(f"{name} {dtype} recompute", "errors; agrees", what, "agrees")


def reenter_itself(name: str, dtype: str) -> None:
    """Every thought of some questions replaced by its own value."""
    target = open_target(
        open_lake(WORK / f"{name}-{dtype}-latent.lake"), f"{name}/gsm8k", checkpoint=str(WORK / name),
        base=str(WORK / f"base-{name}"), device=ask.device, limit=32,
    )  # fmt: skip
    for site in ("latent_embedding", "hidden_state"):
        settings = CorruptSettings(site=site, corruptions=("zero",))  # type: ignore[arg-type]
        selves(f"{name} {dtype} reentry", site, corrupt(target, settings))


for size in ("gpt2", "llama"):
    for dtype in ("float32", "bfloat16"):
        for capture, n_question in (("latent", ask.latent), ("full", ask.full)):
            part(f"{size} {dtype} {capture}", 20)(partial(measure, size, dtype, capture, n_question))
        part(f"{size} {dtype} recompute", 10)(partial(recompute_again, size, dtype))
        part(f"{size} {dtype} reentry", 20)(partial(reenter_itself, size, dtype))


def selves(title: str, what: str, result: Any) -> None:
    """How far a run moves that is patched with its own values."""
    control = result["control"].values.astype(str)
    for index in [index for index, each in enumerate(control) if each.startswith("self")]:
        moved = np.nanmax(np.abs(result["answer_logprob"].values[index, 0] - result["answer_logprob"].values[0, 0]))
        texts = int((result["generated_text"].values[index] != result["generated_text"].values[0]).sum())
        say(title, f"{what}: {result['condition'].values[index]}",
            f"log p moves {moved:.2g} nat, KL {np.nanmax(result['kl'].values[index]):.2g},"
            f" {texts} of {result.sizes['example']} texts")  # fmt: skip


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@part("resume", 60)
def _() -> None:
    """Killed after some shards and given again, in processes of their own: the bytes of an uninterrupted run."""
    n = 64 if ask.tiny else 384
    checkpoint, base = write_checkpoint(WORK, "gpt2", sizes_of["gpt2"], ask.data, ask.device)
    one, cut = WORK / "one.lake", WORK / "cut.lake"
    words = [
        sys.executable, "-m", "lake", "extract", "--model", f"gpt2={checkpoint}", "--base", base, "--data",
        f"gsm8k={ask.data}", "--limit", n, "--memory", "0.3", "--batch-size", "32", "--max-new-tokens", N_NEW,
        "--device", ask.device, "--skip-long", "--lake",
    ]  # fmt: skip
    words = [str(word) for word in words]
    subprocess.run([*words, str(one)], check=True, capture_output=True)
    first = subprocess.Popen([*words, str(cut)], stdout=subprocess.DEVNULL)
    marks = cut / "gpt2" / "gsm8k" / "committed" / "c"
    while first.poll() is None and not (marks.is_dir() and len(list(marks.iterdir())) >= 2):
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    there = len(list(marks.iterdir()))
    if CUDA:  # another name of the same card
        words[words.index(ask.device)] = "cuda:0"
    again = subprocess.run([*words, str(cut)], capture_output=True, text=True)
    say("resume", f"{there} shards when killed; given again", (again.stdout + again.stderr).splitlines()[0])
    a, b = tree(one), tree(cut)
    other = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    say("resume", "files that differ", f"{len(other)} of {len(a)} {other[:4]}", "0")


@part("small", 60)
def _() -> None:
    """The shipped models: right answers, patched with themselves, and beside a CPU."""
    problems = WORK / "problems"
    run_lake("problems", "--out", problems)
    for model in ("small-gpt2", "small-llama"):
        for dtype in ("float32", "bfloat16"):
            place = WORK / f"{model}-{dtype}.lake"
            settings = RunSpec(compute_dtype=dtype, device=ask.device, batch_size=64, max_new_tokens=8, limit=200)  # type: ignore[arg-type]
            done = extract_run(prepare(model, str(problems / "pairs.json"), place, settings), place)
            say("small", f"{model} {dtype} right", f"{done.n_correct} of {done.n_committed}")
            target = open_target(open_lake(place), f"{model}/pairs", device=ask.device, compute_dtype=dtype)  # type: ignore[arg-type]
            patched = patch(target, PatchSettings(sites=("latent_embedding",), subsets="none"))
            selves("small", f"{model} {dtype}", patched)
        place = WORK / f"{model}-cpu.lake"
        extract_run(
            prepare(
                model, str(problems / "pairs.json"), place, replace(settings, device="cpu", compute_dtype="float32")
            ),
            place,
        )
        one, other = (
            open_lake(each).open(f"{model}/pairs", chunks=None).load()
            for each in (place, WORK / f"{model}-float32.lake")
        )
        for key in ("hidden_state", "latent_embedding", "attention"):
            a, b = one[key].values.astype("f8"), other[key].values.astype("f8")
            say(
                "small",
                f"{model}: {key} beside a CPU's, float32",
                float(np.nanmax(np.abs(a - b)) / np.nanmax(np.abs(a))),
                "rounding of float16",
            )
        say(
            "small",
            f"{model}: other texts than a CPU's",
            int((one["generated_text"].values != other["generated_text"].values).sum()),
            "0",
        )


@part("sweep", 60)
def _() -> None:
    argv, said = sys.argv, io.StringIO()
    sys.argv = ["reentry.py", "--device", ask.device]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(ROOT / "benchmarks" / "reentry.py"), run_name="__main__")
    finally:
        sys.argv = argv
    for line in said.getvalue().splitlines():
        say("sweep", line.split("  ")[0], line)


@part("memory", 15)
def _() -> None:
    """A card that is too small: batches are halved, and the run goes on."""
    if not CUDA:
        return
    place = WORK / "small-card.lake"
    prepared = ready("gpt2", "full", "float32", place, 64)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 1.2e9) / total)
    try:
        done = extract_run(prepared, place)
        say(
            "memory",
            "with 1.2 GB beside the weights: examples, batches of at most",
            f"{done.n_committed}, {done.most_rows}",
        )
    except LakeError as error:
        say("memory", "with 1.2 GB beside the weights", f"LakeError: {error}")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


run_parts()
print("\n" + "=" * 100)
for title, what, value, wanted in rows:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    print(f"{title:22} {what:70} {text}" + (f"   [{wanted}]" if wanted else ""))
print(f"in all {time.perf_counter() - begin_all:.0f} s")
shutil.rmtree(WORK, ignore_errors=True)
