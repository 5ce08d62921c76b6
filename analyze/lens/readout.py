"""A model's read-out, from the lake alone: final norm, unembedding, and what its tokens mean."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import xarray as xr

from analyze.labels import require_dims
from analyze.lens.streams import GROUP, LEAST, Best, LogSumExp, distinct, outranking
from analyze.lens.tokens import Tokens
from schemas import MODEL_VARIABLES, SchemaError

Array = np.ndarray[Any, np.dtype[Any]]

VOCABULARY_BLOCK = 2048
"""Tokens whose logits are held at once."""


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
    (..., vocabulary), float32; every logit at once, so select before: :func:`analyze.lens.logit.logit_lens` holds only
    a block of them
    """
    check_model(model, state)
    readout = ReadOut(model)

    def kernel(values: Array) -> Array:
        values = values.astype("float32")
        values = values if normed else readout.norm(values)
        return readout.capped(np.asarray(values @ readout.unembedding.T))

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
        self._name = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._arrays: dict[str, Any] = {"model": model[[name for name in MODEL_VARIABLES if name in model]]}
        self._stored: tuple[Any, str, list[Any]] | None = None

    @property
    def _model(self) -> xr.Dataset:
        """The model's arrays; a worker reads them when it first needs them, not when it receives its tasks."""

        def read() -> xr.Dataset:
            assert self._stored is not None
            lake, name, variables = self._stored
            return cast("xr.Dataset", lake.model(name)[variables])

        return cast("xr.Dataset", self._get("model", read))

    def __getstate__(self) -> dict[str, Any]:
        if self._stored is not None:
            return {"_stored": self._stored, "_name": self._name}
        lake, name = self._model.encoding.get("stored", (None, ""))
        if lake is not None and lake.still_holds(self._model, name):  # not a gigabyte in every graph: workers read it
            return {"_stored": (lake, name, list(self._model.data_vars)), "_name": self._name}
        return {"_model": self._model, "_name": self._name}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._name = state["_name"]
        self._lock, self._arrays = _loaded(self._name)
        self._stored = state.get("_stored")
        if self._stored is None:
            self._get("model", lambda: state["_model"])

    def __dask_tokenize__(self) -> Any:
        from dask.base import normalize_token

        lake, name = self._model.encoding.get("stored", (None, ""))
        if lake is not None and lake.still_holds(self._model, name):  # its checksums say what is in a gigabyte
            return normalize_token([str(lake.location), name, lake.model_attributes(name), list(self._model.data_vars),
                                    self._model.attrs])  # fmt: skip
        return normalize_token(self._model)

    def _get(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._arrays:
                self._arrays[name] = make()
            return self._arrays[name]

    @property
    def unembedding(self) -> Array:
        """``(vocabulary, hidden)``, float32."""
        return np.asarray(
            self._get("unembedding", lambda: self._model["unembedding"].values.astype("float32", copy=False))
        )

    @property
    def mean_token(self) -> Array:
        """Mean of the unembedding over the vocabulary, ``(hidden,)``."""
        unembedding = self.unembedding
        return np.asarray(self._get("mean", lambda: unembedding.mean(0)))

    @property
    def strings(self) -> list[str]:
        """Text of each token."""
        known: list[str] = self._get("strings", lambda: [str(text) for text in self._model["token_string"].values])
        return known

    @property
    def tokens(self) -> Tokens:
        """What these texts mean."""
        strings = self.strings
        of_vocabulary: Tokens = self._get("tokens", lambda: Tokens(strings))
        return of_vocabulary

    def _norm_arrays(self) -> tuple[Array, Array]:
        """Weight and bias of the final norm, float32."""
        return (
            self._get("weight", lambda: self._model["final_norm_weight"].values.astype("float32")),
            self._get("bias", lambda: self._model["final_norm_bias"].values.astype("float32")),
        )

    def norm(self, state: Array) -> Array:
        """States ``(..., hidden)`` after the final norm."""
        weight, bias = self._norm_arrays()
        kind, epsilon = self._model.attrs["final_norm"], self._model.attrs["final_norm_epsilon"]
        return final_norm(state, kind=kind, weight=weight, bias=bias, epsilon=epsilon)

    def capped(self, logit: Array) -> Array:
        """Logits as the model squashes them: unchanged in most."""
        cap = self._model.attrs.get("logit_softcap")
        return logit if cap is None else np.asarray(cap * np.tanh(logit / np.float32(cap)))

    def along(self, state: Array, towards: Array) -> tuple[Array, Array]:
        """Vectors whose product with a state, or with a part of it, is that of the normed state with ``towards``.

        The final norm is linear once its scale is held at that of the whole state. The product of the normed state with
        ``towards`` is the product of the state with the vector returned, plus that of the bias.

        Parameters
        ----------
        state, towards : (state, hidden)

        Returns
        -------
        vectors (state, hidden), and the product of the bias (state,). Products with parts of a state add up to its own.
        """
        weight, bias = self._norm_arrays()
        # Centring what parts are multiplied with takes the mean off every part at once.
        return self._centred(weight / self.scale(state) * towards), towards @ bias

    def directions(self, vectors: Array) -> tuple[Array, Array]:
        """Vectors (vector, hidden) after the final norm but before its division by :meth:`scale`; its bias; float32."""
        weight, bias = self._norm_arrays()
        return (self._centred(vectors) * weight).astype("float32"), bias

    def scale(self, state: Array) -> Array:
        """What the final norm divides states (..., hidden) by: (..., 1)."""
        state = self._centred(state)
        return np.asarray(np.sqrt((state * state).mean(-1, keepdims=True) + self._model.attrs["final_norm_epsilon"]))

    def _centred(self, vectors: Array) -> Array:
        """Vectors less their mean component, where the final norm takes it off."""
        is_layer_norm = self._model.attrs["final_norm"] == "layer_norm"
        return np.asarray(vectors - vectors.mean(-1, keepdims=True)) if is_layer_norm else vectors

    def likeliest(self, directions: Array, weights: Sequence[Array]) -> Array:
        """Best token of final states that are sums of the first of some directions; of equals the first token.

        The unembedding is multiplied with the directions once, so that a sum of few of them costs as few products.

        Parameters
        ----------
        directions : (direction, hidden), float32
        weights
            Of each kind of sum (state, k), float32: of the first k directions.

        Returns
        -------
        (kind, state) ids
        """
        best = np.full((len(weights), len(weights[0])), -np.inf, dtype="float32")
        token = np.zeros(best.shape, dtype="int64")
        size = VOCABULARY_BLOCK // 4  # sums of few directions take hardly longer than their logits' way to memory
        room = np.empty((len(weights[0]), size), dtype="float32")
        for start in range(0, len(self.unembedding), size):
            along = directions @ self.unembedding[start : start + size].T  # (direction, token)
            for index, weight in enumerate(weights):
                logit = np.matmul(weight, along[: weight.shape[1]], out=room[:, : along.shape[1]])  # (state, token)
                place = logit.argmax(-1)
                highest = logit[np.arange(len(logit)), place]
                better = highest > best[index]
                best[index][better], token[index][better] = highest[better], start + place[better]
        return token

    def read(self, final: Array, top: int, gold: Array) -> tuple[Array, Array, Array, Array]:
        """Best tokens, their probabilities, rank and probability of a gold token.

        Each block of :data:`VOCABULARY_BLOCK` tokens is multiplied once, and everything taken from its logits while
        they are in the cache, so the work is hardly more than the product. Memory: a block of logits (token, state).

        Parameters
        ----------
        final : (state, hidden), float32
        gold : (state, spelling), token ids, -1: none
        """
        gold_logit = np.where(
            gold >= 0, self.capped(np.einsum("nh,nsh->ns", final, self.unembedding[gold])), -np.inf
        )  # (state, spelling)
        best, normaliser, better = self._pass(final, top, gold_logit.max(-1)[:, None], gold[:, None])
        total = normaliser.value()
        known = (gold >= 0).any(-1)
        chance = np.where(known, np.exp(gold_logit - total[:, None]).sum(-1), np.nan)
        rank = np.where(known, better[:, 0] + 1.0, np.nan)
        return best.token, np.exp(best.logit - total[:, None]), rank, chance

    def best(self, final: Array) -> Array:
        """Likeliest token of each state (state, hidden), float32: (state,) ids; of equals the first."""
        best = Best(len(final), 1)
        for start, block in self._logit_blocks(final) if len(final) else ():
            best.add(block, block.reshape(-1, GROUP, len(final)).max(1), start)
        return best.token[:, 0]

    def ranks(self, final: Array, wanted: Array) -> tuple[Array, Array, Array]:
        """Likeliest token, and rank and probability of some tokens in each read-out.

        Parameters
        ----------
        final : (state, hidden), float32
        wanted : (state, what, spelling), token ids, -1: none
            Of several spellings the better rank holds, and probabilities add.

        Returns
        -------
        (state,) ids, (state, what) ranks from 1 and (state, what) probabilities, NaN where no token is wanted
        """
        fewer, place = distinct(wanted)
        logit = self._logits_of(final, fewer)
        best, normaliser, better = self._pass(final, 1, logit.max(-1), fewer)
        chance = np.exp(logit - normaliser.value()[:, None, None]).sum(-1)
        known = (wanted >= 0).any(-1)
        better, chance = (np.take_along_axis(told, place, 1) for told in (better, chance))
        return best.token[:, 0], np.where(known, better + 1.0, np.nan), np.where(known, chance, np.nan)

    def told(self, final: Array, top: int, wanted: Array) -> tuple[Array, Array, Array]:
        """Best tokens, ranks of some tokens as :meth:`ranks` gives them, and entropy (nat), in one pass.

        Parameters
        ----------
        final : (state, hidden), float32
        wanted : (state, what, spelling), token ids, -1: none

        Returns
        -------
        (state, top) ids, (state, what) ranks from 1, NaN where no token is wanted, and (state,) entropies
        """
        fewer, place = distinct(wanted)
        best, total, better = self._pass(final, top, self._logits_of(final, fewer).max(-1), fewer, carried=1)
        ranks = np.where((wanted >= 0).any(-1), np.take_along_axis(better, place, 1) + 1.0, np.nan)
        return best.token, ranks, np.maximum(total.value() - total.carried[0] / total.total, 0.0)

    def _logits_of(self, final: Array, wanted: Array) -> Array:
        """Logits of tokens (state, what, spelling) that are wanted of each state."""
        logit = self.capped(np.einsum("nh,nwsh->nws", final, self.unembedding[wanted]))
        return np.where(wanted >= 0, logit, -np.inf)

    def _pass(
        self, final: Array, top: int, bar: Array, wanted: Array, carried: int = 0
    ) -> tuple[Best, LogSumExp, Array]:
        """One pass over the vocabulary: best tokens, sums of exponentials, and how many logits lie above bars.

        ``bar`` : (state, what) are the logits of the tokens wanted (state, what, spelling); with ``carried`` the sums
        of the entropy, too.
        """
        n = len(final)
        best, normaliser, better = Best(n, top), LogSumExp(n, carried), np.zeros(bar.shape, dtype="int64")
        for start, block in self._logit_blocks(final):
            highest = block.reshape(-1, GROUP, n).max(1)  # (group, state)
            best.add(block, highest, start)
            better += outranking(block, start, bar, wanted)
            normaliser.add(block, highest.max(0), [np.zeros(())] * carried)
        return best, normaliser, better

    def _logit_blocks(self, final: Array) -> Iterator[tuple[int, Array]]:
        """First token and logits (token, state) of each block, in an array that the next one overwrites.

        The last block is filled to whole groups with :data:`LEAST`.
        """
        size = len(self.unembedding)
        whole = -(-min(VOCABULARY_BLOCK, size) // GROUP) * GROUP
        buffer = np.empty((whole, len(final)), dtype="float32")
        for start in range(0, size, whole):
            part = self.unembedding[start : start + whole]
            block = buffer[: -(-len(part) // GROUP) * GROUP]
            np.matmul(part, final.T, out=block[: len(part)])
            if "logit_softcap" in self._model.attrs:
                block[: len(part)] = self.capped(block[: len(part)])
            block[len(part) :] = LEAST
            yield start, block

    def compare(self, final: Array, *others: Array) -> list[tuple[float, float]]:
        """Mean KL divergence (nat) of each of ``others`` from ``final``, and how often their best tokens agree.

        All : (state, hidden), float32. Memory: a block of logits of each.
        """
        return [(float(gap.mean()), float(same.mean())) for gap, same in self.divergences(final, *others)]

    def divergences(self, final: Array, *others: Array) -> list[tuple[Array, Array]]:
        """KL divergence (nat) of each of ``others`` from ``final``, and whether best tokens agree: both (state,).

        As :meth:`compare`, state by state.
        """
        n = len(final)
        own, own_best = LogSumExp(n, carried=len(others)), Best(n, 1)
        theirs = [(LogSumExp(n), Best(n, 1)) for _ in others]
        for (start, block), *rest in zip(*(self._logit_blocks(x) for x in (final, *others)), strict=True):
            highest = block.reshape(-1, GROUP, n).max(1)
            own_best.add(block, highest, start)
            own.add(block, highest.max(0), [other for _, other in rest])
            for (total, best), (_, other) in zip(theirs, rest, strict=True):
                highest = other.reshape(-1, GROUP, n).max(1)
                best.add(other, highest, start)
                total.add(other, highest.max(0))
        of_blocks = []
        for gap, (total, best) in zip(own.carried, theirs, strict=True):
            divergence = gap / own.total - own.value() + total.value()
            of_blocks.append((divergence, (best.token == own_best.token)[:, 0]))
        return of_blocks


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[threading.RLock, dict[str, Any]]:
    """Arrays of a read-out that this worker has loaded: every task unpickles a copy, and all copies share them."""
    return threading.RLock(), {}


def check_model(model: xr.Dataset, data: xr.Dataset | xr.DataArray) -> None:
    """Refuse a read-out that lacks arrays, or is of another width, or model, than a run or states say."""
    state = data["hidden_state"] if isinstance(data, xr.Dataset) else data
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
    made = [data.attrs.get("weights"), json.loads(model.attrs.get("fingerprint", "{}")).get("weights")]
    if None not in made and made[0] != made[1]:
        name, own = model.attrs.get("model", "the model"), data.attrs.get("run", "the run")
        raise SchemaError(f"{name} has other weights than the model of {own}; pass lake.model(NAME) of that model")
