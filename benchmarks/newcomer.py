"""What a newcomer waits for and has to store: size of the environment, and time until the first word.

    python benchmarks/newcomer.py [--rounds N]

A package's environment is all that it requires, and what that requires in turn, extras left out; bytes are those of the
files that the packages list, as they lie installed (torch built for processors). Everybody's torch is the same. The
first word: of this project ``lake --help``, as it has a command; of all, importing the
package, with ``python -c``; of this one what reads a lake, scores heads and loads a model, as it imports such lazily.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from beside.sides import ROOT, peers_python, take_turns
from results import keep

CLOSURE = """
import importlib.metadata as metadata, json, sys
from packaging.requirements import Requirement
waiting, seen, size = [sys.argv[1]], {}, 0
while waiting:
    name = waiting.pop().lower().replace("_", "-")
    if name in seen:
        continue
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    paths = [file.locate() for file in found.files or []]
    seen[name] = sum(path.stat().st_size for path in paths if path.is_file())
    wanted = map(Requirement, found.requires or [])
    waiting += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
print(json.dumps({"packages": len(seen), "bytes": sum(seen.values()), "torch": seen.get("torch", 0)}))
"""
WHO = (
    (
        "this project",
        "activation-lake",
        "from store import open_lake; from analyze import head_scores; from extract import load_reasoner",
        sys.executable,
    ),
    ("TransformerLens", "transformer-lens", "import transformer_lens", "models"),
    ("nnsight", "nnsight", "import nnsight", "models"),
    ("captum", "captum", "import captum.attr", "models"),
    ("SAELens", "sae-lens", "import sae_lens", "sae"),
    ("dictionary_learning", "dictionary-learning", "import dictionary_learning", "sae"),
    ("sparsify", "eai-sparsify", "import sparsify", "sae"),
)


def timed(words: list[str]) -> dict[str, Any]:
    """Seconds of a command, by the clock and of processors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT) if words[0] == sys.executable else "", "HF_HUB_OFFLINE": "1"}
    clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": time.perf_counter() - clock, "processor": processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    works, sizes = {"lake --help": [sys.executable, "-m", "lake", "--help"]}, {}
    for who, package, code, kind in WHO:
        python = kind if Path(kind).is_file() else peers_python(kind)
        done = subprocess.run([python, "-c", CLOSURE, package], capture_output=True, text=True, check=True)
        sizes[who] = json.loads(done.stdout)
        works[who] = [python, "-c", code]
    times = take_turns({who: partial(timed, words) for who, words in works.items()}, rounds)
    rows = [
        {
            "who": who,
            "packages": sizes[who]["packages"] if who in sizes else None,
            "MB": sizes[who]["bytes"] / 1e6 if who in sizes else None,
            "MB without torch": (sizes[who]["bytes"] - sizes[who]["torch"]) / 1e6 if who in sizes else None,
            "first word, s of processors": [each["processor"] for each in done],
            "first word, s by the clock": [each["clock"] for each in done],
        }
        for who, done in times.items()
    ]
    keep("newcomer", "A newcomer's environment and start", rows, text=" ".join(__doc__.split("\n\n")[2].split()))


if __name__ == "__main__":
    main()
