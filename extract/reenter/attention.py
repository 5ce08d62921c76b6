"""Heads and edges: top-ranked heads against random ones, the hub cut off or forced, thoughts cut from each other."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import COMMANDS, Intervention, UsageError, filled, nearest
from store.read import preferred

MULTI = ((0, 1), (0, 2), (0, 4), (1, 2), (2, 3), (0, 1, 2))
"""Sets of thoughts that the reports cut together."""


def rank_heads(target: Target, by: str = "composite") -> list[tuple[int, int]]:
    """Heads ``(layer, head)`` by a score of the lake's analysis of heads, highest first; ties by layer and head."""
    if target.lake is None:
        raise UsageError("heads are ranked by a result of the lake; there is no lake here")
    results = preferred(each for each in target.lake.results("heads") if target.run in each.runs)
    if not results:
        command = filled(COMMANDS["heads"], target.lake.location, [target.run])
        raise UsageError(f"heads of {target.run} were never scored; run {command} first")
    thoughts = [each for each in results if each.spec.get("convention", "thoughts") == "thoughts"]
    scores = target.lake.open_result((thoughts or results)[0].name)
    if "model" in scores.dims:
        scores = scores.sel(model=target.run)
    if by not in scores.data_vars or not {"layer", "head"} <= set(scores[by].dims):
        known = [str(name) for name, value in scores.data_vars.items() if set(value.dims) == {"layer", "head"}]
        raise UsageError(f"heads are not scored by {by!r}; they are by {', '.join(known)}{nearest(by, known)}")
    value = scores[by].transpose("layer", "head").values.astype(float)
    cells = itertools.product(range(target.reasoner.n_layer), range(target.reasoner.n_head))
    return sorted(cells, key=lambda cell: (-np.nan_to_num(value[cell], nan=-np.inf), *cell))


