"""Two workers beside one: long analyses of a lake of GPT-2's sizes, whole commands by the clock.

    python benchmarks/workers.py LAKE [ANALYSIS]...

LAKE is one of ``sizes.py --keep gpt2``. Each command runs with ``--workers 1`` and then with ``--workers 2``, on one
thread a worker, its start and the trial behind its plan included, which no worker shares: of a longer run they are
less. What both print must be the same, or nothing is kept. Runs of one command differ: traces' ratio was 1.69 and
1.81, transfer's over three layers between 1.31 and 1.94.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import results

RUN, OTHER = "gpt2/gsm8k", "gpt2-other/gsm8k"
LINES: dict[str, list[str]] = {
    "lens": [RUN, "--limit", "600"],
    "depth": [RUN, "--limit", "1000"],
    "traces": [RUN],
    "probes": [RUN, "--layers", "0,3,6,9,11"],
    "attribution": [OTHER, "--limit", "2500"],
    "geometry": [RUN],
    "transfer": [RUN, OTHER],
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def taken(lake: str, name: str, workers: int) -> tuple[float, str]:
    """Seconds of a command, and what it prints."""
    words = ["analyze", name, lake, *LINES[name], "--workers", str(workers), "--json"]
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("lake")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake")
    parser.add_argument("analyses", nargs="*", default=[*LINES])
    given = parser.parse_args()
    text = __doc__.partition("\n\n")[2].partition("\n\n")[2]
    command = "python benchmarks/workers.py gpt2.lake"
    for name in given.analyses:
        (one, printed), (two, again) = (taken(given.lake, name, workers) for workers in (1, 2))
        if printed != again:
            sys.exit(f"{name}: two workers print something else than one")
        options = " ".join(LINES[name])
        row = {"analysis": name, "of": options, "one, s": one, "two, s": two, "times": one / two}
        print(row, flush=True)
        results.keep("workers", "Two workers beside one", [row], text=text, command=command, by=["analysis"])


if __name__ == "__main__":
    main()
