"""A model's read-out, from the lake alone: final norm, unembedding, and what its tokens mean."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import require_dims
from schemas import MODEL_VARIABLES, SchemaError, is_number_token

Array = np.ndarray[Any, np.dtype[Any]]

VOCABULARY_BLOCK = 8192
"""Tokens whose logits are held at once."""

_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")


def logits(state: xr.DataArray, model: xr.Dataset, *, normed: bool = False) -> xr.DataArray:
    """Logits over the whole vocabulary that states would give.

    Parameters
    ----------
    state : (..., hidden)
        ``hidden_state`` of some layer, or ``final_state`` with ``normed``. Lazy input stays lazy.
    model
        Read-out of the run's model, from ``lake.model``.
    normed
        Whether the final norm has been applied.

    Returns
    -------
    (..., vocabulary), float32; every logit at once, so select before: :func:`logit_lens` holds a block of them only
    """
    check_model(model, state)
    readout = ReadOut(model)

    def kernel(values: Array) -> Array:
        values = values.astype("float32")
        values = values if normed else readout.norm(values)
        return np.asarray(values @ readout.unembedding.T)

    result: xr.DataArray = xr.apply_ufunc(
        kernel,
        state.chunk(hidden=-1) if state.chunks is not None else state,
        input_core_dims=[["hidden"]],
        output_core_dims=[["vocabulary"]],
        dask="parallelized",
        output_dtypes=["float32"],
        dask_gufunc_kwargs={"output_sizes": {"vocabulary": model.sizes["vocabulary"]}},
    )
    return result


def final_norm(state: Array, *, kind: str, weight: Array, bias: Array, epsilon: float) -> Array:
    """Layer norm or RMS norm over the last axis, in float32.

    Parameters
    ----------
    state : (..., hidden)
    kind
        ``"layer_norm"``: ``(x - mean) / sqrt(var + eps) * weight + bias``; ``"rms_norm"``: ``x / sqrt(mean(x^2) + eps)
        * weight + bias``, where the bias is 0.
    """
    state = state.astype("float32")
    if kind == "layer_norm":
        state = state - state.mean(-1, keepdims=True)
    scale = np.sqrt((state * state).mean(-1, keepdims=True) + np.float32(epsilon))
    return np.asarray(state / scale * weight + bias)


class ReadOut:
    """Arrays of a model's read-out, loaded once in each process, when a chunk first needs them."""

    def __init__(self, model: xr.Dataset) -> None:
        self._model = model[[name for name in MODEL_VARIABLES if name in model]]
        self._lock = threading.Lock()
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._model, self._lock, self._arrays = state["_model"], threading.Lock(), {}

    def __dask_tokenize__(self) -> Any:
        from dask.base import normalize_token

        return normalize_token(self._model)

    def _get(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = make()
            return self._arrays[name]

    @property
    def unembedding(self) -> Array:
        """``(vocabulary, hidden)``, float32."""
        return np.asarray(self._get("unembedding", lambda: self._model["unembedding"].values.astype("float32")))

    @property
    def strings(self) -> list[str]:
        """Text of each token."""
        return list(self._get("strings", lambda: [str(text) for text in self._model["token_string"].values]))

    @property
    def tokens(self) -> "Tokens":
        """What these texts mean."""
        strings = self.strings
        found: Tokens = self._get("tokens", lambda: Tokens(strings))
        return found

    def norm(self, state: Array) -> Array:
        """States ``(..., hidden)`` after the final norm."""
        weight = self._get("weight", lambda: self._model["final_norm_weight"].values.astype("float32"))
        bias = self._get("bias", lambda: self._model["final_norm_bias"].values.astype("float32"))
        kind, epsilon = self._model.attrs["final_norm"], self._model.attrs["final_norm_epsilon"]
        return final_norm(state, kind=kind, weight=weight, bias=bias, epsilon=epsilon)

    def read(self, final: Array, top: int, gold: Array) -> tuple[Array, Array, Array, Array]:
        """Best tokens, their probabilities, rank and probability of a gold token, over the vocabulary in blocks.

        Parameters
        ----------
        final : (state, hidden), float32
        gold : (state, spelling), token ids, -1: none
        """
        unembedding = self.unembedding
        n, size = len(final), len(unembedding)
        best = np.full((n, 0), -np.inf, dtype="float32")
        which = np.full((n, 0), -1, dtype="int64")
        peak = np.full(n, -np.inf, dtype="float32")
        total = np.zeros(n)
        rows = np.arange(n)[:, None]
        gold_logit = np.where(
            gold >= 0, np.einsum("nh,nsh->ns", final, unembedding[gold]), -np.inf
        )  # (state, spelling)
        better = np.zeros(n, dtype="int64")
        bar = gold_logit.max(-1)
        for start in range(0, size, VOCABULARY_BLOCK):
            block = final @ unembedding[start : start + VOCABULARY_BLOCK].T  # (state, token)
            highest = np.maximum(peak, block.max(-1))
            total = total * np.exp(peak - highest) + np.exp(block - highest[:, None]).sum(-1, dtype="float64")
            peak = highest
            kept = min(top, block.shape[1])
            index = np.argpartition(block, block.shape[1] - kept, axis=-1)[:, -kept:]
            best = np.concatenate([best, block[rows, index]], axis=-1)
            which = np.concatenate([which, index + start], axis=-1)
            order = np.lexsort((which, -best), axis=-1)[:, :top]  # equals by id
            best, which = best[rows, order], which[rows, order]
            above = block > bar[:, None]
            for spelling in range(gold.shape[1]):  # a gold token does not outrank itself by rounding
                inside = (gold[:, spelling] >= start) & (gold[:, spelling] < start + block.shape[1])
                above[np.flatnonzero(inside), gold[inside, spelling] - start] = False
            better += above.sum(-1)
        normaliser = peak + np.log(total)
        known = (gold >= 0).any(-1)
        chance = np.where(known, np.exp(gold_logit - normaliser[:, None]).sum(-1), np.nan)
        return which, np.exp(best - normaliser[:, None]), np.where(known, better + 1.0, np.nan), chance

    def compare(self, final: Array, other: Array) -> tuple[float, float]:
        """Mean KL divergence (nat) of ``other`` from ``final``, and how often their best tokens agree."""
        total, same = 0.0, 0
        for start in range(0, len(final), 256):
            a, b = (x[start : start + 256] @ self.unembedding.T for x in (final, other))
            log_a, log_b = (x - x.max(-1, keepdims=True) for x in (a, b))
            log_a, log_b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_a, log_b))
            total += float((np.exp(log_a) * (log_a - log_b)).sum())
            same += int((a.argmax(-1) == b.argmax(-1)).sum())
        return total / len(final), same / len(final)


