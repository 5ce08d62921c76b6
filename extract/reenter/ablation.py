"""Which thoughts the answer needs: ablation by what they carry, and every way of corrupting each of them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition
from extract.reenter.target import Target, change_of
from schemas import Intervention, UsageError, check_positions, nearest

Site = Literal["hidden_state", "latent_embedding"]
EVERY = -1
"""Label of "all layers at once" along ``layer``; with ``latent_embedding``, "below all layers"."""
CORRUPTIONS: dict[str, dict[str, Any]] = {
    "zero": {"operation": "zero"},
    "mean": {"operation": "mean"},
    "noise 0.1": {"operation": "noise", "strength": 0.1},
    "noise 0.5": {"operation": "noise", "strength": 0.5},
    "noise 1": {"operation": "noise", "strength": 1.0},
    "noise 2": {"operation": "noise", "strength": 2.0},
    "resample": {"operation": "resample"},
}


def site_layers(target: Target, site: str, layers: Sequence[int] | None, *, together: bool = True) -> list[int]:
    """Layers of a site to go through: those asked for (all by default), and all of them at once."""
    if site == "latent_embedding":
        return [EVERY]
    chosen = target.layers if layers is None else list(layers)
    for layer in chosen:
        if layer != EVERY and not 0 <= layer < target.reasoner.n_layer:
            n_layer = target.reasoner.n_layer
            raise UsageError(
                f"layer {layer} is not there; {target.run} has layers 0 to {n_layer - 1}"
                + nearest(layer, range(n_layer))
            )
    return [*chosen, EVERY] if together and layers is None and len(chosen) > 1 else chosen


def where_of(target: Target, site: str, layer: int) -> dict[str, Any]:
    """Site and layers of an intervention, all layers for ``EVERY``."""
    if site == "latent_embedding":
        return {"site": site, "layers": ()}
    return {"site": site, "layers": tuple(target.layers) if layer == EVERY else (layer,)}


def self_controls(target: Target, site: str, layer: int, positions: Sequence[str]) -> list[Condition]:
    """Each value replaced by itself: from the same forward pass, and from the lake. Must change nothing."""
    return [
        Condition(
            name=f"self {donor} {site} {layer}",
            interventions=(
                Intervention(
                    operation="replace", donor=donor, positions=tuple(positions), **where_of(target, site, layer)
                ),
            ),
            labels={"site": site, "layer": layer, "operation": "replace", "group": "all", "control": f"self ({donor})"},
        )
        for donor in ("forward", "stored")
    ]  # fmt: skip


def ablate(
    target: Target,
    *,
    sites: Sequence[Site] = ("hidden_state", "latent_embedding"),
    layers: Sequence[int] | None = None,
    operations: Sequence[str] = ("zero", "mean"),
    n_random: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Ablate the thoughts that carry numbers, the others, and as many at random.

    A thought carries a number where its unembedded state is one (for ``latent_embedding``, the state it was projected
    from); where answers are no numbers, where that state begins a word of the run's steps or answers. Only the chosen
    thoughts are changed; all others are computed anew from what that left.

    Parameters
    ----------
    target
        Run and model.
    sites, layers, operations
        What to ablate, where and how; all layers, each alone and all at once, by default. ``mean`` is that of the
        position; ``mean:run``, ``mean:correct`` and ``mean:wrong`` are those of all thoughts and of the two classes.
    n_random
        Random draws beside each group.
    seed
        Of everything random.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer`` (-1: all at once, or below all), ``operation``, ``group``
        (``numbers``, ``others``, ``all``, and ``random like numbers`` ...) and ``control``; figures as
        :func:`extract.reenter.statistics.with_accuracy` gives them, on the examples that have such thoughts:
        ``share_not_counted(condition)`` is the rest. ``number_share(position)`` is how often a state reads a number.
    """
    conditions: list[Condition] = []
    masks: list[np.ndarray] = []
    thoughts = tuple(target.thoughts)
    n = target.data.sizes["example"]
    every = np.ones((n, len(thoughts)), dtype=bool)

    def add(site: str, layer: int, group: str, mask: np.ndarray, change: dict[str, Any], **labels: str) -> None:
        operation = labels.pop("operation", str(change["operation"]))
        control = labels.pop("control", "")
        conditions.append(
            Condition(
                name=f"{operation} {group} {site} {layer} {control}".rstrip(),
                interventions=(Intervention(positions=thoughts, seed=seed, **change, **where_of(target, site, layer)),),
                labels={"site": site, "layer": layer, "operation": operation, "group": group, "control": control},
                where=target.where(mask),
            )  # fmt: skip
        )
        masks.append(np.asarray(mask.any(1)))

    for site in sites:
        numbers = target.number_thoughts(site)
        groups = {"numbers": numbers, "others": ~numbers, "all": every}
        for draw in range(n_random):
            tail = f" #{draw + 1}" if n_random > 1 else ""
            groups[f"random like numbers{tail}"] = target.random_like(numbers, seed + draw)
            groups[f"random like others{tail}"] = target.random_like(~numbers, seed + 1000 + draw)
        for layer in site_layers(target, site, layers):
            for operation in operations:
                for group, mask in groups.items():
                    random = "random positions" if group.startswith("random") else ""
                    add(site, layer, group, mask, change_of(operation), operation=operation, control=random)
            add(site, layer, "numbers", numbers, {"operation": "resample"}, control="random donor")
            add(
                site, layer, "numbers", numbers, {**change_of(operations[0]), "as_noise": True},
                control="noise of the same norm",
            )  # fmt: skip
            for control in self_controls(target, site, layer, thoughts):
                conditions.append(control)
                masks.append(np.ones(n, dtype=bool))
    found = target.sweep(conditions)
    counted = np.stack([np.ones(n, dtype=bool), *masks])
    out = with_accuracy(found, target.gold, counted=counted, strata=target.strata, seed=seed)
    out["share_not_counted"] = ("condition", 1 - counted.mean(1))
    positions = ["bot", *thoughts]
    share = [float(target.number_states(position).mean()) for position in positions]
    out = out.assign(number_share=("position", share)).assign_coords(position=np.array(positions, dtype=object))
    return out.assign_attrs(carried="number" if target.scoring.kind == "number" else "word")


