"""Section of which position reads out as which step of the written chain."""

import pandas as pd
import xarray as xr

from analyze.beside import NOTHING, number
from analyze.labels import up_to_eot
from analyze.lens.command import is_plain
from analyze.page import Page, Section
from analyze.tables import ENDS, Frame

ENOUGH = 10
"""Problems that must have a step for it to be shown."""


def chain_results(page: Page) -> None:
    """Which position holds which step of the chain."""
    for result in page.results("lens", is_plain):
        rows: Frame = step_rows(up_to_eot(result.data)) if result.data.sizes.get("step") else pd.DataFrame()
        if rows.empty:
            continue
        steps, positions = [f"step {step}" for step in rows["step"].unique()], rows["position"].unique()
        page.percent_map("chain_results", result, rows["share"].to_numpy().reshape(len(steps), -1), steps, positions)
        best = rows.loc[rows.groupby("step")["share"].idxmax().dropna()]
        cells = [page.text("cell" if row["low"] > NOTHING else "nowhere", **row) for row in best.to_dict("records")]
        page.say_of(result.label, ", ".join(cells))
        page.add("chain_results", result, rows)
        told = best[best["low"] > NOTHING][["step", "position"]].values
        page.find(result, *[
            number(f"step {step}", "share", read=of_steps, position=position, step=step - 1) for step, position in told
        ])  # fmt: skip
    page.need("chain_results")
    page.show(
        "chain_results", lambda rows: rows.loc[rows.groupby(["run", "step"], sort=False)["share"].idxmax().dropna()]
    )


def of_steps(data: xr.Dataset) -> xr.Dataset:
    """At the last layer, how often each step's result reads out, of problems in which it is not the answer if known."""
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


SECTIONS = (
    Section(slug="chain-results", write=chain_results, chapter="report-000", order=20, needs=("lens",), key=True),
)
