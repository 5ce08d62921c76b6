"""Turn interventions into the changes that are armed: kind, factor and values, for examples of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from extract.reenter.armed import Armed, Inside, Kind
from extract.reenter.values import StoredValues
from schemas import Intervention, UsageError
from schemas.intervention import SITES


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
    reasoner.check(intervention)
    site, keys, heads = intervention.site, intervention.keys, intervention.heads
    key_offsets = tuple(reasoner.places.offset(key) for key in keys)
    if site == "attention" and intervention.operation == "shuffle":
        key_offsets = tuple(sorted(key_offsets))
    for position in intervention.positions:
        offset = reasoner.places.offset(position)
        chosen = np.arange(len(rows))
        if where is not None and position in where:
            chosen = np.flatnonzero(where[position])
        if not len(chosen):
            continue
        for layer in intervention.layers or (-1,):
            change = _change(intervention, values, rows[chosen], layer, position)
            value = change.value
            if value is not None and heads and SITES[site].heads:
                value = value[:, list(heads)]
            noise = None
            if intervention.as_noise:
                shape = reasoner.part_shape(site)
                if heads:
                    shape = len(heads), *shape[1:]
                noise = _draw(intervention.seed, rows[chosen], layer, offset, shape)
            armed.add(
                (site, layer, offset),
                change.kind,
                batch_rows[chosen],
                stage=stage,
                scale=change.scale,
                value=value,
                heads=heads,
                keys=key_offsets,
                noise=noise,
                inside=change.inside,
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


@dataclass(frozen=True, slots=True)
class _Change:
    """What is armed at one place: kind, factor, values ``(row, ...)``, and the subspace it is kept in."""

    kind: Kind
    scale: float = 0.0
    value: np.ndarray | None = None
    inside: Inside | None = None


def _change(intervention: Intervention, values: StoredValues, rows: np.ndarray, layer: int, position: str) -> _Change:
    """What an intervention does to rows of the run at one place."""
    site, keys, strength = intervention.site, intervention.keys, intervention.strength

    def donated(donor: str) -> np.ndarray:
        return values.stored(values.donors(rows, donor, intervention.seed), site, layer, position, keys)

    match intervention.operation:
        case "zero":
            return _Change("edges" if site == "attention" else "set")
        case "scale":
            return _Change("edges" if site == "attention" else "affine", strength)
        case "force" | "even":
            return _Change("force" if intervention.operation == "force" else "even")
        case "shuffle" if site == "attention":
            shape = values.reasoner.n_head, len(keys)
            offset = values.reasoner.places.offset(position)
            return _Change("exchange", value=_draw(intervention.seed, rows, layer, offset, shape))
        case "mean":
            mean = values.mean(site, layer, position, intervention.average, keys)
            return _Change("set", value=np.broadcast_to(mean, (len(rows), *mean.shape)))
        case "resample":
            return _Change("set", value=donated("other"))
        case "replace" | "replace_in" if intervention.donor == "forward":
            return _Change("same")
        case "replace":
            return _Change("set", value=donated(intervention.donor))
        case "noise":
            spread = values.spread(site, layer, position)
            noise = _draw(intervention.seed, rows, layer, values.reasoner.places.offset(position), spread.shape)
            return _Change("affine", 1.0, strength * spread * noise)
        case "shuffle":
            return _Change("set", value=_shuffled(intervention, values, rows, layer, position))
        case "add":
            return _Change("affine", 1.0, strength * values.direction(intervention.direction, rows, layer, position))
        case "project_out":
            inside, mean = values.subspace(intervention.subspace, rows, layer, position)
            return _Change("inside", strength, mean, inside)
        case "replace_in":
            inside, _ = values.subspace(intervention.subspace, rows, layer, position)
            return _Change("inside", strength, donated(intervention.donor), inside)
        case "write":
            value = values.direction(intervention.direction, rows, layer, position)
            if not intervention.subspace:
                return _Change("inside", strength, value)
            inside, _ = values.subspace(intervention.subspace, rows, layer, position)
            return _Change("inside", strength, value, inside)
    raise UsageError(f"unknown operation {intervention.operation!r}")


def _shuffled(
    intervention: Intervention, values: StoredValues, rows: np.ndarray, layer: int, position: str
) -> np.ndarray:
    """Value ``(row, hidden)`` that comes to a position where an example's positions exchange theirs."""
    positions = intervention.positions
    order = np.stack([permutation(intervention.seed, int(row), len(positions)) for row in rows])
    source = order[:, positions.index(position)]
    new = np.empty((len(rows), values.reasoner.hidden), dtype=np.float32)
    for index, label in enumerate(positions):
        chosen = source == index
        if chosen.any():
            new[chosen] = values.stored(rows[chosen], intervention.site, layer, label)
    return new
