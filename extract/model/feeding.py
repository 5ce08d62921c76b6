"""What makes the vector fed at a thought from the state before."""

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """From the state at one thought to the vector fed at the next."""

    def __init__(self, hidden: int, inner: int, *, with_norm: bool) -> None:
        super().__init__()
        self.add_module("1", nn.Linear(hidden, inner))
        self.add_module("3", nn.Linear(inner, hidden))
        if with_norm:
            self.add_module("ln", nn.LayerNorm(hidden))

    def forward(self, state: Tensor) -> Tensor:
        """Linear, exact GELU, linear, and a layer norm unless it was trained without."""
        parts = self._modules
        out: Tensor = parts["3"](nn.functional.gelu(parts["1"](state)))  # type: ignore[misc]
        norm = parts.get("ln")
        return norm(out) if norm is not None else out


class Constant(nn.Module):
    """The same learned vector at every thought, whatever the state before."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(hidden))

    def forward(self, state: Tensor) -> Tensor:
        """Vector ``(hidden,)`` for every row of ``state``."""
        return self.vector.expand_as(state)
