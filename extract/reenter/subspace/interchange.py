"""A subspace trained for interchange: its part of a donor's state must carry the donor's value into the answer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from extract.model.capture import Editor, KeyValues
from extract.model.device import device_errors
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import padded
from extract.reenter.subspace.fits import Fit
from extract.reenter.trial import Place, Trial
from schemas.progress import Progress

LEARNING_RATE = 0.01


@dataclass(slots=True)
class Exchange(Editor):
    """Editor that puts donors' parts inside a subspace in, and lets gradients through."""

    place: Place
    offset: int
    donated: Tensor
    """``(row, hidden)``"""
    basis: Tensor
    """``(rank, hidden)``, orthonormal."""

    def touches(self, site: str, layer: int, first: int, n_position: int) -> bool:
        """Whether anything is armed at a site of a layer for any of these positions."""
        return (site, layer) == self.place[:2] and first <= self.offset < first + n_position

    def embedding(self, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Vectors ``(row, hidden)`` about to be fed at one thought."""
        return self._exchanged(value) if self.touches("latent_embedding", -1, first, 1) else value

    def states(self, site: str, layer: int, value: Tensor, first: int, rows: Tensor) -> Tensor:
        """Values ``(row, position, hidden)`` of a site of a layer."""
        index = self.offset - first
        changed = self._exchanged(value[:, index])[:, None]
        return torch.cat([value[:, :index], changed, value[:, index + 1 :]], dim=1)

    def _exchanged(self, value: Tensor) -> Tensor:
        return value + ((self.donated - value) @ self.basis.T) @ self.basis


def train_interchange(
    trial: Trial, place: Place, rank: int, *, n_step: int, batch: int, seed: int, report: Progress
) -> Fit:
    """Train an orthonormal basis for interchange at a place (distributed alignment search).

    Pairs of an example and a donor are drawn from the half of the problems that fits are made on, ``batch`` for each
    of ``n_step`` steps. The loss is the negative log probability of the answer that the example's chain comes to with
    the donor's result. The fit has exactly ``rank`` vectors; the first k of them mean nothing by themselves.

    References
    ----------
    Geiger et al., *Finding alignments between interpretable causal variables and distributed neural representations*,
    CLeaR 2024.
    """
    reasoner = trial.target.reasoner
    generator = np.random.default_rng([seed, 43, rank])
    pairs = _pairs(trial, place, generator, n_step * batch)
    states = trial.column(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        turn: Any = orthogonal(nn.Linear(reasoner.hidden, rank, bias=False)).to(reasoner.device)
    optimiser = torch.optim.Adam(turn.parameters(), lr=LEARNING_RATE)
    prompts = {row: reasoner.encode(trial.chains.question[row]) for row in np.unique(pairs[0]).tolist()}
    with reasoner.session(), torch.enable_grad():
        for step in range(n_step):
            rows, donors, answers = (side[step * batch : (step + 1) * batch] for side in pairs)
            with device_errors(f"a training batch of {len(rows)} rows", "choose a smaller --das-rows"):
                donated = torch.as_tensor(states[donors], device=reasoner.device)
                exchange = Exchange(place, reasoner.places.offset(place.position), donated, turn.weight)
                loss = _loss(reasoner, [prompts[row] for row in rows.tolist()], answers.tolist(), exchange)
                gradients = torch.autograd.grad(loss, list(turn.parameters()))
                for parameter, gradient in zip(turn.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
            report(step + 1, n_step)
    basis = turn.weight.detach().cpu().double().numpy()  # (rank, hidden)
    return Fit(basis, basis, np.nanmean(states[trial.fitted], axis=0))


def _pairs(
    trial: Trial, place: Place, generator: np.random.Generator, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of examples and donors, and the answers that are to come out: all pairs that make one, in random order."""
    chains = trial.chains
    rows, donors, answers = [], [], []
    have = trial.fitted[chains.n_step[trial.fitted] > place.step + 1]
    for row in have:
        own = chains.result[row, place.step]
        for value in np.unique(chains.result[have, place.step]).tolist():
            new = None if value == own else chains.retell(int(row), place.step, value=value)
            if new is None:
                continue
            candidates = have[chains.result[have, place.step] == value]
            answer = chains.answer_text(int(row), new)
            rows += [row] * len(candidates)
            donors += candidates.tolist()
            answers += [answer] * len(candidates)
    order = np.concatenate([generator.permutation(len(rows)) for _ in range(-(-n // max(1, len(rows))))])[:n]
    return np.array(rows)[order], np.array(donors)[order], np.array(answers, dtype=object)[order]


def _loss(reasoner: Reasoner, prompts: list[list[int]], answers: list[str], editor: Exchange) -> Tensor:
    """Mean negative log probability of answers under an exchange."""
    tokens, prefixes = zip(*(reasoner.tokens_and_prefix(answer) for answer in answers), strict=True)
    laid_answers = padded(tokens, reasoner.eos_id, reasoner.device)
    counted = torch.zeros(laid_answers.shape, dtype=torch.bool)
    for row, (tokens_of_row, prefix) in enumerate(zip(tokens, prefixes, strict=True)):
        counted[row, prefix : len(tokens_of_row)] = True
    laid, pad, n_before = reasoner.lay_out(prompts)
    with torch.no_grad():
        cache = KeyValues(n_before + reasoner.places.n_middle + laid_answers.shape[1])
        trunk = Flight(reasoner, pad, n_before, cache)
        state = trunk.feed_tokens(laid)[:, -1]
        first = max(0, min(editor.offset, reasoner.n_latent) - 1)
        for _ in range(first):
            state = trunk.feed(reasoner.projection(state)[:, None])[:, -1]
    own = cache.take(torch.arange(len(pad), device=pad.device), cache.length, cache.capacity, differentiable=True)
    flight = Flight(reasoner, pad, n_before, own, editor=editor)
    state = flight.think(state, first=first)
    closing = reasoner.closing_tokens(len(pad), pad.device)
    states = flight.feed_tokens(torch.cat([closing, laid_answers[:, :-1]], dim=1))
    predicting = torch.cat([state[:, None], states], dim=1)[:, closing.shape[1] :]
    log_p = torch.log_softmax(reasoner.logits(predicting), dim=-1).gather(-1, laid_answers[..., None])[..., 0]
    return -log_p.where(counted.to(log_p.device), 0).sum(1).mean()
