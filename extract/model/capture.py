"""Read and change a model while it runs: key-value cache, attention function, hooks on blocks.

Nothing of this stays on the model: hooks live for one pass, and the attention function, set once at load, does the
same as the library's unless a pass is handed to it.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from extract.model.recorder import Recorder
from schemas import LakeError

ATTENTION = "activation_lake"
"""Name under which :func:`attend` is registered with transformers, when a model is built."""


class Editor(Protocol):
    """What interventions look like from inside a pass. ``rows`` are the batch rows still running.

    ``first`` is the offset from ``bot`` of the first of the pass's positions. Each method gives the value that takes
    the place of the one it is handed; an editor that inherits from here leaves what it does not define as it is.
    """

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""
        return value

    def states(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Values ``(row, position, hidden)``, or ``(row, position, head, head_size)``, of a site of a layer."""
        return value

    def attention(self, layer: int, value: Tensor, first: int, rows: Tensor, n_before: int) -> Tensor:
        """Probabilities ``(row, head, position, key_position)``."""
        return value

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
        self.running: Pass | None = None
        """Pass that reads and changes what is appended."""
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(row, head, position, head_size)`` of a layer; give all of them."""
        end = self.length + key.shape[2]
        if self.running is not None:
            key, value = (self.running.at(site, layer, new, axis=2) for site, new in (("key", key), ("value", value)))
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
                torch.index_select(old[:, :, :length], 0, rows, out=new[:, :, :length])  # no copy on the way
                store.append(new)
        return taken

    def again(self) -> "KeyValues":
        """The same columns for one more pass that is differentiable: such a pass leaves these tensors as they are."""
        same = KeyValues(self.capacity, differentiable=True)
        same.length, same._keys, same._values = self.length, [*self._keys], [*self._values]
        return same

    def repeat(self, n_copy: int, length: int, capacity: int) -> "KeyValues":
        """So many copies of all rows, one after the other, with their first ``length`` columns."""
        repeated = KeyValues(capacity)
        repeated.length = length
        for store, source in ((repeated._keys, self._keys), (repeated._values, self._values)):
            for old in source:
                new = old.new_empty(n_copy, *old.shape[:2], capacity, old.shape[3])
                new[..., :length, :] = old[:, :, :length]
                store.append(new.flatten(0, 1))
        return repeated

    def first(self, n_row: int) -> "KeyValues":
        """The first rows alone: what is appended to them is written here, into columns that are there already."""
        part = KeyValues(self.capacity)
        part.length = self.length
        part._keys, part._values = ([old[:n_row] for old in store] for store in (self._keys, self._values))
        return part

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns filled; asked by the library where no position ids are given."""
        return self.length


def cache_argument(body: nn.Module) -> str:
    """What a decoder calls its cache: ``cache`` from transformers 5.24 on, ``past_key_values`` before."""
    return "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"


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
    def bias(self) -> Tensor:
        """What hides by addition to scores what :attr:`mask` hides; see :func:`bias_of`."""
        return bias_of(self.mask)

    def at(self, site: str, layer: int, value: Tensor, axis: int = 1) -> Tensor:
        """Value ``(row, position, ...)`` of a site as the interventions leave it, which is what is recorded.

        The positions may be at axis 2, after the heads, as the library has keys and values.
        """
        first = self.column - self.n_before
        if self.editor is not None and self.editor.touches(site, layer, first, value.shape[axis]):
            value = self.editor.states(site, layer, value.transpose(1, axis), first, self.rows).transpose(1, axis)
        if self.recorder is not None and site in self.recorder.sites:
            kept = value if axis == 1 else value.transpose(1, axis)
            self.recorder.states(site, layer, kept, self.column, self.kept_rows)
        return value

    @property
    def kept_rows(self) -> Tensor | None:
        """Index of the rows to write in the buffers; ``None``: all, in order."""
        return None if self.all_rows else self.rows


def unwrap(output: Any, like: Tensor) -> Tensor:
    """Residual stream in a block's output: a tensor since transformers 5, the first of a tuple before."""
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor) or value.shape != like.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise LakeError(f"a block returned {shape} where {tuple(like.shape)} was expected: unknown block layout")
    return value


def bias_of(mask: Tensor) -> Tensor:
    """0 where a query may see a key, minus infinity elsewhere; float32 of the mask's shape.

    Added, it leaves scores as they are to the last bit, in a fraction of the time of a masked assignment.
    """
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))


