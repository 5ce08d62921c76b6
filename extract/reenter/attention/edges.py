"""Edges of attention: the hub cut off or forced, thoughts cut from each other, from the question and the answer."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from extract.model.reasoner import Reasoner
from extract.reenter.attention.command import CutEdgesSettings
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError, nearest

MULTI = ((0, 1), (0, 2), (0, 4), (1, 2), (2, 3), (0, 1, 2))
"""Sets of thoughts that the reports cut together."""
Edges = Mapping[str, tuple[str, ...]]
"""Keys by query."""


def find_hub(target: Target) -> str:
    """Thought or ``bot`` that the thoughts after it attend to most, beyond what even attention would give it.

    Of the mean over examples, layers and heads; each later row counts by its share of what it pays to ``bot`` and the
    thoughts.
    """
    names = ["bot", *target.thoughts]
    block = target.data["attention"].sel(position=names, key_position=names)
    matrix = block.mean(["example", "layer", "head"], dtype=np.float64).transpose("position", "key_position").values
    size = len(names)
    share = matrix / matrix.sum(1, keepdims=True)
    excess = [np.mean([share[i, j] - 1 / (i + 1) for i in range(j + 1, size)]) for j in range(size - 1)]
    return names[int(np.argmax(excess))]


def cut_edges(target: Target, settings: CutEdgesSettings | None = None) -> xr.Dataset:
    """Cut attention edges (the rest renormalised) or force them.

    Parameters
    ----------
    settings
        By default everywhere, with the hub of :func:`find_hub`.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``group`` and ``control``: ``hub cut``, ``hub forced`` (every later thought sees
        nothing else), the same at every position (``cut ctk``, ``force ctk``), ``sequence cut`` (no thought sees the
        one before), ``skip cut`` (itself and the one before are all it sees of the thoughts), ``question cut from
        thoughts`` and ``from answer``, ``thoughts cut from answer``, sets ``cut ct0+ct1`` of thoughts, ``attention of
        thoughts`` and ``of answer`` to all they see ``shuffled`` or ``even``; controls: edges scaled by 1, as many
        random edges, each row replaced by itself. Figures as :func:`extract.reenter.statistics.with_accuracy` gives
        them, also for the problems answered rightly (``stratum`` ``right``) and wrongly (``wrong``) before;
        ``additive_drop(condition)`` is what the single cuts of a set's members add up to; ``with_prefix(condition)``
        the share of answers that begin with the model's answer prefix, after which ``answer_logprob`` is measured, and
        ``accuracy_with_prefix(condition)`` how many of these are right.

    Raises
    ------
    UsageError
        If the hub, a layer or a head is not there.
    """
    settings = settings or CutEdgesSettings()
    target.need_thoughts("edges")
    chain = ["bot", *target.thoughts, "eot"]
    hub = find_hub(target) if settings.hub is None else settings.hub
    if hub not in chain[:-1]:
        raise UsageError(f"hub {hub!r} is not one of {', '.join(chain[:-1])}{nearest(hub, chain[:-1])}")
    answer = target.answer_positions
    cuts = [
        *_hub_cuts(chain, hub, answer),
        *((f"cut {key}", _from_later(chain, answer, key), {}) for key in chain[:-1]),
        *((f"force {key}", _all_on(chain, key), {"operation": "force"}) for key in chain[:-1]),
        *_chain_cuts(target, chain, answer),
        *_disrupted(target, chain, answer),
    ]
    conditions = [_condition(target, settings, group, edges, "", change) for group, edges, change in cuts]
    for control, group, edges, change in _controls(chain, hub, answer, settings.seed):
        conditions.append(_condition(target, settings, group, edges, control, change))
    draws = settings.drawing(settings.seed)
    result = target.accuracy(conditions, seed=settings.seed, outcomes=True, draws=draws)
    groups, drops = result["group"].values.tolist(), result["drop"].sel(stratum="all").values.tolist()
    drop = dict(zip(groups, drops, strict=True))
    additive = [
        sum(drop[f"cut {name}"] for name in group.removeprefix("cut ").split("+"))
        if group.startswith("cut ")
        else np.nan
        for group in groups
    ]
    result["additive_drop"] = "condition", np.array(additive, dtype=float)
    return _with_prefix(result, target.reasoner).assign_attrs(hub=hub)


def _with_prefix(result: xr.Dataset, reasoner: Reasoner) -> xr.Dataset:
    """Add how many answers begin as the model was trained to begin them, and how many of these are right."""
    prefix = reasoner.decode(reasoner.text_tokens(reasoner.answer_prefix))
    begins = np.char.startswith(result["generated_text"].values.astype(str), prefix)  # (condition, example)
    n_right = (begins & result["correct"].values).sum(1)
    with np.errstate(invalid="ignore"):
        shares = {"with_prefix": begins.mean(1), "accuracy_with_prefix": n_right / begins.sum(1)}
    return result.assign({name: ("condition", share) for name, share in shares.items()})


def _from_later(chain: list[str], answer: tuple[str, ...], *keys: str) -> Edges:
    """Edges to some positions from everything after them, every token of the answer included."""
    edges = {}
    for query in [*chain[1:], *answer]:
        seen = [key for key in keys if query not in chain or chain.index(key) < chain.index(query)]
        edges[query] = tuple(seen)
    return edges


def _hub_cuts(chain: list[str], hub: str, answer: tuple[str, ...]) -> Iterator[tuple[str, Edges, dict[str, Any]]]:
    """The hub cut off, and made all that is seen."""
    yield "hub cut", _from_later(chain, answer, hub), {}
    yield "hub forced", _all_on(chain, hub), {"operation": "force"}


def _all_on(chain: list[str], key: str) -> Edges:
    """Edges to one position from the thoughts after it and what closes them."""
    return dict.fromkeys(chain[chain.index(key) + 1 :], (key,))


def _question(target: Target) -> tuple[str, ...]:
    """Positions of the longest question."""
    longest = max(map(len, target.reasoner.prompts(target.data["question"].values))) - 1
    return tuple(f"q-{distance}" for distance in range(longest, 0, -1))


def _disrupted(
    target: Target, chain: list[str], answer: tuple[str, ...]
) -> Iterator[tuple[str, Edges, dict[str, Any]]]:
    """Attention of the thoughts, and of what follows them, dealt anew over all they see."""
    question = _question(target)
    seen = {query: (*question, *chain[: index + 1]) for index, query in enumerate(chain)}
    seen |= {query: (*question, *chain, *answer[: index + 1]) for index, query in enumerate(answer)}
    for name, queries in (("thoughts", target.thoughts), ("answer", ("eot", *answer))):
        edges = {query: seen[query] for query in queries}
        yield f"attention of {name} shuffled", edges, {"operation": "shuffle"}
        yield f"attention of {name} even", edges, {"operation": "even"}


def _chain_cuts(
    target: Target, chain: list[str], answer: tuple[str, ...]
) -> Iterator[tuple[str, Edges, dict[str, Any]]]:
    """Thoughts cut from each other, from the question and from the answer, and sets of them cut off."""
    thoughts, before, after = target.thoughts, chain[:-1], ("eot", *answer)
    question = _question(target)
    yield "sequence cut", {thought: (previous,) for previous, thought in itertools.pairwise(before)}, {}
    yield "skip cut", {thought: tuple(before[:index]) for index, thought in enumerate(thoughts)}, {}
    yield "question cut from thoughts", dict.fromkeys(thoughts, question), {}
    yield "question cut from answer", dict.fromkeys(after, question), {}
    yield "thoughts cut from answer", dict.fromkeys(after, tuple(thoughts)), {}
    for chosen in MULTI:
        if max(chosen) < len(thoughts):
            names = [thoughts[index] for index in chosen]
            yield f"cut {'+'.join(names)}", _from_later(chain, answer, *names), {}


def _controls(
    chain: list[str], hub: str, answer: tuple[str, ...], seed: int
) -> Iterator[tuple[str, str, Edges, dict[str, Any]]]:
    """Control, group, edges and change: as many random edges, edges scaled by 1, each row replaced by itself."""
    after_hub = _from_later(chain, answer, hub)
    rng = np.random.default_rng([seed, 29])
    drawn = {query: (chain[rng.integers(0, chain.index(query))],) for query in chain[1:] if after_hub[query]}
    yield "random edges", "random edges", drawn, {}
    yield "scaled by 1", "hub cut", after_hub, {"operation": "scale", "strength": 1.0}
    own = {query: tuple(chain[: index + 1]) for index, query in enumerate(chain)}
    for donor in ("forward", "stored"):
        yield f"self ({donor})", "self", own, {"operation": "replace", "donor": donor}


def _condition(
    target: Target, settings: CutEdgesSettings, group: str, edges: Edges, control: str, change: dict[str, Any]
) -> Condition:
    """Edges changed together; queries of the same keys are one intervention."""
    by_keys: dict[tuple[str, ...], list[str]] = {}
    for query, keys in edges.items():
        if keys:
            by_keys.setdefault(keys, []).append(query)
    layers = tuple(settings.layers or target.layers)
    change = {"operation": "zero", "seed": settings.seed, **change}
    interventions = tuple(
        Intervention(
            site="attention", layers=layers, heads=settings.heads or (), positions=tuple(queries), keys=keys, **change
        )
        for keys, queries in by_keys.items()
    )
    return Condition(
        name=f"{control} {group}".strip(),
        interventions=interventions,
        labels={"group": group, "control": control},
    )
