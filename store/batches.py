"""Batches of a run's rows for training with torch."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from schemas import UsageError, fingerprint, nearest
from schemas.checks import check_whole
from store.read import Lake

if TYPE_CHECKING:
    from store.torch_rows import BlockRows, MapRows
from store.rows import BUFFER_BYTES, RowBlocks


class BlockBatches:
    """Numbers of the rows of each batch, epoch by epoch; a sampler of batches for ``torch.utils.data.DataLoader``.

    Parameters
    ----------
    blocks
        Of which rows.
    batch_size
        Rows of a batch; the last of an epoch, or of a reader's share, may be smaller.
    shuffle
        Whether blocks, and rows within a window, come in random order.
    seed
        Of the order, with the epoch.
    drop_last
        Leave a smaller last batch out.
    """

    def __init__(
        self, blocks: RowBlocks, batch_size: int, *, shuffle: bool = True, seed: int = 0, drop_last: bool = False
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0)
        self.blocks, self.batch_size, self.shuffle = blocks, int(batch_size), shuffle
        self.seed, self.drop_last = int(seed), drop_last
        self.epoch = self.given = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Row numbers of this epoch's batches that were not given yet; then the next epoch is this one."""
        yield from self.counted(0, 1, self.given)

    def __len__(self) -> int:
        """Batches of an epoch for one reader."""
        return self._n_batch(self.blocks.n_row)

    def _n_batch(self, n_row: int) -> int:
        return n_row // self.batch_size if self.drop_last else -(-n_row // self.batch_size)

    def counted(self, reader: int, n_reader: int, skip: int) -> Iterator[np.ndarray]:
        """Batches of one of several readers after the first ``skip``; :attr:`given` counts them."""
        self.given = skip
        for number, rows in enumerate(self.batches(reader, n_reader)):
            if number >= skip:
                self.given += 1
                yield rows
        self.epoch, self.given = self.epoch + 1, 0

    def windows(self, reader: int, n_reader: int) -> list[np.ndarray]:
        """Blocks of each window of one of several readers; every block belongs to exactly one reader."""
        numbers = np.flatnonzero(self.blocks.counts)
        if self.shuffle:
            numbers = np.random.default_rng([self.seed, self.epoch]).permutation(numbers)
        size = max(1, min(self.blocks.n_slot, -(-len(numbers) // n_reader)))
        return [numbers[begin : begin + size] for begin in range(reader * size, len(numbers), n_reader * size)]

    def batches(self, reader: int, n_reader: int) -> Iterator[np.ndarray]:
        """Row numbers of each batch of one of several readers; nothing is read."""
        offset, rest = self.blocks.offset, np.empty(0, dtype=np.int64)
        for window in self.windows(reader, n_reader):
            rows = np.concatenate([np.arange(offset[number], offset[number + 1]) for number in window.tolist()])
            if self.shuffle:
                np.random.default_rng([self.seed, self.epoch, int(window[0])]).shuffle(rows)
            rows = np.concatenate([rest, rows])
            whole = len(rows) // self.batch_size * self.batch_size
            yield from rows[:whole].reshape(-1, self.batch_size)
            rest = rows[whole:]
        if len(rest) and not self.drop_last:
            yield rest

    def roles(self, taken: int, readers: Sequence[int], n_reader: int) -> list[tuple[int, int]]:
        """Which reader comes next, and how many batches each has given, after ``taken`` batches were taken in turn.

        Returns
        -------
        list of (reader, batches given)
            In the order in which their next ones come.
        """
        left = {
            reader: self._n_batch(
                sum(int(self.blocks.counts[window].sum()) for window in self.windows(reader, n_reader))
            )
            for reader in readers
        }
        given, waiting, done = dict.fromkeys(readers, 0), deque(readers), []
        while taken and waiting:
            reader = waiting.popleft()
            if given[reader] == left[reader]:
                done.append(reader)
            else:
                given[reader], taken = given[reader] + 1, taken - 1
                waiting.append(reader)
        return [(reader, given[reader]) for reader in (*waiting, *done)]

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: a loader that starts its workers anew each epoch must be told which it is."""
        check_whole("epoch", epoch, 0)
        self.epoch, self.given = int(epoch), 0

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: ``epoch``, and ``batch``, the number of batches given of it."""
        return {"epoch": self.epoch, "batch": self.given, "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises
        ------
        UsageError
            If it is the state of other rows or another order.
        """
        if state.get("of", self._identity()) != self._identity():
            raise UsageError(
                f"the state is not of these batches of {self.blocks.run}: run, selection, batch size, seed and buffer"
                " must be as they were"
            )
        self.set_epoch(state["epoch"])
        check_whole("batch", state["batch"], 0)
        self.given = int(state["batch"])

    def _identity(self) -> str:
        blocks = self.blocks
        picks = {dim: picks.tolist() for dim, picks in blocks.picks.items()}
        order = [self.batch_size, self.shuffle, self.seed, self.drop_last, blocks.n_slot]
        return fingerprint([blocks.fingerprint, blocks.variable, blocks.item, blocks.n_row, picks, order])


def torch_dataset(
    lake: Lake,
    run: str,
    variable: str,
    *,
    style: Literal["iterable", "map"] = "iterable",
    batch_size: int = 4096,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    item: Sequence[str] | None = None,
    stored: bool = False,
    numbered: bool = False,
    buffer_bytes: int = BUFFER_BYTES,
    share: tuple[int, int] = (0, 1),
    **chosen: Any,
) -> "BlockRows | MapRows":
    """Activations of a run as a dataset for ``torch.utils.data.DataLoader``.

    A row is a vector of a state at one example, layer and position, or one head's attention; those at which an example
    has no token are left out. ``"iterable"`` gives batches, shuffled by blocks: random blocks of the store (a layer and
    position of up to 256 examples) fill a buffer, whose rows are shuffled. It is read once however many workers share
    it, and costs little more than reading the chunks::

        dataset = torch_dataset(lake, "small-gpt2/test", "hidden_state", layer=[1], position=["ct0", "ct1"])
        for epoch in range(10):
            dataset.set_epoch(epoch)
            for batch in DataLoader(dataset, batch_size=None, num_workers=2):
                ...

    ``"map"`` gives rows by number, one or several at once. Random ones cost a chunk each; ``dataset.batches(4096)`` is
    a sampler that shuffles by blocks: ``DataLoader(dataset, batch_size=None, sampler=dataset.batches(4096))``.

    Training goes on with ``dataset.load_state_dict(state)`` where it stopped. Without workers the state is
    ``dataset.state_dict()``; with workers it is ``{"epoch": epoch, "batch": n}``, the batches that the loop has taken,
    under the same number of workers; torchdata's ``StatefulDataLoader`` asks each worker itself.

    Parameters
    ----------
    lake, run, variable
        What is read, as ``hidden_state``.
    style
        ``"iterable"`` or ``"map"``.
    batch_size, shuffle, seed, drop_last
        Of the iterable: rows of a batch, and their order, see :class:`BlockBatches`.
    item
        Dims of a row, as ``("layer", "hidden")`` for all layers at once.
    stored
        Numbers in the type they are stored in; else float32.
    numbered
        Give ``(values, row numbers)``, so that ``dataset.blocks.labels(rows)`` says what each is of.
    buffer_bytes
        Memory of each process for what is shuffled, in the stored type.
    share
        Of the iterable: the number of this process, and of all, where several train together (rank, world size).
    **chosen
        Labels along dims: ``layer=[0, 5]``, ``position=["ct0"]``, ``example=numbers``.

    Raises
    ------
    UsageError
        If the variable is no activation, or a label is not there.
    """
    from store.torch_rows import BlockRows, MapRows

    blocks = RowBlocks(lake, run, variable, chosen, item=item, buffer_bytes=buffer_bytes)
    if style == "map":
        return MapRows(blocks, stored=stored, numbered=numbered)
    if style != "iterable":
        raise UsageError(f"style {style!r} is neither 'iterable' nor 'map'{nearest(style, ['iterable', 'map'])}")
    order = BlockBatches(blocks, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
    return BlockRows(order, stored=stored, numbered=numbered, share=share)
