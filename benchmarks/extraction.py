"""What capturing everything costs: extraction beside plain answering, and beside a straightforward script.

Random weights in the official layout: 124M GPT-2 on a CPU, a LLaMA of the 1B's sizes on a GPU (``--device cuda``).
Every round times the same batches in turn, and the ratio is that of the round; the median round is what counts.
Extraction also scores the gold answer, which plain answering does not. What a run begins with, whatever its length
(some of its questions alone and in a batch, the model's read-out), is timed by itself and taken off.
Without a GPU the second part cannot be measured, and the script says so.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from extract.model.capture import cache_argument
from extract.run.extract import extract, prepare
from extract.run.precision import calibration
from extract.run.prepare import batches, think
from schemas import RunSpec
from store import write_model

NAMES = ("Ann", "Ben", "Cleo", "Dora", "Emil")
THINGS = ("apples", "pencils", "old books", "small green marbles", "cups of tea")


def config_of(size: str) -> Any:
    if size == "gpt2":
        return GPT2Config()
    if size == "tiny":
        sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 1000, "n_positions": 512}
        return GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
        rope_theta=500000.0, tie_word_embeddings=True,
    )  # fmt: skip


def write_checkpoint(folder: Path, size: str) -> tuple[str, str]:
    """Random weights in the official layout, and a tokenizer of words and digits; checkpoint and base folder."""
    torch.manual_seed(0)
    base, checkpoint = folder / f"base-{size}", folder / f"codi-{size}"
    base.mkdir()
    checkpoint.mkdir()
    config = config_of(size)
    vocabulary = config.vocab_size
    config.save_pretrained(base)
    words = sorted({*"0123456789.?", *(word for _, word in pieces())})
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["<eos>", *words])}, "<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(base)
    config.vocab_size = vocabulary + 3
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {f"codi.{key}": value.half() for key, value in model.state_dict().items()}
    hidden = config.hidden_size
    for key, layer in (
        ("1", nn.Linear(hidden, hidden)),
        ("3", nn.Linear(hidden, hidden)),
        ("ln", nn.LayerNorm(hidden)),
    ):
        state |= {f"prj.{key}.{name}": value for name, value in layer.state_dict().items()}
    torch.save(state, checkpoint / "pytorch_model.bin")
    return str(checkpoint), str(base)


def pieces() -> list[tuple[str, str]]:
    text = "has buys more in the morning and sells of them How many does have left The answer is " + " ".join(NAMES)
    return [("", word) for word in [*text.split(), *" ".join(THINGS).split()]]


def write_questions(path: Path, n: int) -> Path:
    """Questions of about 40 to 90 tokens, as GSM8K's."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(n):
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        text = [f"{name} has {rng.integers(10, 99)} {thing}."]
        text += [
            f"{name} buys {rng.integers(10, 99)} more {thing} in the morning and sells {rng.integers(1, 9)} of them."
            for _ in range(rng.integers(2, 5))
        ]
        question = " ".join([*text, f"How many {thing} does {name} have left?"])
        lines.append(json.dumps({"question": question, "answer": str(rng.integers(10, 99))}))
    path.write_text("\n".join(lines))
    return path


