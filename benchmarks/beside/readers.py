"""Reading the same states and attention out of a lake and out of other kinds of files, by each library's own means.

    python readers.py KIND FOLDER SIZES

KIND is one of :data:`READERS`. FOLDER has the lake and, once :meth:`Reader.write` is done, the other files. What is
read is a new array in the stored type.
"""

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LAYER, N_RANDOM, BLOCK = 7, 64, 64
"""Layer of the one cell; examples of a random choice; examples that are read together in a shuffled epoch."""
EPOCH_LAYERS = (3, 7, 11)
Array = np.ndarray[Any, Any]


class Reader(ABC):
    """Patterns of reading over arrays that are indexed as numpy's are; a kind says how they are written and opened.

    Parameters
    ----------
    folder
        Where everything is.
    sizes
        ``n_example``, ``cell`` (the position read), ``thoughts`` and ``thought_keys`` (first and last of each).
    """

    def __init__(self, folder: Path, sizes: dict[str, Any]) -> None:
        self.folder, self.sizes = folder, sizes
        self.n_example: int = sizes["n_example"]
        self.thoughts, self.thought_keys = slice(*sizes["thoughts"]), slice(*sizes["thought_keys"])
        self.order = np.random.default_rng(0).permutation(self.n_example)

    def write(self) -> None:  # noqa: B027  # the lake is there already
        """Make the files from the lake."""

    def open(self) -> None:  # noqa: B027  # some are opened at every reading
        """Open the files."""

    def some(self, number: int) -> Array:
        """Examples of a random choice, sorted."""
        rng = np.random.default_rng(number)
        return np.sort(rng.choice(self.n_example, N_RANDOM, replace=False))

    @abstractmethod
    def cell(self, number: int) -> Array:
        """States of one layer and position of all examples."""

    @abstractmethod
    def example(self, number: int) -> tuple[Array, Array]:
        """States and attention of one example."""

    @abstractmethod
    def block(self, number: int) -> Array:
        """Attention of thoughts to thoughts: every layer, head and example."""

    @abstractmethod
    def random(self, number: int) -> Array:
        """States of some examples at every layer and position."""

    def rows(self, examples: slice) -> Array:
        """States of neighbouring examples at some layers: (example, layer, position, hidden); for :meth:`epoch`."""
        raise NotImplementedError(f"{type(self).__name__} reads an epoch in its own way")

    def epoch(self, number: int) -> int:
        """All states of some layers in random order, as float32: random blocks of examples, shuffled inside."""
        rng, n_row = np.random.default_rng(number), 0
        for begin in rng.permutation(range(0, self.n_example, BLOCK)):
            states = self.rows(slice(int(begin), int(begin) + BLOCK))
            rows = states.reshape(-1, states.shape[-1])
            n_row += len(rows[rng.permutation(len(rows))].astype("float32"))
        return n_row


class Lake(Reader):
    """The lake, by this project."""

    def open(self) -> None:
        from store import open_lake

        self.lake = open_lake(self.folder / "lake", stored=True)
        self.run = self.lake.open("m/d", chunks=None)
        self.states, self.attention = self.run["hidden_state"], self.run["attention"]

    def cell(self, number: int) -> Array:
        return self.states.isel(layer=LAYER, position=self.sizes["cell"]).values

    def example(self, number: int) -> tuple[Array, Array]:
        one = int(self.order[number])
        return self.states.isel(example=one).values, self.attention.isel(example=one).values

    def block(self, number: int) -> Array:
        return self.attention.isel(position=self.thoughts, key_position=self.thought_keys).values

    def random(self, number: int) -> Array:
        return self.states.isel(example=self.some(number)).values

    def epoch(self, number: int) -> int:
        from store import open_lake, torch_dataset

        lake = open_lake(self.folder / "lake")
        rows = torch_dataset(lake, "m/d", "hidden_state", layer=list(EPOCH_LAYERS), batch_size=4096, seed=number)
        return sum(len(batch) for batch in rows)


class Indexed(Reader):
    """Two arrays in the lake's order of axes, sliced in numpy's way."""

    states: Any
    attention: Any

    def content(self) -> tuple[Any, Any]:
        """What to write: arrays of the lake."""
        import zarr

        group = zarr.open_group(self.folder / "lake", path="m/d", mode="r")
        return group["hidden_state"], group["attention"]

    def cell(self, number: int) -> Array:
        return np.array(self.states[:, LAYER, self.sizes["cell"]])

    def example(self, number: int) -> tuple[Array, Array]:
        one = int(self.order[number])
        return np.array(self.states[one]), np.array(self.attention[one])

    def block(self, number: int) -> Array:
        return np.array(self.attention[:, :, :, self.thoughts, self.thought_keys])

    def random(self, number: int) -> Array:
        return np.array(self.states[self.some(number)])

    def rows(self, examples: slice) -> Array:
        return np.stack([np.asarray(self.states[examples, layer]) for layer in EPOCH_LAYERS], axis=1)


