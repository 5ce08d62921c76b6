"""Which thoughts the answer needs: ablation by what they carry, and every way of corrupting each of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.ablation.command import AblateSettings, CorruptSettings
from extract.reenter.paired import with_pairs, with_spared
from extract.reenter.sites import (
    NOISE,
    alone_and_together,
    refuse_layers,
    report_layers,
    self_controls,
    site_layers,
    where_of,
)
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

    A thought carries a number where its unembedded state is one (for ``latent_embedding``, the state it was made
    from); where answers are not numbers, where that state begins a word of the run's steps or answers. Only the chosen
    thoughts are changed; all others are computed anew from what that left.

    Parameters
    ----------
    settings
        By default both sites, each layer alone and all at once, zero and the position's mean.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer`` (-1: all at once, or below all), ``operation``, ``group``
        (``numbers``, ``others``, ``all``, and ``random like numbers`` ...; of ``counts`` ``first``, ``last``, ``random
        #1`` ...), ``n_thought`` (how many of ``counts``, else -1) and ``control``; figures as
        :func:`extract.reenter.statistics.with_accuracy` gives them, on the examples that have such thoughts:
        ``share_not_counted(condition)`` is the rest. ``number_share(position)`` is how often a state reads a number.
        Paired tests of layers along ``layer_pair``, and of N against N + 1 along ``n_thought_pair``, as
        :func:`extract.reenter.paired.with_pairs` gives them; ``n_spared(condition)``, of ``counts``: most thoughts that
        can be taken away before accuracy falls significantly, the same for every N.
    """
    settings = settings or AblateSettings()
    target.need_thoughts("ablate")
    refuse_layers(settings.sites, settings.layers)
    layers = settings.layers or (report_layers(target) if settings.preset else None)
    conditions: list[Condition] = []
    for site in settings.sites:
        groups = _groups(target, site, settings) if "carrying" in settings.sets else {}
        counts = _counts(target, settings) if "counts" in settings.sets else {}
        for layer in site_layers(target, site, layers):
            conditions += _ablations(target, site, layer, groups, settings)
            for operation in settings.operations:
                for (group, n), mask in counts.items():
                    conditions.append(_ablation(target, site, layer, operation, group, mask, settings, n_thought=n))
            labels = {"operation": "replace", "group": "all", "n_thought": -1}
            conditions += self_controls(target, site, layer, target.thoughts, labels)
    every = np.ones(target.data.sizes["example"], dtype=bool)
    changed = [
        every if condition.where is None else np.any(list(condition.where.values()), axis=0) for condition in conditions
    ]
    counted = np.stack([every, *changed])
    seed, draws = settings.seed, settings.drawing(settings.seed)
    result = target.accuracy(conditions, seed=seed, counted=counted, draws=draws)
    result["share_not_counted"] = ("condition", 1 - counted.mean(1))
    right = result["correct"].values & counted
    within = ("site", "operation", "group", "n_thought")
    result = with_pairs(result, right, over="layer", within=within, which="all")
    if counts:
        within = ("site", "layer", "operation", "group")
        result = with_spared(with_pairs(result, right, over="n_thought", within=within, which="next"), within)
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


def _counts(target: Target, settings: AblateSettings) -> dict[tuple[str, int], np.ndarray]:
    """The first N thoughts, the last N, and N at random of each example, for every N: ``(example, thought)``."""
    n_thought = len(target.thoughts)
    every = np.ones((target.data.sizes["example"], n_thought), dtype=bool)
    place = np.arange(n_thought)
    masks: dict[tuple[str, int], np.ndarray] = {}
    for n in range(1, n_thought + 1):
        masks["first", n] = every & (place < n)
        masks["last", n] = every & (place >= n_thought - n)
        for draw in range(settings.draws):
            masks[f"random #{draw + 1}", n] = target.random_like(masks["first", n], settings.seed + 2000 + draw)
    return masks


def _ablations(
    target: Target, site: str, layer: int, groups: dict[str, np.ndarray], settings: AblateSettings
) -> Iterator[Condition]:
    """Conditions at one site and layer: every operation on every group, and controls of what is done to the numbers."""
    for operation in settings.operations:
        for group, mask in groups.items():
            control = "random positions" if group.startswith("random") else ""
            yield _ablation(target, site, layer, operation, group, mask, settings, control=control)
    if groups:
        numbers = groups["numbers"]
        yield _ablation(target, site, layer, "resample", "numbers", numbers, settings, control="random donor")
        change = {**change_of(settings.operations[0]), "as_noise": True}
        name = str(change["operation"])
        yield _ablation(target, site, layer, name, "numbers", numbers, settings, control=NOISE, change=change)


def _ablation(
    target: Target, site: str, layer: int, operation: str, group: str, mask: np.ndarray, settings: AblateSettings, *,
    n_thought: int = -1, control: str = "", change: dict[str, Any] | None = None,
) -> Condition:  # fmt: skip
    """One operation on the thoughts ``(example, thought)`` of a group."""
    change = change_of(operation) if change is None else change
    count = "" if n_thought < 0 else f" {n_thought}"
    return Condition(
        name=f"{operation} {group}{count} {site} {layer} {control}".rstrip(),
        interventions=(
            Intervention(
                positions=tuple(target.thoughts), seed=settings.seed, **change, **where_of(target, site, layer)
            ),
        ),
        labels={
            "site": site, "layer": layer, "operation": operation, "group": group, "n_thought": n_thought,
            "control": control,
        },
        where=target.where(mask),
    )  # fmt: skip


def corrupt(target: Target, settings: CorruptSettings | None = None) -> xr.Dataset:
    """Importance of each thought, under every corruption.

    Shuffling exchanges all of an example's thoughts at once and so belongs to none of them; it is reported once, as
    group ``all``. Where the other thoughts are held at their stored values instead of following, what is measured is a
    thought's direct effect on the answer, without what later thoughts make of it.

    Parameters
    ----------
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
    target.need_thoughts("corrupt")
    refuse_layers([settings.site], settings.layers)
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
    result = target.accuracy(conditions, seed=settings.seed, draws=settings.drawing(settings.seed))
    return result.assign_attrs(hold=int(settings.hold))


def _corruptions(
    target: Target, layer: int, positions: tuple[str, ...], settings: CorruptSettings
) -> Iterator[Condition]:
    """Conditions at one layer: each position corrupted alone, all together, all shuffled, and noise as a control."""
    site, place = settings.site, where_of(target, settings.site, layer)

    def condition(
        name: str, corruption: str, label: str, group: tuple[str, ...], change: dict[str, Any], control: str = "",
        hold: bool = False,
    ) -> Condition:  # fmt: skip
        interventions = [Intervention(positions=group, seed=settings.seed, **change, **place)]
        others = tuple(position for position in positions if position not in group)
        if hold and others:
            interventions.append(Intervention(operation="replace", positions=others, **place))
        return Condition(
            name=f"{name} {label} {site} {layer}",
            interventions=tuple(interventions),
            labels={"site": site, "layer": layer, "corruption": corruption, "group": label, "control": control},
        )

    for corruption in settings.corruptions or CORRUPTIONS:
        for label, group in alone_and_together(positions):
            yield condition(corruption, corruption, label, group, CORRUPTIONS[corruption], hold=settings.hold)
    if len(positions) > 1:
        yield condition("shuffle", "shuffle", "all", positions, {"operation": "shuffle"})
    for position in positions:
        noise = {"operation": "zero", "as_noise": True}
        yield condition("noise like zero", "zero", position, (position,), noise, NOISE)