def ablate_heads(
    target: Target,
    *,
    by: str = "composite",
    ranking: Sequence[tuple[int, int]] | None = None,
    counts: Sequence[int] = (1, 2, 5, 10),
    operation: str = "zero",
    positions: Sequence[str] | None = None,
    each_alone: bool = True,
    n_random: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """Ablate what heads put out: every head alone, the top-ranked ones together, and as many at random.

    Parameters
    ----------
    target
        Run and model.
    by
        Score of ``lake analyze heads`` that ranks them.
    ranking
        Ranking given outright.
    counts
        How many of the top-ranked to ablate together.
    operation
        ``zero``, ``mean`` or ``resample``.
    positions
        Where; ``bot``, the thoughts and ``eot`` by default.
    each_alone
        Also every head by itself.
    n_random
        Random sets of each size.
    seed
        Of the random sets.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``group`` (``L2H3``, ``top 5``, ``random 5 #1``, ``all``), ``layer``, ``head``,
        ``n_head`` and ``control``; figures as :func:`extract.reenter.statistics.with_accuracy` gives them.
        ``attrs`` hold the ranking.
    """
    reasoner = target.reasoner
    places = tuple(positions or ["bot", *target.thoughts, "eot"])
    cells = list(itertools.product(range(reasoner.n_layer), range(reasoner.n_head)))
    ranked = list(ranking) if ranking is not None else rank_heads(target, by)
    counts = sorted({min(count, len(cells)) for count in counts})
    conditions: list[Condition] = []

    def add(group: str, chosen: Sequence[tuple[int, int]], control: str = "", **change: Any) -> None:
        by_layer: dict[int, list[int]] = {}
        for layer, head in chosen:
            by_layer.setdefault(layer, []).append(head)
        change = {"operation": operation, "seed": seed, **change}
        each = tuple(
            Intervention(site="head_output", layers=(layer,), heads=tuple(sorted(heads)), positions=places, **change)
            for layer, heads in sorted(by_layer.items())
        )
        alone = len(chosen) == 1
        labels = {
            "group": group, "layer": chosen[0][0] if alone else -1, "head": chosen[0][1] if alone else -1,
            "n_head": len(chosen), "control": control,
        }  # fmt: skip
        conditions.append(Condition(name=f"{control or operation} {group}", interventions=each, labels=labels))

    if each_alone:
        for layer, head in cells:
            add(f"L{layer}H{head}", [(layer, head)])
    rng = np.random.default_rng([seed, 23])
    for count in counts:
        add(f"top {count}", ranked[:count])
        for draw in range(n_random):
            drawn = [cells[index] for index in rng.permutation(len(cells))[:count]]
            add(f"random {count} #{draw + 1}", drawn, "random heads")
        add(f"top {count}", ranked[:count], "random donor", operation="resample")
        add(f"top {count}", ranked[:count], "noise of the same norm", as_noise=True)
    add("all", cells)
    add("all", cells, "self (forward)", operation="replace", donor="forward")
    add("all", cells, "self (stored)", operation="replace", donor="stored")
    out = with_accuracy(target.sweep(conditions), target.gold, strata=target.strata, seed=seed)
    return out.assign_attrs(ranking=" ".join(f"L{layer}H{head}" for layer, head in ranked), by=by)


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


def cut_edges(
    target: Target,
    *,
    hub: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] = (),
    seed: int = 0,
) -> xr.Dataset:
    """Cut attention edges (the rest renormalised) or force them.

    Parameters
    ----------
    target
        Run and model.
    hub
        Position cut off or forced; that of :func:`find_hub` by default.
    layers, heads
        Where; everywhere by default.
    seed
        Of the random edges.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``group`` and ``control``: ``hub cut``, ``hub forced`` (every later thought sees
        nothing else), ``cut ctk`` for every position, ``sequence cut`` (no thought sees the one before), ``skip cut``
        (itself and the one before are all it sees of the thoughts), ``question cut from thoughts`` and ``from answer``,
        ``thoughts cut from answer``, sets ``cut ct0+ct1`` of thoughts; controls: edges scaled by 1, as many random
        edges, each row replaced by itself. Figures as :func:`extract.reenter.statistics.with_accuracy` gives them;
        ``additive_drop(condition)`` is what the single cuts of a set's members add up to.
    """
    chain = ["bot", *target.thoughts, "eot"]
    thoughts = target.thoughts
    hub = hub or find_hub(target)
    if hub not in chain[:-1]:
        raise UsageError(f"hub {hub!r} is not one of {', '.join(chain[:-1])}{nearest(hub, chain[:-1])}")
    longest = max(len(target.reasoner.encode(str(text))) - 1 for text in target.data["question"].values)
    question = tuple(f"q-{distance}" for distance in range(longest, 0, -1))
    place = {"site": "attention", "layers": tuple(target.layers if layers is None else layers), "heads": tuple(heads)}
    conditions: list[Condition] = []
    answer = ("eot", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7")

    def later(key: str) -> list[str]:
        return [*chain[chain.index(key) + 1 :], *answer[1:]]

    def add(
        group: str, edges: Mapping[str, tuple[str, ...]], control: str = "", operation: str = "zero", **more: Any
    ) -> None:
        """Edges by query; queries of the same keys go together."""
        by_keys: dict[tuple[str, ...], list[str]] = {}
        for query, keys in edges.items():
            if keys:
                by_keys.setdefault(keys, []).append(query)
        each = tuple(
            Intervention(operation=operation, positions=tuple(queries), keys=keys, seed=seed, **more, **place)  # type: ignore[arg-type]
            for keys, queries in by_keys.items()
        )
        labels = {"group": group, "control": control}
        conditions.append(Condition(name=f"{control} {group}".strip(), interventions=each, labels=labels))

    hub_edges = {query: (hub,) for query in later(hub)}
    add("hub cut", hub_edges)
    add("hub forced", {query: (hub,) for query in chain[chain.index(hub) + 1 :]}, operation="force")
    for key in chain[:-1]:
        add(f"cut {key}", {query: (key,) for query in later(key)})
    add("sequence cut", {thought: (before,) for before, thought in itertools.pairwise(["bot", *thoughts])})
    add("skip cut", {thoughts[i]: tuple(["bot", *thoughts][:i]) for i in range(1, len(thoughts))})
    add("question cut from thoughts", dict.fromkeys(thoughts, question))
    add("question cut from answer", dict.fromkeys(answer, question))
    add("thoughts cut from answer", dict.fromkeys(answer, tuple(thoughts)))
    for chosen in MULTI:
        if max(chosen) < len(thoughts):
            names = tuple(thoughts[index] for index in chosen)
            edges: dict[str, tuple[str, ...]] = {}
            for query in [*chain[1:], *answer[1:]]:
                keys = tuple(key for key in names if query not in chain or chain.index(key) < chain.index(query))
                edges[query] = keys
            add(f"cut {'+'.join(names)}", edges)
    rng = np.random.default_rng([seed, 29])
    drawn = {query: (chain[rng.integers(0, chain.index(query))],) for query in chain[1:] if query in hub_edges}
    add("random edges", drawn, "random edges")
    add("hub cut", hub_edges, "scaled by 1", operation="scale", strength=1.0)
    own = {query: tuple(chain[: chain.index(query) + 1]) for query in chain}
    add("self", own, "self (forward)", operation="replace", donor="forward")
    add("self", own, "self (stored)", operation="replace", donor="stored")
    out = with_accuracy(target.sweep(conditions), target.gold, strata=target.strata, seed=seed)
    drop = dict(zip(out["group"].values.tolist(), out["drop"].sel(stratum="all").values.tolist(), strict=True))
    additive = [
        sum(drop[f"cut {name}"] for name in group.removeprefix("cut ").split("+"))
        if group.startswith("cut ")
        else np.nan
        for group in out["group"].values.astype(str)
    ]
    return out.assign(additive_drop=("condition", np.array(additive, dtype=float))).assign_attrs(hub=hub)