class MemmapByExample(Indexed):
    """Plain files in the lake's order of axes."""

    def write(self) -> None:
        for name, array in zip(("states", "attention"), self.content(), strict=True):
            flat = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype="float16", shape=array.shape)
            for begin in range(0, self.n_example, 256):
                flat[begin : begin + 256] = array[begin : begin + 256]
            flat.flush()

    def open(self) -> None:
        self.states, self.attention = (np.load(self.folder / f"{name}.npy", "r") for name in ("states", "attention"))


class MemmapByLayer(Reader):
    """Plain files, layers, heads and positions first, examples after them."""

    def write(self) -> None:
        by_example = MemmapByExample(self.folder, self.sizes)
        by_example.open()
        for name, array in (("states", by_example.states), ("attention", by_example.attention)):
            turned = np.moveaxis(array, 0, -2)
            path = self.folder / f"{name}-by-layer.npy"
            flat = np.lib.format.open_memmap(path, "w+", dtype="float16", shape=turned.shape)
            for layer in range(len(turned)):
                flat[layer] = turned[layer]
            flat.flush()

    def open(self) -> None:
        names = ("states", "attention")
        self.states, self.attention = (np.load(self.folder / f"{name}-by-layer.npy", "r") for name in names)

    def cell(self, number: int) -> Array:
        return np.array(self.states[LAYER, self.sizes["cell"]])

    def example(self, number: int) -> tuple[Array, Array]:
        one = int(self.order[number])
        return np.array(self.states[:, :, one]), np.array(self.attention[:, :, :, one])

    def block(self, number: int) -> Array:
        part = np.array(self.attention[:, :, self.thoughts, :, self.thought_keys])
        return np.moveaxis(part, 3, 0)

    def random(self, number: int) -> Array:
        return np.moveaxis(np.array(self.states[:, :, self.some(number)]), 2, 0)

    def rows(self, examples: slice) -> Array:
        return np.array(self.states[list(EPOCH_LAYERS), :, examples])


class HDF5(Indexed):
    """h5py, chunks of about 100 and 650 kB as its documentation advises, nothing compressed."""

    def write(self) -> None:
        import h5py

        with h5py.File(self.folder / "run.h5", "w") as file:
            for name, array, chunk in zip(("states", "attention"), self.content(), (64, 16), strict=True):
                rest = (1, 1, array.shape[3]) if name == "states" else (1, *array.shape[2:])
                made = file.create_dataset(name, shape=array.shape, dtype="float16", chunks=(chunk, *rest))
                for begin in range(0, self.n_example, 256):
                    made[begin : begin + 256] = array[begin : begin + 256]

    def open(self) -> None:
        import h5py

        file = h5py.File(self.folder / "run.h5", "r")
        self.states, self.attention = file["states"], file["attention"]

    def random(self, number: int) -> Array:
        # Its lists of numbers are slow, which its documentation says.
        return np.stack([self.states[int(one)] for one in self.some(number)])


