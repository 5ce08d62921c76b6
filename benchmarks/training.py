"""What ``lake train`` and its twins reach on two small tasks: a random base, minutes on one core.

``python benchmarks/training.py --work DIR [--quick] [--protocols codi]`` makes a two-layer base of random weights and
two tasks: sums of three numbers (``3 + 4 + 5 ?``, a number) and who has more (a name). CODI is trained on the first,
Coconut on the second, each with its five controls; a fifth of the problems is held out. Every model is extracted over
these by the command line. Of those that think, all thoughts are replaced by their mean and by those of another problem.
"""

import argparse
import io
import random
from contextlib import redirect_stdout
from pathlib import Path

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import lake as command_line
from extract.small_models.network import word_tokenizer
from schemas.controls import CONTROLS
from schemas.whole_files import write_json_lines
from store import open_lake

WORDS = ["<eos>", "<unk>", *map(str, range(40)), *"+?.=:\n", "<<", ">>", "###", "The", "answer", "is", "Tom", "Anna",
         "has", "Who", "more"]  # fmt: skip
TASKS = {"codi": ("sums", 600), "coconut": ("more", 500)}


def write_base(folder: Path) -> None:
    """A LLaMA of two layers and 64 components, and a tokenizer of words and numbers."""
    split = pre_tokenizers.Split(Regex(r"\w+|###|<<|>>|\n|[^\s\w]"), behavior="removed", invert=True)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS), max_position_embeddings=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(WORDS, split).save_pretrained(folder)


def write_tasks(folder: Path) -> None:
    """Problems of both tasks, four fifths to train on."""
    rng = random.Random(0)
    sums = [
        {"question": f"{a} + {b} + {c} ?",
         "answer": f"<<{a}+{b}={a + b}>> <<{a + b}+{c}={a + b + c}>> #### {a + b + c}"}
        for a in range(8) for b in range(8) for c in range(8)
    ]  # fmt: skip
    more = [
        {"question": f"Tom has {a} + {b}. Anna has {c}. Who has more?", "answer": "Tom" if a + b > c else "Anna",
         "steps": [f"Tom has {a + b}.", f"{'Tom' if a + b > c else 'Anna'} has more."]}
        for a in range(8) for b in range(8) for c in range(16) if a + b != c
    ]  # fmt: skip
    for name, rows in (("sums", sums), ("more", more)):
        rng.shuffle(rows)
        cut = len(rows) * 4 // 5
        for part, some in (("train", rows[:cut]), ("test", rows[cut:])):
            write_json_lines(folder / f"{name}-{part}.jsonl", some)


def lake(*words: object) -> None:
    """Run a command of ``lake``, in this process: starting one takes longer than extracting so small a model."""
    try:
        with redirect_stdout(io.StringIO()):
            command_line.main([str(word) for word in words])
    except SystemExit as ended:
        if ended.code:
            raise


def measure(work: Path, name: str, task: str) -> None:
    """Print accuracy of a trained model on what was held out, and what its thoughts being replaced costs."""
    place = work / f"{task}.lake"
    lake("extract", "--model", f"{name}={work / name}", "--data", work / f"{task}-test.jsonl", "--lake", place,
         "--dtype", "float32", "--max-new-tokens", 32, "--batch-size", 64)  # fmt: skip
    opened, run = open_lake(place), f"{name}/{task}-test"
    right = opened[run]["correct"].values
    line = f"{name:24s} {task}: {right.mean():.3f} of {len(right)}"
    if opened[run].sizes.get("latent", 0):
        lake("reenter", "corrupt", place, run, "--checkpoint", work / name, "--corruptions", "mean,resample")
        (made,) = [
            result for result in open_lake(place).results() if result.kind == "corrupt" and result.runs == (run,)
        ]
        accuracy = open_lake(place).open_result(made.name).sel(stratum="all")["accuracy"]
        for operation in ("mean", "resample"):
            line += f", {operation} {float(accuracy.sel(condition=f'{operation} all latent_embedding -1')):.3f}"
    print(line, flush=True)


def main() -> None:
    """Make, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="40 steps of every training instead of 600 and 500")
    parser.add_argument("--protocols", nargs="+", choices=list(TASKS), default=list(TASKS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    write_base(given.work / "base")
    write_tasks(given.work)
    for protocol in given.protocols:
        task, steps = TASKS[protocol]
        lake("train", "--base", given.work / "base", "--data", given.work / f"{task}-train.jsonl", "--validation",
             given.work / f"{task}-test.jsonl", "--protocol", protocol, "--twins", ",".join(CONTROLS), "--thoughts", 2,
             "--lora-rank", 64, "--lora-alpha", 64, "--learning-rate", 3e-3, "--steps", 40 if given.quick else steps,
             "--out", given.work / protocol)  # fmt: skip
        for kind in ("", *(f"-{kind}" for kind in CONTROLS)):
            measure(given.work, f"{protocol}{kind}", task)


if __name__ == "__main__":
    main()