def timed(work: Callable[[], object]) -> np.ndarray:
    """Seconds by the clock, and of processors."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter() - begin, time.process_time() - used])


@torch.no_grad()
def straightforward(
    model: Any, projection: nn.Module, reasoner: Any, prompt: list[int], n_answer: int
) -> dict[str, Any]:
    """One question as scripts do it: eager attention, tuples of everything at every step."""
    device = reasoner.device
    embed = model.get_input_embeddings()
    options: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    out = model(input_ids=torch.tensor([prompt], device=device), **options)
    name = cache_argument(model)
    steps, tokens = [out], []
    options[name] = out[name]
    for _ in range(reasoner.n_latent):
        vector = projection(out.hidden_states[-1][:, -1:])
        out = model(inputs_embeds=vector, **options)
        steps.append(out)
    token = reasoner.eot_id
    for _ in range(n_answer + 1):
        out = model(inputs_embeds=embed(torch.tensor([[token]], device=device)), **options)
        steps.append(out)
        token = int(out.logits[0, -1, :-1].argmax())
        tokens.append(token)
        if token == reasoner.eos_id:
            break
    return {
        "tokens": tokens,
        "hidden_states": [[layer[0].cpu().numpy() for layer in step.hidden_states] for step in steps],
        "attentions": [[layer[0].cpu().numpy() for layer in step.attentions] for step in steps],
    }


def measure(size: str, arguments: argparse.Namespace, folder: Path) -> None:
    data = write_questions(folder / f"{size}.jsonl", arguments.questions)
    checkpoint, base = write_checkpoint(folder, size)
    spec = RunSpec(
        capture="full", batch_size=arguments.batch_size, max_new_tokens=arguments.max_new_tokens,
        device=arguments.device, compute_dtype=arguments.compute_dtype,
    )  # fmt: skip
    prepared = prepare(f"m={checkpoint}", str(data), folder / "bench.lake", spec, base=base)
    reasoner, layout = prepared.reasoner, prepared.layout
    every = [batch for shard in range(layout.n_shard) for batch in batches(prepared, shard)]

    def answer(gold: Sequence[str] | None = None) -> None:
        for batch in every:
            reasoner.think(
                [prepared.prompts[i] for i in batch],
                capture=None,
                max_new_tokens=spec.max_new_tokens,
                gold=None if gold is None else [gold[i] for i in batch],
            )

    written = 0

    def start() -> None:
        calibration(prepared)
        place = folder / f"start-{time.monotonic_ns()}.lake"
        write_model(place, prepared.model, prepared.model_arrays, prepared.model_attributes)

    def capture() -> None:
        nonlocal written
        written = extract(prepared, folder / f"bench-{time.monotonic_ns()}.lake").bytes_written

    def scripted() -> None:
        for index in chosen:
            found = straightforward(model, reasoner.projection, reasoner, prepared.prompts[index], spec.max_new_tokens)
            plain = {
                key: [[layer.tolist() for layer in step] for step in value] if key != "tokens" else value
                for key, value in found.items()
            }
            (folder / f"{index}.json").write_text(json.dumps(plain))
            (folder / f"{index}.json").unlink()

    def pickled() -> None:
        for index in chosen:
            found = straightforward(model, reasoner.projection, reasoner, prepared.prompts[index], spec.max_new_tokens)
            (folder / f"{index}.pkl").write_bytes(pickle.dumps(found))
            (folder / f"{index}.pkl").unlink()

    chosen = list(range(0, len(prepared.prompts), max(1, len(prepared.prompts) // arguments.script_questions)))
    chosen = chosen[: arguments.script_questions]
    config = config_of(size)
    config.vocab_size += 3
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=reasoner.model.dtype)
    model = model.eval().to(arguments.device)
    model.load_state_dict(reasoner.model.state_dict())
    think(prepared, every[0])
    rounds = []
    for _ in range(arguments.rounds):
        scored = timed(lambda: answer(prepared.problems.gold_answer))
        begun = timed(start)
        rounds.append([timed(answer), timed(capture) - begun, timed(scripted), timed(pickled), scored, begun])
        for lake in [*folder.glob("bench-*.lake"), *folder.glob("start-*.lake")]:
            subprocess.run(["rm", "-r", lake], check=True)
    n = len(prepared.prompts)
    each = np.array(rounds) / np.array([n, n, len(chosen), len(chosen), n, 1])[:, None]  # (round, what, clock)
    ratios = np.median(each / each[:, 1:2], axis=0)
    seconds = np.median(each, axis=0)
    tokens = statistics.mean(len(prompt) for prompt in prepared.prompts)
    print(f"{size} on {arguments.device}: full capture, {n} questions of {tokens:.0f} tokens, {len(rounds)} rounds")
    print("                            by the clock   of processors")

    def line(what: str, values: Any, bound: str = "") -> None:
        print(f"  {what:24}  {values[0]:12.3f}   {values[1]:13.3f}  {bound}")

    line("plain answering, s", seconds[0], "a question")
    line("extraction to disk, s", seconds[1], f"a question of {written / n / 1e6:.1f} MB")
    line("its start, s", seconds[5], "once a run")
    line("extraction / answering", np.median(each[:, 1] / each[:, 0], axis=0), "at most 1.25")
    line("  and scoring the gold", np.median(each[:, 1] / each[:, 4], axis=0), "the same passes without capture")
    line("script, JSON / ours", ratios[2], "at least 10")
    line("script, pickle / ours", ratios[3])
    rate, disk = written / n / seconds[1, 0], disk_rate(folder)
    print(f"  written at {rate / 1e6:.0f} MB/s; the disk takes {disk / 1e6:.0f} MB/s: {rate / disk:.2f} of it")


def disk_rate(folder: Path) -> float:
    """Bytes a second of plain writing, flushed to the disk."""
    block = np.random.default_rng(0).bytes(2**26)
    path = folder / "raw"

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(4):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    seconds = timed(write)
    path.unlink()
    return float(2**28 / seconds[0])


def measure_memory(folder: Path) -> None:
    """Peak memory and time at 500 and 4,000 examples, each in a process of its own."""
    found = {}
    for n in (500, 4000):
        words = [sys.executable, __file__, "--child", str(folder), str(n)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[n] = json.loads(done.stdout.splitlines()[-1])
    (small, large) = found[500], found[4000]
    print("a 2-layer GPT-2, full capture, shards of 64 examples")
    for n, each in found.items():
        print(f"  {n} examples: peak {each['peak'] / 1e6:.0f} MB, {each['seconds']:.1f} s of processors")
    print(f"  peak at 4,000 / at 500   {large['peak'] / small['peak']:.3f} (at most 1.10)")
    print(f"  time per example         {large['seconds'] / small['seconds'] / 8:.2f} (1: in proportion)")


def child(folder: Path, n: int) -> None:
    torch.set_num_threads(1)
    data = write_questions(folder / f"tiny-{n}.jsonl", n)
    checkpoint, base = str(folder / "codi-tiny"), str(folder / "base-tiny")
    spec = RunSpec(capture="full", batch_size=32, max_new_tokens=3)
    ready = prepare(f"m={checkpoint}", str(data), folder / f"tiny-{n}.lake", spec, base=base, shard_examples=64)
    seconds = timed(lambda: extract(ready, folder / f"tiny-{n}.lake"))[1]
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    print(json.dumps({"peak": peak, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute-dtype", default="float32")
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--script-questions", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(Path(arguments.child[0]), int(arguments.child[1]))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if not arguments.skip_speed:
            measure("gpt2" if arguments.device == "cpu" else "llama", arguments, folder)
        if not arguments.skip_memory:
            write_checkpoint(folder, "tiny")
            measure_memory(folder)
    if not torch.cuda.is_available():
        print("no GPU here: extraction of a LLaMA of the 1B's sizes (--device cuda) was not measured")


if __name__ == "__main__":
    main()
