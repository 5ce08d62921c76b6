"""Interventions at work: what is armed where, and the values that go in, read from the lake."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from extract.model.reasoner import Reasoner
from schemas import Intervention, UsageError

Kind = Literal["set", "affine", "edges", "force", "same"]
Place = tuple[str, int, int]
"""Site, layer (-1 for ``latent_embedding``) and offset from ``bot``."""
Pick = Tensor | slice
"""Which rows of an edit: some, or all."""
Group = tuple[int, Kind, tuple[int, ...], tuple[int, ...], bool, bool]
"""Stage, kind, heads, keys, with values, with noise: edits that agree in them are made in one go."""
CACHE_BYTES = 256 * 2**20


@dataclass(slots=True)
class _Added:
    """A change as it was asked for, on the host."""

    rows: np.ndarray
    scale: float
    value: np.ndarray | None
    noise: np.ndarray | None


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
        out = old * self.scale[pick].to(old.dtype).reshape(-1, *[1] * (old.ndim - 1))
        return out if self.value is None else out + self.value[pick].to(old.dtype).reshape(old.shape)

    def probabilities(self, old: Tensor, pick: Pick, columns: Tensor) -> Tensor:
        """New rows of attention ``(row, head, key_position)``; they sum to 1 unless nothing is left to sum."""
        if self.kind == "same":
            return old.clone()
        new = old.clone()
        if self.kind == "force":
            new.zero_()
            new[..., columns] = 1 / len(columns)
            return new
        if self.kind == "edges":
            new[..., columns] *= self.scale[pick].to(old.dtype)[:, None, None]
            total = new.sum(-1, keepdim=True)
            return torch.where(total > 0, new / total, torch.zeros_like(new))
        value = torch.zeros_like(old[..., columns]) if self.value is None else self.value[pick].to(old.dtype)
        new[..., columns] = 0
        rest = new.sum(-1, keepdim=True)
        share = 1 - value.sum(-1, keepdim=True)
        new = torch.where(rest > 0, new * (share / rest), torch.zeros_like(new))
        new[..., columns] = value
        return new


class Armed:
    """Changes of some rows of a batch at some places: the editor a pass consults.

    Rows of several conditions lie side by side in a batch; changes of one row at one place happen in the order in
    which they were added. What is added stays on the host until the first pass that comes to its place; from then on it
    is on the device, and no pass waits for a copy.
    """

    def __init__(self, n_row: int, device: torch.device) -> None:
        self.n_row = n_row
        self.device = device
        self._pending: dict[Place, dict[Group, list[_Added]]] = {}
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
    ) -> None:
        """Arm a change of rows ``(row,)``; ``value`` is ``(row, ...)``. Later stages act on what earlier ones left."""
        added = _Added(np.asarray(rows), scale, value, None if noise is None else noise.reshape(len(rows), -1))
        group = (stage, kind, heads, keys, value is not None, noise is not None)
        self._pending.setdefault(place, {}).setdefault(group, []).append(added)
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
            merged = []
            for group, added in sorted(self._pending.get(place, {}).items(), key=lambda item: item[0][0]):
                _, kind, heads, keys, _, _ = group
                values = [each.value for each in added if each.value is not None]
                noises = [each.noise for each in added if each.noise is not None]
                rows = np.concatenate([each.rows for each in added])
                merged.append(
                    _Edit(
                        kind=kind,
                        heads=self._put([np.array(heads)], np.int64) if heads else None,
                        keys=keys,
                        host_rows=rows,
                        rows=self._put([rows], np.int64),
                        scale=self._put([np.full(len(each.rows), each.scale) for each in added]),
                        value=self._put(values) if values else None,
                        noise=self._put(noises) if noises else None,
                    )
                )
            self._edits[place] = merged
        return self._edits[place]

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

    def _vectors(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
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
        return self._vectors("latent_embedding", -1, value[:, None], first, rows)[:, 0]

    def hidden_state(self, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Output ``(row, position, hidden)`` of a block."""
        return self._vectors("hidden_state", layer, value, first, rows)

    def head_output(self, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Input ``(row, position, head, head_size)`` of an output projection."""
        return self._vectors("head_output", layer, value, first, rows)

    def attention(self, layer: int, value: Tensor, first: int, rows: Tensor, n_before: int) -> Tensor:
        """Probabilities ``(row, head, position, key_position)``."""
        value = value.clone()
        for index in range(value.shape[2]):
            for edit in self._at(("attention", layer, first + index)):
                local, pick = self._here(edit, rows)
                heads = edit.heads if edit.heads is not None else torch.arange(value.shape[1], device=self.device)
                columns = self._key_columns(edit.keys, n_before)
                old = value[local, :, index][:, heads]
                value[local[:, None], heads[None, :], index] = edit.probabilities(old, pick, columns)
        return value


@dataclass(slots=True)
class StoredValues:
    """Values of a run that go back into the model: states, donors, means, spreads, read column by column.

    Parameters
    ----------
    run
        Dataset of the run.
    reasoner
        Model the values belong to.
    directions
        Named directions, with dim ``hidden`` and any of ``layer``, ``position``, ``example``.
    """

    run: xr.Dataset
    reasoner: Reasoner
    directions: Mapping[str, xr.DataArray] = field(default_factory=dict)
    fed: int = 0
    """Positions fed to compute values that a lake does not hold (outputs of heads)."""
    _columns: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)
    _heads: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    _at: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that run and model belong together."""
        sizes = {"layer": self.reasoner.n_layer, "hidden": self.reasoner.hidden, "latent": self.reasoner.n_latent}
        for dim, size in sizes.items():
            if self.run.sizes.get(dim, size) != size:
                raise UsageError(
                    f"run {self.run.attrs.get('run', '')} has {self.run.sizes[dim]} {dim}s, model"
                    f" {self.reasoner.name} {size}: a donor of another model"
                )
        self._at = {int(label): index for index, label in enumerate(self.run["example"].values)}

    def rows(self, examples: Iterable[int]) -> np.ndarray:
        """Rows ``(example,)`` of examples in the run."""
        examples = list(examples)
        if missing := [example for example in examples if int(example) not in self._at]:
            raise UsageError(f"example {missing[0]} is not in run {self.run.attrs.get('run', '')}")
        return np.array([self._at[int(example)] for example in examples], dtype=np.int64)

    def column(self, site: str, layer: int, position: str, keys: tuple[str, ...] = ()) -> np.ndarray:
        """Stored values of one place for every example of the run, float32.

        ``(example, hidden)``; ``(example, head, head_size)``; ``(example, head, key)`` for attention.
        """
        if site == "head_output":
            if (layer, position) not in self._heads:
                self._compute_heads([(layer, position)])
            return self._heads[layer, position]
        key = (site, layer, position, keys)
        if key not in self._columns:
            selection: dict[str, object] = {"position": position}
            name = site
            if site == "latent_embedding":
                selection = {"latent": position}
            else:
                selection["layer"] = layer
            if keys:
                selection["key_position"] = list(keys)
            for dim, wanted in selection.items():
                labels = self.run[name].indexes[dim]
                for label in wanted if isinstance(wanted, list) else [wanted]:
                    if label not in labels:
                        raise UsageError(
                            f"run {self.run.attrs.get('run', '')} stores no {name} at {dim} {label}; it has"
                            f" {labels[0]} to {labels[-1]}"
                        )
            values = self.run[name].sel(selection).transpose("example", ...).values.astype(np.float32)
            while self._columns and sum(each.nbytes for each in self._columns.values()) > CACHE_BYTES:
                self._columns.pop(next(iter(self._columns)))
            self._columns[key] = values
        return self._columns[key]

    def prepare(self, interventions: Iterable[Intervention], batch: int = 32) -> None:
        """Compute in one pass over the run what these need and the lake does not hold: outputs of heads."""
        places = {
            (layer, position)
            for each in interventions
            if each.site == "head_output"
            and (
                each.operation in ("mean", "resample", "noise")
                or (each.operation == "replace" and each.donor != "forward")
            )
            for layer in each.layers
            for position in each.positions
        }
        if missing := sorted(places - self._heads.keys()):
            self._compute_heads(missing, batch)

    def _compute_heads(self, places: Sequence[tuple[int, str]], batch: int = 32) -> None:
        reasoner = self.reasoner
        offsets = {position: reasoner.places.offset(position) for _, position in places}
        for position, offset in offsets.items():
            if not 0 <= offset < reasoner.places.n_middle:
                first, last = reasoner.places.middle[0], reasoner.places.middle[-1]
                raise UsageError(f"outputs of heads go in from {first} to {last} only, not at {position}")
        prompts = [reasoner.encode(str(question)) for question in self.run["question"].values]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        shape = (len(prompts), reasoner.n_head, reasoner.head_size)
        found = {place: np.empty(shape, dtype=np.float32) for place in places}
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            thinking = reasoner.think(
                [prompts[index] for index in part], stored_dtype="float32", max_new_tokens=1, head_output=True
            )
            self.fed += sum(reasoner.longest(len(prompts[index]), 1) for index in part)
            for layer, position in places:
                found[layer, position][part] = thinking.head_output[:, layer, offsets[position]]
        self._heads.update(found)

    def donors(self, rows: np.ndarray, donor: str, seed: int = 0) -> np.ndarray:
        """Row of each row's donor.

        Raises
        ------
        UsageError
            If an example has no twin, or no other problem is in the run.
        """
        if donor == "stored":
            return rows
        problem = np.asarray(self.run["problem"].values if "problem" in self.run.coords else self.run["example"].values)
        if donor == "other":
            variant = self.run["variant"].values.astype(str) if "variant" in self.run.coords else np.array([""])
            # Of pairs, the clean halves give, as the twin does.
            gives = variant == "clean" if (variant == "clean").any() else np.ones(len(problem), dtype=bool)
            found = []
            for row in rows:
                candidates = np.flatnonzero((problem != problem[row]) & gives)
                if not len(candidates):
                    raise UsageError("there is no other problem in the run to resample from")
                found.append(np.random.default_rng([seed, int(row)]).choice(candidates))
            return np.array(found, dtype=np.int64)
        pair = np.asarray(self.run["pair"].values) if "pair" in self.run.variables else np.full(len(problem), -1)
        partner: dict[int, list[int]] = {}
        for index, number in enumerate(pair.tolist()):
            if number >= 0:
                partner.setdefault(number, []).append(index)
        found = []
        for row in rows:
            others = [index for index in partner.get(int(pair[row]), []) if index != row]
            if len(others) != 1:
                raise UsageError(
                    f"example {int(self.run['example'].values[row])} is not half of a pair; a twin as donor needs a run"
                    " over clean/corrupted pairs"
                )
            found.append(others[0])
        return np.array(found, dtype=np.int64)

    def mean(self, site: str, layer: int, position: str, average: str, keys: tuple[str, ...] = ()) -> np.ndarray:
        """Mean of a place over the run's examples, or over all thoughts of all examples (``run``)."""
        key = ("mean", site, layer, position, average, keys)
        if key not in self._columns:
            if average == "run":
                positions = [f"ct{index}" for index in range(self.reasoner.n_latent)]
                means = [self.mean(site, layer, each, "position", keys) for each in positions]
                value = np.asarray(np.mean(means, axis=0, dtype=np.float64))
            else:
                values = self.column(site, layer, position, keys)
                if average in ("correct", "wrong"):
                    chosen = np.asarray(self.run["correct"].values) == (average == "correct")
                    if not chosen.any():
                        raise UsageError(f"no example of the run was answered {average}; there is no mean of them")
                    values = values[chosen]
                present = ~np.isnan(values).reshape(len(values), -1).any(1)
                if not present.any():
                    raise UsageError(f"no example of the run has a {site} at {position}")
                value = np.asarray(values[present].mean(0, dtype=np.float64))
            self._columns[key] = value.astype(np.float32)
        return self._columns[key]

    def spread(self, site: str, layer: int, position: str) -> np.ndarray:
        """Standard deviation of every component of a place over the run's examples."""
        key = ("spread", site, layer, position)
        if key not in self._columns:
            values = self.column(site, layer, position)
            present = ~np.isnan(values).reshape(len(values), -1).any(1)
            self._columns[key] = values[present].std(0, dtype=np.float64).astype(np.float32)
        return self._columns[key]

    def stored(self, rows: np.ndarray, site: str, layer: int, position: str, keys: tuple[str, ...] = ()) -> np.ndarray:
        """Stored values of rows at a place; all must exist."""
        values: np.ndarray = self.column(site, layer, position, keys)[rows]
        missing = np.isnan(values).reshape(len(values), -1).any(1)
        if missing.any():
            example = int(self.run["example"].values[rows[missing.argmax()]])
            raise UsageError(f"example {example} has no {site} at {position} in the run to put in")
        return values

    def direction(self, name: str, rows: np.ndarray, layer: int, position: str) -> np.ndarray:
        """Named direction ``(row, hidden)`` at a place."""
        if name not in self.directions:
            raise UsageError(f"direction {name!r} was never computed; there are {', '.join(self.directions) or 'none'}")
        array = self.directions[name]
        for dim, label in (("layer", layer), ("position", position)):
            if dim in array.dims:
                if label not in array.indexes[dim]:
                    raise UsageError(f"direction {name!r} was not computed at {dim} {label}")
                array = array.sel({dim: label})
        if array.sizes.get("hidden") != self.reasoner.hidden:
            raise UsageError(
                f"direction {name!r} has {array.sizes.get('hidden')} components, model"
                f" {self.reasoner.name} {self.reasoner.hidden}"
            )
        if "example" in array.dims:
            return (
                array.sel(example=self.run["example"].values[rows])
                .transpose("example", "hidden")
                .values.astype(np.float32)
            )
        vector = np.asarray(array.values, dtype=np.float32)
        return np.broadcast_to(vector, (len(rows), self.reasoner.hidden))


def arm(
    armed: Armed,
    intervention: Intervention,
    values: StoredValues,
    rows: np.ndarray,
    batch_rows: np.ndarray,
    *,
    stage: int = 0,
    where: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Arm an intervention for examples of a run.

    Parameters
    ----------
    armed
        Takes the changes.
    intervention
        What to change.
    values
        Of the run.
    rows
        Rows ``(example,)`` of the run.
    batch_rows
        Rows ``(example,)`` of the batch, in the same order.
    stage
        Order among the interventions on the same examples.
    where
        For some positions, the examples ``(example,)`` on which they are armed; the others are armed on all.
    """
    reasoner = values.reasoner
    intervention.check(n_layer=reasoner.n_layer, n_head=reasoner.n_head, places=reasoner.places)
    site, keys, heads = intervention.site, intervention.keys, intervention.heads
    key_offsets = tuple(reasoner.places.offset(key) for key in keys)
    for position in intervention.positions:
        offset = reasoner.places.offset(position)
        chosen = np.arange(len(rows))
        if where is not None and position in where:
            chosen = np.flatnonzero(where[position])
        if not len(chosen):
            continue
        for layer in intervention.layers or (-1,):
            kind, scale, value = _change(intervention, values, rows[chosen], layer, position)
            if value is not None and heads and site in ("head_output", "attention"):
                value = value[:, list(heads)]
            noise = None
            if intervention.as_noise:
                shape = {"head_output": (len(heads) or reasoner.n_head, reasoner.head_size)}.get(
                    site, (reasoner.hidden,)
                )
                noise = _draw(intervention.seed, rows[chosen], layer, offset, shape)
            armed.add(
                (site, layer, offset),
                kind,
                batch_rows[chosen],
                stage=stage,
                scale=scale,
                value=value,
                heads=heads,
                keys=key_offsets,
                noise=noise,
            )


def _draw(seed: int, rows: np.ndarray, layer: int, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normal draws ``(row, ...)`` that depend on the example and the place, not on the batch."""
    generators = (np.random.default_rng([seed, int(row), layer + 1, offset + 10_000]) for row in rows)
    return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])


