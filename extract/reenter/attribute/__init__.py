"""Attribution patching of heads, MLPs, thoughts and the edges between them, checked against exact patching."""

from extract.reenter.attribute.graph import subgraph, write_graph
from extract.reenter.attribute.scores import attribute

__all__ = ["attribute", "subgraph", "write_graph"]
