"""Clean thoughts put into corrupted problems: which carry the answer over, at which layer, how many it takes."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.paired import with_pairs
from extract.reenter.patching.command import PatchSettings
from extract.reenter.patching.outcomes import GIVEN, with_n_that_wins, with_outcomes
from extract.reenter.patching.steps import first_steps, with_first_steps
from extract.reenter.sites import NOISE, refuse_layers, report_layers, self_controls, site_layers, where_of
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError

NAMED_SETS: dict[str, tuple[int, ...]] = {"first4": (0, 1, 2, 3), "middle": (1, 2, 3, 4), "endpoints": (0, 1, 4, 5)}
"""The reports' chosen subsets, as places among six thoughts."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs that count, and how many do not and why."""

    clean: np.ndarray
    """Rows ``(pair,)`` of the clean halves."""
    corrupted: np.ndarray
    counts: dict[str, int]


def pairs_of(target: Target) -> Pairs:
    """Pairs that count: the two answers differ, and the model gives both rightly, untouched."""
    data = target.data
    rows: dict[int, dict[str, int]] = {}
    if "pair" in data.variables:
        variants = data["variant"].values.astype(str)
        for index, (number, variant) in enumerate(zip(data["pair"].values.tolist(), variants, strict=True)):
            if number >= 0:
                rows.setdefault(number, {})[variant] = index
    whole = [pair for pair in rows.values() if pair.keys() == {"clean", "corrupted"}]
    if not whole:
        raise UsageError(f"{target.run} has no clean/corrupted pairs; extract a file of pairs")
    gold, correct = target.gold, np.asarray(data["correct"].values)
    differing = [pair for pair in whole if not target.scoring.match(gold[pair["clean"]], gold[pair["corrupted"]])]
    counted = [pair for pair in differing if correct[pair["clean"]] and correct[pair["corrupted"]]]
    counts = {
        "n_pair": len(rows),
        "n_half": len(rows) - len(whole),
        "n_same_answer": len(whole) - len(differing),
        "n_clean_wrong": sum(not correct[pair["clean"]] for pair in differing),
        "n_corrupted_wrong": sum(not correct[pair["corrupted"]] for pair in differing),
        "n_not_both_right": len(differing) - len(counted),
        "n_counted": len(counted),
    }
    if not counted:
        raise UsageError(
            f"none of {len(rows)} pairs of {target.run} counts: {counts['n_same_answer']} have the same answer twice,"
            f" {counts['n_not_both_right']} are not both answered rightly"
        )
    clean, corrupted = (np.array([pair[variant] for pair in counted]) for variant in ("clean", "corrupted"))
    return Pairs(clean, corrupted, counts)


def patch(target: Target, settings: PatchSettings | None = None) -> xr.Dataset:
    """Patch one half's thoughts into the other half of every pair that counts; by default into the corrupted one.

    With the preset ``reports`` the first N and the subsets are of the reports' steps, ``bot, ct0 .. ct4``, in place of
    the six thoughts.

    Parameters
    ----------
    target
        Run over pairs, and model.
    settings
        By default the fed vectors, and the output of every block alone and of all at once.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer`` (-1: all at once, or below all), ``positions`` (joined by +),
        ``n`` (how many), ``kind`` (``one``, ``first``, ``named``, ``subset``, ``carrying``) and ``control``; of
        sets by what they carry ``with_number``, the share of their thoughts that carry a number; examples are the
        halves that are changed. ``share(condition, outcome)`` with Wilson intervals ``share_low``, ``share_high``;
        ``logit_difference_mean`` (clean less corrupted) and ``recovery`` (0: as untouched, 1: as the other half itself)
        with bootstrap intervals; ``p``: exact McNemar of the giver's answer against the untouched run, ``p_holm``;
        ``n_that_wins(site, layer)``, ``_low``, ``_high`` and ``never_wins``: how many first thoughts it takes until the
        giver's answer is, and stays, more frequent than the half's own; outcomes and this by the step in which pairs
        first differ, and the ceiling (:func:`extract.reenter.patching.steps.with_first_steps`). Paired tests of the
        giver's answer, layer against layer along ``layer_pair`` and the first N against the first N + 1 thoughts along
        ``n_pair`` (:func:`extract.reenter.paired.with_pairs`). ``attrs`` count the pairs that do not count.

    Raises
    ------
    UsageError
        If the run has no pairs, or none that counts.
    """
    settings = settings or PatchSettings()
    target.need_thoughts("patch")
    refuse_layers(settings.sites, settings.layers)
    pairs = pairs_of(target)
    layers = settings.layers or (report_layers(target) if settings.preset else None)
    conditions = [
        condition
        for site in settings.sites
        for layer in site_layers(target, site, layers)
        for condition in _conditions(target, site, layer, pairs, settings)
    ]
    changed, giving = (pairs.corrupted, pairs.clean) if settings.into == "corrupted" else (pairs.clean, pairs.corrupted)
    gold = target.data["gold_answer"].values.astype(str)
    examples = target.data["example"].values
    answers = {"clean": gold[pairs.clean].tolist(), "corrupted": gold[pairs.corrupted].tolist()}
    swept = target.sweep(
        conditions, answers=answers, examples=examples[changed].tolist(), draws=settings.drawing(settings.seed)
    )
    # The giving halves untouched: how far the logit difference can go.
    ceiling = replace(target, folder=None).sweep([], answers=answers, examples=examples[giving].tolist())
    ends = ceiling["logit_difference"].values[0]
    result = with_outcomes(swept, answers, ends, target.scoring, settings.seed, into=settings.into)
    result = with_n_that_wins(result, conditions, settings.seed, into=settings.into)
    first_step = first_steps(target.data, pairs.clean, pairs.corrupted)
    result = with_first_steps(result, first_step, settings.seed, into=settings.into)
    given = result["outcome"].values == GIVEN[settings.into]
    result = with_pairs(result, given, over="layer", within=("site", "positions", "kind"), which="all")
    first = result["kind"].values == "first"
    result = with_pairs(result, given, over="n", within=("site", "layer"), which="next", only=first)
    return result.assign_attrs(**pairs.counts, legacy=int(settings.preset is not None), into=settings.into)


