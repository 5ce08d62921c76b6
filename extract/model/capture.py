"""Read a model while it runs: key-value cache, attention function, hooks on blocks, buffers, checks.

Nothing of this stays on the model: hooks live for one pass, and the attention function, set once at load, does the
same as the library's unless a pass is handed to it.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from schemas import LakeError

ATTENTION = "activation_lake"
"""Name under which :func:`attend` is registered with transformers."""
ROW_SUM_TOLERANCE = 1e-4
"""How far the probabilities of a row may be from summing to 1; they are float32 whatever the model runs in."""


class Editor(Protocol):
    """What interventions look like from inside a pass. ``rows`` are the batch rows still running.

    ``first`` is the offset from ``bot`` of the first of the pass's positions.
    """

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""

    def hidden_state(self, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Output ``(row, position, hidden)`` of a block."""

    def head_output(self, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Input ``(row, position, head, head_size)`` of an output projection."""

    def attention(self, layer: int, value: Tensor, first: int, rows: Tensor, n_before: int) -> Tensor:
        """Probabilities ``(row, head, position, key_position)``."""

    def touches(self, site: str, layer: int, first: int, n_position: int) -> bool:
        """Whether anything is armed at a site of a layer for any of these positions."""


class KeyValues:
    """Keys and values of every layer, with room for a known number of columns.

    Written in place; a branch copies what it needs (:meth:`take`), and a pass over columns that are to be written
    again sets :attr:`length` back. ``differentiable`` concatenates instead, for gradients.
    """

    def __init__(self, capacity: int, *, differentiable: bool = False) -> None:
        self.capacity = capacity
        self.length = 0
        self.differentiable = differentiable
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(row, head, position, head_size)`` of a layer; give all of them."""
        end = self.length + key.shape[2]
        if layer == len(self._keys):
            for store, new in ((self._keys, key), (self._values, value)):
                store.append(
                    new[:, :, :0] if self.differentiable else new.new_empty(*new.shape[:2], self.capacity, new.shape[3])
                )
        if self.differentiable:
            self._keys[layer] = torch.cat([self._keys[layer][:, :, : self.length], key], dim=2)
            self._values[layer] = torch.cat([self._values[layer][:, :, : self.length], value], dim=2)
        else:
            self._keys[layer][:, :, self.length : end] = key
            self._values[layer][:, :, self.length : end] = value
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def take(self, rows: Tensor, length: int, capacity: int, *, differentiable: bool = False) -> "KeyValues":
        """Copy of the first ``length`` columns of some rows, which may repeat."""
        taken = KeyValues(capacity, differentiable=differentiable)
        taken.length = length
        for store, source in ((taken._keys, self._keys), (taken._values, self._values)):
            for old in source:
                new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
                new[:, :, :length] = old[:, :, :length].index_select(0, rows)
                store.append(new)
        return taken

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns filled; asked by the library where no position ids are given."""
        return self.length


def cache_argument(body: nn.Module) -> str:
    """What a decoder calls its cache: ``cache`` from transformers 5.24 on, ``past_key_values`` before."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


class Recorder:
    """Buffers of one batch, in the stored type, aligned at ``bot``.

    Positions run from ``first`` columns into the batch (all of them, or from ``bot`` on); key positions over all
    columns. Nothing is looked at before the batch is done: every look makes a GPU wait.
    """

    def __init__(
        self, *, rows: int, layers: int, heads: int, hidden: int, columns: int, first: int, latents: int,
        stored: torch.dtype, device: torch.device, head_size: int | None = None,
    ) -> None:  # fmt: skip
        positions = columns - first
        self.first = first
        self.stored = stored

        def zeros(*shape: int) -> Tensor:
            if device.type == "cpu":  # NumPy asks for huge pages, without which first writing costs twice as much
                return torch.from_numpy(np.zeros(shape, dtype=str(stored).removeprefix("torch.")))
            return torch.zeros(shape, dtype=stored, device=device)

        self.hidden_state = zeros(rows, layers, positions, hidden)
        self.final_state = zeros(rows, positions, hidden)
        self.latent_embedding = zeros(rows, latents, hidden)
        self.attention = zeros(rows, layers, heads, positions, columns)
        self.head_output: Tensor | None = None
        if head_size is not None:
            self.head_output = zeros(rows, layers, positions, heads, head_size)
        self._row_sum = torch.zeros(rows, layers, heads, positions, device=device)

    def block(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep the output of a block, of the columns from ``column`` on."""
        self._keep(self.hidden_state[:, layer], value, column, rows)

    def final(self, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep states after the final norm."""
        self._keep(self.final_state, value, column, rows)

    def heads(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep the inputs ``(row, position, head, head_size)`` of an output projection, if asked for."""
        if self.head_output is not None:
            self._keep(self.head_output[:, layer], value, column, rows)

    def _keep(self, buffer: Tensor, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Put values ``(row, position, ...)`` whose first position is ``column`` where they belong in a buffer."""
        skipped = max(self.first - column, 0)
        if skipped < value.shape[1]:
            start = column + skipped - self.first
            _assign(buffer[:, start : start + value.shape[1] - skipped], value[:, skipped:], rows)

    def rows_of(self, column: int, positions: int) -> int:
        """How many of the last of these columns' attention rows are kept."""
        return min(max(column + positions - self.first, 0), positions)

    def probabilities(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep attention rows ``(row, head, position, key_position)``, the first of them at ``column``."""
        n_position, n_key = value.shape[2:]
        start = column - self.first
        past = value.tril(column) if n_position > 1 else value
        _assign(self._row_sum[:, layer, :, start : start + n_position], past.sum(-1), rows)
        _assign(self.attention[:, layer, :, start : start + n_position, :n_key], value, rows)

    def finish(self, exists: Tensor, columns: int) -> tuple[dict[str, Tensor], Tensor]:
        """Arrays cut to the answers' length, what does not exist marked as such; and what :meth:`check` looks at.

        Parameters
        ----------
        exists : (row, position)
            Whether a row has a token or a thought there.
        columns
            Key positions that any row has.

        Returns
        -------
        tuple
            Arrays by name, as :class:`extract.model.reasoner.Thinking` has them, still on the device; and
            (2 layer + 2,) float32: the largest magnitude after each block, after the final norm and among the
            vectors fed, then by layer how far attention over the past is from 1.
        """
        n_position = exists.shape[1]
        hidden, final = self.hidden_state[:, :, :n_position], self.final_state[:, :n_position]
        attention = self.attention[:, :, :, :n_position, :columns]
        off = (self._row_sum[..., :n_position] - 1).abs().where(exists[:, None, None], 0).amax((0, 2, 3))
        peaks = [
            _peak_of(hidden, exists[:, None]).amax((0, 2)),
            _peak_of(final, exists).amax()[None],
            _peak_of(self.latent_embedding).amax()[None] if self.latent_embedding.numel() else hidden.new_zeros(1),
        ]
        absent = ~exists
        arrays = {
            "hidden_state": hidden.masked_fill_(absent[:, None, :, None], torch.nan),
            "final_state": final.masked_fill_(absent[:, :, None], torch.nan),
            "latent_embedding": self.latent_embedding,
            "attention": attention.masked_fill_(absent[:, None, None, :, None], 0),
        }
        if self.head_output is not None:
            heads = self.head_output[:, :, :n_position]
            arrays["head_output"] = heads.masked_fill_(absent[:, None, :, None, None], torch.nan)
        return arrays, torch.cat([*peaks, off])

    def check(self, measured: Tensor) -> None:
        """Nothing kept is non-finite or beyond the stored type's range, and attention is a distribution over the past.

        Parameters
        ----------
        measured
            Of :meth:`finish`.

        Raises
        ------
        StoredRangeError
            If values are not finite as stored; as computed they may be.
        LakeError
            If states are not finite, or attention is no distribution.
        """
        n_layer = self.hidden_state.shape[1]
        where = [
            *(f"states after layer {layer}" for layer in range(n_layer)),
            "states after the final norm",
            "vectors fed",
        ]
        values = measured.tolist()
        for place, (value, name) in enumerate(zip(values, where, strict=False)):
            if not math.isfinite(value):
                if self.stored != torch.float32:
                    raise StoredRangeError(name, place)
                raise LakeError(f"{name} are not finite; run in --compute-dtype float32, or bfloat16 on a GPU")
        for layer, worst in enumerate(values[n_layer + 2 :]):
            if not worst <= ROW_SUM_TOLERANCE:
                raise LakeError(
                    f"attention of layer {layer}: probabilities of the past sum to 1 only within {worst:.1e};"
                    " nothing was kept"
                )


class StoredRangeError(LakeError):
    """Values are not finite in the type they are stored in; of which place in what :meth:`Recorder.check` reads."""

    def __init__(self, name: str, place: int) -> None:
        super().__init__(name)
        self.place = place


def _assign(buffer: Tensor, value: Tensor, rows: Tensor | None) -> None:
    """Put values into a buffer of another type, into some of its rows or all."""
    if rows is None:
        buffer.copy_(value)
    else:
        buffer[rows] = value.to(buffer.dtype)


def _peak_of(value: Tensor, exists: Tensor | None = None) -> Tensor:
    """Largest magnitude along the last axis, 0 where nothing exists, NaN if any is; float32."""
    peak = torch.maximum(value.amax(-1), value.amin(-1).neg()).float()
    return peak if exists is None else peak.where(exists, 0)


@dataclass
class Pass:
    """One forward pass over consecutive columns of a batch, as the attention function and the hooks see it."""

    column: int
    """First column."""
    n_before: int
    """Column of ``bot``."""
    rows: Tensor
    """Batch rows still running."""
    all_rows: bool
    mask: Tensor
    """``(row, 1, position, key_position)``: may the query see the key."""
    recorder: Recorder | None = None
    editor: Editor | None = None

    @cached_property
    def unseen(self) -> Tensor:
        """What :attr:`mask` hides."""
        return ~self.mask

    @property
    def kept_rows(self) -> Tensor | None:
        """Index of the rows to write in the buffers; ``None``: all, in order."""
        return None if self.all_rows else self.rows


def unwrap(output: Any, like: Tensor) -> Tensor:
    """Residual stream in a block's output: a tensor since transformers 5, the first of a tuple before."""
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor) or value.shape != like.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise LakeError(f"a block returned {found} where {tuple(like.shape)} was expected: unknown block layout")
    return value


def probabilities_of(query: Tensor, key: Tensor, unseen: Tensor, scaling: float) -> Tensor:
    """Attention probabilities ``(row, head, position, key_position)``, in float32 whatever type the model runs in.

    Parameters
    ----------
    query : (row, head, position, head_size)
    key : (row, key head, key_position, head_size)
        Each key head serves as many heads as there are for one.
    unseen : (row, 1, position, key_position)
        Keys that a query must not see.
    scaling
        Factor of the scores.
    """
    n_row, n_head, n_position, size = query.shape
    grouped = (query.float() * scaling).reshape(n_row, key.shape[1], -1, size)
    scores = torch.matmul(grouped, key.float().transpose(-1, -2)).view(n_row, n_head, n_position, -1)
    return torch.softmax(scores.masked_fill_(unseen, float("-inf")), dim=-1)


def _mix(probabilities: Tensor, value: Tensor) -> Tensor:
    """Heads' outputs ``(row, head, position, head_size)``: values weighted by probabilities."""
    n_row, n_head, n_position, n_key = probabilities.shape
    grouped = probabilities.to(value.dtype).reshape(n_row, value.shape[1], -1, n_key)
    return torch.matmul(grouped, value).view(n_row, n_head, n_position, -1)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, lake_pass: Pass | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it, ``(row, head, position, head_size)`` in, positions before heads out.

    Without a pass it is plain scaled dot-product attention; a pass reads and changes probabilities and head outputs.
    In reduced precision every pass goes the same way, so that a captured run and one that is not are the same run.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if lake_pass is None:
        causal = attention_mask is None and query.shape[2] > 1
        return _fused(query, key, value, attention_mask, scale, dropout=dropout, is_causal=causal), None
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    n_position = query.shape[2]
    first = lake_pass.column - lake_pass.n_before
    recorder, editor = lake_pass.recorder, lake_pass.editor
    n_kept = 0 if recorder is None else recorder.rows_of(lake_pass.column, n_position)
    edited = editor is not None and editor.touches("attention", layer, first, n_position)
    kept: Tensor | None = None
    if edited or n_kept == n_position or query.dtype != torch.float32:
        kept = probabilities_of(query, key, lake_pass.unseen, scale)
        if editor is not None and edited:
            kept = editor.attention(layer, kept, first, lake_pass.rows, lake_pass.n_before)
        out = _mix(kept, value).transpose(1, 2).contiguous()
        kept = kept[:, :, n_position - n_kept :]
    else:
        out = _fused(query, key, value, lake_pass.mask, scale)
        if n_kept:
            kept = probabilities_of(query[:, :, -n_kept:], key, lake_pass.unseen[:, :, -n_kept:], scale)
    if recorder is not None and kept is not None and n_kept:
        recorder.probabilities(layer, kept, lake_pass.column + n_position - n_kept, lake_pass.kept_rows)
    if editor is not None and editor.touches("head_output", layer, first, n_position):
        out = editor.head_output(layer, out, first, lake_pass.rows)
    if recorder is not None:
        recorder.heads(layer, out, lake_pass.column, lake_pass.kept_rows)
    return out, None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, *,
    dropout: float = 0.0, is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention by torch's own kernel, positions before heads."""
    n_repeat = query.shape[1] // key.shape[1]
    if n_repeat > 1:  # torch's enable_gqa would leave the fast kernels where there is a mask
        key, value = key.repeat_interleave(n_repeat, dim=1), value.repeat_interleave(n_repeat, dim=1)
    out = scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=is_causal, scale=scale)
    return out.transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def block_hooks(blocks: Sequence[nn.Module], current: Callable[[], Pass | None]) -> Iterator[None]:
    """Hooks on every block for as long as the context lasts, whatever is raised inside it."""

    def hook_of(layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            running = current()
            if running is None:
                return None
            value = unwrap(output, arguments[0] if arguments else keywords["hidden_states"])
            first = running.column - running.n_before
            editor = running.editor
            edited = editor is not None and editor.touches("hidden_state", layer, first, value.shape[1])
            if editor is not None and edited:
                value = editor.hidden_state(layer, value, first, running.rows)
            if running.recorder is not None:
                running.recorder.block(layer, value, running.column, running.kept_rows)
            if not edited:
                return None
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return hook

    handles = [block.register_forward_hook(hook_of(layer), with_kwargs=True) for layer, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Capture = Literal["latent", "full"]
