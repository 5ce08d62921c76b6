"""How many bytes things take once written, found out by encoding them in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from store.blocks import BlockArray
from store.encode import encode_shard, encoders
from store.files import assemble
from store.layout import COLUMN_CHUNK, ArrayLayout, RunLayout
from store.record import PARTS
from store.skeleton import model_arrays, run_arrays

DOCUMENT_BYTES = 2**14
"""More than the document of an array takes, with what the record and the disk take for its files."""


def encoded_sizes(layout: RunLayout, values: Mapping[str, np.ndarray | BlockArray]) -> dict[str, int]:
    """Bytes of examples as they would be written, by variable, without the shards' indexes.

    ``layout`` has the axes of a run of just these examples; ``values`` has one array for each sharded variable, as
    :meth:`RunLayout.empty` makes them.
    """
    sizes = {}
    with encoders() as pool:
        for name, array in layout.arrays().items():
            arrays_of_name = values[name]
            if isinstance(arrays_of_name, BlockArray):
                files = [
                    encode_shard(array, arrays_of_name, pool, shard).collect().size for shard in range(layout.n_shard)
                ]
                sizes[name] = sum(size - array.index_bytes for size in files if size)
            else:
                sizes[name] = _column_size(array, arrays_of_name)
    return sizes


def _column_size(array: ArrayLayout, values: np.ndarray) -> int:
    arguments = {"chunks": array.chunks, "fill_value": array.fill, "compressors": array.codecs}
    data = values.astype(np.dtypes.StringDType()) if array.dtype == "string" else values
    contents = assemble({}, [(array.name, {"data": data, **arguments})])
    return sum(len(content) for key, content in contents.items() if not key.endswith("zarr.json"))


def run_files_size(layout: RunLayout, columns: Mapping[str, tuple[tuple[str, ...], Any]]) -> tuple[int, int]:
    """Number and bytes of the files of a run that are written when it is created."""
    contents = assemble({}, run_arrays(layout, columns))
    digest_line = 90
    return len(contents) + 1 + len(PARTS), sum(map(len, contents.values())) + len(contents) * digest_line + 4096


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


def most_bytes(
    layout: RunLayout,
    columns: Mapping[str, tuple[tuple[str, ...], Any]] | None = None,
    model: Mapping[str, Any] | None = None,
) -> int:
    """Bytes that the files of a run, and of its model, take at most when they are created; nothing is encoded."""
    build = [] if columns is None else [*run_arrays(layout, columns)]
    build += [] if model is None else [*model_arrays(model)]
    total = 0
    for _, arguments in build:
        values, total = arguments.get("data"), total + DOCUMENT_BYTES
        if values is not None:
            is_text = isinstance(values.dtype, np.dtypes.StringDType)
            raw = sum(4 * len(text) + 4 for text in values.ravel().tolist()) if is_text else values.nbytes
            total += 2 * int(raw)
    return total
