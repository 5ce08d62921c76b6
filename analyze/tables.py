"""Results as tidy tables, for CSV."""

import pandas as pd
import xarray as xr


def result_tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Every number of a result, one tidy table for each set of dims.

    Returns
    -------
    dict
        From the dims, joined by an underscore (``"layer_head"``; ``"all"`` for numbers without a dim), to a table with
        one column for each dim, its labels, and each variable.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, variable in result.data_vars.items():
        groups.setdefault(tuple(map(str, variable.dims)), []).append(str(name))
    found = {}
    for dims, names in groups.items():
        part = result[names]
        if not dims:
            found["all"] = pd.DataFrame({name: [part[name].item()] for name in names})
            continue
        part = part.drop_vars([str(name) for name, coord in part.coords.items() if not coord.dims])
        found["_".join(dims)] = part.to_dataframe(dim_order=list(dims)).reset_index()
    return found
