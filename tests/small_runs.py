"""Small extraction runs for several test files: questions, a small model, and the bytes of a lake."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codi_models import ORACLE

from extract.run.extract import prepare
from extract.run.prepare import Prepared
from schemas import RunSpec

torch.set_num_threads(1)  # these models are too small for more, and tests share the machine

NAMES = ("Ann", "Bo", "Cy", "Di", "Ed")
THINGS = ("apples", "red pens", "old books", "small green marbles", "cups of tea")


def write_questions(path: Path, n: int, *, seed: int = 0) -> Path:
    """``n`` questions of one to three sentences, with written chains."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n):
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        start, *more = rng.integers(2, 40, rng.integers(2, 5)).tolist()
        text, chain, total = [f"{name} has {start} {thing}."], [], start
        for each in more:
            text.append(f"{name} buys {each} more.")
            chain.append(f"<<{total}+{each}={total + each}>>")
            total += each
        question = " ".join([*text, f"How many {thing} does {name} have?"])
        lines.append(json.dumps({"question": question, "answer": f"{' '.join(chain)} #### {total}"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def checkpoint(architecture: str) -> tuple[str, str]:
    """Checkpoint and base folder of a small random model."""
    return str(ORACLE / f"codi-{architecture}"), str(ORACLE / f"base-{architecture}")


def prepared_run(
    lake: Path | str,
    data: Path,
    *,
    architecture: str = "gpt2",
    shard_examples: int | None = None,
    name: str = "toy",
    rebuild_static: bool = False,
    **spec: Any,
) -> Prepared:
    """A run of a small random model, ready for ``extract``."""
    folder, base = checkpoint(architecture)
    settings = RunSpec(**{"max_new_tokens": 3, "batch_size": 4, **spec})
    return prepare(
        f"{name}={folder}", str(data), lake, settings, base=base, shard_examples=shard_examples,
        rebuild_static=rebuild_static,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def uncommit(run: Path, shard: int) -> None:
    """Leave a shard as a writer does that is killed before the shard counts: files, but neither record nor mark."""
    (run / "committed" / "c" / str(shard)).unlink()
    shutil.rmtree(run / "record" / "sha256" / "c" / str(shard))
    for part in ("size", "crc32c", "row_crc32c"):
        shutil.rmtree(run / "record" / part / "c" / str(shard))