def permutation(seed: int, row: int, n: int) -> np.ndarray:
    """Random order ``(n,)`` of places of an example, never the one they are in."""
    generator = np.random.default_rng([seed, row])
    while True:
        order = generator.permutation(n)
        if (order != np.arange(n)).any():
            return order


def _change(
    intervention: Intervention, values: StoredValues, rows: np.ndarray, layer: int, position: str
) -> tuple[Kind, float, np.ndarray | None]:
    """Kind, factor and values ``(row, ...)`` of a change at one place."""
    site, keys = intervention.site, intervention.keys
    match intervention.operation:
        case "zero":
            return ("edges", 0.0, None) if site == "attention" else ("set", 0.0, None)
        case "scale":
            return ("edges" if site == "attention" else "affine"), intervention.strength, None
        case "force":
            return "force", 0.0, None
        case "mean":
            mean = values.mean(site, layer, position, intervention.average, keys)
            return "set", 0.0, np.broadcast_to(mean, (len(rows), *mean.shape))
        case "resample":
            donors = values.donors(rows, "other", intervention.seed)
            return "set", 0.0, values.stored(donors, site, layer, position, keys)
        case "replace":
            if intervention.donor == "forward":
                return "same", 0.0, None
            donors = values.donors(rows, intervention.donor, intervention.seed)
            return "set", 0.0, values.stored(donors, site, layer, position, keys)
        case "noise":
            spread = values.spread(site, layer, position)
            offset = values.reasoner.places.offset(position)
            noise = _draw(intervention.seed, rows, layer, offset, spread.shape)
            return "affine", 1.0, intervention.strength * spread * noise
        case "shuffle":
            positions = intervention.positions
            order = np.stack([permutation(intervention.seed, int(row), len(positions)) for row in rows])
            source = order[:, positions.index(position)]
            new = np.empty((len(rows), values.reasoner.hidden), dtype=np.float32)
            for index, each in enumerate(positions):
                chosen = source == index
                if chosen.any():
                    new[chosen] = values.stored(rows[chosen], site, layer, each)
            return "set", 0.0, new
        case "add":
            return (
                "affine",
                1.0,
                intervention.strength * values.direction(intervention.direction, rows, layer, position),
            )
    raise UsageError(f"unknown operation {intervention.operation!r}")
