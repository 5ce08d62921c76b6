"""Reading a lake: one (layer, position) over all examples beside a layer-major memmap, and zarrs beside zarr-python.

Warm: everything lies in the page cache, and each reading is repeated in turn; the median counts.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from store import RunLayout, create_run, open_lake


def write_lake(place: Path, n_example: int) -> RunLayout:
    """A run of a 124M GPT-2's sizes, states of Gaussian noise, latent capture."""
    layout = RunLayout(
        n_example=n_example, n_layer=12, n_head=12, hidden=768, n_latent=6, longest_question=90, n_answer=8,
        capture="latent", dtype="float16",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    columns = {"example": (("example",), np.arange(n_example))}
    writer = create_run(place, "m/d", layout, identity={"spec": {}}, columns=columns)
    for shard in range(layout.n_shard):
        buffers = writer.buffers(shard)
        for name in ("hidden_state", "final_state", "latent_embedding"):
            buffers[name][:] = rng.standard_normal(buffers[name].shape, dtype=np.float32)
        writer.write_shard(shard, buffers)
    return layout


def write_memmap(path: Path, lake: Path) -> np.memmap:
    """The same states as a memmap of (layer, example, position, hidden)."""
    states = open_lake(lake)["m/d"]["hidden_state"].transpose("layer", "example", "position", "hidden")
    flat = np.memmap(path, dtype="float16", mode="w+", shape=states.shape)
    for layer in range(states.sizes["layer"]):
        flat[layer] = states.isel(layer=layer).values
    flat.flush()
    return flat


def in_turn(readings: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, read one after the other again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for _ in range(rounds + 1):
        for name, read in readings.items():
            begin = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        lake = Path(place) / "bench.lake"
        layout = write_lake(lake, arguments.examples)
        flat = write_memmap(Path(place) / "flat.bin", lake)
        run = open_lake(lake)["m/d"]
        plain = xr.open_zarr(lake, group="m/d", consolidated=False, chunks=None)
        size = arguments.examples * layout.hidden * 2
        layer, position = 7, layout.positions.index("ct3")
        one = in_turn(
            {
                "lake": lambda: run["hidden_state"].sel(layer=layer, position="ct3").values,
                "memmap": lambda: np.array(flat[layer, :, position]),
            },
            arguments.rounds,
        )
        whole = size * layout.n_layer * len(layout.positions)
        full = in_turn(
            {
                "zarrs": lambda: run["hidden_state"].isel(layer=slice(0, 4)).values,
                "zarr-python": lambda: plain["hidden_state"].isel(layer=slice(0, 4)).values,
            },
            max(arguments.rounds // 3, 1),
        )
        np.testing.assert_array_equal(
            run["hidden_state"].sel(layer=layer, position="ct3").values, np.array(flat[layer, :, position])
        )
    print(f"{arguments.examples} examples of a 124M GPT-2's sizes, {os.cpu_count()} processors, warm")
    print(f"  one (layer, position), {size / 1e6:.1f} MB:")
    for name, seconds in one.items():
        print(f"    {name:12} {seconds * 1e3:8.2f} ms  {size / seconds / 1e6:8.0f} MB/s")
    print(f"    lake / memmap rate   {one['memmap'] / one['lake']:.2f} (at least 0.5)")
    third = whole * 4 / layout.n_layer
    print(f"  four layers at all positions, {third / 1e6:.0f} MB:")
    for name, seconds in full.items():
        print(f"    {name:12} {seconds * 1e3:8.0f} ms  {third / seconds / 1e6:8.0f} MB/s")
    print(f"    zarrs / zarr-python  {full['zarr-python'] / full['zarrs']:.1f} times as fast")


if __name__ == "__main__":
    main()
