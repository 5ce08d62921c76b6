"""Changes at work inside a pass, merged so that rows of many conditions are changed in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from extract.model.capture import Editor

Kind = Literal["set", "affine", "inside", "edges", "force", "even", "exchange", "same"]
Place = tuple[str, int, int]
"""Site, layer (-1 for ``latent_embedding``) and offset from ``bot``."""
Pick = Tensor | slice
"""Which rows of an edit: some, or all."""


class Group(NamedTuple):
    """What changes at one place must have in common to be made in one go."""

    order: int
    """How many changes of these rows come before."""
    kind: Kind
    heads: tuple[int, ...]
    keys: tuple[int, ...]
    has_value: bool
    has_noise: bool
    subspace: str


class Inside(NamedTuple):
    """Two factors of a projection onto a subspace, ``x @ right.T @ left``: its own for every row, or one for all."""

    name: str
    left: np.ndarray
    """``([row,] rank, hidden)``: what spans the subspace."""
    right: np.ndarray
    """``([row,] rank, hidden)``: what reads the coordinates in it; the same as ``left`` where it is orthonormal."""


@dataclass(slots=True)
class _Added:
    """A change as it was asked for, on the host."""

    stage: int
    kind: Kind
    heads: tuple[int, ...]
    keys: tuple[int, ...]
    rows: np.ndarray
    scale: float
    value: np.ndarray | None
    noise: np.ndarray | None
    inside: Inside | None

    def group(self, order: int) -> Group:
        """Group that it is made with; edges of each row may lead to keys of its own."""
        keys = () if self.kind == "edges" else self.keys
        subspace = "" if self.inside is None else self.inside.name
        return Group(order, self.kind, self.heads, keys, self.value is not None, self.noise is not None, subspace)


@dataclass(slots=True)
class _Edit:
    """One kind of change of some rows at one place, on the device."""

    kind: Kind
    heads: Tensor | None
    keys: tuple[int, ...]
    host_rows: np.ndarray
    rows: Tensor
    scale: Tensor
    value: Tensor | None
    noise: Tensor | None = None
    """Directions of noise that takes the place of the change, with its norm."""
    left: Tensor | None = None
    right: Tensor | None = None
    """Factors of :class:`Inside`."""
    factor: Tensor | None = None
    """Of ``edges``: what each row's probabilities ``(row, key)`` are multiplied by, from offset ``first_key`` on."""
    first_key: int = 0

    def vector(self, old: Tensor, pick: Pick) -> Tensor:
        """New value of ``(row, ...)`` states."""
        new = self._changed(old, pick)
        if self.noise is None:
            return new
        norm = (new - old).flatten(1).float().norm(dim=1)
        drawn = self.noise[pick]
        out: Tensor = old + (drawn * (norm / drawn.norm(dim=1))[:, None]).to(old.dtype).reshape(old.shape)
        return out

    def _changed(self, old: Tensor, pick: Pick) -> Tensor:
        if self.kind == "same":
            return old.clone()
        if self.kind == "set":
            if self.value is None:
                return torch.zeros_like(old)
            return self.value[pick].to(old.dtype).reshape(old.shape)
        scale = self.scale[pick].to(old.dtype).reshape(-1, *[1] * (old.ndim - 1))
        if self.kind == "inside":
            return old + scale * self._way(old, pick)
        out = old * scale
        return out if self.value is None else out + self.value[pick].to(old.dtype).reshape(old.shape)

    def _way(self, old: Tensor, pick: Pick) -> Tensor:
        """From old values to the edit's own ``(row, hidden)``: all of it, or its part inside the subspace."""
        way = -old.float() if self.value is None else self.value[pick] - old.float()
        if self.left is not None and self.right is not None:
            left, right = (vector[pick] if vector.ndim == 3 else vector for vector in (self.left, self.right))
            way = (way[:, None] @ right.mT @ left)[:, 0]
        return way.to(old.dtype)

    def probabilities(self, old: Tensor, pick: Pick, columns: Tensor, n_before: int) -> Tensor:
        """New rows of attention ``(row, head, key_position)``; they sum to 1 unless nothing is left to sum."""
        new = old.clone()
        if self.kind == "same":
            return new
        if self.factor is not None:
            # Offsets from before the batch's longest question hold nothing, and later ones are not yet there.
            start = n_before + self.first_key
            stop = min(start + self.factor.shape[1], old.shape[-1])
            factor = self.factor[pick, max(0, -start) : max(0, stop - start)]
            new[..., max(0, start) : max(0, stop)] *= factor[:, None].to(old.dtype)
            total = new.sum(-1, keepdim=True)
            return torch.where(total > 0, new / total, torch.zeros_like(new))
        if self.kind == "force":
            new.zero_()
            new[..., columns] = 1 / len(columns)
            return new
        if self.kind in ("even", "exchange"):
            new[..., columns] = self._dealt(old[..., columns], pick)
            return new
        value = torch.zeros_like(old[..., columns]) if self.value is None else self.value[pick].to(old.dtype)
        new[..., columns] = 0
        rest = new.sum(-1, keepdim=True)
        share = 1 - value.sum(-1, keepdim=True)
        new = torch.where(rest > 0, new * (share / rest), torch.zeros_like(new))
        new[..., columns] = value
        return new

    def _dealt(self, part: Tensor, pick: Pick) -> Tensor:
        """Probabilities ``(row, head, key)`` dealt anew to the keys that have any: evenly, or in a drawn order."""
        seen = part > 0
        if self.kind == "even" or self.value is None:
            return torch.where(seen, part.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1), 0)
        # Keys from before the batch's longest question come first and are left out; each key keeps its own draw.
        draws = self.value[pick][..., -part.shape[-1] :]
        order = draws.masked_fill(~seen, torch.inf).argsort(-1)
        places = (~seen).to(torch.int8).argsort(dim=-1, stable=True)
        return torch.zeros_like(part).scatter(-1, places, part.gather(-1, order))


