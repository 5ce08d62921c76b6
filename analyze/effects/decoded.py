"""What a decoder writes of thoughts, as rows, and the thought that each step is reported of."""

import numpy as np
import pandas as pd
import xarray as xr

from analyze.tables import ENDS, Frame
from schemas.picked import Pick, of_picked

SHARES = ("result_share", "control_share", "shuffled_share", "expression_share")


def is_asked(data: xr.Dataset) -> bool:
    """Whether the decoder was trained afterwards, and is asked for steps."""
    return "shuffled_share" in data


def share_rows(data: xr.Dataset) -> Frame:
    """Of each thought and step that problems have, how often it is written, beside the controls."""
    columns = [f"{name}{end}" for name in SHARES for end in ENDS if f"{name}{end}" in data]
    rows: Frame = data[["n_step", *columns]].to_dataframe().reset_index()
    return rows[rows["n_step"] > 0].assign(step=lambda rows: rows["step"] + 1)


def place_pick(data: xr.Dataset) -> Pick:
    """How the thought of a step was picked: SIM-CoT's training says which, else it is the one written most often."""
    return Pick(data.sizes["position"] if is_asked(data) else 1, share=True)


def reported_steps(data: xr.Dataset) -> Frame:
    """For each step the thought it is reported of: where SIM-CoT trains it to be, or where it is written most often.

    Of a decoder that was trained afterwards only steps that are written more often than the controls say.
    """
    places = _best(data) if is_asked(data) else _trained(data)
    rows = []
    for step, position in places.items():
        cell = data.sel(position=position, step=step)
        share, low, high = of_picked([cell[f"result_share{end}"] for end in ENDS], place_pick(data))
        controls = (np.nan_to_num(float(cell[name])) if name in cell else 0.0 for name in SHARES[1:3])
        rows.append([step + 1, position, share, low, high, *controls])
    return pd.DataFrame(rows, columns=["step", "position", "share", "low", "high", "other", "shuffled"])


def _trained(data: xr.Dataset) -> dict[int, str]:
    places = {int(position.removeprefix("ct")): position for position in map(str, data["position"].values)}
    steps = [step for step in data["step"].values.tolist() if step in places]
    return {step: places[step] for step in steps if int(data["n_step"].sel(position=places[step], step=step))}


def _best(data: xr.Dataset) -> dict[int, str]:
    shares = data["result_share"].where(data["above_controls"], -1.0)
    best = shares.idxmax("position").values
    return {int(step): str(best[i]) for i, step in enumerate(data["step"].values) if shares.isel(step=i).max() >= 0}


def text_rows(data: xr.Dataset, n: int) -> Frame:
    """What is written of the first examples; asked for steps, of those that the problem has."""
    rows: Frame = data["text"].isel(example=slice(0, n)).to_dataframe().reset_index()
    if is_asked(data):
        rows = rows.merge(data["stated"].to_series().reset_index())
        rows = rows[rows["stated"] != ""].assign(step=lambda rows: rows["step"] + 1)
    return rows.assign(text=rows["text"].map(lambda text: repr(str(text))))
