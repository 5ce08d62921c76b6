"""Codes of a sparse dictionary: which features of a pre-activation are kept, on plain arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