def _conditions(target: Target, site: str, layer: int, pairs: Pairs, settings: PatchSettings) -> Iterator[Condition]:
    """Conditions at one site and layer: single positions, the first N, subsets, what carries numbers, and controls."""
    thoughts = ["bot", *target.thoughts[:-1]] if settings.preset else target.thoughts
    in_stream = ["bot", *target.thoughts, "eot"] if site == "hidden_state" else target.thoughts
    place = where_of(target, site, layer)

    def condition(positions: Sequence[str], kind: str, control: str = "", **change: Any) -> Condition:
        change = {"operation": "replace", "donor": "twin", "seed": settings.seed, **change}
        joined = "+".join(positions)
        labels = {"positions": joined, "n": len(positions), "kind": kind, "control": control}
        return Condition(
            name=f"{control or 'given'} {kind} {joined} {site} {layer}",
            interventions=(Intervention(positions=tuple(positions), **change, **place),),
            labels={"site": site, "layer": layer, **labels},
        )

    for position in settings.positions or in_stream:
        yield condition([position], "one")
    for n in range(1, len(thoughts) + 1):
        yield condition(thoughts[:n], "first")
        yield condition(thoughts[:n], "first", "random donor", donor="other")
        yield condition(thoughts[:n], "first", NOISE, as_noise=True)
    for subset in _subsets(target, settings.subsets, len(thoughts)):
        kind = "named" if settings.subsets == "named" else "subset"
        yield condition([thoughts[index] for index in subset], kind)
    labels = {"positions": "+".join(thoughts), "n": len(thoughts), "kind": "first"}
    yield from self_controls(target, site, layer, thoughts, labels)
    changed = pairs.corrupted if settings.into == "corrupted" else pairs.clean
    yield from _number_sets(target, site, layer, changed, settings)


def _subsets(target: Target, subsets: str, n_thought: int) -> list[tuple[int, ...]]:
    """Sets of thoughts, as places among them, other than single ones and the first N."""
    if subsets == "named" and target.reasoner.n_latent == 6:
        return list(NAMED_SETS.values())
    if subsets != "all":
        return []
    return [
        chosen
        for size in range(2, n_thought)
        for chosen in itertools.combinations(range(n_thought), size)
        if chosen != tuple(range(size))
    ]


def _number_sets(
    target: Target, site: str, layer: int, rows: np.ndarray, settings: PatchSettings
) -> Iterator[Condition]:
    """Thoughts that carry a number in the changed half, the others, and as many at random."""
    numbers = target.number_thoughts(site)[rows]
    masks = {"numbers": numbers, "others": ~numbers}
    for draw in range(settings.draws):
        masks[f"random like numbers #{draw + 1}"] = target.random_like(numbers, settings.seed + draw)
    for name, mask in masks.items():
        control = "random positions" if name.startswith("random") else ""
        swap = Intervention(
            operation="replace", donor="twin", positions=tuple(target.thoughts), **where_of(target, site, layer)
        )
        labels: dict[str, Any] = {"site": site, "layer": layer, "positions": name, "n": -1, "kind": "carrying"}
        labels |= {"control": control, "with_number": float(numbers[mask].mean()) if mask.any() else np.nan}
        yield Condition(
            name=f"given {name} {site} {layer}", interventions=(swap,), labels=labels, where=target.where(mask)
        )