class Arrow(Indexed):
    """An Arrow file as Hugging Face's data sets are: a row for each example, mapped into memory."""

    def write(self) -> None:
        import pyarrow as pa

        arrays = dict(zip(("states", "attention"), self.content(), strict=True))
        widths = {name: int(np.prod(array.shape[1:])) for name, array in arrays.items()}
        schema = pa.schema([(name, pa.list_(pa.float16(), width)) for name, width in widths.items()])
        with pa.OSFile(str(self.folder / "run.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for begin in range(0, self.n_example, 256):
                parts = [np.ascontiguousarray(array[begin : begin + 256]).reshape(-1) for array in arrays.values()]
                columns = [
                    pa.FixedSizeListArray.from_arrays(pa.array(part), width)
                    for part, width in zip(parts, widths.values(), strict=True)
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))

    def open(self) -> None:
        import pyarrow as pa

        file = pa.ipc.open_file(pa.memory_map(str(self.folder / "run.arrow")))
        shapes = self.sizes["shapes"]
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self.parts = [
            [batch.column(name).flatten().to_numpy().reshape(-1, *shapes[name][1:]) for name in ("states", "attention")]
            for batch in batches
        ]
        self.starts = np.cumsum([0, *(len(part[0]) for part in self.parts)])

    def _of(self, example: int, which: int) -> Array:
        part = int(np.searchsorted(self.starts, example, "right")) - 1
        one: Array = self.parts[part][which][example - self.starts[part]]
        return one

    def cell(self, number: int) -> Array:
        return np.concatenate([states[:, LAYER, self.sizes["cell"]] for states, _ in self.parts])

    def example(self, number: int) -> tuple[Array, Array]:
        one = int(self.order[number])
        return np.array(self._of(one, 0)), np.array(self._of(one, 1))

    def block(self, number: int) -> Array:
        return np.concatenate([part[:, :, :, self.thoughts, self.thought_keys] for _, part in self.parts])

    def random(self, number: int) -> Array:
        return np.stack([self._of(int(one), 0) for one in self.some(number)])

    def rows(self, examples: slice) -> Array:
        part = int(np.searchsorted(self.starts, examples.start, "right")) - 1
        begin = examples.start - int(self.starts[part])
        return np.array(self.parts[part][0][begin : begin + BLOCK][:, list(EPOCH_LAYERS)])


class Safetensors(Indexed):
    """One file, read by slices of its tensors; examples chosen at random one after the other."""

    def write(self) -> None:
        from safetensors.numpy import save_file

        tensors = {name: array[...] for name, array in zip(("states", "attention"), self.content(), strict=True)}
        save_file(tensors, self.folder / "run.safetensors")

    def open(self) -> None:
        from safetensors import safe_open

        file = safe_open(self.folder / "run.safetensors", "np")
        self.states, self.attention = file.get_slice("states"), file.get_slice("attention")

    def example(self, number: int) -> tuple[Array, Array]:
        one = int(self.order[number])
        return self.states[one : one + 1][0], self.attention[one : one + 1][0]

    def cell(self, number: int) -> Array:
        place = self.sizes["cell"]
        return self.states[:, LAYER : LAYER + 1, place : place + 1][:, 0, 0]

    def random(self, number: int) -> Array:
        return np.concatenate([self.states[int(one) : int(one) + 1] for one in self.some(number)])

    def rows(self, examples: slice) -> Array:
        return np.concatenate([self.states[examples, layer : layer + 1] for layer in EPOCH_LAYERS], axis=1)


class ZarrPython(Indexed):
    """The lake, by zarr-python as it comes."""

    def open(self) -> None:
        self.states, self.attention = self.content()

    def random(self, number: int) -> Array:
        return np.asarray(self.states.oindex[self.some(number)])


class Zarrs(ZarrPython):
    """The lake, by zarr-python with the codecs of zarrs."""

    def open(self) -> None:
        import zarr
        import zarrs  # noqa: F401

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        super().open()

    def random(self, number: int) -> Array:
        # It takes slices; lists of numbers go back to zarr-python's own pipeline, which its README says.
        return np.concatenate([self.states[int(one) : int(one) + 1] for one in self.some(number)])


class TensorStore(Indexed):
    """The lake, by tensorstore."""

    def open(self) -> None:
        import tensorstore as ts

        def opened(name: str) -> Any:
            place = {"driver": "file", "path": str(self.folder / "lake" / "m" / "d" / name)}
            return ts.open({"driver": "zarr3", "kvstore": place}, open=True, read=True).result()

        self.states, self.attention = opened("hidden_state"), opened("attention")

    def rows(self, examples: slice) -> Array:
        return np.asarray(self.states[examples, list(EPOCH_LAYERS)].read().result())


READERS = {
    "lake": Lake,
    "memmap by example": MemmapByExample,
    "memmap by layer": MemmapByLayer,
    "HDF5": HDF5,
    "Arrow": Arrow,
    "safetensors": Safetensors,
    "zarr-python": ZarrPython,
    "zarrs": Zarrs,
    "tensorstore": TensorStore,
}
PATTERNS = ("cell", "example", "block", "random", "epoch")


def arrays_of(value: Any) -> Iterator[Array]:
    """Arrays of what a pattern gives."""
    yield from value if isinstance(value, tuple) else (np.asarray(value),)


if __name__ == "__main__":
    from work import serve

    kind, place, stated = sys.argv[1:]
    reader = READERS[kind](Path(place), json.loads(stated))

    def read(pattern: str, number: int) -> None:
        getattr(reader, pattern)(number)

    def digest(pattern: str, number: int) -> str:
        value = hashlib.sha256()
        for array in arrays_of(getattr(reader, pattern)(number)):
            value.update(np.ascontiguousarray(array).tobytes())
        return value.hexdigest()

    serve({"write": reader.write, "open": reader.open, "read": read, "digest": digest})
