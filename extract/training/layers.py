"""What a base model is made of while it is trained: attention and cache with gradients, adapted layers, norms."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from extract.model.capture import within

ATTENTION = "activation_lake_training"


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it, in the values' type; keys of a group of heads are repeated."""
    near = within(sliding_window, query.shape[2], key.shape[2], query.device)
    if near is not None and attention_mask is not None:
        attention_mask = attention_mask.masked_fill(~near, torch.finfo(attention_mask.dtype).min)
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (tensor[:, :, None].expand(-1, -1, repeat, -1, -1).flatten(1, 2) for tensor in (key, value))
    out = scaled_dot_product_attention(query.to(value.dtype), key, value, attention_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


class Columns:
    """Keys and values of the columns fed so far, kept for gradients: nothing is written in place."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(row, head, position, head_size)`` of a layer; give all of them."""
        key = key.to(value.dtype)
        if layer == len(self._keys):
            self._keys.append(key)
            self._values.append(value)
        else:
            self._keys[layer] = torch.cat([self._keys[layer], key], 2)
            self._values[layer] = torch.cat([self._values[layer], value], 2)
        return self._keys[layer], self._values[layer]

    def branch(self, length: int) -> "Columns":
        """The first columns, to go on from in another way."""
        other = Columns()
        other.length = length
        other._keys = [key[:, :, :length] for key in self._keys]
        other._values = [value[:, :, :length] for value in self._values]
        return other

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns filled; asked by the library where no position ids are given."""
        return self.length


class Adapted(nn.Module):
    """A linear layer whose frozen weight W is used as ``W + alpha / rank * B A``.

    The sum is formed once a step (:meth:`merge`) and serves all passes of the step; PEFT's own layer multiplies by A
    and B in each of them, four more launches a layer and pass, and a small model on a GPU spends its time on launches.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        self.register_buffer("weight", weight.T.contiguous() if isinstance(layer, Conv1D) else weight)
        bias: Any = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach())
        n_out, n_in = self.weight.shape
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(weight.new_empty(rank, n_in))
        self.lora_B = nn.Parameter(weight.new_zeros(n_out, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT begins
        self.merged = self.weight

    def merge(self, dtype: torch.dtype) -> None:
        """Form the weight of this step, in the type in which it is multiplied."""
        self.merged = torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scale).to(dtype)

    def forward(self, state: Tensor) -> Tensor:
        """Multiply, in the type of the merged weight."""
        dtype = self.merged.dtype
        return functional.linear(state.to(dtype), self.merged, None if self.bias is None else self.bias.to(dtype))


class FusedNorm(nn.Module):
    """RMS norm of a block: two launches instead of the library's eight, in the type in which the block multiplies."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", norm.weight.detach())
        self.epsilon = float(norm.variance_epsilon)
        self.dtype = dtype

    def forward(self, state: Tensor) -> Tensor:
        """Norm in float32, rounded once."""
        weight: Any = self.weight
        return functional.rms_norm(state, weight.shape, weight, self.epsilon).to(self.dtype)
