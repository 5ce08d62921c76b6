"""Figures of what matters, and of whether attention says so."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.correlate.importance import LONG_NAMES
from analyze.drawing import LINES, Results, bars, by_run, colour_bar, heatmap, line, panels


def plot_importance(result: Results, *, ax: Any = None) -> list[Any]:
    """Importance of each position, mean over problems with 95% intervals, runs side by side.

    Parameters
    ----------
    result
        From :func:`analyze.correlate.importance.attention_importance`, one or by run.
    """
    runs = by_run(result)
    axes = panels(1, ax, size=(6.0, 3.4))
    positions = next(iter(runs.values()))["position"].values
    series = {name: found["mean_importance"].reindex(position=positions).values for name, found in runs.items()}
    error = {
        name: tuple(found[f"mean_importance_{x}"].reindex(position=positions).values for x in ("low", "high"))
        for name, found in runs.items()
    }
    bars(axes[0], series, positions, error=error, form=".2f")
    axes[0].set(xlabel="thought", ylabel=_name(next(iter(runs.values())), "importance"))
    axes[0].set_title("; ".join(f"{name} (n = {int(found['n_example'])})" for name, found in runs.items()), fontsize=9)
    return axes


def plot_importance_by_example(result: xr.Dataset, *, n: int = 60, ax: Any = None) -> list[Any]:
    """Importance in each of the first ``n`` problems (rows) at each position (columns)."""
    axes = panels(1, ax, size=(4.2, 6.0))
    part = result["importance"].isel(example=slice(0, n)).transpose("example", "position")
    image = heatmap(axes[0], part.values, part["example"].values, part["position"].values)
    axes[0].set(title=str(result.attrs.get("run", "run")), xlabel="thought", ylabel="example")
    colour_bar(axes, image, _name(result, "importance"))
    return axes


def plot_importance_and_attention(result: Results, *, layer: int = -1, ax: Any = None) -> list[Any]:
    """Two bars for each thought, in percent on one axis: its importance, and its share of the attention among thoughts.

    Parameters
    ----------
    result
        From :func:`analyze.correlate.importance.attention_importance`, one or by run; attention as mean over heads.
    layer
        Place along the layers, so that -1 is the last of each run.
    """
    runs = by_run(result)
    axes = panels(len(runs), ax, size=(5.2, 3.6), sharey=True)
    for axis, (run, found) in zip(axes, runs.items(), strict=True):
        part = found.isel(layer=layer)
        total = float(part["mean_attention"].sum())
        names = "importance", "share of the attention among thoughts"
        values = {names[0]: part["mean_importance"].values * 100, names[1]: part["mean_attention"].values / total * 100}
        error = {
            names[0]: tuple(part[f"mean_importance_{x}"].values * 100 for x in ("low", "high")),
            names[1]: tuple(part[f"mean_attention_{x}"].values / total * 100 for x in ("low", "high")),
        }
        bars(axis, values, part["position"].values, error=error, form=".0f", legend=axis is axes[0])
        axis.set_title(
            f"{run}, layer {int(part['layer'])}: thoughts get {total * 100:.1f}% of all attention", fontsize=9
        )
        axis.set(xlabel="thought", ylabel="%" if axis is axes[0] else "")
    return axes


def plot_attention_against_importance(
    result: xr.Dataset, *, layers: Sequence[int] | None = None, ax: Any = None
) -> list[Any]:
    """Every problem and thought as a point, one panel for each layer, with the line of the pooled points.

    Attention across, importance up.

    Parameters
    ----------
    result
        From :func:`analyze.correlate.importance.attention_importance`; attention as mean over heads.
    layers
        By default three from first to last.
    """
    if layers is None:
        places = np.unique(np.linspace(0, result.sizes["layer"] - 1, 3).round()).astype(int)
        layers = result["layer"].values[places].tolist()
    axes = panels(len(layers), ax, size=(4.0, 3.4), sharey=True)
    for axis, layer in zip(axes, layers, strict=True):
        part = result.sel(layer=layer)
        for index, position in enumerate(result["position"].values):
            _points(axis, part.sel(position=position), index, str(position))
        edges = np.array([float(part["attention"].min()), float(part["attention"].max())])
        axis.plot(edges, float(part["intercept"]) + float(part["slope"]) * edges, color="black", linewidth=1.5)
        axis.set_title(
            f"layer {layer}: pooled r = {float(part['pooled_r']):.2f}\nwith position accounted for "
            f"{float(part['partial_r']):.2f} (p = {float(part['partial_p_adjusted']):.2g})",
            fontsize=8,
        )
        axis.set(xlabel=_name(result, "attention"), ylabel=_name(result, "importance") if axis is axes[0] else "")
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def plot_position_scatters(result: xr.Dataset, *, layer: int = -1, ax: Any = None) -> list[Any]:
    """Attention against importance at one layer, one panel for each thought, on one scale."""
    part = result.isel(layer=layer)
    axes = panels(part.sizes["position"], ax, columns=3, size=(3.2, 2.6), sharey=True)
    limits = float(part["attention"].min()), float(part["attention"].max())
    for index, (axis, position) in enumerate(zip(axes, part["position"].values, strict=True)):
        here = part.sel(position=position)
        _points(axis, here, index, str(position))
        axis.set_xlim(limits[0] - 0.03 * (limits[1] - limits[0]), limits[1] + 0.03 * (limits[1] - limits[0]))
        axis.set_title(
            f"{position}: r = {float(here['position_r']):.2f}, p = {float(here['position_p_adjusted']):.2g}", fontsize=8
        )
        axis.set_xlabel(_name(result, "attention") if index >= 3 else "", fontsize=8)
        axis.set_ylabel(_name(result, "importance") if index % 3 == 0 else "", fontsize=8)
    return axes


def plot_correlations(result: Results, *, ax: Any = None) -> list[Any]:
    """All correlations but those by position, by layer with 95% intervals; filled where the corrected p is below 0.05.

    Parameters
    ----------
    result
        From :func:`analyze.correlate.importance.attention_importance`, one or by run; attention as mean over heads.
    """
    runs = by_run(result)
    axes = panels(len(runs), ax, size=(5.4, 3.8), sharey=True)
    for axis, (run, found) in zip(axes, runs.items(), strict=True):
        x = found["layer"].values
        for index, name in enumerate(("pooled", "within", "partial", "two_way")):
            bounds = (found[f"{name}_r_low"].values, found[f"{name}_r_high"].values)
            line(axis, x, found[f"{name}_r"].values, index, LONG_NAMES[name], bounds)
            if name != "pooled":
                vague = found[f"{name}_p_adjusted"].values >= 0.05
                style = {k: v for k, v in LINES[index].items() if k != "linestyle"}
                axis.plot(
                    x[vague],
                    found[f"{name}_r"].values[vague],
                    linestyle="",
                    markerfacecolor="white",
                    markersize=4,
                    **style,
                )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"{run} (n = {int(found['n_example'])})", xlabel="layer", ylabel="Pearson's r", xticks=x)
    axes[-1].legend(frameon=False, fontsize=7, title="open: p > 0.05", title_fontsize=7)
    return axes


def plot_position_correlations(result: Results, *, ax: Any = None) -> list[Any]:
    """Correlation over problems at each thought and layer; a star where the corrected p is below 0.05."""
    runs = by_run(result)
    axes = panels(len(runs), ax, size=(4.8, 3.8))
    values = {run: found["position_r"].transpose("layer", "position").values for run, found in runs.items()}
    bound = max(float(np.nanmax(np.abs(x))) for x in values.values())
    image = None
    for axis, (run, found) in zip(axes, runs.items(), strict=True):
        p = found["position_p_adjusted"].transpose("layer", "position").values
        text = np.array(
            [
                [f"{v:+.2f}{'*' if q < 0.05 else ''}" for v, q in zip(*row, strict=True)]
                for row in zip(values[run], p, strict=True)
            ]
        )
        labels = found["layer"].values, found["position"].values
        image = heatmap(axis, values[run], *labels, vmin=-bound, vmax=bound, cmap="RdGy", text=text, upper=True)
        axis.set(title=run, xlabel="thought", ylabel="layer")
    colour_bar(axes, image, "r over problems (* p < 0.05)")
    return axes


def plot_correlation_bars(result: xr.Dataset, *, layers: Sequence[int] | None = None, ax: Any = None) -> list[Any]:
    """Correlation over problems at each thought as bars grouped by layer, with 95% intervals."""
    axes = panels(1, ax, size=(7.0, 3.6))
    part = result if layers is None else result.sel(layer=list(layers))
    positions = [str(x) for x in part["position"].values]
    series = {x: part["position_r"].sel(position=x).values for x in positions}
    error = {x: tuple(part[f"position_r_{b}"].sel(position=x).values for b in ("low", "high")) for x in positions}
    bars(axes[0], series, [f"layer {x}" for x in part["layer"].values], error=error)
    axes[0].axhline(0, color="black", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0].set(ylabel="r over problems", title=str(result.attrs.get("run", "run")))
    return axes


def _points(axis: Any, part: xr.Dataset, index: int, label: str) -> None:
    style = LINES[index % len(LINES)]
    axis.scatter(
        part["attention"].values,
        part["importance"].values + 0.012 * (index - 2.5),  # 0 and 1 of different thoughts side by side
        s=14,
        alpha=0.5,
        marker=style["marker"],
        color=style["color"],
        linewidths=0,
        label=label,
    )


def _name(result: xr.Dataset, name: str) -> str:
    return str(result[name].attrs.get("long_name", name))
