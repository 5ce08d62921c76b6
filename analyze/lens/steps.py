"""Which position reads out as which step of the written chain, as rows, and the position at which each is read best."""

import pandas as pd
import xarray as xr

from analyze.tables import ENDS, Frame, as_picked
from schemas.picked import Pick

ENOUGH = 10
"""Problems that must have a step for it to be shown."""


def best_of(rows: Frame) -> Frame:
    """The position at which each step is read best, with the interval of one that was picked among all positions."""
    best = rows.loc[rows.groupby("step", sort=False)["share"].idxmax().dropna()]
    return as_picked(best, pick_of(rows), "share", "low", "high")


def pick_of(rows: Frame) -> Pick:
    """How the best position of a step was picked."""
    return Pick(rows["position"].nunique(), share=True)


def of_steps(data: xr.Dataset) -> xr.Dataset:
    """How often each step's result reads out at the last layer; without problems it answers, where told apart."""
    which = "inner_share" if "inner_share" in data else "step_share"
    return data.isel(layer=-1).rename({f"{which}{end}": f"share{end}" for end in ENDS if f"{which}{end}" in data})


def step_rows(data: xr.Dataset) -> pd.DataFrame:
    """How often each step's result reads out at each position, of the steps that enough problems have."""
    inner = "inner_share" in data
    lens = of_steps(data)
    names = {"share": "share", "share_low": "low", "share_high": "high", "operator_share": "operator"}
    names["inner_control_share" if inner else "step_control_share"] = "control"
    lens = lens.assign(n=lens["n_inner" if inner and "n_inner" in lens else "n_step"])
    lens = lens.isel(step=(lens["n"].max([dim for dim in lens["n"].dims if dim != "step"]) >= ENOUGH).values)
    if not lens.sizes["step"]:
        return pd.DataFrame()
    rows = lens[["n", *names]].reset_coords(drop=True).rename(names).to_dataframe(dim_order=["step", "position"])
    return rows.reset_index().assign(step=lambda rows: rows["step"] + 1, n=lambda rows: rows["n"].astype(int))
