"""Answers after any number of thoughts: one walk through the thoughts, and a branch to the answer after each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import Answers, Trunk, measure_answers, set_base, spend, texts_of, write_answers
from extract.reenter.draws import Draws, draw_answers
from schemas import UsageError

Series = Literal["own", "repeat", "pause"]
Marker = Literal["kept", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """How a model comes to its answer.

    In series ``own`` it thinks ``n_thought`` times. In ``repeat`` and ``pause`` it thinks as often, but no oftener than
    it was trained for, and then is fed the last thought again, or the pause vector, until there are ``n_thought`` and
    at least as many as it was trained for.
    """

    series: Series
    marker: Marker
    """Whether ``bot`` and what closes the thoughts are fed."""
    n_thought: int

    @property
    def drawn(self) -> bool:
        """Whether answers are drawn on it: on those of the model's own thoughts with markers."""
        return self.series == "own" and self.marker == "kept"


def routes_of(n_latent: int, most: int, series: Sequence[Series], markers: Sequence[Marker]) -> list[Route]:
    """All routes up to ``most`` thoughts; without a thought there is none to repeat."""
    return [
        Route(series=thoughts, marker=marker, n_thought=n)
        for marker in markers
        for thoughts in series
        for n in range(most + 1)
        # All its own thoughts and no more: the same in every series.
        if thoughts == "own" or (n != n_latent and (n > 0 or thoughts == "pause"))
    ]


@dataclass(slots=True)
class _Walk:
    """A batch that has thought as often as is asked for, from which routes branch off."""

    flight: Flight
    tokens: Tensor
    start: int
    """Column of the first thought."""
    states: list[Tensor]
    """States ``(row, hidden)`` after 0, 1, .. thoughts."""
    vectors: list[Tensor]
    """Thoughts ``(row, hidden)``."""

    def branch(self, n_thought: int) -> Flight:
        """Go on after some thoughts, apart from the walk."""
        return _copy(self.flight, self.start + n_thought)


def _copy(flight: Flight, column: int) -> Flight:
    """Copy of a flight up to a column."""
    cache = flight.cache.repeat(1, column, flight.cache.capacity)
    return Flight(flight.reasoner, flight.pad, flight.n_before, cache)


def _walk(
    reasoner: Reasoner, prompts: Sequence[Sequence[int]], marker: Marker, most: int, room: int, cost: dict[str, int]
) -> _Walk:
    """Read the questions and think ``most`` times."""
    if marker == "none" and reasoner.bot_id is not None:
        prompts = [prompt[:-1] for prompt in prompts]
    tokens, pad, n_before = reasoner.lay_out(prompts)
    capacity = n_before + 1 + most + len(reasoner.closing_ids) + room
    flight = Flight(reasoner, pad, n_before, KeyValues(capacity))
    states, vectors = [flight.feed_tokens(tokens)[:, -1]], []
    start = flight.column
    for _ in range(most):
        vectors.append(reasoner.projection(states[-1]))
        states.append(flight.feed(vectors[-1][:, None])[:, -1])
    spend(cost, flight)
    return _Walk(flight=flight, tokens=tokens, start=start, states=states, vectors=vectors)


def answer_routes(
    reasoner: Reasoner, prompts: Sequence[Sequence[int]], routes: Sequence[Route], *, pause: np.ndarray,
    asked: Answers, batch: list[int], n_new: int, draws: Draws | None, n_together: int, cost: dict[str, int],
) -> Iterator[tuple[Route, dict[str, np.ndarray]]]:  # fmt: skip
    """Measure and write the answers of one batch of questions on every route.

    Parameters
    ----------
    reasoner
        In session.
    prompts
        Of the batch, with the marker.
    routes
        Those of one marker and series together, in order of their thoughts.
    pause
        Vector ``(hidden,)``.
    asked
        Answers whose log probability is asked, of all examples; the batch's are ``batch``.
    draws
        Of the routes of the model's own thoughts with markers; ``n_together`` samples are written side by side.
    cost
        What is fed is added to it.

    Yields
    ------
    tuple
        A route, and of each example ``logprob``, ``kl`` (from the trained number of thoughts, with markers), ``text``
        and, where samples are drawn, ``sample_text`` ``(sample, example)``.
    """
    n, room = reasoner.n_latent, max(n_new, len(asked.shared) + max(len(tokens) for tokens in asked.rest[0]))
    most = max(n, *(route.n_thought for route in routes))
    walks = {marker: _walk(reasoner, prompts, marker, most, room, cost) for marker in _markers(routes)}
    base = _untouched(reasoner, walks["kept"], asked, batch, cost)
    vector = torch.from_numpy(pause).to(reasoner.device, walks["kept"].states[0].dtype)
    grown: dict[tuple[str, str], Flight] = {}
    for route in routes:
        walk = walks[route.marker]
        if route.series == "own":
            flight, state = walk.branch(route.n_thought), walk.states[route.n_thought]
        else:
            last = (
                walk.vectors[min(route.n_thought, n) - 1]
                if route.series == "repeat"
                else vector.expand_as(walk.states[0])
            )
            flight, state = _filled(walk, route, n, last, grown, cost)
        drawn: dict[str, np.ndarray] = {}
        if draws is not None and route.drawn:  # before the flight goes on with those rows only whose answer is longest
            keys = [(example, route.n_thought, 37) for example in batch]
            state = flight.close(state)
            drawn["sample_text"] = draw_answers(reasoner, flight, state, keys, n_new, draws, cost, n_together)
        closed = bool(drawn) or route.marker == "none"
        yield route, drawn | _answer(reasoner, flight, state, base, closed, asked, batch, n_new, cost)


