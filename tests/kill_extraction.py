"""Script of test_extract_run: extract in processes that are killed again and again, until the lake is finished.

Loaded once, then forked for every attempt. ``kill_extraction.py OUT DATA N_LAKE SEED`` prints the number of kills.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from small_runs import prepared_run

from extract.run.extract import code_fingerprint, extract


def attempt(lake: Path, data: Path, chance: random.Random, n_write: int, longest: float) -> bool:
    """Extract in a process that may be killed, at a moment or at a write; true if it was."""
    prepared = prepared_run(lake, data, shard_examples=2)
    by_write = chance.random() < 0.6
    fatal, after = chance.randrange(n_write), chance.random() < 0.5
    delay = chance.random() * longest
    child = os.fork()
    if child == 0:
        replace, count = Path.replace, 0

        def replace_or_die(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            fate = by_write and count == fatal + 1
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
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("an attempt failed")
    return os.WIFSIGNALED(status)


def main() -> None:
    out, data, n_lake, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    chance = random.Random(seed)
    prepared = prepared_run(out / "whole.lake", data, shard_examples=2)
    code_fingerprint()  # once, so that an edit of the code meanwhile makes no difference
    begin = time.perf_counter()
    if (child := os.fork()) == 0:
        extract(prepared, out / "whole.lake")
        os._exit(0)
    os.waitpid(child, 0)
    whole = time.perf_counter() - begin
    # Shards are committed one by one, but what comes before the first is made at once: kills must fall after it too.
    n_write = sum(path.is_file() for path in (out / "whole.lake").rglob("*"))
    kills = 0
    for index in range(n_lake):
        longest = whole / 2
        while attempt(out / f"{index}.lake", data, chance, n_write // 3, longest):
            longest *= 1.2  # another process may have taken the machine since the whole was timed
            kills += 1
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main()
