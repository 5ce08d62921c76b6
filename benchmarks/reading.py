"""Reading a lake beside memmaps and zarr-python: one (layer, position), several layers, rows in random order.

Warm: everything lies in the page cache, and each reading, into a new array, is repeated in turn. Ratios are of the
medians; the fastest of each is given, too, as other work on the machine moves medians.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from store import RunLayout, create_run, open_lake, torch_dataset

MODELS = {
    "gpt2": {"n_layer": 12, "n_head": 12, "hidden": 768},
    "llama-1b": {"n_layer": 16, "n_head": 32, "hidden": 2048},
}
LAYER, POSITION = 7, "ct3"
BATCH_ROWS = 4096


def write_lake(place: Path, model: str, n_example: int) -> RunLayout:
    """A run of a model's sizes, states of Gaussian noise, latent capture, no attention."""
    layout = RunLayout(
        n_example=n_example, **MODELS[model], n_latent=6, longest_question=90, n_answer=8,
        capture="latent", dtype="float16",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    columns = {"example": (("example",), np.arange(n_example))}
    writer = create_run(place, "m/d", layout, identity={"spec": {}}, columns=columns)
    shape = writer.empty(0)["hidden_state"].shape
    noise = rng.standard_normal((shape[0] + layout.n_shard, *shape[1:]), dtype=np.float32).astype("float16")
    for shard in range(layout.n_shard):
        values = writer.empty(shard)
        # the same noise one row on: no two shards are alike, and it is drawn once
        values["hidden_state"] = noise[shard : shard + values["hidden_state"].shape[0]]
        writer.write_shard(shard, values)
    return layout


def write_memmaps(folder: Path, cell: np.ndarray, layout: RunLayout, lake: Path) -> dict[str, np.memmap]:
    """The same states by layer and by cell; only what is read of them is written."""
    n_example, n_layer, n_position = layout.n_example, layout.n_layer, len(layout.positions)
    shapes = {
        "layer": (n_layer, n_example, n_position, layout.hidden),
        "cell": (n_layer, n_position, n_example, layout.hidden),
    }
    flat = {name: np.memmap(folder / name, dtype="float16", mode="w+", shape=shape) for name, shape in shapes.items()}
    run = open_lake(lake, stored=True)["m/d"]
    flat["layer"][LAYER] = run["hidden_state"].sel(layer=LAYER).values
    flat["cell"][LAYER, layout.positions.index(POSITION)] = cell
    for each in flat.values():
        each.flush()
    return flat


def in_turn(readings: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, read one after the other again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for _ in range(rounds + 1):
        for name, read in readings.items():
            begin = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - begin)
    return {name: sorted(each[1:]) for name, each in seconds.items()}


def show(seconds: dict[str, list[float]], size: int) -> None:
    for name, each in seconds.items():
        middle = statistics.median(each)
        print(
            f"    {name:36} {middle * 1e3:8.2f} ms  {size / middle / 1e6:8.0f} MB/s   fastest {each[0] * 1e3:8.2f} ms"
        )


def ratio(seconds: dict[str, list[float]], name: str, other: str) -> str:
    """Rate of a reading by that of another: of the medians, and of the fastest."""
    medians = statistics.median(seconds[other]) / statistics.median(seconds[name])
    return f"{medians:.2f} ({seconds[other][0] / seconds[name][0]:.2f})"


def one_cell(lake: Path, folder: Path, layout: RunLayout, rounds: int) -> None:
    opened = open_lake(lake, stored=True)
    run, blocks = opened.open("m/d", chunks=None), opened["m/d"]
    widened = opened.open("m/d", chunks=None, stored=False)
    position = layout.positions.index(POSITION)
    cell = run["hidden_state"].sel(layer=LAYER, position=POSITION).values
    flat = write_memmaps(folder, cell, layout, lake)
    readings = {
        "memmap (layer, example, position)": lambda: np.array(flat["layer"][LAYER, :, position]),
        "memmap (layer, position, example)": lambda: np.array(flat["cell"][LAYER, position]),
        "lake, chunks=None": lambda: run["hidden_state"].sel(layer=LAYER, position=POSITION).values,
        "lake, dask": lambda: blocks["hidden_state"].sel(layer=LAYER, position=POSITION).values,
        "memmap by layer, to float32": lambda: flat["layer"][LAYER, :, position].astype("float32"),
        "lake, chunks=None, float32": lambda: widened["hidden_state"].sel(layer=LAYER, position=POSITION).values,
    }
    for name, read in readings.items():
        np.testing.assert_array_equal(read(), cell, err_msg=name)
    seconds = in_turn(readings, rounds)
    print(f"  one (layer, position), {cell.nbytes / 1e6:.1f} MB from {layout.n_shard} shards:")
    show(seconds, cell.nbytes)
    by_layer, by_cell, bare, dask, memmap_wide, wide = readings
    print(f"    chunks=None / memmap by layer, rate  {ratio(seconds, bare, by_layer)} (asked: 0.5)")
    print(f"    chunks=None / memmap by cell, rate   {ratio(seconds, bare, by_cell)}")
    print(f"    dask / memmap by layer, rate         {ratio(seconds, dask, by_layer)}")
    print(f"    the same to float32, chunks=None     {ratio(seconds, wide, memmap_wide)}")


def four_layers(lake: Path, rounds: int) -> None:
    opened = open_lake(lake, stored=True)
    plain = xr.open_zarr(lake, group="m/d", consolidated=False)
    runs = {"lake, chunks=None": opened.open("m/d", chunks=None), "lake, dask": opened["m/d"], "zarr-python": plain}
    part = {name: run["hidden_state"].isel(layer=slice(0, 4), example=slice(0, 2048)) for name, run in runs.items()}
    size = part["zarr-python"].nbytes
    print(f"  four layers at all positions, {size / 1e6:.0f} MB:")
    seconds = in_turn({name: lambda each=each: each.copy().load() for name, each in part.items()}, rounds)
    show(seconds, size)


def shuffled_rows(lake: Path, folder: Path, rounds: int) -> None:
    """Epochs of shuffled batches in float32, in turn: processor time and clock."""
    opened = open_lake(lake)
    dataset = torch_dataset(opened, "m/d", "hidden_state", layer=[3, 7, 11], batch_size=BATCH_ROWS, buffer_bytes=2**25)
    blocks = dataset.blocks
    flat = np.memmap(folder / "rows", dtype="float16", mode="w+", shape=(blocks.n_row, *blocks.item_shape))
    for begin in range(0, blocks.n_row, BATCH_ROWS):
        rows = np.arange(begin, min(begin + BATCH_ROWS, blocks.n_row))
        flat[rows] = blocks.read(rows)
    flat.flush()
    rng = np.random.default_rng(0)

    def of_memmap() -> Iterator[torch.Tensor]:
        for rows in np.array_split(rng.permutation(blocks.n_row), -(-blocks.n_row // BATCH_ROWS)):
            yield torch.from_numpy(flat[rows]).float()

    seconds: dict[str, list[tuple[float, float]]] = {"memmap, random rows": [], "torch_dataset": []}
    for _ in range(rounds + 1):
        for name, batches in zip(seconds, (of_memmap, dataset.__iter__), strict=True):
            clock, processor = time.perf_counter(), time.process_time()
            n_row = sum(len(batch) for batch in batches())
            seconds[name].append((time.perf_counter() - clock, time.process_time() - processor))
            assert n_row == blocks.n_row
    print(
        f"  {blocks.n_row} rows in random order, batches of {BATCH_ROWS} in float32, {blocks.n_slot} blocks a window:"
    )
    for name, each in seconds.items():
        clock, processor = (statistics.median(one) for one in zip(*each[1:], strict=True))
        print(
            f"    {name:24} {blocks.n_row / processor:9.0f} rows/s of processor, {blocks.n_row / clock:9.0f} by clock"
        )
    pairs = list(zip(*seconds.values(), strict=True))[1:]
    for which, what in ((1, "processor"), (0, "clock")):
        ratios = sorted(memmap[which] / lake[which] for memmap, lake in pairs)
        print(f"    rate / memmap's by {what}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=49)
    parser.add_argument("--sizes", nargs="+", default=["gpt2:4096", "gpt2:7473", "llama-1b:7473"])
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} processors, warm")
    for size in arguments.sizes:
        model, _, n_example = size.partition(":")
        with tempfile.TemporaryDirectory() as place:
            lake = Path(place) / "bench.lake"
            layout = write_lake(lake, model, int(n_example))
            print(f"{n_example} examples of {model}'s sizes", flush=True)
            one_cell(lake, Path(place), layout, arguments.rounds)
            four_layers(lake, max(arguments.rounds // 16, 1))
            shuffled_rows(lake, Path(place), max(arguments.rounds // 7, 1))


if __name__ == "__main__":
    main()
