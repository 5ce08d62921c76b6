"""What was found in a model beside the same number of its controls, and whether they show it too."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyze.saying import listed
from schemas.picked import Pick, of_picked
from schemas.statistics import difference_interval
from schemas.wording import interval_columns

if TYPE_CHECKING:
    from analyze.context import Context, StoredResult
    from analyze.page import Page

Triple = Sequence[float]
"""Estimate and the ends of its interval."""
SEEN, FAINTER = "seen in the control too", "seen in the control too, though less"
NOT, OPEN = "not in the control", "not distinguishable from the control"
LESS, MORE = "less in the control", "more in the control"
UNMEASURED, NOTHING_SAID = "not measured", "nothing to compare"
IN_WORDS = {
    SEEN: "seen too", FAINTER: "seen too, though less", NOT: "not seen", OPEN: "not distinguishable", LESS: "less",
    MORE: "more",
}  # fmt: skip
NOTHING = 0.1
"""Share, or R², up to which nothing is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found of a model: a number at a place that was chosen on it, to be had of any result of the kind."""

    what: str
    of: Callable[[Any], Triple]
    """Takes what has the number: a :class:`analyze.context.StoredResult`, or a :class:`Pair`."""
    nothing: float = NOTHING
    """What a model shows that has nothing of it; NaN where no value is nothing."""
    pick: Pick | None = None
    """How the place was picked on the model, whose interval allows for it; a control's is at that place anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """What was found of two runs together."""

    runs: tuple[str, str]
    label: str
    """As their sentence on the page begins."""
    data: xr.Dataset


def number_at(data: xr.Dataset, name: str, **place: Any) -> list[float]:
    """A number of a result and its interval; NaN where it has no such number, place or interval."""
    values = []
    for variable in (name, f"{name}_low", f"{name}_high"):
        there = variable in data and all(
            dim in data[variable].dims and label in data[dim].values for dim, label in place.items()
        )
        cell = data[variable].sel(place) if there else xr.DataArray(np.nan)
        values.append(math.nan if cell.ndim else float(cell))
    return values


def number(
    what: str, name: str, *, nothing: float = NOTHING, read: Callable[[Any], Any] | None = None,
    pick: Pick | None = None, **place: Any,
) -> Finding:  # fmt: skip
    """A finding that is a number of a result and its interval at a place, see :func:`number_at`.

    ``read`` gives the part of a result's data that has the number; by default all of it.
    """
    return Finding(
        what=what, nothing=nothing, pick=pick,
        of=lambda one: number_at(read(one.data) if read else one.data, name, **place),
    )  # fmt: skip


def last_layer(data: xr.Dataset) -> xr.Dataset:
    """A result at its last layer."""
    return data.isel(layer=-1)


def compared(own: Triple, other: Triple, nothing: float, least: float = 0.0) -> str:
    """Whether a control shows what a model shows, as far as their intervals say.

    Parameters
    ----------
    own, other
        Number and interval of the model and of the control.
    nothing
        What a model shows that has nothing of it. Where the model's interval does not lie above, there is nothing to be
        compared. NaN: no value is nothing, and only the difference is reported.
    least
        How much a difference must exceed to be reported.

    Returns
    -------
    str
        Empty where either has no interval, or the model shows nothing.
    """
    if not np.isfinite([*own, *other]).all():
        return ""
    _, low, high = difference_interval(own, other)
    if math.isnan(nothing):
        return OPEN if low <= 0 <= high else LESS if low > 0 else MORE
    if own[1] <= nothing:
        return ""
    if other[1] > nothing:
        return FAINTER if low > least else SEEN
    return NOT if other[2] < nothing or low > least else OPEN


def beside(page: "Page", findings: Iterable[tuple["StoredResult", Sequence[Finding]]], form: str = "share") -> None:
    """Tell of each model's findings what its controls show, and list the numbers in a table.

    A model's sentence must have been said: what its controls show is added to it. ``findings`` are those of each result
    of the section, controls' among them; ``form`` is the kind of column that the numbers are
    (:class:`analyze.page.Column`).
    """
    given = list(findings)
    name = page.lay("controls", form)
    alone, unmeasured = [], []
    for result, told in given:
        model, _, data_set = result.run.partition("/")
        if model in page.context.controls or not told:
            continue
        names = page.context.controls_of(model)
        others = {control: one for one, _ in given for control in names if one.run == f"{control}/{data_set}"}
        for control in others:
            rows = [row_of(one, result, others[control]) for one in told]
            page.add(name, result, rows)
            page.say_more(result.label, f"control {others[control].label}: {in_words(rows)}")
        unmeasured += [other for other in names if other not in others]
        alone += [] if names else [result.label]
    if alone:
        page.notes.append(
            f"No control of {', '.join(alone)} is in this lake, so whether a model whose thoughts are not used shows"
            " the same is not known here."
        )
    if unmeasured:
        page.notes.append(f"Not measured in the controls {', '.join(dict.fromkeys(unmeasured))}.")


