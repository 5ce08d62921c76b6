"""How far the search of a graph has come at each thought: nodes read there by their distance from the root."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyze.traces.problems import WordProblems
from analyze.traces.search import Graph
from schemas.statistics import mean_share

Array = np.ndarray[Any, np.dtype[Any]]


def frontier(
    graphs: Sequence[Graph], problems: WordProblems, read: Array, shuffled: Sequence[Array], problem: Array,
) -> dict[str, Any]:  # fmt: skip
    """Shares of the nodes at each distance that are read at each thought, and of those read that lie there.

    Returns
    -------
    ``frontier_share`` (position, distance), of the nodes so far from the root how many are read, mean over problems,
    with ``_low`` and ``_high`` (95%, over problems) and ``_null`` with the thoughts of another problem;
    ``frontier_whole_share``, problems in which all of them are; ``frontier_precision``, of the nodes read how many lie
    at that distance
    """
    reached = [graph.frontiers() for graph in graphs]
    depth = max(map(len, reached), default=0)

    def shares(rows: Array) -> tuple[Array, Array]:
        recall, precision = np.full((2, len(read), len(read[0]), depth), np.nan)
        for row, source in enumerate(rows):
            for position, names in enumerate(problems.named(row, read[source].tolist())):
                for distance, nodes in enumerate(reached[row]):
                    hit = len(set(names) & set(nodes))
                    recall[row, position, distance] = hit / len(nodes)
                    precision[row, position, distance] = hit / len(set(names)) if names else np.nan
        return recall, precision

    recall, precision = shares(np.arange(len(read)))
    mean, low, high = mean_share(np.moveaxis(recall, 0, -1), problem)
    nulls = [np.nanmean(shares(rows)[0], axis=0) for rows in shuffled]
    whole = np.where(np.isnan(recall), np.nan, recall == 1)
    dims = ("position", "distance")
    return {
        "distance": ("distance", np.arange(1, depth + 1)),
        "frontier_share": (dims, mean), "frontier_share_low": (dims, low), "frontier_share_high": (dims, high),
        "frontier_null": (dims, np.mean(nulls, axis=0) if nulls else np.full_like(mean, np.nan)),
        "frontier_whole_share": (dims, mean_share(np.moveaxis(whole, 0, -1))[0]),
        "frontier_precision": (dims, mean_share(np.moveaxis(precision, 0, -1))[0]),
    }  # fmt: skip
