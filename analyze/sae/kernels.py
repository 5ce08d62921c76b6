"""Small steps of a dictionary's training, on tensors."""

import numpy as np
import torch


def rate_at(share: float, n_step: int, schedule: bool) -> float:
    """Share of the learning rate at a share of the steps: warmed up, and lowered at the end."""
    if not schedule:
        return 1.0
    warm = (share * n_step + 1) / max(0.05 * n_step, 1)
    return min(1.0, warm, max((1 - share) / 0.2, 0.0))


def unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1."""
    norm: torch.Tensor = x.norm(dim=-1, keepdim=True)
    return x / norm.clamp(min=1e-12)


def gradient_of(x: torch.Tensor) -> torch.Tensor:
    """A gradient that there must be."""
    if x.grad is None:
        raise RuntimeError("a gradient is asked for before it is set")
    return x.grad


def largest(x: torch.Tensor, k: int) -> torch.Tensor:
    """Columns ``(row, k)`` of the largest values of each row, in no order: NumPy finds them in half of torch's time."""
    first = x.shape[-1] - k
    return torch.from_numpy(np.argpartition(x.numpy(), first, axis=-1)[:, first:].copy())


def top_codes(pre: torch.Tensor, k: int, signed: bool) -> torch.Tensor:
    """Only the ``k`` largest codes of each row, or the largest in magnitude."""
    index = (pre.abs() if signed else pre).topk(k, dim=-1, sorted=False).indices
    value = pre.gather(-1, index)
    return torch.zeros_like(pre).scatter_(-1, index, value if signed else value.relu())


def dots(left: torch.Tensor, i: torch.Tensor, right: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """left[i] . right[j] for each pair, in pieces that stay in the cache."""
    products = torch.empty(len(i))
    for start in range(0, len(i), 4096):
        part = slice(start, start + 4096)
        torch.sum(left[i[part]] * right[j[part]], dim=-1, out=products[part])
    return products


def csr(start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A sparse matrix, not checked."""
    return torch.sparse_csr_tensor(start, column, value, size=size, check_invariants=False)
