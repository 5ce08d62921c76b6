"""How like two graphs are, edge by edge, and how like an even spread."""

from collections.abc import Callable

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from extract.reenter.statistics import by_problem
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.resampling import draw_counts, percentiles

N_DRAW = 1000
"""Draws of the problems for an interval."""
NAMES = (
    "rank_correlation", "rank_correlation_low", "rank_correlation_high", "rank_correlation_p", "similarity",
    "similarity_p", "even_similarity", "jaccard",
)  # fmt: skip


def graph_similarity(graph: xr.Dataset, other: xr.Dataset, *, n_null: int = 2000, seed: int = 0) -> xr.Dataset:
    """Compare the effects of two graphs.

    Nodes are matched by name or, where the names differ and the numbers agree, by their order: thoughts may be set
    against the steps of an explicit chain.

    Parameters
    ----------
    graph, other
        With ``state_flip_mean``, ``even_flip`` and ``edge`` of (``stratum``, ``operation``, ``effect``, ``source``,
        ``target``), as :func:`extract.reenter.graph.edges.with_edges` gives them, and ``state_flip`` by example.
    n_null
        Draws of the null.
    seed
        Of the null and of the interval.

    Returns
    -------
    xr.Dataset
        Of (``operation``, ``effect``) that both have, over all problems: ``rank_correlation`` of the two lists of
        effects (Spearman) with its 95% interval ``_low``, ``_high`` over problems of both graphs, each drawn anew by
        itself; ``similarity``, their cosine; ``rank_correlation_p`` and ``similarity_p``, how often one is as high when
        the other's effects are dealt anew to its edges (one-sided); ``even_similarity``, the cosine of the first graph
        and its even-causal null; ``jaccard``, edges in common over edges of either. NaN where a graph has no effect, or
        no edge.

    Raises
    ------
    UsageError
        If the nodes do not match, or no operation is in both.
    """
    one, two = graph.sel(stratum="all"), other.sel(stratum="all")
    if list(one["source"].values) != list(two["source"].values):
        if one.sizes["source"] != two.sizes["source"]:
            raise UsageError(
                f"a graph of {', '.join(one['source'].values)} cannot be set against one of"
                f" {', '.join(two['source'].values)}: as many nodes are needed; name them with --positions"
            )
        two = two.assign_coords(source=one["source"].values, target=one["target"].values)
    shared = {
        name: [label for label in one[name].values if label in two[name].values] for name in ("operation", "effect")
    }
    if not shared["operation"]:
        raise UsageError(
            f"the graphs have no operation in common: {', '.join(one['operation'].values)} and"
            f" {', '.join(two['operation'].values)}"
        )
    shape = tuple(len(labels_shared) for labels_shared in shared.values())
    measures = {name: np.full(shape, np.nan) for name in NAMES}
    for place in np.ndindex(shape):
        labels = {name: axis[index] for (name, axis), index in zip(shared.items(), place, strict=True)}
        first, second = one.sel(labels), two.sel(labels)
        possible = first["state_flip_mean"].notnull().values & second["state_flip_mean"].notnull().values
        ours, theirs = (graph["state_flip_mean"].values[possible] for graph in (first, second))
        measures["even_similarity"][place] = cosine(ours, first["even_flip"].values[possible])
        for name, measure in (("similarity", cosine), ("rank_correlation", rank_correlation)):
            measures[name][place] = measure(ours, theirs)
            rng = np.random.default_rng([seed, 41, *place])
            measures[f"{name}_p"][place] = _chance(measure, ours, theirs, n_null, rng)
        drawn = [_drawn(graph, possible, seed + number) for number, graph in enumerate((first, second))]
        correlations = np.array([rank_correlation(*pair) for pair in zip(*drawn, strict=True)])
        n_problem = min(len(np.unique(problem_of(graph))) for graph in (first, second))
        bounds = percentiles(correlations, n_problem)
        measures["rank_correlation_low"][place], measures["rank_correlation_high"][place] = bounds
        edges = [graph["edge"].values[possible] for graph in (first, second)]
        either = (edges[0] | edges[1]).sum()
        measures["jaccard"][place] = (edges[0] & edges[1]).sum() / either if either else np.nan
    return xr.Dataset({name: (("operation", "effect"), value) for name, value in measures.items()}, coords=shared)


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    """Cosine of two lists of effects; NaN where one is all zeros."""
    norm = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norm if norm else float("nan")


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's correlation of two lists of effects; NaN where all of one are the same."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (one, two)]
    return cosine(*ranks)


def _drawn(graph: xr.Dataset, possible: np.ndarray, seed: int) -> np.ndarray:
    """Effects ``(draw, edge)`` of a graph over problems that are drawn anew."""
    flips = by_problem(graph["state_flip"].values[possible], problem_of(graph))
    draws = draw_counts(np.arange(flips.shape[-1]), n_resample=N_DRAW, seed=seed)
    return np.asarray((flips @ draws / draws.sum(0)).T)


def _chance(
    measure: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, two: np.ndarray, n_null: int,
    rng: np.random.Generator,
) -> float:  # fmt: skip
    """How often a measure is as high when the second's effects are dealt anew."""
    observed = measure(one, two)
    if np.isnan(observed):
        return float("nan")
    null = np.array([measure(one, rng.permutation(two)) for _ in range(n_null)])
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + n_null))
