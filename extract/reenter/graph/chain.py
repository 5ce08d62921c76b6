"""The same graph between the steps of an explicit chain: a step's tokens are changed, and later ones measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter.answers import spend
from extract.reenter.batches import batch_errors, by_length
from extract.reenter.graph.command import GraphSettings
from extract.reenter.graph.effects import (
    ANSWER,
    DIRECT,
    TOTAL,
    alike_share,
    by_edge,
    completed,
    labelled,
    operations_of,
    stored_graph,
)
from extract.reenter.graph.steps import WrittenChains, written_chains
from extract.reenter.observe import COMPARED, differences
from extract.reenter.sweep import rows_that_fit
from extract.reenter.target import Target
from extract.reenter.values import StoredValues
from schemas import UsageError
from schemas.problem_sums import problem_of

SELF, HELD = "self", "held"
DONORS = {"resample": "other", "alike": "alike", "twin": "twin"}
"""Whose step an operation puts in, where it is another problem's."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to one step (-1: nothing), and the steps after it that are held at their own tokens."""

    name: str
    operation: str
    effect: str
    source: int
    targets: tuple[int, ...]
    held: tuple[int, ...]


@dataclass(slots=True)
class _Batch:
    """Some examples whose chains were read once, untouched."""

    examples: list[int]
    cache: KeyValues
    pad: Tensor
    n_before: int
    start: int
    """Column of the first token of the answers."""
    tokens: np.ndarray
    """Their own tokens ``(example, place)``, the end token where there is none."""
    states: list[Tensor]
    """States ``(example, hidden)`` that predict the token at each place."""


def chain_graph(target: Target, settings: GraphSettings | None = None) -> xr.Dataset:
    """Change each step of an explicit chain and measure every later one, and the answer.

    A node is a step: the embeddings of its tokens, which are to a chain what fed vectors are to thoughts. Up to the end
    of the changed step the model reads its own tokens, from there on it writes; for direct effects it reads the nodes
    in between, and those that are measured, as they were written. A later step is measured by the states that predict
    its tokens.

    Parameters
    ----------
    target
        Run of a model that writes chains, and the model.
    settings
        As for thoughts; another problem's step, or the mean of a step, is taken token by token from its end on.

    Returns
    -------
    xr.Dataset
        As :func:`extract.reenter.graph.effects.thought_graph` has it, over the examples that write all nodes, with
        ``state_kl`` and ``state_logprob_change`` summed over a step's tokens, ``state_flip`` whether any of them reads
        otherwise (of the answer: whether another one is given), ``state_cosine`` and ``state_change`` their mean.

    Raises
    ------
    UsageError
        If no chain is written, or a step or operation is not there.
    """
    settings = settings or GraphSettings()
    if settings.layer is not None:
        raise UsageError(f"{target.run} has no thoughts; nodes of its graph are tokens of its chain, without --layer")
    if settings.sample:
        raise UsageError(
            f"--sample is of answers after thoughts; {target.run} writes its chain, and a chain that is drawn has other"
            " steps than those that are compared"
        )
    names, chains = written_chains(target, settings.positions)
    other = None if settings.against is None else stored_graph(target, settings.against, names)
    known = [int(name.removeprefix("step")) - 1 for name in names]
    operations = operations_of(target, settings)
    changes = _changes(known, operations)
    steps = _Steps(target, chains, known, settings)
    measured, cost = _measure(steps, changes)
    labels: dict[str, list[str]] = {
        "operation": operations, "effect": [TOTAL, DIRECT], "source": names, "target": [*names, ANSWER],
    }  # fmt: skip
    data = target.data.isel(example=chains.rows)
    values = by_edge(measured, changes, labels)
    out = labelled(values, labels, data["example"].values, cost)
    for name in (SELF, HELD):
        out[f"{name}_kl"] = ("target", np.nanmax(np.abs(measured[name][:, 0]), axis=-1))
    strata = None if target.strata is None else target.strata[chains.rows]
    out = completed(out, settings, strata=strata, problem=problem_of(data), other=other)
    n_left_out = int(target.data.sizes["example"] - len(chains.rows))
    return out.assign_attrs(layer=-1, n_left_out=n_left_out, **alike_share(target.values, operations, settings.seed))


def _changes(known: Sequence[int], operations: Sequence[str]) -> list[_Change]:
    """Each node changed, with the later ones rewritten and held; two controls that change nothing."""
    n = len(known)
    changes: list[_Change] = []
    for operation in operations:
        for source in range(n):
            later = tuple(range(source + 1, n + 1))
            name = f"{operation} {known[source]}"
            changes.append(_Change(name, operation, TOTAL, source, later, ()))
            changes.append(_Change(f"{name} held", operation, DIRECT, source, later, tuple(range(source + 1, n))))
    everything = tuple(range(n + 1))
    changes.append(_Change(SELF, "", TOTAL, -1, everything, ()))
    changes.append(_Change(HELD, "", DIRECT, -1, everything, tuple(range(n))))
    return changes


