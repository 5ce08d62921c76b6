"""How time and memory of extraction and every analysis grow with the examples: 500, 1,000, 2,000, 4,000 and 8,000.

    python benchmarks/growth.py [NAME]... [--examples 500,1000,..] [--keep DIR]

Extraction (extract latent, extract full) is of the first N made-up problems of three steps by the shipped small GPT-2,
in shards of 128 and of 64 examples, so that the fewest examples are shards enough. For the analyses two made-up runs of
small axes (3 layers, 2 heads, 32 components, 2,003 tokens) go through the store's own writer into one lake; each
analysis then reads the first N examples of it, in one process and on one thread, after a run on 50 that loads what it
needs. Where an analysis by default stops at some number of examples it is told to take all; permutations and resamples
are few, as they only multiply. geometry and similarity hold problems against each other, of which they take 300 at
most: they keep that. features, compare and verdict read what others have left: each number of examples is a lake of its
own for them, with their results. probes and stability take all examples here and not 2,000; probes hold one place's
states of them and, of each of 64 regressions that are fitted together (16 training sets, their labels and three
shuffles), some numbers of each: 5 kB of each example. errors and stability hold pieces that 500 examples do not fill,
and hardly grow from 4,000 to 8,000. traces hold what every problem tells and reads as, some 3 kB of each here (of
100,000 .3 GB), as thoughts are exchanged between problems; sae holds its states, up to a buffer of 256 MB that these do
not fill, and some megabytes of codes.

exponent   slope of log seconds of processor over log examples: at most 1.05 is in proportion. What does not depend on
           the examples flattens it, so that the last doubling stands beside it: the slope from the last but one number.
memory     peak of the process during the run, against that with the fewest examples.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import results
import sizes

ROOT = Path(__file__).parents[1]
RUN, OTHER = "small/gsm8k", f"small{sizes.OTHER}/gsm8k"
FEW = ["--resamples", "20"]
LINES: dict[str, list[str]] = {
    "heads": [RUN, *FEW],
    "attention": [RUN, *FEW],
    "lens": [RUN],
    "depth": [RUN, *FEW],
    "traces": [RUN, "--permutations", "2"],
    "attribution": [RUN, *FEW],
    "correlate": [RUN, *FEW, "--permutations", "20"],
    "probes": [RUN, *FEW, "--permutations", "0", "--max-examples", "0", "--layers", "2", "--positions", "ct1,ct3"],
    "sae": [RUN, "--features", "128"],
    "errors": [RUN],
    "geometry": [RUN, "--resamples", "5", "--shuffles", "2"],
    "similarity": [RUN, OTHER, *FEW, "--permutations", "5"],
    "stability": [RUN, OTHER, *FEW, "--shuffles", "20", "--max-examples", "0"],
    "transfer": [RUN, OTHER, *FEW, "--permutations", "0", "--layers", "2", "--positions", "ct1,ct3"],
}
"""Analyses in an order in which what one leaves is there for the next."""
EXTRACTED = {"extract latent": "latent", "extract full": "full"}
"""What is extracted."""
EXTRACT = ["--model", "small=small-gpt2", "--data", "problems.jsonl", "--dtype", "float32", "--memory", "0.04"]
READERS: dict[str, list[str]] = {
    "features": [RUN, *FEW, "--permutations", "20"],
    "verdict": [RUN],
    "compare": [RUN, OTHER, *FEW],
}
"""Analyses of what others leave, which take no number of examples."""
LEFT: dict[str, list[str]] = {
    "sae": [RUN, "--features", "128", "--epochs", "2", "--sample", "0"],
    "errors": [RUN, *FEW],
    "heads": [RUN, OTHER, *FEW],
    "attention": [RUN, OTHER, *FEW],
    "lens": [RUN, OTHER],
    "probes": [*LINES["probes"][:1], OTHER, *LINES["probes"][1:]],
    "traces": LINES["traces"],
}
"""What is made first for them."""
AXES = {"n_layer": 3, "n_head": 2, "hidden": 32, "longest_question": 40}


def write(place: Path, n_example: int) -> None:
    """A lake of so many examples."""
    for seed, name in enumerate(("small", f"small{sizes.OTHER}")):
        sizes.write_lake(place, name, n_example, "float32", seed=seed, parts=True)


def words_of(name: str, place: str, n: int) -> list[str]:
    """The command that takes n examples."""
    if name in EXTRACTED:
        return ["extract", *EXTRACT, "--capture", EXTRACTED[name], "--lake", place, "--limit", str(n)]
    return ["analyze", name, place, *(READERS[name] if name in READERS else [*LINES[name], "--limit", str(n)])]


def write_with_results(place: Path, n_example: int) -> None:
    """A lake of so many examples, and in it what :data:`READERS` read."""
    from lake import app

    write(place, n_example)
    for name, words in LEFT.items():
        quietly(app, ["analyze", name, str(place), *words])


def child(lake: str, name: str, numbers: list[int]) -> None:
    """Seconds of processor and peak bytes at each number of examples, as JSON; ``lake`` may have the number in it."""
    from lake import app

    taken = []
    for n in [numbers[0] if name in READERS else 50, *numbers]:
        place = lake.format(n)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the run before has let go
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start = time.process_time()
        quietly(app, words_of(name, place, n))
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
        taken.append({"n": n, "seconds": time.process_time() - start, "peak": peak})
    print(json.dumps(taken[1:]))


def quietly(app: Callable[..., Any], words: list[str]) -> None:
    """Run a command that prints into nothing."""
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
        app(args=words, standalone_mode=False)


def slope(taken: list[dict[str, Any]]) -> float:
    """Of log seconds over log examples, by least squares."""
    x, y = ([math.log(one[key]) for one in taken] for key in ("n", "seconds"))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def row(name: str, taken: list[dict[str, Any]]) -> dict[str, Any]:
    """What extraction or an analysis took."""
    seconds = {f"s at {one['n']:,}": one["seconds"] for one in taken}
    peaks = [one["peak"] / 1e6 for one in taken]
    growth = {"exponent": slope(taken), "last doubling": slope(taken[-2:])}
    return {"what": name, **seconds, **growth, "MB": peaks, "memory": peaks[-1] / peaks[0]}


def main() -> None:
    sizes.MODELS["small"] = AXES
    sizes.VOCABULARY["small"], sizes.NORM["small"] = 2003, "layer_norm"
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], [int(word) for word in sys.argv[4].split(",")])
        return
    from extract.small_models.problems import make_splits, write_problems

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*EXTRACTED, *LINES, *READERS])
    parser.add_argument("--examples", default="500,1000,2000,4000,8000")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    given = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    rows, numbers = [], [int(word) for word in given.examples.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        write_problems(make_splits(0, {"test": {3: max(numbers)}})["test"], Path(folder) / "problems.jsonl")
        place = (given.keep or Path(folder)).absolute() / "small.lake"
        if not place.exists() and set(given.names) & set(LINES):
            write(place, max(numbers))
        for n in numbers if set(given.names) & set(READERS) else ():
            if not (one := place.with_name(f"small-{n}.lake")).exists():
                write_with_results(one, n)
        for name in given.names:
            lake = place if name in LINES else place.with_name("small-{}.lake")
            if name in EXTRACTED:
                lake = Path(folder) / f"{EXTRACTED[name]}-{{}}.lake"
            words = [sys.executable, __file__, "--child", str(lake), name, given.examples]
            done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            rows.append(row(name, json.loads(done.stdout.splitlines()[-1])))
            print(json.dumps(rows[-1]), flush=True)
    text = __doc__.partition("\n\n")[2].partition("\n\n")[2]
    results.keep("growth", "Growth of extraction and every analysis with the examples", rows, text=text, by=["what"])


if __name__ == "__main__":
    main()