class Tokens:
    """What the tokens of a vocabulary mean: which are numbers, of which value, which begin a text."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.is_number = np.array([is_number_token(text) for text in strings])
        stripped = [text.strip() for text in strings]
        self.value = np.array([float(text) if _INTEGER.fullmatch(text) else np.nan for text in stripped])
        self.stripped = np.array(stripped, dtype=object)
        self._id: dict[str, int] = {}
        for index, text in enumerate(strings):
            self._id.setdefault(text, index)

    def first(self, text: str) -> tuple[int, int]:
        """Longest tokens that begin a text, with a leading space and without; -1: none, or the same again."""
        text = text.strip().replace(",", "")
        found = []
        for spelling, least in ((" " + text, 2), (text, 1)):
            lengths = range(len(spelling), least - 1, -1) if text else range(0)
            found.append(next((self._id[spelling[:k]] for k in lengths if spelling[:k] in self._id), -1))
        return (found[0], -1 if found[0] == found[1] else found[1])


def check_model(model: xr.Dataset, state: xr.DataArray) -> None:
    """Refuse a read-out that lacks arrays or is of another width."""
    missing = [name for name in MODEL_VARIABLES if name not in model]
    missing += [name for name in ("final_norm", "final_norm_epsilon") if name not in model.attrs]
    if missing:
        raise SchemaError(f"the model's read-out lacks {', '.join(missing)}; pass lake.model(NAME) of the run's model")
    if model.attrs["final_norm"] not in ("layer_norm", "rms_norm"):
        raise SchemaError(f"the model's final norm is {model.attrs['final_norm']!r}; known are layer_norm and rms_norm")
    require_dims(state, ["hidden"], "the lens")
    if model.sizes["hidden"] != state.sizes["hidden"]:
        raise SchemaError(
            f"the model's read-out has width {model.sizes['hidden']}, the states have {state.sizes['hidden']}; "
            "pass lake.model(NAME) of the run's own model"
        )