class Armed(Editor):
    """Changes of some rows of a batch at some places: the editor a pass consults.

    Rows of several conditions lie side by side in a batch; changes of one row at one place happen in the order in
    which they were added. What is added stays on the host until the first pass that comes to its place; from then on it
    is on the device, and no pass waits for a copy.
    """

    def __init__(self, n_row: int, device: torch.device) -> None:
        self.n_row = n_row
        self.device = device
        self._pending: dict[Place, list[_Added]] = {}
        self._edits: dict[Place, list[_Edit]] = {}
        self._offsets: dict[tuple[str, int], set[int]] = {}
        self._there: dict[tuple[str, bytes], Tensor] = {}
        self._running: Tensor | None = None
        self._places = np.empty(0, dtype=np.int64)
        self._local: dict[bytes, tuple[Tensor, Tensor]] = {}

    def add(
        self,
        place: Place,
        kind: Kind,
        rows: np.ndarray,
        *,
        stage: int = 0,
        scale: float = 0.0,
        value: np.ndarray | None = None,
        heads: tuple[int, ...] = (),
        keys: tuple[int, ...] = (),
        noise: np.ndarray | None = None,
        inside: Inside | None = None,
    ) -> None:
        """Arm a change of rows ``(row,)``; ``value`` is ``(row, ...)``. Later stages act on what earlier ones left."""
        drawn = None if noise is None else noise.reshape(len(rows), -1)
        added = _Added(stage, kind, heads, keys, np.asarray(rows), scale, value, drawn, inside)
        self._pending.setdefault(place, []).append(added)
        self._offsets.setdefault(place[:2], set()).add(place[2])
        self._edits.clear()

    def _put(self, values: Sequence[np.ndarray], dtype: type = np.float32) -> Tensor:
        """Arrays one after the other, on the device; what is there already is not copied again."""
        array: np.ndarray = np.concatenate(values).astype(dtype, copy=False)
        if array.ndim > 1:
            return torch.from_numpy(array).to(self.device, non_blocking=True)
        key = array.dtype.str, array.tobytes()
        if key not in self._there:
            self._there[key] = torch.from_numpy(array).to(self.device, non_blocking=True)
        return self._there[key]

    def _at(self, place: Place) -> list[_Edit]:
        if place not in self._edits:
            groups: dict[Group, list[_Added]] = {}
            n_earlier = np.zeros(self.n_row, dtype=np.int64)
            for added in sorted(self._pending.get(place, []), key=lambda edit: edit.stage):
                order = int(n_earlier[added.rows].max(initial=0))
                n_earlier[added.rows] = order + 1
                groups.setdefault(added.group(order), []).append(added)
            merged = [self._merged(*group) for group in sorted(groups.items(), key=lambda item: item[0].order)]
            self._edits[place] = merged
        return self._edits[place]

    def _merged(self, group: Group, added: Sequence[_Added]) -> _Edit:
        """Changes of a group as one."""
        values = [edit.value for edit in added if edit.value is not None]
        noises = [edit.noise for edit in added if edit.noise is not None]
        insides = [edit.inside for edit in added if edit.inside is not None]
        rows = np.concatenate([edit.rows for edit in added])
        edit = _Edit(
            kind=group.kind,
            heads=self._put([np.array(group.heads)], np.int64) if group.heads else None,
            keys=group.keys,
            host_rows=rows,
            rows=self._put([rows], np.int64),
            scale=self._put([np.full(len(edit.rows), edit.scale) for edit in added]),
            value=self._put(values) if values else None,
            noise=self._put(noises) if noises else None,
            left=self._factor([inside.left for inside in insides]),
            right=self._factor([inside.right for inside in insides]),
        )
        if group.kind == "edges":
            keys = [key for edit in added for key in edit.keys]
            edit.first_key = min(keys)
            factors = [np.ones((len(one_edit.rows), max(keys) - edit.first_key + 1)) for one_edit in added]
            for factor, one_edit in zip(factors, added, strict=True):
                factor[:, np.array(one_edit.keys) - edit.first_key] = one_edit.scale
            edit.factor = self._put(factors)
        return edit

    def _factor(self, factors: Sequence[np.ndarray]) -> Tensor | None:
        """A factor of a projection on the device: every row's own, or that of all."""
        if not factors:
            return None
        return self._put(factors if factors[0].ndim == 3 else factors[:1])

    def _here(self, edit: _Edit, rows: Tensor) -> tuple[Tensor, Pick]:
        """Where an edit's rows are among those still running, and which of its rows these are."""
        if len(rows) == self.n_row:
            return edit.rows, slice(None)
        if rows is not self._running:  # some have ended: one look at which, for all edits
            self._running, self._local = rows, {}
            self._places = np.full(self.n_row, -1)
            self._places[rows.cpu().numpy()] = np.arange(len(rows))
        key = edit.host_rows.tobytes()
        if key not in self._local:
            local = self._places[edit.host_rows]
            pick = np.flatnonzero(local >= 0)
            self._local[key] = self._put([local[pick]], np.int64), self._put([pick], np.int64)
        return self._local[key]

    def _key_columns(self, keys: tuple[int, ...], n_before: int) -> Tensor:
        """Columns of key offsets; those from before the batch's longest question hold nothing to attend to."""
        columns = [n_before + key for key in keys if n_before + key >= 0]
        return self._put([np.array(columns, dtype=np.int64)], np.int64)

    def touches(self, site: str, layer: int, first: int, n_position: int) -> bool:
        """Whether anything is armed at a site of a layer for any of these positions."""
        offsets = self._offsets.get((site, layer))
        return offsets is not None and any(first <= offset < first + n_position for offset in offsets)

    def states(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Values ``(row, position, hidden)``, or ``(row, position, head, head_size)``, of a site of a layer."""
        value = value.clone()
        for index in range(value.shape[1]):
            for edit in self._at((site, layer, first + index)):
                local, pick = self._here(edit, rows)
                if edit.heads is not None:
                    old = value[local, index][:, edit.heads]
                    value[local[:, None], index, edit.heads[None, :]] = edit.vector(old, pick)
                else:
                    value[local, index] = edit.vector(value[local, index], pick)
        return value

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""
        if not self.touches("latent_embedding", -1, first, 1):
            return value
        return self.states("latent_embedding", -1, value[:, None], first, rows)[:, 0]

    def attention(self, layer: int, value: Tensor, first: int, rows: Tensor, n_before: int) -> Tensor:
        """Probabilities ``(row, head, position, key_position)``."""
        value = value.clone()
        for index in range(value.shape[2]):
            for edit in self._at(("attention", layer, first + index)):
                local, pick = self._here(edit, rows)
                columns = self._key_columns(edit.keys, n_before)
                if edit.heads is not None:
                    old = value[local, :, index][:, edit.heads]
                    new = edit.probabilities(old, pick, columns, n_before)
                    value[local[:, None], edit.heads[None, :], index] = new
                else:
                    value[local, :, index] = edit.probabilities(value[local, :, index], pick, columns, n_before)
        return value
