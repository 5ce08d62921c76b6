"""What several lenses read of the vectors fed, and beside it what edits of these did, as rows."""

import numpy as np
import pandas as pd
import xarray as xr

from analyze.lens.command import best_methods
from analyze.tables import ENDS, Frame, as_picked
from schemas.picked import Pick

FIGURES = {"n_inner": "n", "inner_share": "share", "inner_share_low": "low", "inner_share_high": "high",
           "inner_reciprocal_rank": "rank", "calibration_error": "calibration"}  # fmt: skip
EDITS = ["n", *(name + end for name in ("read_share", "follow_share", "agreement") for end in ENDS), "chance"]


def fed(data: xr.Dataset) -> xr.Dataset:
    """What lenses read of the vectors fed, with the steps numbered from 0."""
    return data.sel(layer=-1).assign_coords(step=range(data.sizes["step"]))


def best_steps(data: xr.Dataset) -> Frame:
    """Of each thought the step whose result the Jacobian lens names most often, as every lens reads it."""
    places = fed(data)[[*FIGURES]].astype("float64").reset_coords(drop=True)
    named = places["inner_share"].sel(lens="jacobian", drop=True)
    there = named["position"].values[named.notnull().any("step").values]
    best = places.sel(position=there).isel(step=named.sel(position=there).fillna(-1).argmax("step"))
    rows: Frame = best.rename(FIGURES).to_dataframe(dim_order=["position", "lens"]).reset_index()
    own, pick = rows["lens"] == "jacobian", steps_pick(data)
    rows[own] = as_picked(rows[own], pick, "share", "low", "high")
    return rows.assign(step=rows["step"] + 1)


def steps_pick(data: xr.Dataset) -> Pick:
    """How the step was picked that the Jacobian lens names most often."""
    named = fed(data)["inner_share"].sel(lens="jacobian").notnull().any("position")
    return Pick(int(named.sum()), share=True)


def edit_rows(data: xr.Dataset) -> Frame:
    """Of each thought the edit that is followed most, and the readings of every lens beside it."""
    edits = [data.isel(edit=index)[EDITS].to_dataframe().reset_index() for index in best_methods(data)]
    rows: Frame = pd.concat(edits, ignore_index=True)[["position", "step", "method", "lens", *EDITS]]
    rows = as_picked(rows, Pick(len(np.unique(data["method"].values)), share=True), "follow_share")
    return rows.assign(step=rows["step"] + 1)
