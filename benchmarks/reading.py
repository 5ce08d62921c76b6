"""Reading a lake beside memmaps, HDF5, Arrow, safetensors, and beside zarr-python, zarrs and tensorstore.

    python benchmarks/reading.py [--examples N] [--rounds N] [--model gpt2] [--patterns ..]

cell      States of one layer and position of all examples, as a probe wants them.
example   States and attention of one example.
block     Attention of the thoughts to the thoughts: every layer, head and example.
random    States of 64 examples, chosen at random, at every layer and position.
epoch     All states of three layers as float32 in random order: from the lake with ``torch_dataset``, which mixes
          examples from all over; others read random blocks of 64 neighbours and shuffle inside each.

Every reader is a process of its own that copies what it reads into a new array of the stored type; all give the same
bytes, which is checked first. The lake's readers (this project, zarr-python, zarrs, tensorstore) open the same files
and check checksums; this project also checks them against its own record. Others read copies without any. Everything
lies in the page cache; in ``cold`` tables the files were dropped from it before each reading.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from beside.readers import PATTERNS, READERS
from beside.sides import OURS, Side, Times, compared, peers_python, take_turns, versions
from results import keep

from store import RunLayout, create_run

MODELS = {
    "gpt2": {"n_layer": 12, "n_head": 12, "hidden": 768},
    "llama-1b": {"n_layer": 16, "n_head": 32, "hidden": 2048},
}
TITLES = {
    "cell": "one layer and position of all examples",
    "example": "one example",
    "block": "thoughts' attention to thoughts, all heads and examples",
    "random": "64 random examples",
    "epoch": "a shuffled epoch of three layers",
}
LOOPS = {"example": 4}
"""Readings in one measurement, where one alone is too short."""
SAYING = (
    "Everybody copies into a new array and gets the same bytes. This project, zarr-python, zarrs and tensorstore read"
    " the same lake and check checksums, this project also against its record; the others read uncompressed copies"
    " unchecked."
)
EPOCH = " The lake's epoch mixes examples from all over; others shuffle inside random blocks of 64 neighbours."
WHY = {
    "cell": " What does not grow with the examples, labels and the places of chunks, took as long as some 0.8 MB (128"
    " beside 1,024 examples); beside a memmap there are also reading calls, checksums and a second copy.",
    "block": " Most of this project's time is decompression: attention lies in compressed chunks of"
    " eight examples, eight queries and 64 keys, of which 36 pairs are wanted.",
    "example": " Three quarters of this project's time are attention, of which two thirds are decompression: it lies"
    " in compressed chunks of eight examples. The rest is 192 rows of states, each in a chunk of its own.",
    "random": " This project reads each row of states, of 1.5 kB, by itself and checks it, so as not to read whole"
    " chunks.",
}
"""What it is that keeps this project behind files that are mapped into memory."""
SLOW = ("random", "epoch")
"""Patterns of fewer rounds."""


def write_lake(place: Path, model: str, n_example: int) -> RunLayout:
    """A run of a model's sizes, latent capture: states of Gaussian noise, causal attention of made-up questions."""
    layout = RunLayout(
        n_example=n_example, **MODELS[model], n_latent=6, longest_question=90, n_answer=8,
        capture="latent", dtype="float16",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    columns = {"example": (("example",), np.arange(n_example))}
    writer = create_run(place, "m/d", layout, identity={"spec": {}}, columns=columns)
    empty = writer.empty(0)
    shape = empty["hidden_state"].shape
    noise = rng.standard_normal((shape[0] + layout.n_shard, *shape[1:]), dtype=np.float32).astype("float16")
    made = rng.exponential(size=(16, *empty["attention"].shape[1:])).astype("float32")
    query = np.arange(made.shape[-2])[:, None] + made.shape[-1] - made.shape[-2]
    start = layout.n_question - rng.integers(30, 90, 16)
    key = np.arange(made.shape[-1])
    made *= ((key <= query) & (key >= start[:, None, None]))[:, None, None]
    made /= made.sum(-1, keepdims=True)
    attention = np.resize(made.astype("float16"), (shape[0], *made.shape[1:]))
    for shard in range(layout.n_shard):
        values = writer.empty(shard)
        n = values["hidden_state"].shape[0]
        # The same noise one row on: no two shards are alike, and it is drawn once.
        values["hidden_state"], values["attention"] = noise[shard : shard + n], attention[:n]
        writer.write_shard(shard, values)
    return layout


def sizes_of(layout: RunLayout) -> dict[str, Any]:
    """What readers need to know."""
    first, last = layout.positions.index("ct0"), layout.positions.index("ct5")
    keys = [layout.key_positions.index("ct0"), layout.key_positions.index("ct5") + 1]
    shapes = {"states": layout.arrays()["hidden_state"].shape, "attention": layout.arrays()["attention"].shape}
    return {
        "n_example": layout.n_example,
        "cell": layout.positions.index("ct3"),
        "thoughts": [first, last + 1],
        "thought_keys": keys,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }


class Readers:
    """All readers of one lake, each a process."""

    def __init__(self, folder: Path, layout: RunLayout) -> None:
        self.folder = folder
        stated = json.dumps(sizes_of(layout))
        self.sides = {
            OURS if kind == "lake" else kind: Side("readers.py", kind, folder, stated, **where)
            for kind in READERS
            for where in [{} if kind == "lake" else {"python": peers_python(), "path": ""}]
        }
        for side in self.sides.values():
            side("write")
            side("open")

    def check(self) -> None:
        """Raise ``SystemExit`` unless everybody reads the same."""
        for pattern in PATTERNS[:-1]:
            found = {name: side("digest", pattern=pattern, number=0)["value"] for name, side in self.sides.items()}
            if wrong := [name for name, value in found.items() if value != found[OURS]]:
                raise SystemExit(f"{', '.join(wrong)} read {pattern} otherwise than this project")

    def warm(self, pattern: str, rounds: int) -> Times:
        """Times of a pattern out of the page cache."""
        numbers = {name: iter(range(1, 10**6)) for name in self.sides}

        def work(name: str) -> dict[str, Any]:
            several = [self.sides[name]("read", pattern=pattern, number=next(numbers[name])) for _ in range(n)]
            return {kind: sum(each[kind] for each in several) / n for kind in ("clock", "processor")}

        n = LOOPS.get(pattern, 1)
        return take_turns({name: partial(work, name) for name in self.sides}, rounds)

    def cold(self, pattern: str, rounds: int) -> Times:
        """The same, the files dropped from the page cache and opened again before each reading."""

        def work(name: str) -> dict[str, Any]:
            self.sides[name]("open")
            for path in self.folder.rglob("*"):
                if path.is_file():
                    drop(path)
            return self.sides[name]("read", pattern=pattern, number=1)

        return take_turns({name: partial(work, name) for name in self.sides}, rounds, warm=0)


def drop(path: Path) -> None:
    """Take a file out of the page cache, as far as no process has it mapped."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def rows_of(times: Times, size: float) -> list[dict[str, Any]]:
    """Rows of a table, with the rate."""
    rows = compared({name: times[name] for name in times}, unit="ms", per=1e-3)
    for row in rows:
        row["GB/s of processors"] = [size / 1e6 / max(ms, 1e-6) for ms in row["ms, of processors"]]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--model", choices=list(MODELS), default="gpt2")
    parser.add_argument("--patterns", nargs="*", choices=PATTERNS, default=PATTERNS, help="only these")
    parser.add_argument("--folder", type=Path, help="where files are made and stay; by default they do not")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place)
        layout = write_lake(folder / "lake", arguments.model, arguments.examples)
        readers = Readers(folder, layout)
        readers.check()
        hidden, attention = sizes_of(layout)["shapes"].values()
        state, thoughts = 2 * hidden[3], layout.n_layer * layout.n_head * 36 * 2
        n, n_cell = layout.n_example, hidden[1] * hidden[2]
        size = {
            "cell": n * state, "example": n_cell * state + 2 * int(np.prod(attention[1:])), "block": n * thoughts,
            "random": 64 * n_cell * state, "epoch": n * 3 * hidden[2] * state,
        }  # fmt: skip
        tables: list[tuple[str, str, Callable[[str, int], Times]]] = [
            (pattern, "warm", readers.warm) for pattern in PATTERNS
        ]
        tables += [(pattern, "cold", readers.cold) for pattern in ("cell", "example")]
        tables = [table for table in tables if table[0] in arguments.patterns]
        peers = versions(peers_python(), "zarr", "zarrs", "tensorstore", "h5py", "pyarrow", "safetensors")
        for pattern, state_of_cache, measure in tables:
            slow = state_of_cache == "cold" or pattern in SLOW
            rounds = max(arguments.rounds // 5, 2) if slow else arguments.rounds
            rows = rows_of(measure(pattern, rounds), size[pattern])
            title = f"Reading {TITLES[pattern]}, {state_of_cache}"
            text = f"{n:,} examples of {arguments.model}'s sizes; {size[pattern] / 1e6:.1f} MB are read. One thread."
            text += f" {SAYING}{EPOCH if pattern == 'epoch' else ''}{WHY.get(pattern, '')}"
            keep(f"reading-{pattern}-{state_of_cache}", title, rows, text=text, versions=peers)
        for side in readers.sides.values():
            side.end()


if __name__ == "__main__":
    main()
