"""What a newcomer waits for and has to store: size of the environment, time until the first word, and to first states.

    python benchmarks/newcomer.py [--rounds N]

A package's environment is all that it requires, and what that requires in turn, extras left out; bytes are those of the
files that the packages list, as they lie installed (torch built for processors). Everybody's torch is the same. The
first word: of this project ``lake --help``, as it has a command; of all, importing the package, with ``python -c``; of
this one what reads a lake, scores heads and loads a model, as it imports such lazily. First states: a program that
loads a small GPT-2 from a folder and keeps the states after its blocks for one question, and imports what that takes;
nearly all of ours is torch and transformers. Times are of processors and by the clock.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from beside.sides import ROOT, peers_python, take_turns
from results import keep, paragraph

CLOSURE = """
import importlib.metadata as metadata, json, sys
from packaging.requirements import Requirement
waiting, seen, size = [sys.argv[1]], {}, 0
while waiting:
    name = waiting.pop().lower().replace("_", "-")
    if name in seen:
        continue
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    paths = [file.locate() for file in package.files or []]
    seen[name] = sum(path.stat().st_size for path in paths if path.is_file())
    wanted = map(Requirement, package.requires or [])
    waiting += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
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
QUESTION = "3 4 5"
STATES = {
    "this project": """
from extract import load_reasoner
reasoner = load_reasoner({folder!r}, protocol="direct")
states = reasoner.think([reasoner.encode({question!r})], capture="full", max_new_tokens=1).hidden_state
""",
    "TransformerLens": """
import transformer_lens
from transformer_lens.model_bridge import TransformerBridge
bridge = TransformerBridge.boot_transformers({folder!r}, device="cpu")
logits, cache = bridge.run_with_cache({question!r}, names_filter=lambda name: name.endswith("hook_out"))
states = [cache[f"blocks.{{layer}}.hook_out"] for layer in range(bridge.cfg.n_layers)]
""",
    "nnsight": """
from nnsight import TransformersModel
model = TransformersModel({folder!r}, task="text-generation", dispatch=True)
with model.trace({question!r}):
    states = [].save()
    for block in model.transformer.h:
        states.append(block.output)
""",
}
"""What of each gives states of a GPT-2 in a folder."""


def timed(words: list[str]) -> dict[str, Any]:
    """Seconds of a command, by the clock and of processors."""
    environment = os.environ | {"PYTHONPATH": str(ROOT) if words[0] == sys.executable else "", "HF_HUB_OFFLINE": "1"}
    clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": time.perf_counter() - clock, "processor": processor}


def write_model(folder: str) -> None:
    """A small GPT-2 with its tokenizer, as Hugging Face saves it."""
    from extract import load_reasoner

    reasoner = load_reasoner("small-gpt2")
    model: Any = reasoner.model
    model.save_pretrained(folder)
    reasoner.tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    works, sizes = {"lake --help": [sys.executable, "-m", "lake", "--help"]}, {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        for who, package, code, kind in WHO:
            python = kind if Path(kind).is_file() else peers_python(kind)
            done = subprocess.run([python, "-c", CLOSURE, package], capture_output=True, text=True, check=True)
            sizes[who] = json.loads(done.stdout)
            works[who] = [python, "-c", code]
            if who in STATES:
                works[f"{who}, states"] = [python, "-c", STATES[who].format(folder=folder, question=QUESTION)]
        times = take_turns({who: partial(timed, words) for who, words in works.items()}, rounds)
    rows = []
    for who in works:
        if who.endswith(", states"):
            continue
        size = sizes.get(who)
        row: dict[str, Any] = {
            "who": who,
            "packages": size and size["packages"],
            "MB": size and size["bytes"] / 1e6,
            "MB without torch": size and (size["bytes"] - size["torch"]) / 1e6,
        }
        for what, title in ((who, "first word"), (f"{who}, states", "first states")):
            for key, unit in (("processor", "s of processors"), ("clock", "s by the clock")):
                row[f"{title}, {unit}"] = [done[key] for done in times[what]] if what in times else None
        rows.append(row)
    keep("newcomer", "A newcomer's environment and start", rows, text=paragraph(__doc__, 2))


if __name__ == "__main__":
    main()
