"""SQL over a lake: a table for each run, of what it has by example, and tables for each stored result."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.tables import result_columns, result_parts, result_table
from schemas import RUN_VARIABLES, UsageError, nearest
from store import Lake

SETTINGS = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
    "pandas_analyze_sample": str(2**62),
}
"""Of DuckDB: a query reads the lake's tables and nothing else of this machine. The type of a column is found from all
rows, not from a thousand: lists of steps may be empty in all of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LakeTable:
    """A table that a query can name."""

    name: str
    """Needs no quotes, but where two would be the same: there ``of`` in quotes."""
    of: str
    """Run or result it is made of; ``"..."`` in quotes names the same table."""
    columns: tuple[str, ...]
    read: Callable[[], pd.DataFrame]
    """Reads it whole."""


def lake_tables(lake: Lake, sql: str | None = None) -> list[LakeTable]:
    """Tables of a lake: runs first, then results; only documents and labels are read.

    With ``sql``, only those of runs and results whose names stand somewhere in it: a lake with many results has
    hundreds of tables, and listing all of them takes seconds.

    A run's table is called as the run, with ``_`` for all but letters and digits: ``small_gpt2_test``. That of a result
    is called by kind and runs, ``heads_small_gpt2_test``; where several results would be called so, the digest that
    ends their names is added. A result with variables over several sets of dims has a table for each, with the dims
    behind the name, and the one of most variables is also called without them.

    Raises
    ------
    CorruptLakeError
        If a document is damaged.
    """

    def may_be_named(*names: str) -> bool:
        return sql is None or any(name.lower() in sql.lower() for name in names)

    tables = []
    for run in lake.runs():
        if not may_be_named(run, _plain(run)):
            continue
        data = lake.open(run, chunks=None)
        tables.append(LakeTable(name=_plain(run), of=run, columns=(*run_columns(data),), read=partial(run_table, data)))
    results = lake.results()
    called = Counter(_plain(result.name.split("/", 1)[1].rpartition("~")[0]) for result in results)
    for stored in results:
        title, _, digest = stored.name.split("/", 1)[1].rpartition("~")
        name = _plain(title) if called[_plain(title)] == 1 else _plain(f"{title}_{digest}")
        if not may_be_named(stored.name, name):
            continue
        result = lake.open_result(stored.name, load=False)
        parts = result_parts(result)
        main = max(parts, key=lambda part: len(parts[part]), default="")
        for part, names in sorted(parts.items(), key=lambda item: item[0] != main):
            of, title = (stored.name, name) if part == main else (f"{stored.name}/{part}", f"{name}_{part}")
            read = partial(result_table, result, names)
            tables.append(LakeTable(name=title, of=of, columns=tuple(result_columns(result, names)), read=read))
    twice = {name for name, n in Counter(table.name for table in tables).items() if n > 1}
    return [replace(table, name=f'"{table.of}"') if table.name in twice else table for table in tables]


def _plain(name: str) -> str:
    """A name that SQL takes without quotes."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII).lower()
    return f"_{plain}" if plain[:1].isdigit() else plain


def run_columns(data: xr.Dataset) -> list[str]:
    """Variables of a run that are few by example: one value, or one for each step."""
    known = [str(name) for name, array in data.variables.items() if array.dims in (("example",), ("example", "step"))]
    first = [*map(str, data.coords), *RUN_VARIABLES]
    known.sort(key=lambda name: first.index(name) if name in first else len(first))
    return [name for name in known if name != "committed"]  # all of these examples are


def run_table(data: xr.Dataset) -> pd.DataFrame:
    """A run's values by example, of committed examples; those of steps as lists up to the last step that there is."""
    columns = {}
    for name in run_columns(data):
        values = data[name].values
        if values.ndim == 2:
            there = values != "" if values.dtype.kind in "OUT" else ~np.isnan(values)
            n_step = (there * np.arange(1, values.shape[1] + 1)).max(1, initial=0)
            steps = values.astype(object)
            steps[~there] = None
            columns[name] = pd.Series([row[:n].tolist() for row, n in zip(steps, n_step, strict=True)])
        else:
            columns[name] = pd.Series(values)
    return pd.DataFrame(columns)


def query_lake(lake: Lake, sql: str) -> pd.DataFrame:
    """Answer to a SELECT of SQL, by DuckDB; only the tables that it names are read, whole.

    NaN is NULL: a number that is not there. Lists, as of steps, are Python's.

    Raises
    ------
    UsageError
        If DuckDB is not installed or the query wrong.
    CorruptLakeError
        If a file that it needs is damaged.
    """
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise UsageError(
            "lake query needs duckdb, which is not installed; pip install 'activation-lake[query]'"
        ) from error
    tables, named = lake_tables(lake, sql), dict[str, str]()
    known = {name.lower(): table for table in tables for name in (table.name, table.of)}
    with duckdb.connect(":memory:", config=SETTINGS) as connection:
        try:
            statements = connection.extract_statements(sql)
            if [statement.type for statement in statements] not in (
                [duckdb.StatementType.SELECT],
                [duckdb.StatementType.EXPLAIN],
            ):
                raise UsageError(f"a query is one SELECT; found {sql!r}")
            try:
                names: Iterable[str] = connection.get_table_names(sql)
            except duckdb.BinderException:  # it binds without the tables, and USING asks for their columns
                names = [name for name in known if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE)]
            named = {name.strip('"').lower(): name.strip('"') for name in names}
            for key, name in named.items():
                if key in known:
                    connection.register(name, _without_nan(known[key].read()))
            found = connection.execute(sql)
            if any(re.match("U?HUGEINT|DECIMAL", str(column[1])) for column in found.description):  # floats to pandas
                names = [str(column[0]) for column in found.description]
                unique = [
                    f"{name}_{names[:i].count(name)}" if name in names[:i] else name for i, name in enumerate(names)
                ]
                return pd.DataFrame(found.fetchall(), columns=unique, dtype=object).map(_number).infer_objects()
            answer: pd.DataFrame = found.df()
            return answer.map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell)
        except duckdb.Error as error:
            reason = " ".join(str(error).split("\n\nLINE")[0].split())
            strange = [name for key, name in named.items() if key not in known]
            if isinstance(error, duckdb.CatalogException) and strange:
                there = [name for table in lake_tables(lake) for name in (table.name, table.of)]
                reason = reason.split(" Did you mean")[0].removesuffix("!") + nearest(strange[0], there)
            raise UsageError(f"{sql!r}: {reason}; lake query {lake.location} lists the tables") from error


def _number(cell: Any) -> Any:
    """A decimal number as a float, where that has all its digits; any other cell as it is."""
    return float(cell) if isinstance(cell, Decimal) and Decimal(str(float(cell))) == cell else cell


def _without_nan(table: pd.DataFrame) -> pd.DataFrame:
    """The same with NULL for NaN."""
    floats = [name for name in table.columns if table[name].dtype.kind == "f"]
    return table.astype({name: "Float64" if table[name].dtype == "float64" else "Float32" for name in floats})
