"""The whole grid: layers x positions x heads x operations x donors x strengths, as one labelled result."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.statistics import with_accuracy
from extract.reenter.sweep import Condition
from extract.reenter.target import Target, change_of
from schemas import OPERATIONS, Intervention, UsageError, nearest
from schemas.intervention import SITES, Donor


def sweep_grid(
    target: Target,
    *,
    site: str = "hidden_state",
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    keys: Sequence[str] = (),
    operations: Sequence[str] = ("zero",),
    donors: Sequence[Donor] = ("stored",),
    strengths: Sequence[float] = (1.0,),
    direction: str = "",
    subspace: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Every combination, each cell one intervention by itself.

    Parameters
    ----------
    target
        Run and model.
    site
        One of :data:`schemas.intervention.SITES`.
    layers, positions, heads
        All layers, all thoughts and all heads by default, one at a time.
    keys
        Key positions of attention, together.
    operations, donors, strengths
        Operations by name, ``mean:run``, ``mean:correct`` and ``mean:wrong`` among them. Donors and strengths matter
        to the operations that take them; cells that would repeat one another are computed once.
    direction, subspace
        Names among the target's values, for the operations that take them.
    seed
        Of everything random.

    Returns
    -------
    xr.Dataset
        ``accuracy``, ``drop``, ``importance``, ``kl_mean`` ... with dims ``stratum`` and (``layer``, ``position``,
        ``head``, ``operation``, ``donor``, ``strength``) that apply to the site, and ``answer_logprob``, ``kl``,
        ``generated_text``, ``predicted_answer``, ``correct`` with ``example`` besides; the untouched run's own as
        ``untouched_...(example)``.
    """
    if site not in SITES:
        raise UsageError(f"site {site!r} is not one of {', '.join(SITES)}{nearest(site, SITES)}")
    thoughts = list(positions or target.thoughts)
    axes: dict[str, list[Any]] = {}
    if site != "latent_embedding":
        axes["layer"] = list(target.layers if layers is None else layers)
    axes["position"] = thoughts
    if SITES[site].heads:
        n_head = target.reasoner.n_cache_head if site in ("key", "value") else target.reasoner.n_head
        axes["head"] = list(range(n_head) if heads is None else heads)
    axes["operation"] = list(operations)
    axes["donor"] = list(donors)
    axes["strength"] = [float(each) for each in strengths]
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    conditions: dict[Intervention, Condition] = {}
    order: list[int] = []
    for cell in cells:
        name = change_of(cell["operation"])["operation"]
        takes = OPERATIONS[name].takes if name in OPERATIONS else ()
        given = {"donor": cell["donor"], "strength": cell["strength"], "direction": direction, "subspace": subspace}
        each = Intervention(
            site=site,  # type: ignore[arg-type]
            **change_of(cell["operation"]),  # type: ignore[arg-type]
            positions=(cell["position"],),
            layers=(cell["layer"],) if "layer" in cell else (),
            heads=(cell["head"],) if "head" in cell else (),
            keys=tuple(keys),
            seed=seed,
            **{field: value for field, value in given.items() if field in takes},
        )
        if each not in conditions:
            name = " ".join(str(value) for value in cell.values())
            conditions[each] = Condition(name=name, interventions=(each,))
        order.append(list(conditions).index(each) + 1)
    flat = with_accuracy(target.sweep(list(conditions.values())), target.gold, strata=target.strata, seed=seed)
    shape = [len(values) for values in axes.values()]
    out = xr.Dataset(coords={**axes, "example": flat["example"], "stratum": flat["stratum"], "answer": flat["answer"]})
    index = np.array(order).reshape(shape)
    for key, variable in flat.data_vars.items():
        if "condition" not in variable.dims:
            continue
        name = str(key)
        rest = [dim for dim in variable.dims if dim != "condition"]
        values = variable.transpose("condition", *rest).values
        out[name] = ((*axes, *rest), values[index])
        if "example" in rest:
            out[f"untouched_{name}"] = (tuple(rest), values[0])
    out.attrs = dict(flat.attrs)
    return out
