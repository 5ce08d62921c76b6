"""What can be read from the thoughts of a model and of its control, and whether the answers use it: the measures."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import number_at
from analyze.labels import thought_labels
from analyze.tables import ENDS
from schemas.naming import fed_at
from schemas.picked import Pick, of_picked
from schemas.statistics import difference_interval

Measure = tuple[str, str, str, dict[str, Any], Pick | None]
"""Whether it is of what can be read or used, its name, its variable, where that is taken, and how that was picked."""
ANSWERS, READ, USED = "answers", "can be read", "is used"
WRONG = "wrong under ablation"
"""One less the accuracy under ablation, so that among what is used more is always to the right."""


def measures(data: xr.Dataset) -> Iterator[Measure]:
    """What can be read from a model's thoughts, at the position where it is read best; then what the answer uses."""
    yield ANSWERS, "accuracy, untouched", "accuracy", {}, None
    for step in data["step"].values[:3] if "step" in data.dims else []:
        for name, label, where in (
            ("chain_share", "lens: step {} at {}", {"step": step}),
            ("step_probe", "probe: R² of step {} at {}", {"step": step, "depth": float(data["depth"].values[-1])}),
        ):
            by_position = data[name].sel(where) if name in data else xr.DataArray(np.nan)
            if by_position.notnull().any():
                best = str(by_position["position"].values[int(np.nanargmax(by_position.values))])
                pick = Pick(int(by_position.notnull().sum()), share=name == "chain_share")
                yield READ, label.format(int(step) + 1, fed_name(best, data)), name, where | {"position": best}, pick
    for thought in thought_labels(data) if "position" in data.dims else []:
        where = {"corruption": "mean", "position": thought}
        yield USED, f"{thought} averaged: answers lost", "importance", where, None
    for group in ("all", "numbers"):
        where = {"operation": "mean", "group": group, "place": "fed"}
        yield USED, f"{group} averaged: answers wrong", WRONG, where, None
    if "n_thought" in data.dims:
        n = int(data["n_thought"].values.max())
        yield USED, f"{n} of another problem: its answer", "patch_clean", {"place": "fed", "n_thought": n}, None


def fed_name(position: str, data: xr.Dataset) -> str:
    """A position, and where what is made of its state is fed: what is read at the one acts at the other."""
    fed = fed_at(position)
    return f"{position}, fed at {fed}" if fed != position and fed in thought_labels(data) else position


def measured(data: xr.Dataset, name: str, where: Mapping[str, Any]) -> list[float]:
    """A measure and the ends of its interval."""
    if name != WRONG:
        return number_at(data, name, **where)
    value, low, high = number_at(data, "ablation_accuracy", **where)
    return [1 - value, 1 - high, 1 - low]


def measure_rows(one: xr.Dataset, other: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Each measure of a model and of its twin, and their difference, with intervals, where both have it."""
    for kind, what, name, where, pick in measures(one):
        values = {"model": measured(one, name, where), "twin": measured(other, name, where)}
        if pick is not None:
            values["model"] = of_picked(values["model"], pick)
        if all(np.isfinite(value[0]) for value in values.values()):
            values["difference"] = [float(value) for value in difference_interval(*values.values())]
            columns = {f"{of}{end}": x for of, ends in values.items() for end, x in zip(ENDS, ends, strict=True)}
            yield {"kind": kind, "what": what} | columns
