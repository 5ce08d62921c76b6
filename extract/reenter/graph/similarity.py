"""How like two graphs are, edge by edge, and how like an even spread."""

import numpy as np
import xarray as xr

from schemas import UsageError


def graph_similarity(graph: xr.Dataset, other: xr.Dataset, *, n_null: int = 2000, seed: int = 0) -> xr.Dataset:
    """Compare the effects of two graphs.

    Nodes are matched by name or, where the names differ and the numbers agree, by their order.

    Parameters
    ----------
    graph, other
        With ``state_flip_mean``, ``even_flip`` and ``edge`` of (``stratum``, ``operation``, ``effect``, ``source``,
        ``target``), as :func:`extract.reenter.graph.edges.with_edges` gives them.
    n_null
        Draws of the null.
    seed
        Of the null.

    Returns
    -------
    xr.Dataset
        Of (``operation``, ``effect``) that both have, over all problems: ``similarity``, the cosine of the two lists of
        effects; ``similarity_p``, how often one is as high when the other's effects are dealt anew to its edges
        (one-sided); ``even_similarity``, the cosine of the first graph and its even-causal null; ``jaccard``, edges in
        common over edges of either. NaN where a graph has no effect, or no edge.

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
    shared = {name: [each for each in one[name].values if each in two[name].values] for name in ("operation", "effect")}
    if not shared["operation"]:
        raise UsageError(
            f"the graphs have no operation in common: {', '.join(one['operation'].values)} and"
            f" {', '.join(two['operation'].values)}"
        )
    shape = tuple(len(each) for each in shared.values())
    found = {name: np.full(shape, np.nan) for name in ("similarity", "similarity_p", "even_similarity", "jaccard")}
    for place in np.ndindex(shape):
        labels = {name: axis[index] for (name, axis), index in zip(shared.items(), place, strict=True)}
        first, second = one.sel(labels), two.sel(labels)
        possible = first["state_flip_mean"].notnull().values & second["state_flip_mean"].notnull().values
        ours, theirs = (each["state_flip_mean"].values[possible] for each in (first, second))
        found["similarity"][place] = cosine(ours, theirs)
        found["even_similarity"][place] = cosine(ours, first["even_flip"].values[possible])
        found["similarity_p"][place] = _chance(ours, theirs, n_null, np.random.default_rng([seed, 41, *place]))
        edges = [each["edge"].values[possible] for each in (first, second)]
        either = (edges[0] | edges[1]).sum()
        found["jaccard"][place] = (edges[0] & edges[1]).sum() / either if either else np.nan
    return xr.Dataset({name: (("operation", "effect"), value) for name, value in found.items()}, coords=shared)


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    """Cosine of two lists of effects; NaN where one is all zeros."""
    norm = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two) / norm if norm else float("nan")


def _chance(one: np.ndarray, two: np.ndarray, n_null: int, rng: np.random.Generator) -> float:
    """How often the cosine is as high when the second's effects are dealt anew."""
    observed = cosine(one, two)
    if np.isnan(observed):
        return float("nan")
    null = np.array([cosine(one, rng.permutation(two)) for _ in range(n_null)])
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + n_null))
