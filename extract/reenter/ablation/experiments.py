"""Which thoughts the answer needs: ablation by what they carry, and every way of corrupting each of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.ablation.command import AblateSettings, CorruptSettings
from extract.reenter.sites import report_layers, self_controls, site_layers, where_of
from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition
from extract.reenter.target import Target, change_of
from schemas import Intervention, check_positions

CORRUPTIONS: dict[str, dict[str, Any]] = {
    "zero": {"operation": "zero"},
    "mean": {"operation": "mean"},
    "noise 0.1": {"operation": "noise", "strength": 0.1},
    "noise 0.5": {"operation": "noise", "strength": 0.5},
    "noise 1": {"operation": "noise", "strength": 1.0},
    "noise 2": {"operation": "noise", "strength": 2.0},
    "resample": {"operation": "resample"},
}


def ablate(target: Target, settings: AblateSettings | None = None) -> xr.Dataset:
    """Ablate the thoughts that carry numbers, the others, and as many at random.

    A thought carries a number where its unembedded state is one (for ``latent_embedding``, the state it was projected
    from); where answers are no numbers, where that state begins a word of the run's steps or answers. Only the chosen
    thoughts are changed; all others are computed anew from what that left.

    Parameters
    ----------
    target
        Run and model.
    settings
        By default both sites, each layer alone and all at once, zero and the position's mean.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer`` (-1: all at once, or below all), ``operation``, ``group``
        (``numbers``, ``others``, ``all``, and ``random like numbers`` ...) and ``control``; figures as
        :func:`extract.reenter.statistics.with_accuracy` gives them, on the examples that have such thoughts:
        ``share_not_counted(condition)`` is the rest. ``number_share(position)`` is how often a state reads a number.
    """
    settings = settings or AblateSettings()
    layers = settings.layers or (report_layers(target) if settings.preset else None)
    conditions: list[Condition] = []
    for site in settings.sites:
        groups = _groups(target, site, settings)
        for layer in site_layers(target, site, layers):
            conditions += _ablations(target, site, layer, groups, settings)
            labels = {"operation": "replace", "group": "all"}
            conditions += self_controls(target, site, layer, target.thoughts, labels)
    every = np.ones(target.data.sizes["example"], dtype=bool)
    changed = [
        every if condition.where is None else np.any(list(condition.where.values()), axis=0) for condition in conditions
    ]
    counted = np.stack([every, *changed])
    swept = target.sweep(conditions)
    result = with_accuracy(swept, target.gold, counted=counted, strata=target.strata, seed=settings.seed)
    result["share_not_counted"] = ("condition", 1 - counted.mean(1))
    positions = ["bot", *target.thoughts]
    share = [float(target.number_states(position).mean()) for position in positions]
    result = result.assign(number_share=("position", share)).assign_coords(position=np.array(positions, dtype=object))
    return result.assign_attrs(carried="number" if target.scoring.kind == "number" else "word")


def _groups(target: Target, site: str, settings: AblateSettings) -> dict[str, np.ndarray]:
    """Thoughts ``(example, thought)`` that are ablated together, by the name of the group."""
    numbers = target.number_thoughts(site)
    groups = {"numbers": numbers, "others": ~numbers, "all": np.ones_like(numbers)}
    for draw in range(settings.draws):
        number = f" #{draw + 1}" if settings.draws > 1 else ""
        groups[f"random like numbers{number}"] = target.random_like(numbers, settings.seed + draw)
        groups[f"random like others{number}"] = target.random_like(~numbers, settings.seed + 1000 + draw)
    return groups


def _ablations(
    target: Target, site: str, layer: int, groups: dict[str, np.ndarray], settings: AblateSettings
) -> Iterator[Condition]:
    """Conditions at one site and layer: every operation on every group, and controls of what is done to the numbers."""
    place = where_of(target, site, layer)

    def condition(operation: str, group: str, change: dict[str, Any], control: str = "") -> Condition:
        intervention = Intervention(positions=tuple(target.thoughts), seed=settings.seed, **change, **place)
        return Condition(
            name=f"{operation} {group} {site} {layer} {control}".rstrip(),
            interventions=(intervention,),
            labels={"site": site, "layer": layer, "operation": operation, "group": group, "control": control},
            where=target.where(groups[group]),
        )

    for operation in settings.operations:
        for group in groups:
            control = "random positions" if group.startswith("random") else ""
            yield condition(operation, group, change_of(operation), control)
    yield condition("resample", "numbers", {"operation": "resample"}, "random donor")
    change = change_of(settings.operations[0])
    yield condition(change["operation"], "numbers", {**change, "as_noise": True}, "noise of the same norm")


def corrupt(target: Target, settings: CorruptSettings | None = None) -> xr.Dataset:
    """Importance of each thought, under every corruption.

    Shuffling exchanges all of an example's thoughts at once and so belongs to none of them; it is reported once, as
    group ``all``. Where the other thoughts are held at their stored values instead of following, what is measured is a
    thought's direct effect on the answer, without what later thoughts make of it.

    Parameters
    ----------
    target
        Run and model.
    settings
        By default every corruption of the vectors fed, each thought alone and all together.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer``, ``corruption``, ``group`` (the position, or ``all``) and
        ``control``; figures as :func:`extract.reenter.statistics.with_accuracy` gives them.

    Raises
    ------
    UsageError
        If a layer or position is not there.
    """
    settings = settings or CorruptSettings()
    reported = ["bot", *target.thoughts[:-1]] if settings.preset else target.thoughts
    positions = tuple(settings.positions or reported)
    check_positions(positions, target.reasoner.places)
    middle = target.reasoner.n_layer // 2
    layers = settings.layers or [max(0, middle - 1) if settings.preset else middle]
    conditions: list[Condition] = []
    for layer in site_layers(target, settings.site, layers, together=False):
        conditions += _corruptions(target, layer, positions, settings)
        labels = {"corruption": "replace", "group": "all"}
        conditions += self_controls(target, settings.site, layer, positions, labels)
    result = with_accuracy(target.sweep(conditions), target.gold, strata=target.strata, seed=settings.seed)
    return result.assign_attrs(hold=int(settings.hold))


def _corruptions(
    target: Target, layer: int, positions: Sequence[str], settings: CorruptSettings
) -> Iterator[Condition]:
    """Conditions at one layer: each position corrupted alone, all together, all shuffled, and noise as a control."""
    site, place = settings.site, where_of(target, settings.site, layer)

    def condition(
        name: str, corruption: str, group: Sequence[str], change: dict[str, Any], control: str = "", hold: bool = False
    ) -> Condition:
        interventions = [Intervention(positions=tuple(group), seed=settings.seed, **change, **place)]
        others = tuple(position for position in positions if position not in group)
        if hold and others:
            interventions.append(Intervention(operation="replace", positions=others, **place))
        label = group[0] if len(group) == 1 else "all"
        return Condition(
            name=f"{name} {label} {site} {layer}",
            interventions=tuple(interventions),
            labels={"site": site, "layer": layer, "corruption": corruption, "group": label, "control": control},
        )

    together = [positions] if len(positions) > 1 else []
    for corruption in settings.corruptions or CORRUPTIONS:
        for group in [*((position,) for position in positions), *together]:
            yield condition(corruption, corruption, group, CORRUPTIONS[corruption], hold=settings.hold)
    for group in together:
        yield condition("shuffle", "shuffle", group, {"operation": "shuffle"})
    for position in positions:
        noise = {"operation": "zero", "as_noise": True}
        yield condition("noise like zero", "zero", (position,), noise, "noise of the same norm")
