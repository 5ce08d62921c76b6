"""What each thought of a problem reads out as: best tokens, entropy, and ranks of what its written chain speaks of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    """Of what was asked for, over the whole vocabulary, (example, position, what); NaN: no token says it."""


def read_states(
    state: xr.DataArray,
    readout: ReadOut,
    asked: Array,
    *,
    lens: xr.Dataset | None = None,
    best: int = 1,
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
    lens
        Maps by layer, or layer and position, that take the place of the final norm.
    best
        Best tokens kept.
    """
    n, n_position, hidden = state.transpose("example", "position", "hidden").shape
    shape = (n, n_position)
    readings = Readings(
        token=np.full((*shape, best), -1),
        entropy=np.full(shape, np.nan),
        rank=np.full((*shape, asked.shape[1]), np.nan, dtype="float32"),
    )
    for rows in _blocks(n, n_position, asked.shape[1] * asked.shape[2] * hidden):
        final = mapped(state.transpose("example", "position", "hidden").isel(example=rows), readout, lens)
        example, position = np.nonzero(np.isfinite(final).all(-1))
        place = (rows.start + example, position)
        if len(example):
            readings.token[place], readings.rank[place], readings.entropy[place] = readout.told(
                final[example, position], best, asked[place[0]]
            )
    return readings


def joined(parts: Sequence[Readings]) -> Readings:
    """Readings of all examples from those of some, in their order."""
    return Readings(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ("token", "entropy", "rank")}
    )


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
