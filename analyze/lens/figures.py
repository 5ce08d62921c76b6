"""Figures of what the states say when read out."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from analyze.drawing import Results, bars, by_run, colour_bar, heat_map, looks, panels
from analyze.labels import labels_along, up_to_eot

ORDINALS = ("1st", "2nd", "3rd")


def plot_lens_grid(
    summary: xr.Dataset, *, operators: bool = True, positions: Sequence[str] | None = None, ax: Any = None
) -> list[Any]:
    """Which thoughts hold which intermediate result, by layer.

    One panel for each step of the written chain but the last, and one for the answer: positions across, layers down, in
    each cell the percent of problems whose state there reads out as that result, of the problems in which the step is
    not the last. A second row does the same for the operators of all steps. A cell that is dark holds the thing.

    Parameters
    ----------
    summary
        From :func:`analyze.lens.summary.lens_summary`.
    operators
        Whether to draw the second row.
    positions
        By default those that a tenth of the examples have.
    """
    if positions is None:
        positions = shown_positions(summary)
    part = summary.sel(position=list(positions))
    steps = [step for step in summary["step"].values if float(part["n_step"].sel(step=step).max()) > 0]
    drawn = [(f"{_ordinal(int(step))} intermediate result", part["inner_share"].sel(step=step)) for step in steps[:-1]]
    drawn.append(("answer (last result)", part["last_share"]))
    columns = len(drawn)
    if operators:
        drawn += [(f"{_ordinal(int(step))} operator", part["operator_share"].sel(step=step)) for step in steps]
    axes = panels(len(drawn), ax, columns=columns, size=(3.9, 0.9 + max(1.3, 0.28 * summary.sizes["layer"])))
    for index, (axis, (title, values)) in enumerate(zip(axes, drawn, strict=True)):
        cells = values.transpose("layer", "position").values * 100
        heat_map(axis, cells, part["layer"].values, part["position"].values, high=100, text="{:.0f}")
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("layer" if index % columns == 0 else "", fontsize=8)
        axis.set_xlabel("position read out" if index + columns >= len(drawn) else "", fontsize=8)
        axis.tick_params(axis="x", rotation=45)
    colour_bar(axes, "problems where this is\nthe top token, %", high=100)
    chance = float(part["inner_control_share"].max()) * 100
    axes[0].figure.suptitle(
        f"{summary.attrs.get('run', 'run')}: what each position says ({summary.attrs.get('lens', 'plain')} lens; "
        f"an intermediate result of another problem at most {chance:.0f}%)",
        fontsize=10,
    )
    return axes


def shown_positions(summary: xr.Dataset) -> list[str]:
    """Positions that at least a tenth of the examples have."""
    n = summary["n"].max("layer")
    return [str(x) for x in summary["position"].values[n.values >= 0.1 * max(1, int(n.max()))]]


def plot_number_frequency(
    summary: Results, *, layer: int = -1, positions: Sequence[str] | None = None, ax: Any = None
) -> list[Any]:
    """How often the best token is a number at each position, percent with 95% Wilson intervals, runs side by side.

    Parameters
    ----------
    summary
        From :func:`analyze.lens.summary.lens_summary`, one or by run.
    layer
        Place along the layers, so that -1 is the last of each run.
    positions
        By default, and at most, those all runs have up to ``eot``.
    """
    runs = {name: up_to_eot(result).isel(layer=layer) for name, result in by_run(summary).items()}
    every = [labels_along(result, "position") for result in runs.values()]
    chosen = list(positions or [x for x in every[0] if all(x in labels for labels in every)])
    look_of = looks(list(runs))
    series = []
    for name, result in runs.items():
        share, low, high = (result[f"number_share{end}"].sel(position=chosen) * 100 for end in ("", "_low", "_high"))
        series.append((look_of[name], share.values, low.values, high.values))
    axes = panels(1, ax, size=(6.4, 3.6))
    bars(axes[0], chosen, series, form=".0f")
    axes[0].set(xlabel="position read out", ylabel="best token is a number, %", ylim=(0, 125))
    axes[0].set_yticks(range(0, 101, 20))
    axes[0].set_title("; ".join(f"{name} layer {int(result['layer'])}" for name, result in runs.items()), fontsize=9)
    axes[0].legend(loc="upper center", ncols=min(3, len(runs)), fontsize=8, frameon=False)
    return axes


def _ordinal(step: int) -> str:
    return ORDINALS[step] if step < len(ORDINALS) else f"{step + 1}th"
