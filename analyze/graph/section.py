"""Section of the graph between thoughts."""

from typing import Any

import numpy as np

from analyze.context import StoredResult
from analyze.graph.figures import plot_graph
from analyze.page import Page, Section, listed
from schemas.naming import state_of

READS = 0.5
"""Share of problems in which a state must read as a number to be called one that carries it."""


def thought_graph(page: Page) -> None:
    """Which thought acts on which, in total and directly."""
    for result in page.results("graph"):
        graph = result.data
        operation = first_of(graph, ("resample", "twin", "mean", "noise"))
        part = graph.sel(stratum="all", operation=operation)
        for effect in ("direct", "total"):
            values = part["state_flip_mean"].sel(effect=effect).transpose("source", "target")
            name = f"thought_graph_{effect}"
            page.percent_map(name, result, values, list(values["source"].values), list(values["target"].values))
        ax = page.panel("thought_graph", result, height=1.9)
        plot_graph(graph, operation, ax=ax)
        ax.set_title(result.label)
        direct, total = (edges_of(part, effect) for effect in ("direct", "total"))
        name = "edges" if direct else "none"
        page.say(result, name, operation=operation, direct=listed(direct), n_total=len(total), n_direct=len(direct))
        words = wordy_sources(page, result, part)
        if words:
            carried = [edge for edge in direct if not set(edge.split()) & set(words)]
            page.say_more(result.label, page.text("words", names=listed(words), carried=listed(carried) or "none"))
        if operation == "resample" and "alike" in graph["operation"].values:
            numbers = graph.sel(stratum="all", operation="alike")
            left = edges_of(numbers, "direct")
            gone = gone_of(numbers, direct)
            shares = [listed(shares_of(exchanged, gone)) for exchanged in (part, numbers)]
            line = "plan" if gone else "same" if left == direct else "numbers"
            page.say_more(result.label, page.text(line, left=listed(left) or "none", before=shares[0], now=shares[1]))
            page.set(alike=float(graph.attrs["alike_share"]))
        if "rank_correlation" in graph:
            page.say(
                result, "beside", operation=operation, against=graph.attrs["against"], **likeness(graph, operation)
            )
        page.add("thought_graph", result, rows_of(result, graph))
        page.set(held=f"{float(graph['held_kl'].max()):.1e}", least=float(graph.attrs["least"]))


def wordy_sources(page: Page, result: StoredResult, part: Any) -> list[str]:
    """Thoughts from which a direct edge starts although what is fed there reads as a number in few problems."""
    if "reads_result" in part:
        share, edge = part["reads_result"], part["edge"].sel(effect="direct")
        return [str(source) for source in share["source"].values[(share < READS) & edge.any("target")]]
    lenses = [one.data for one in page.results("lens", optional=True) if one.run == result.run]
    if not lenses or int(part.attrs.get("layer", -1)) != -1 or "number_share" not in lenses[0]:
        return []
    share = lenses[0]["number_share"].isel(layer=-1)
    sources = part["source"].values[part["edge"].sel(effect="direct").any("target").values]
    made_of = {str(source): state_of(str(source)) for source in sources}
    return [
        source
        for source, state in made_of.items()
        if state in share["position"].values and float(share.sel(position=state)) < READS
    ]


def likeness(graph: Any, operation: str) -> dict[str, float]:
    """Rank correlation of direct effects with those of another graph, its interval, and its chance."""
    line = graph.sel(effect="direct", operation=operation)
    ends = {"rank": "", "low": "_low", "high": "_high", "p": "_p"}
    return {name: float(line[f"rank_correlation{end}"]) for name, end in ends.items()}


def first_of(graph: Any, wanted: tuple[str, ...]) -> str:
    """The first of some operations that a graph has."""
    return next(operation for operation in wanted if operation in graph["operation"].values)


def edges_of(part: Any, effect: str) -> list[str]:
    """Edges of one operation as ``ct1 → ct3``."""
    edge = part["edge"].sel(effect=effect)
    return [
        f"{source} \N{RIGHTWARDS ARROW} {target}"
        for source in edge["source"].values
        for target in edge["target"].values
        if bool(edge.sel(source=source, target=target))
    ]


def gone_of(part: Any, edges: list[str]) -> list[str]:
    """Those of some direct edges whose share lies below what makes an edge with all of its interval."""
    high = part["state_flip_high"].sel(effect="direct")
    return [
        edge
        for edge in edges
        if float(high.sel(source=edge.split()[0], target=edge.split()[-1])) < float(part.attrs["least"])
    ]


def shares_of(part: Any, edges: list[str]) -> list[str]:
    """Of each edge the share of problems in which its target reads otherwise."""
    direct = part["state_flip_mean"].sel(effect="direct")
    ends = [(edge.split()[0], edge.split()[-1]) for edge in edges]
    return [
        f"{source} \N{RIGHTWARDS ARROW} {end} {float(direct.sel(source=source, target=end)):.0%}"
        for source, end in ends
    ]


def rows_of(result: StoredResult, graph: Any) -> Any:
    """Effects as rows, those that can be only."""
    names = [str(name) for name, value in graph.data_vars.items() if "stratum" in value.dims and "source" in value.dims]
    frame = graph[names].sel(stratum="all").to_dataframe().reset_index()
    frame = frame[np.isfinite(frame["state_flip_mean"])]
    return frame.assign(kept=np.where(frame["edge"], "edge", ""))


SECTIONS = (Section(slug="thought-graph", write=thought_graph, order=20, needs=("graph",)),)
