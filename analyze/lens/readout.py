"""A model's read-out, from the lake alone: final norm, unembedding, and what its tokens mean."""

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import require_dims
from analyze.lens.tokens import Tokens
from schemas import MODEL_VARIABLES, SchemaError

Array = np.ndarray[Any, np.dtype[Any]]

VOCABULARY_BLOCK = 2048
"""Tokens whose logits are held at once."""
GROUP = 32
"""Tokens whose highest logit is taken first; see :class:`_Best`."""
TILE = 128
"""Tokens whose logits are gone through again and again while in the cache: whole groups, and fewer than 256."""
LEAST = np.finfo("float32").min
"""Logit of no token."""


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
        self._model = model[[name for name in MODEL_VARIABLES if name in model]]
        self._name = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_name": self._name}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._model, self._name = state["_model"], state["_name"]
        self._lock, self._arrays = _loaded(self._name)

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
        return np.asarray(
            self._get("unembedding", lambda: self._model["unembedding"].values.astype("float32", copy=False))
        )

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

    def linear_norm(self, state: Array) -> tuple[Callable[[Array], Array], Array]:
        """The final norm as it is at states ``(state, hidden)``: linear in parts ``(state, part, hidden)``, and bias.

        The scale is that of the whole state; parts that add up to it add up to its norm less the bias.
        """
        weight, bias = self._norm_arrays()
        centred = self._model.attrs["final_norm"] == "layer_norm"
        state = state - state.mean(-1, keepdims=True) if centred else state
        epsilon = np.float32(self._model.attrs["final_norm_epsilon"])
        gain = weight / np.sqrt((state * state).mean(-1, keepdims=True) + epsilon)  # (state, hidden)

        def linear(parts: Array) -> Array:
            parts = parts - parts.mean(-1, keepdims=True) if centred else parts
            return np.asarray(parts * gain[:, None])

        return linear, bias

    def read(self, final: Array, top: int, gold: Array) -> tuple[Array, Array, Array, Array]:
        """Best tokens, their probabilities, rank and probability of a gold token.

        Each block of :data:`VOCABULARY_BLOCK` tokens is multiplied once, and everything taken from its logits while
        they are in the cache, so the work is hardly more than the product. Memory: a block of logits (token, state).

        Parameters
        ----------
        final : (state, hidden), float32
        gold : (state, spelling), token ids, -1: none
        """
        n = len(final)
        best = _Best(n, top)
        normaliser = _LogSumExp(n)
        gold_logit = np.where(
            gold >= 0, self.capped(np.einsum("nh,nsh->ns", final, self.unembedding[gold])), -np.inf
        )  # (state, spelling)
        bar = gold_logit.max(-1)
        better = np.zeros(n, dtype="int64")
        for start, block in self._logit_blocks(final):
            highest = block.reshape(-1, GROUP, n).max(1)  # (group, state)
            best.add(block, highest, start)
            better += _outranking(block, start, bar[:, None], gold[:, None])[:, 0]
            normaliser.add(block, highest.max(0))
        total = normaliser.value()
        known = (gold >= 0).any(-1)
        chance = np.where(known, np.exp(gold_logit - total[:, None]).sum(-1), np.nan)
        return best.token, np.exp(best.logit - total[:, None]), np.where(known, better + 1.0, np.nan), chance

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
        n = len(final)
        logit = np.where(wanted >= 0, self.capped(np.einsum("nh,nwsh->nws", final, self.unembedding[wanted])), -np.inf)
        bar = logit.max(-1)  # (state, what)
        best, normaliser, better = _Best(n, 1), _LogSumExp(n), np.zeros(bar.shape, dtype="int64")
        for start, block in self._logit_blocks(final):
            highest = block.reshape(-1, GROUP, n).max(1)
            best.add(block, highest, start)
            better += _outranking(block, start, bar, wanted)
            normaliser.add(block, highest.max(0))
        known = (wanted >= 0).any(-1)
        chance = np.exp(logit - normaliser.value()[:, None, None]).sum(-1)
        return best.token[:, 0], np.where(known, better + 1.0, np.nan), np.where(known, chance, np.nan)

    def entropy(self, final: Array) -> Array:
        """Shannon entropy (nat) of the distribution over the vocabulary at final states (state, hidden): (state,)."""
        total = _LogSumExp(len(final), carried=1)
        for _, block in self._logit_blocks(final):
            total.add(block, block.max(0), [np.zeros(())])
        return np.asarray(np.maximum(total.value() - total.carried[0] / total.total, 0.0))

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
        own, own_best = _LogSumExp(n, carried=len(others)), _Best(n, 1)
        theirs = [(_LogSumExp(n), _Best(n, 1)) for _ in others]
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
def _loaded(name: str) -> tuple[threading.Lock, dict[str, Any]]:
    """What a worker has loaded of a read-out: each task comes with a copy of it, and all of them share this."""
    return threading.Lock(), {}


