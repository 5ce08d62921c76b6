"""Figures of what the states say when read out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import Results, bars, by_run, colour_bar, heatmap, line, panels

ORDINALS = ("1st", "2nd", "3rd")


def plot_lens_grid(
    summary: xr.Dataset, *, operators: bool = True, positions: Sequence[str] | None = None, ax: Any = None
) -> list[Any]:
    """Which thoughts hold which intermediate result, by layer.

    One panel for each step of the written chain but the last, and one for the answer: positions across, layers up, in
    each cell the percent of problems whose state there reads out as that result, of the problems in which the step is
    not the last. A second row does the same for the operators of all steps. A cell that is dark holds the thing.

    Parameters
    ----------
    summary
        From :func:`analyze.lens.logit.lens_summary`.
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
    image = None
    for index, (axis, (title, values)) in enumerate(zip(axes, drawn, strict=True)):
        labels = summary["layer"].values, part["position"].values
        cells = values.transpose("layer", "position").values * 100
        image = heatmap(axis, cells, *labels, vmin=0, vmax=100, form=".0f", upper=True)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("layer" if index % columns == 0 else "", fontsize=8)
        axis.set_xlabel("position read out" if index + columns >= len(drawn) else "", fontsize=8)
        axis.tick_params(axis="x", rotation=45)
    colour_bar(axes, image, "problems where this is\nthe top token, %")
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
        From :func:`analyze.lens.logit.lens_summary`, one or by run.
    layer
        Place along the layers, so that -1 is the last of each run.
    positions
        By default those all runs have up to ``eot``.
    """
    runs = {name: result.isel(layer=layer) for name, result in by_run(summary).items()}
    chosen = _positions(runs, positions)
    series = {name: result["number_share"].sel(position=chosen).values * 100 for name, result in runs.items()}
    error = {
        name: tuple(result[f"number_share_{x}"].sel(position=chosen).values * 100 for x in ("low", "high"))
        for name, result in runs.items()
    }
    axes = panels(1, ax, size=(6.4, 3.6))
    bars(axes[0], series, chosen, error=error, form=".0f")
    axes[0].set(xlabel="position read out", ylabel="best token is a number, %", ylim=(0, 125))
    axes[0].set_yticks(range(0, 101, 20))
    axes[0].set_title("; ".join(f"{name} layer {int(result['layer'])}" for name, result in runs.items()), fontsize=9)
    return axes


def plot_number_heatmap(summary: Results, *, positions: Sequence[str] | None = None, ax: Any = None) -> list[Any]:
    """How often the best token is a number, at every layer and position, percent, one panel for each run."""
    runs = by_run(summary)
    chosen = _positions(runs, positions)
    axes = panels(len(runs), ax, size=(5.0, 3.6))
    image = None
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        values = result["number_share"].sel(position=chosen).transpose("layer", "position").values * 100
        image = heatmap(axis, values, result["layer"].values, chosen, vmin=0, vmax=100, form=".0f", upper=True)
        axis.set(title=run, xlabel="position read out", ylabel="layer")
    colour_bar(axes, image, "best token is a number, %")
    return axes


def plot_number_difference(difference: xr.Dataset, *, layer: int = -1, ax: Any = None) -> list[Any]:
    """Difference of two runs in how often the best token is a number, in percentage points.

    Parameters
    ----------
    difference
        From :func:`analyze.lens.logit.lens_difference`.
    layer
        Place along the layers.
    """
    part = difference.isel(layer=layer)
    part = part.sel(position=_positions({"difference": part}, None))
    axes = panels(1, ax, size=(6.0, 3.4))
    series = {"difference": part["difference"].values * 100}
    error = {"difference": (part["low"].values * 100, part["high"].values * 100)}
    bars(axes[0], series, part["position"].values, error=error)
    axes[0].axhline(0, color="black", linewidth=1)
    axes[0].set(
        xlabel="position read out",
        ylabel="percentage points",
        title=f"{part.attrs['first']} less {part.attrs['second']}, layer {int(part['layer'])}",
    )
    return axes


def plot_answer_by_layer(
    summary: Results, *, name: str = "gold_probability", positions: Sequence[str] | None = None, ax: Any = None
) -> list[Any]:
    """How likely the answer's first token is at each layer, one line for each position, one panel for each run.

    Parameters
    ----------
    summary
        From :func:`analyze.lens.logit.lens_summary`, one or by run.
    name
        ``"gold_probability"``, ``"gold_first_share"`` or ``"gold_log_rank"``.
    """
    runs = by_run(summary)
    chosen = _positions(runs, positions)
    axes = panels(len(runs), ax, size=(5.0, 3.6), sharey=True)
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        for index, position in enumerate(chosen):
            line(axis, result["layer"].values, result[name].sel(position=position).values, index, position)
        axis.set(title=run, xlabel="layer", ylabel=result[name].attrs.get("long_name", name))
        axis.set_xticks(result["layer"].values)
        axis.yaxis.label.set_size(8)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def plot_lens_tests(tests: xr.Dataset, *, layer: int = -1, ax: Any = None) -> list[Any]:
    """Difference in how often two positions read out as a number; a star where McNemar's p is < 0.05."""
    part = tests.isel(layer=layer)
    axes = panels(1, ax, size=(4.6, 3.8))
    values = part["difference"].transpose("position", "other_position").values * 100
    p = part["mcnemar_p_adjusted"].transpose("position", "other_position").values
    values = np.where(np.isfinite(p), values, np.nan)
    text = np.array(
        [
            [f"{v:+.0f}{'*' if q < 0.05 else ''}" for v, q in zip(*row, strict=True)]
            for row in zip(values, p, strict=True)
        ]
    )
    labels = part["position"].values, part["other_position"].values
    image = heatmap(axes[0], values, *labels, vmin=-100, vmax=100, cmap="RdGy", text=text)
    axes[0].set(
        title=f"layer {int(part['layer'])}: Cochran's Q = {float(part['q']):.1f}, "
        f"p = {float(part['q_p_adjusted']):.2g}, {int(part['n'])} problems",
        xlabel="less position",
        ylabel="position",
    )
    axes[0].title.set_size(9)
    colour_bar(axes, image, "numbers, percentage points (* p < 0.05)")
    return axes


