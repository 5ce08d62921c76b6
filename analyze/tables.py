"""Results and runs as tidy tables, for CSV and for queries."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from schemas.json_values import json_value
from schemas.picked import Pick, of_picked

Frame = Any
"""A pandas frame; its stubs do not know what a cell holds."""
ENDS = ("", "_low", "_high")
"""What follows the name of a number, and of the ends of its interval."""


def triple(data: Any, name: str) -> list[Any]:
    """A number of a frame or a result, and the ends of its interval; ``None`` where it has no such end."""
    return [np.asarray(data[f"{name}{end}"], "float64") if f"{name}{end}" in data else None for end in ENDS]


def rows_with(frame: Any, **labels: Any) -> Any:
    """Rows of a frame that have these labels; none where it has no such column."""
    for name, label in labels.items():
        frame = frame[frame[name].astype(str) == str(label)] if name in frame else frame.head(0)
    return frame


def as_picked(rows: Frame, pick: Pick, *names: str) -> Frame:
    """Rows whose intervals allow for a row's having been picked, see :func:`schemas.picked.of_picked`.

    Parameters
    ----------
    names
        Columns of the figure and of the ends of its interval; of one name, those with ``_low`` and ``_high`` behind it.
    """
    columns = list(names) if len(names) > 1 else [f"{names[0]}{end}" for end in ENDS]
    ends = np.array([of_picked(figure, pick) for figure in rows[columns].to_numpy("float64")]).reshape(-1, 3)
    return rows.assign(**dict(zip(columns, ends.T, strict=True)))


def result_parts(result: xr.Dataset) -> dict[str, list[str]]:
    """Variables of each tidy table of a result, see :func:`result_tables`; nothing is read."""
    parts: dict[str, list[str]] = {}
    for name, variable in result.data_vars.items():
        parts.setdefault("_".join(map(str, variable.dims)) or "all", []).append(str(name))
    return parts


def result_columns(result: xr.Dataset, names: list[str]) -> list[str]:
    """Columns of :func:`result_table`; nothing is read."""
    dims = [str(dim) for dim in result[names[0]].dims]
    labels = [str(name) for name, coord in result[names].coords.items() if coord.dims and name not in dims]
    return [*dims, *labels, *names]


def result_table(result: xr.Dataset, names: list[str]) -> pd.DataFrame:
    """Variables of the same dims as a tidy table: one column for each dim, its labels, and each variable."""
    part = result[names]
    dims = [str(dim) for dim in result[names[0]].dims]
    if not dims:
        return pd.DataFrame({name: [part[name].item()] for name in names})
    return part.to_dataframe(dim_order=dims).reset_index()[result_columns(result, names)]


def result_tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Every number of a result, one tidy table for each set of dims.

    Returns
    -------
    dict
        From the dims, joined by an underscore (``"layer_head"``; ``"all"`` for numbers without a dim), to a table with
        one column for each dim, its labels, and each variable.
    """
    return {part: result_table(result, names) for part, names in result_parts(result).items()}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as JSON holds them, every number as it is (:func:`schemas.json_values.json_value`)."""
    columns = {}
    for name in table.columns:
        cells = table[name]
        if cells.dtype in ("float32", "float16"):
            cells = cells.astype(str).astype("float64")  # 0.1 of 32 bits as it is written
        columns[str(name)] = cells.astype(object).where(cells.notna(), None).tolist()
    return [json_value(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def short_tables(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[Any]]:
    """Tables as JSON holds them, but for those with a row for each example."""
    return {name: records(table) for name, table in tables.items() if "example" not in table.columns}


def without_long(result: xr.Dataset) -> xr.Dataset:
    """A result without the variables that have a value for each example, and without matrices over hidden units."""
    long = {"example", "hidden"}
    return result.drop_vars([name for name, variable in result.variables.items() if long & set(variable.dims)])


def fed(result: xr.Dataset) -> list[str]:
    """What sharing trunks has saved, where a result says so."""
    if "positions_fed" not in result.attrs:
        return []
    together, alone = result.attrs["positions_fed"], result.attrs["positions_one_by_one"]
    return [f"{together} positions fed, {alone} one condition at a time ({together / alone:.0%})"]
