"""Answers after the thoughts: their log probabilities, and what the model writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner


@dataclass(slots=True)
class Trunk:
    """The untouched run of one batch of examples, kept for every condition to branch off."""

    tokens: Tensor
    pad: Tensor
    n_before: int
    cache: KeyValues
    states: list[Tensor]
    """States ``(row, hidden)`` at ``bot``, the thoughts and what closes them."""
    base: Tensor
    """Log probabilities ``(row, vocabulary)`` at the answer's number."""


@dataclass(slots=True)
class Answers:
    """Answers whose log probability is asked, as tokens after what they all begin with."""

    shared: list[int]
    rest: list[list[list[int]]]
    """Tokens after ``shared`` by answer and example, end token included."""
    counted: int
    """Tokens at the end of ``shared`` that count as part of the answer."""
    differ: list[int]
    """Place at which the first two answers differ, by example; -1 where they never do."""


class Apart(NamedTuple):
    """Two answers up to the first token that tells them apart."""

    begin: list[int]
    """What both begin with."""
    one: int
    """Token of the first answer there; -1, as the other, where they never differ."""
    other: int


class Measured(NamedTuple):
    """What is measured of the answers of a batch."""

    logprob: np.ndarray
    """Log probabilities ``(answer, row)``."""
    difference: np.ndarray
    """Logit differences ``(row,)`` of the first two answers."""
    kl: np.ndarray
    """Divergences ``(row,)`` from the untouched run."""
    states: Tensor
    """States ``(row, place, hidden)`` that predict the shared tokens and what follows."""
    known: list[list[int]] | None
    """What rows write after the shared tokens where that is the first answer; empty where it is another."""


def spend(cost: dict[str, int], flight: Flight) -> None:
    """Add what a flight has fed."""
    cost["positions_fed"] += flight.fed
    cost["model_calls"] += flight.calls


def asked_answers(reasoner: Reasoner, texts: list[list[str]]) -> Answers:
    """Tokens of answers, split after what all begin with: the prefix, and a space that is a token of its own."""
    if not texts:
        return Answers(shared=[], rest=[], counted=0, differ=[])
    cache: dict[str, list[int]] = {}
    for text in {text for texts_of_one in texts for text in texts_of_one}:
        cache[text] = reasoner.answer_tokens(text)
    start = min(reasoner.answer_start(text) for text in cache)
    sequences = list(cache.values())
    shared = sequences[0][:start]
    while any(tokens[: len(shared)] != shared for tokens in sequences):
        shared = shared[:-1]
    prefix = min(reasoner.prefix_length(text) for text in cache)
    n = len(shared)
    rest = [[cache[text][n:] for text in texts_of_one] for texts_of_one in texts]
    differ = [-1] * len(texts[0])
    if len(rest) > 1:
        differ = [first_apart(one, other) for one, other in zip(rest[0], rest[1], strict=True)]
    return Answers(shared=shared, rest=rest, counted=max(0, n - prefix), differ=differ)


