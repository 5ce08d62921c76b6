"""Figures of attention heads. Query on the rows, key on the columns, in every matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import INK, Results, bars, by_run, colour_bar, heat_map, looks, panels
from analyze.heads.summary import head_table
from schemas import segment_of
from schemas.wording import with_interval

QUERY, KEY = "attending thought (query)", "attended thought (key)"
SHORT_TYPES = {
    "Forward Flow": "forward flow",
    "Hub Aggregator": "hub",
    "Skip Connection": "skip",
    "Multi-Purpose": "multi-purpose",
    "": "no type",
}


def draw_pattern(ax: Any, pattern: xr.DataArray, *, high: float = 1.0, text: str | None = None) -> None:
    """Draw the attention of one head among the thoughts, empty above the diagonal: a later key is impossible, not zero.

    ``pattern`` is (position, key_position), ``high`` attention of full strength, ``text`` the format of the numbers.
    """
    pattern = pattern.transpose("position", "key_position")
    rows, columns = ([str(x) for x in pattern[dim].values] for dim in ("position", "key_position"))
    causal = [[_order(key) <= _order(query) for key in columns] for query in rows]
    heat_map(ax, np.where(causal, pattern.values, np.nan), rows, columns, high=high, text=text, size=7, gap="")
    ax.set_aspect("equal")
    ax.tick_params(labelsize=6.5)


def _order(label: str) -> int:
    return {"bot": -1, "latent": int(label[2:] or 0) if label.startswith("ct") else 0}.get(segment_of(label), 10**6)


def draw_heads(axes: Sequence[Any], analysis: xr.Dataset, strongest: float) -> None:
    """Draw the attention of the best heads by composite, as many as there are axes; axes left over stay empty."""
    heads = head_table(analysis).head(len(axes))
    for ax, (_, head) in zip(axes, heads.iterrows(), strict=False):
        draw_pattern(ax, analysis["pattern"].sel(layer=head["layer"], head=head["head"]), high=strongest)
        ax.set_title(f"{head_name(head)}  {head['composite']:.2f}", fontsize=8.5)
        ax.set_xlabel(SHORT_TYPES.get(str(head["type"]), str(head["type"])), fontsize=8)
    for ax in axes[len(heads) :]:
        ax.set_visible(False)


def head_name(head: Any) -> str:
    """Layer and head, as in ``L1H2``."""
    return f"L{head['layer']}H{head['head']}"


def plot_critical_heads(analysis: xr.Dataset, *, n: int = 10, ax: Any = None) -> list[Any]:
    """Matrices of the best heads by composite, with numbers in the cells.

    Parameters
    ----------
    analysis
        From :func:`analyze.heads.analysis.head_analysis`.
    n
        Number of heads, best first.
    """
    table = head_table(analysis).head(n)
    columns = min(5, len(table))
    axes = panels(len(table), ax, columns=columns, size=(3.0, 3.0))
    for axis, row in zip(axes, table.itertuples(), strict=True):
        draw_pattern(axis, analysis["pattern"].sel(layer=row.layer, head=row.head), text="{:.2f}")
        axis.set_title(
            f"#{row.rank} L{row.layer}H{row.head}  {row.type}\n"
            f"composite {with_interval((row.composite, row.composite_low, row.composite_high))}\n"
            f"flow {row.flow:.2f}  hub {row.hub:.2f} at {row.hub_position}  skip {row.skip:.2f}",
            fontsize=7,
        )
        axis.set_xlabel(KEY, fontsize=8)
    for axis in axes[::columns]:
        axis.set_ylabel(QUERY, fontsize=8)
    colour_bar(axes, "attention")
    return axes


def plot_head_map(analysis: Results, *, name: str = "composite", ax: Any = None) -> list[Any]:
    """A score of every head, layer on the rows, on one scale for all runs.

    Parameters
    ----------
    analysis
        From :func:`analyze.heads.scores.head_scores` or :func:`analyze.heads.analysis.head_analysis`, one or by run.
    name
        A number of each head, such as ``composite``, ``hub``, ``skip``, ``flow``, ``spread`` or ``top_share``.
    """
    runs = by_run(analysis)
    axes = panels(len(runs), ax, size=(5.0, 4.0))
    high = max(float(result[name].max()) for result in runs.values())
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        values = result[name].transpose("layer", "head").values
        text = "{:.2f}" if result.sizes["head"] <= 12 else None
        heat_map(axis, values, result["layer"].values, result["head"].values, high=high, text=text)
        axis.set(title=run, xlabel="head", ylabel="layer")
    colour_bar(axes, str(result[name].attrs.get("long_name", name)), high=high)
    return axes


def plot_hubs(summary: Results, *, ax: Any = None) -> list[Any]:
    """Three panels: attention each thought gets beside an even spread; to the one before; from the last to the first.

    Parameters
    ----------
    summary
        From :func:`analyze.heads.summary.head_summary`, one or by run.
    ax
        Three axes; a new figure if absent.
    """
    runs = by_run(summary)
    look_of = looks(list(runs))
    axes = panels(3, ax, size=(4.6, 3.4))
    keys = _union([list(result["key_position"].values) for result in runs.values()])
    queries = _union([list(result["position"].values) for result in runs.values()])

    def series(name: str, labels: Sequence[Any]) -> list[tuple[Any, Any, None, None]]:
        values = {run: result[name].reindex(key_position=labels).values for run, result in runs.items()}
        return [(look_of[run], of_run, None, None) for run, of_run in values.items()]

    bars(axes[0], keys, series("incoming", keys))
    width = 0.82 / len(runs)
    for index, (_, even, _, _) in enumerate(series("expected", keys)):
        places = np.arange(len(keys)) + (index - (len(runs) - 1) / 2) * width
        axes[0].hlines(even, places - width / 2, places + width / 2, color=INK, linewidth=2, zorder=3)
    axes[0].plot([], [], color=INK, linewidth=2, label="spread evenly")
    axes[0].legend(loc="upper right", frameon=False, fontsize=8)
    axes[0].set(title="Who is attended", xlabel=KEY, ylabel="attention received, mean over heads")
    for run, result in runs.items():
        before = result["sequential"].reindex(position=queries).values
        axes[1].plot(np.arange(len(queries)), before, **look_of[run].line())
    axes[1].set_xticks(range(len(queries)), queries)
    reports = any(result.attrs.get("convention") == "reports" for result in runs.values())
    title = "To itself (reports: step i to i-1)" if reports else "To the thought before"
    axes[1].set(title=title, xlabel=QUERY, ylabel="attention, mean over heads")
    axes[1].set_ylim(bottom=0)
    far = [
        key
        for key, *values in zip(keys, *(s[1] for s in series("skip", keys)), strict=True)
        if np.isfinite(values).any()
    ]
    bars(axes[2], far, series("skip", far), form=".3f")
    axes[2].set(title="From the last thought to the first", xlabel=KEY, ylabel="attention, mean over heads")
    return axes


def _union(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return list(dict.fromkeys(x for items in lists for x in items))
