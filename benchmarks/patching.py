"""Patching every thought at every layer beside TransformerLens and nnsight, the same values at the same cells.

    python benchmarks/patching.py [--model small-gpt2] [--examples N] [--rounds N]

Into the state after one block at one thought goes that of another problem; then the model thinks on and answers. The
latent loop of the others is written by hand around their passes, with their key-value cache and all questions in one
batch, one condition after the other, as both document it. A sweep of this project shares what lies before the thought
among all conditions and goes on with all of them in one batch; it also scores the gold answer. All must write the same
answers, which is checked first. With 16 questions, in another run,
TransformerLens took 7.4 times its processor time, nnsight 5.2.
"""

import argparse
import json
import tempfile
from pathlib import Path

from beside.sides import OURS, Side, compared, peers_python, take_turns, versions
from results import keep

from extract.small_models.problems import make_splits, write_problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small-gpt2")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, n, python = Path(place), arguments.examples, peers_python()
        data = folder / "problems.jsonl"
        write_problems(make_splits(0, {"train": {}, "validation": {}, "test": {4: n}})["test"], data)
        settings = json.dumps({"batch_size": n, "max_new_tokens": 10})
        ours = Side("this_sweep.py", arguments.model, data, settings, folder / "x.lake")
        (folder / "job").mkdir()
        ours("job", out=str(folder / "job"), n_answer=10)
        patches = str(folder / "patches.npy")
        ours("patches", out=patches)
        others = {
            "TransformerLens, run_with_hooks": Side(
                "transformer_lens_.py", folder / "job", python=peers_python(), path=""
            ),
            "nnsight, trace": Side("nnsight_.py", folder / "job", python=peers_python(), path=""),
        }
        texts = ours("patched")["value"]
        for name, side in others.items():
            written = ours("decode", tokens=side("patched", patches=patches)["value"])["value"]
            same = sum(
                a == b for one, other in zip(texts, written, strict=True) for a, b in zip(one, other, strict=True)
            )
            if same < 0.999 * len(texts) * n:
                pair = f"{texts[0][0]!r}, not {written[0][0]!r}"
                raise SystemExit(f"{name} wrote other answers in {len(texts) * n - same} of {len(texts) * n}: {pair}")
        works = {OURS: lambda: ours("patched")}
        works |= {name: lambda side=side: side("patched", patches=patches) for name, side in others.items()}
        rows = compared(take_turns(works, arguments.rounds))
        for side in (ours, *others.values()):
            side.end()
    words = " ".join(__doc__.split("\n\n")[2].split())
    text = f"{arguments.model}, {n} questions, {len(texts)} cells (layer, thought). {words}"
    keep("patching", "Patching thoughts", rows, text=text, versions=versions(python, "transformer-lens", "nnsight"))


if __name__ == "__main__":
    main()
