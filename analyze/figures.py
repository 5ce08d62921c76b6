"""Any one or two labelled axes as a picture: xarray's own ``.plot()`` refuses labels that are text, as positions."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from analyze.drawing import HEAT, HEAT_NEGATIVE, PAPER, panels
from schemas import UsageError

MOST_LABELS = 30
"""Labels along an axis; of more every second is named, or every third."""
SHADES = LinearSegmentedColormap.from_list("signed", [HEAT_NEGATIVE, PAPER, HEAT])


def plot_values(values: xr.DataArray, *, ax: Any = None) -> list[Any]:
    """Labelled numbers, of one axis as a line, of two as a map with the first axis downwards.

    ``plot_values(run["attention"].sel(layer=1, head=2).mean("example"))``. Only what is drawn is read.

    Parameters
    ----------
    values
        One or two dims of any names; those without labels are numbered. NaN is left empty.
    ax
        Where it is drawn; else in a figure of its own.

    Returns
    -------
    list of Axes

    Raises
    ------
    UsageError
        If there are no dims, or more than two.
    """
    if values.ndim not in (1, 2):
        raise UsageError(
            f"{values.name or 'the array'} has dims {', '.join(map(str, values.dims)) or 'none'}; a picture has one or"
            ' two: select or average the others, as .sel(layer=1).mean("example")'
        )
    numbers = np.asarray(values.compute().values, dtype="float64")
    (axis,) = panels(1, ax, size=(6.0, 3.2 if values.ndim == 1 else 4.2))
    if values.ndim == 1:
        axis.plot(np.arange(len(numbers)), numbers, color=HEAT, marker="o", markersize=3)
        axis.set_ylabel(str(values.name or ""))
    else:
        largest = max(float(np.nanmax(np.abs(numbers), initial=0.0)), np.finfo(float).tiny)
        image = axis.imshow(numbers, cmap=SHADES, vmin=-largest, vmax=largest, aspect="auto", interpolation="none")
        bar = axis.figure.colorbar(image, ax=axis, pad=0.02, label=str(values.name or ""))
        bar.ax.set_ylim(min(0.0, float(np.nanmin(numbers, initial=0.0))), largest)
        _name_axis(axis, "y", values, values.dims[0])
    _name_axis(axis, "x", values, values.dims[-1])
    return [axis]


def _name_axis(axis: Axes, which: str, values: xr.DataArray, dim: Any) -> None:
    """Write labels along an axis, as many as there is room for."""
    labels = [str(label) for label in values[dim].values]
    named = range(0, len(labels), -(-len(labels) // MOST_LABELS) or 1)
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_ticks(list(named), [labels[place] for place in named])
    if which == "x" and sum(len(labels[place]) for place in named) > 60:
        axis.tick_params(axis="x", labelrotation=90)
    side.set_label_text(str(dim))
