"""Backward passes through the loop of thoughts, from states that come later to all places before them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from extract.model.capture import Editor, KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from schemas.naming import FED

Place = tuple[int, int]
"""Layer (:data:`FED`: the vector fed there) and offset from ``bot``."""
Tick = Callable[[int], object]
"""Called with the number of components whose backward passes are done."""


class Probes(Editor):
    """Editor that adds a zero ``(hidden,)``, the same for every row, at each place asked for, and keeps what it saw.

    The gradient with respect to such a zero is the sum over the batch's rows of the gradients at its place.
    """

    def __init__(self, places: Sequence[Place], hidden: int, device: torch.device, *, keep: bool = False) -> None:
        self.zeros = {place: torch.zeros(hidden, device=device, requires_grad=True) for place in places}
        self.kept: dict[Place, Tensor] | None = {} if keep else None

    def touches(self, site: str, layer: int, first: int, n_position: int) -> bool:
        """Blocks and, so that attention is computed by operations that can be batched over gradients, attention."""
        return site in ("hidden_state", "attention")

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""
        zero = self.zeros.get((FED, first))
        value = value if zero is None else value + zero
        if self.kept is not None:
            self.kept[FED, first] = value
        return value

    def states(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Output ``(row, position, hidden)`` of a block."""
        columns = []
        for index in range(value.shape[1]):
            place = layer, first + index
            column = value[:, index]
            columns.append(column + self.zeros[place] if place in self.zeros else column)
            if self.kept is not None:
                self.kept[place] = columns[-1]
        return torch.stack(columns, dim=1)


def read_question(reasoner: Reasoner, prompts: Sequence[Sequence[int]], room: int) -> tuple[Flight, Tensor]:
    """Questions up to the place before ``bot``, outside any gradient; the flight and the tokens ``(row, 1)`` at bot."""
    tokens, pad, n_before = reasoner.lay_out(prompts)
    cache = KeyValues(n_before + reasoner.places.n_middle + room, differentiable=True)
    flight = Flight(reasoner, pad, n_before, cache)
    if n_before:
        with torch.no_grad():
            flight.feed_tokens(tokens[:, :-1])
    return flight, tokens[:, -1:]


def think_through(flight: Flight, bot: Tensor, prefix: Sequence[int]) -> list[Tensor]:
    """Final states ``(row, hidden)`` at bot, the thoughts, what closes them and each token of the answer's prefix."""
    reasoner, editor = flight.reasoner, flight.editor
    states = [flight.feed_tokens(bot)[:, -1]]
    for index in range(reasoner.n_latent):
        vector = reasoner.projection(states[-1])
        if editor is not None:
            vector = editor.embedding(vector, index + 1, flight.rows)
        states.append(flight.feed(vector[:, None])[:, -1])
    rest = [*reasoner.closing_ids, *prefix]
    if rest:
        fed = flight.feed_tokens(torch.tensor(rest, device=bot.device).expand(len(bot), -1))
        states += list(fed.unbind(1))
    return states


def forward_sums(
    reasoner: Reasoner, prompts: Sequence[Sequence[int]], wanted: dict[Place, list[int]], prefix: Sequence[int],
    chunk: int, tick: Tick = bool,
) -> Iterator[tuple[int, Place, slice, Tensor]]:  # fmt: skip
    """Jacobians of final states with respect to places, summed over the rows of a batch.

    Parameters
    ----------
    wanted
        For each place the offsets of the final states it is asked for.
    prefix
        Tokens fed after those that close the thoughts.
    chunk
        Components of a final state whose gradients are computed at once.

    Yields
    ------
    Offset of the final state, place, components, and the Jacobian's rows ``(component, hidden)``.
    """
    flight, bot = read_question(reasoner, prompts, len(prefix))
    probes = Probes(list(wanted), reasoner.hidden, reasoner.device)
    flight.editor = probes
    states = think_through(flight, bot, prefix)
    sources: dict[int, list[Place]] = defaultdict(list)
    for place, offsets in wanted.items():
        for offset in offsets:
            sources[offset].append(place)
    for offset, places in sorted(sources.items()):
        inputs = [probes.zeros[place] for place in places]
        for rows, gradients in _rows_of([states[offset]], inputs, chunk, tick):
            for place, gradient in zip(places, gradients, strict=True):
                yield offset, place, rows, gradient


def origin_sums(
    reasoner: Reasoner, prompts: Sequence[Sequence[int]], layers: Sequence[int], offsets: Sequence[int], chunk: int,
    tick: Tick = bool,
) -> Iterator[tuple[Place, slice, Tensor]]:  # fmt: skip
    """Jacobians of each thought's places with respect to the final state the thought is made of, row by row.

    They are taken halfway between that state and the one of the next row of the batch, in the context of the row: by
    the midpoint rule the Jacobian there says how two such states' difference comes out at the place, where the one at a
    state itself says little of states far from it.

    Yields
    ------
    Place, components of its state, and their rows of each example's Jacobian ``(component, row, hidden)``.
    """
    flight, bot = read_question(reasoner, prompts, 0)
    with torch.no_grad():
        states = think_through(flight, bot, ())
    every = torch.arange(len(bot), device=bot.device)
    zeros, kept = [], []
    for offset in offsets:
        state = (states[offset - 1] + states[offset - 1].roll(1, 0)) / 2
        zero = torch.zeros(len(bot), reasoner.hidden, device=bot.device, requires_grad=True)
        length = flight.n_before + offset
        cache = flight.cache.take(every, length, flight.cache.capacity, differentiable=True)
        probes = Probes([], reasoner.hidden, bot.device, keep=True)
        branch = Flight(reasoner, flight.pad, flight.n_before, cache, editor=probes)
        branch.feed(probes.embedding(reasoner.projection(state + zero), offset, branch.rows)[:, None])
        zeros.append(zero)
        kept.append(probes.kept or {})
    for layer in layers:
        outputs = [values[layer, offset] for values, offset in zip(kept, offsets, strict=True)]
        if not outputs[0].requires_grad:
            continue  # the vector fed does not depend on the state before
        # No place depends on another thought's zero, so one gradient serves all thoughts.
        for rows, gradients in _rows_of(outputs, zeros, chunk, tick):
            for offset, gradient in zip(offsets, gradients, strict=True):
                yield (layer, offset), rows, gradient


def _rows_of(
    outputs: list[Tensor], inputs: list[Tensor], chunk: int, tick: Tick
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Gradients ``(component, *input)`` of the outputs' components, summed over rows, some components at a time."""
    hidden = outputs[0].shape[-1]
    for start in range(0, hidden, chunk):
        rows = slice(start, min(start + chunk, hidden))
        eye = torch.eye(hidden, device=outputs[0].device, dtype=outputs[0].dtype)[rows]
        directions = [eye[:, None].expand(-1, len(output), -1) for output in outputs]
        gradients = torch.autograd.grad(
            outputs, inputs, directions, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
        tick(len(eye))
        yield (
            rows,
            tuple(
                torch.zeros(len(eye), *tensor.shape, device=tensor.device) if gradient is None else gradient
                for tensor, gradient in zip(inputs, gradients, strict=True)
            ),
        )