@dataclass(slots=True)
class _Steps:
    """What goes in at the steps of a run's chains."""

    target: Target
    chains: WrittenChains
    known: list[int]
    """Places of the nodes among the steps."""
    settings: GraphSettings
    cost: dict[str, int] = field(default_factory=lambda: {"positions_fed": 0, "model_calls": 0})
    _donors: dict[str, np.ndarray] = field(default_factory=dict)
    _moments: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def reasoner(self) -> Reasoner:
        """The model."""
        return self.target.reasoner

    def donors(self, name: str) -> np.ndarray:
        """For each example another one, whose steps go in."""
        if name not in self._donors:
            values = StoredValues(self.target.data.isel(example=self.chains.rows), self.reasoner)
            self._donors[name] = values.donors(np.arange(len(self.chains.rows)), name, self.settings.seed)
        return self._donors[name]

    def moments(self, step: int, back: int) -> tuple[Tensor, Tensor]:
        """Mean and spread ``(hidden,)`` over the run of what is embedded ``back`` tokens before a step's last."""
        if (step, back) not in self._moments:
            spans = [self.chains.span(example, step) for example in range(len(self.chains.rows))]
            ids = [
                tokens[span[-1 - back]]
                for tokens, span in zip(self.chains.tokens, spans, strict=True)
                if back < len(span)
            ]
            vectors = self.reasoner.embed(torch.tensor(ids, device=self.reasoner.device)).double()
            spread = vectors.std(0, correction=0)
            self._moments[step, back] = vectors.mean(0).float(), spread.float()
        return self._moments[step, back]

    def put_in(self, change: _Change, example: int, own: Tensor) -> Tensor:
        """Embeddings ``(token, hidden)`` of the changed step, in place of its own."""
        step = self.known[change.source]
        n = len(own)
        if change.operation in DONORS:
            giver = int(self.donors(DONORS[change.operation])[example])
            span = self.chains.span(giver, step)
            # Aligned at the result; of a shorter step the first token stands for those before it.
            ids = [self.chains.tokens[giver][span[max(0, len(span) - n + place)]] for place in range(n)]
            return self.reasoner.embed(torch.tensor(ids, device=own.device))
        moments = [self.moments(step, n - 1 - place) for place in range(n)]
        mean, spread = (torch.stack(moment).to(own) for moment in zip(*moments, strict=True))
        if change.operation == "mean":
            return mean
        label = int(self.target.data["example"].values[self.chains.rows[example]])
        draw = np.random.default_rng([self.settings.seed, label, step, 59]).standard_normal(tuple(own.shape))
        return own + self.settings.strength * spread * torch.from_numpy(draw).to(own)


