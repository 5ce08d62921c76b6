"""Edges of a graph between thoughts, and their names."""

from collections.abc import Sequence

import xarray as xr

from schemas.naming import state_of

READS = 0.5
"""Share of problems in which a state must read as a number to be called one that carries it."""
Edges = list[tuple[str, str]]
"""Source and target of each."""


def edges_of(part: xr.Dataset, effect: str) -> Edges:
    """Edges of one operation."""
    is_edge = part["edge"].sel(effect=effect).transpose("source", "target").to_series().astype(bool)
    return [(str(source), str(target)) for source, target in is_edge.index[is_edge]]


def gone_of(part: xr.Dataset, edges: Edges) -> Edges:
    """Those of some direct edges whose share lies below what makes an edge with all of its interval."""
    high, least = part["state_flip_high"].sel(effect="direct"), float(part.attrs["least"])
    return [(source, end) for source, end in edges if float(high.sel(source=source, target=end)) < least]


def named(edges: Edges, share: xr.DataArray | None = None) -> list[str]:
    """Edges as ``ct1 → ct3``, with the ``share`` of problems in which the target reads otherwise, if it is given."""
    return [
        f"{source} \N{RIGHTWARDS ARROW} {end}"
        + ("" if share is None else f" {float(share.sel(source=source, target=end)):.0%}")
        for source, end in edges
    ]


def wordy_sources(part: xr.Dataset, lenses: Sequence[xr.Dataset]) -> list[str]:
    """Thoughts from which a direct edge starts although what is fed there reads as a number in few problems.

    What they read as is in the graph, or of one over the last layer in the run's lens.
    """
    starts = part["edge"].sel(effect="direct").any("target")
    if "reads_result" in part:
        return [str(source) for source in part["source"].values[(part["reads_result"] < READS) & starts]]
    if not lenses or int(part.attrs.get("layer", -1)) != -1 or "number_share" not in lenses[0]:
        return []
    share = lenses[0]["number_share"].isel(layer=-1).to_series()
    sources = [str(source) for source in part["source"].values[starts.values]]
    return [source for source in sources if share.get(state_of(source), READS) < READS]