def beside_pairs(
    page: "Page", findings: Iterable[tuple[Pair, Sequence[Finding]]], *, form: str = "number", ordered: bool = False
) -> None:
    """Tell of what two models have in common whether one of them and the other's control, or both controls, have it.

    A pair's sentence must have been said: what controls show is added to it. ``findings`` are those of each pair of
    runs of the section, pairs with controls among them; ``ordered``: whether a pair says something else the other way
    round.
    """
    given = list(findings)
    name = page.lay("controls", form)
    there = {pair.runs: pair for pair, _ in given}
    if not ordered:
        there = {pair.runs[::-1]: pair for pair in there.values()} | there
    alone = []
    for pair, told in given:
        if not told or any(run.partition("/")[0] in page.context.controls for run in pair.runs):
            continue
        others = [there[runs] for runs in control_pairs(page.context, pair.runs) if runs in there]
        for other in others:
            rows = [row_of(one, pair, other) for one in told]
            page.add(name, pair.label, rows)
            page.say_more(pair.label, f"{other.label}: {in_words(rows)}")
        alone += [] if others else [pair.label]
    if alone:
        page.notes.append(
            f"{'; '.join(dict.fromkeys(alone))}: no control of these was compared in their place, so whether models"
            " whose thoughts are not used have the same in common is not known here."
        )


def control_pairs(context: "Context", runs: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The same two runs with one model, or both, exchanged for a control of it."""
    names = [run.partition("/") for run in runs]
    models = list(dict.fromkeys(model for model, _, _ in names))
    for chosen in product(*([model, *context.controls_of(model)] for model in models)):
        put_in = dict(zip(models, chosen, strict=True))
        first, second = (f"{put_in[model]}{sign}{data}" for model, sign, data in names)
        if (first, second) != runs:
            yield first, second


def row_of(finding: Finding, own: "StoredResult | Pair", other: "StoredResult | Pair") -> dict[str, Any]:
    """A finding's number of a model and of one of its controls."""
    mine, theirs = ([float(value) for value in finding.of(one)] for one in (own, other))
    mine = of_picked(mine, finding.pick) if finding.pick else mine
    apart = [float(value) for value in difference_interval(mine, theirs)]
    row: dict[str, Any] = {"what": finding.what, "control": other.label}
    for key, values in (("own", mine), ("other", theirs), ("apart", apart)):
        row |= interval_columns(key, values)
    says = compared(mine, theirs, finding.nothing)
    measured = np.isfinite([*mine, *theirs]).all()
    return row | {"says": says or (NOTHING_SAID if measured else UNMEASURED)}


def in_words(rows: Sequence[dict[str, Any]]) -> str:
    """What a control shows of a model's findings, in words; findings with the same outcome are listed together."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["says"], []).append(str(row["what"]))
    alike = len(groups) == 1
    parts = []
    for says, names in groups.items():
        words = IN_WORDS.get(says, says)
        if alike and len(names) > 1:
            parts.append(f"{listed(names)} {words}" if says == NOT else f"all {words}")
        else:
            parts.append(words if alike else f"{listed(names)} {words}")
    return "; ".join(parts)


def control_table(title: str, form: str) -> dict[str, Any]:
    """Texts of the table of findings beside controls."""
    difference = "points" if form == "share" else "signed"
    return {
        "caption": f"{title}: the same numbers in the model's controls, at the same places, with 95% intervals; the"
        " model's are wider where the place was picked on it, and those of the difference are as if the two were"
        " independent.",
        "columns": [
            ["Finding", "what", "text"],
            ["Model", "own", form, "own_low", "own_high"],
            ["Control", "control", "text"],
            ["There", "other", form, "other_low", "other_high"],
            ["Difference", "apart", difference, "apart_low", "apart_high"],
            ["So", "says", "text"],
        ],
    }
