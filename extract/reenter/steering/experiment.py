"""Adding directions to thoughts: correct minus wrong, what probes and autoencoders found, and random ones."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from extract.reenter.sites import site_layers, where_of
from extract.reenter.steering.command import CORRECT_MINUS_WRONG, SteerSettings
from extract.reenter.steering.directions import correct_minus_wrong, scaled, split_half, stored_direction
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention
from schemas.intervention import STEERING_UNIT


def steer(target: Target, settings: SteerSettings | None = None) -> xr.Dataset:
    """Add directions to all thoughts at once, at one layer at a time.

    Directions are taken from one half of the problems and tried on the other. Every direction is scaled at each layer
    and position to one standard deviation of the states there (the root of the summed variance), so that strengths
    mean the same for all and random ones have the norm of the others.

    Parameters
    ----------
    settings
        By default ``correct-wrong`` at the middle layer; results of the lake are named as
        :func:`extract.reenter.steering.directions.stored_direction` reads them.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``layer``, ``direction``, ``strength`` and ``control``, on the examples of
        the half that gave no direction; figures as :func:`extract.reenter.statistics.with_accuracy` gives them.

    Raises
    ------
    UsageError
        If a direction is not there, or not at a layer or position, or there are no wrong answers to take one from.
    """
    settings = settings or SteerSettings()
    if not settings.positions:
        target.need_thoughts("steer")
    positions = list(settings.positions or target.thoughts)
    middle = [target.reasoner.n_layer // 2]
    layers = site_layers(target, settings.site, settings.layers or middle, together=False)
    taken_from = split_half(target.data, settings.seed)
    raw: dict[str, xr.DataArray] = {}
    for name in settings.directions:
        if name == CORRECT_MINUS_WRONG:
            raw[name] = correct_minus_wrong(target, settings.site, layers, positions, taken_from)
        else:
            raw[name] = stored_direction(target, name)
    for draw in range(settings.draws):
        vector = np.random.default_rng([settings.seed, 37, draw]).standard_normal(target.reasoner.hidden)
        raw[f"random #{draw + 1}"] = xr.DataArray(vector, dims="hidden")
    target.values.directions = {
        name: scaled(target, settings.site, layers, positions, array, name) for name, array in raw.items()
    }
    conditions = _conditions(target, settings, layers, positions, list(raw))
    draws = settings.drawing(settings.seed)
    result = target.accuracy(conditions, seed=settings.seed, rows=np.flatnonzero(~taken_from), draws=draws)
    return result.assign_coords(strength=result["strength"].assign_attrs(units=STEERING_UNIT))


def _conditions(
    target: Target, settings: SteerSettings, layers: Sequence[int], positions: Sequence[str], names: Sequence[str]
) -> list[Condition]:
    """Every direction at every layer and strength, and nothing added."""
    conditions = []
    for layer in layers:
        place = where_of(target, settings.site, layer)
        for name in names:
            control = "random direction" if name.startswith("random #") else ""
            for strength in map(float, settings.strengths):
                added = Intervention(
                    operation="add", direction=name, strength=strength, positions=tuple(positions), **place
                )
                labels = {"layer": layer, "direction": name, "strength": strength, "control": control}
                where = f"{settings.site} {layer}"
                conditions.append(
                    Condition(name=f"{name} {strength:+g} {where}", interventions=(added,), labels=labels)
                )
    place = where_of(target, settings.site, layers[0])
    nothing = Intervention(operation="scale", strength=1.0, positions=tuple(positions), **place)
    labels = {"layer": layers[0], "direction": "", "strength": 0.0, "control": "self (forward)"}
    return [*conditions, Condition(name="nothing added", interventions=(nothing,), labels=labels)]
