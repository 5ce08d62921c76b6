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
    reasoner: Reasoner, flight: Flight, state: Tensor, keys: Sequence[Sequence[int]], n_new: int, draws: Draws,
    cost: dict[str, int], n_together: int = 1,
) -> np.ndarray:  # fmt: skip
    """Texts ``(sample, row)`` written token by token from the state before the answer; the flight stays where it is.

    Rows with equal keys draw by the same random numbers. Conditions of an example share them, so a condition that
    changes nothing draws the same answers, and what another one changes is not chance.

    Parameters
    ----------
    state
        ``(row, hidden)``.
    keys
        What the draws of each row depend on, beside the seed.
    n_new
        Longest answer.
    cost
        What is fed is added to it.
    n_together
        Samples written side by side; 1 where the flight has an editor, whose rows are those of the batch.
    """
    n_row, size = len(state), draws.n_sample
    generators = [np.random.default_rng([draws.seed, *key]) for key in keys]
    uniform = np.stack([generator.random((size, n_new)) for generator in generators], axis=1)  # (sample, row, place)
    texts = np.empty((size, n_row), dtype=object)
    for first in range(0, size, n_together):
        drawn = torch.from_numpy(uniform[first : first + n_together].reshape(-1, n_new)).to(state.device)
        rows = torch.arange(n_row, device=state.device).repeat(len(drawn) // n_row)
        cache = flight.cache.take(rows, flight.column, flight.cache.capacity)
        part = Flight(reasoner, flight.pad[rows], flight.n_before, cache, editor=flight.editor)
        tokens = part.answer(state[rows], n_new, choose=by_chance(drawn, draws.temperature)).cpu().tolist()
        texts[first : first + n_together] = texts_of(reasoner, tokens).reshape(-1, n_row)
        spend(cost, part)
    return texts
