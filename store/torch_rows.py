"""Datasets of torch over the rows of a run: :func:`store.batches.torch_dataset` makes them, and alone imports this."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from schemas import UsageError
from store.batches import BlockBatches
from store.rows import RowBlocks

Batch = Any
"""Values, or values and row numbers."""


def as_tensors(blocks: RowBlocks, rows: Any, *, stored: bool, numbered: bool) -> Batch:
    """Rows as a tensor, in float32 unless as they are ``stored``; with their numbers if they are to be ``numbered``."""
    if stored:
        values = torch.from_numpy(blocks.read(rows))
    else:
        values = torch.empty((len(rows), *blocks.item_shape), dtype=torch.float32)
        blocks.read(rows, values.numpy(), _widen)
    return (values, torch.from_numpy(np.asarray(rows, dtype=np.int64))) if numbered else values


def _widen(target: np.ndarray, values: np.ndarray) -> None:
    """Copy from half precision, which torch does many times as fast as numpy."""
    torch.from_numpy(target).copy_(torch.from_numpy(values))


class BlockRows(IterableDataset[Batch]):
    """Batches of rows, shuffled by blocks. Workers of a loader, and processes of ``share``, have each row once.

    Parameters
    ----------
    order
        Which rows a batch holds.
    stored, numbered, share
        As of :func:`store.batches.torch_dataset`.
    """

    def __init__(self, order: BlockBatches, *, stored: bool, numbered: bool, share: tuple[int, int]) -> None:
        if not 0 <= share[0] < share[1]:
            raise UsageError(f"share is {share}; it must be (rank, world size), as (0, 1)")
        self.order, self.blocks = order, order.blocks
        self.stored, self.numbered, self.part = stored, numbered, share
        self._reader: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Batches of this epoch; then the next epoch is this one."""
        info = get_worker_info()
        worker, n_worker = (info.id, info.num_workers) if info else (0, 1)
        n_reader, skip = n_worker * self.part[1], self.order.given
        if self._reader is None:
            readers = range(self.part[0] * n_worker, (self.part[0] + 1) * n_worker)
            self._reader, skip = self.order.roles(skip, readers, n_reader)[worker]
        for rows in self.order.counted(self._reader, n_reader, skip):
            try:
                batch = as_tensors(self.blocks, rows, stored=self.stored, numbered=self.numbered)
            except BaseException:
                self.order.given -= 1  # a loop that goes on has it still to come
                raise
            yield batch
        self._reader = None

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; see :meth:`BlockBatches.set_epoch`."""
        self.order.set_epoch(epoch)
        self._reader = None

    def state_dict(self) -> dict[str, Any]:
        """Where it stands; in a worker where that worker stands, which has a share of its own: ``reader``."""
        return {**self.order.state_dict(), "reader": self._reader if get_worker_info() else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one without ``reader`` counts the batches that a loop has taken from all workers."""
        self.order.load_state_dict(state)
        self._reader = state.get("reader")


class MapRows(Dataset[Batch]):
    """Rows by their numbers.

    Parameters
    ----------
    blocks
        Which rows there are.
    stored, numbered
        As of :func:`store.batches.torch_dataset`.
    """

    def __init__(self, blocks: RowBlocks, *, stored: bool, numbered: bool) -> None:
        self.blocks, self.stored, self.numbered = blocks, stored, numbered

    def __len__(self) -> int:
        """Rows there are."""
        return self.blocks.n_row

    def __getitem__(self, rows: int | Sequence[int] | np.ndarray) -> Batch:
        """One row, or several at once."""
        if isinstance(rows, int | np.integer):
            items = self[[rows + len(self) if rows < 0 else rows]]
            return (items[0][0], items[1][0]) if self.numbered else items[0]
        return as_tensors(self.blocks, rows, stored=self.stored, numbered=self.numbered)

    def __getitems__(self, rows: Sequence[int]) -> list[Batch]:
        """Several rows as a loader's ``collate_fn`` wants them."""
        items = self[rows]
        return list(zip(*items, strict=True)) if self.numbered else list(items)

    def batches(self, batch_size: int, *, shuffle: bool = True, seed: int = 0, drop_last: bool = False) -> BlockBatches:
        """Sampler of batches that are shuffled by blocks."""
        return BlockBatches(self.blocks, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
