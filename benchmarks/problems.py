"""One problem, 64 random ones, and one (layer, position) of all: processor time and bytes read, lakes in turn.

    python benchmarks/sizes.py gpt2 --examples 7473 --keep DIR
    python benchmarks/problems.py DIR/gpt2.lake [LAKE ..] [--run gpt2/gsm8k] [--rounds N]

Warm: everything lies in the page cache. Median and fastest of the rounds, each of another problem.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from store import open_lake

STATES = ["hidden_state", "final_state", "latent_embedding"]
EVERYTHING = [*STATES, "attention"]
Reading = Callable[[int], object]


def bytes_read() -> int:
    """Bytes that this process has read of files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def readings(place: str, run: str) -> dict[str, Reading]:
    """What is read, by the number of a round."""
    lake = open_lake(place, stored=True)
    bare, blocks = lake.open(run, chunks=None), lake[run]
    plain = xr.open_zarr(place, group=run, consolidated=False, chunks=None)
    rng = np.random.default_rng(0)
    one = rng.permutation(bare.sizes["example"])
    many = [np.sort(rng.choice(bare.sizes["example"], 64, replace=False)) for _ in range(64)]
    cell = {"layer": 7, "position": "ct3"}

    def load(data: xr.Dataset | xr.DataArray) -> object:
        return data.compute()

    return {
        "one problem, states": lambda n: load(bare[STATES].isel(example=one[n])),
        "one problem, attention": lambda n: load(bare["attention"].isel(example=one[n])),
        "one problem, everything": lambda n: load(bare[EVERYTHING].isel(example=one[n])),
        "one problem, everything, dask": lambda n: load(blocks[EVERYTHING].isel(example=one[n])),
        "64 random problems, everything": lambda n: load(bare[EVERYTHING].isel(example=many[n % 64])),
        "64 random problems, everything, dask": lambda n: load(blocks[EVERYTHING].isel(example=many[n % 64])),
        "states of a (layer, position)": lambda n: load(bare["hidden_state"].sel(cell)),
        "states of a (layer, position), dask": lambda n: load(blocks["hidden_state"].sel(cell)),
        "attention of a (layer, position)": lambda n: load(bare["attention"].sel(cell)),
        "attention of a (layer, position), dask": lambda n: load(blocks["attention"].sel(cell)),
        "zarr-python: states of a cell": lambda n: load(plain["hidden_state"].sel(cell)),
        "zarr-python: attention of a cell": lambda n: load(plain["attention"].sel(cell)),
        "zarr-python: one problem": lambda n: load(plain[EVERYTHING].isel(example=one[n])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", nargs="+")
    parser.add_argument("--run", default="gpt2/gsm8k")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="Readings whose names have this.")
    arguments = parser.parse_args()
    lakes = {place: readings(place, arguments.run) for place in arguments.lake}
    for name in next(iter(lakes.values())):
        if arguments.only not in name:
            continue
        took: dict[str, list[tuple[float, float, int]]] = {place: [] for place in lakes}
        for number in range(arguments.rounds + 1):
            for place, reads in lakes.items():
                clock, processor, read = time.perf_counter(), time.process_time(), bytes_read()
                reads[name](number)
                seconds = time.perf_counter() - clock, time.process_time() - processor
                took[place].append((*seconds, bytes_read() - read))
        print(name)
        for place, each in took.items():
            clocks, processors, sizes = zip(*each[1:], strict=True)
            print(
                f"    {place:32} {statistics.median(processors) * 1e3:8.1f} ms of processor"
                f" (fastest {min(processors) * 1e3:8.1f}), {statistics.median(clocks) * 1e3:8.1f} ms by clock,"
                f" {statistics.median(sizes) / 1e6:8.2f} MB read",
                flush=True,
            )


if __name__ == "__main__":
    main()
