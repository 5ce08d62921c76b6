"""Dask arrays of a lake's values, of which a few examples are read alone instead of with the blocks they lie in."""

import math
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.slicing import normalize_index

from store.opening import BLOCK_BYTES
from store.shards import ROW_SHARE


class _LikeDask(type):
    """Classes that are the same as dask's where types are compared.

    Xarray refuses to work with arrays of several chunked types together, and compares nothing but their types.
    """

    def __eq__(cls, other: object) -> bool:
        return other is da.Array or type.__eq__(cls, other) is True

    def __hash__(cls) -> int:
        return hash(da.Array)


class LakeArray(da.Array, metaclass=_LikeDask):  # type: ignore[misc]
    """A dask array that remembers the lazy variable it was made of, as long as it is only indexed.

    Dask would read whole blocks, thousands of examples for a single one that is asked for. So where at most one in
    ``ROW_SHARE`` examples of the blocks is wanted, the result has blocks of its own, of these examples alone, and so
    has whatever is taken of that: its blocks have all positions, which need not be read for one. Where more are wanted,
    in rising order, each block of the result lies in one block of the source: dask would join those of two blocks, and
    whoever takes block after block would then read some blocks twice.
    Values, dims and order are those of any dask array, and whatever is computed from one is a plain dask array.
    """

    source: xr.Variable
    """The same values, lazy and without dask."""
    few: bool
    """Whether its blocks are of few examples alone."""

    @classmethod
    def of(cls, array: da.Array, source: xr.Variable, few: bool = False) -> "LakeArray":
        """A dask array and the variable whose values it has."""
        made: LakeArray = cls(array.dask, array.name, array.chunks, meta=array._meta)
        made.source, made.few = source, few
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """The dask array and its source."""
        return LakeArray.of, (da.Array(self.dask, self.name, self.chunks, meta=self._meta), self.source, self.few)

    def __getitem__(self, index: Any) -> da.Array:
        """What NumPy would give for numbers, slices and at most one array of numbers, lazily; else as dask does it."""
        if not _is_outer(index):
            return super().__getitem__(index)
        key = normalize_index(index, self.shape)
        picked = self.source[key]
        if "example" not in self.source.dims:
            return LakeArray.of(super().__getitem__(index), picked)
        axis = self.source.dims.index("example")
        rows, sizes = np.atleast_1d(np.arange(self.shape[axis])[key[axis]]), np.array(self.chunks[axis])
        blocks, n_picked = np.unique(np.searchsorted(sizes.cumsum(), rows, side="right"), return_counts=True)
        if len(rows) and (self.few or len(rows) * ROW_SHARE <= int(sizes[blocks].sum())):
            return LakeArray.of(picked.chunk(few_shapes(picked)).data, picked, few=True)
        if not isinstance(key[axis], np.ndarray) or not len(rows) or (np.diff(rows) <= 0).any():
            return LakeArray.of(super().__getitem__(index), picked)
        others = super().__getitem__((*key[:axis], slice(None), *key[axis + 1 :]))
        shapes = dict(zip(picked.dims, others.chunks, strict=True)) | {"example": tuple(n_picked.tolist())}
        return LakeArray.of(picked.chunk(shapes).data, picked)


def chunked(source: xr.Variable, blocks: dict[str, Any]) -> LakeArray:
    """A lazy variable as a dask array with blocks of these sizes."""
    return LakeArray.of(source.chunk(blocks).data, source)


def read_in(array: xr.DataArray, blocks: dict[str, Any]) -> xr.DataArray:
    """A lazy array in other blocks: what a lake holds is read in them, anything else joined from the blocks it has."""
    if not isinstance(array.data, LakeArray):
        return array.chunk(blocks)
    return array.copy(data=chunked(array.data.source, blocks))


def few_shapes(picked: xr.Variable) -> dict[str, int]:
    """Blocks of few examples: all of a layer of them, and as many layers as ``BLOCK_BYTES`` hold."""
    sizes = {str(dim): size for dim, size in picked.sizes.items()}
    n_example, n_layer = sizes.get("example", 1), sizes.get("layer", 1)
    fitting = BLOCK_BYTES * n_example * n_layer // max(1, math.prod(sizes.values()) * picked.dtype.itemsize)
    shapes = {dim: max(1, size) for dim, size in sizes.items()}
    blocks = {"example": min(n_example, fitting), "layer": min(n_layer, fitting // max(1, n_example))}
    return shapes | {dim: max(1, size) for dim, size in blocks.items() if dim in sizes}


def _is_outer(index: Any) -> bool:
    """Whether an index is of numbers, slices and at most one array of numbers."""
    key = index if isinstance(index, tuple) else (index,)
    n_array = sum(isinstance(part, np.ndarray | list) and np.ndim(part) == 1 for part in key)
    n_plain = sum(isinstance(part, int | np.integer | slice) and not isinstance(part, bool) for part in key)
    return n_array <= 1 and n_array + n_plain == len(key)
