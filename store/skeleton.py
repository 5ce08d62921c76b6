"""Arguments of the arrays of a run's and a model's groups."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from schemas import MODEL_VARIABLES, RUN_VARIABLES, segment_of
from schemas.vocabulary import COORDINATES
from store.files import column
from store.layout import COLUMN_CODECS, RunLayout
from store.record import RunRecord


def model_arrays(arrays: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Arguments of the arrays of a model's group."""
    for name, variable in MODEL_VARIABLES.items():
        values = np.asarray(arrays[name], dtype=object if variable.dtype == "text" else variable.dtype)
        yield column(name, values, variable.dims, long_name=variable.long_name, units=variable.units)


def record_arrays(record: RunRecord) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Arguments of the arrays of a run's record."""
    dims = {"sha256": ("file", "byte"), "size": ("file",), "crc32c": ("chunk",), "row_crc32c": ("row",)}
    for part, (shape, dtype) in record.shapes.items():
        yield (
            part,
            {
                "shape": (record.layout.n_shard, *shape),
                "chunks": (1, *shape),
                "dtype": dtype.newbyteorder("="),
                "fill_value": -1 if part == "size" else 0,
                "compressors": COLUMN_CODECS[1:],
                "dimension_names": ("shard", *dims[part]),
            },
        )


def run_arrays(
    layout: RunLayout, columns: Mapping[str, tuple[tuple[str, ...], Any]]
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Arguments of the arrays of a run's group: what is known beforehand, and room for what the model makes."""
    for name, (dims, values) in columns.items():
        known = RUN_VARIABLES.get(name)
        said = {"long_name": known.long_name, "units": known.units} if known else {}
        yield column(name, values, dims, **said, description=COORDINATES.get(name, ""))
    positions = layout.positions
    axes = {
        "layer": np.arange(layout.n_layer),
        "head": np.arange(layout.n_head),
        "latent": layout.latents,
        **({"iteration": np.arange(layout.n_round)} if layout.n_round else {}),
        "position": positions,
        "key_position": layout.key_positions,
    }
    for name, labels in axes.items():
        yield column(name, labels, (name,), description=COORDINATES[name])
    segments, offsets = map(segment_of, positions), map(layout.places.offset, positions)
    for name, labels in (("segment", list(segments)), ("offset", list(offsets))):
        yield column(name, labels, ("position",), description=COORDINATES[name])
    for name, array in layout.arrays().items():
        variable = layout.variable(name)
        yield (
            name,
            {
                "shape": array.shape,
                "chunks": array.chunks,
                "shards": array.shards,
                "dtype": array.dtype,
                "fill_value": array.fill,
                "compressors": array.codecs,
                "dimension_names": array.dims,
                "attributes": {"long_name": variable.long_name, "units": variable.units},
            },
        )
    yield (
        "committed",
        {
            "shape": (layout.n_example,),
            "chunks": (layout.shard_examples,),
            "dtype": "bool",
            "fill_value": False,
            "compressors": COLUMN_CODECS[1:],
            "dimension_names": ("example",),
            "attributes": {"long_name": RUN_VARIABLES["committed"].long_name},
        },
    )
