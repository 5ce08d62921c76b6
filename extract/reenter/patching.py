"""Clean thoughts put into corrupted problems: which carry the answer over, at which layer, how many it takes."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from extract.reenter.ablation import Site, self_controls, site_layers, where_of
from extract.reenter.statistics import first_that_wins, holm, mcnemar, mean_interval, wilson
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, Places, UsageError

OUTCOMES = ("clean_answer", "corrupted_answer", "other", "gibberish")
NAMED_SETS: dict[str, tuple[int, ...]] = {"first4": (0, 1, 2, 3), "middle": (1, 2, 3, 4), "endpoints": (0, 1, 4, 5)}
"""The reports' chosen subsets, as places among six thoughts."""
Subsets = Literal["none", "named", "all"]


def pairs_of(target: Target) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Rows of the clean and corrupted halves of the pairs that count, and how many do not and why.

    A pair counts if its two answers differ and the model gives both rightly, untouched.
    """
    data = target.data
    if "pair" not in data.variables:
        raise UsageError(f"{target.run} has no clean/corrupted pairs; extract a file of pairs")
    pair, variant = data["pair"].values, data["variant"].values.astype(str)
    rows: dict[int, dict[str, int]] = {}
    for index, (number, kind) in enumerate(zip(pair.tolist(), variant, strict=True)):
        if number >= 0:
            rows.setdefault(number, {})[kind] = index
    whole = [each for each in rows.values() if each.keys() == {"clean", "corrupted"}]
    if not whole:
        raise UsageError(f"{target.run} has no clean/corrupted pairs; extract a file of pairs")
    gold, correct = target.gold, np.asarray(data["correct"].values)
    same = [each for each in whole if target.scoring.match(gold[each["clean"]], gold[each["corrupted"]])]
    differing = [each for each in whole if each not in same]
    kept = [each for each in differing if correct[each["clean"]] and correct[each["corrupted"]]]
    counts = {
        "n_pair": len(rows),
        "n_half": len(rows) - len(whole),
        "n_same_answer": len(same),
        "n_clean_wrong": sum(not correct[each["clean"]] for each in differing),
        "n_corrupted_wrong": sum(not correct[each["corrupted"]] for each in differing),
        "n_not_both_right": len(differing) - len(kept),
        "n_counted": len(kept),
    }
    if not kept:
        raise UsageError(
            f"none of {len(rows)} pairs of {target.run} counts: {counts['n_same_answer']} have the same answer twice,"
            f" {counts['n_not_both_right']} are not both answered rightly"
        )
    return np.array([each["clean"] for each in kept]), np.array([each["corrupted"] for each in kept]), counts


def patch(
    target: Target,
    *,
    sites: Sequence[Site] = ("hidden_state", "latent_embedding"),
    layers: Sequence[int] | None = None,
    subsets: Subsets = "named",
    every_position: Sequence[str] | None = None,
    legacy: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Patch the clean half's thoughts into the corrupted half of every pair that counts.

    Parameters
    ----------
    target
        Run over pairs, and model.
    sites, layers
        Where; by default the fed vectors, and the output of every block alone and of all at once.
    subsets
        Besides each position alone and the first N thoughts: none, the reports' three, or all of them.
    every_position
        Positions patched alone; ``bot``, the thoughts and ``eot`` by default (thoughts only at ``latent_embedding``).
    legacy
        The reports' steps, ``bot, ct0 .. ct4``, in place of the six thoughts, for first N and subsets.
    seed
        Of the random donors and positions.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer`` (-1: all at once, or below all), ``positions`` (joined by +),
        ``n`` (how many), ``kind`` (``one``, ``first``, ``named``, ``subset``) and ``control``; examples are the
        corrupted halves that count. ``share(condition, outcome)`` with Wilson intervals ``share_low``, ``share_high``;
        ``logit_difference_mean`` (clean less corrupted) and ``recovery`` (0: as untouched, 1: as the clean half itself)
        with bootstrap intervals; ``p``: exact McNemar of the clean answer against the untouched run, ``p_holm``;
        ``n_that_wins(site, layer)``, ``_low``, ``_high`` and ``never_wins``: how many first thoughts it takes until the
        clean answer is, and stays, more frequent than the corrupted one. ``attrs`` count the pairs that do not count.
    """
    clean, corrupted, counts = pairs_of(target)
    n_latent = target.reasoner.n_latent
    thoughts = ["bot", *target.thoughts[:-1]] if legacy else target.thoughts
    if legacy and "latent_embedding" in sites:
        sites = ("hidden_state",)
    conditions: list[Condition] = []

    def add(site: str, layer: int, positions: Sequence[str], kind: str, control: str = "", **change: Any) -> None:
        change = {"operation": "replace", "donor": "twin", "seed": seed, **change}
        each = Intervention(positions=tuple(positions), **change, **where_of(target, site, layer))
        joined = "+".join(positions)
        labels = {
            "site": site,
            "layer": layer,
            "positions": joined,
            "n": len(positions),
            "kind": kind,
            "control": control,
        }
        name = f"{control or 'clean'} {kind} {joined} {site} {layer}"
        conditions.append(Condition(name=name, interventions=(each,), labels=labels))

    for site in sites:
        alone = list(
            every_position or (["bot", *target.thoughts, "eot"] if site == "hidden_state" else target.thoughts)
        )
        for layer in site_layers(target, site, layers):
            for position in alone:
                add(site, layer, [position], "one")
            for n in range(1, len(thoughts) + 1):
                add(site, layer, thoughts[:n], "first")
                add(site, layer, thoughts[:n], "first", "random donor", donor="other")
                add(site, layer, thoughts[:n], "first", "noise of the same norm", as_noise=True)
            sets: dict[str, tuple[int, ...]] = {}
            if subsets == "named" and n_latent == 6:
                sets = dict(NAMED_SETS)
            elif subsets == "all":
                every = range(len(thoughts))
                sets = {
                    str(chosen): chosen
                    for size in range(2, len(thoughts))
                    for chosen in itertools.combinations(every, size)
                    if chosen != tuple(range(size))
                }
            for chosen in sets.values():
                add(site, layer, [thoughts[index] for index in chosen], "named" if subsets == "named" else "subset")
            for control in self_controls(target, site, layer, thoughts):
                labels = {
                    "site": site, "layer": layer, "positions": "+".join(thoughts), "n": len(thoughts), "kind": "first",
                    "control": control.labels["control"],
                }  # fmt: skip
                conditions.append(Condition(name=control.name, interventions=control.interventions, labels=labels))
            _add_number_sets(target, conditions, site, layer, corrupted, seed)

    gold = [str(text) for text in target.data["gold_answer"].values]
    examples = target.data["example"].values
    answers = {"clean": [gold[row] for row in clean], "corrupted": [gold[row] for row in corrupted]}
    found = target.sweep(conditions, answers=answers, examples=examples[corrupted].tolist())
    # The clean halves untouched: how far the logit difference can go.
    folder, target.folder = target.folder, None
    ceiling = target.sweep([], answers=answers, examples=examples[clean].tolist())
    target.folder = folder
    out = _with_outcomes(target, found, answers, ceiling["logit_difference"].values[0], seed)
    out = out.assign_coords(problem=("example", target.data["problem"].values[corrupted]))
    out = _with_n_that_wins(out, conditions, seed)
    return out.assign_attrs(**counts, legacy=int(legacy))


