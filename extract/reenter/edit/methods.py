"""Ways of writing another value into a state: what is added or written, for every example."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr
from sklearn.linear_model import Ridge

from extract.reenter.subspace.fits import deviation, logistic_probe
from extract.reenter.trial import Trial, give
from extract.reenter.wanted import Wanted, fitted_at, labels_of
from schemas import UsageError


class Written(NamedTuple):
    """What an intervention does at full dose."""

    intervention: dict[str, str]
    """Its operation, and the names of what it takes."""
    counted: np.ndarray
    """Examples ``(tried,)`` for which the method has something to write."""


def by_means(trial: Trial, wanted: Wanted, quantity: str) -> Written:
    """Add the difference of two class means: that of the value wanted less that of the own one."""
    states, labels = _fitted(trial, wanted, quantity)
    means = {value: states[labels == value].mean(0) for value in np.unique(labels)}
    counted = wanted.counted & np.isin(wanted.own, list(means))
    added = np.full((len(counted), states.shape[1]), np.nan)
    for index in np.flatnonzero(counted):
        added[index] = means[wanted.value[index]] - means[wanted.own[index]]
    name = f"difference of means at {wanted.place}"
    give(trial, name, added)
    return Written({"operation": "add", "direction": name}, counted)


def by_probe(trial: Trial, wanted: Wanted, quantity: str) -> Written:
    """Go along a probe's direction to the boundary between the own value and the one wanted.

    With weights w and intercepts b of a logistic probe of the classes, the direction is w_wanted - w_own, and the
    boundary is where it meets b_own - b_wanted: the nearest states that the probe takes for either. Twice the dose is
    as far beyond it as the state was before it.
    """
    states, labels = _fitted(trial, wanted, quantity)
    probe, mean, scale = logistic_probe(states, labels)
    weights = probe.coef_ / scale
    intercepts = probe.intercept_ - weights @ mean
    if len(probe.classes_) == 2:  # one row of weights tells the second class from the first
        weights, intercepts = np.stack([-weights[0], weights[0]]) / 2, np.array([-1, 1]) * intercepts[0] / 2
    place_of = {value: place for place, value in enumerate(probe.classes_)}
    counted = wanted.counted & np.isin(wanted.own, probe.classes_)
    own, new = (
        np.array([place_of[value] if use else 0 for value, use in zip(values, counted, strict=True)])
        for values in (wanted.own, wanted.value)
    )
    return _along(trial, wanted, "probe", weights[new] - weights[own], intercepts[own] - intercepts[new], counted)


def by_regression(trial: Trial, wanted: Wanted, quantity: str) -> Written:
    """Go along the direction of a ridge regression of the number until it predicts the one wanted.

    The regression is of states scaled to one standard deviation, as :func:`by_probe`'s.
    """
    if labels_of(trial, quantity, wanted.place.step).dtype.kind in "OU":
        raise UsageError("a regression is of numbers; operators and words can be written by means, probe and donor")
    states, labels = _fitted(trial, wanted, quantity)
    mean, scale = states.mean(0), deviation(states)
    ridge = Ridge(alpha=1.0).fit((states - mean) / scale, labels)
    weight = ridge.coef_ / scale
    direction = np.broadcast_to(weight, (len(wanted.own), states.shape[1]))
    level = np.where(wanted.counted, wanted.value, 0).astype(np.float64) - ridge.intercept_ + weight @ mean
    return _along(trial, wanted, "regression", direction, level, wanted.counted)


def by_donor(trial: Trial, wanted: Wanted, quantity: str) -> Written:
    """Put in the state of another problem that has the value."""
    name = f"donor of the value at {wanted.place}"
    give(trial, name, trial.column(wanted.place)[wanted.donor])
    return Written({"operation": "write", "direction": name}, wanted.counted)


METHODS: dict[str, Callable[[Trial, Wanted, str], Written]] = {
    "means": by_means,
    "probe": by_probe,
    "regression": by_regression,
    "donor": by_donor,
}


def _fitted(trial: Trial, wanted: Wanted, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """States ``(row, hidden)`` and labels ``(row,)`` of the half that fits are made on."""
    rows, labels = fitted_at(trial, wanted.place, quantity)
    return trial.column(wanted.place)[rows].astype(np.float64), labels


def _along(
    trial: Trial, wanted: Wanted, method: str, direction: np.ndarray, level: np.ndarray, counted: np.ndarray
) -> Written:
    """Move examples along directions ``(tried, hidden)`` of their own to where state times direction is ``level``."""
    size = np.linalg.norm(direction, axis=1)
    counted = counted & (size > 0)
    unit = direction / np.where(size > 0, size, 1)[:, None]
    name = f"{method} at {wanted.place}"
    give(trial, name, unit * (level / np.where(size > 0, size, 1))[:, None])
    values = trial.target.values
    line = xr.Dataset(
        {
            "basis": (("example", "rank", "hidden"), unit[:, None].astype(np.float32)),
            "mean": ("hidden", np.zeros(unit.shape[1], dtype=np.float32)),
        },
        coords={"example": trial.examples},
    )
    values.subspaces = {**values.subspaces, name: line}
    return Written({"operation": "write", "direction": name, "subspace": name}, counted)
