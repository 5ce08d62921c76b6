"""``lake reenter attribute``."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.reenter.settings import MOST_POINTS
from schemas.command import Experiment, Printed, Settings, Table, setting
from schemas.wording import duration_text, interval_text, or_dash

if TYPE_CHECKING:
    import xarray as xr

    from extract.reenter.target import Target

SHOWN = 16
"""Nodes of a table."""


@dataclass(frozen=True, kw_only=True)
class AttributeSettings(Settings):
    """How scores are computed, and what they are checked against."""

    steps: int = setting(
        1,
        "1: gradients at the corrupted half; N: their mean at N points between it and the clean half's question"
        " (EAP-IG).",
        least=1,
        most=MOST_POINTS,
    )
    exact: int = setting(256, "Number of nodes also patched exactly, drawn at random where there are more.", least=1)
    random: int = setting(8, "Random subgraphs beside each one found.", least=1)
    edges: int = setting(64, "Number of edges in the graph that is written.", least=1, stored=False, needs="graph")
    graph: Path | None = setting(
        None, "Folder for the graph of each run, as GraphML and as JSON.", metavar="DIR", stored=False
    )
    seed: int = setting(0, "Seed of everything random.", least=0)


def run(target: "Target", settings: AttributeSettings) -> "xr.Dataset":
    """Scores of nodes and edges, exact effects, and curves; the graph where it is asked for."""
    from extract.reenter.attribute.graph import subgraph, write_graph
    from extract.reenter.attribute.scores import attribute

    result = attribute(target, settings)
    if settings.graph is not None:
        graph = subgraph(result, n_edge=settings.edges)
        for suffix in (".graphml", ".json"):
            write_graph(graph, settings.graph / f"{target.run.replace('/', '.')}{suffix}")
    return result


def plan(target: "Target", settings: AttributeSettings) -> tuple[str, dict[str, Any]]:
    """What scores and their checks take."""
    from extract.reenter.attribute.scores import attribute_plan

    cost = attribute_plan(target, settings)
    text = (
        f"{cost.n_pair} pairs, {cost.n_node} nodes: {cost.n_pass:,} passes forward and backward, {cost.n_patched:,}"
        f" forward to check them; about {duration_text(cost.seconds)} on this machine"
    )
    return text, asdict(cost)


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The best nodes beside what patching them does, and what subgraphs of each size carry over."""
    best = abs(result["score"]).argsort().values[::-1][:SHOWN]
    attrs = result.attrs
    return [
        Table(
            title="nodes",
            columns=["node", "score 95%", "patched 95%"],
            rows=[
                [name_of(node), *(interval_text(node, name, "", "+.2f", "+.2f", "") for name in ("score", "exact"))]
                for node in (result.isel(node=index) for index in best)
            ],
            labels=1,
            caption=f"the largest of {len(result['score'])}; each interval is that of one node alone",
        ),
        Table(
            title="subgraphs of the best nodes",
            columns=["nodes", "alone", "random", "all but these", "random"],
            rows=[
                [int(size), *(or_dash(curves[name], ".2f") for name in ("kept", "kept_random", "left", "left_random"))]
                for size, curves in ((size, result.sel(size=size)) for size in result["size"].values)
            ],
            caption="share of what patching all nodes does to the logit difference; ranked on one half of the pairs,"
            " measured on the other",
            labels=1,
        ),
        f"rank correlation of scores and exact effects over {int(result['exact'].notnull().sum())} nodes:"
        f" {interval_text(attrs, 'spearman')};"
        f" {attrs['n_used']} of {attrs['n_pair']} pairs",
        f"scores of the question's tokens miss the difference they should add up to by {attrs['residual']:.2%}"
        + (" (one step; more come nearer)" if attrs["steps"] == 1 else "")
        if math.isfinite(attrs["residual"])
        else "no pair has two questions of the same length, so what the scores should add up to is not known",
    ]


def name_of(node: Any) -> str:
    """A node in words."""
    kind, layer, position = str(node["kind"].item()), int(node["layer"]), str(node["position"].item())
    place = {"fed": "", "head": f" {layer}.{int(node['head'])}", "mlp": f" {layer}"}[kind]
    return f"{kind}{place} {position}"


COMMAND = Experiment(
    name="attribute",
    help="Which heads, MLPs, thoughts and edges carry the clean answer over, by gradients, beside exact patching.",
    settings=AttributeSettings,
    run=run,
    results={"attribute": tables},
    plan=plan,
)
