"""Adding directions to thoughts: correct minus wrong, what probes and autoencoders found, and random ones."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from extract.reenter.ablation import Site, site_layers, where_of
from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import COMMANDS, Intervention, UsageError, filled, nearest
from schemas.commands import STEERING_UNIT
from store.read import preferred

CORRECT_MINUS_WRONG = "correct-wrong"


def split_half(target: Target, seed: int) -> np.ndarray:
    """Examples ``(example,)`` from which directions are taken; twins of a problem stay together."""
    problem = np.asarray(
        target.data["problem"].values if "problem" in target.data.coords else target.data["example"].values
    )
    unique = np.unique(problem)
    chosen = np.random.default_rng([seed, 31]).permutation(unique)[: len(unique) // 2]
    return np.isin(problem, chosen)


def correct_minus_wrong(
    target: Target, site: str, layers: Sequence[int], positions: Sequence[str], rows: np.ndarray
) -> xr.DataArray:
    """Mean of the rightly answered less that of the wrongly answered, of some rows ``(layer, position, hidden)``."""
    correct = np.asarray(target.data["correct"].values)
    right, wrong = int((correct & rows).sum()), int((~correct & rows).sum())
    if not right or not wrong:
        raise UsageError(
            f"{target.run} has {right} rightly and {wrong} wrongly answered examples to take a direction from; it needs"
            " both"
        )
    value = np.stack(
        [
            np.stack(
                [
                    np.nanmean(column[correct & rows], axis=0) - np.nanmean(column[~correct & rows], axis=0)
                    for column in (target.values.column(site, layer, position) for position in positions)
                ]
            )
            for layer in layers
        ]
    )
    return xr.DataArray(
        value, dims=("layer", "position", "hidden"), coords={"layer": list(layers), "position": list(positions)}
    )


def stored_direction(target: Target, name: str, **selection: object) -> xr.DataArray:
    """Direction of a result in the lake: ``KIND:VARIABLE``, or ``KIND:VARIABLE:DIM=LABEL,...``.

    The variable must have the dim ``hidden``; dims other than ``layer`` and ``position`` are picked by labels, such as
    ``sae:decoder:feature=12``.
    """
    kind, _, rest = name.partition(":")
    variable, _, labels = rest.partition(":")
    if target.lake is None or not variable:
        raise UsageError(f"direction {name!r} is not of the form KIND:VARIABLE or KIND:VARIABLE:DIM=LABEL")
    results = preferred(each for each in target.lake.results(kind) if target.run in each.runs)
    for each in results:
        found = target.lake.open_result(each.name)
        if variable not in found.data_vars or "hidden" not in found[variable].dims:
            continue
        array = found[variable]
        for pair in filter(None, labels.split(",")):
            dim, _, label = pair.partition("=")
            if dim not in array.dims:
                raise UsageError(
                    f"{kind}:{variable} has no dim {dim!r}; it has {', '.join(map(str, array.dims))}"
                    + nearest(dim, array.dims)
                )
            index = array.indexes.get(dim)
            known = range(array.sizes[dim]) if index is None else index
            match = [place for place, each_label in enumerate(known) if str(each_label) == label]
            if not match:
                raise UsageError(f"{kind}:{variable} has no {dim} {label!r}{nearest(label, known)}")
            array = array.isel({dim: match[0]})
        if "model" in array.dims:
            array = array.sel(model=target.run)
        if left := [str(dim) for dim in array.dims if dim not in ("layer", "position", "hidden")]:
            raise UsageError(f"direction {name!r} leaves {', '.join(left)} open; pick one with :{left[0]}=LABEL")
        return array
    if kind not in COMMANDS:
        raise UsageError(
            f"direction {name!r}: there are no results of kind {kind!r}; there are {', '.join(COMMANDS)}"
            + nearest(kind, COMMANDS)
        )
    command = filled(COMMANDS[kind], target.lake.location, [target.run])
    raise UsageError(f"direction {name!r} was never computed for {target.run}; run {command} first")


def steer(
    target: Target,
    *,
    site: Site = "hidden_state",
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    strengths: Sequence[float] = (-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0),
    directions: Sequence[str] = (CORRECT_MINUS_WRONG,),
    given: Mapping[str, xr.DataArray] | None = None,
    n_random: int = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Add directions to all thoughts at once, at one layer at a time.

    Directions are taken from one half of the problems and tried on the other. Every direction is scaled at each layer
    and position to one standard deviation of the states there (the root of the summed variance), so that strengths
    mean the same for all and random ones have the norm of the others.

    Parameters
    ----------
    target
        Run and model.
    site, layers, positions
        Where; the middle layer and all thoughts by default.
    strengths
        In standard deviations, on both sides.
    directions
        ``correct-wrong``, and results of the lake as :func:`stored_direction` names them.
    given
        Further directions, with dim ``hidden`` and any of ``layer`` and ``position``.
    n_random
        Random directions beside them.
    seed
        Of the split and of the random directions.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``layer``, ``direction``, ``strength`` and ``control``, on the examples of
        the half that gave no direction; figures as :func:`extract.reenter.statistics.with_accuracy` gives them.
    """
    places = list(positions or target.thoughts)
    chosen = site_layers(target, site, [target.reasoner.n_layer // 2] if layers is None else layers, together=False)
    taken_from = split_half(target, seed)
    raw: dict[str, xr.DataArray] = dict(given or {})
    for name in directions:
        if name == CORRECT_MINUS_WRONG:
            raw[name] = correct_minus_wrong(target, site, chosen, places, taken_from)
        else:
            raw[name] = stored_direction(target, name)
    for draw in range(n_random):
        vector = np.random.default_rng([seed, 37, draw]).standard_normal(target.reasoner.hidden)
        raw[f"random #{draw + 1}"] = xr.DataArray(vector, dims="hidden")
    target.values.directions = {name: _scaled(target, site, chosen, places, array, name) for name, array in raw.items()}
    conditions = [
        Condition(
            name=f"{name} {strength:+g} {site} {layer}",
            interventions=(
                Intervention(
                    operation="add", direction=name, strength=float(strength), positions=tuple(places),
                    **where_of(target, site, layer),
                ),
            ),
            labels={
                "layer": layer, "direction": name, "strength": float(strength),
                "control": "random direction" if name.startswith("random #") else "",
            },
        )
        for layer in chosen
        for name in raw
        for strength in strengths
    ]  # fmt: skip
    nothing = Intervention(
        operation="scale", strength=1.0, positions=tuple(places), **where_of(target, site, chosen[0])
    )
    labels = {"layer": chosen[0], "direction": "", "strength": 0.0, "control": "self (forward)"}
    conditions.append(Condition(name="nothing added", interventions=(nothing,), labels=labels))
    examples = target.data["example"].values[~taken_from]
    found = target.sweep(conditions, examples=examples.tolist())
    strata = None if target.strata is None else target.strata[~taken_from]
    result = with_accuracy(found, target.gold[~taken_from], strata=strata, seed=seed)
    return result.assign_coords(strength=result["strength"].assign_attrs(units=STEERING_UNIT))


def _scaled(
    target: Target, site: str, layers: Sequence[int], positions: Sequence[str], array: xr.DataArray, name: str
) -> xr.DataArray:
    """Direction at every layer and position, one standard deviation long."""
    value = np.empty((len(layers), len(positions), target.reasoner.hidden), dtype=np.float32)
    for i, layer in enumerate(layers):
        for j, position in enumerate(positions):
            vector = array
            for dim, label in (("layer", layer), ("position", position)):
                if dim in vector.dims:
                    if label not in vector.indexes[dim]:
                        raise UsageError(f"direction {name!r} was not computed at {dim} {label}")
                    vector = vector.sel({dim: label})
            if vector.sizes.get("hidden") != target.reasoner.hidden:
                raise UsageError(
                    f"direction {name!r} has {vector.sizes.get('hidden')} components, model {target.run}"
                    f" {target.reasoner.hidden}"
                )
            components = np.asarray(vector.values, dtype=np.float32)
            norm = float(np.linalg.norm(components))
            if not norm > 0:
                raise UsageError(f"direction {name!r} has no length at layer {layer}, position {position}")
            length = float(np.linalg.norm(target.values.spread(site, layer, position)))
            value[i, j] = components / norm * length
    return xr.DataArray(
        value, dims=("layer", "position", "hidden"), coords={"layer": list(layers), "position": list(positions)}
    )