def first_apart(one: Sequence[int], other: Sequence[int]) -> int:
    """Place of the first tokens that differ; -1 where there is none."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), -1)


def answers_apart(reasoner: Reasoner, pairs: Sequence[tuple[str, str]]) -> list[Apart]:
    """What tells the two answers of each pair apart."""
    parts = []
    for one, other in (map(reasoner.answer_tokens, pair) for pair in pairs):
        place = first_apart(one, other)
        parts.append(Apart([], -1, -1) if place < 0 else Apart(one[:place], one[place], other[place]))
    return parts


def laid_apart(reasoner: Reasoner, answers: Sequence[Apart], n_place: int | None = None) -> tuple[Tensor, Tensor]:
    """What both answers begin with ``(row, place)``, and ``(row, 3)`` the two tokens after it and their place.

    By default there are as many places as the longest beginning takes.
    """
    begun = padded([answer.begin for answer in answers], reasoner.eos_id, reasoner.device, n_place)
    ids = [[answer.one, answer.other, len(answer.begin)] for answer in answers]
    return begun, torch.tensor(ids, device=reasoner.device)


def divergence(base: Tensor, other: Tensor) -> Tensor:
    """Divergence ``(..)`` of log probabilities ``(.., vocabulary)`` from others; NaN where either are not numbers."""
    share = base.exp()
    return torch.where(share == 0, 0.0, share * (base - other)).sum(-1)


def set_base(
    reasoner: Reasoner, trunk: Trunk, asked: Answers, batch: list[int], cost: dict[str, int], n_closing: int = 0
) -> None:
    """Set the distribution of the untouched run at the answer's number.

    The last ``n_closing`` tokens that close the thoughts are fed again, as :func:`measure_answers` feeds them, so that
    a condition that changes nothing does not even differ by rounding.
    """
    length = trunk.cache.length
    trunk.cache.length -= n_closing
    flight = Flight(reasoner, trunk.pad, trunk.n_before, trunk.cache)
    closing = reasoner.closing_tokens(len(batch), trunk.pad.device)[:, len(reasoner.closing_ids) - n_closing :]
    first = _first_answers(reasoner, asked, batch, trunk.pad.device)
    states, _ = _begin(flight, trunk.states[-1 - n_closing], closing, asked.shared, first)
    trunk.base = torch.log_softmax(reasoner.logits(states[:, -1]).float(), dim=-1)
    trunk.cache.length = length
    spend(cost, flight)


def _begin(flight: Flight, state: Tensor, closing: Tensor, shared: list[int], first: Tensor) -> tuple[Tensor, Tensor]:
    """Feed what closes the thoughts, the shared tokens and answers ``first`` ``(row, token)`` but their last, at once.

    Gives the states ``(row, place, hidden)`` that predict each shared token and the one after them, and those beyond.
    """
    common = torch.tensor(shared, dtype=torch.long, device=state.device).expand(len(state), -1)
    tokens = torch.cat([closing, common, first[:, :-1]], dim=1)
    states = state[:, None]
    if tokens.shape[1]:
        states = torch.cat([states, flight.feed_tokens(tokens)], dim=1)
    states = states[:, closing.shape[1] :]
    return states[:, : len(shared) + 1], states[:, len(shared) + 1 :]


def _first_answers(reasoner: Reasoner, asked: Answers, picked: Sequence[int], device: torch.device) -> Tensor:
    """Tokens ``(row, place)`` of the first answer after the shared ones; none where no answer is asked for."""
    if not asked.rest:
        return torch.empty(len(picked), 0, dtype=torch.long, device=device)
    return padded([asked.rest[0][example] for example in picked], reasoner.eos_id, device)


def write_answers(
    reasoner: Reasoner, flight: Flight, states: Tensor, shared: list[int], n_new: int, cost: dict[str, int],
    known: Sequence[list[int]] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Greedy answers. Rows that begin with the shared tokens, as most do, go on after them.

    Measuring has filled the columns of the shared tokens; ``states`` predict each of them and what follows. ``known``
    is what a row writes after them where measuring has shown it, else empty.
    """
    begin = len(shared) if len(shared) < n_new else 0
    follows = torch.ones(len(states), dtype=torch.bool, device=states.device)
    for place, token in enumerate(shared[:begin]):
        follows &= reasoner.likeliest(reasoner.logits(states[:, place])) == token
    lines: list[list[int]] = [[] for _ in range(len(states))]
    written = torch.zeros_like(follows)
    if known is not None and begin == len(shared):
        fits = torch.tensor([0 < len(rest) <= n_new - begin for rest in known], device=states.device)
        written = follows & fits
        for row in written.nonzero()[:, 0].tolist():
            lines[row] = [*shared, *known[row]]
    length = flight.column
    for chosen, start in ((follows & ~written, begin), (~follows, 0)):
        rows = chosen.nonzero()[:, 0]
        if not len(rows):
            continue
        part = flight
        flight.cache.length = length + start
        if len(rows) < len(states):
            cache = flight.cache.take(rows, length + start, flight.cache.capacity)
            part = Flight(reasoner, flight.pad[rows], flight.n_before, cache, editor=flight.editor, rows=rows)
        tokens = part.answer(states[rows, start], n_new - start).cpu().tolist()
        for row in rows.tolist():
            lines[row] = [*shared[:start], *tokens[row]]
        if part is not flight:
            spend(cost, part)
        flight.cache.length = length
    return lines


