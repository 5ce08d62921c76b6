"""The found subgraph as a graph of its own, for other tools."""

from pathlib import Path
from typing import Any

import networkx
import numpy as np
import xarray as xr

from schemas import UsageError
from schemas.whole_files import beside, write_json

SUFFIXES = (".json", ".graphml")


def subgraph(result: xr.Dataset, *, n_edge: int = 64) -> Any:
    """The strongest edges of an attribution and the parts at their ends, as a directed graph of networkx.

    Parameters
    ----------
    result
        Of :func:`extract.reenter.attribute.scores.attribute`.
    n_edge
        Edges of the largest scores, by absolute value.

    Returns
    -------
    networkx.DiGraph
        Nodes that send, with ``kind``, ``layer``, ``head``, ``position``, ``score`` and, where it was patched,
        ``exact``; parts that read, with ``kind`` (``attention``, ``mlp input``, ``next thought or answer``), ``layer``
        and ``position``. An MLP that reads is another node than what it writes, as attention is another than its heads.
        Edges have ``score``.
    """
    graph = networkx.DiGraph()
    kinds = {"attention": "attention", "mlp": "mlp input", "final": "next thought or answer"}
    for edge in np.argsort(-np.abs(result["edge_score"].values), kind="stable")[:n_edge]:
        one = result.isel(edge=int(edge))
        node = result.isel(node=int(one["sender"]))
        place = str(node["position"].item())
        kind, layer, head = str(node["kind"].item()), int(node["layer"]), int(node["head"])
        name = {"fed": f"fed {place}", "head": f"head {layer}.{head} {place}", "mlp": f"mlp {layer} {place}"}[kind]
        details: dict[str, Any] = {"kind": kind, "layer": layer, "head": head, "position": place,
                                   "score": float(node["score"])}  # fmt: skip
        if np.isfinite(node["exact"]):
            details["exact"] = float(node["exact"])
        graph.add_node(name, **details)
        reader, reader_layer = str(one["reader"].item()), int(one["reader_layer"])
        end = f"{kinds[reader]} {place}" if reader == "final" else f"{kinds[reader]} {reader_layer} {place}"
        graph.add_node(end, kind=kinds[reader], layer=reader_layer, position=place)
        graph.add_edge(name, end, score=float(one["edge_score"]))
    return graph


def write_graph(graph: Any, path: Path) -> None:
    """Write a graph as networkx' node-link JSON or as GraphML, by the name's ending.

    Raises
    ------
    UsageError
        If the ending is neither.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} ends with neither {' nor '.join(SUFFIXES)}; a graph is written as one of these")
    if path.suffix == ".graphml":
        with beside(path) as partial:
            networkx.write_graphml(graph, partial)
    else:
        write_json(path, networkx.node_link_data(graph, edges="edges"))
