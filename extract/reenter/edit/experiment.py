"""Write a chosen value into a thought, and see whether the answer is what the rest of the problem makes of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.cells import Cells, name_of
from extract.reenter.edit.command import EditSettings
from extract.reenter.edit.methods import METHODS
from extract.reenter.edit.others import with_others
from extract.reenter.sites import NOISE
from extract.reenter.subspace.stored import give_stored
from extract.reenter.target import Target
from extract.reenter.trial import Place, Trial, give, open_trial, places_of, where
from extract.reenter.wanted import Value, Wanted, draw_at, fitted_at
from schemas import Intervention, UsageError
from schemas.intervention import read_interventions

SAME_VALUE = "donor of the own value"


def edit(target: Target, settings: EditSettings | None = None) -> xr.Dataset:
    """Write another value of a step into the thought that carries it, in several ways and doses.

    What a method needs is fitted on one half of the problems; the other half is edited. Edits count where the model
    answers rightly and the rest of the chain makes another answer of the value.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer``, ``changed`` (the position), ``step``, ``method``, ``dose``,
        ``also`` and ``control``; figures of :meth:`extract.reenter.cells.Cells.measure`: ``hit_share`` is how often
        the answer is what the rest of the chain makes of the value, ``p_hit`` against noise of the same norm. What
        becomes of the other thoughts is in ``follow_share`` and ``side_share``, see
        :func:`extract.reenter.edit.others.with_others`.

    Raises
    ------
    UsageError
        If there is no such quantity, method, place or value.
    """
    settings = settings or EditSettings()
    together = read_interventions(settings.also)
    for intervention in together:
        target.reasoner.check(intervention)
    trial = open_trial(target, settings.seed)
    give_stored(trial.target, together)
    cells = Cells(trial)
    places = places_of(trial, settings.site, settings.layers, settings.positions, settings.step)
    to = _value(trial, settings)
    wants, passed_over = draw_at(trial, places, quantity=settings.quantity, to=to, seed=settings.seed)
    methods = settings.methods
    if len(methods) > 1 and trial.chains.none == "" and "regression" in methods:
        methods = tuple(method for method in methods if method != "regression")
        passed_over = "; ".join(filter(None, [passed_over, "regression, which is of numbers, not words"]))
    for wanted in wants.values():
        for method in methods:
            _edits(cells, wanted, method, settings, together)
        _controls(cells, wanted, settings)
    _alone(cells, together, settings.also)
    out = cells.measure(observe=True, seed=settings.seed, draws=settings.drawing(settings.seed))
    out = out.assign_attrs(passed_over=passed_over)
    return with_others(trial, out, [None, *(place and wants[place] for place in _places(cells))])


def _value(trial: Trial, settings: EditSettings) -> Value | None:
    """The value for all problems, if there is one."""
    if settings.to is None or settings.quantity == "operation" or trial.chains.none == "":
        return settings.to
    try:
        return float(settings.to)
    except ValueError:
        raise UsageError(f"--to is {settings.to!r}; an intermediate result is a number") from None


def _labels(
    place: Place | None, method: str, dose: float, also: str = "", control: str = ""
) -> dict[str, str | int | float]:
    nowhere = Place("", -1, "", -1)
    return {"method": method, "dose": float(dose), **(place or nowhere).labels, "also": also, "control": control}


def _edits(cells: Cells, wanted: Wanted, method: str, settings: EditSettings, together: Sequence[Intervention]) -> None:
    """A method at its doses, with noise of the norm of the whole edit beside it."""
    place = wanted.place
    written = METHODS[method](cells.trial, wanted, settings.quantity)
    placed: dict[str, Any] = {**where(cells.trial.target, place), **written.intervention}
    noise = _labels(place, method, 1.0, control=NOISE)
    for dose in settings.doses:
        cells.add(
            [Intervention(**placed, strength=dose)], _labels(place, method, dose), written.counted,
            answer=wanted.answer, where=(place.position,), against=name_of(noise),
        )  # fmt: skip
    noisy = Intervention(**placed, as_noise=True)
    cells.add([noisy], noise, written.counted, answer=wanted.answer, where=(place.position,))
    if together:
        cells.add(
            [Intervention(**placed), *together], _labels(place, method, 1.0, settings.also), written.counted,
            answer=wanted.answer, where=(place.position,), against=name_of(noise),
        )  # fmt: skip


def _controls(cells: Cells, wanted: Wanted, settings: EditSettings) -> None:
    """What must change nothing: a donor of the own value, and the own state put back."""
    trial, place = cells.trial, wanted.place
    fitted, labels = fitted_at(trial, place, settings.quantity)
    donors = np.full(len(trial.tried), -1)
    for index in np.flatnonzero(wanted.counted):
        same = fitted[labels == wanted.own[index]]
        if len(same):
            donors[index] = np.random.default_rng([settings.seed, int(trial.tried[index]), 53]).choice(same)
    name = f"donor of the own value at {place}"
    give(trial, name, trial.column(place)[donors])
    placed = where(trial.target, place)
    changes: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        (SAME_VALUE, donors >= 0, {"operation": "write", "direction": name}),
        ("self (forward)", wanted.counted, {"operation": "replace", "donor": "forward"}),
        ("self (stored)", wanted.counted, {"operation": "replace", "donor": "stored"}),
    ]
    for control, counted, change in changes:
        cells.add(
            [Intervention(**placed, **change)], _labels(place, "", 1.0, control=control), counted,
            answer=wanted.answer, where=(place.position,),
        )  # fmt: skip


def _alone(cells: Cells, together: Sequence[Intervention], also: str) -> None:
    """Add the interventions made ``also``, without an edit: each alone, and all together."""
    every = np.ones(len(cells.trial.tried), dtype=bool)
    parts = [text.strip() for text in also.split(";") if text.strip()]
    for text, intervention in zip(parts, together, strict=True):
        cells.add([intervention], _labels(None, "", 1.0, text), every)
    if len(parts) > 1:
        cells.add(together, _labels(None, "", 1.0, also), every)


def _places(cells: Cells) -> list[Place | None]:
    """Place of each condition; ``None`` where none is edited."""
    return [
        Place(*(condition.labels[key] for key in ("site", "layer", "changed", "step")))
        if condition.labels["site"]
        else None
        for condition in cells.conditions
    ]
