"""Codes of a sparse dictionary: which features of a pre-activation are kept, and whose features they are."""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr


def dictionaries(sae: "xr.Dataset") -> "Iterator[tuple[int, xr.Dataset]]":
    """The dictionaries of a stored one: of scope ``cell`` one for each cell, as a pool of that cell alone; else itself.

    Yields
    ------
    Number of its first feature among the features of all cells, and the dictionary; its ``frequency`` keeps the cells'
    dims, and ``top_layer``, ``top_position`` or ``top_latent`` name the cell.
    """
    if sae.attrs["scope"] != "cell":
        yield 0, sae
        return
    dims = [str(dim) for dim in sae["frequency"].dims if dim != "feature"]
    for number, labels in enumerate(product(*(sae[dim].values.tolist() for dim in dims))):
        place = dict(zip(dims, labels, strict=True))
        one = sae.sel(place).drop_vars(dims)
        one["frequency"] = one["frequency"].expand_dims({dim: [label] for dim, label in place.items()})
        rank = one["top_example"]
        tops = {f"top_{dim}": rank.copy(data=np.full(rank.shape, label)) for dim, label in place.items()}
        yield number * sae.sizes["feature"], one.assign(tops).assign_attrs(scope="pool")


def active_codes(
    pre: NDArray[np.float32],
    bias: NDArray[np.float32],
    threshold: NDArray[np.float32],
    activation: str,
    k: int,
) -> NDArray[np.float32]:
    """Codes of pre-activations (..., feature) without their bias; rows of NaN stay so."""
    pre = pre + bias
    if activation in ("relu", "jumprelu", "batch_topk"):
        floor: Any = 0.0 if activation == "relu" else np.maximum(threshold, 0)
        return np.asarray(np.where(np.isnan(pre) | (pre > floor), pre, np.float32(0)))
    size = np.abs(pre) if activation == "abs_topk" else pre
    index = np.argpartition(size, pre.shape[-1] - k, axis=-1)[..., -k:] if k < pre.shape[-1] else None
    if index is None:
        kept = pre
    else:
        kept = np.zeros_like(pre)
        np.put_along_axis(kept, index, np.take_along_axis(pre, index, axis=-1), axis=-1)
    if activation == "topk":
        kept = np.maximum(kept, 0)
    return np.asarray(np.where(np.isnan(pre).any(axis=-1, keepdims=True), np.float32(np.nan), kept))