def texts_of(reasoner: Reasoner, lines: Sequence[Sequence[int]]) -> np.ndarray:
    """Texts ``(row,)`` of answers' tokens; most rows write what others do, and that is read once."""
    texts = {line: reasoner.decode(line) for line in set(map(tuple, lines))}
    return np.array([texts[tuple(line)] for line in lines], dtype=object)


def measure_answers(
    reasoner: Reasoner, flight: Flight, state: Tensor, trunk: Trunk, source: Tensor, asked: Answers, batch: list[int],
    closing: Tensor | None = None,
) -> Measured:  # fmt: skip
    """Log probability of each answer, logit difference of the first two, divergence from the untouched run.

    Also the states that predict the shared tokens and what follows; the columns of these tokens stay filled, though the
    cache's length is set back before them. Tokens ``closing`` ``(row, token)`` that are still to be fed before the
    answer go with the first of them in one pass.
    """
    n_row, n_shared = len(source), len(asked.shared)
    difference = np.full(n_row, np.nan)
    closing = torch.empty(n_row, 0, dtype=torch.long, device=state.device) if closing is None else closing
    picked = list(batch) * (n_row // len(batch))
    rests = [[rest[example] for example in picked] for rest in asked.rest]
    first = _first_answers(reasoner, asked, picked, state.device)
    states, later = _begin(flight, state, closing, asked.shared, first)
    length = flight.column - later.shape[1] - n_shared
    if not rests:
        return Measured(np.empty((0, n_row)), difference, np.full(n_row, np.nan), states, None)
    index = torch.arange(n_row, device=state.device)
    extra = torch.zeros(n_row, device=state.device)
    for place in range(n_shared - asked.counted, n_shared):
        extra += torch.log_softmax(reasoner.logits(states[:, place]).float(), dim=-1)[:, asked.shared[place]]
    logits = reasoner.logits(states[:, -1]).float()
    log_p = torch.log_softmax(logits, dim=-1)
    base = trunk.base[source]
    kl = divergence(base, log_p)
    measured, written = [], torch.zeros(n_row, dtype=torch.bool, device=state.device)
    for number, rest in enumerate(rests):
        own = first if number == 0 else padded(rest, reasoner.eos_id, state.device)
        flight.cache.length = length + n_shared
        if number and own.shape[1] > 1:
            later = flight.feed_tokens(own[:, :-1], record=False)
        total = extra + log_p[index, own[:, 0]]
        would = reasoner.likeliest(logits) == own[:, 0]
        for place in range(1, own.shape[1]):
            these = reasoner.logits(later[:, place - 1]).float()
            counts = torch.tensor([len(tokens) > place for tokens in rest], device=state.device)
            each_log_p = torch.log_softmax(these, dim=-1)[index, own[:, place]]
            total = total + torch.where(counts, each_log_p, torch.zeros_like(each_log_p))
            would &= ~counts | (reasoner.likeliest(these) == own[:, place])
            if number == 0:
                _differences(difference, these, asked, picked, place)
        if number == 0:
            _differences(difference, logits, asked, picked, 0)
            written = would
        measured.append(total)
    flight.cache.length = length
    known = [rest if same else [] for rest, same in zip(rests[0], written.cpu().tolist(), strict=True)]
    return Measured(torch.stack(measured).cpu().double().numpy(), difference, kl.cpu().double().numpy(), states, known)


def padded(tokens: Sequence[Sequence[int]], filler: int, device: torch.device, n_place: int | None = None) -> Tensor:
    """Tokens ``(row, place)`` of rows of several lengths, filled up to the longest or to so many places."""
    width = max(map(len, tokens)) if n_place is None else n_place
    rows = [[*row, *[filler] * (width - len(row))] for row in tokens]
    return torch.tensor(rows, dtype=torch.long, device=device).view(len(tokens), width)


def _differences(difference: np.ndarray, logits: Tensor, asked: Answers, picked: list[int], place: int) -> None:
    """Fill in the rows whose first two answers differ at this place."""
    rows = [row for row, example in enumerate(picked) if asked.differ[example] == place]
    if rows:
        row_index = torch.tensor(rows, device=logits.device)
        one = torch.tensor([asked.rest[0][picked[row]][place] for row in rows], device=logits.device)
        other = torch.tensor([asked.rest[1][picked[row]][place] for row in rows], device=logits.device)
        difference[rows] = (logits[row_index, one] - logits[row_index, other]).cpu().numpy()
