"""The whole grid: layers x positions x heads x operations x donors x strengths, as one labelled result."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.grid.command import SweepSettings
from extract.reenter.sites import refuse_layers
from extract.reenter.subspace.stored import give_stored
from extract.reenter.sweep import Condition
from extract.reenter.target import Target, change_of
from schemas import OPERATIONS, Intervention, UsageError
from schemas.flags import flags
from schemas.intervention import SITES


def sweep_grid(target: Target, settings: SweepSettings | None = None) -> xr.Dataset:
    """Every combination, each cell one intervention by itself.

    Donors and strengths matter to the operations that take them; cells that would repeat one another are computed once.

    Parameters
    ----------
    settings
        By default zero at every layer's output and every thought, one at a time.

    Returns
    -------
    xr.Dataset
        ``accuracy``, ``drop``, ``importance``, ``kl_mean`` ... with dims ``stratum`` and (``layer``, ``position``,
        ``head``, ``operation``, ``donor``, ``strength``) that apply to the site, and ``answer_logprob``, ``kl``,
        ``generated_text``, ``predicted_answer``, ``correct`` with ``example`` besides; the untouched run's own as
        ``untouched_...(example)``.

    Raises
    ------
    UsageError
        If an operation cannot be done at the site, or a layer, head or position is not there.
    """
    settings = settings or SweepSettings()
    refuse_layers([settings.site], settings.layers)
    _refuse_unused(settings)
    axes = _axes(target, settings)
    conditions: dict[Intervention, int] = {}
    order, names = [], []
    for values in itertools.product(*axes.values()):
        intervention = _intervention(settings, dict(zip(axes, values, strict=True)))
        if intervention not in conditions:
            conditions[intervention] = len(conditions) + 1
            names.append(" ".join(map(str, values)))
        order.append(conditions[intervention])
    give_stored(target, conditions)
    flat = target.accuracy(
        [Condition(name=name, interventions=(change,)) for name, change in zip(names, conditions, strict=True)],
        seed=settings.seed,
        draws=settings.drawing(settings.seed),
    )
    index = np.array(order).reshape([len(values) for values in axes.values()])
    return _unfolded(flat, axes, index)


def _refuse_unused(settings: SweepSettings) -> None:
    """Refuse what no cell of the grid would use, though its labels and settings would say it."""
    if settings.heads is not None and not SITES[settings.site].heads:
        raise UsageError(f"{settings.site} has no heads; leave --heads out, or change the head_output")
    named = [change_of(operation)["operation"] for operation in settings.operations]
    taken = {field for name in named if name in OPERATIONS for field in OPERATIONS[name].takes}
    for flag in flags(SweepSettings):
        field = flag.name.removesuffix("s")
        able = [name for name, entry in OPERATIONS.items() if field in entry.takes and field != "seed"]
        if able and field not in taken and getattr(settings, flag.name) != flag.default:
            raise UsageError(f"{flag.option} is for {', '.join(able)}; {', '.join(named)} takes none, so leave it out")


def _axes(target: Target, settings: SweepSettings) -> dict[str, list[Any]]:
    """What is gone through along each dim that applies to the site."""
    axes: dict[str, list[Any]] = {}
    if settings.site != "latent_embedding":
        axes["layer"] = list(settings.layers or target.layers)
    axes["position"] = list(settings.positions or target.thoughts)
    if not axes["position"]:
        raise UsageError(f"{target.run} has no thoughts; say where its values are changed: --positions")
    if SITES[settings.site].heads:
        n_head = target.reasoner.n_cache_head if settings.site in ("key", "value") else target.reasoner.n_head
        axes["head"] = list(settings.heads or range(n_head))
    axes["operation"] = list(settings.operations)
    axes["donor"] = list(settings.donors)
    axes["strength"] = [float(strength) for strength in settings.strengths]
    return axes


def _intervention(settings: SweepSettings, cell: Mapping[str, Any]) -> Intervention:
    """The change in one cell; what does not matter to its operation is left at its default."""
    change = change_of(cell["operation"])
    takes = OPERATIONS[change["operation"]].takes if change["operation"] in OPERATIONS else ()
    given = {
        "donor": cell["donor"],
        "strength": cell["strength"],
        "direction": settings.direction,
        "subspace": settings.subspace,
    }
    return Intervention(
        site=settings.site,
        **change,  # type: ignore[arg-type]
        positions=(cell["position"],),
        layers=(cell["layer"],) if "layer" in cell else (),
        heads=(cell["head"],) if "head" in cell else (),
        keys=settings.keys,
        seed=settings.seed,
        **{name: value for name, value in given.items() if name in takes},
    )


def _unfolded(flat: xr.Dataset, axes: Mapping[str, list[Any]], index: np.ndarray) -> xr.Dataset:
    """A result along ``condition`` as one along the axes; ``index`` says which condition each cell is."""
    result = xr.Dataset(
        coords={**axes, "example": flat["example"], "stratum": flat["stratum"], "answer": flat["answer"]}
    )
    for key, variable in flat.data_vars.items():
        if "condition" not in variable.dims:
            continue
        rest = [dim for dim in variable.dims if dim != "condition"]
        values = variable.transpose("condition", *rest).values
        result[key] = ((*axes, *rest), values[index])
        if "example" in rest:
            result[f"untouched_{key}"] = (tuple(rest), values[0])
    return result.assign_attrs(flat.attrs)
