"""Erase a step's result from a thought, or exchange it, inside subspaces of growing rank."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.cells import Cells, name_of
from extract.reenter.steering.directions import stored_vectors
from extract.reenter.subspace.command import APART, APART_CONTROL, EVERYTHING, RANDOM, RANDOM_CONTROL, SubspaceSettings
from extract.reenter.subspace.fits import (
    FITS,
    Fit,
    class_means,
    class_spread,
    orthonormal,
    random_subspace,
    share_inside,
)
from extract.reenter.subspace.interchange import train_interchange
from extract.reenter.target import Target
from extract.reenter.trial import Place, Trial, give, open_trial, places_of, where
from extract.reenter.wanted import Wanted, draw_at, fitted_at
from schemas import Intervention, UsageError

TRAINED = "das"


def subspaces(target: Target, settings: SubspaceSettings | None = None) -> xr.Dataset:
    """Erase and exchange the part of a state inside subspaces that are said to carry a step's result.

    Subspaces are fitted on one half of the problems and tried on the other. Erasing puts the mean of the states there;
    exchanging puts a donor's part there, whose result is one that the rest of the chain can go on from.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer``, ``changed`` (the position), ``step``, ``change`` (``erase``,
        ``exchange``), ``subspace``, ``rank`` and ``control``, on the problems that nothing was fitted on and that the
        model answers rightly; figures of :meth:`extract.reenter.cells.Cells.measure`. ``hit_share`` of an exchange is
        the interchange accuracy; ``p_right`` and ``p_hit`` are against the first random subspace of the same rank.
        ``held_share(condition)`` is how much of the spread of class means lies inside. Random subspaces come in two
        kinds: drawn evenly, which hold rank in width of every direction, and drawn orthogonal to what class means span.

    Raises
    ------
    UsageError
        If there is no such subspace, rank or place.
    """
    settings = settings or SubspaceSettings()
    hidden, seed = target.reasoner.hidden, settings.seed
    if wrong := [rank for rank in settings.ranks if rank > hidden]:
        raise UsageError(f"rank {wrong[0]} is not there; states of {target.run} have {hidden} components")
    trial = open_trial(target, seed)
    cells = Cells(trial)
    arrays = {name: stored_vectors(trial.target, name) for name in settings.stored}
    places = places_of(trial, settings.site, settings.layers, settings.positions, settings.step)
    wants, passed_over = draw_at(trial, places, seed=seed)
    held: dict[tuple[Place, str, int], float] = {}
    for place, wanted in wants.items():
        mean = np.asarray(np.nanmean(trial.column(place)[trial.fitted], axis=0))
        spread, means = _spread_of_classes(trial, place)
        # Never all of the width: as many dimensions must be left as are asked for.
        apart = means[: max(0, min(max(settings.ranks), hidden - max(settings.ranks)))]
        fits = {f"{RANDOM} #{n + 1}": random_subspace(hidden, mean, seed + n) for n in range(settings.draws)}
        fits |= {f"{APART} #{n + 1}": random_subspace(hidden, mean, seed + n, apart) for n in range(settings.draws)}
        for name in (*settings.subspaces, *settings.stored):
            if name != TRAINED:
                fits[name] = _fit(trial, place, name, mean, arrays.get(name))
        give(trial, _donors_at(place), trial.column(place)[wanted.donor])
        _whole(cells, wanted, hidden)
        for rank in sorted(settings.ranks):
            if TRAINED in settings.subspaces:
                fits[TRAINED] = train_interchange(
                    trial, place, rank, n_step=settings.das_steps, batch=settings.das_rows, seed=seed,
                    report=target.report,
                )  # fmt: skip
            for name, fit in fits.items():
                if rank <= len(fit.basis):
                    _inside(cells, wanted, name, fit, rank)
                    held[place, name, rank] = share_inside(fit, rank, spread)
    out = cells.measure(seed=seed, draws=settings.drawing(seed)).assign_attrs(passed_over=passed_over)
    return out.assign(held_share=("condition", _held_of(out, held)))


def _spread_of_classes(trial: Trial, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of the classes at a place, and orthonormal rows that span them, the largest first."""
    rows, labels = fitted_at(trial, place)
    states = trial.column(place)[rows]
    return class_spread(states, labels), class_means(states, labels).basis


def _held_of(out: xr.Dataset, held: Mapping[tuple[Place, str, int], float]) -> list[float]:
    """How much of the classes' spread lies inside the subspace of each condition; NaN where there is none."""
    names = ("site", "layer", "changed", "step", "subspace", "rank")
    shares = []
    for site, layer, changed, step, name, rank in zip(*(out[name].values.tolist() for name in names), strict=True):
        shares.append(held.get((Place(site, layer, changed, step), name, rank), np.nan))
    return shares


def _fit(trial: Trial, place: Place, name: str, mean: np.ndarray, array: xr.DataArray | None) -> Fit:
    """A subspace fitted at a place, or that of a stored array."""
    if array is None:
        rows, labels = fitted_at(trial, place)
        return FITS[name](trial.column(place)[rows], labels)
    array = trial.target.values.at_place(array, f"subspace {name!r}", place.layer, place.position)
    vectors = array.transpose(..., "hidden").values.reshape(-1, array.sizes["hidden"])
    return orthonormal(vectors, mean)


def _donors_at(place: Place) -> str:
    """Name of the donors' values at a place."""
    return f"donor at {place}"


def _add(
    cells: Cells, wanted: Wanted, change: str, subspace: str, rank: int, intervention: Mapping[str, Any],
    control: str = "",
) -> None:  # fmt: skip
    """One condition at a place; those that are not controls are tested against a random subspace of the same rank."""
    place = wanted.place
    labels = {"change": change, **place.labels, "subspace": subspace, "rank": rank, "control": control}
    random = {**labels, "subspace": f"{RANDOM} #1", "control": RANDOM_CONTROL}
    tested = subspace != EVERYTHING and not control
    cells.add(
        [Intervention(**where(cells.trial.target, place), **intervention)], labels, wanted.counted,
        answer=wanted.answer if change == "exchange" else None, where=(place.position,),
        against=name_of(random) if tested else "",
    )  # fmt: skip


def _whole(cells: Cells, wanted: Wanted, hidden: int) -> None:
    """All of the state erased or exchanged, and put back."""
    exchanged = {"operation": "write", "direction": _donors_at(wanted.place)}
    _add(cells, wanted, "erase", EVERYTHING, hidden, {"operation": "mean"})
    _add(cells, wanted, "exchange", EVERYTHING, hidden, exchanged)
    for donor in ("forward", "stored"):
        itself = {"operation": "replace", "donor": donor}
        _add(cells, wanted, "exchange", EVERYTHING, hidden, itself, f"self ({donor})")


def _inside(cells: Cells, wanted: Wanted, name: str, fit: Fit, rank: int) -> None:
    """The part inside a subspace erased and exchanged."""
    values, place = cells.trial.target.values, wanted.place
    key = f"{name} {rank} at {place}"
    values.subspaces = {**values.subspaces, key: fit.rank(rank)}
    control = APART_CONTROL if name.startswith(APART) else RANDOM_CONTROL if name.startswith(RANDOM) else ""
    exchanged = {"operation": "write", "subspace": key, "direction": _donors_at(place)}
    _add(cells, wanted, "erase", name, rank, {"operation": "project_out", "subspace": key}, control)
    _add(cells, wanted, "exchange", name, rank, exchanged, control)