def _add_number_sets(
    target: Target, conditions: list[Condition], site: str, layer: int, rows: np.ndarray, seed: int
) -> None:
    """Thoughts that carry a number (or a word) in the corrupted half, the others, and as many at random."""
    numbers = target.number_thoughts(site)[rows]
    masks = {"numbers": numbers, "others": ~numbers, "random like numbers": target.random_like(numbers, seed)}
    for name, mask in masks.items():
        control = "random positions" if name.startswith("random") else ""
        each = Intervention(
            operation="replace", donor="twin", positions=tuple(target.thoughts), **where_of(target, site, layer)
        )
        labels = {"site": site, "layer": layer, "positions": name, "n": -1, "kind": "carrying", "control": control}
        where = target.where(mask)
        conditions.append(
            Condition(name=f"clean {name} {site} {layer}", interventions=(each,), labels=labels, where=where)
        )


def _with_outcomes(
    target: Target, found: xr.Dataset, answers: dict[str, list[str]], ceiling: np.ndarray, seed: int
) -> xr.Dataset:
    text, scoring = found["generated_text"].values, target.scoring
    outcome = np.empty(text.shape, dtype=object)
    for index in range(text.shape[1]):
        clean, corrupted = (scoring.gold(answers[side][index]) for side in ("clean", "corrupted"))
        for row in range(text.shape[0]):
            outcome[row, index] = scoring.outcome(str(text[row, index]), clean=clean, corrupted=corrupted)
    count = np.stack([(outcome == name).sum(1) for name in OUTCOMES], axis=1)
    n = text.shape[1]
    low, high = wilson(count, np.array(n))
    is_clean = outcome == "clean_answer"
    p = np.array([mcnemar(is_clean[0], line) for line in is_clean])
    control = found["control"].values.astype(str)
    tested = np.array([not each for each in control])
    difference = found["logit_difference"].values
    floor = difference[0]
    gap = np.nanmean(ceiling) - np.nanmean(floor)
    mean, mean_low, mean_high = mean_interval(difference, seed)
    gain, gain_low, gain_high = mean_interval(difference - floor[None, :], seed)
    kl, kl_low, kl_high = mean_interval(found["kl"].values, seed)
    line = "condition"
    out = found.assign(
        outcome=(("condition", "example"), outcome),
        share=(("condition", "outcome_kind"), count / n),
        share_low=(("condition", "outcome_kind"), low),
        share_high=(("condition", "outcome_kind"), high),
        logit_difference_mean=(line, mean),
        logit_difference_low=(line, mean_low),
        logit_difference_high=(line, mean_high),
        recovery=(line, gain / gap),
        recovery_low=(line, gain_low / gap),
        recovery_high=(line, gain_high / gap),
        kl_mean=(line, kl),
        kl_low=(line, kl_low),
        kl_high=(line, kl_high),
        p=(line, p),
        p_holm=(line, holm(p, tested)),
    )
    out = out.assign_coords(outcome_kind=np.array(OUTCOMES, dtype=object))
    return out.assign_attrs(clean_logit_difference=float(np.nanmean(ceiling)))


