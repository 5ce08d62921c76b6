"""Conditions against each other on the same examples: one layer against another, N thoughts against N + 1."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from schemas.problem_sums import problem_of
from schemas.statistics import adjust, mcnemar_exact


def with_pairs(
    out: xr.Dataset, outcome: np.ndarray, *, over: str, within: Sequence[str], which: Literal["all", "next"],
    only: np.ndarray | None = None,
) -> xr.Dataset:  # fmt: skip
    """Add paired tests of conditions that differ in one label only; controls are left out.

    Parameters
    ----------
    out
        Of a sweep, with coordinates along ``condition``: ``over``, those of ``within``, and ``control``.
    outcome
        What is compared ``(condition, example)``, bool; examples that a condition does not count are False in both.
    over
        The label that differs; -1 is no value of it.
    within
        Labels that agree.
    which
        Every pair of values, or each value and the next.
    only
        Conditions that are compared ``(condition,)``; all by default.

    Returns
    -------
    xr.Dataset
        With dim ``{over}_pair`` (unchanged if there is no pair): coordinates ``{over}_first``, ``{over}_second`` and
        ``{over}_pair_X`` for X in ``within``; ``{over}_difference`` (share of the second less that of the first),
        ``{over}_p`` (exact McNemar) and ``{over}_p_holm`` over all pairs.
    """
    labels = {name: out[name].values for name in (over, *within, "control")}
    problem = problem_of(out)
    groups: dict[tuple[Any, ...], dict[Any, int]] = {}
    for index in range(out.sizes["condition"]):
        chosen = only is None or only[index]
        if chosen and not str(labels["control"][index]) and labels[over][index] != -1:
            key = tuple(labels[name][index] for name in within)
            groups.setdefault(key, {}).setdefault(labels[over][index], index)
    rows: list[tuple[tuple[Any, ...], Any, Any, float, float]] = []
    for key, members in groups.items():
        values = sorted(members)
        for one, two in itertools.combinations(values, 2) if which == "all" else itertools.pairwise(values):
            before, after = outcome[members[one]], outcome[members[two]]
            rows.append((key, one, two, float(after.mean() - before.mean()), mcnemar_exact(before, after, problem).p))
    if not rows:
        return out
    dim = f"{over}_pair"
    keys, first, second, difference, p = zip(*rows, strict=True)
    p_values = np.array(p)
    out = out.assign(
        {
            f"{over}_difference": (dim, np.array(difference)),
            f"{over}_p": (dim, p_values),
            f"{over}_p_holm": (dim, adjust(p_values)),
        }
    )
    coords: Mapping[str, Any] = {f"{over}_first": (dim, np.array(first)), f"{over}_second": (dim, np.array(second))}
    named = {f"{dim}_{name}": (dim, _column([key[index] for key in keys])) for index, name in enumerate(within)}
    return out.assign_coords({**coords, **named})


def _column(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, dtype=object if isinstance(values[0], str) else None)


def spared(p: Sequence[float], drop: Sequence[float], counts: Sequence[int]) -> int:
    """Most thoughts that can be taken away before accuracy falls: significantly, by Holm over the counts.

    ``p`` and ``drop`` are those of each count, ascending, against the untouched run.
    """
    corrected = adjust(p)
    lost = (corrected < 0.05) & (np.asarray(drop) > 0)
    if not lost.any():
        return int(counts[-1])
    first = int(np.flatnonzero(lost)[0])
    return int(counts[first - 1]) if first else 0


def with_spared(out: xr.Dataset, within: Sequence[str]) -> xr.Dataset:
    """Add ``n_spared(condition)``: of each series of ``n_thought``, how many can be taken away.

    The labels ``within`` agree in a series; ``p`` and ``drop`` of every condition are against the untouched run.
    """
    series: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for index, n in enumerate(out["n_thought"].values.tolist()):
        if n > 0:
            key = tuple(out[name].values[index] for name in within)
            series.setdefault(key, []).append((n, index))
    figures = out[["p", "drop"]].sel(stratum="all")
    column = np.full(out.sizes["condition"], np.nan)
    for members in series.values():
        counts, rows = zip(*sorted(members), strict=True)
        chosen = figures.isel(condition=list(rows))
        column[list(rows)] = spared(chosen["p"].values.tolist(), chosen["drop"].values.tolist(), counts)
    return out.assign(n_spared=("condition", column))
