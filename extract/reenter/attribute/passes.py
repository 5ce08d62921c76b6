"""A pass from question to answer that says what every part wrote and read, and one that has parts put in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from extract.model.capture import Editor, KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import Apart, laid_apart
from schemas import UsageError

PARTS = ("head_output", "mlp_output")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Questions of a batch side by side, and the two answers whose logits are set against each other."""

    pad: Tensor
    n_before: int
    embedding: Tensor
    """``(row, column, hidden)``: the questions' tokens up to ``bot``."""
    tokens: Tensor
    """``(row, place)``: the answers' tokens before the first that tells them apart."""
    ids: Tensor
    """``(row, 3)``: the two tokens there, and the place they are predicted at."""

    def rows(self, chosen: Tensor) -> "Asked":
        """Some rows, which may repeat."""
        return Asked(pad=self.pad[chosen], n_before=self.n_before, embedding=self.embedding[chosen],
                     tokens=self.tokens[chosen], ids=self.ids[chosen])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the parts of a model hold from ``bot`` to where the answers part: values, gradients, or their products."""

    fed: Tensor
    """``(row, thought, ...)``: the vectors fed."""
    head_output: Tensor
    """``(row, layer, position, head, ...)``"""
    mlp_output: Tensor
    """``(row, layer, position, ...)``"""

    def each(self, change: Callable[..., Tensor], *others: "Parts") -> "Parts":
        """The same of every part, with those of others."""
        return Parts(**{
            name: change(getattr(self, name), *(getattr(other, name) for other in others))
            for name in ("fed", *PARTS)
        })  # fmt: skip


class Tracer(Editor):
    """Editor that keeps what heads, MLPs and the loop of thoughts write, and what each part reads of the residual."""

    def __init__(self) -> None:
        self.fed: list[Tensor] = []
        self.written: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
        self.read: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}

    def touches(self, site: str, layer: int, first: int, n_position: int) -> bool:
        """All heads and MLPs."""
        return site in PARTS

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""
        self.fed.append(value)
        return value

    def states(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Outputs ``(row, position, ...)`` of heads and MLPs."""
        self.written.setdefault((site, layer), []).append((first, value))
        return value

    def parts(self, n_layer: int, gradient: dict[int, Tensor] | None = None) -> Parts:
        """Values of all parts, or what ``gradient`` has for their tensors, by ``id``."""

        def joined(kept: list[tuple[int, Tensor]]) -> Tensor:
            return torch.cat([_of(value, gradient)[:, max(0, -first) :] for first, value in kept], dim=1)

        return Parts(
            fed=torch.stack([_of(node, gradient) for node in self.fed], dim=1),
            **{site: torch.stack([joined(self.written[site, layer]) for layer in range(n_layer)], 1) for site in PARTS},
        )

    def received(self, n_layer: int, gradient: dict[int, Tensor]) -> Tensor:
        """Gradients ``(row, receiver, position, hidden)``: attention and MLP of each layer, then the final norm."""
        names = [(kind, layer) for layer in range(n_layer) for kind in ("attention", "mlp")] + [("final", n_layer)]
        return torch.stack(
            [torch.cat([gradient[id(x)][:, max(0, -first) :] for first, x in self.read[name]], 1) for name in names], 1
        )

    def tensors(self) -> list[Tensor]:
        """Everything kept."""
        kept = [*self.written.values(), *self.read.values()]
        return [*self.fed, *(value for pieces in kept for _, value in pieces)]


def _of(value: Tensor, gradient: dict[int, Tensor] | None) -> Tensor:
    return value if gradient is None else gradient[id(value)]


