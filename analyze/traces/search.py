"""Words read at thoughts of a graph problem: how far the search has come, and ways along edges to the answer.

The frontier after d steps is the nodes that lie d edges from the root, on the shortest way. A way leads along edges
from the root to the model's answer. It is read if its nodes are among the words read at neighbouring thoughts, in that
order. Several thoughts may read a word at once, so nodes at any two thoughts would fit by chance.

A node is read by the longest token that begins its name, so nodes whose names begin alike are not told apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_WAYS = 256
"""Ways that are listed."""


class Graph(NamedTuple):
    """A problem's graph by the names of its nodes."""

    root: str
    edges: Mapping[str, tuple[str, ...]]

    def frontiers(self) -> list[list[str]]:
        """Nodes 1, 2 .. edges from the root, sorted."""
        seen, reached, frontiers = {self.root}, [self.root], []
        while reached := sorted({other for node in reached for other in self.edges.get(node, ())} - seen):
            seen |= set(reached)
            frontiers.append(reached)
        return frontiers


def read_graph(root: str, edges: str) -> Graph:
    """A graph from the columns of a run: edges as ``a>b``, with spaces between them.

    >>> read_graph("Tom", "Tom>cat cat>animal").frontiers()
    [['cat'], ['animal']]
    """
    neighbours = defaultdict(list)
    for edge in edges.split():
        start, _, end = edge.partition(">")
        neighbours[start].append(end)
    return Graph(root, {start: tuple(ends) for start, ends in neighbours.items()})


class Way(NamedTuple):
    """Nodes after the root up to the answer, and each step as it is shown, with the place it is read at."""

    nodes: tuple[str, ...]
    texts: tuple[str, ...]


def ways_read(graph: Graph, read: Sequence[Sequence[str]], places: Sequence[str], answer: str) -> list[Way]:
    """Ways from the root to an answer that are read at neighbouring thoughts, in the order of their nodes.

    ``read`` are the names of nodes read at each thought, in order, and ``places`` the thoughts' names.
    """
    ways: dict[tuple[str, ...], Way] = {}

    def follow(node: str, place: int, way: Way) -> None:
        for other in dict.fromkeys(read[place] if place < len(read) else ()):
            if other in graph.edges.get(node, ()) and other not in way.nodes and len(ways) < MAX_WAYS:
                longer = Way((*way.nodes, other), (*way.texts, f"{node} > {other} ({places[place]})"))
                if other == answer:
                    ways.setdefault(longer.nodes, longer)
                else:
                    follow(other, place + 1, longer)

    for first in range(len(read)):
        follow(graph.root, first, Way((), ()))
    return sorted(ways.values())
