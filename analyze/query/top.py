"""Where a head, a feature, a direction or a column is largest: exact, over a whole run, in memory that stays."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from analyze.blocks import reported_blocks
from analyze.labels import take
from analyze.query.sql import query_lake
from analyze.sae.dictionary import activation_of, sae_codes
from schemas import MissingRunError, UsageError, nearest
from schemas.checks import check_whole
from schemas.progress import Progress, silent
from store import Lake, Result, select_result
from store.select import fits
from store.vectors import stored_direction

AROUND = 4
"""Positions shown on either side of the one that counts."""


class Block(NamedTuple):
    """Values over some examples and the whole of some cells."""

    values: np.ndarray
    """(example, *cell); NaN: there is none."""
    start: tuple[int, ...]
    """Where it begins along each axis of the whole."""


def largest(blocks: Iterator[Block], shape: Sequence[int], n: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The ``n`` largest values above 0 of an array that comes in blocks, and where they lie.

    Of equal values the first in order of the array's axes come first, whatever the blocks.

    Returns
    -------
    (place,), and the index along each axis, (place,) each
    """
    values, places = np.empty(0), np.empty(0, dtype=np.int64)
    for block in blocks:
        flat = np.where(block.values > 0, block.values, -np.inf).reshape(-1)
        worst = values[-1] if len(values) == n else -np.inf
        candidates = np.flatnonzero((flat >= worst) & (flat > 0))
        if len(candidates) > n:
            least = np.partition(flat[candidates], -n)[-n]
            candidates = candidates[flat[candidates] >= least]
        index = np.unravel_index(candidates, block.values.shape)
        whole = np.ravel_multi_index(
            tuple(axis + start for axis, start in zip(index, block.start, strict=True)), tuple(shape)
        )
        values, places = np.concatenate([values, flat[candidates]]), np.concatenate([places, whole])
        order = np.lexsort((places, -values))[:n]
        values, places = values[order], places[order]
    return values, np.unravel_index(places, tuple(shape))


def top_of_head(
    lake: Lake,
    run: str,
    head: str,
    *,
    n: int = 10,
    positions: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Where a head pays most attention.

    Parameters
    ----------
    lake, run
        What is searched.
    head
        As ``L1H2``.
    n
        Places wanted; fewer where fewer are above 0.
    positions, keys
        Only these queries and keys; all by default.

    Returns
    -------
    DataFrame
        ``value``, ``example``, ``problem``, ``position``, ``key_position``, ``token``, ``key_token``, ``correct``,
        ``question``, ``context``; largest first.
    """
    data = lake.open(run, chunks=None)
    parsed = re.fullmatch(r"L(\d+)H(\d+)", head)
    heads = [f"L{layer}H{number}" for layer in data["layer"].values for number in data["head"].values]
    if parsed is None or head not in heads:
        raise UsageError(f"{run} has no head {head!r}; it has {heads[0]} .. {heads[-1]}{nearest(head, heads)}")
    attention = data["attention"].sel(layer=int(parsed[1]), head=int(parsed[2]), drop=True)
    if positions is not None:
        attention = take(attention, "position", positions, f"top of {head}")
    if keys is not None:
        attention = take(attention, "key_position", keys, f"top of {head}")

    def blocks() -> Iterator[Block]:
        for rows in reported_blocks(attention.sizes["example"], progress):
            yield Block(attention[rows].values, (rows.start, 0, 0))

    return _described(lake, run, data, attention, blocks(), n)


def top_of_feature(
    lake: Lake,
    run: str,
    feature: str,
    *,
    n: int = 10,
    positions: Sequence[str] | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Where a feature of a stored dictionary fires most: by magnitude, as codes of ``abs_topk`` have signs.

    Parameters
    ----------
    lake, run
        What is searched: also another run of the model that the dictionary was learned from.
    feature
        As ``RESULT:17``; the result as for :func:`store.select_result`.
    n, positions
        As for :func:`top_of_head`.

    Returns
    -------
    DataFrame
        As of :func:`top_of_head`, with the cell's ``layer`` and ``position`` where there are such.
    """
    name, _, number = feature.rpartition(":")
    if not name or not number.isdecimal():
        raise UsageError(f"feature {feature!r} is not of the form RESULT:NUMBER, as sae:17")
    selected = _dictionary(lake, run, name)
    sae = lake.open_result(selected.name)
    if int(number) >= sae.sizes["feature"]:
        n_feature = sae.sizes["feature"]
        close = nearest(int(number), range(n_feature))
        raise UsageError(f"{selected.name} has no feature {number}; it has 0 to {n_feature - 1}{close}")
    data = lake.open(run, chunks=None)
    activation = activation_of(sae, {run: data})
    assert isinstance(activation, xr.DataArray)
    if positions is not None:
        activation = take(activation, "position", positions, f"top of feature {number}")
    cells = activation.isel(hidden=0, drop=True)

    def blocks(sign: int) -> Iterator[Block]:
        for rows in reported_blocks(activation.sizes["example"], progress):
            for cell in product(*(range(size) for size in cells.shape[1:])):
                here: dict[Any, Any] = {dim: [label] for dim, label in zip(cells.dims[1:], cell, strict=True)}
                codes = sae_codes(sae, activation.isel({"example": rows, **here}).load())
                yield Block(sign * codes.isel(feature=int(number)).transpose(*cells.dims).values, (rows.start, *cell))

    signs = (1, -1) if sae.attrs["activation"] == "abs_topk" else (1,)
    sides = [_described(lake, run, data, cells, blocks(sign), n) for sign in signs]
    both = pd.concat([side.assign(value=sign * side["value"]) for sign, side in zip(signs, sides, strict=True)])
    return both.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True).head(n)


