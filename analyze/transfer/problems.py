"""Which problems several runs share, so that none of them is both fitted on and tested."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import labels_along, part_of, up_to_eot_or_as_chosen
from schemas import SchemaError, UsageError
from schemas.asked import asked
from schemas.problem_sums import problem_of

Array = np.ndarray[Any, np.dtype[Any]]


def problem_groups(runs: Mapping[str, xr.Dataset]) -> dict[str, Array]:
    """Number the problems over all runs: one number where questions read the same, or a run says it is one problem.

    Returns
    -------
    dict
        Of each run (example,), int. A clean question, its corrupted twin and the same question in another run have
        one number.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[tuple[str, Any], int] = {}
    edges = []
    for name, run in runs.items():
        for key, question in zip(problem_of(run).tolist(), map(asked, map(str, run["question"].values)), strict=True):
            edges.append([numbers.setdefault(end, len(numbers)) for end in ((name, key), ("", question))])
    first, second = np.array(edges).T
    graph = coo_array((np.ones(len(edges)), (first, second)), shape=(len(numbers), len(numbers)))
    component = connected_components(graph, directed=False)[1]
    ends = np.cumsum([0, *(run.sizes["example"] for run in runs.values())])
    groups = component[first]
    return {name: groups[ends[i] : ends[i + 1]] for i, name in enumerate(runs)}


def comparable(runs: Mapping[str, xr.Dataset], positions: Sequence[str] | None) -> dict[str, xr.Dataset]:
    """The runs at the layers and positions that all of them have, up to ``eot`` where no positions are given.

    Raises
    ------
    SchemaError
        If a run lacks states or questions.
    UsageError
        If the widths of the states differ, or the runs have no layer or no position in common.
    """
    for name, run in runs.items():
        if missing := [needed for needed in ("hidden_state", "question") if needed not in run]:
            raise SchemaError(f"run {name!r} lacks {' and '.join(missing)}; extract it again, or name another run")
    width = {name: run.sizes["hidden"] for name, run in runs.items()}
    if len(set(width.values())) > 1:
        listed = ", ".join(f"{name} has width {size}" for name, size in width.items())
        raise UsageError(f"a fit to one run reads states of that width only, but {listed}; name runs of one width")
    parts = {name: up_to_eot_or_as_chosen(run, positions) for name, run in runs.items()}
    common: dict[str, list[Any]] = {}
    for dim in ("layer", "position"):
        first, *others = (run[dim].values.tolist() for run in parts.values())
        common[dim] = [label for label in first if all(label in labels for labels in others)]
        if not common[dim]:
            listed = "; ".join(f"{name}: {', '.join(labels_along(run, dim))}" for name, run in parts.items())
            raise UsageError(f"the runs have no {dim} in common: {listed}")
    return {name: part_of(run, layers=common["layer"], positions=common["position"]) for name, run in parts.items()}
