"""What each thought of a problem reads out as: best tokens, entropy, and ranks of what its written chain speaks of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from analyze.lens.readout import ReadOut

Array = np.ndarray[Any, np.dtype[Any]]

STATES = 512
"""States read out at once, at most."""
GATHERED = 1 << 24
"""Weights of the unembedding gathered at once for tokens that are asked for."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Read-out of a run at one layer; NaN and -1 where there is no state."""

    token: Array
    """Best tokens, (example, position, best)."""
    entropy: Array
    """In nat, (example, position)."""
    rank: Array
    """Of the results of the own chain, over the whole vocabulary, (example, position, step); NaN: no token says it."""
    place: Array
    """Of all that was asked for, (example, position, what): 2 the best token, 1 among the best, 0 not so, int8."""


def read_states(
    state: xr.DataArray,
    readout: ReadOut,
    asked: Array,
    *,
    results: slice,
    lens: xr.Dataset | None = None,
    best: int = 1,
    top: int = 5,
) -> Readings:
    """Read states of one layer out, some examples at a time.

    Parameters
    ----------
    state : (example, position, hidden)
        In memory; labelled along ``position``, and with ``layer``.
    readout
        Of the run's model.
    asked : (example, what, spelling)
        Token ids, -1: none.
    results
        Which of them are the results of the own chain.
    lens
        Maps by layer, or layer and position, that take the place of the final norm.
    best
        Best tokens kept.
    top
        Rank up to which what is asked for is among the best.
    """
    n, n_position, hidden = state.transpose("example", "position", "hidden").shape
    shape = (n, n_position)
    readings = Readings(
        token=np.full((*shape, best), -1),
        entropy=np.full(shape, np.nan),
        rank=np.full((*shape, len(range(asked.shape[1])[results])), np.nan, dtype="float32"),
        place=np.zeros((*shape, asked.shape[1]), dtype="int8"),
    )
    for rows in _blocks(n, n_position, asked.shape[1] * asked.shape[2] * hidden):
        final = mapped(state.transpose("example", "position", "hidden").isel(example=rows), readout, lens)
        example, position = np.nonzero(np.isfinite(final).all(-1))
        place = (rows.start + example, position)
        if len(example):
            readings.token[place], rank, readings.entropy[place] = readout.told(
                final[example, position], best, asked[place[0]]
            )
            readings.rank[place] = rank[:, results]
            readings.place[place] = np.less_equal(rank, top) + np.less_equal(rank, 1).astype("int8")
    return readings


def joined(parts: Iterable[Readings], n: int) -> Readings:
    """Readings of n examples from those of some, in their order, none of which is held longer than it takes."""
    whole: dict[str, Array] = {}
    done = 0
    for part in parts:
        rows = slice(done, done := done + len(part.token))
        for field in fields(part):
            values = getattr(part, field.name)
            whole.setdefault(field.name, np.empty((n, *values.shape[1:]), values.dtype))[rows] = values
    return Readings(**whole)


def mapped(state: xr.DataArray, readout: ReadOut, lens: xr.Dataset | None) -> Array:
    """What the unembedding reads of states (example, position, hidden) of one layer, float32."""
    values = np.asarray(state.values, dtype="float32")
    values = np.where(np.isfinite(values).all(-1, keepdims=True), values, np.float32(np.nan))
    if lens is None:
        return readout.norm(values)
    chosen = lens.sel(layer=state["layer"].item())
    if "position" not in chosen["weight"].dims:
        return np.asarray(values @ chosen["weight"].values + chosen["bias"].values)
    chosen = chosen.sel(position=state["position"].values)
    return np.asarray(np.einsum("eph,pht->ept", values, chosen["weight"].values) + chosen["bias"].values)


def _blocks(n: int, n_position: int, gathered: int) -> Iterator[slice]:
    """Stretches of examples whose states and gathered weights are few enough."""
    size = max(1, min(STATES // n_position, GATHERED // max(1, gathered * n_position)))
    return (slice(start, start + size) for start in range(0, n, size))
