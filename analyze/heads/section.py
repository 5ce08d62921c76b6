"""Sections on single heads: critical ones, hubs, flow and skip, types and layers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.drawing import INK, as_percent, bars, faint_grid, legend_above
from analyze.heads.command import by_thoughts
from analyze.heads.figures import SHORT_TYPES, draw_pattern
from analyze.heads.summary import head_summary, head_table
from analyze.page import Page, Section, listed
from analyze.statistics import is_majority

ENDS = ("low", "high")
"""Ends of an interval."""
N_SHOWN = 6
"""Heads of each model whose maps are drawn."""


def critical_heads(page: Page) -> None:
    """Ranked heads, with the maps of the best."""
    constant, findings = {}, []
    results = page.results("heads", by_thoughts)
    strongest = max(float(np.nanmax(np.tril(pattern.values))) for one in results for pattern in best_patterns(one))
    for result in results:
        table = head_table(result.data)
        table.insert(1, "name", [head_name(head) for head in table.to_dict("records")])
        # where all heads are among the best, that each is says nothing
        all_best = len(table) <= int(result.data.attrs.get("top", 0))
        page.add("ranked_heads", result, table.drop(columns="top_share") if all_best else table)
        best = table.iloc[0]
        kind = SHORT_TYPES.get(str(best["type"]), best["type"])
        alike = list(table["name"][1:][table["composite_high"][1:] >= best["composite_low"]])
        rivals = page.text("rivals", names=listed(alike)) if alike else ""
        page.say(result, "best", **dict(best) | {"type": kind, "rivals": rivals})
        findings.append((result, [composite_of(str(best["name"]), int(best["layer"]), int(best["head"]))]))
        draw_best(page, result, table.head(N_SHOWN), strongest)
        constant[result.label] = constant_metrics(result.data)
    beside(page, findings, "number")
    page.set(constant="; ".join(f"{label}: {names}" for label, names in constant.items() if names))
    reports = []
    for result in page.results("heads", lambda spec: not by_thoughts(spec), optional=True):
        first = head_table(result.data).iloc[0]
        label = page.context.relabel([result.run])[result.run].label
        reports.append(page.text("reports", label=label, name=head_name(first), composite=first["composite"]))
    page.set(reports="; ".join(reports))


def composite_of(name: str, layer: int, head: int) -> Finding:
    """Composite of the head of the same name; it is scaled within its model, so none is nothing."""

    def of(result: StoredResult) -> Triple:
        return number_at(result.data, "composite", layer=layer, head=head)

    return Finding(what=f"{name}, composite", of=of, nothing=math.nan)


def best_patterns(result: StoredResult) -> list[xr.DataArray]:
    """Attention among thoughts of the heads with the highest composite, best first."""
    heads = head_table(result.data).head(N_SHOWN).to_dict("records")
    return [result.data["pattern"].sel(layer=head["layer"], head=head["head"]) for head in heads]


def draw_best(page: Page, result: StoredResult, best: pd.DataFrame, strongest: float) -> None:
    """Maps of the best heads; all models on one scale."""
    heads, patterns = best.to_dict("records"), best_patterns(result)
    axes = page.panel("critical_heads", result, wide=True, height=2.2, ncols=N_SHOWN)
    for ax, pattern, head in zip(axes, patterns, heads, strict=False):
        draw_pattern(ax, pattern, high=strongest)
        ax.set_title(f"{head_name(head)}  {head['composite']:.2f}", fontsize=8.5)
        ax.set_xlabel(SHORT_TYPES.get(str(head["type"]), str(head["type"])), fontsize=8)
    for ax in axes[len(heads) :]:
        ax.set_visible(False)
    page.caption("critical_heads", label=result.label, n=len(heads), strongest=strongest)


def head_name(head: Any) -> str:
    """Layer and head, as in ``L1H2``."""
    return f"L{head['layer']}H{head['head']}"


def constant_metrics(data: xr.Dataset) -> str:
    """Metrics that gave their weight away."""
    return listed(
        [name for name in ("flow", "hub", "skip") if f"{name}_weight" in data and not data[f"{name}_weight"].any()]
    )


def head_summaries(page: Page) -> list[StoredResult]:
    """Summary over heads, of every run whose heads were scored."""
    return [replace(one, data=head_summary(one.data)) for one in page.results("heads", by_thoughts)]


def hubs(page: Page) -> None:
    """Which thought the others look at."""
    summaries = head_summaries(page)
    findings = []
    highest = 1.05 * max(float(one.data[name].max()) for one in summaries for name in ("incoming", "expected"))
    for result in summaries:
        data = result.data
        thoughts = [str(x) for x in data["key_position"].values]
        places = np.arange(len(thoughts))
        ax = page.panel("hubs", result, height=2.5)
        bars(ax, thoughts, [(result.look, data["incoming"].values, *ends_of(data, "incoming"))])
        ax.set_ylim(0, highest or 1.0)
        ax.hlines(data["expected"].values, places - 0.45, places + 0.45, color=INK, linewidth=1.6)
        ax.set_ylabel("attention received")
        hub = str(data["hub_position"].item())
        ratio = float(data["ratio"].sel(key_position=hub)) if hub in thoughts else float("nan")
        ends = number_at(data, "ratio", key_position=hub)[1:]
        known = "_sure" if np.isfinite(ends).all() else ""
        page.say(result, f"sought{known}" if ratio > 1 else "even", hub=hub, ratio=ratio, low=ends[0], high=ends[1])
        findings.append((result, [ratio_at(hub)] if ratio > 1 else []))
        names = ("incoming", "incoming_low", "incoming_high", "expected", "ratio", "ratio_low", "ratio_high")
        columns = {name: data[name].values for name in names if name in data}
        if "hub_count" in data:
            columns["hub_heads"] = data["hub_count"].sel(key_position=thoughts).values.astype(int)
        page.add("hubs", result, {"thought": thoughts} | columns)
    beside(page, findings, "number")


def ends_of(data: xr.Dataset, name: str) -> list[Any]:
    """Ends of an interval, or ``None`` where a result of before has none."""
    return [data[f"{name}_{end}"].values if f"{name}_{end}" in data else None for end in ENDS]


def ratio_at(thought: str) -> Finding:
    """Attention that a thought gets from later ones, over an even spread: up to 1 it is not sought."""

    def of(result: StoredResult) -> Triple:
        return number_at(result.data, "ratio", key_position=thought)

    return Finding(what=f"hub at {thought}", of=of, nothing=1.0)


def flow_and_skip(page: Page) -> None:
    """Step to step, and across."""
    summaries = head_summaries(page)
    axes = page.panel("flow_and_skip", wide=True, height=2.8, ncols=2)
    findings = []
    for one in summaries:
        means = {kind: number_at(one.data, f"mean_{kind}") for kind in ("sequential", "skip")}
        known = "_sure" if np.isfinite([*means.values()]).all() else ""
        ends = {f"{kind}_{end}": x for kind, mean in means.items() for end, x in zip(ENDS, mean[1:], strict=True)}
        page.say(one, f"means{known}", **{kind: mean[0] for kind, mean in means.items()} | ends)
        compared = (
            [path_mean("sequential", "attention to the thought before"), path_mean("skip", "skip attention")]
            if known
            else []
        )
        findings.append((one, compared))
        for ax, kind in zip(axes, means, strict=True):
            path = path_attention(one, kind)
            ax.plot(np.arange(len(path)), path["attention"], **one.look.line())
            if "attention_low" in path:
                ax.fill_between(np.arange(len(path)), path["attention_low"], path["attention_high"],
                                color=one.look.colour, alpha=0.15, linewidth=0)  # fmt: skip
            page.add("flow_and_skip", one, path.assign(kind=kind))
    beside(page, findings)
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax, kind, title in zip(
        axes, ("sequential", "skip"), ("to the thought before", "from the last thought"), strict=True
    ):
        labels = path_attention(summaries[0], kind)["position"]
        ax.set_xticks(np.arange(len(labels)), labels)
        ax.set_title(title)
        ax.set_ylim(0, top)
        as_percent(ax)
        faint_grid(ax)
    axes[0].set_ylabel("attention, mean over heads")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def path_mean(kind: str, what: str) -> Finding:
    """Mean attention on a way between thoughts; no value of it is none."""

    def of(result: StoredResult) -> Triple:
        return number_at(result.data, f"mean_{kind}")

    return Finding(what=what, of=of, nothing=math.nan)


def path_attention(result: StoredResult, kind: str) -> pd.DataFrame:
    """Attention step to step (``sequential``) or across (``skip``), by thought, with its interval."""
    names = [name for name in (kind, *(f"{kind}_{end}" for end in ENDS)) if name in result.data]
    table = result.data[names].reset_coords(drop=True).to_dataframe().dropna()
    return table.rename(columns=lambda name: name.replace(kind, "attention")).rename_axis("position").reset_index()


def types_and_layers(page: Page) -> None:
    """What the best heads do and where they lie."""
    summaries = head_summaries(page)
    for dim, title in (("type", "what they do"), ("band", "where they lie")):
        if any(f"{dim}_count" not in one.data for one in summaries):
            continue
        groups = [str(x) for x in summaries[0].data[dim].values]
        ax = page.panel("top_heads", dim, height=2.6)
        counts = [(one.look, one.data[f"{dim}_count"].values, None, None) for one in summaries]
        bars(ax, [SHORT_TYPES.get(group, group) for group in groups], counts)
        ax.set(xlabel=f"top heads: {title}", ylabel="heads")
        ax.yaxis.get_major_locator().set_params(integer=True)
        if dim == "type":
            legend_above(ax)
        for one in summaries:
            heads = one.data[f"{dim}_count"].sel({dim: groups}).values.astype(int)
            page.add("types_and_layers", one, {"group": dim, "value": groups, "heads": heads})
    for one in summaries:
        tops = {dim: one.data[f"{dim}_count"].to_series().astype(int) for dim in ("type", "band")}
        page.say(
            one, f"counts{'_sure' if 'type_sure' in one.data else ''}", n=int(tops["type"].sum()),
            types=counted({SHORT_TYPES.get(str(name), str(name)): n for name, n in tops["type"].items()}),
            bands=counted({str(name): n for name, n in tops["band"].items()}),
            sure=int(one.data.get("type_sure", 0)),
        )  # fmt: skip


def counted(counts: Mapping[str, int]) -> str:
    """Counts in words, the largest first; it is called most only where so few heads say so."""
    n = sum(counts.values())
    there = sorted(((count, name) for name, count in counts.items() if count), key=lambda one: -one[0])
    if there and is_majority(there[0][0], n):
        return f"most {there[0][1]} ({there[0][0]})"
    return listed([f"{count} {name}" for count, name in there]) or "none"


SECTIONS = (
    Section(slug="critical-heads", write=critical_heads, chapter="report-004", order=10, needs=("heads",), key=True),
    Section(slug="hubs", write=hubs, chapter="report-004", order=20, needs=("heads",)),
    Section(slug="flow-and-skip", write=flow_and_skip, chapter="report-004", order=30, needs=("heads",)),
    Section(slug="types-and-layers", write=types_and_layers, chapter="report-004", order=40, needs=("heads",)),
)