def plot_tuned_lens(tuned: Results, *, ax: Any = None) -> list[Any]:
    """How well the tuned lens and the final norm alone foretell the model, by layer, held out.

    Parameters
    ----------
    tuned
        From :func:`analyze.lens.tuned.fit_tuned_lens`, one or by run.
    """
    runs = by_run(tuned)
    axes = panels(2, ax, size=(4.8, 3.4))
    for axis, name in zip(axes, ("kl", "agreement"), strict=True):
        for index, (run, result) in enumerate(runs.items()):
            line(
                axis, result["layer"].values, result[f"{name}_plain"].values, 2 * index + 1, f"{run}: final norm alone"
            )
            line(axis, result["layer"].values, result[name].values, 2 * index, f"{run}: tuned")
            axis.set_xticks(result["layer"].values)
        axis.set(xlabel="layer", ylim=(0, None))
    axes[0].set(ylabel="KL divergence from the model, nat", title="Divergence, held out")
    axes[1].set(ylabel="share with the model's best token", title="Agreement, held out", ylim=(0, 1.05))
    axes[1].legend(frameon=False, fontsize=8)
    return axes


def _ordinal(step: int) -> str:
    return ORDINALS[step] if step < len(ORDINALS) else f"{step + 1}th"


def _positions(runs: dict[str, xr.Dataset], positions: Sequence[str] | None) -> list[str]:
    if positions is not None:
        return list(positions)
    shared = [
        x for x in next(iter(runs.values()))["position"].values if all(x in r["position"].values for r in runs.values())
    ]
    return [str(x) for x in shared if not str(x).startswith(("a", "q-"))]
