"""A group's arrays as a lazy dataset."""

import math
import os
from collections.abc import Mapping
from typing import Any

import dask.threaded
import numpy as np
import xarray as xr
from xarray.core.indexing import LazilyIndexedArray, MemoryCachedArray

from schemas import canonical_json
from store.columns import HandedOut, Stated
from store.guard import Guard
from store.layout import ArrayLayout, RunLayout
from store.remote_array import RemoteArray
from store.shards import ShardedArray

BLOCK_BYTES = 8 * 2**20
"""Aim for the size of one dask block: whole shards of one layer and position, up to this many bytes."""


def open_group(
    guard: Guard, attributes: Mapping[str, Any], handed_out: Mapping[str, Any] | None = None, *, stored: bool
) -> xr.Dataset:
    """Lazy dataset of a group's arrays, in order of their names."""
    guard.read_documents()
    layouts = {} if guard.record is None else guard.record.layout.arrays()
    variables = {}
    for name, key in guard.arrays().items():
        stated = Stated.of(guard.documents[key])
        if name in layouts and layouts[name].shards is not None:
            data: Any = LazilyIndexedArray(sharded_array(guard, layouts[name], stored=stored))
        else:
            data = LazilyIndexedArray(HandedOut(guard, name, stated, stored=stored))
            data = MemoryCachedArray(data)  # type: ignore[no-untyped-call]
        noted = {key: _savable(value) for key, value in stated.attributes.items()}
        variables[name] = xr.Variable(stated.dims, data, noted)
    named = str(attributes.get("coordinates", "")).split()
    hidden = ("seal", "files", "kind", "coordinates")
    attrs = handed_out or {key: value for key, value in attributes.items() if key not in hidden}
    dataset = xr.Dataset(variables, attrs={key: _savable(value) for key, value in attrs.items()})
    return dataset.set_coords([name for name in named if name in variables])


def sharded_array(guard: Guard, layout: ArrayLayout, *, stored: bool) -> ShardedArray:
    """One activation of a run, read from a local disk or an object store."""
    return (RemoteArray if guard.folder is None else ShardedArray)(guard, layout, stored=stored)


def committed_examples(dataset: xr.Dataset, keep: np.ndarray) -> xr.Dataset:
    """Examples where ``keep`` holds, as slices where they run together, so that the selection stays lazy."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.astype(np.int8), [0]])))
    if len(edges) == 2:
        return dataset.isel(example=slice(int(edges[0]), int(edges[1])))
    return dataset.isel(example=np.flatnonzero(keep))


def block_shapes(dataset: xr.Dataset, layout: RunLayout, most: int | None = None) -> dict[str, dict[str, int]]:
    """Shape of the dask blocks of each large variable; ``most`` bounds their examples, but a shard is never divided."""
    shapes = {}
    for name, array in layout.arrays().items():
        if array.shards is not None:
            inner = dict(zip(array.dims, array.chunks, strict=True))
            row = math.prod(size for dim, size in inner.items() if dim != "example") * dataset[name].dtype.itemsize
            fitting = BLOCK_BYTES // row if most is None else min(BLOCK_BYTES // row, most)
            shards = max(1, fitting // layout.shard_examples)
            shapes[name] = inner | {"example": shards * layout.shard_examples}
    return shapes


def _savable(value: Any) -> Any:
    """An attribute as every format can hold it: a number or a text."""
    return value if isinstance(value, str | int | float) else canonical_json(value)


def _forget_threads() -> None:
    """A forked process has none of its parent's threads, though dask's pools still count on them."""
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
