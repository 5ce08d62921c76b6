"""Section on what heads, MLPs and thoughts carry of the clean answer, by attribution patching."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.context import StoredResult
from analyze.drawing import as_percent, band, faint_grid, legend_below
from analyze.page import Page, Section, listed

TEXTS = r'''
[attribution-patching]
title = "Which parts carry the answer over"
headline = "The fed vectors with the largest attribution scores, and how scores and patching agree."
method = """\
    In the corrupted half of a pair each head, MLP and fed vector is moved to its value in the clean half; its score \
    is that change times the gradient of the logit difference, through all thoughts. Patching it exactly stands beside \
    it. \
    Subgraphs are ranked on one half of the problems and measured on the other, beside as many nodes at random."""
caveats = [
    "A score is a first-order estimate: where the model is far from linear its size is off, though not its rank.",
    "Edges are those of one position; what crosses positions goes through the attention that reads them.",
]
[attribution-patching.lines]
scored = """\
    {thoughts}; rank correlation with patching {spearman:.2f} [{low:.2f}, {high:.2f}] over {n} nodes; \
    {size} of {all} nodes alone do {kept:share0} of what all do, {random:share0} at random"""
thought = "{position} ({score:+.1f} logits)"
no_thought = "no thought's score is told from 0"
[attribution-patching.figures]
attribution_graph = """\
    Nodes with the largest scores by position and depth, and the strongest edges between them and what reads them. \
    Size: score; filled: towards the clean answer."""
attribution_exact = "Score of each node and what patching it does, in logits."
attribution_curve = """\
    What the best nodes alone carry over, and what is left without them, as shares of what all nodes do; dotted with a \
    band: as many at random."""
[attribution-patching.tables.attribution_patching]
caption = "Nodes by the size of their score. The CSV holds every node."
limit = 12
columns = [
    ["Node", "kind", "text"],
    ["Layer", "layer", "count"],
    ["Head", "head", "count"],
    ["Position", "position", "text"],
    ["Score", "score", "number", "score_low", "score_high"],
    ["Patched", "exact", "number", "exact_low", "exact_high"],
]
'''
N_NODE, N_EDGE = 24, 40
"""Nodes and edges of the drawing."""
COLUMNS = ("kind", "layer", "head", "position", "score", "score_low", "score_high", "exact", "exact_low", "exact_high")


def attribution(page: Page) -> None:
    """Every run that was attributed."""
    for result in page.results("attribute"):
        data = result.data
        draw_graph(page, result)
        draw_exact(page, result)
        draw_curve(page, result)
        nodes = data[list(COLUMNS[4:])].reset_coords(list(COLUMNS[:4])).to_dataframe()[list(COLUMNS)]
        page.add("attribution_patching", result, nodes.sort_values("score", key=abs, ascending=False))
        fed = nodes[(nodes["kind"] == "fed") & ((nodes["score_low"] > 0) | (nodes["score_high"] < 0))]
        fed = fed.sort_values("score", key=abs, ascending=False).head(3)
        quarter = data.isel(size=int(np.abs(data["size"].values - data.sizes["node"] / 4).argmin()))
        page.say(
            result, "scored", thoughts=listed(
                [page.text("thought", position=row.position, score=row.score) for row in fed.itertuples()]
            ) or page.text("no_thought"),
            spearman=data.attrs["spearman"], low=data.attrs["spearman_low"], high=data.attrs["spearman_high"],
            n=int(data["exact"].notnull().sum()), size=int(quarter["size"]), all=data.sizes["node"],
            kept=float(quarter["kept"]), random=float(quarter["kept_random"]),
        )  # fmt: skip


def draw_graph(page: Page, result: StoredResult) -> None:
    """The best nodes, positions from left to right and layers upwards, and the strongest edges."""
    data = result.data
    ax = page.panel("attribution_graph", result, wide=True, height=3.2)
    positions = list(dict.fromkeys(ordered(data["position"].values.astype(str))))
    spot = places(data, positions)
    score = data["score"].values
    edges = np.argsort(-np.abs(data["edge_score"].values), kind="stable")[:N_EDGE]
    strongest = float(np.abs(data["edge_score"].values[edges]).max(initial=1e-12))
    for edge in edges:
        start = spot[int(data["sender"].values[edge])]
        end = reader_place(data, int(edge), start)
        weight = abs(float(data["edge_score"].values[edge])) / strongest
        ax.plot([start[0], end[0]], [start[1], end[1]], color=result.look.colour, alpha=0.15 + 0.6 * weight,
                linewidth=0.5 + 2 * weight, zorder=1)  # fmt: skip
    senders = np.unique(data["sender"].values[edges])
    best = np.union1d(np.argsort(-np.abs(score), kind="stable")[:N_NODE], senders)
    size = 12 + 160 * np.abs(score[best]) / max(float(np.abs(score).max()), 1e-12)
    colours = [result.look.colour if value > 0 else "white" for value in score[best]]
    ax.scatter(*spot[best].T, s=size, c=colours, edgecolors=result.look.colour, linewidths=0.8, zorder=2)
    ax.set_xticks(range(len(positions)), positions)
    n_layer = int(data["layer"].max()) + 1
    ax.set_yticks([-0.6, *(layer + 0.35 for layer in range(n_layer))], ["fed", *map(str, range(n_layer))])
    ax.set_ylabel("layer")


def ordered(positions: Any) -> list[str]:
    """Positions in the order of the sequence: they come in it for every head."""
    heads = [str(position) for position in positions]
    first = heads.index("bot") if "bot" in heads else 0
    return [*heads[first:], *heads[:first]]


def places(data: xr.Dataset, positions: list[str]) -> Any:
    """Where each node is drawn ``(node, 2)``: heads of a layer side by side, its MLP above them, fed vectors below."""
    x = np.array([positions.index(str(position)) for position in data["position"].values], dtype=float)
    kind, layer, head = (data[name].values for name in ("kind", "layer", "head"))
    n_head = max(int(head.max()) + 1, 1)
    x += np.where(kind == "head", (head - (n_head - 1) / 2) / n_head * 0.6, 0.0)
    y = np.where(kind == "fed", -0.6, layer + np.where(kind == "mlp", 0.55, 0.15))
    return np.stack([x, y.astype(float)], axis=1)


def reader_place(data: xr.Dataset, edge: int, start: Any) -> tuple[float, float]:
    """Where an edge ends: at the attention or MLP of the reading layer, or above the last one, of the same position."""
    reader, layer = str(data["reader"].values[edge]), int(data["reader_layer"].values[edge])
    return round(float(start[0])), layer + {"attention": 0.05, "mlp": 0.45, "final": 0.1}[reader]


def draw_exact(page: Page, result: StoredResult) -> None:
    """Scores against exact effects, fed vectors filled."""
    data = result.data
    ax = page.panel("attribution_exact", result, height=2.8)
    for fed, face in ((False, "none"), (True, result.look.colour)):
        chosen = (data["kind"].values == "fed") == fed
        style = {"s": 18, "facecolors": face, "edgecolors": result.look.colour, "linewidths": 0.8}
        label = "fed vectors" if fed else "heads, MLPs"
        ax.scatter(data["exact"].values[chosen], data["score"].values[chosen], label=label, **style)
    ax.set(xlabel="moved by patching", ylabel="score")
    faint_grid(ax)
    legend_below(ax)


def draw_curve(page: Page, result: StoredResult) -> None:
    """What subgraphs of each size carry over, and what is left without them."""
    data = result.data
    ax = page.panel("attribution_curve", result, height=2.8)
    size = data["size"].values
    for name, style, label in (("kept", "-", "alone"), ("left", "--", "all but these")):
        ax.plot(size, data[name], color=result.look.colour, linestyle=style, label=label)
        ax.plot(size, data[f"{name}_random"], color="0.55", linestyle=":", linewidth=1.0)
        band(ax, size, data[f"{name}_random_low"].values, data[f"{name}_random_high"].values, "0.55")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("nodes")
    as_percent(ax)
    faint_grid(ax)
    legend_below(ax)


SECTIONS = (
    Section(
        slug="attribution-patching", write=attribution, chapter="report-004", order=70, needs=("attribute",),
        of="pairs",
    ),
)  # fmt: skip
