"""Correlations as rows, and what each kind is called."""

import numpy as np
import pandas as pd
import xarray as xr

from analyze.tables import ENDS

KINDS = {
    "pooled": "pooled over problems and positions",
    "within": "within problems",
    "partial": "position accounted for",
    "two_way": "within problems, position accounted for",
}


def correlation_rows(data: xr.Dataset, kinds: list[str]) -> pd.DataFrame:
    """Every correlation of every layer, the kinds first, then single positions."""
    rows = [(data, kind, KINDS[kind]) for kind in kinds]
    labels = data["position"].values
    rows += [(data.sel(position=label), "position", f"at {label}, over problems") for label in labels]
    frames = []
    for order, (part, name, label) in enumerate(rows):
        p = part[f"{name}_p_adjusted"].values if f"{name}_p_adjusted" in part else np.nan
        values = {f"r{end}": part[f"{name}_r{end}"].values for end in ENDS} | {"p": p, "order": order}
        frames.append(pd.DataFrame({"layer": data["layer"], "kind": label} | values))
    return pd.concat(frames).sort_values(["layer", "order"]).drop(columns="order")
