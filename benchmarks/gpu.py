"""Everything that wants a GPU, checked and measured in one go; docs/gpu.md is its guide.

    python benchmarks/gpu.py [--data train.jsonl] [--oracle oracle.py] [--seconds 600] [--json gpu.json]

Models of the released ones' sizes with random weights are made on the spot; nothing is fetched. Every part is timed;
one that fails is named and the next goes on; one for which no time is left is said to be skipped. A table comes last.
``--device cpu --tiny`` tries the script itself where there is no GPU. What is checked is in ``gpu_checks.py``, what is
measured in ``gpu_timings.py``.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gpu_checks as checks
import gpu_timings as timings
import torch
from extraction import write_questions
from gpu_session import Session


def parts(options: argparse.Namespace) -> Iterator[tuple[str, float, Callable[[Session], None]]]:
    """Names, seconds that each may need, and what it does; later ones read the lakes of earlier ones."""
    yield "oracle", 30, checks.oracle
    yield "rates", 15, timings.rates
    for name in ("gpt2", "llama"):
        for dtype in ("float32", "bfloat16"):
            for capture, n in (("latent", options.latent), ("full", options.full)):
                yield f"{name} {dtype} {capture}", 20, partial(timings.extraction, name, dtype, capture, n)
            yield f"{name} {dtype} recompute", 10, partial(checks.recomputed, name, dtype)
            yield f"{name} {dtype} reentry", 20, partial(checks.reentered, name, dtype)
    yield "resume", 60, checks.resumed
    yield "small", 60, checks.small_models
    yield "sweep", 30, partial(timings.sweep, "")
    yield "sweep gpt2", 30, partial(timings.sweep, "gpt2")
    yield "memory", 15, checks.small_card


def main() -> None:
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
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here: nothing was measured; --device cpu --tiny tries the script")
        return
    with tempfile.TemporaryDirectory(prefix="lake-gpu-", ignore_cleanup_errors=True) as folder:
        session = Session(options=options, folder=Path(folder))
        if options.data is None:
            options.data = write_questions(session.folder / "questions.jsonl", max(options.latent, options.full))
        session.share_models()
        versions = f"{sys.version.split()[0]}, {torch.__version__}, {os.cpu_count()}"
        session.say("machine", "python, torch, cores", versions)
        if session.cuda:
            gib = torch.cuda.get_device_properties(0).total_memory / 2**30
            card = f"{torch.cuda.get_device_name()}, {gib:.0f} GiB, {torch.backends.cuda.matmul.allow_tf32}"
            session.say("machine", "GPU, memory, TF32", card)
        for name, needs, work in parts(options):
            session.attempt(name, needs, work)
        session.table()


if __name__ == "__main__":
    main()
