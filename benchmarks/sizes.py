"""Lakes of real sizes, and the lens beside the bare product that it cannot do without.

    python benchmarks/sizes.py [MODEL]... [--examples N] [--dtype T] [--lens-examples N] [--rounds N] [--keep DIR]
                               [--pair]

Each lake has the axes of SmolLM2-135M (smollm2-135m: 30 layers, 9 heads, 576 components, 49,152 tokens), of CODI on
GPT-2 (gpt2: 12, 12, 768, 50,260) or of CODI on LLaMA-3.2-1B (llama-1b: 16, 32, 2,048, 128,259), questions of GSM8K's
lengths, answers that end in 5 to 12 positions, states with a few large components as real ones have, and causal
attention from ``bot`` on; values are made up.
It goes through the store's own writer into a temporary folder, or stays in DIR as NAME.lake for other commands
(``--keep DIR --examples 7473``: as many as GSM8K's training problems). With ``--pair`` the lake also has NAME-other, of
the same questions and with what each block's attention and MLP add, for analyses of two runs and attribution.

lens     CPU seconds of the lens over bot and the thoughts of some examples, reading and summary included, over those
         of ``log_softmax(states @ unembedding.T)`` and ``argpartition`` of the best 5 in numpy, 256 states at a time,
         which has the states in memory. One thread both, in turn; the median of the ratios.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import results
from threadpoolctl import threadpool_limits

from analyze import lens_summary, logit_lens
from analyze.lens.readout import final_norm
from schemas import MODEL_VARIABLES
from schemas.vocabulary import PARTS
from store import RunLayout, create_run, open_lake, write_model

MODELS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"n_layer": 30, "n_head": 9, "hidden": 576, "longest_question": 212},
    "gpt2": {"n_layer": 12, "n_head": 12, "hidden": 768, "longest_question": 212},
    "llama-1b": {"n_layer": 16, "n_head": 32, "hidden": 2048, "longest_question": 209},
}
VOCABULARY = {"smollm2-135m": 49_152, "gpt2": 50_260, "llama-1b": 128_259}
NORM = {"smollm2-135m": "rms_norm", "gpt2": "layer_norm", "llama-1b": "rms_norm"}
MEAN_QUESTION = 56
"""Tokens of a GSM8K training question, mean."""
TOP = 5
OTHER = "-other"
"""What the name of a second model of the same axes ends in."""
Array = np.ndarray[Any, Any]


def write_lake(place: Path, name: str, n_example: int, dtype: str, seed: int = 0, parts: bool = False) -> None:
    """A model and its run ``NAME/gsm8k``; with ``parts`` what each block's attention and MLP add, too."""
    rng = np.random.default_rng(seed)
    axes = MODELS[name.removesuffix(OTHER)]
    capture = "latent+parts" if parts else "latent"
    layout = RunLayout(n_example=n_example, **axes, n_latent=6, n_answer=12, capture=capture, dtype=dtype)
    model = read_out(name.removesuffix(OTHER), rng)
    write_model(
        place,
        name,
        lambda: {key: model[key] for key in MODEL_VARIABLES},
        {**model["attrs"], "fingerprint": {"weights": name}},
    )
    columns = problems(n_example)
    answer = columns["intermediate_result"][1][:, -1]
    identity = {"spec": {}, "weights": name, "data": {"sha256": f"problems({n_example})"}}
    writer = create_run(place, f"{name}/gsm8k", layout, identity=identity, columns=columns)
    length = np.clip(rng.gamma(6, MEAN_QUESTION / 6, n_example).astype(int), 12, layout.longest_question)
    ended = np.arange(len(layout.positions)) >= layout.positions.index("a0") + rng.integers(5, 13, n_example)[:, None]
    large = rng.choice(layout.hidden, 4, replace=False)
    shape = writer.empty(0)["hidden_state"].shape
    states = rng.standard_normal((shape[0] + layout.n_shard, *shape[1:]), dtype="float32").astype(dtype)
    states[..., large] *= 40
    scores = np.exp(rng.standard_normal((8, *writer.empty(0)["attention"].shape[1:]), dtype="float32"))
    for shard in range(layout.n_shard):
        rows = layout.shard_slice(shard)
        n = rows.stop - rows.start
        values = writer.empty(shard)
        # The same noise one example on: no two shards are alike, and it is drawn once.
        values["hidden_state"] = np.where(ended[rows, None, :, None], np.nan, states[shard : shard + n]).astype(dtype)
        values["final_state"] = normalised(values["hidden_state"][:, -1], model).astype(dtype)
        values["latent_embedding"] = values["hidden_state"][:, -1, : layout.n_latent]
        for part in PARTS if parts else ():
            values[part] = values["hidden_state"][:, ::-1] / 2
        values["attention"] = causal(scores, length[rows], layout).astype(dtype)
        values["attention"] *= ~ended[rows, None, None, :, None]
        drawn = rng.integers(0, len(model["token_string"]), values["token"].shape)
        values["token"][:] = np.where(ended[rows], -1, drawn)
        values["generated_text"] = np.array([f"The answer is: {value:.0f}" for value in answer[rows]], dtype=object)
        values["predicted_answer"] = answer[rows]
        values["correct"] = rng.random(n) < 0.6
        values["answer_logprob"] = -rng.exponential(size=n).astype(values["answer_logprob"].dtype)
        writer.write_shard(shard, values)


