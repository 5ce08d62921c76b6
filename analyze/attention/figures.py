"""Figures of where the answer and the thoughts look."""

from typing import Any

import numpy as np

from analyze.drawing import INK, MUTED, PALETTE, PAPER, RULE, Results, by_run, colour_bar, heat_map, panels
from schemas import SchemaError, nearest

GROUPS = {
    "question": {"facecolor": RULE},
    "bot": {"facecolor": PALETTE[1], "hatch": "//"},
    "thoughts": {"facecolor": PALETTE[0]},
    "eot": {"facecolor": MUTED, "hatch": ".."},
    "answer": {"facecolor": PAPER},
}


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
        _require_query(result["query"].values, query)
        shares = result["layer_share"].sel(query=query)
        heights = {name: shares.sel(target=name).values for name in GROUPS if name != "thoughts"}
        heights["thoughts"] = result["layer_thought_total"].sel(query=query).values
        bottom = np.zeros(result.sizes["layer"])
        for name, style in GROUPS.items():
            axis.bar(
                result["layer"].values, heights[name], 0.9, bottom, label=name, edgecolor=INK, linewidth=0.5, **style
            )
            bottom = bottom + np.nan_to_num(heights[name])
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
        _require_query(result["query"].values, query)
        thoughts = result["thought"].values
        values[run] = result["layer_share"].sel(query=query, target=thoughts).transpose("layer", "target").values * 100
    high = max(float(np.nanmax(cells)) for cells in values.values())
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        heat_map(axis, values[run], result["layer"].values, result["thought"].values, high=high, text="{:.1f}")
        axis.set(title=f"{run}: attention of {query}", xlabel="thought attended (key)", ylabel="layer")
    colour_bar(axes, "share of all attention, %, mean over heads", high=high)
    return axes


def _require_query(queries: Any, query: str) -> None:
    if query not in queries:
        known = [str(name) for name in queries]
        raise SchemaError(f"the result has no query {query!r}; it has {', '.join(known)}{nearest(query, known)}")
