"""Head scores of GPT-2's 144 heads from a lake: time, memory, bytes read; and beside numpy in memory.

    python benchmarks/heads.py [LAKE] [--examples 7473] [--rounds N]

The lake is filled with made-up causal attention through the store's own writer, one shard of it again and again
(states are left out: they are not read), and kept at LAKE for a second run. Time and memory are those of a fresh
process with two threads, for a quarter of the examples too: memory should not differ much.

Numpy has the same attention, padded and uncompressed, in memory or mapped into it from a file, without checksums, and
computes flow, hub, skip, the attention to the thought before and the largest of the mean over examples; this project
reads the lake, or gets the same array with labels, and computes its composite, types and bands as well. All five
scores are the same, which is checked first. One thread, in turns. Numpy also gets the thoughts' block out of this lake,
by zarr-python. Where this project is behind numpy's arrays, a part that does not grow with the examples is opening the
lake and dask's graph; the rest is reading: a chunk of compressed attention is 8 queries by 64 keys of all heads, of
which 6 by 6 are wanted, and is decompressed and checked whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from beside.sides import OURS, compared, take_turns
from beside.work import timed
from results import keep, paragraph

N_LAYER, N_HEAD, N_QUESTION, N_ANSWER = 12, 12, 70, 8


def fill(path: Path, n_example: int) -> None:
    """Write a run of made-up attention."""
    from store import RunLayout, create_run, write_model

    layout = RunLayout(
        n_example=n_example,
        n_layer=N_LAYER,
        n_head=N_HEAD,
        hidden=64,
        n_latent=6,
        longest_question=N_QUESTION,
        n_answer=N_ANSWER,
        capture="latent",
        dtype="float16",
    )
    hidden = {"final_norm_weight": np.ones(64), "final_norm_bias": np.zeros(64)}
    read_out = {"unembedding": np.ones((4, 64)), "token_string": ["a", "b", "c", "d"], **hidden}
    write_model(path, "bench", lambda: read_out, {"fingerprint": {"weights": "made up"}, "final_norm": "layer_norm"})
    examples = np.arange(n_example)
    columns = {name: (("example",), examples) for name in ("example", "problem")}
    columns |= {name: (("example",), [""] * n_example) for name in ("variant", "question", "gold_answer")}
    columns["intermediate_result"] = (("example", "step"), np.zeros((n_example, 1)))
    columns["operation"] = (("example", "step"), np.full((n_example, 1), "", dtype=object))
    writer = create_run(path, "bench/examples", layout, identity={"spec": {"seed": 0}}, columns=columns)
    rng = np.random.default_rng(0)
    query, key = len(layout.positions), len(layout.key_positions)
    place = np.arange(layout.n_question, key)
    made = np.zeros((layout.shard_examples, N_LAYER, N_HEAD, query, key), dtype="float16")
    left = np.flatnonzero(~writer.committed())
    for i in range(len(made) if len(left) else 0):
        start = layout.n_question - rng.integers(30, N_QUESTION)
        weight = rng.exponential(size=(N_LAYER, N_HEAD, query, key - start)).astype("float32")
        weight *= np.arange(start, key) <= place[:, None]
        made[i, ..., start:] = weight / weight.sum(-1, keepdims=True)
    for shard in left:
        values = writer.empty(int(shard))
        values["attention"] = made[: values["attention"].shape[0]]
        writer.write_shard(int(shard), values)
        print(f"\rfilled {shard + 1} of {layout.n_shard} shards", end="", file=sys.stderr)
    print(file=sys.stderr)


def measure(path: Path, limit: int, what: str) -> dict[str, float]:
    """Scores of the first ``limit`` examples in this process."""
    import dask

    from analyze import head_analysis, head_scores
    from store import open_lake

    def counter(name: str) -> int:
        lines = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
        return int(lines[name])

    attention = open_lake(path)["bench/examples"]["attention"].isel(example=slice(0, limit))
    with dask.config.set(scheduler="threads", num_workers=2):
        before, began = counter("rchar"), time.perf_counter()
        if what == "scores":
            head_scores(attention).compute()
        elif what == "reports":
            head_scores(attention, "reports").compute()
        else:
            head_analysis(attention).compute()
        took = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"seconds": took, "read_mb": (counter("rchar") - before) / 1e6, "peak_mb": peak}


Array = np.ndarray[Any, Any]
SCORES = ("flow", "hub", "skip", "sequential", "max_attention")


def by_hand(attention: Array) -> list[Array]:
    """The five scores (layer, head) of attention (example, layer, head, thought, thought), as a script has them."""
    a = np.tril(attention.mean(0, dtype="float64"))
    n = a.shape[-1]
    itself = np.diagonal(a, axis1=-2, axis2=-1)
    even = a.sum(-1) / np.arange(1, n + 1)
    expected = np.stack([even[..., j + 1 :].sum(-1) for j in range(n)], axis=-1)
    hub = (a.sum(-2) - itself - expected)[..., :-1].max(-1).clip(0)
    before = np.diagonal(a, offset=-1, axis1=-2, axis2=-1).mean(-1)
    return [1 - itself.sum(-1) / a.sum((-2, -1)), hub, a[..., n - 1, : n // 2].mean(-1), before, a.max((-2, -1))]


def beside_numpy(path: Path, n_example: int, rounds: int) -> None:
    """Keep the table of this project beside numpy.

    Raises
    ------
    SystemExit
        If they give other scores.
    """
    import dask

    from analyze import head_scores
    from store import open_lake

    attention = open_lake(path, stored=True).open("bench/examples", chunks=None)["attention"]
    labels = [list(attention[dim].values) for dim in ("position", "key_position")]
    rows, keys = (slice(each.index("ct0"), each.index("ct5") + 1) for each in labels)
    with tempfile.TemporaryDirectory() as folder:
        flat = np.lib.format.open_memmap(Path(folder) / "a.npy", "w+", "float16", attention.shape)
        for begin in range(0, n_example, 256):
            flat[begin : begin + 256] = attention[begin : begin + 256].values
        mapped = np.load(Path(folder) / "a.npy", mmap_mode="r")
        memory = np.array(mapped[..., rows, keys])
        block = attention.isel(position=rows, key_position=keys)
        labelled = block.copy(data=memory)
        works = {
            OURS: lambda: head_scores(open_lake(path)["bench/examples"]["attention"]).compute(),
            "this project, reading the thoughts' block alone": lambda: block.copy().values,
            "this project, thoughts' block in memory": lambda: head_scores(labelled),
            "numpy, thoughts' block of this lake by zarr-python": lambda: by_hand(
                zarr.open_array(path / "bench/examples/attention", mode="r")[..., rows, keys]
            ),
            "numpy, thoughts' block in memory": lambda: by_hand(memory),
            "numpy, memmap of padded attention": lambda: by_hand(mapped[..., rows, keys]),
        }
        with dask.config.set(scheduler="single-threaded"):
            for name, work in works.items():
                if "alone" in name:
                    continue
                found: Any = work()
                scores = [found[each].values for each in SCORES] if name.startswith("this") else found
                if not all(np.allclose(*pair) for pair in zip(scores, by_hand(memory), strict=True)):
                    raise SystemExit(f"{name} gives other scores")
            times = take_turns({name: partial(seconds, work) for name, work in works.items()}, rounds)
    text = f"{n_example:,} examples. {paragraph(__doc__, 3)}"
    keep("heads", "Head scores beside numpy", compared(times, unit="ms", per=1e-3), text=text)


def seconds(work: Callable[[], object]) -> dict[str, Any]:
    """Of a work, whose value is let go."""
    return timed(work) | {"value": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", nargs="?", type=Path)
    parser.add_argument("--examples", type=int, default=7473)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.lake, int(options.measure[0]), options.measure[1])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = options.lake or Path(scratch) / "bench.lake"
        fill(path, options.examples)
        stored = sum(f.stat().st_size for f in (path / "bench" / "examples" / "attention").rglob("*") if f.is_file())
        print(f"{options.examples} examples, {N_LAYER * N_HEAD} heads; attention on disk {stored / 1e6:.0f} MB")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "2"}
        for what in ("scores", "reports", "analysis"):
            for limit in (options.examples // 4, options.examples):
                command = [sys.executable, __file__, str(path), "--measure", str(limit), what]
                found = json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
                print(
                    f"{what:9} {limit:5} examples: {found['seconds']:6.1f} s, peak {found['peak_mb']:5.0f} MB, "
                    f"read {found['read_mb']:6.0f} MB ({found['read_mb'] * 1e6 / stored:.2f} of attention on disk)"
                )
        beside_numpy(path, options.examples, options.rounds)


if __name__ == "__main__":
    main()