def _with_n_that_wins(out: xr.Dataset, conditions: Sequence[Condition], seed: int) -> xr.Dataset:
    """How many first thoughts it takes, by site and layer."""
    outcome = out["outcome"].values
    series: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, condition in enumerate(conditions):
        labels = condition.labels
        if labels["kind"] == "first" and not labels["control"]:
            series.setdefault((labels["site"], labels["layer"]), []).append((labels["n"], index + 1))
    places = list(series)
    found = []
    for place in places:
        counts, rows = zip(*sorted(series[place]), strict=True)
        lines = outcome[list(rows)]
        found.append(first_that_wins(lines == "clean_answer", lines == "corrupted_answer", counts, seed))
    columns = {"n_that_wins": "n", "n_that_wins_low": "n_low", "n_that_wins_high": "n_high", "never_wins": "never"}
    return out.assign(
        {name: ("series", np.array([each[key] for each in found])) for name, key in columns.items()}
    ).assign_coords(
        series_site=("series", np.array([site for site, _ in places], dtype=object)),
        series_layer=("series", np.array([layer for _, layer in places])),
    )


def swap_effects(out: xr.Dataset) -> xr.DataArray:
    """Share of clean answers after patching one position, ``(site, layer, position)`` in order of the positions."""
    one = out.where((out["kind"] == "one") & (out["control"] == ""), drop=True)
    frame = one["share"].sel(outcome_kind="clean_answer").to_dataframe().reset_index()
    array: xr.DataArray = (
        frame.set_index(["site", "layer", "positions"])["share"].to_xarray().rename(positions="position")
    )
    order = Places(999, 2)  # of any model
    return array.sortby(xr.DataArray([order.offset(str(p)) for p in array["position"].values], dims="position"))
