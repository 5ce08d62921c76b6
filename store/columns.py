"""Arrays that are not sharded - labels, answers, results: what their documents state, and their values.

On a local disk they are decoded here, a chunk at a time. Through Zarr's event loop and threads a few numbers take
milliseconds, and a result has dozens of arrays; of a large one ten chunks are held at once beside their values.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8
from xarray.backends import BackendArray
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core import indexing
from zarr.dtype import parse_dtype

from store.boxes import parts_of, picks_of
from store.codecs import decompressed
from store.guard import Guard
from store.layout import SHARDED_VARIABLES
from store.range_check import CHECKSUM_BYTES
from store.shards import widened

KEPT_VALUES = 2**20
"""Most values of an array that are kept once they were read."""
DECODED = [("bytes", "crc32c"), ("bytes", "zstd", "crc32c"), ("vlen-utf8", "zstd", "crc32c")]
"""Codecs of arrays that are decoded here."""
SEPARATOR = {"name": "default", "configuration": {"separator": "/"}}


@dataclass(frozen=True, slots=True)
class Stated:
    """What an array's document states."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: dict[str, Any]
    chunks: tuple[int, ...]
    fill: Any
    codecs: tuple[str, ...]
    is_plain: bool
    """Whether it is cut along its first axis alone, and its values are decoded here."""

    @classmethod
    def of(cls, document: bytes) -> "Stated":
        """From the content of a ``zarr.json``."""
        told = json.loads(document)
        shape, chunks = tuple(told["shape"]), tuple(told["chunk_grid"]["configuration"]["chunk_shape"])
        codecs, dtype = tuple(codec["name"] for codec in told["codecs"]), parse_dtype(told["data_type"], zarr_format=3)
        whole_rows = chunks[1:] == tuple(max(1, size) for size in shape[1:])
        return cls(
            dims=tuple(told.get("dimension_names") or ()),  # none of a single number
            shape=shape,
            dtype=dtype.to_native_dtype(),
            attributes=told["attributes"],
            chunks=chunks,
            fill=dtype.from_json_scalar(told["fill_value"], zarr_format=3),
            codecs=codecs,
            is_plain=whole_rows and codecs in DECODED and told["chunk_key_encoding"] == SEPARATOR,
        )

    def decode(self, content: bytes) -> np.ndarray:
        """Values of a chunk, whose checksum is not looked at again."""
        content = content[:-CHECKSUM_BYTES]
        if "zstd" in self.codecs:
            content = decompressed(content)
        is_text = self.codecs[0] == "vlen-utf8"
        values = VLenUTF8().decode(content) if is_text else np.frombuffer(content, self.dtype.newbyteorder("<"))
        return np.asarray(values).reshape(self.chunks)


class HandedOut(BackendArray):
    """An array with values in the types that are handed out.

    ``stated`` is what its document says; with ``stored`` floats keep the type they are stored in.
    """

    def __init__(self, guard: Guard, name: str, stated: Stated, *, stored: bool) -> None:
        self.guard = guard
        self.name = name
        self.stated = stated
        self.shape = stated.shape
        text = isinstance(stated.dtype, np.dtypes.StringDType)
        # numpy's own string type travels badly: sorting, pandas and JSON know objects
        self.dtype = np.dtype(object) if text else stated.dtype if stored else widened(stated.dtype)
        is_small = math.prod(self.shape) <= KEPT_VALUES
        # Labels are read with every selection; what never changes and is small is read once.
        self.kept = name not in (*SHARDED_VARIABLES, "committed") and is_small
        self.here = guard.folder is not None and stated.is_plain
        self._values: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of, no values."""
        return {**self.__dict__, "_values": None}

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Values at an index."""
        if not self.kept:
            return self.guard.reading(lambda: self._read(key))
        if self._values is None:
            everything = indexing.BasicIndexer((slice(None),) * len(self.shape))
            self._values = self.guard.reading(lambda: self._read(everything))
        values = indexing.NumpyIndexingAdapter(self._values)  # type: ignore[no-untyped-call]
        return np.array(indexing.apply_indexer(values, key))

    def _read(self, key: indexing.ExplicitIndexer) -> Any:
        if self.here:
            support = indexing.IndexingSupport.OUTER
            values = indexing.explicit_indexing_adapter(key, self.shape, support, self._decoded)
        else:
            array = zarr.open_array(self.guard, path=self.name, mode="r", zarr_format=3)
            values = ZarrArrayWrapper(array)[key]  # type: ignore[no-untyped-call]
        return np.asarray(values).astype(self.dtype, copy=False)

    def _decoded(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at the product of one number, rising slice or sorted array per axis."""
        if not self.shape:
            return self._chunk("c", 0)[()]
        picks, others = picks_of(self.shape[0], key[0]), self.shape[1:]
        values = np.empty((len(picks), *others), dtype=self.dtype)
        for number, inside, there in parts_of(picks, self.stated.chunks[0]) if values.size else ():
            values[there] = self._chunk("/".join(["c", str(number), *("0" for _ in others)]), number)[inside]
        first = slice(None) if isinstance(key[0], slice | np.ndarray) else 0  # a number takes its axis away
        adapter = indexing.NumpyIndexingAdapter(values)  # type: ignore[no-untyped-call]
        return np.asarray(adapter.oindex[indexing.OuterIndexer((first, *key[1:]))])

    def _chunk(self, key: str, number: int) -> np.ndarray:
        content = self.guard.content_here(f"{self.name}/{key}", number)
        if content is None:
            return np.full(self.stated.chunks, self.stated.fill, dtype=self.dtype)
        return self.stated.decode(content)