def _markers(routes: Sequence[Route]) -> list[Marker]:
    """Markers that occur; with them first, as all is compared with that."""
    return ["kept", *(["none"] if any(route.marker == "none" for route in routes) else [])]  # type: ignore[list-item]


def _untouched(reasoner: Reasoner, walk: _Walk, asked: Answers, batch: list[int], cost: dict[str, int]) -> Trunk:
    """Distribution at the answer's number after the trained thoughts."""
    flight = walk.branch(reasoner.n_latent)
    states = [walk.states[reasoner.n_latent]]
    for token in reasoner.closing_tokens(len(batch), flight.pad.device).T:
        states.append(flight.feed_tokens(token[:, None])[:, -1])
    trunk = Trunk(
        tokens=walk.tokens, pad=flight.pad, n_before=flight.n_before, cache=flight.cache, states=states, base=states[0]
    )
    set_base(reasoner, trunk, asked, batch, cost, len(reasoner.closing_ids))
    return trunk


def _filled(
    walk: _Walk, route: Route, n_latent: int, vector: Tensor, grown: dict[tuple[str, str], Flight], cost: dict[str, int]
) -> tuple[Flight, Tensor]:
    """Some of its own thoughts, then a vector over and over.

    Beyond the trained number each route is one vector longer than the one before, so they grow from one another.
    """
    key = route.marker, route.series
    if route.n_thought < n_latent:
        flight = walk.branch(route.n_thought)
        state = flight.feed(vector[:, None].expand(-1, n_latent - route.n_thought, -1))[:, -1]
        return flight, state
    if key not in grown:
        grown[key] = walk.branch(n_latent)
    growing = grown[key]
    missing = walk.start + route.n_thought - growing.column
    state = growing.feed(vector[:, None].expand(-1, missing, -1))[:, -1]
    spend(cost, growing)
    growing.fed = growing.calls = 0
    return _copy(growing, growing.column), state


def _answer(
    reasoner: Reasoner, flight: Flight, state: Tensor, base: Trunk, closed: bool, asked: Answers, batch: list[int],
    n_new: int, cost: dict[str, int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Close the thoughts, unless they are closed or stay open, and answer."""
    closing = None if closed else reasoner.closing_tokens(len(state), state.device)
    source = torch.arange(len(state), device=state.device)
    measured = measure_answers(reasoner, flight, state, base, source, asked, batch, closing)
    lines = write_answers(reasoner, flight, measured.states, asked.shared, n_new, cost, measured.known)
    spend(cost, flight)
    text = texts_of(reasoner, lines)
    return {"logprob": measured.logprob[0], "kl": measured.kl, "text": text}


def check_routes(
    reasoner: Reasoner, prompts: Sequence[Sequence[int]], labels: Sequence[int], most: int, room: int
) -> None:
    """Refuse more thoughts than the longest question leaves places for.

    Raises
    ------
    UsageError
        Naming the example, and how many thoughts would fit.
    """
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    needed = reasoner.places.needed(len(prompts[longest]), room) - reasoner.n_latent + most
    if needed > reasoner.context:
        fits = most - (needed - reasoner.context)
        raise UsageError(
            f"{most} thoughts after the question of example {labels[longest]} need {needed} places, {reasoner.name} has"
            f" {reasoner.context}; {max(fits, 0)} thoughts fit, so ask for fewer with --beyond"
        )
