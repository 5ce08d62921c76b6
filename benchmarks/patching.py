"""Patching every thought at every layer beside TransformerLens and nnsight, the same values at the same cells.

    python benchmarks/patching.py [MODEL ..] [--examples N] [--rounds N]

small-gpt2  The model that comes with the project, at both of its layers; 64 questions.
gpt2        Random weights of GPT-2's sizes (124M), at two layers of the twelve; 16 questions.

Into the state after one block at one thought goes that of another problem; then the model thinks on and answers. The
latent loop of the others is written by hand around their passes, with their key-value cache and all questions in one
batch, one condition after the other, as both document it. A sweep of this project shares what lies before the thought
among all conditions and goes on with all of them in one batch, which each joins at its thought. It also scores the gold
answer, and need not write it where that is what would be written; random weights never do, and there answers alone take
four fifths of its time. All must write the same answers, which is checked first.
"""

import argparse
import json
import tempfile
from pathlib import Path

from beside.sides import OURS, Side, compared, peers_python, take_turns, versions
from checkpoints import GPT2, write_checkpoint
from extraction import NAMES_OF, write_questions
from results import keep, paragraph

from extract.small_models.problems import make_splits, write_problems

EXAMPLES = {"small-gpt2": 64, "gpt2": 16}
LAYERS = {"small-gpt2": [0, 1], "gpt2": [3, 9]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", choices=[*EXAMPLES, []], help="all if none is named")
    parser.add_argument("--examples", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for model in arguments.model or EXAMPLES:
        compare(model, arguments.examples or EXAMPLES[model], arguments.rounds)


def compare(model: str, n: int, rounds: int) -> None:
    """Patch ``n`` questions of one model, so many rounds."""
    with tempfile.TemporaryDirectory() as place:
        folder, python = Path(place), peers_python()
        data, name, base = folder / "problems.jsonl", model, ""
        if model == "gpt2":
            checkpoint, base = map(str, write_checkpoint(folder, "gpt2", GPT2, write_questions(data, n)))
            name = f"m={checkpoint}"
        else:
            write_problems(make_splits(0, {"train": {}, "validation": {}, "test": {4: n}})["test"], data)
        settings = json.dumps({"batch_size": n, "max_new_tokens": 10})
        ours = Side("this_sweep.py", name, base, data, settings, folder / "x.lake", *LAYERS[model])
        (folder / "job").mkdir()
        ours("job", out=str(folder / "job"), n_answer=10)
        patches = str(folder / "patches.npz")
        ours("patches", out=patches)
        others = {
            "TransformerLens, run_with_hooks": Side("transformer_lens_.py", folder / "job", python=python, path=""),
            "nnsight, trace": Side("nnsight_.py", folder / "job", python=python, path=""),
        }
        texts = ours("patched")["value"]
        for who, side in others.items():
            written = ours("decode", tokens=side("patched", patches=patches)["value"])["value"]
            same = sum(
                a == b for one, other in zip(texts, written, strict=True) for a, b in zip(one, other, strict=True)
            )
            if same < 0.999 * len(texts) * n:
                pair = f"{texts[0][0]!r}, not {written[0][0]!r}"
                raise SystemExit(f"{who} wrote other answers in {len(texts) * n - same} of {len(texts) * n}: {pair}")
        works = {OURS: lambda: ours("patched")}
        works |= {who: lambda side=side: side("patched", patches=patches) for who, side in others.items()}
        rows = compared(take_turns(works, rounds))
        for side in (ours, *others.values()):
            side.end()
    called = NAMES_OF.get(model, model)
    keep(
        f"patching-{model}", f"Patching thoughts of {called}", rows,
        text=f"{n} questions, {len(texts)} cells (layer, thought). {paragraph(__doc__, 3)}",
        versions=versions(python, "transformer-lens", "nnsight"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
