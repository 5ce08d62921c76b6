"""Buffers of what a pass leaves behind, in the stored type, and the checks on them."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from schemas import LakeError
from schemas.vocabulary import ITERATIONS

ROW_SUM_TOLERANCE = 1e-4
"""How far the probabilities of a row may be from summing to 1; they are float32 whatever the model runs in."""


class Recorder:
    """Buffers of one batch, in the stored type, aligned at ``bot``.

    Positions run from ``first`` columns into the batch (all of them, or from ``bot`` on); key positions over all
    columns. Nothing is looked at before the batch is done: every look makes a GPU wait.
    """

    def __init__(
        self, *, rows: int, layers: int, heads: int, hidden: int, columns: int, first: int, latents: int,
        rounds: int, stored: torch.dtype, device: torch.device, parts: Mapping[str, tuple[int, ...]],
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
        self.parts = {site: zeros(rows, layers, positions, *shape) for site, shape in parts.items()}
        """Further sites, where asked for: ``(row, layer, position, ...)``."""
        self.iterations = {name: zeros(rows, rounds, latents, hidden) for name in (ITERATIONS if rounds else ())}
        """Vectors fed and states after the final norm in each round, where thoughts are computed side by side."""
        self._row_sum = torch.zeros(rows, layers, heads, positions, device=device)
        self._future = torch.zeros(rows, layers, heads, device=device)
        """Sum of probabilities of keys that come after their queries."""
        # Taken apart once: a GPU that waits for Python waits for every view.
        self.sites = {
            site: value.unbind(1) for site, value in (self.parts | {"hidden_state": self.hidden_state}).items()
        }
        """Of what is kept of each layer, the layers' buffers."""
        self._rows_of_layer = list(zip(self.attention.unbind(1), self._row_sum.unbind(1), strict=True))

    def states(self, site: str, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep values ``(row, position, ...)`` of one of the :attr:`sites` of a layer, the first at ``column``."""
        self._keep(self.sites[site][layer], value, column, rows)

    def final(self, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep states after the final norm."""
        self._keep(self.final_state, value, column, rows)

    def _keep(self, buffer: Tensor, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Put values ``(row, position, ...)`` whose first position is ``column`` where they belong in a buffer."""
        if (skipped := self.first - column) > 0:
            value, column = value[:, skipped:], self.first
        if value.shape[1]:
            _assign(buffer.narrow(1, column - self.first, value.shape[1]), value, rows)

    def rows_of(self, column: int, positions: int) -> int:
        """How many of the last of these columns' attention rows are kept."""
        return min(max(column + positions - self.first, 0), positions)

    def probabilities(self, layer: int, value: Tensor, column: int, rows: Tensor | None) -> None:
        """Keep attention rows ``(row, head, position, key_position)``, the first of them at ``column``."""
        n_position, n_key = value.shape[2:]
        start = column - self.first
        attention, row_sum = (each.narrow(2, start, n_position) for each in self._rows_of_layer[layer])
        if rows is None:
            torch.sum(value, -1, out=row_sum)
        else:
            row_sum[rows] = value.sum(-1)
        if n_key > column + 1:  # a product of matrix and vector: in a seventh of the time of each query's own past
            future = torch.ones(n_position, n_key, device=value.device).triu_(column + 1).flatten()
            self._future[slice(None) if rows is None else rows, layer] += value.flatten(2) @ future
        _assign(attention.narrow(3, 0, n_key), value, rows)

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
            Arrays by name, as :class:`extract.model.thinking.Thinking` has them, still on the device; and
            (2 layer + 2 + part + 2,) float32: the largest magnitude after each block, after the final norm, among the
            vectors fed, in each part and in the rounds, then by layer how far attention over the past is from 1.
        """
        n_position = exists.shape[1]
        hidden, final = self.hidden_state[:, :, :n_position], self.final_state[:, :n_position]
        attention = self.attention[:, :, :, :n_position, :columns]
        off = (self._row_sum[..., :n_position] - 1).abs().where(exists[:, None, None], 0).amax((0, 2, 3))
        off = torch.maximum(off, self._future.nan_to_num(0).amax((0, 2)))  # where a row is NaN, its sum is
        parts = {site: value[:, :, :n_position] for site, value in self.parts.items()}
        peaks = [
            _peak_of(hidden, exists[:, None]).amax((0, 2)),
            _peak_of(final, exists).amax()[None],
            _peak_of(self.latent_embedding).amax()[None] if self.latent_embedding.numel() else hidden.new_zeros(1),
            *(_peak_of(value.flatten(3), exists[:, None]).amax()[None] for value in parts.values()),
            *(_peak_of(value).amax()[None] for value in self.iterations.values()),
        ]
        absent = ~exists
        arrays = {
            "hidden_state": _without(hidden, absent, 2, torch.nan),
            "final_state": _without(final, absent, 1, torch.nan),
            "latent_embedding": self.latent_embedding,
            "attention": _without(attention, absent, 3, 0),
        }
        arrays |= {site: _without(value, absent, 2, torch.nan) for site, value in parts.items()} | self.iterations
        return arrays, torch.cat([*peaks, off])

    def check(self, measured: Tensor) -> None:
        """Nothing kept is non-finite or beyond the stored type's range, and attention is a distribution over the past.

        ``measured`` is that of :meth:`finish`.

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
            *(f"values of {site}" for site in (*self.parts, *self.iterations)),
        ]
        values = measured.tolist()
        for place, (value, name) in enumerate(zip(values, where, strict=False)):
            if not math.isfinite(value):
                if self.stored != torch.float32:
                    raise StoredRangeError(name, place)
                raise LakeError(f"{name} are not finite; run in --compute-dtype float32, or bfloat16 on a GPU")
        for layer, worst in enumerate(values[len(where) :]):
            if not worst <= ROW_SUM_TOLERANCE:
                raise LakeError(
                    f"attention of layer {layer}: probabilities of the past sum to 1 only within {worst:.1e};"
                    " nothing was kept"
                )


class StoredRangeError(LakeError):
    """Values are not finite as stored; ``place`` counts layers, final state, vectors fed, parts and rounds."""

    def __init__(self, name: str, place: int) -> None:
        super().__init__(name)
        self.place = place


def _assign(buffer: Tensor, value: Tensor, rows: Tensor | None) -> None:
    """Put values into a buffer of another type, into some of its rows or all."""
    if rows is None:
        buffer.copy_(value)
    else:
        buffer[rows] = value.to(buffer.dtype)


def _without(value: Tensor, absent: Tensor, axis: int, fill: float) -> Tensor:
    """Values ``(row, ..)`` with a fill at positions, along an axis, that a row does not have: in place."""
    positions = value.movedim(axis, 1)
    if value.device.type == "cpu":  # a mask takes ten times as long as the few runs there are
        edge = np.diff(np.pad(absent.numpy().astype(np.int8), ((0, 0), (1, 1))))
        for row, start, end in zip(*np.nonzero(edge == 1), np.nonzero(edge == -1)[1], strict=True):
            positions[row, start:end] = fill
    else:  # a GPU would wait for the number of those absent
        positions.masked_fill_(absent.reshape(*absent.shape, *[1] * (value.ndim - 2)), fill)
    return value


def _peak_of(value: Tensor, exists: Tensor | None = None) -> Tensor:
    """Largest magnitude along the last axis, 0 where nothing exists, NaN if any is; float32."""
    # Without their sign, floats are in the order of their bits, NaN above infinity; of integers the maximum is fast.
    integer, size = (torch.int32, 0x7FFFFFFF) if value.dtype == torch.float32 else (torch.int16, 0x7FFF)
    # Row by row, what comes between is memory that is used again; on a GPU each would be a launch.
    rows = value.view(integer).chunk(len(value) if value.device.type == "cpu" else 1)
    peak = torch.cat([(row & size).amax(-1) for row in rows]).view(value.dtype).float()
    return peak if exists is None else peak.where(exists, 0)
