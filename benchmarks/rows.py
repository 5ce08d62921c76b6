"""Rows for training: ``torch_dataset``, iterable and by number, beside a memmap that is shuffled in memory.

    python benchmarks/sizes.py gpt2 --examples 7473 --dtype float16 --keep DIR
    python benchmarks/rows.py DIR/gpt2.lake [--run gpt2/gsm8k] [--rounds N]

States of the thoughts at three layers as float32, in batches of 4,096 rows. The memmap holds the same rows in float16,
and nothing else; of it random rows are taken, without a checksum, and widened by torch or by numpy. Everything lies in
the page cache; each is an epoch of a dataset that was made before, in turns, by processor time of one thread.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside.sides import take_turns
from beside.work import timed
from results import keep

from store import open_lake, torch_dataset

LAYERS, POSITIONS, BATCH = (3, 7, 11), [f"ct{n}" for n in range(6)], 4096
BARE = "memmap, widened by torch"


def epochs(lake: str, run: str, folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """An epoch of each."""
    opened, chosen = open_lake(lake), {"layer": LAYERS, "position": POSITIONS}
    rows = torch_dataset(opened, run, "hidden_state", batch_size=BATCH, **chosen)
    by_number: Any = torch_dataset(opened, run, "hidden_state", style="map", **chosen)
    sampler = by_number.batches(BATCH)
    everything = torch_dataset(opened, run, "hidden_state", batch_size=BATCH, shuffle=False, stored=True, **chosen)
    np.save(folder / "rows.npy", torch.cat(list(everything)).numpy())
    memmap = np.load(folder / "rows.npy", mmap_mode="r")
    rng = np.random.default_rng(0)

    def bare(widen: Callable[[np.ndarray], torch.Tensor]) -> int:
        order = rng.permutation(len(memmap))
        return sum(len(widen(memmap[order[begin : begin + BATCH]])) for begin in range(0, len(order), BATCH))

    def seconds_a_row(read: Callable[[], int]) -> dict[str, Any]:
        done = timed(read)
        return {kind: done[kind] / done["value"] for kind in ("processor", "clock")}

    readings = {
        "torch_dataset, iterable": lambda: sum(map(len, rows)),
        "torch_dataset, map, its sampler": lambda: sum(len(by_number[numbers]) for numbers in sampler),
        BARE: lambda: bare(lambda values: torch.from_numpy(values).to(torch.float32)),
        "memmap, widened by numpy": lambda: bare(lambda values: torch.from_numpy(values.astype("float32"))),
    }
    return {name: partial(seconds_a_row, read) for name, read in readings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake")
    parser.add_argument("--run", default="gpt2/gsm8k")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = take_turns(epochs(arguments.lake, arguments.run, Path(folder)), arguments.rounds)
    bare = [each["processor"] for each in times[BARE]]
    rows = [
        {
            "who": name,
            "rows a second of processor": [1 / each["processor"] for each in done],
            "times the memmap's": [own / each["processor"] for own, each in zip(bare, done, strict=True)],
        }
        for name, done in times.items()
    ]
    for row in rows:
        print(*(f"{np.median(value):,.2f}" if isinstance(value, list) else f"{value:34}" for value in row.values()))
    text = "States of the thoughts at three layers, GPT-2's sizes, batches of 4,096 as float32."
    keep("rows-epoch", "Rows in random order for training", rows, text=text)


if __name__ == "__main__":
    main()
