"""Heads ablated: each alone, the top-ranked together, and as many at random."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.attention.command import AblateHeadsSettings
from extract.reenter.sites import NOISE
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError, filled, nearest
from schemas.registry import line
from store.results import preferred

Head = tuple[int, int]
"""Layer and head."""


def rank_heads(target: Target, by: str = "composite") -> list[Head]:
    """Heads by a score of the lake's analysis of heads, highest first; ties by layer and head."""
    if target.lake is None:
        raise UsageError("heads are ranked by a result of the lake; there is no lake here")
    results = preferred(result for result in target.lake.results("heads") if target.run in result.runs)
    if not results:
        command = filled(line("heads"), target.lake.location, [target.run])
        raise UsageError(f"heads of {target.run} were never scored; run {command} first")
    thoughts = [result for result in results if result.spec.get("convention", "thoughts") == "thoughts"]
    scores = target.lake.open_result((thoughts or results)[0].name)
    if "model" in scores.dims:
        scores = scores.sel(model=target.run)
    if by not in scores.data_vars or not {"layer", "head"} <= set(scores[by].dims):
        known = [str(name) for name, value in scores.data_vars.items() if set(value.dims) == {"layer", "head"}]
        raise UsageError(f"heads are not scored by {by!r}; they are by {', '.join(known)}{nearest(by, known)}")
    score = scores[by].transpose("layer", "head").values.astype(float)
    return sorted(all_heads(target), key=lambda head: (-np.nan_to_num(score[head], nan=-np.inf), *head))


def all_heads(target: Target) -> list[Head]:
    """Every head, by layer."""
    return list(itertools.product(range(target.reasoner.n_layer), range(target.reasoner.n_head)))


def ablate_heads(
    target: Target, settings: AblateHeadsSettings | None = None, *, ranking: Sequence[Head] | None = None
) -> xr.Dataset:
    """Ablate what heads put out: every head alone, the top-ranked ones together, and as many at random.

    Parameters
    ----------
    settings
        By default the best 1, 2, 5 and 10 by the composite score are set to zero from ``bot`` to ``eot``.
    ranking
        Heads as ``(layer, head)``, highest first; by default ranked by a result of the lake.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``group`` (``L2H3``, ``top 5``, ``random 5 #1``, ``all``), ``layer``, ``head``,
        ``n_head`` and ``control``; figures as :func:`extract.reenter.statistics.with_accuracy` gives them.
        ``attrs`` hold the ranking.

    Raises
    ------
    UsageError
        If heads were never scored, or not by this score.
    """
    settings = settings or AblateHeadsSettings()
    target.need_thoughts("heads")
    heads = all_heads(target)
    ranked = list(ranking) if ranking is not None else rank_heads(target, settings.by)

    def condition(group: str, chosen: Sequence[Head], control: str = "", **change: Any) -> Condition:
        return _condition(target, settings, group, chosen, control, change)

    conditions = [condition(head_name(head), [head]) for head in heads]
    rng = np.random.default_rng([settings.seed, 23])
    for count in sorted({min(count, len(heads)) for count in settings.counts}):
        best = ranked[:count]
        conditions.append(condition(f"top {count}", best))
        for draw in range(settings.draws):
            drawn = [heads[index] for index in rng.permutation(len(heads))[:count]]
            conditions.append(condition(f"random {count} #{draw + 1}", drawn, "random heads"))
        conditions.append(condition(f"top {count}", best, "random donor", operation="resample"))
        conditions.append(condition(f"top {count}", best, NOISE, as_noise=True))
    conditions.append(condition("all", heads))
    for donor in ("forward", "stored"):
        conditions.append(condition("all", heads, f"self ({donor})", operation="replace", donor=donor))
    result = target.accuracy(conditions, seed=settings.seed, draws=settings.drawing(settings.seed))
    return result.assign_attrs(ranking=" ".join(map(head_name, ranked)), by=settings.by)


def head_name(head: Head) -> str:
    """Name of a head, as ``L2H3``."""
    return f"L{head[0]}H{head[1]}"


def _condition(
    target: Target,
    settings: AblateHeadsSettings,
    group: str,
    chosen: Sequence[Head],
    control: str,
    change: dict[str, Any],
) -> Condition:
    """Heads changed together, one intervention for each layer."""
    positions = tuple(settings.positions or ["bot", *target.thoughts, "eot"])
    by_layer: dict[int, list[int]] = {}
    for layer, head in chosen:
        by_layer.setdefault(layer, []).append(head)
    change = {"operation": settings.operation, "seed": settings.seed, **change}
    interventions = tuple(
        Intervention(site="head_output", layers=(layer,), heads=tuple(sorted(heads)), positions=positions, **change)
        for layer, heads in sorted(by_layer.items())
    )
    layer, head = chosen[0] if len(chosen) == 1 else (-1, -1)
    return Condition(
        name=f"{control or settings.operation} {group}",
        interventions=interventions,
        labels={"group": group, "layer": layer, "head": head, "n_head": len(chosen), "control": control},
    )
