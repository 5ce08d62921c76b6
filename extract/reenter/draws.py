"""Answers drawn beside the likeliest one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from extract.model.flight import Choose, Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import spend, texts_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """How many answers are drawn, and how."""

    n_sample: int
    temperature: float
    seed: int


def by_chance(uniform: Tensor, temperature: float) -> Choose:
    """Choose tokens by uniform draws ``(row, place)``: where each falls in the cumulated probabilities."""

    def choose(logits: Tensor, place: int, running: Tensor) -> Tensor:
        total = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
        wanted = uniform[running, place, None] * total[:, -1:]
        return torch.searchsorted(total, wanted, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)

    return choose


def draw_answers(
    reasoner: Reasoner, flight: Flight, state: Tensor, labels: Sequence[int], n_new: int, draws: Draws,
    cost: dict[str, int],
) -> np.ndarray:  # fmt: skip
    """Texts ``(sample, row)`` written token by token from the state before the answer; the flight stays where it is.

    A draw depends on the example and its number alone: conditions share them, so that what changes nothing draws the
    same answers, and what one condition changes is not chance.

    Parameters
    ----------
    reasoner, flight, state
        Model, batch and state ``(row, hidden)`` before the answer.
    labels
        Example of each row.
    n_new
        Longest answer.
    draws
        How many, and how.
    cost
        What is fed is added to it.
    """
    rows = torch.arange(len(state), device=state.device)
    uniform = np.stack(
        [
            np.random.default_rng([draws.seed, label, 61]).random((draws.n_sample, n_new), dtype=np.float64)
            for label in labels
        ],
        axis=1,
    )  # (sample, row, place)
    texts = np.empty((draws.n_sample, len(rows)), dtype=object)
    for number, line in enumerate(torch.from_numpy(uniform).to(state.device)):
        cache = flight.cache.take(rows, flight.column, flight.cache.capacity)
        part = Flight(reasoner, flight.pad, flight.n_before, cache, editor=flight.editor)
        tokens = part.answer(state, n_new, choose=by_chance(line, draws.temperature)).cpu().tolist()
        texts[number] = texts_of(reasoner, tokens)
        spend(cost, part)
    return texts
