"""A stored tree as what is drawn: where each step is read, and where its operands are."""

import re


def nodes_of(tree: str) -> list[tuple[str, str, list[str]]]:
    """Of each step of a tree where it is read, what is read there, and at which earlier places its operands are.

    >>> nodes_of("5+5=10 (ct0); 8+10=18 (answer)")
    [('ct0', '10', []), ('answer', '18', ['ct0'])]
    """
    nodes: list[tuple[str, str, list[str]]] = []
    for step in filter(None, tree.split("; ")):
        text, place = step.removesuffix(")").rsplit(" (", 1)
        left, name = text.rsplit(" > ", 1) if " > " in text else text.rsplit("=", 1)
        operands = {left} if " > " in text else set(re.findall(r"\d+(?:\.\d+)?", left))
        latest = {value: earlier for earlier, value, _ in nodes}
        nodes.append((place, name, [earlier for value, earlier in latest.items() if value in operands]))
    return nodes
