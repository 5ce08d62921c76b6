"""Which effects are edges: intervals over problems, and what chance and an even spread would give."""

import numpy as np
import xarray as xr

from extract.reenter.observe import COMPARED
from extract.reenter.statistics import by_problem, strata_of
from schemas.resampling import mean_interval
from schemas.statistics import adjust, wilson_interval
from schemas.wording import interval_columns


def with_edges(
    effects: xr.Dataset, *, strata: np.ndarray | None, problem: np.ndarray | None, least: float, n_null: int, seed: int
) -> xr.Dataset:
    """Means over problems, two nulls, and which effects are edges.

    An effect is an edge where the interval of the share of problems in which the target reads otherwise lies above
    ``least``. The nulls do not decide that: they say whether a graph prefers some edges to others, and where every
    thought acts on every later one, none stands out.

    Parameters
    ----------
    effects
        Variables of :data:`extract.reenter.observe.COMPARED` over (``operation``, ``effect``, ``source``, ``target``,
        ``example``), NaN where there can be no edge.
    strata
        Difficulty ``(example,)``; everything is given for each, and for ``all``.
    problem
        Problem ``(example,)``: examples of one are averaged first, and drawn together.
    least
        Least share of problems in which an edge's target reads otherwise.
    n_null
        Draws of the shuffled order.
    seed
        Of draws.

    Returns
    -------
    xr.Dataset
        With ``n(stratum)`` problems and, of (``stratum``, ``operation``, ``effect``, ``source``, ``target``):
        of each measure the mean over problems ``_mean`` and its 95% interval ``_low``, ``_high`` (bootstrap; of flips
        Wilson);
        ``even_flip``, the *even-causal* null: what each later target would show if the source's flips were spread
        evenly over them; ``shuffled_flip``, ``p`` and ``p_holm``, the *shuffled-order* null: the mean flip of an edge
        when each problem's effects are dealt anew to the edges, and how often (one-sided) and after Holm's correction
        over the edges this reaches what was measured; ``edge``, whether it is one.
    """
    groups = strata_of(strata, effects.sizes["example"])
    problem = np.arange(effects.sizes["example"]) if problem is None else problem
    columns: dict[str, list[np.ndarray]] = {}
    for group in groups.values():
        for name, value in _figures(effects, group, problem, n_null, seed).items():
            columns.setdefault(name, []).append(value)
    dims = ("stratum", "operation", "effect", "source", "target")
    out = effects.assign({name: (dims[: value[0].ndim + 1], np.stack(value)) for name, value in columns.items()})
    out["edge"] = out["state_flip_low"] > least
    out = out.assign_coords(stratum=np.array(list(groups), dtype=object))
    return out.assign_attrs(least=least, n_null=n_null)


def _figures(
    effects: xr.Dataset, group: np.ndarray, problem: np.ndarray, n_null: int, seed: int
) -> dict[str, np.ndarray]:
    """Figures ``(operation, effect, source, target)`` of some examples."""
    out: dict[str, np.ndarray] = {}
    for name in COMPARED:
        value = by_problem(effects[name].values[..., group], problem[group])
        mean, low, high = mean_interval(value, seed)
        if name == "state_flip":  # a share: no interval of width 0 where none, or all, are otherwise
            low, high = wilson_interval(mean * value.shape[-1], np.where(np.isnan(mean), 0, value.shape[-1]))
        out |= interval_columns(name, (mean, low, high), "_mean")
        if name == "state_flip":
            flips = value
    mean = out["state_flip_mean"]
    possible = ~np.isnan(mean)
    with np.errstate(invalid="ignore"):
        share = np.nansum(mean, axis=-1, keepdims=True) / possible.sum(-1, keepdims=True)
    out["even_flip"] = np.where(possible, share, np.nan)
    out |= _shuffled(flips, n_null, seed)
    return {"n": np.array(flips.shape[-1]), **out}


def _shuffled(flips: np.ndarray, n_null: int, seed: int) -> dict[str, np.ndarray]:
    """Mean, p and corrected p of each edge when a problem's effects are dealt anew to its edges.

    ``flips`` are ``(operation, effect, source, target, problem)``.
    """
    shape = flips.shape[:-1]
    out = {name: np.full(shape, np.nan) for name in ("shuffled_flip", "p", "p_holm")}
    for place in np.ndindex(shape[:2]):
        value = flips[place]
        possible = ~np.isnan(value).any(-1)
        edges = value[possible]  # (edge, problem)
        rng = np.random.default_rng([seed, 31, *place])
        # Every edge is dealt any of a problem's effects alike, so one edge's draws stand for all.
        dealt = rng.integers(0, len(edges), size=(n_null, edges.shape[1]))
        null = edges[dealt, np.arange(edges.shape[1])].mean(1)
        observed = edges.mean(1)
        p = (1 + (null[None] >= observed[:, None] - 1e-12).sum(1)) / (1 + n_null)
        for name, shown in (("shuffled_flip", null.mean()), ("p", p), ("p_holm", adjust(p))):
            out[name][(*place, possible)] = shown
    return out
