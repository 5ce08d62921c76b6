"""What differs between two runs or two lakes: what they were made from, which values, where and by how much."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from schemas import UsageError
from schemas.progress import Progress, silent
from store import Lake

MADE_FROM = ("spec", "weights", "tokenizer", "data", "layout")
"""Attributes of a run that say what it was made from."""
COLUMNS = [
    "variable", "compared", "differ", "examples", "largest", "mean", "relative", "where", "first", "second",
]  # fmt: skip


class Difference:
    """Differences of two arrays, taken up block by block.

    NaN equals NaN; a number beside NaN differs, by no amount.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.compared = self.read = self.differ = 0
        self.examples: set[Any] = set()
        self.largest, self.total, self.scale = -1.0, 0.0, 0.0
        self.where: dict[str, Any] = {}
        self.values: tuple[Any, Any] = ("", "")

    def add(self, first: xr.DataArray, second: xr.DataArray) -> None:
        """Compare two arrays of the same labels."""
        raw = one, other = first.values, second.values
        numbers = one.dtype.kind in "fiub" and other.dtype.kind in "fiub"
        differ = np.asarray(one != other)
        if numbers:
            known = np.isfinite(one)
            self.scale += float(np.square(one, dtype="float64", where=known, out=np.zeros(one.shape)).sum())
            if differ.any():
                differ &= ~(np.isnan(one) & np.isnan(other))
        amount = differ.astype("float64")
        if numbers and differ.any():
            with np.errstate(invalid="ignore"):  # of two infinities
                apart = np.abs(one.astype("float64") - other.astype("float64"))
            amount = np.where(differ, np.where(np.isnan(apart), np.inf, apart), 0.0)  # a number is far from none
            self.total += float(amount.sum())
        self.compared, self.read = self.compared + one.size, self.read + one.size
        self.differ += int(differ.sum())
        if "example" in first.dims and differ.any():
            axes = tuple(axis for axis, dim in enumerate(first.dims) if dim != "example")
            self.examples.update(first["example"].values[differ.any(axis=axes)].tolist())
        if not differ.any():
            return
        amount = np.where(differ, amount, -1.0)
        if amount.max() > self.largest:
            place = np.unravel_index(int(amount.argmax()), amount.shape)
            self.largest = float(amount[place])
            self.where = {
                str(dim): first[dim].values[index] if dim in first.coords else index
                for dim, index in zip(first.dims, place, strict=True)
            }
            self.values = raw[0][place], raw[1][place]

    def row(self, numbers: bool) -> list[Any]:
        """As a row of ``COLUMNS``."""
        measures: list[Any] = ["", "", ""]
        if numbers and self.differ:
            deviation = (self.scale / self.read) ** 0.5
            measures = [self.largest, self.total / self.compared, self.largest / deviation if deviation else np.inf]
        where = " ".join(f"{dim} {label}" for dim, label in self.where.items())
        return [self.name, self.compared, self.differ, len(self.examples), *measures, where, *self.values]


