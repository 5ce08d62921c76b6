"""How many bytes reading a part of a run takes, from the indexes of its shards: nothing of it is read."""

import numpy as np
import pandas as pd
import xarray as xr

from schemas import MODEL_VARIABLES
from store.layout import SHARDED_VARIABLES
from store.read import Lake
from store.shards import ShardedArray

SHARDS = 32
"""Shards whose indexes are looked at; of more, as many evenly apart stand for all."""


def bytes_to_read(lake: Lake, run: str, part: xr.DataArray) -> int:
    """Bytes of the chunks of a store that hold a part of a run.

    ``part`` is an activation of the run, or some labels of it along its dims.

    Returns
    -------
    int
        As they are stored, on a local disk; on an object store as they are in memory.
    """
    array, examples = lake.activations(run, str(part.name)) if part.name in SHARDED_VARIABLES else (None, np.empty(0))
    if not isinstance(array, ShardedArray) or lake.folder is None:
        return int(part.size * part.dtype.itemsize)
    whole = lake.open(run, chunks=None)[str(part.name)]
    picks = [_numbers(whole, part, str(dim)) for dim in whole.dims]
    picks[0] = examples[picks[0]]
    if any(not len(pick) for pick in picks):
        return 0
    shards = np.unique(picks[0] // (array.grid[0] * array.layout.chunks[0]))
    looked = shards[np.unique(np.linspace(0, len(shards) - 1, min(SHARDS, len(shards))).round().astype(int))]
    n_byte = array.guard.reading(lambda: array.stored_bytes(picks, looked.tolist()))
    return round(n_byte * len(shards) / len(looked))


def model_bytes(lake: Lake, name: str) -> int:
    """Bytes of what lenses need of a model, as it is stored on a local disk; 0 for an object store."""
    if lake.folder is None:
        return 0
    arrays = (lake.folder / name / variable for variable in MODEL_VARIABLES)
    return sum(path.stat().st_size for array in arrays for path in array.rglob("*") if path.is_file())


def _numbers(whole: xr.DataArray, part: xr.DataArray, dim: str) -> np.ndarray:
    """Places along a dim of the whole that a part has, in order."""
    if dim not in whole.coords or dim not in part.coords:
        return np.arange(whole.sizes[dim])
    places: np.ndarray = pd.Index(whole[dim].values).get_indexer(np.atleast_1d(part[dim].values))
    return np.sort(places[places >= 0])