def probabilities_of(query: Tensor, key: Tensor, bias: Tensor, scaling: float, softcap: float | None = None) -> Tensor:
    """Attention probabilities ``(row, head, position, key_position)``, in float32 whatever type the model runs in.

    Parameters
    ----------
    query : (row, head, position, head_size)
    key : (row, key head, key_position, head_size)
        Each key head serves as many heads as there are for one.
    bias : (row, 1, position, key_position)
        Of :func:`bias_of`.
    scaling
        Factor of the scores.
    softcap
        What scores are squashed below, ``softcap tanh(score / softcap)``, in models that do so.
    """
    n_row, n_head, n_position, size = query.shape
    grouped = (query.float() * scaling).reshape(n_row, key.shape[1], -1, size)
    scores = torch.matmul(grouped, key.float().transpose(-1, -2)).view(n_row, n_head, n_position, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.softmax(scores.add_(bias), dim=-1)


def within(window: int | None, n_position: int, n_key: int, device: torch.device) -> Tensor | None:
    """``(position, key_position)``: is the key inside the query's sliding window; ``None`` where all of them are."""
    if window is None or n_key <= window:
        return None
    query = torch.arange(n_key - n_position, n_key, device=device)[:, None]
    return query - torch.arange(n_key, device=device) < window


def _mix(probabilities: Tensor, value: Tensor) -> Tensor:
    """Heads' outputs ``(row, head, position, head_size)``: values weighted by probabilities."""
    n_row, n_head, n_position, n_key = probabilities.shape
    grouped = probabilities.to(value.dtype).reshape(n_row, value.shape[1], -1, n_key)
    return torch.matmul(grouped, value).view(n_row, n_head, n_position, -1)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    softcap: float | None = None, lake_pass: Pass | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it, ``(row, head, position, head_size)`` in, positions before heads out.

    Without a pass it is plain scaled dot-product attention; a pass reads and changes probabilities and head outputs.
    In reduced precision every pass goes the same way, so that a captured run and one that is not are the same run.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    n_position = query.shape[2]
    near = within(sliding_window, n_position, key.shape[2], query.device)
    if lake_pass is None:
        if near is not None or softcap is not None:
            raise LakeError("this model runs through its Reasoner only: its windows and caps are applied there")
        causal = attention_mask is None and n_position > 1
        return _fused(query, key, value, attention_mask, scale, dropout=dropout, is_causal=causal), None
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    mask = lake_pass.mask if near is None else lake_pass.mask & near
    bias = lake_pass.bias if near is None else bias_of(mask)
    first = lake_pass.column - lake_pass.n_before
    recorder, editor = lake_pass.recorder, lake_pass.editor
    n_kept = 0 if recorder is None else recorder.rows_of(lake_pass.column, n_position)
    edited = editor is not None and editor.touches("attention", layer, first, n_position)
    kept: Tensor | None = None
    if edited or n_kept == n_position or query.dtype != torch.float32 or softcap is not None:
        kept = probabilities_of(query, key, bias, scale, softcap)
        if editor is not None and edited:
            kept = editor.attention(layer, kept, first, lake_pass.rows, lake_pass.n_before)
        out = _mix(kept, value).transpose(1, 2).contiguous()
        kept = kept if n_kept == n_position else kept[:, :, n_position - n_kept :]
    else:
        out = _fused(query, key, value, mask, scale)
        if n_kept:
            kept = probabilities_of(query[:, :, -n_kept:], key, bias[:, :, -n_kept:], scale)
    if recorder is not None and kept is not None and n_kept:
        recorder.probabilities(layer, kept, lake_pass.column + n_position - n_kept, lake_pass.kept_rows)
    return lake_pass.at("head_output", layer, out), None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, *,
    dropout: float = 0.0, is_causal: bool = False,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention by torch's own kernel, positions before heads."""
    n_row, n_head, n_position, size = query.shape
    n_repeat = n_head // key.shape[1]
    if n_repeat > 1 and mask is not None:  # heads of one key head as more positions: its keys are not copied
        # torch's enable_gqa would leave the fast kernels where there is a mask
        grouped = query.reshape(n_row, key.shape[1], n_repeat * n_position, size)
        mask = mask if n_position == 1 else mask.repeat(1, 1, n_repeat, 1)
        out = scaled_dot_product_attention(grouped, key, value, mask, dropout, scale=scale)
        return out.view(query.shape).transpose(1, 2).contiguous()
    if n_repeat > 1:
        key, value = key.repeat_interleave(n_repeat, dim=1), value.repeat_interleave(n_repeat, dim=1)
    out = scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=is_causal, scale=scale)
    return out.transpose(1, 2).contiguous()


@contextmanager
def block_hooks(
    blocks: Sequence[nn.Module], parts: Mapping[str, str], current: Callable[[], Pass | None]
) -> Iterator[None]:
    """Hooks on every block, and on its parts, for as long as the context lasts, whatever is raised inside it.

    ``parts`` are sites, and the names of the modules below a block whose outputs they are; ``current`` gives the pass
    that is going on.
    """

    def hook_of(site: str, layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            running = current()
            if running is None:
                return None
            value = unwrap(output, arguments[0] if arguments else keywords["hidden_states"])
            changed = running.at(site, layer, value)
            if changed is value:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [
        block.get_submodule(name).register_forward_hook(hook_of(site, layer), with_kwargs=True)
        for layer, block in enumerate(blocks)
        for site, name in {**parts, "hidden_state": ""}.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
