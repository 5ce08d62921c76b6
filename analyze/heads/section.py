"""Sections on single heads: critical ones, hubs, flow and skip, types and layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.heads.scores import head_table, summary_of_analysis
from analyze.report import figures as draw
from analyze.report.content import (
    Column,
    Context,
    Found,
    Illustration,
    Panel,
    Section,
    Table,
    listed,
    share,
)

SHORT_TYPES = {
    "Forward Flow": "forward flow",
    "Hub Aggregator": "hub",
    "Skip Connection": "skip",
    "Multi-Purpose": "multi-purpose",
    "": "no type",
}


def critical_heads(context: Context) -> Section | None:
    """Ranked heads, with the maps of the best."""
    found = context.find("heads", lambda spec: spec.get("convention", "thoughts") == "thoughts")
    if not found:
        return None
    reports = {f.run: f for f in context.find("heads", lambda spec: spec.get("convention") == "reports")}
    illustrations, parts = [], []
    rows: list[Any] = []
    for each in found:
        table = head_table(each.data)
        rows.append(head_rows(each, table))
        best = table.iloc[0]
        parts.append(
            (
                each.look.label,
                f"L{best['layer']}H{best['head']}, {SHORT_TYPES.get(str(best['type']), str(best['type']))}, composite "
                f"{best['composite']:.2f} [{best['composite_low']:.2f}, {best['composite_high']:.2f}]",
            )
        )
        top = table.head(6)
        shown = [each.data["pattern"].sel(layer=h["layer"], head=h["head"]) for _, h in top.iterrows()]
        strongest = max(float(np.nanmax(np.tril(one.values))) for one in shown)
        made, axes = draw.figure(9.2, 2.2, ncols=6)
        for ax, (_, head) in zip(np.ravel(axes), top.iterrows(), strict=False):
            pattern = (
                each.data["pattern"].sel(layer=head["layer"], head=head["head"]).transpose("position", "key_position")
            )
            thought_map(ax, pattern, text=False, high=strongest)
            ax.set_title(f"L{head['layer']}H{head['head']}  {head['composite']:.2f}", fontsize=8.5)
            ax.set_xlabel(SHORT_TYPES.get(str(head["type"]), str(head["type"])), fontsize=8)
        for ax in np.ravel(axes)[len(top) :]:
            ax.set_visible(False)
        illustrations.append(
            Illustration(
                name=f"critical_heads_{each.run}",
                caption=f"{each.look.label}: the {len(top)} heads with the highest composite score. Rows "
                "are the thought that looks, columns the thought looked at, colour the mean attention (full "
                f"strength at {strongest:.2f}); below each its type.",
                panels=[Panel(name=f"critical_heads_{each.run}", figure=made, wide=True)],
            )
        )
    frame = pd.concat(rows, ignore_index=True)
    caveats = [
        "Rank and composite carry a bootstrap over problems; “in the top 20” is how often the head stays "
        "there. A high score says what "
        "a head does with its attention, not that the model needs it: see head ablation."
    ]
    constant = {e.look.label: constant_metrics(e.data) for e in found}
    flat = [f"{label}: {names}" for label, names in constant.items() if names]
    if flat:
        caveats.append("Constant over all heads, so that its weight went to the others: " + "; ".join(flat) + ".")
    if reports:
        lines = []
        for run, other in reports.items():
            first = head_table(other.data).iloc[0]
            lines.append(
                f"{context.relabel([run])[run].label} L{first['layer']}H{first['head']} (composite "
                f"{first['composite']:.2f} of at most 0.60)"
            )
        caveats.append(
            "By report 004's own convention (columns shifted by one, flow 1 by construction) the first would be "
            + "; ".join(lines)
            + "."
        )
    return Section(
        headline="The highest-scoring head of each model.",
        lines=parts,
        method="Flow is the share of a head's attention among thoughts that goes to earlier ones; hub, what "
        "its most sought thought gets beyond "
        "an even causal spread; skip, the mean attention of the last thought to the first half. The "
        "composite scales each to 0–1 over "
        "the model's heads and adds 0.4 flow + 0.4 hub + 0.2 skip.",
        illustrations=illustrations,
        tables=[
            Table(
                name="ranked_heads",
                caption="The first ten heads of each model; the CSV ranks every head.",
                frame=frame,
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Rank", key="rank", kind="count"),
                    Column(label="Head", key="name", kind="code"),
                    Column(label="Type", key="type", kind="text"),
                    Column(label="Band", key="band", kind="text"),
                    Column(label="Composite", key="composite", low="composite_low", high="composite_high"),
                    Column(label="Flow", key="flow"),
                    Column(label="Hub", key="hub"),
                    Column(label="at", key="hub_position", kind="text"),
                    Column(label="Skip", key="skip", digits=3),
                    Column(label="Largest", key="max_attention"),
                    Column(label="In the top 20", key="top_share", kind="share", digits=0),
                ],
                limit=10,
            )
        ],
        caveats=caveats,
        sources=[each.result for each in [*found, *reports.values()]],
    )


def constant_metrics(data: xr.Dataset) -> str:
    """Metrics that gave their weight away."""
    return listed(
        [m for m in ("flow", "hub", "skip") if f"{m}_weight" in data and float(data[f"{m}_weight"].max()) == 0]
    )


def head_rows(each: Found, table: pd.DataFrame) -> pd.DataFrame:
    """Ranked heads with the run and a name in front."""
    named = table.copy()
    named.insert(0, "run", each.look.label)
    named.insert(2, "name", [f"L{layer}H{head}" for layer, head in zip(table["layer"], table["head"], strict=True)])
    return named


def thought_map(ax: Any, pattern: xr.DataArray, *, text: bool = True, high: float = 1.0) -> None:
    """Map of one head, empty above the diagonal."""
    values = np.array(pattern.values, dtype="float64")
    rows, columns = ([str(x) for x in pattern[dim].values] for dim in ("position", "key_position"))
    order = {label: index for index, label in enumerate(["bot", *(f"ct{i}" for i in range(64)), "eot"])}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if order.get(column, 0) > order.get(row, 0):
                values[i, j] = np.nan
    labels = None if text else np.full(values.shape, "", dtype=object)
    draw.heat_map(ax, values, rows, columns, labels=labels, size=7, high=high)
    if not text:
        for drawn in list(ax.texts):
            if drawn.get_text() == "·":
                drawn.remove()
    ax.set_aspect("equal")
    ax.tick_params(labelsize=6.5)
    ax.tick_params(axis="x", labelrotation=90)


def head_summaries(context: Context) -> list[Found]:
    """Summary over heads, of every run whose heads were scored."""
    found = context.find("heads", lambda spec: spec.get("convention", "thoughts") == "thoughts")
    return [replace(each, data=summary_of_analysis(each.data)) for each in found]


def hubs(context: Context) -> Section | None:
    """Which thought the others look at."""
    found = head_summaries(context)
    if not found:
        return None
    panels, parts = [], []
    rows: list[Any] = []
    for each in found:
        data = each.data
        keys = [str(x) for x in data["key_position"].values]
        highest = 1.05 * max(float(f.data[name].max()) for f in found for name in ("incoming", "expected"))
        incoming, expected = data["incoming"].values, data["expected"].values
        made, ax = draw.figure(4.6, 2.5)
        draw.bars(ax, keys, [(each.look, incoming, None, None)])
        ax.set_ylim(0, highest)
        ax.hlines(expected, np.arange(len(keys)) - 0.45, np.arange(len(keys)) + 0.45, color=draw.INK, linewidth=1.6)
        ax.set_title(each.look.label)
        ax.set_ylabel("attention received")
        panels.append(Panel(name=f"hubs_{each.run}", figure=made))
        hub = str(data["hub_position"].item())
        ratio = float(data["ratio"].sel(key_position=hub)) if hub in keys else float("nan")
        parts.append(
            (
                each.look.label,
                f"{hub}, {ratio:.2f} times an even spread" if ratio > 1 else "no thought exceeds an even spread",
            )
        )
        rows.extend(
            {
                "run": each.look.label,
                "thought": key,
                "incoming": float(incoming[i]),
                "expected": float(expected[i]),
                "ratio": float(data["ratio"].values[i]),
                "hub_heads": int(data["hub_count"].sel(key_position=key)) if "hub_count" in data else None,
            }
            for i, key in enumerate(keys)
        )
    return Section(
        headline="The thought that later thoughts seek most, over all heads.",
        lines=parts,
        method="For each thought, the attention that all later thoughts pay it, mean over heads. Early "
        "thoughts have more thoughts after them, so "
        "the comparison is with what each would get if every row spread the same attention evenly over "
        "itself and all before it.",
        illustrations=[
            Illustration(
                name="hub_analysis",
                caption="Attention received from later thoughts (bars), and what an even causal spread "
                "would give (thin line across). Above the line: "
                "sought after.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="hubs",
                caption="Hub scores by thought. “Hub heads”: how many of the top 20 heads have their hub there.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Thought", key="thought", kind="text"),
                    Column(label="Received", key="incoming", digits=3),
                    Column(label="Even spread", key="expected", digits=3),
                    Column(label="Ratio", key="ratio"),
                    Column(label="Hub heads", key="hub_heads", kind="count"),
                ],
            )
        ],
        caveats=[
            "Report 004 compared column sums with 1/6, which an even spread does not give: ct0 is seen by "
            "five later thoughts, ct4 by one. Its columns were "
            "also shifted by one, so that its “hub CT0/CT1” included each step's attention to itself."
        ],
        sources=[each.result for each in found],
    )


def flow_and_skip(context: Context) -> Section | None:
    """Step to step, and across."""
    found = head_summaries(context)
    if not found:
        return None
    made, axes = draw.figure(9.2, 2.8, ncols=2)
    parts = []
    rows: list[Any] = []
    for each in found:
        sequential, skip = each.data["sequential"], each.data["skip"].dropna("key_position")
        x = np.arange(sequential.size)
        axes[0].plot(x, sequential.values, **each.look.line())
        axes[1].plot(np.arange(skip.size), skip.values, **each.look.line())
        step, across = float(sequential.mean()), float(skip.mean())
        parts.append(
            (
                each.look.label,
                f"{share(step)} to the thought before, {share(across)} from the last thought to each of the first half",
            )
        )
        labels = [str(v) for v in sequential[sequential.dims[0]].values]
        rows.extend(
            {"run": each.look.label, "kind": "sequential", "position": label, "attention": float(v)}
            for label, v in zip(labels, sequential.values, strict=True)
        )
        labels = [str(v) for v in skip[skip.dims[0]].values]
        rows.extend(
            {"run": each.look.label, "kind": "skip", "position": label, "attention": float(v)}
            for label, v in zip(labels, skip.values, strict=True)
        )
    sequential, skip = found[0].data["sequential"], found[0].data["skip"].dropna("key_position")
    axes[0].set_xticks(np.arange(sequential.size), [str(v) for v in sequential[sequential.dims[0]].values])
    axes[1].set_xticks(np.arange(skip.size), [str(v) for v in skip[skip.dims[0]].values])
    axes[0].set_title("to the thought before")
    axes[1].set_title("from the last thought")
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, top)
        draw.as_percent(ax)
        draw.faint_grid(ax)
    axes[0].set_ylabel("attention, mean over heads")
    axes[0].legend(loc="best")
    return Section(
        headline="Attention step to step and across, mean over all heads.",
        lines=parts,
        method="Sequential: what each thought pays the one before it. Skip: what the last thought pays the "
        "first half of them.",
        illustrations=[
            Illustration(
                name="flow_and_skip",
                caption="Left, attention of each thought (x) to its predecessor; right, attention of the "
                "last thought to early ones (x). Both on one "
                "scale, means over heads and problems.",
                panels=[Panel(name="flow_and_skip", figure=made, wide=True)],
            )
        ],
        tables=[
            Table(
                name="flow_and_skip",
                caption="Sequential and skip attention.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Kind", key="kind", kind="text"),
                    Column(label="Thought", key="position", kind="text"),
                    Column(label="Attention", key="attention", kind="share"),
                ],
            )
        ],
        caveats=[
            "What report 004 called sequential flow was, by its index, each step's attention to itself; "
            "here it is to the thought before."
        ],
        sources=[each.result for each in found],
    )


def types_and_layers(context: Context) -> Section | None:
    """What the best heads do and where they lie."""
    found = head_summaries(context)
    if not found:
        return None
    panels, parts = [], []
    rows: list[Any] = []
    for dim, variable, title in (("type", "type_count", "what they do"), ("band", "band_count", "where they lie")):
        if any(variable not in each.data for each in found):
            continue
        groups = [str(x) for x in found[0].data[dim].values]
        made, ax = draw.figure(4.6, 2.6)
        draw.bars(
            ax,
            [SHORT_TYPES.get(g, g) for g in groups],
            [(each.look, each.data[variable].values.astype(float), None, None) for each in found],
        )
        ax.set_title(f"Top heads: {title}")
        ax.set_ylabel("heads")
        ax.yaxis.get_major_locator().set_params(integer=True)
        if dim == "type":
            ax.legend(loc="best")
        panels.append(Panel(name=f"top_heads_{dim}", figure=made))
        rows.extend(
            {"run": each.look.label, "group": dim, "value": group, "heads": int(each.data[variable].sel({dim: group}))}
            for each in found
            for group in groups
        )
    for each in found:
        kind = str(each.data["type"].values[int(np.argmax(each.data["type_count"].values))])
        place = str(each.data["band"].values[int(np.argmax(each.data["band_count"].values))])
        parts.append(
            (
                each.look.label,
                f"most are {SHORT_TYPES.get(kind, kind)} heads; most lie in the {place} third of the layers",
            )
        )
    return Section(
        headline="What the top heads do and where they lie.",
        lines=parts,
        method="Types by the highest scaled metric (multi-purpose: the two best both above 0.7). Bands are "
        "thirds of the model's depth.",
        illustrations=[
            Illustration(
                name="types_and_layers",
                caption="Number of the top 20 heads (or of all, where a model has fewer) of each type and "
                "in each third of the depth.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="types_and_layers",
                caption="Counts among the top heads.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="By", key="group", kind="text"),
                    Column(label="Value", key="value", kind="text"),
                    Column(label="Heads", key="heads", kind="count"),
                ],
            )
        ],
        caveats=["Counts of a ranking inherit its uncertainty; models with fewer than 20 heads count all of them."],
        sources=[each.result for each in found],
    )
