"""What a place of a thought is called: by the state that is read there, or by where what is made of it is fed."""

import re
from collections.abc import Collection, Iterable
from typing import Literal

FED = -1
"""Label along ``layer`` of the vectors fed at the thoughts, below all blocks."""
_THOUGHT = re.compile(r"ct\d+")
By = Literal["state", "fed"]
"""How places of thoughts are called: by the position of the state that is read, or by the one at which it is fed."""


def fed_at(position: str) -> str:
    """Position at which what is made of the state at a position is fed: ``ct0`` for ``bot``, ``ct2`` for ``ct1``.

    The state *at* ``ct0`` is projected (or what else the protocol makes of it), and that is fed *at* ``ct1``: the
    number that is read at the one acts at the other. Positions where nothing is computed that is fed stay as they are.
    """
    if position == "bot":
        return "ct0"
    return f"ct{int(position[2:]) + 1}" if _THOUGHT.fullmatch(position) else position


def state_of(position: str) -> str:
    """Position of the state of which what is fed at a position is made: the inverse of :func:`fed_at`."""
    if position == "ct0":
        return "bot"
    return f"ct{int(position[2:]) - 1}" if _THOUGHT.fullmatch(position) else position


def relabelled(
    positions: Iterable[str], by: By, *, read: By = "state", among: Collection[str] | None = None
) -> list[str]:
    """Positions called by the state they are of, or by where it is fed.

    They are called by ``read`` now and ``by`` afterwards. ``among`` are the positions there are: what would get another
    name, such as what is made of the last state and fed nowhere, is ``-``.
    """
    rename = {("state", "fed"): fed_at, ("fed", "state"): state_of}.get((read, by), str)
    names = [rename(position) for position in positions]
    return names if among is None else [name if name in among else "-" for name in names]


def layer_name(layer: int) -> str:
    """A layer as tables name it: its number, or ``fed`` for the vectors fed."""
    return "fed" if layer == FED else str(int(layer))