class Patcher(Editor):
    """Editor that puts given values into the parts that a mask chooses."""

    def __init__(self, values: Parts, chosen: Parts) -> None:
        self.values = values
        self.chosen = chosen

    def touches(self, site: str, layer: int, first: int, n_position: int) -> bool:
        """All heads and MLPs."""
        return site in PARTS

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""
        return torch.where(self.chosen.fed[:, first - 1, None], self.values.fed[:, first - 1], value)

    def states(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Outputs ``(row, position, ...)`` of heads and MLPs."""
        before = max(0, -first)
        places = slice(first + before, first + value.shape[1])
        mask = getattr(self.chosen, site)[:, layer, places, ..., None]
        new = getattr(self.values, site)[:, layer, places]
        return torch.cat([value[:, :before], torch.where(mask, new, value[:, before:])], dim=1)


def difference(reasoner: Reasoner, asked: Asked, editor: Editor | None, cache: KeyValues | None = None) -> Tensor:
    """Logit difference ``(row,)`` of the two answers, through question, thoughts and what both answers begin with.

    ``cache`` is that of the questions up to the place before ``bot``, where it is known.
    """
    room = reasoner.places.n_middle + asked.tokens.shape[1]
    known = cache is not None
    if cache is None:
        cache = KeyValues(asked.n_before + room, differentiable=True)
    flight = Flight(reasoner, asked.pad, asked.n_before, cache, editor=editor)
    state = flight.think(flight.feed(asked.embedding[:, asked.n_before :] if known else asked.embedding)[:, -1])
    after = torch.cat([reasoner.closing_tokens(len(asked.pad), asked.pad.device), asked.tokens], dim=1)
    states = state[:, None]
    if after.shape[1]:
        states = torch.cat([states, flight.feed_tokens(after)], dim=1)
    every = torch.arange(len(asked.pad), device=asked.pad.device)
    place = reasoner.places.n_middle - 1 - reasoner.n_latent + asked.ids[:, 2]
    logits = reasoner.logits(states[every, place]).float()
    return logits[every, asked.ids[:, 0]] - logits[every, asked.ids[:, 1]]


@contextmanager
def reading(reasoner: Reasoner, tracer: Tracer) -> Iterator[None]:
    """As long as it lasts, norms read copies of the residual stream of their own, which the tracer keeps.

    The gradient of a copy is what goes through the part behind that norm, and not past it.
    """

    def hook_of(kind: str, layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> Any:
            running = reasoner._current
            if running is None:
                return None
            own = arguments[0].view_as(arguments[0])
            tracer.read.setdefault((kind, layer), []).append((running.column - running.n_before, own))
            return (own, *arguments[1:])

        return hook

    names = reasoner.architecture_entry.norms
    handles = [
        block.get_submodule(name).register_forward_pre_hook(hook_of(kind, layer))
        for layer, block in enumerate(reasoner.blocks)
        for kind, name in zip(("attention", "mlp"), names, strict=True)
    ]
    handles.append(reasoner._norm.register_forward_pre_hook(hook_of("final", reasoner.n_layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def question_cache(reasoner: Reasoner, asked: Asked) -> KeyValues:
    """Keys and values of the questions up to the place before ``bot``."""
    cache = KeyValues(asked.n_before + reasoner.places.n_middle + asked.tokens.shape[1], differentiable=True)
    if asked.n_before:
        Flight(reasoner, asked.pad, asked.n_before, cache).feed(asked.embedding[:, :-1])
    return cache


def head_writes(reasoner: Reasoner) -> Tensor:
    """What a unit of each component of each head adds to the residual ``(layer, head, head_size, hidden)``."""
    if reasoner.architecture_entry.attention_output.endswith("layernorm"):
        raise UsageError(
            f"in {reasoner.architecture} what a head adds passes a norm first, so heads have no part of their own in"
            " the residual stream; lake reenter sweep changes them one by one"
        )
    n_head, size = reasoner.n_head, reasoner.head_size
    writes = []
    with torch.no_grad():
        for block in reasoner.blocks:
            module = block.get_submodule(reasoner.architecture_entry.head_projection)
            eye = torch.eye(n_head * size, device=reasoner.device, dtype=reasoner._embedding.weight.dtype)
            writes.append((module(eye) - module(torch.zeros_like(eye))).view(n_head, size, -1))
    return torch.stack(writes)


def lay_out(reasoner: Reasoner, prompts: Sequence[Sequence[int]], answers: Sequence[Apart], n_place: int) -> Asked:
    """A batch of questions with the tokens that are read for their answers, filled up to a number of places."""
    tokens, pad, n_before = reasoner.lay_out(prompts)
    begun, ids = laid_apart(reasoner, answers, n_place)
    return Asked(pad=pad, n_before=n_before, embedding=reasoner.embed(tokens).detach(), tokens=begun, ids=ids)