def problems(n_example: int, seed: int = 1) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Questions of three written steps: the same for every run of as many examples."""
    rng = np.random.default_rng(seed)
    operation = rng.choice(np.array(["+", "-", "*"], dtype=object), (n_example, 3))
    operand = rng.integers(2, 10, (n_example, 4))
    value, steps, texts = operand[:, 0], [], []
    for step in range(3):
        told = zip(value, operation[:, step], operand[:, step + 1], strict=True)
        texts.append([f"{a}{sign}{b}" for a, sign, b in told])
        value = np.select(
            [operation[:, step] == sign for sign in "+-*"],
            [value + operand[:, step + 1], value - operand[:, step + 1], value * operand[:, step + 1]],
        )
        steps.append(value.astype(float))
    questions = [f"Ann has {row[0]}. Then come {row[1]}, {row[2]} and {row[3]}. How many?" for row in operand]
    return {
        "example": (("example",), np.arange(n_example)),
        "problem": (("example",), np.arange(n_example)),
        "question": (("example",), np.array(questions, dtype=object)),
        "gold_answer": (("example",), np.array([str(number) for number in value], dtype=object)),
        "intermediate_result": (("example", "step"), np.stack(steps, axis=1)),
        "operation": (("example", "step"), operation),
        "expression": (("example", "step"), np.stack([np.array(text, dtype=object) for text in texts], axis=1)),
    }


def read_out(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Unembedding, norm and tokens: numbers with a leading space, then words."""
    size, hidden = VOCABULARY[name], MODELS[name]["hidden"]
    words = ["+", "-", "*", "/", *(f" word{i}" for i in range(size - 1004))]
    return {
        "unembedding": rng.standard_normal((size, hidden), dtype="float32") * np.float32(3 / np.sqrt(hidden)),
        "final_norm_weight": np.ones(hidden, dtype="float32"),
        "final_norm_bias": np.zeros(hidden, dtype="float32"),
        "token_string": np.array([*(f" {i}" for i in range(1000)), *words], dtype=object),
        "attrs": {"final_norm": NORM[name], "final_norm_epsilon": 1e-5},
    }


def normalised(state: Array, model: dict[str, Any]) -> Array:
    weight, bias = model["final_norm_weight"], model["final_norm_bias"]
    return final_norm(state, kind=model["attrs"]["final_norm"], weight=weight, bias=bias, epsilon=1e-5)


def causal(scores: Array, length: Array, layout: RunLayout) -> Array:
    """Attention of examples whose questions have these lengths, from positive scores of a few, used in turn."""
    key, query = np.arange(len(layout.key_positions)), layout.n_question + np.arange(len(layout.positions))
    start = layout.n_question - length
    seen = (key >= start[:, None, None]) & (key <= query[:, None])  # (example, query, key)
    attention = np.empty((len(length), *scores.shape[1:]), dtype="float32")
    for i in range(len(length)):
        row = scores[i % len(scores)] * seen[i]
        attention[i] = row / row.sum(-1, keepdims=True)
    return attention


def bare(states: Array, unembedding: Array) -> None:
    """Log-softmax over the vocabulary and the best tokens."""
    for start in range(0, len(states), 256):
        logit = states[start : start + 256] @ unembedding.T
        logit -= logit.max(-1, keepdims=True)
        logit -= np.log(np.exp(logit).sum(-1, keepdims=True))
        np.argpartition(logit, -TOP, axis=-1)[:, -TOP:]


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def lens(place: Path, name: str, n_example: int, rounds: int) -> dict[str, Any]:
    """Time of the lens beside the bare product, as a row of RESULTS.md."""
    lake = open_lake(place)
    model, run = lake.model(name), lake[f"{name}/gsm8k"].isel(example=slice(0, n_example))
    positions = ["bot", *(f"ct{k}" for k in range(6))]
    contents = {key: model[key].values for key in MODEL_VARIABLES} | {"attrs": model.attrs}
    states = run["hidden_state"].sel(position=positions).values.reshape(-1, model.sizes["hidden"])
    states = normalised(states, contents)
    unembedding = contents["unembedding"].astype("float32")
    times = []
    with threadpool_limits(1), dask.config.set(scheduler="single-threaded"):
        for _ in range(rounds):
            ours = seconds(lambda: lens_summary(logit_lens(run, model, positions=positions, top=TOP)).compute())
            times.append((ours, seconds(lambda: bare(states, unembedding))))
    ours, theirs = ([1000 * taken / len(states) for taken in side] for side in zip(*times, strict=True))
    ratio = [one / other for one, other in zip(ours, theirs, strict=True)]
    row = {"model": name, "tokens": len(unembedding), "components": states.shape[1], "states": len(states),
           "lens, ms a state": ours, "bare product, ms a state": theirs, "ratio": ratio}  # fmt: skip
    print(
        f"{name}: lens of {len(states):,} states over {len(unembedding):,} tokens: {statistics.median(ours):.2f} ms a"
        f" state, bare product {statistics.median(theirs):.2f} ms, ratio {statistics.median(ratio):.2f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float16", "float32"])
    parser.add_argument("--lens-examples", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--pair", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.models) - set(MODELS):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            place = (given.keep or Path(folder)) / f"{name}.lake"
            if not place.exists():
                spent = seconds(lambda name=name, place=place: write_lake(place, name, given.examples, given.dtype))
                if given.pair:
                    write_lake(place, name + OTHER, given.examples, given.dtype, seed=1, parts=True)
                size = sum(each.stat().st_size for each in place.rglob("*") if each.is_file()) / 1e9
                print(f"{name}: {given.examples:,} examples written, {size:.2f} GB, {spent:.0f} s", flush=True)
            rows.append(lens(place, name, given.lens_examples, given.rounds))
    text = " ".join(__doc__.partition("lens     ")[2].split())
    results.keep("lens", "The lens beside a bare product", rows, text=text, by=["model"])


if __name__ == "__main__":
    main()
