"""How many bytes things take once written, found out by encoding them in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from store.files import assemble
from store.layout import COLUMN_CHUNK, RunLayout
from store.write import model_arrays, run_arrays


def encoded_sizes(layout: RunLayout, values: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of examples as they would be written, by variable, without the shards' indexes.

    Parameters
    ----------
    layout
        Axes of a run of just these examples.
    values
        One array per sharded variable.
    """
    sizes = {}
    for name, array in layout.arrays().items():
        memory: dict[str, Buffer] = {}
        written = zarr.create_array(
            MemoryStore(memory),
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=array.dtype,
            fill_value=array.fill,
            compressors=array.codecs,
        )
        text = array.dtype == "string"
        written[:] = values[name].astype(np.dtypes.StringDType()) if text else values[name]
        files = [len(content) for key, content in memory.items() if key != "zarr.json"]
        sizes[name] = max(sum(files) - len(files) * array.index_bytes, 0)
    return sizes


def run_files_size(layout: RunLayout, columns: Mapping[str, tuple[tuple[str, ...], Any]]) -> tuple[int, int]:
    """Number and bytes of the files of a run that are written when it is created."""
    contents = assemble({}, run_arrays(layout, columns))
    digest_line = 90
    return len(contents) + 3, sum(map(len, contents.values())) + len(contents) * digest_line + 4096


def model_size(arrays: Mapping[str, Any]) -> tuple[int, int]:
    """Number and bytes of the files of a model's group, from those of its first rows."""
    rows = len(arrays["token_string"])
    first = {
        name: values[:COLUMN_CHUNK] if name in ("unembedding", "token_string") else values
        for name, values in arrays.items()
    }
    contents = assemble({}, model_arrays(first))
    chunks = -(-rows // COLUMN_CHUNK)
    return len(contents) + 2 * (chunks - 1), int(sum(map(len, contents.values())) * max(1.0, rows / COLUMN_CHUNK))
