"""Thoughts and heads of one model put into another, as they are and through fitted maps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import xarray as xr

from extract.reenter.draws import Draws
from extract.reenter.sites import alone_and_together
from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition
from extract.reenter.target import Target, open_target
from extract.reenter.transplant.command import TransplantSettings
from extract.reenter.transplant.maps import Mapped, fit_map
from extract.reenter.values import StoredValues
from schemas import Intervention, UsageError, check_positions, nearest
from schemas.problem_sums import problem_of
from schemas.statistics import half_of_problems

LEAST_PROBLEMS = 10
"""Problems that both runs must have, half of them to fit on."""
KINDS = {
    "mapped": "", "as they are": "", "of another problem, mapped": "other problem", "the map alone": "map alone",
    "random map": "random map",
}  # fmt: skip
"""What goes in, and which control it is."""


def transplant(target: Target, settings: TransplantSettings, source: Target | None = None) -> xr.Dataset:
    """Replace thoughts, or what heads put out, by another model's for the same problems.

    Problems are matched by their questions and halved: maps are fitted on one half, everything is measured on the
    other. Where the widths agree the values also go in as they are.

    Parameters
    ----------
    source
        The run that gives the values and its model, where they are at hand; else the settings say which.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``group`` (``ct1``, ``all``, ``L0H1=L1H2``), ``values`` (``mapped``, ``as they
        are``) and ``control`` (``other problem``: mapped from another problem; ``map alone``: what the map gives of a
        mean; ``random map``: fitted on shuffled pairs; ``self``: the model's own); figures as
        :func:`extract.reenter.statistics.with_accuracy` gives them; ``r2(place)``, of each map on problems it was not
        fitted on.

    Raises
    ------
    UsageError
        If the runs share too few problems, or a thought or head is not there.
    """
    if source is None:
        if target.lake is None:
            raise UsageError("a transplant needs the lake of the other run")
        source = (target.opened or partial(open_target, target.lake))(settings.source)
    pairs = settings.pairs()
    mine, theirs = _matched(target, source)
    fitted = half_of_problems(problem_of(target.data)[mine], settings.seed, 47)  # maps are fitted on these
    examples = target.data["example"].values[mine][~fitted].tolist()
    rng = np.random.default_rng([settings.seed, 43])
    thoughts = _thought_maps(target, source, settings, mine, theirs, fitted, rng)
    draws = settings.drawing(settings.seed)
    parts = [_thoughts(target, thoughts, mine, fitted, examples, rng, draws)]
    heads = {}
    if pairs:
        heads = _head_maps(target, source, pairs, mine, theirs, fitted, rng)
        parts += list(_heads(target, heads, pairs, mine, fitted, examples, rng, draws))
    swept = xr.concat([parts[0], *(part.isel(condition=slice(1, None)) for part in parts[1:])], dim="condition")
    swept.attrs = dict(parts[0].attrs)
    for name in ("positions_fed", "model_calls", "positions_one_by_one", "n_condition"):
        swept.attrs[name] = sum(int(part.attrs[name]) for part in parts)
    rows = mine[~fitted]
    strata = None if target.strata is None else target.strata[rows]
    out = with_accuracy(swept, target.gold[rows], strata=strata, seed=settings.seed)
    maps = {name: mapped for name, mapped in thoughts.items()} | {
        f"{_name(pair)} {position}": mapped for pair, places in heads.items() for position, mapped in places.items()
    }
    out = out.assign(r2=("place", [mapped.r2 for mapped in maps.values()]))
    out = out.assign_coords(place=np.array(list(maps), dtype=object))
    return out.assign_attrs(source=settings.source, n_fitted=int(fitted.sum()), n_held_out=int((~fitted).sum()))


def _matched(target: Target, source: Target) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both runs whose questions are the same."""
    place = {str(text): row for row, text in enumerate(source.data["question"].values)}
    mine = [row for row, text in enumerate(target.data["question"].values) if str(text) in place]
    if len(mine) < LEAST_PROBLEMS:
        raise UsageError(
            f"{target.run} and {source.run} have {len(mine)} questions in common; a transplant needs at least"
            f" {LEAST_PROBLEMS}, half of them to fit a map on"
        )
    theirs = [place[str(target.data["question"].values[row])] for row in mine]
    return np.array(mine), np.array(theirs)


def _thought_maps(
    target: Target, source: Target, settings: TransplantSettings, mine: np.ndarray, theirs: np.ndarray,
    fitted: np.ndarray, rng: np.random.Generator,
) -> dict[str, Mapped]:  # fmt: skip
    """A map for each thought."""
    shared = [thought for thought in target.thoughts if thought in source.thoughts]
    if not shared:
        raise UsageError("the two runs share no thought; a transplant is between models that both think")
    positions = list(settings.positions or shared)
    check_positions(positions, target.reasoner.places)
    if strangers := [position for position in positions if position not in shared]:
        raise UsageError(
            f"{strangers[0]} is no thought of both models; they share {', '.join(shared)}"
            + nearest(strangers[0], shared)
        )
    return {
        position: fit_map(
            source.values.column("latent_embedding", -1, position)[theirs],
            target.values.column("latent_embedding", -1, position)[mine],
            fitted,
            rng,
        )
        for position in positions
    }


def _variants(mapped: Mapped, fitted: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values ``(example, width)`` that go in, by kind."""
    order = rng.permutation(np.flatnonzero(~fitted))
    other = np.arange(len(fitted))
    other[order] = np.roll(order, 1)
    variants = {
        "mapped": mapped.same, "of another problem, mapped": mapped.same[other], "the map alone": mapped.constant,
        "random map": mapped.random,
    }  # fmt: skip
    return variants if mapped.raw is None else {**variants, "as they are": mapped.raw}


def _thoughts(
    target: Target, maps: Mapping[str, Mapped], mine: np.ndarray, fitted: np.ndarray, examples: list[int],
    rng: np.random.Generator, draws: Draws | None,
) -> xr.Dataset:  # fmt: skip
    """Each thought alone, and all together."""
    positions = list(maps)
    shuffle = rng.integers(2**31)  # the same other problem at every thought
    variants = {name: _variants(mapped, fitted, np.random.default_rng(shuffle)) for name, mapped in maps.items()}
    labels = target.data["example"].values[mine]
    directions = {
        kind: xr.DataArray(
            np.stack([variants[position][kind] for position in positions], axis=1).astype(np.float32),
            dims=("example", "position", "hidden"),
            coords={"example": labels, "position": positions},
        )
        for kind in variants[positions[0]]
    }
    conditions = []
    for name, group in alone_and_together(positions):
        for kind in directions:
            write = Intervention(site="latent_embedding", operation="write", direction=kind, positions=group)
            conditions.append(_condition(name, kind, KINDS[kind], write))
        own = Intervention(site="latent_embedding", operation="replace", positions=group)
        conditions.append(_condition(name, "its own", "self (stored)", own))
    values = replace(target.values, directions={**target.values.directions, **directions})
    return replace(target, values=values).sweep(conditions, examples=examples, draws=draws)


def _condition(group: str, kind: str, control: str, change: Intervention) -> Condition:
    labels = {"group": group, "values": kind, "control": control}
    return Condition(name=f"{group}: {kind}", interventions=(change,), labels=labels)


Pair = tuple[int, int, int, int]


def _name(pair: Pair) -> str:
    layer, head, to_layer, to_head = pair
    return f"L{layer}H{head}=L{to_layer}H{to_head}"


def _head_maps(
    target: Target, source: Target, pairs: Sequence[Pair], mine: np.ndarray, theirs: np.ndarray, fitted: np.ndarray,
    rng: np.random.Generator,
) -> dict[Pair, dict[str, Mapped]]:  # fmt: skip
    """A map for each pair of heads at each place from ``bot`` on."""
    shared = [place for place in target.reasoner.places.middle if place in source.reasoner.places.middle]
    for pair in pairs:
        for owner, layer, head in ((source, *pair[:2]), (target, *pair[2:])):
            reasoner = owner.reasoner
            if layer >= reasoner.n_layer or head >= reasoner.n_head:
                raise UsageError(
                    f"--heads {_name(pair)}: {owner.run} has layers 0 to {reasoner.n_layer - 1} and heads 0 to"
                    f" {reasoner.n_head - 1}"
                )
    for owner, layers in ((source, {pair[0] for pair in pairs}), (target, {pair[2] for pair in pairs})):
        read = (
            Intervention(site="head_output", operation="resample", layers=(layer,), positions=tuple(shared))
            for layer in sorted(layers)
        )
        owner.values.prepare(read)
    return {
        pair: {
            position: fit_map(
                source.values.column("head_output", pair[0], position)[theirs, pair[1]],
                target.values.column("head_output", pair[2], position)[mine, pair[3]],
                fitted,
                rng,
            )
            for position in shared
        }
        for pair in pairs
    }


def _heads(
    target: Target, maps: Mapping[Pair, Mapping[str, Mapped]], pairs: Sequence[Pair], mine: np.ndarray,
    fitted: np.ndarray, examples: list[int], rng: np.random.Generator, draws: Draws | None,
) -> Iterator[xr.Dataset]:  # fmt: skip
    """Each pair of heads alone, a sweep for each kind of value."""
    shuffle = rng.integers(2**31)
    variants = {
        (pair, position): _variants(mapped, fitted, np.random.default_rng(shuffle))
        for pair, places in maps.items()
        for position, mapped in places.items()
    }
    positions = tuple(maps[pairs[0]])
    for kind in ["its own", *KINDS]:
        # Where widths of heads differ, values cannot go in as they are.
        if kind != "its own" and any(kind not in variant for variant in variants.values()):
            continue
        given: dict[tuple[str, int, str], np.ndarray] = {}
        for (_, head, layer, to_head), position in ((pair, place) for pair in pairs for place in positions):
            key = "head_output", layer, position
            column = given.setdefault(key, target.values.column(*key).copy())
            if kind != "its own":
                pair = next(pair for pair in pairs if pair[2:] == (layer, to_head) and pair[1] == head)
                column[mine, to_head] = variants[pair, position][kind]
        control = "self (stored)" if kind == "its own" else KINDS[kind]
        conditions = [
            _condition(
                _name(pair),
                kind,
                control,
                Intervention(
                    site="head_output", operation="replace", layers=(pair[2],), heads=(pair[3],), positions=positions
                ),
            )
            for pair in pairs
        ]
        values = StoredValues(target.data, target.reasoner, _computed=given)
        yield replace(target, values=values).sweep(conditions, examples=examples, draws=draws)
