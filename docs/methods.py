"""What each method says of thoughts whose truth is known: hits and false alarms, on models trained to use them or not.

    python docs/methods.py                      # writes docs/methods.json; then: make docs
    python docs/methods.py --models small-gpt2  # measures some and keeps the others

A seed draws the problems and pairs (from those that no training saw) and decides what is resampled, which noise is
added and how problems are halved. The weights are the shipped ones, of one training each.
"""

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyze.verdict.rules import ALL, APART, READABLE, USED
from analyze.verdict.verdicts import verdict
from extract.small_models.graph_problems import write_graph_problems
from extract.small_models.problems import make_pairs, make_splits, write_pairs, write_problems
from lake import app
from schemas import UsageError
from store import open_lake

torch.set_num_threads(1)
OUT = Path(__file__).parent / "methods.json"
SEEDS = (0, 1, 2)
N_PROBLEM, N_PAIR, LIMIT = 180, 90, 120
N_OTHER, STEPS = 1800, 1500
"""Problems and steps that a decoder is trained on."""
THOUGHTS = tuple(f"ct{index}" for index in range(6))
TRUTH: dict[str, dict[str, bool]] = {
    **{name: {"ct1": True, "ct3": True, "ct5": True, ALL: True} for name in ("small-gpt2", "small-llama")},
    **{
        f"{name}-{ending}": dict.fromkeys((*THOUGHTS, ALL), False)
        for name in ("small-gpt2", "small-llama")
        for ending in ("decodable", "pause")
    },
    "small-graph": dict.fromkeys(("ct0", "ct1", "ct2", ALL), True),
    "small-graph-pause": dict.fromkeys(("ct0", "ct1", "ct2", ALL), False),
}
"""Whether the answer was trained to follow what a thought holds. Where training decided nothing (operators of the
models that use their numbers) there is no truth to be hit. A method that speaks of heads is held against the truth of
all thoughts: it says that they are used where it says that any head at them is needed."""


def commands(model: str, seed: int) -> Iterator[str]:
    """What is run on a model's lake, as typed."""
    words = f"--limit {LIMIT} --seed {seed}"
    yield f"analyze lens LAKE {model}/test"
    yield f"analyze traces LAKE {model}/test"
    if seed == SEEDS[0]:
        # of other problems, so that it is asked of all that the other methods are
        yield f"extract --model {model} --data DATA/others.jsonl --lake LAKE --limit {N_OTHER}"
        yield f"reenter decode LAKE {model}/others --train DATA/decoder --steps {STEPS}"
        yield f"reenter decode LAKE {model}/test --decoder DATA/decoder/{model}/others"
    yield f"analyze heads LAKE {model}/test"
    if not model.startswith("small-graph"):
        yield (
            f"analyze probes LAKE {model}/test --target intermediate_result --layers 1 --controls 1 --seed {seed}"
            f" --positions bot,{','.join(THOUGHTS)}"
        )
        yield f"reenter edit LAKE {model}/test --doses 1 --methods donor --seed {seed}"
        yield f"reenter subspace LAKE {model}/test --subspaces leace --ranks 8 --draws 1 --seed {seed}"
    yield f"reenter corrupt LAKE {model}/test {words} --corruptions 'zero,mean,noise 1,resample'"
    yield f"reenter edges LAKE {model}/test {words}"
    yield f"reenter heads LAKE {model}/test {words} --counts 1 --draws 0"
    yield f"reenter attribute LAKE {model}/pairs --exact 128 --random 1 --seed {seed}"
    yield f"reenter patch LAKE {model}/pairs --sites latent_embedding --subsets none --seed {seed}"


