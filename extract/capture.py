"""Read a model while it runs: key-value cache, attention function, hooks on blocks, buffers, checks.

Nothing of this stays on the model: hooks live for one pass, and the attention function, set once at load, does the
same as the library's unless a pass is handed to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from schemas import LakeError

ATTENTION = "activation_lake"
"""Name under which :func:`attend` is registered with transformers."""
ROW_SUM_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


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


class Recorder:
    """Buffers of one batch, in the stored type, aligned at ``bot``.

    Positions run from ``first`` columns into the batch (all of them, or from ``bot`` on); key positions over all
    columns.
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
        # Looked at once, when all is done: every look makes a GPU wait.
        self._peak = torch.zeros(layers + 1, device=device)
        self._off = torch.zeros(layers, device=device)
        self._future = torch.zeros(layers, device=device)
        self._tolerance = 0.0

    def block(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep the output of a block, of the columns from ``column`` on."""
        kept = max(self.first - column, 0)
        if kept < value.shape[1]:
            value = value[:, kept:]
            start = column + kept - self.first
            self._peak[layer] = torch.maximum(self._peak[layer], _peak_of(value))
            if rows is None:
                self.hidden_state[:, layer, start : start + value.shape[1]] = value
            else:
                self.hidden_state[rows, layer, start : start + value.shape[1]] = value.to(self.stored)

    def final(self, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep states after the final norm."""
        kept = max(self.first - column, 0)
        if kept < value.shape[1]:
            value = value[:, kept:]
            start = column + kept - self.first
            self._peak[-1] = torch.maximum(self._peak[-1], _peak_of(value))
            if rows is None:
                self.final_state[:, start : start + value.shape[1]] = value
            else:
                self.final_state[rows, start : start + value.shape[1]] = value.to(self.stored)

    def heads(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep the inputs ``(row, position, head, head_size)`` of an output projection, if asked for."""
        kept = max(self.first - column, 0)
        if self.head_output is not None and kept < value.shape[1]:
            start = column + kept - self.first
            index = slice(None) if rows is None else rows
            self.head_output[index, layer, start : start + value.shape[1] - kept] = value[:, kept:].to(self.stored)

    def rows_of(self, column: int, positions: int) -> int:
        """How many of the last of these columns' attention rows are kept."""
        return min(max(column + positions - self.first, 0), positions)

    def probabilities(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep attention rows ``(row, head, position, key_position)``, the first of them at ``column``."""
        off = (value.sum(-1, dtype=torch.float32) - 1).abs_().amax()
        self._off[layer] = torch.maximum(self._off[layer], off)
        self._tolerance = ROW_SUM_TOLERANCE[value.dtype]
        n_position, n_key = value.shape[2:]
        if n_position > 1:
            self._future[layer] = torch.maximum(self._future[layer], value.triu(column + 1).amax().float())
        start = column - self.first
        if rows is None:
            self.attention[:, layer, :, start : start + n_position, :n_key] = value
        else:
            self.attention[rows, layer, :, start : start + n_position, :n_key] = value.to(self.stored)

    def check(self) -> None:
        """Attention is a distribution over the past, and nothing kept is non-finite or beyond the stored type's range.

        Raises
        ------
        LakeError
            Otherwise.
        """
        for layer, (worst, future) in enumerate(zip(self._off.tolist(), self._future.tolist(), strict=True)):
            if not worst <= self._tolerance:
                raise LakeError(f"attention of layer {layer}: rows sum to 1 only within {worst:.1e}; nothing was kept")
            if future:
                raise LakeError(f"attention of layer {layer} looks at future keys; nothing was kept")
        peak = self._peak.cpu()
        limit = torch.finfo(self.stored).max
        where = [*(f"layer {layer}" for layer in range(len(peak) - 1)), "the final norm"]
        for value, place in zip(peak.tolist(), where, strict=True):
            if value != value or value == float("inf"):
                raise LakeError(f"states after {place} are not finite; run in --compute-dtype float32")
            if value > limit:
                kind = str(self.stored).removeprefix("torch.")
                raise LakeError(
                    f"states after {place} reach {value:.3g}, beyond the largest {kind} ({limit:.0f});"
                    " store them with --dtype float32"
                )
        if not bool(torch.isfinite(self.latent_embedding).all()):
            raise LakeError(f"latent embeddings leave the range of {self.stored}; store them with --dtype float32")


def _peak_of(value: Tensor) -> Tensor:
    """Largest magnitude, NaN if any is."""
    low, high = value.aminmax()
    return torch.maximum(-low, high).float()


@dataclass(slots=True)
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
    attention_kept: dict[int, Tensor] = field(default_factory=dict)

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


def probabilities_of(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention probabilities, as the library's eager attention computes them."""
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(scaling).masked_fill_(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, lake_pass: Pass | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it, ``(row, head, position, head_size)`` in, positions before heads out.

    Without a pass it is plain scaled dot-product attention; a pass reads and changes probabilities and head outputs.
    """
    n_repeat = query.shape[1] // key.shape[1]
    if n_repeat > 1:
        key, value = key.repeat_interleave(n_repeat, dim=1), value.repeat_interleave(n_repeat, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if lake_pass is None:
        causal = attention_mask is None and query.shape[2] > 1
        out = scaled_dot_product_attention(query, key, value, attention_mask, dropout, is_causal=causal, scale=scale)
        return out.transpose(1, 2).contiguous(), None
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    n_position = query.shape[2]
    first = lake_pass.column - lake_pass.n_before
    recorder, editor = lake_pass.recorder, lake_pass.editor
    n_kept = 0 if recorder is None else recorder.rows_of(lake_pass.column, n_position)
    edited = editor is not None and editor.touches("attention", layer, first, n_position)
    kept: Tensor | None = None
    if edited or (n_kept == n_position):
        kept = probabilities_of(query, key, lake_pass.mask, scale)
        if editor is not None and edited:
            kept = editor.attention(layer, kept, first, lake_pass.rows, lake_pass.n_before)
        out = torch.matmul(kept, value)
        kept = kept[:, :, n_position - n_kept :] if n_kept else None
    else:
        out = scaled_dot_product_attention(query, key, value, lake_pass.mask, scale=scale)
        if n_kept:
            kept = probabilities_of(query[:, :, -n_kept:], key, lake_pass.mask[:, :, -n_kept:], scale)
    if recorder is not None and kept is not None:
        recorder.probabilities(layer, kept, lake_pass.column + n_position - n_kept, lake_pass.kept_rows)
    out = out.transpose(1, 2).contiguous()
    if editor is not None and editor.touches("head_output", layer, first, n_position):
        out = editor.head_output(layer, out, first, lake_pass.rows)
    if recorder is not None:
        recorder.heads(layer, out, lake_pass.column, lake_pass.kept_rows)
    return out, None


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
