"""One head of a run as a picture, straight from its attention."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import heat_map, panels
from analyze.labels import labels_along
from schemas import UsageError, nearest, segment_of


def plot_head(run: xr.Dataset | xr.DataArray, head: str, *, example: int | None = None, ax: Any = None) -> list[Any]:
    """Where one head looks from ``bot``, the thoughts and the marker after them: ``plot_head(run, "L1H2")``.

    Rows are queries; the keys of the question are one column, so that a row sums to 1. This head's attention alone is
    read.

    Parameters
    ----------
    run
        From ``lake[..]``, or its attention: (example, layer, head, position, key_position).
    head
        Its name, as ``"L1H2"``: layer and head, from 0.
    example
        Number of one example among those of the run; the mean over all if none is given.
    ax
        Where it is drawn; else in a figure of its own.

    Returns
    -------
    list of Axes

    Raises
    ------
    UsageError
        If there is no such head or example.
    """
    attention = run["attention"] if isinstance(run, xr.Dataset) else run
    pattern = attention.isel(_place(attention, head), drop=True)
    if example is not None and not 0 <= example < pattern.sizes["example"]:
        raise UsageError(f"no example {example}; there are 0 to {pattern.sizes['example'] - 1}")
    segments = [[segment_of(label) for label in labels_along(pattern, dim)] for dim in ("position", "key_position")]
    places = [[n for n, segment in enumerate(kinds) if segment in ("bot", "latent", "eot")] for kinds in segments]
    pattern = pattern.isel(position=places[0])
    pattern = (pattern.mean("example") if example is None else pattern.isel(example=example)).compute()
    rows = pattern.transpose("position", "key_position").values
    question = rows[:, [segment == "question" for segment in segments[1]]].sum(axis=1, keepdims=True)
    thoughts = rows[:, places[1]]
    later = np.triu(np.ones(thoughts.shape, dtype=bool), 1)  # impossible, not zero
    names = labels_along(pattern, "position")
    axes = panels(1, ax, size=(1.4 + 0.45 * len(names), 1.1 + 0.45 * len(names)))
    cells = np.hstack([question, np.where(later, np.nan, thoughts)])
    heat_map(axes[0], cells, names, ["question", *names], gap="")
    axes[0].set_xlabel("attended (key)")
    axes[0].set_ylabel("attending (query)")
    whose = f"mean of {attention.sizes['example']} examples" if example is None else f"example {example}"
    axes[0].set_title(" ".join([head, str(run.attrs.get("run", "")), whose]), fontsize=8)
    return axes


def _place(attention: xr.DataArray, head: str) -> dict[str, int]:
    """Place of a head along its dims, by its name."""
    layers, heads = (labels_along(attention, dim) for dim in ("layer", "head"))
    places = {
        f"L{layer}H{one}": {"layer": i, "head": k} for i, layer in enumerate(layers) for k, one in enumerate(heads)
    }
    if head not in places:
        known = list(places)
        raise UsageError(f"no head {head!r}; there are {known[0]} to {known[-1]}{nearest(head, known)}")
    return places[head]