def write_data(model: str, seed: int, folder: Path) -> None:
    """Problems and pairs of a seed, ``test.jsonl``, ``others.jsonl`` and ``pairs.json``, that no training saw."""
    if model.startswith("small-graph"):
        # of more than 10^18, drawn anew for each training
        for written, wanted in zip(
            write_graph_problems(folder, n_pair=N_PAIR, seed=seed), ("test.jsonl", "pairs.json"), strict=True
        ):
            written.rename(folder / wanted)
        others, *_ = write_graph_problems(folder, n_problem=N_OTHER, n_pair=1, seed=seed + len(SEEDS))
        others.rename(folder / "others.jsonl")
        return
    rng = np.random.default_rng([seed, 4])
    held_out, pairs = make_splits(0, {"test": {2: 667, 3: 667, 4: 666}})["test"], make_pairs()
    drawn = [held_out[index] for index in rng.permutation(len(held_out))]
    write_problems(drawn[:N_PROBLEM], folder / "test.jsonl")
    write_problems(drawn[N_PROBLEM:][:N_OTHER], folder / "others.jsonl")
    write_pairs([pairs[index] for index in rng.permutation(len(pairs))[:N_PAIR]], folder / "pairs.json")


def lake_command(words: str, folder: Path) -> None:
    """Run a command of ``lake`` in this process."""
    typed = [word.replace("LAKE", str(folder / "one.lake")).replace("DATA", str(folder)) for word in shlex.split(words)]
    with contextlib.redirect_stdout(io.StringIO()):
        app.main(typed, prog_name="lake", standalone_mode=False)


def measure(model: str, seed: int) -> list[dict[str, Any]]:
    """What every method says of every thought of a model, on the problems of one seed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(model, seed, folder)
        for data, limit in (("test.jsonl", N_PROBLEM), ("pairs.json", 2 * N_PAIR)):
            lake_command(f"extract --model {model} --data DATA/{data} --lake LAKE --limit {limit}", folder)
        for words in commands(model, seed):
            try:
                lake_command(words, folder)
            except UsageError as error:  # as no pair of a model that guesses is answered rightly twice
                print(f"{model}, seed {seed}, left out: {error}")
        result = verdict(open_lake(folder / "one.lake"), f"{model}/test", [], by="fed")
    rows = []
    for place in range(result.sizes["evidence"]):
        row = {str(key): value[place].item() for key, value in result.variables.items() if value.dims == ("evidence",)}
        if row["of_question"] in (READABLE, USED) or row["method"] in APART:
            kept = ("of_thought", "of_question", "method", "says", "n", "value", "low", "high")
            rows.append({"model": model, "seed": seed} | {key: row[key] for key in kept})
    for place in range(result.sizes["row"]):
        if str(result["question"].values[place]) == USED:
            says = {"says": str(result["verdict"].values[place]), "method": "verdict", "of_question": USED}
            rows.append({"model": model, "seed": seed, "of_thought": str(result["thought"].values[place])} | says)
    return rows


def weights_of(model: str) -> str:
    """Digest of the shipped weights."""
    folder = Path(__file__).parent.parent / "extract" / "checkpoints" / model
    (file,) = [path for path in folder.iterdir() if path.suffix in (".bin", ".safetensors")]
    return sha256(file.read_bytes()).hexdigest()


def main() -> None:
    """Measure, and write what was measured beside this file."""
    parser = argparse.ArgumentParser(description="Hits and false alarms of every method on models of known truth.")
    shipped = Path(__file__).parent.parent / "extract" / "checkpoints"
    there = [name for name in TRUTH if (shipped / name).is_dir()]
    parser.add_argument("--models", nargs="*", default=there, choices=there)
    arguments = parser.parse_args()
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"rows": [], "weights": {}}
    for model in arguments.models:
        rows = [row for seed in SEEDS for row in measure(model, seed)]
        known["rows"] = [row for row in known["rows"] if row["model"] != model] + rows
        known["weights"][model] = weights_of(model)
        known["truth"] = {name: truth for name, truth in TRUTH.items() if name in known["weights"]}
        known["sizes"] = {"problems": N_PROBLEM, "changed": LIMIT, "pairs": N_PAIR, "seeds": list(SEEDS)}
        packages = ("activation-lake", "torch", "transformers", "numpy")
        known["versions"] = {"Python": sys.version.split()[0]} | {name: version(name) for name in packages}
        OUT.write_text(json.dumps(known, separators=(",", ":")).replace("},{", "},\n{") + "\n", encoding="utf-8")
        print(f"{model}: {len(rows)} figures")


if __name__ == "__main__":
    main()
