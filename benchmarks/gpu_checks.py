"""What ``gpu.py`` checks: the official code's numbers, stored values, killed runs, a CPU's numbers, a small card."""

import contextlib
import hashlib
import io
import json
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_session import N_NEW, Session, load_reasoner

import lake
from extract.reenter import CorruptSettings, PatchSettings, corrupt, open_target, patch
from extract.run.extract import extract, prepare
from extract.run.recompute import recompute
from schemas import LakeError, RunSpec
from store import open_lake

ORACLE = Path(__file__).parents[1] / "tests" / "data" / "codi_oracle"


def run_lake(*words: object) -> tuple[int, str, str]:
    """A command in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            lake.main([str(word) for word in words])
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def oracle(session: Session) -> None:
    """The official code's numbers at several batches; and what reduced types make of them."""
    for architecture in ("gpt2", "llama"):
        meta = json.loads((ORACLE / f"codi-{architecture}/meta.json").read_text())
        expected = np.load(ORACLE / f"expected-{architecture}.npz")
        want = np.stack([expected[f"{i}/latents"][:6] for i in range(len(meta["questions"]))])
        checkpoint, base = ORACLE / f"codi-{architecture}", ORACLE / f"base-{architecture}"
        for dtype in ("float32", "bfloat16", "float16"):
            reasoner = load_reasoner(checkpoint, base, session.device, dtype)
            prompts = [reasoner.encode(question) for question in meta["questions"]]
            for batch in (1, 3, 8, 64) if dtype == "float32" else (64,):
                fed = np.concatenate([
                    reasoner.think(prompts[i : i + batch], stored_dtype="float32", max_new_tokens=4).latent_embedding
                    for i in range(0, len(prompts), batch)
                ])  # fmt: skip
                apart = float(np.abs(fed - want).max() / (1 if dtype == "float32" else np.abs(want).max()))
                wanted = "at most 1e-4" if dtype == "float32" else "of their scale; nothing is promised"
                session.say("oracle", f"{architecture} {dtype}, batches of {batch}: vectors fed", apart, wanted)
    if session.options.oracle is not None:
        session.say("oracle", "states, attention, logits, tokens by lake extract", official(session))


def official(session: Session) -> str:
    """The comparison of ``--oracle`` with the commands it starts run here, on the device: its last lines."""
    real, argv, printed = subprocess.run, sys.argv, io.StringIO()

    def in_process(words: list[str], **_: Any) -> Any:
        words = [str(word) for word in words[1:]]
        words[words.index("--device") + 1] = session.device
        code, _, error = run_lake(*words)
        return subprocess.CompletedProcess(words, code, "", error)

    folder = session.folder / "oracle"
    folder.mkdir()
    sys.argv = ["oracle.py", str(ORACLE), "lake", str(folder)]
    subprocess.run = in_process  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(session.options.oracle), run_name="__main__")
    except SystemExit as stop:
        return f"{printed.getvalue()[-300:]} {stop.code}"
    finally:
        subprocess.run, sys.argv = real, argv
    return " ".join(printed.getvalue().splitlines()[-2:])


def recomputed(name: str, dtype: str, session: Session) -> None:
    """What `lake verify --recompute` finds."""
    lake = session.folder / f"{name}-{dtype}-latent.lake"
    checkpoint, base = session.checkpoint(name)
    again = recompute(lake, f"{name}/gsm8k", 6, checkpoint=str(checkpoint), base=str(base), device=session.device)
    errors = {key: f"{value.worst:.2g}" for key, value in again.states.items()}
    text = f"{errors}, {again.other_texts} other texts; {again.agrees}"
    session.say(f"{name} {dtype} recompute", "errors; agrees", text, "agrees")


def reentered(name: str, dtype: str, session: Session) -> None:
    """Every thought of some questions replaced by its own value."""
    checkpoint, base = session.checkpoint(name)
    target = open_target(
        open_lake(session.folder / f"{name}-{dtype}-latent.lake"), f"{name}/gsm8k", checkpoint=str(checkpoint),
        base=str(base), device=session.device, limit=32,
    )  # fmt: skip
    for site in ("latent_embedding", "hidden_state"):
        settings = CorruptSettings(site=site, corruptions=("zero",))  # type: ignore[arg-type]
        patched_by_itself(session, f"{name} {dtype} reentry", site, corrupt(target, settings))


