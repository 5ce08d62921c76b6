"""Figures of attention heads. Query on the rows, key on the columns, in every matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import Results, bars, by_run, colour_bar, heatmap, line, one_scale, panels
from analyze.heads.scores import BANDS, HEAD_TYPES, head_table
from schemas import UsageError

QUERY, KEY = "attending thought (query)", "attended thought (key)"


def plot_top_attention(analysis: xr.Dataset, *, n: int = 20, ax: Any = None) -> list[Any]:
    """Matrices of the heads with the largest single attention, on one scale from 0 to 1.

    Parameters
    ----------
    analysis
        From :func:`analyze.heads.scores.head_analysis`.
    n
        Number of heads.
    ax
        At least ``n`` axes; a new figure of five columns if absent.
    """
    table = head_table(analysis).sort_values(["max_attention", "layer", "head"], ascending=[False, True, True]).head(n)
    axes = panels(len(table), ax, columns=5, size=(2.3, 2.1))
    image = None
    for axis, row in zip(axes, table.itertuples(), strict=True):
        image = _matrix(axis, analysis["pattern"].sel(layer=row.layer, head=row.head), 1.0)
        axis.set_title(f"L{row.layer}H{row.head}  max {row.max_attention:.2f}", fontsize=8)
    _outer(axes, 5)
    colour_bar(axes, image, "attention")
    _title(axes, f"{_run(analysis)}: heads with the largest attention among thoughts")
    return axes


def plot_attention_by_layer(analysis: Results, *, layers: Sequence[int] | None = None, ax: Any = None) -> list[Any]:
    """Attention among the thoughts, mean over heads, of a few layers; one row of panels for each run.

    Parameters
    ----------
    analysis
        From :func:`analyze.heads.scores.head_analysis`, one or by run.
    layers
        By default five from first to last of each run.
    """
    runs = by_run(analysis)
    chosen = {
        name: list(layers) if layers is not None else _spread(result["layer"].values, 5)
        for name, result in runs.items()
    }
    columns = max(len(x) for x in chosen.values())
    axes = panels(columns * len(runs), ax, columns=columns, size=(2.4, 2.3))
    means = {name: result["pattern"].mean("head") for name, result in runs.items()}
    vmax = max(float(mean.sel(layer=chosen[name]).max()) for name, mean in means.items())
    image = None
    for i, (name, mean) in enumerate(means.items()):
        for j in range(columns):
            axis = axes[i * columns + j]
            if j >= len(chosen[name]):
                axis.set_visible(False)
                continue
            image = _matrix(axis, mean.sel(layer=chosen[name][j]), vmax)
            axis.set_title(f"{name}\nlayer {chosen[name][j]}" if j == 0 else f"layer {chosen[name][j]}", fontsize=8)
    _outer(axes, columns)
    colour_bar(axes, image, "attention, mean over heads")
    return axes


def plot_hubs(summary: Results, *, ax: Any = None) -> list[Any]:
    """Three panels: attention each thought gets beside an even spread; to the one before; from the last to the first.

    Parameters
    ----------
    summary
        From :func:`analyze.heads.scores.head_summary`, one or by run.
    ax
        Three axes; a new figure if absent.
    """
    runs = by_run(summary)
    axes = panels(3, ax, size=(4.6, 3.4))
    keys = _union([list(result["key_position"].values) for result in runs.values()])
    queries = _union([list(result["position"].values) for result in runs.values()])
    bars(axes[0], {name: result["incoming"].reindex(key_position=keys).values for name, result in runs.items()}, keys)
    width = 0.8 / len(runs)
    for index, result in enumerate(runs.values()):
        at = np.arange(len(keys)) + (index - (len(runs) - 1) / 2) * width
        even = result["expected"].reindex(key_position=keys).values
        axes[0].hlines(even, at - width / 2, at + width / 2, color="black", linewidth=2, zorder=3)
    axes[0].plot([], [], color="black", linewidth=2, label="spread evenly")
    axes[0].legend(loc="upper right", frameon=False, fontsize=8)
    axes[0].set(title="Who is attended", xlabel=KEY, ylabel="attention received, mean over heads")
    for index, (name, result) in enumerate(runs.items()):
        before = result["sequential"].reindex(position=queries).values
        line(axes[1], np.arange(len(queries)), before, index, name)
    axes[1].set_xticks(range(len(queries)), queries)
    reports = any(result.attrs.get("convention") == "reports" for result in runs.values())
    axes[1].set(
        title="To the thought before" if not reports else "To itself (reports: step i to i-1)",
        xlabel=QUERY,
        ylabel="attention, mean over heads",
    )
    axes[1].set_ylim(bottom=0)
    far = [
        key for key in keys if any(np.isfinite(r["skip"].reindex(key_position=[key]).values[0]) for r in runs.values())
    ]
    bars(
        axes[2],
        {name: result["skip"].reindex(key_position=far).values for name, result in runs.items()},
        far,
        form=".3f",
    )
    axes[2].set(title="From the last thought to the first", xlabel=KEY, ylabel="attention, mean over heads")
    if len(runs) > 1:
        axes[1].legend(frameon=False, fontsize=8)
    return axes


def plot_critical_heads(analysis: xr.Dataset, *, n: int = 10, ax: Any = None) -> list[Any]:
    """Matrices of the best heads by composite, with numbers in the cells.

    Parameters
    ----------
    analysis
        From :func:`analyze.heads.scores.head_analysis`.
    n
        Number of heads, best first.
    """
    table = head_table(analysis).head(n)
    columns = min(5, len(table))
    axes = panels(len(table), ax, columns=columns, size=(3.0, 3.0))
    image = None
    for axis, row in zip(axes, table.itertuples(), strict=True):
        image = _matrix(axis, analysis["pattern"].sel(layer=row.layer, head=row.head), 1.0, form=".2f")
        axis.set_title(
            f"#{row.rank} L{row.layer}H{row.head}  {row.type}\ncomposite {row.composite:.3f}"
            f" [{row.composite_low:.2f}, {row.composite_high:.2f}]\n"
            f"flow {row.flow:.2f}  hub {row.hub:.2f} at {row.hub_position}  skip {row.skip:.2f}",
            fontsize=7,
        )
    _outer(axes, columns)
    colour_bar(axes, image, "attention")
    return axes


def plot_metric_distributions(analysis: xr.Dataset, summary: xr.Dataset, *, n: int = 20, ax: Any = None) -> list[Any]:
    """Four panels: hub and skip of the best heads; their number by third of the depth and by type.

    Parameters
    ----------
    analysis, summary
        From :func:`analyze.heads.scores.head_analysis` and :func:`analyze.heads.scores.head_summary` of one run.
    """
    axes = panels(4, ax, columns=2, size=(5.0, 4.0))
    best = head_table(analysis).head(n)
    for axis, metric, kind in ((axes[0], "hub", "Hub Aggregator"), (axes[1], "skip", "Skip Connection")):
        table = best.sort_values([metric, "layer", "head"], ascending=[True, False, False])
        marked = table["type"].eq(kind)
        drawn = axis.barh(
            [f"L{r.layer}H{r.head}" for r in table.itertuples()],
            table[metric],
            color=np.where(marked, "#23395d", "#d9d9d9"),
            edgecolor="black",
            linewidth=0.6,
        )
        del drawn
        axis.tick_params(axis="y", labelsize=7)
        axis.set(
            title=f"{metric} of the best {len(table)} heads (dark: {kind})", xlabel=analysis[metric].attrs["long_name"]
        )
        axis.xaxis.label.set_size(8)
    for axis, name, order in ((axes[2], "band_count", BANDS), (axes[3], "type_count", HEAD_TYPES)):
        bars(axis, {"heads": summary[name].values}, [x.replace(" ", "\n") for x in order], form=".0f")
        axis.set(ylabel="heads", title=f"of the best {summary.attrs['top']}")
    return axes


def plot_model_comparison(analysis: Results, summary: Results, *, n: int = 20, ax: Any = None) -> list[Any]:
    """Seven panels that set two runs side by side, every pair on one scale.

    Who is attended, over an even spread; composite of the best heads with intervals; types and thirds of the depth of
    the best heads; hub, skip and flow, means over heads.

    Parameters
    ----------
    analysis, summary
        By run, from :func:`analyze.heads.scores.head_analysis` and :func:`analyze.heads.scores.head_summary`; two runs.
    """
    found, sums = by_run(analysis), by_run(summary)
    if len(found) != 2 or list(found) != list(sums):
        raise UsageError(
            f"the comparison is of two runs, in the same order; got analyses of {', '.join(found)} and summaries of "
            f"{', '.join(sums)}"
        )
    axes = panels(7, ax, columns=3, size=(4.6, 3.4))
    keys = _union([list(result["key_position"].values) for result in sums.values()])
    ratio = {name: result["ratio"].reindex(key_position=keys).values for name, result in sums.items()}
    bars(axes[0], ratio, keys)
    axes[0].axhline(1, color="black", linewidth=1)
    axes[0].set(title="Attention received, over an even spread (line)", xlabel=KEY, ylabel="ratio")
    for index, (name, result) in enumerate(found.items()):
        best = head_table(result).head(n)
        bounds = (best["composite_low"], best["composite_high"])
        line(axes[1], best["rank"].to_numpy(), best["composite"].to_numpy(), index, name, bounds)
    axes[1].legend(frameon=False, fontsize=8)
    axes[1].set(title=f"Composite of the best {n}", xlabel="rank", ylabel="composite", ylim=(0, None))
    pairs = ((("type_count", HEAD_TYPES), (2, 3), "types"), (("band_count", BANDS), (4, 5), "thirds of the depth"))
    for (name, order), places, what in pairs:
        for place, (run, result) in zip(places, sums.items(), strict=True):
            bars(axes[place], {"heads": result[name].values}, [x.replace(" ", "\n") for x in order], form=".0f")
            axes[place].set(title=f"{run}: {what}", ylabel=f"of the best {result.attrs['top']}")
            axes[place].tick_params(axis="x", labelsize=7)
        one_scale([axes[place] for place in places])
    means = {run: np.array([float(result[m].mean()) for m in ("hub", "skip", "flow")]) for run, result in found.items()}
    bars(axes[6], means, ["hub", "skip", "flow"], form=".3f")
    axes[6].set(title="Mean over all heads", ylabel="score")
    return axes


def plot_head_map(analysis: Results, *, name: str = "composite", ax: Any = None) -> list[Any]:
    """A score of every head, layer on the rows (first at the bottom), on one scale for all runs.

    Parameters
    ----------
    analysis
        From :func:`analyze.heads.scores.head_scores` or :func:`analyze.heads.scores.head_analysis`, one or by run.
    name
        A number of each head, such as ``composite``, ``hub``, ``skip``, ``flow``, ``spread`` or ``top_share``.
    """
    runs = by_run(analysis)
    axes = panels(len(runs), ax, size=(5.0, 4.0))
    vmax = max(float(result[name].max()) for result in runs.values())
    image = None
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        form = ".2f" if result.sizes["head"] <= 12 else None
        values = result[name].transpose("layer", "head").values
        image = heatmap(
            axis, values, result["layer"].values, result["head"].values, vmin=0, vmax=vmax, form=form, upper=True
        )
        axis.set(title=run, xlabel="head", ylabel="layer")
    colour_bar(axes, image, result[name].attrs.get("long_name", name))
    return axes


def plot_rank_stability(analysis: Results, *, n: int = 20, ax: Any = None) -> list[Any]:
    """Ranks of the best heads with their 95% bootstrap intervals over problems."""
    runs = by_run(analysis)
    axes = panels(len(runs), ax, size=(4.2, 4.6))
    for axis, (run, result) in zip(axes, runs.items(), strict=True):
        best = head_table(result).head(n)
        spread = np.clip([best["rank"] - best["rank_low"], best["rank_high"] - best["rank"]], 0, None)
        axis.errorbar(best["rank"], np.arange(len(best)), xerr=spread, fmt="o", color="black", markersize=4, capsize=2)
        axis.set_yticks(range(len(best)), [f"L{r.layer}H{r.head}" for r in best.itertuples()], fontsize=7)
        axis.invert_yaxis()
        axis.set(title=run, xlabel="rank by composite (95% interval over problems)", ylabel="head")
    return axes


def _matrix(axis: Any, pattern: xr.DataArray, vmax: float, form: str | None = None) -> Any:
    pattern = pattern.transpose("position", "key_position")
    values = np.asarray(pattern.values, dtype=float)
    # keys that come after the query are not zero but impossible
    causal = np.array(
        [[_place(k) <= _place(q) for k in pattern["key_position"].values] for q in pattern["position"].values]
    )
    shown = np.where(causal, values, np.nan)
    return heatmap(
        axis, shown, pattern["position"].values, pattern["key_position"].values, vmin=0, vmax=vmax, form=form
    )


def _place(label: str) -> int:
    return {"bot": -1, "eot": 10**6}.get(str(label)) or (int(str(label)[2:]) if str(label).startswith("ct") else -1)


def _outer(axes: Sequence[Any], columns: int) -> None:
    """Name the axes on the outer panels only."""
    for index, axis in enumerate(axes):
        if index % columns == 0:
            axis.set_ylabel(QUERY if len(axes) <= columns else "query", fontsize=8)
        if index + columns >= len(axes):
            axis.set_xlabel(KEY if len(axes) <= columns else "key", fontsize=8)


def _title(axes: Sequence[Any], text: str) -> None:
    axes[0].figure.suptitle(text, fontsize=10)


def _run(result: xr.Dataset) -> str:
    return str(result.attrs.get("run", "run"))


def _spread(values: np.ndarray, n: int) -> list[int]:
    return [int(values[round(i)]) for i in np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).round())]


def _union(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return list(dict.fromkeys(x for items in lists for x in items))
