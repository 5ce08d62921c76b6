"""What the variables of stored results are, in words and units: ``variables.toml``, and names that end alike."""

import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.vocabulary import COORDINATES, DIMS

if TYPE_CHECKING:
    import xarray as xr

ENDS = {"_low": "lower end of the interval: {}", "_high": "upper end of the interval: {}"}
DERIVED = {
    "{}_low_joint": "lower end of the interval that holds in all cells at once: {}",
    "{}_high_joint": "upper end of the interval that holds in all cells at once: {}",
    "{}_null_high": "upper end in 95% of shuffles: {}",
    "{}_mean": "mean over problems: {}",
    "{}_difference": "the first run's less the other's: {}",
    "{}_adjusted": "{}, corrected for several tests",
    "{}_corrected": "{}, corrected for several tests",
    "{}_holm": "{}, corrected for several tests (Holm)",
    "n_shared_{}": "problems that both runs have, for: {}",
    "paired_{}": "whether the difference is paired, on the same problems: {}",
    "untouched_{}": "of the untouched run: {}",
    "own_{}": "of the test run's own fit: {}",
    "control_{}": "of a fit to shuffled labels or units: {}",
    "plain_{}": "of the final norm alone: {}",
}
"""Names that are made of another one, and what they are then."""


@cache
def words() -> dict[str, dict[str, str]]:
    """Texts by kind of result and name; ``any`` holds those that stand in every kind."""
    return tomllib.loads(Path(__file__).with_name("variables.toml").read_text(encoding="utf-8"))


def interval_of(name: str, names: Collection[str]) -> str:
    """What a variable is an end of the interval of: that, or its mean where there is one; empty: of nothing."""
    of, _, end = name.rpartition("_")
    return (f"{of}_mean" if f"{of}_mean" in names else of) if f"_{end}" in ENDS else ""


def meaning(kind: str, name: str, stated: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``long_name`` and ``units`` of a variable of a kind of result; empty: not known.

    Parameters
    ----------
    stated
        Attributes that variables of the result have already, by name. They go before the texts, but for ends of
        intervals, which may have those of what they were computed from.
    """
    if of := interval_of(name, stated):
        found = meaning(kind, of, stated) or {"long_name": of}
        return {**found, "long_name": ENDS[name[name.rindex("_") :]].format(found["long_name"])}
    if "long_name" in stated.get(name, {}):
        return dict(stated[name])
    if text := words().get(kind, {}).get(name) or words()["any"].get(name) or {**COORDINATES, **DIMS}.get(name):
        said, _, units = text.removesuffix("]").partition(" [")
        return {"long_name": said} | ({"units": units} if units else {})
    for shape, template in DERIVED.items():
        begin, end = shape.split("{}")
        of = name.removeprefix(begin).removesuffix(end)
        if shape.format(of) == name and (found := meaning(kind, of, stated)):
            return {**found, "long_name": template.format(found["long_name"])}
    return {}


def explained(kind: str, data: "xr.Dataset") -> "xr.Dataset":
    """A result whose variables say what they are, and in what unit, as far as it is known.

    That is ``long_name`` and ``units``; of coordinates ``description``, as plots label axes by long names.
    """
    data = data.copy()
    stated = {str(name): dict(variable.attrs) for name, variable in data.variables.items()}
    for name, variable in data.variables.items():
        number = {"units": "1"} if variable.dtype.kind == "f" else {}
        known = meaning(kind, str(name), stated)
        if name in data.coords and "long_name" in known:
            known["description"] = known.pop("long_name")
        variable.attrs = {**number, **variable.attrs, **known}
    return data
