"""Section of the graph between thoughts."""

import numpy as np
import xarray as xr

from analyze.graph.edges import Edges, edges_of, gone_of, named, wordy_sources
from analyze.graph.figures import plot_graph
from analyze.page import Page, Section, listed
from analyze.tables import Frame

OPERATIONS = ("resample", "twin", "mean", "noise")
"""The first of these that a graph has is reported."""


def thought_graph(page: Page) -> None:
    """Which thought acts on which, in total and directly."""
    for result in page.results("graph"):
        graph, operation = result.data, next(name for name in OPERATIONS if name in result.data["operation"].values)
        part = graph.sel(stratum="all", operation=operation)
        for effect in ("direct", "total"):
            values = part["state_flip_mean"].sel(effect=effect).transpose("source", "target")
            page.percent_map(f"thought_graph_{effect}", result, values)
        ax = page.panel("thought_graph", result, height=1.9)
        plot_graph(graph, operation, ax=ax)
        ax.set_title(result.label)
        direct, n_total = edges_of(part, "direct"), len(edges_of(part, "total"))
        counts = {"direct": listed(named(direct)), "n_total": n_total, "n_direct": len(direct)}
        page.say(result, "edges" if direct else "none", operation=operation, **counts)
        lenses = [] if "reads_result" in part else page.results("lens", optional=True)
        if words := wordy_sources(part, [one.data for one in lenses if one.run == result.run]):
            carried = named([edge for edge in direct if not set(edge) & set(words)])
            page.say_more(result.label, page.text("words", names=listed(words), carried=listed(carried) or "none"))
        if operation == "resample" and "alike" in graph["operation"].values:
            page.say_more(result.label, with_alike(page, graph, part, direct))
        if "rank_correlation" in graph:
            line = graph.sel(effect="direct", operation=operation)
            ends = {"rank": "", "low": "_low", "high": "_high", "p": "_p"}
            likeness = {name: float(line[f"rank_correlation{end}"]) for name, end in ends.items()}
            page.say(result, "beside", operation=operation, against=graph.attrs["against"], **likeness)
        names = [name for name, value in graph.data_vars.items() if {"stratum", "source"} <= set(value.dims)]
        rows: Frame = graph[names].sel(stratum="all").to_dataframe().reset_index()
        rows = rows[np.isfinite(rows["state_flip_mean"])]  # effects that can be
        page.add("thought_graph", result, rows.assign(kept=np.where(rows["edge"], "edge", "")))
        page.set(held=f"{float(graph['held_kl'].max()):.1e}", least=float(graph.attrs["least"]))


def with_alike(page: Page, graph: xr.Dataset, part: xr.Dataset, direct: Edges) -> str:
    """What is left of direct edges when a thought is exchanged for one that reads alike: by numbers, or by the plan."""
    numbers = graph.sel(stratum="all", operation="alike")
    left, gone = edges_of(numbers, "direct"), gone_of(numbers, direct)
    page.set(alike=float(graph.attrs["alike_share"]))
    before, now = (listed(named(gone, one["state_flip_mean"].sel(effect="direct"))) for one in (part, numbers))
    line = "plan" if gone else "same" if left == direct else "numbers"
    return page.text(line, left=listed(named(left)) or "none", before=before, now=now)


SECTIONS = (Section(slug="thought-graph", write=thought_graph, order=20, needs=("graph",)),)