def _measure(steps: _Steps, changes: Sequence[_Change]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Measures ``(target, measure, example)`` of each change, the answer's last, and what they cost."""
    target, chains, reasoner = steps.target, steps.chains, steps.reasoner
    prompts = reasoner.prompts(target.data["question"].values[chains.rows])
    width = max(target.max_new_tokens, *(len(line) for line in chains.tokens))
    n_row = target.batch_rows or rows_that_fit(reasoner, reasoner.places.needed(max(map(len, prompts)), width))
    shape = len(steps.known) + 1, len(COMPARED), len(prompts)
    measured, done = {change.name: np.full(shape, np.nan) for change in changes}, 0
    with torch.inference_mode(), reasoner.session(hooks=False):
        for examples in by_length(prompts, n_row):
            with batch_errors(len(examples)):
                batch = _read(steps, examples, [prompts[example] for example in examples], width)
                for change in changes:
                    states, written = _walk(steps, batch, change, width)
                    measured[change.name][..., examples] = _compared(steps, batch, states, written)
                    done += len(examples)
                    target.report(done, len(prompts) * len(changes))
    alone = sum(len(prompt) + len(line) for prompt, line in zip(prompts, chains.tokens, strict=True))
    n_condition = len(changes) + 1
    return measured, {**steps.cost, "positions_one_by_one": alone * n_condition, "n_condition": n_condition}


def _read(steps: _Steps, examples: list[int], prompts: list[list[int]], width: int) -> _Batch:
    """Read questions and what was written, once."""
    reasoner = steps.reasoner
    laid, pad, n_before = reasoner.lay_out(prompts)
    tokens = np.full((len(examples), width), reasoner.eos_id)
    for row, example in enumerate(examples):
        tokens[row, : len(steps.chains.tokens[example])] = steps.chains.tokens[example]
    flight = Flight(reasoner, pad, n_before, KeyValues(n_before + 1 + len(reasoner.closing_ids) + width))
    state = flight.close(flight.feed_tokens(laid)[:, -1])
    start = flight.column
    later = flight.feed_tokens(torch.from_numpy(tokens).to(reasoner.device))
    spend(steps.cost, flight)
    states = [state, *later.unbind(1)]
    return _Batch(examples, flight.cache, pad, n_before, start, tokens, states)


def _walk(steps: _Steps, batch: _Batch, change: _Change, width: int) -> tuple[dict[int, Tensor], np.ndarray]:
    """States at every place that a change reaches, and the tokens ``(example, place)`` that stand there then.

    Places up to the end of the changed step, and those of held steps, are read; the others are written.
    """
    reasoner, device = steps.reasoner, batch.pad.device
    n_row = len(batch.examples)
    read = np.zeros((n_row, width), dtype=bool)
    spans = [steps.chains.span(example, steps.known[max(change.source, 0)]) for example in batch.examples]
    first = min(span.start for span in spans)
    embedded = reasoner.embed(torch.from_numpy(batch.tokens).to(device)).clone()
    for row, (example, span) in enumerate(zip(batch.examples, spans, strict=True)):
        read[row, : span.start if change.source < 0 else span.stop] = True
        for node in change.held:
            read[row, slice(*_ends(steps.chains.span(example, steps.known[node])))] = True
        if change.source >= 0:
            embedded[row, span.start : span.stop] = steps.put_in(change, example, embedded[row, span.start : span.stop])
    rows = torch.arange(n_row, device=device)
    cache = batch.cache.take(rows, batch.start + first, batch.cache.capacity)
    flight = Flight(reasoner, batch.pad, batch.n_before, cache)
    states, written = {first: batch.states[first]}, batch.tokens.copy()
    lengths = np.array([len(steps.chains.tokens[example]) for example in batch.examples])
    ended, place = np.zeros(n_row, dtype=bool), first
    while place < width and not (ended & (lengths <= place)).all():
        n = int((~read[:, place:].all(0)).argmax()) if not read[:, place:].all() else width - place
        if not n:
            chosen = reasoner.likeliest(reasoner.logits(states[place])).cpu().numpy()
            written[:, place] = np.where(read[:, place], batch.tokens[:, place], chosen)
            own = reasoner.embed(torch.from_numpy(written[:, place]).to(device))
            keep = torch.from_numpy(read[:, place]).to(device)[:, None]
            embedded[:, place] = torch.where(keep, embedded[:, place], own)
            ended |= ~read[:, place] & (written[:, place] == reasoner.eos_id)
            n = 1
        later = flight.feed(embedded[:, place : place + n])
        states |= {place + 1 + index: later[:, index] for index in range(n)}
        place += n
    spend(steps.cost, flight)
    return states, written


def _ends(span: range) -> tuple[int, int]:
    return span.start, span.stop


def _compared(steps: _Steps, batch: _Batch, states: dict[int, Tensor], written: np.ndarray) -> np.ndarray:
    """Measures ``(target, measure, example)`` of the states at each node, and of the answer."""
    reasoner, chains, scoring = steps.reasoner, steps.chains, steps.target.scoring
    source = torch.arange(len(batch.examples), device=batch.pad.device)
    same = np.array([0.0, 0.0, 0.0, 1.0, 0.0])
    width = written.shape[1]
    at_place = np.tile(same[:, None, None], (1, width, len(source)))  # (measure, place, example)
    for place, state in states.items():
        if place < width:
            compared = differences(reasoner, batch.states[place], state, source)[: len(COMPARED)]
            at_place[:, place] = compared.cpu().double().numpy()
    out = np.empty((len(steps.known) + 1, len(COMPARED), len(source)))
    for row, example in enumerate(batch.examples):
        for node, step in enumerate([*steps.known, -1]):
            part = at_place[:, slice(*_ends(chains.span(example, step))), row]
            out[node, :, row] = [part[0].sum(), part[1].sum(), part[2].max(), part[3].mean(), part[4].mean()]
        texts = (reasoner.decode(_until(line, reasoner.eos_id)) for line in (batch.tokens[row], written[row]))
        before, after = (scoring.answer(text) for text in texts)
        out[-1, 2, row] = not (scoring.match(before, after) or before is after is None)
    return out


def _until(line: np.ndarray, end: int) -> list[int]:
    """Tokens up to the end token."""
    tokens: list[int] = line.tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens
