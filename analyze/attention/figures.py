"""Figures of where the answer and the thoughts look."""

from typing import Any

import numpy as np

from analyze.drawing import FILLS, Results, by_run, colour_bar, heatmap, line, panels
from schemas import SchemaError

GROUPS = ("question", "bot", "thoughts", "eot", "answer")


def plot_attention_shares(summary: Results, *, query: str = "eot", ax: Any = None) -> list[Any]:
    """What share of a query's attention goes to question, bot, thoughts, eot and answer: stacked to 1, by layer.

    Parameters
    ----------
    summary
        From :func:`analyze.attention.shares.attention_summary`, one or by run.
    query
        ``"eot"`` (predicts the first answer token), ``"answer"``, ``"bot"`` or a thought.
    """
    runs = by_run(summary)
    axes = panels(len(runs), ax, size=(5.2, 3.6), sharey=True)
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        _has(result["query"].values, query)
        shares = result["layer_share"].sel(query=query)
        parts = {name: shares.sel(target=name).values for name in GROUPS if name != "thoughts"}
        parts["thoughts"] = result["layer_thought_total"].sel(query=query).values
        bottom = np.zeros(result.sizes["layer"])
        for index, name in enumerate(GROUPS):
            style = FILLS[(4, 1, 0, 2, 7)[index]]
            axis.bar(
                result["layer"].values, parts[name], 0.9, bottom, label=name, edgecolor="black", linewidth=0.5, **style
            )
            bottom = bottom + np.nan_to_num(parts[name])
        axis.set(title=f"{run}: attention of {query}", xlabel="layer", ylabel="share, mean over heads", ylim=(0, 1))
        axis.set_xticks(result["layer"].values)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    return axes


def plot_thought_attention(summary: Results, *, query: str = "eot", ax: Any = None) -> list[Any]:
    """Share of a query's attention that goes to each thought, by layer: numbers in the cells are percent, one scale.

    Parameters
    ----------
    summary
        From :func:`analyze.attention.shares.attention_summary`, one or by run.
    query
        As in :func:`plot_attention_shares`.
    """
    runs = by_run(summary)
    axes = panels(len(runs), ax, size=(4.6, 4.0))
    values = {}
    for run, result in runs.items():
        _has(result["query"].values, query)
        thoughts = result["thought"].values
        values[run] = result["layer_share"].sel(query=query, target=thoughts).transpose("layer", "target").values * 100
    vmax = max(float(np.nanmax(x)) for x in values.values())
    image = None
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        rows = [str(x) for x in result["layer"].values]
        image = heatmap(axis, values[run], rows, result["thought"].values, vmin=0, vmax=vmax, form=".1f", upper=True)
        axis.set(title=f"{run}: attention of {query}", xlabel="thought attended (key)", ylabel="layer")
    colour_bar(axes, image, "share of all attention, %, mean over heads")
    return axes


def plot_thought_share_lines(summary: Results, *, query: str = "eot", ax: Any = None) -> list[Any]:
    """The same with 95% intervals over problems: one line for each thought, by layer."""
    runs = by_run(summary)
    axes = panels(len(runs), ax, size=(5.2, 3.6), sharey=True)
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        _has(result["query"].values, query)
        part = result.sel(query=query)
        for index, thought in enumerate(result["thought"].values):
            mean, low, high = (part[f"layer_share{x}"].sel(target=thought).values for x in ("", "_low", "_high"))
            line(axis, result["layer"].values, mean, index, str(thought), (low, high))
        axis.set(title=f"{run}: attention of {query}", xlabel="layer", ylabel="share, mean over heads", ylim=(0, None))
        axis.set_xticks(result["layer"].values)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def plot_looks(summary: Results, *, layer: int = -1, ax: Any = None) -> list[Any]:
    """Where every query looks at one layer: queries on the rows, targets on the columns, percent in the cells.

    Parameters
    ----------
    summary
        From :func:`analyze.attention.shares.attention_summary`, one or by run.
    layer
        Place along the layers, so that -1 is the last of each run.
    """
    runs = by_run(summary)
    axes = panels(len(runs), ax, size=(5.6, 4.0))
    image = None
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        part = result["layer_share"].isel(layer=layer).transpose("query", "target")
        # a target that comes after the query is impossible, not zero
        shown = part.where(part > 0).values * 100
        image = heatmap(axis, shown, part["query"].values, part["target"].values, vmin=0, vmax=100, form=".0f")
        axis.set(title=f"{run}: layer {int(part['layer'])}", xlabel="where it looks (key)", ylabel="who looks (query)")
        axis.tick_params(axis="x", rotation=45)
    colour_bar(axes, image, "share of attention, %, mean over heads")
    return axes


def _has(queries: Any, query: str) -> None:
    if query not in queries:
        raise SchemaError(f"the result has no query {query!r}; it has {', '.join(map(str, queries))}")