def _dictionary(lake: Lake, run: str, name: str) -> Result:
    """Dictionary of one run that is called so: one of this run where several fit, else one of its model."""
    model = run.split("/")[0]
    one_run = [result for result in lake.results("sae") if len(result.runs) == 1]
    of_run = [result for result in one_run if result.runs == (run,)]
    of_model = [result for result in one_run if result.runs[0].split("/")[0] == model]
    for dictionaries in (of_run, of_model):
        try:
            return select_result(lake, [name], dictionaries)
        except MissingRunError:
            if any(fits(result, name) for result in dictionaries):
                raise
    names = ", ".join(result.name for result in of_model) or f"none; lake analyze sae {lake.location} {run} makes one"
    raise UsageError(
        f"{name} is no dictionary of one run of {model}, whose are {names}; lake analyze transfer tries those of others"
    )


def top_of_direction(
    lake: Lake,
    run: str,
    direction: str,
    *,
    n: int = 10,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Where states reach furthest along a direction of a stored result.

    The value is ``x . d / |d|``, in the units of the states, where it is above 0.

    Parameters
    ----------
    lake, run
        What is searched: the states that the result was computed from, ``hidden_state`` where it does not say.
    direction
        As ``probes:direction:step=0`` or ``sae:decoder:feature=12``, see :func:`store.vectors.stored_direction`; with
        ``-`` before it, the other way. One that was computed at layers and positions is looked for there.
    n, positions
        As for :func:`top_of_head`.
    layers
        Only these layers.

    Returns
    -------
    DataFrame
        As of :func:`top_of_head`, with ``layer`` and ``position``.

    Raises
    ------
    UsageError
        If the direction, a layer or a position is not there.
    """
    wanted = stored_direction(lake, run, direction.removeprefix("-"))
    data = lake.open(run, chunks=None)
    states = data[str(wanted.attrs.get("variable", "hidden_state"))]
    if wanted.sizes["hidden"] != states.sizes["hidden"]:
        raise UsageError(f"{direction} is {wanted.sizes['hidden']} long, states of {run} are {states.sizes['hidden']}")
    for dim, labels in (("layer", layers), ("position", positions)):
        known = wanted[dim].values.tolist() if dim in wanted.dims else states[dim].values.tolist()
        if strange := [label for label in labels or () if label not in known]:
            there = ", ".join(map(str, known))
            raise UsageError(f"{direction} has no {dim} {strange[0]}; it has {there}{nearest(strange[0], known)}")
        states = states.sel({dim: [label for label in known if labels is None or label in labels]})
    length: xr.DataArray = (wanted**2).sum("hidden") ** 0.5
    unit = (wanted / length.where(length > 0)) * (-1 if direction.startswith("-") else 1)
    cells = states.isel(hidden=0, drop=True)

    def blocks() -> Iterator[Block]:
        for rows in reported_blocks(states.sizes["example"], progress):
            for cell in product(*(range(size) for size in cells.shape[1:])):
                here = dict(zip(cells.dims[1:], cell, strict=True))
                values = states.isel({"example": rows, **here})
                vector = unit.sel({dim: values[dim].values for dim in here if dim in unit.dims})
                along = values.values @ vector.values.astype(values.dtype)
                yield Block(along.reshape(-1, *(1 for _ in cell)), (rows.start, *cell))

    return _described(lake, run, data, cells, blocks(), n)


def top_of_column(lake: Lake, run: str, expression: str, *, n: int = 10) -> pd.DataFrame:
    """Examples where an expression over a run's columns is largest.

    Parameters
    ----------
    lake, run
        What is searched.
    expression
        SQL over the columns of the run's table, see :func:`analyze.query.sql.lake_tables`: ``-answer_logprob``.
    n
        Examples wanted; fewer where fewer have a value.

    Returns
    -------
    DataFrame
        ``value``, ``example``, ``problem``, ``correct``, ``question``, ``generated_text``; largest first.

    Raises
    ------
    UsageError
        As :func:`analyze.query.sql.query_lake`.
    """
    lake.attributes(run)
    check_whole("the number of places", n, 1)
    shown = "example, problem, correct, question, generated_text"
    sql = (
        f'select ({expression}) as value, {shown} from "{run}" where value is not null'
        f" order by value desc, example limit {n}"
    )
    try:
        return query_lake(lake, sql)
    except UsageError as error:  # the user wrote the expression alone
        raise UsageError(str(error).replace(repr(sql), repr(expression))) from error


def _described(
    lake: Lake, run: str, data: xr.Dataset, values: xr.DataArray, blocks: Iterator[Block], n: int
) -> pd.DataFrame:
    """The largest values with the labels of their places, and what lies around them."""
    check_whole("the number of places", n, 1)
    top, places = largest(blocks, values.shape, n)
    strings = lake.model(run.split("/")[0])["token_string"].values
    columns: dict[str, Any] = {"value": top}
    rows = places[0]
    for name in ("example", "problem"):
        columns[name] = data[name].values[rows] if name in data else rows
    for dim, index in zip(values.dims[1:], places[1:], strict=True):
        columns[str(dim)] = values[dim].values[index]
    labels = [str(label) for label in data["position"].values]
    queries = [str(label) for label in columns.get("position", columns.get("latent", [""] * len(rows)))]
    token = {row: data["token"].isel(example=int(row)).values for row in set(rows.tolist())}

    def written(row: int, label: str) -> str:
        index = labels.index(label) if label in labels else -1
        return str(strings[token[row][index]]) if index >= 0 and token[row][index] >= 0 else ""

    columns["token"] = [written(row, label) for row, label in zip(rows.tolist(), queries, strict=True)]
    if "key_position" in columns:
        keys = [str(label) for label in columns["key_position"]]
        columns["key_token"] = [written(row, label) for row, label in zip(rows.tolist(), keys, strict=True)]
    columns["correct"] = data["correct"].values[rows]
    columns["question"] = data["question"].values[rows]
    shown = zip(rows.tolist(), queries, strict=True)
    columns["context"] = [_context(token[row], labels, strings, label) for row, label in shown]
    return pd.DataFrame(columns)


def _context(token: np.ndarray, labels: Sequence[str], strings: np.ndarray, label: str) -> str:
    """What stands around a position, itself in brackets: tokens, and thoughts by their names."""
    index = labels.index(label) if label in labels else -1
    around = range(max(0, index - AROUND), min(len(labels), index + AROUND + 1)) if index >= 0 else range(0)
    parts = []
    for place in around:
        thought = labels[place].startswith("ct")
        text = f" {labels[place]}" if thought else str(strings[token[place]]) if token[place] >= 0 else ""
        parts.append(f"[{text.strip()}]" if place == index else text)
    spaced = any(str(text).startswith(" ") for text in strings)  # else a token is a word
    return ("" if spaced else " ").join(part if spaced else part.strip() for part in parts if part).strip()