def corrupt(
    target: Target,
    *,
    site: Site = "latent_embedding",
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    corruptions: Sequence[str] | None = None,
    hold: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Importance of each thought, under every corruption.

    Parameters
    ----------
    target
        Run and model.
    site, layers
        Where; of ``hidden_state`` the middle layer by default.
    positions
        Thoughts (or any positions) to corrupt one at a time, and all together; the thoughts by default.
    corruptions
        Of ``CORRUPTIONS``; all by default. Shuffling exchanges all of an example's thoughts at once and so belongs to
        none of them; it is reported once, as group ``all``.
    hold
        Keep the other thoughts at their stored values instead of letting them follow: a thought's direct effect on
        the answer, without what later thoughts make of it.
    seed
        Of everything random.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer``, ``corruption``, ``group`` (the position, or ``all``) and
        ``control``; figures as :func:`extract.reenter.statistics.with_accuracy` gives them.
    """
    thoughts = tuple(positions or target.thoughts)
    check_positions(thoughts, target.reasoner.places)
    names = list(CORRUPTIONS if corruptions is None else corruptions)
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise UsageError(
            f"corruption {unknown[0]!r} is not one of {', '.join(CORRUPTIONS)}{nearest(unknown[0], CORRUPTIONS)}"
        )
    middle = [target.reasoner.n_layer // 2]
    conditions: list[Condition] = []
    for layer in site_layers(target, site, middle if layers is None else layers, together=False):
        place = where_of(target, site, layer)
        for name in names:
            for group in [*((each,) for each in thoughts), *([thoughts] if len(thoughts) > 1 else [])]:
                changes = [Intervention(positions=group, seed=seed, **CORRUPTIONS[name], **place)]
                others = tuple(each for each in thoughts if each not in group)
                if hold and others:
                    changes.append(Intervention(operation="replace", positions=others, **place))
                label = group[0] if len(group) == 1 else "all"
                conditions.append(
                    Condition(
                        name=f"{name} {label} {site} {layer}",
                        interventions=tuple(changes),
                        labels={"site": site, "layer": layer, "corruption": name, "group": label, "control": ""},
                    )
                )
        if len(thoughts) > 1:
            shuffled = Intervention(operation="shuffle", positions=thoughts, seed=seed, **place)
            labels = {"site": site, "layer": layer, "corruption": "shuffle", "group": "all", "control": ""}
            conditions.append(Condition(name=f"shuffle all {site} {layer}", interventions=(shuffled,), labels=labels))
        for single in thoughts:
            like_zero = Intervention(operation="zero", positions=(single,), seed=seed, as_noise=True, **place)
            labels = {
                "site": site,
                "layer": layer,
                "corruption": "zero",
                "group": single,
                "control": "noise of the same norm",
            }
            conditions.append(
                Condition(name=f"noise like zero {single} {site} {layer}", interventions=(like_zero,), labels=labels)
            )
        for control in self_controls(target, site, layer, thoughts):
            labels = {**control.labels, "corruption": "replace"}
            labels.pop("operation")
            conditions.append(Condition(name=control.name, interventions=control.interventions, labels=labels))
    found = target.sweep(conditions)
    return with_accuracy(found, target.gold, strata=target.strata, seed=seed).assign_attrs(hold=int(hold))
