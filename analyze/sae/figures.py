"""Figures of sparse autoencoders and of error prediction. They take finished results and compute nothing."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import HEAT, PALETTE, Results, by_run, colour_bar, heat_map, panels
from schemas import UsageError


def plot_sae_reconstruction(
    results: Results, *, split: str = "test", definition: str = "squared_error", ax: Any = None
) -> list[Any]:
    """Explained variance of every layer and position, on one scale; a crosscoder's by source.

    Parameters
    ----------
    results
        From :func:`analyze.sae.dictionary.train_sae`, one or by name.
    split, definition
        Which of ``explained_variance``.
    ax
        One axes for each result; a new figure if absent.
    """
    runs = by_run(results)
    tables = {n: _table(r["explained_variance"].sel(split=split, definition=definition)) for n, r in runs.items()}
    widest = max(table.shape[1] for table in tables.values())
    tallest = max(table.shape[0] for table in tables.values())
    axes = panels(len(runs), ax, size=(2.4 + 0.45 * widest, 1.6 + 0.28 * tallest))
    lowest = min(float(np.nanmin(table.values)) for table in tables.values())
    low = min(max(lowest, 0.0), 0.99)
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        rows, columns = table.dims
        # worse than the mean is as pale as the mean; the cell says how far
        cells = np.array([[f"{value:.2f}" for value in row] for row in table.values])
        heat_map(axis, table.clip(min=0), table[rows].values, table[columns].values, low=low, labels=cells)
        axis.set(xlabel=str(columns), ylabel=str(rows), title=name)
        axis.tick_params(axis="x", rotation=45)
    colour_bar(axes, f"explained variance ({split}, {definition.replace('_', ' ')})", low=low)
    return axes


def plot_sae_features(results: Results, *, ax: Any = None) -> list[Any]:
    """How often features fire and how strongly: two panels for each result, with L0 and the dead in the titles.

    Parameters
    ----------
    results
        From :func:`analyze.sae.dictionary.train_sae`, one or by name.
    ax
        Two axes for each result; a new figure if absent.
    """
    runs = by_run(results)
    axes = panels(2 * len(runs), ax, columns=2, size=(4.2, 3.0))
    for index, (name, sae) in enumerate(runs.items()):
        often, strong = axes[2 * index : 2 * index + 2]
        cells = [d for d in sae["frequency"].dims if d not in ("feature", *sae["max_activation"].dims)]
        frequency = sae["frequency"].mean(cells).values.ravel()
        edges = np.linspace(-5, 0, 41)
        often.hist(np.log10(np.maximum(frequency[frequency > 0], 1e-5)), edges, edgecolor="black", color=PALETTE[0])
        often.set(xlabel="log10 of the share of rows on which a feature fires", ylabel="features")
        dead, l0 = (float(sae[n].sel(split="test").mean()) for n in ("dead_share", "l0"))
        often.set_title(f"{name}: L0 {l0:.1f}, {100 * dead:.0f}% dead on test", fontsize=9)
        size, count = sae["activation_size"].values, sae["activation_count"].values
        strong.bar(
            np.log10(size), count / max(count.sum(), 1), np.diff(np.log10(size))[0], edgecolor="black", color=HEAT
        )
        strong.set(xlabel="log10 of code / mean norm of centred inputs", ylabel="share of active codes")
        shown = np.log10(size[count > 0])
        if len(shown):
            strong.set_xlim(max(shown.min(), -3) - 0.2, shown.max() + 0.2)
        strong.set_title(f"{name}: sizes of codes", fontsize=9)
    return axes


def _table(values: xr.DataArray) -> xr.DataArray:
    """Explained variance as rows and columns, whatever the cells are."""
    if values.ndim == 0:
        values = values.expand_dims(["layer", "position"])
    elif values.ndim == 1:
        values = values.expand_dims("row" if "layer" not in values.dims else "position")
    if values.ndim != 2:
        raise UsageError(f"explained variance over {values.dims} is no table; select all but two of its dims")
    order = [d for d in ("layer", "source", "row") if d in values.dims][:1]
    values = values.transpose(*order, ...)
    return values.assign_coords({d: np.arange(values.sizes[d]) for d in values.dims if d not in values.coords})