def _outranking(block: Array, start: int, bar: Array, wanted: Array) -> Array:
    """How many logits of a block (token, state) that begins at a token lie above bars: (state, what).

    A wanted token (state, what, spelling) does not outrank itself by rounding.
    """
    count = np.zeros(bar.shape[::-1], dtype="int64")  # (what, state)
    lines = np.ascontiguousarray(bar.T)
    above = np.empty((TILE, block.shape[1]), dtype=bool)
    for first in range(0, len(block), TILE):
        tile = block[first : first + TILE]
        for index, line in enumerate(lines):
            inside = np.greater(tile, line, out=above[: len(tile)])
            count[index] += inside.view("uint8").sum(0, dtype="uint8")
    state, what, spelling = np.nonzero((wanted >= start) & (wanted < start + len(block)))
    token = wanted[state, what, spelling] - start
    np.subtract.at(count, (what, state), block[token, state] > bar[state, what])
    return count.T


class _LogSumExp:
    """Logarithm of a sum of exponentials for each state, from blocks of logits."""

    def __init__(self, n: int, carried: int = 0) -> None:
        self.peak = np.full(n, -np.inf, dtype="float32")
        self.total = np.zeros(n)
        self.carried = np.zeros((carried, n))
        """Sums of the exponentials times how far the logits lie above others."""

    def add(self, block: Array, highest: Array, others: Sequence[Array] = ()) -> None:
        """Count a block (token, state) with its maxima (state,), and others to be carried; overwrites the block."""
        n = block.shape[1]
        peak = np.maximum(self.peak, highest)
        shrunk = np.exp(self.peak - peak)
        self.total *= shrunk
        self.carried *= shrunk
        for start in range(0, len(block), TILE):
            tile = block[start : start + TILE]
            gaps = [tile - (other[start : start + TILE] if other.ndim else np.float32(0)) for other in others]
            np.subtract(tile, peak, out=tile)
            np.exp(tile, out=tile)
            # Sums of a group are taken in float32, sums of the groups in float64.
            self.total += tile.reshape(-1, GROUP, n).sum(1).sum(0, dtype="float64")
            for index, gap in enumerate(gaps):
                np.multiply(gap, tile, out=gap)
                self.carried[index] += gap.reshape(-1, GROUP, n).sum(1).sum(0, dtype="float64")
        self.peak = peak

    def value(self) -> Array:
        """The logarithm, (state,)."""
        return np.asarray(self.peak + np.log(self.total))


class _Best:
    """The best tokens of each state so far, and their logits; of equals the first."""

    def __init__(self, n: int, top: int) -> None:
        self.top = top
        self.logit = np.full((n, top), LEAST, dtype="float32")
        self.token = np.zeros((n, top), dtype="int64")

    def add(self, block: Array, highest: Array, start: int) -> None:
        """Count a block (token, state) that begins at a token, with the maxima (group, state) of its groups.

        At least ``top`` groups reach the ``top``-th highest of their maxima, so no smaller logit is among the best, and
        few groups need a closer look.
        """
        n = block.shape[1]
        bar = self.logit.min(-1)
        some = highest if len(highest) > 2 * self.top else block  # few groups would tell little
        if len(some) >= self.top:
            least = some.max(0) if self.top == 1 else np.partition(some, len(some) - self.top, axis=0)[-self.top]
            bar = np.maximum(bar, least)
        group, state = np.nonzero(highest >= bar)
        logit = block.reshape(-1, GROUP, n)[group, :, state]  # (pair, token of the group)
        pair, within = np.nonzero((logit >= bar[state, None]) & (logit > LEAST))
        logit, token, state = logit[pair, within], start + group[pair] * GROUP + within, state[pair]
        changed = np.unique(state)
        logit = np.concatenate([logit, self.logit[changed].ravel()])
        token = np.concatenate([token, self.token[changed].ravel()])
        state = np.concatenate([state, np.repeat(changed, self.top)])
        order = np.lexsort((token, -logit, state))
        state = state[order]
        place = np.arange(len(state)) - np.searchsorted(state, state)  # among those of its state
        order, state, place = (x[place < self.top] for x in (order, state, place))
        self.logit[state, place], self.token[state, place] = logit[order], token[order]


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