def patched_by_itself(session: Session, title: str, what: str, result: Any) -> None:
    """How far a run moves that is patched with its own values."""
    control = result["control"].values.astype(str)
    for index in [index for index, each in enumerate(control) if each.startswith("self")]:
        moved = np.nanmax(np.abs(result["answer_logprob"].values[index, 0] - result["answer_logprob"].values[0, 0]))
        texts = int((result["generated_text"].values[index] != result["generated_text"].values[0]).sum())
        session.say(title, f"{what}: {result['condition'].values[index]}",
            f"log p moves {moved:.2g} nat, KL {np.nanmax(result['kl'].values[index]):.2g},"
            f" {texts} of {result.sizes['example']} texts")  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def resumed(session: Session) -> None:
    """Killed after some shards and given again, in processes of their own: the bytes of an uninterrupted run."""
    checkpoint, base = session.checkpoint("gpt2")
    whole, cut = session.folder / "whole.lake", session.folder / "cut.lake"
    words = [str(word) for word in (
        sys.executable, "-m", "lake", "extract", "--model", f"gpt2={checkpoint}", "--base", base, "--data",
        f"gsm8k={session.options.data}", "--limit", 64 if session.options.tiny else 384, "--memory", "0.3",
        "--batch-size", "32", "--max-new-tokens", N_NEW, "--device", session.device, "--skip-long", "--lake",
    )]  # fmt: skip
    subprocess.run([*words, str(whole)], check=True, capture_output=True)
    first = subprocess.Popen([*words, str(cut)], stdout=subprocess.DEVNULL)
    marks = cut / "gpt2" / "gsm8k" / "committed" / "c"
    while first.poll() is None and not (marks.is_dir() and len(list(marks.iterdir())) >= 2):
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    n_shard = len(list(marks.iterdir()))
    if session.cuda:  # another name of the same card
        words[words.index(session.device)] = "cuda:0"
    again = subprocess.run([*words, str(cut)], capture_output=True, text=True)
    session.say("resume", f"{n_shard} shards when killed; given again", (again.stdout + again.stderr).splitlines()[0])
    a, b = hashes(whole), hashes(cut)
    other = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    session.say("resume", "files that differ", f"{len(other)} of {len(a)} {other[:4]}", "0")


def small_models(session: Session) -> None:
    """The shipped models: right answers, patched with themselves, and beside a CPU."""
    problems = session.folder / "problems"
    run_lake("problems", "--out", problems)
    data = str(problems / "pairs.json")
    for model in ("small-gpt2", "small-llama"):
        for dtype in ("float32", "bfloat16"):
            place = session.folder / f"{model}-{dtype}.lake"
            spec = RunSpec(compute_dtype=dtype, device=session.device, batch_size=64, max_new_tokens=8, limit=200)  # type: ignore[arg-type]
            done = extract(prepare(model, data, place, spec), place)
            session.say("small", f"{model} {dtype} right", f"{done.n_correct} of {done.n_committed}")
            target = open_target(
                open_lake(place),
                f"{model}/pairs",
                device=session.device,
                compute_dtype=dtype,  # type: ignore[arg-type]
            )
            patched = patch(target, PatchSettings(sites=("latent_embedding",), subsets="none"))
            patched_by_itself(session, "small", f"{model} {dtype}", patched)
        place = session.folder / f"{model}-cpu.lake"
        extract(prepare(model, data, place, replace(spec, device="cpu", compute_dtype="float32")), place)
        here, there = (
            open_lake(session.folder / f"{model}-{kind}.lake").open(f"{model}/pairs", chunks=None).load()
            for kind in ("cpu", "float32")
        )
        for key in ("hidden_state", "latent_embedding", "attention"):
            a, b = here[key].values.astype("f8"), there[key].values.astype("f8")
            apart = float(np.nanmax(np.abs(a - b)) / np.nanmax(np.abs(a)))
            session.say("small", f"{model}: {key} beside a CPU's, float32", apart, "rounding of float16")
        other = int((here["generated_text"].values != there["generated_text"].values).sum())
        session.say("small", f"{model}: other texts than a CPU's", other, "0")


def small_card(session: Session) -> None:
    """A card that is too small: batches are halved, and the run goes on."""
    if not session.cuda:
        return
    place = session.folder / "small-card.lake"
    prepared = session.ready("gpt2", "full", "float32", place, 64)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 1.2e9) / total)
    what = "with 1.2 GB beside the weights"
    try:
        done = extract(prepared, place)
        text = f"{done.n_committed}, {done.most_rows}"
        session.say("memory", f"{what}: examples, batches of at most", text)
    except LakeError as error:
        session.say("memory", what, f"LakeError: {error}")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