def compare_runs(
    first: tuple[Lake, str], second: tuple[Lake, str], progress: Progress = silent
) -> tuple[list[str], pd.DataFrame]:
    """What differs between two runs: how they were made, and at their common labels every variable.

    Shards whose digests are the same are not read. Memory: a layer of a shard of each.

    Parameters
    ----------
    first, second
        Lake and name of each.

    Returns
    -------
    list of str
        What they were made from, and labels that one alone has.
    DataFrame
        A row for each variable that differs: values ``compared``, how many ``differ``, in how many ``examples``;
        ``largest`` and ``mean`` absolute difference, the largest ``relative`` to the root mean square of the first's
        values, of the shards that were read; ``where`` it is, and both values there.

    Raises
    ------
    UsageError
        If they have no example in common.
    """
    attributes = [lake.attributes(run) for lake, run in (first, second)]
    lines = attribute_differences(*attributes)
    lakes = [lake.open(run, chunks=None) for lake, run in (first, second)]
    common, only = common_labels(*lakes)
    lines += only
    if not len(common.get("example", [1])):
        raise UsageError(f"{first[1]} and {second[1]} have no example in common; nothing can be compared")
    names = [str(name) for name in lakes[0].data_vars if name in lakes[1].data_vars and name != "committed"]
    n_example, size = len(common["example"]), first[0].layout(first[1]).shard_examples
    digests: list[dict[str, list[str]]] = [{}, {}]
    if (
        lakes[0].indexes["example"].equals(lakes[1].indexes["example"])
        and attributes[0]["layout"] == attributes[1]["layout"]
    ):
        digests = [lake.shard_digests(run) for lake, run in (first, second)]
    rows = []
    for number, name in enumerate(names):
        difference = Difference(name)
        parts = [aligned(lake[name], common) for lake in lakes]
        layers = range(parts[0].sizes["layer"]) if "layer" in parts[0].dims else [None]
        pairs = list(zip(*(digest.get(name, []) for digest in digests), strict=True))
        for begin, layer in product(range(0, n_example, size), layers):
            if pairs and pairs[begin // size][0] == pairs[begin // size][1]:
                difference.compared += (
                    parts[0].isel(example=slice(begin, begin + size), layer=layer, missing_dims="ignore").size
                )
                continue
            block: dict[Any, Any] = {} if layer is None else {"layer": slice(layer, layer + 1)}
            if "example" in parts[0].dims:
                block["example"] = slice(begin, begin + size)
            difference.add(*(part.isel(block) for part in parts))
        if difference.differ:
            rows.append(difference.row(lakes[0][name].dtype.kind in "fiu"))
        progress(number + 1, len(names))
    return lines, pd.DataFrame(rows, columns=COLUMNS)


def attribute_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Settings and digests in which two runs differ, a line each."""
    lines = []
    for name in MADE_FROM:
        one, other = first.get(name), second.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            for key in sorted(one.keys() | other.keys()):
                if one.get(key) != other.get(key):
                    lines.append(f"{name}.{key}: {short(one.get(key))} and {short(other.get(key))}")
        elif one != other:
            lines.append(f"{name}: {short(one)} and {short(other)}")
    return lines


def short(value: Any) -> str:
    """A value in a line."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}.."


def common_labels(first: xr.Dataset, second: xr.Dataset) -> tuple[dict[str, list[Any]], list[str]]:
    """Labels that two datasets share along each dim, in the first's order; and lines about what one alone has."""
    common, lines = {}, []
    for dim in first.dims:
        if dim not in first.coords or dim not in second.coords:
            continue
        one, other = first[dim].values.tolist(), second[dim].values.tolist()
        common[str(dim)] = [label for label in one if label in set(other)]
        for which, mine, theirs in (("first", one, other), ("second", other, one)):
            alone = [label for label in mine if label not in set(theirs)]
            if alone:
                shown = ", ".join(map(str, alone[:6])) + (" .." if len(alone) > 6 else "")
                lines.append(f"{dim}: {len(alone)} of the {which} alone ({shown})")
    for which, mine, theirs in (("first", first, second), ("second", second, first)):
        if alone := [str(name) for name in mine.data_vars if name not in theirs.data_vars]:
            lines.append(f"variables of the {which} alone: {', '.join(alone)}")
    return common, lines


def aligned(values: xr.DataArray, common: Mapping[str, list[Any]]) -> xr.DataArray:
    """A variable at the labels that are common, lazy; slices where they run together."""
    chosen: dict[Any, Any] = {}
    for dim in values.dims:
        if (labels := common.get(str(dim))) is not None:
            places = {label: place for place, label in enumerate(values[dim].values.tolist())}
            index = [places[label] for label in labels]
            run_together = bool(index) and index == list(range(index[0], index[0] + len(index)))
            chosen[dim] = slice(index[0], index[-1] + 1) if run_together else index
    return values.isel(chosen)


def compare_lakes(first: Lake, second: Lake) -> pd.DataFrame:
    """Which models, runs and results two lakes have, and whether they are the same, by their fingerprints.

    A result that both have is compared value by value; values of runs are compared by :func:`compare_runs`.

    Returns
    -------
    DataFrame
        ``name``, ``what`` it is, ``state``: ``same``, ``differs``, ``first alone`` or ``second alone``, and ``how``.
    """
    how: dict[str, tuple[list[list[str]], Callable[[str], list[str]]]] = {
        "model": ([lake.models() for lake in (first, second)], partial(model_differences, first, second)),
        "run": ([lake.runs() for lake in (first, second)], partial(run_differences, first, second)),
        "result": (
            [[result.name for result in lake.results()] for lake in (first, second)],
            lambda name: (
                []
                if first.result_digests(name) == second.result_digests(name)
                else result_differences(first.open_result(name), second.open_result(name))
            ),
        ),
    }
    rows = []
    for what, ((one, other), differences) in how.items():
        for name in dict.fromkeys([*one, *other]):
            if name in one and name in other:
                lines = differences(name)
                rows.append([name, what, "differs" if lines else "same", "; ".join(lines)])
            else:
                rows.append([name, what, "first alone" if name in one else "second alone", ""])
    return pd.DataFrame(rows, columns=["name", "what", "state", "how"])


def model_differences(first: Lake, second: Lake, name: str) -> list[str]:
    """Digests in which two models of one name differ."""
    one, other = (lake.model_attributes(name)["fingerprint"] for lake in (first, second))
    return [f"other {key}" for key, digest in one.items() if other.get(key) != digest]


def run_differences(first: Lake, second: Lake, name: str) -> list[str]:
    """What two runs of one name were made from, and how complete they are, where that differs; no value is read."""
    lines = attribute_differences(first.attributes(name), second.attributes(name))
    committed = [int(lake.committed(name).sum()) for lake in (first, second)]
    return [*lines, *([f"shards: {committed[0]} and {committed[1]}"] if committed[0] != committed[1] else [])]


def result_differences(first: xr.Dataset, second: xr.Dataset) -> list[str]:
    """Inputs and variables in which two results of one name differ."""
    lines = ["of other runs"] if first.attrs["inputs"] != second.attrs["inputs"] else []
    common, only = common_labels(first, second)
    lines += only
    for name in first.data_vars:
        if name in second.data_vars and first[name].dims == second[name].dims:
            difference = Difference(str(name))
            parts = [aligned(result[name], common) for result in (first, second)]
            if parts[0].shape != parts[1].shape:
                lines.append(f"{name}: shapes {parts[0].shape} and {parts[1].shape}")
                continue
            difference.add(*parts)
            if difference.differ:
                amount = f", by {difference.largest:.3g} at most" if first[name].dtype.kind == "f" else ""
                lines.append(f"{name}: {difference.differ} of {difference.compared} values{amount}")
    return lines
