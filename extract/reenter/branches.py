"""One batch of a sweep: its questions are thought through once, and conditions branch off side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import Answers, Trunk, measure_answers, set_base, spend, texts_of, write_answers
from extract.reenter.armed import Armed
from extract.reenter.draws import Draws, draw_answers
from extract.reenter.intervene import arm
from extract.reenter.observe import observe_states
from extract.reenter.values import StoredValues
from schemas import Places

if TYPE_CHECKING:
    from extract.reenter.sweep import Condition


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What all batches of a sweep have in common: whom to ask, what, and what is measured of the answers."""

    reasoner: Reasoner
    stored: StoredValues
    labels: list[int]
    rows: np.ndarray
    """Rows ``(example,)`` of the stored run."""
    prompts: list[list[int]]
    asked: Answers
    n_new: int
    """Longest answer, in tokens."""
    room: int
    """Positions that any answer, written or asked for, may take."""
    generate: bool
    observe: bool
    draws: Draws | None
    cost: dict[str, int]
    """What was fed so far; added to by every batch."""


def first_offset(condition: "Condition", places: Places) -> int:
    """Offset of the first position that is changed in any example."""
    where = condition.where or {}
    changed = {
        p
        for intervention in condition.interventions
        for p in intervention.positions
        if p not in where or where[p].any()
    }
    return min(map(places.offset, changed), default=places.n_middle)


def think_untouched(questions: Questions, batch: list[int]) -> Trunk:
    """Think a batch through up to the answer, untouched."""
    reasoner = questions.reasoner
    tokens, pad, n_before = reasoner.lay_out([questions.prompts[index] for index in batch])
    flight = Flight(reasoner, pad, n_before, KeyValues(n_before + reasoner.places.n_middle + questions.room))
    states = [flight.feed_tokens(tokens)[:, -1]]
    for _ in range(reasoner.n_latent):
        states.append(flight.feed(reasoner.projection(states[-1])[:, None])[:, -1])
    for token in reasoner.closing_ids:
        states.append(flight.feed_tokens(torch.full_like(tokens[:, :1], token))[:, -1])
    empty = torch.empty(0, device=reasoner.device)
    trunk = Trunk(tokens=tokens, pad=pad, n_before=n_before, cache=flight.cache, states=states, base=empty)
    spend(questions.cost, flight)
    if questions.asked.rest:
        set_base(reasoner, trunk, questions.asked, batch, questions.cost, len(reasoner.closing_ids))
    return trunk


def run_conditions(
    questions: Questions, trunk: Trunk, conditions: Sequence["Condition"], batch: list[int]
) -> dict[str, np.ndarray]:
    """Some conditions (none: the untouched run) on one batch of examples, side by side.

    Returns
    -------
    Arrays by name, each with the axes (condition, ..., example): ``text``, ``logprob`` (of every answer),
    ``difference``, ``kl``; ``seen`` (quantity, position) and ``sample_text`` (sample) where they are asked for.
    """
    reasoner, asked, draws, cost = questions.reasoner, questions.asked, questions.draws, questions.cost
    n_copy, n_batch = max(1, len(conditions)), len(batch)
    source = torch.arange(n_batch, device=reasoner.device).repeat(n_copy)
    armed, starts = _arm_all(questions, conditions, batch)
    capacity = trunk.n_before + reasoner.places.n_middle + questions.room
    cache = trunk.cache.repeat(n_copy, trunk.n_before + starts[-1], capacity)
    cache.length = trunk.n_before + starts[0]
    flight = Flight(reasoner, trunk.pad[source], trunk.n_before, cache, editor=armed if conditions else None)
    flight.states = {} if questions.observe else None
    state, closing = _think_on(flight, trunk, source, starts)
    collected: dict[str, np.ndarray] = {}
    if draws is not None and draws.n_sample:  # before the flight goes on with those rows only whose answer is longest
        if closing.shape[1]:
            state, closing = flight.feed_tokens(closing)[:, -1], closing[:, :0]
        keys = [(questions.labels[example], 61) for example in batch] * n_copy
        texts = draw_answers(reasoner, flight, state, keys, questions.n_new, draws, cost)
        collected["sample_text"] = texts.reshape(draws.n_sample, n_copy, n_batch).swapaxes(0, 1)
    measured = measure_answers(reasoner, flight, state, trunk, source, asked, batch, closing)
    text = np.full((n_copy, n_batch), "", dtype=object)
    if questions.generate:
        lines = write_answers(reasoner, flight, measured.states, asked.shared, questions.n_new, cost, measured.known)
        text = texts_of(reasoner, lines).reshape(n_copy, n_batch)
    spend(cost, flight)
    if flight.states is not None:
        collected["seen"] = observe_states(reasoner, trunk.states, flight.states, source)
    return collected | {
        "text": text,
        "logprob": measured.logprob.reshape(len(asked.rest), n_copy, n_batch).swapaxes(0, 1),
        "difference": measured.difference.reshape(n_copy, n_batch),
        "kl": measured.kl.reshape(n_copy, n_batch),
    }


def _arm_all(questions: Questions, conditions: Sequence["Condition"], batch: list[int]) -> tuple[Armed, list[int]]:
    """Interventions of conditions side by side, and the offset of the first position that each of them changes.

    Where that is after the thoughts, of the first that closes them: these are fed with the answer in any case. All that
    change the question begin where the first of them does.
    """
    n_batch, places = len(batch), questions.reasoner.places
    armed = Armed(max(1, len(conditions)) * n_batch, questions.reasoner.device)
    for copy, condition in enumerate(conditions):
        where = None if condition.where is None else {key: mask[batch] for key, mask in condition.where.items()}
        rows = np.arange(copy * n_batch, (copy + 1) * n_batch)
        for stage, intervention in enumerate(condition.interventions):
            arm(armed, intervention, questions.stored, questions.rows[batch], rows, stage=stage, where=where)
    closing = 1 + places.n_latent
    starts = [min(closing, first_offset(condition, places)) for condition in conditions] or [closing]
    return armed, [min(starts) if start <= 0 else start for start in starts]


def _think_on(flight: Flight, trunk: Trunk, source: Tensor, starts: list[int]) -> tuple[Tensor, Tensor]:
    """State before the thoughts are closed, each condition thought through again from its start on; what closes them.

    Conditions are in the order of their starts; one that has not begun holds the columns of the untouched run.
    """
    reasoner, n_batch = flight.reasoner, len(trunk.pad)
    state, begins = trunk.states[0][:0], sorted(set(starts))
    for begin, end in zip(begins, [*begins[1:], 1 + reasoner.n_latent], strict=True):
        n_row = n_batch * sum(start <= begin for start in starts)
        part = flight.first(n_row)
        if begin <= 0:
            state = part.feed_tokens(trunk.tokens[:, trunk.n_before + begin :][source[:n_row]])[:, -1]
        else:
            state = torch.cat([state, trunk.states[begin - 1][source[len(state) : n_row]]])
        state = part.think(state, max(begin, 1) - 1, end - 1)
        flight.cache.length = part.column
        flight.fed, flight.calls = flight.fed + part.fed, flight.calls + part.calls
        if flight.states is not None and part.states is not None:
            for offset, changed in part.states.items():
                flight.states[offset] = torch.cat([changed, trunk.states[offset][source[n_row:]]])
    return state, reasoner.closing_tokens(len(source), source.device)
