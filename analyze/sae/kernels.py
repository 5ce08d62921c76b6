"""Small steps of a dictionary's training, on tensors."""

from collections.abc import Callable

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
    """Columns ``(.., k)`` of the largest values of each row, in no order."""
    n, values = x.shape[-1], x.numpy()
    if 64 * k <= n:  # torch goes through a row once then; else NumPy takes a quarter of its time
        return x.topk(k, dim=-1, sorted=False).indices
    least = np.partition(values, n - k, axis=-1)[..., n - k, None]
    place = np.flatnonzero(values >= least)
    if place.size != k * (values.size // n):  # equal values, of which some are left out
        return torch.from_numpy(np.argpartition(values, n - k, axis=-1)[..., n - k :].copy())
    return torch.from_numpy((place % n).reshape(*values.shape[:-1], k))


def top_codes(pre: torch.Tensor, k: int, signed: bool) -> torch.Tensor:
    """Only the ``k`` largest codes of each row, or the largest in magnitude."""
    index = (pre.abs() if signed else pre).topk(k, dim=-1, sorted=False).indices
    value = pre.gather(-1, index)
    return torch.zeros_like(pre).scatter_(-1, index, value if signed else value.relu())


def csr(start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A sparse matrix, not checked."""
    return torch.sparse_csr_tensor(start, column, value, size=size, check_invariants=False)


def turned(matrix: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes a sparse matrix's transpose, given values in the order of its own."""
    n_row, n_column = matrix.shape
    column = matrix.col_indices().numpy()
    # numpy sorts integers of 16 bits in a tenth of the time of wider ones
    order = np.argsort(column.astype(np.min_scalar_type(n_column)), kind="stable")
    row = np.repeat(np.arange(n_row), np.diff(matrix.crow_indices().numpy()))[order]
    start = np.zeros(n_column + 1, np.int64)
    np.cumsum(np.bincount(column, minlength=n_column), out=start[1:])
    where, size = (torch.from_numpy(start), torch.from_numpy(row)), (n_column, n_row)
    return lambda value: csr(*where, value[torch.from_numpy(order)], size)
