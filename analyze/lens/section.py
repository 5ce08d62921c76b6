"""Sections read from hidden states through the lens: number decoding, results of the written chain."""

from typing import Any

import pandas as pd
import xarray as xr

from analyze.beside import NOTHING, Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.drawing import Series
from analyze.labels import up_to_eot
from analyze.lens.command import is_plain
from analyze.page import Page, Section, listed
from analyze.places import draw_places

SHARES = (
    "number_share", "number_share_low", "number_share_high", "result_share", "control_share", "gold_first_share"
)  # fmt: skip
ENOUGH = 10
"""Problems that must have a step for it to be shown."""


def number_decoding(page: Page) -> None:
    """How often each position reads out as a number."""
    series: list[Series] = []
    longest: list[str] = []
    findings = []
    for result in page.results("lens", is_plain):
        lens = up_to_eot(result.data)
        final = lens.isel(layer=-1)
        positions = [str(x) for x in lens["position"].values]
        layers = [f"layer {x}" for x in lens["layer"].values]
        page.percent_map(
            "number_decoding", result, lens["number_share"].transpose("layer", "position"), layers, positions
        )
        numbers = final["number_share"].to_series()
        surely = final["number_share_low"].to_series() if "number_share_low" in final else numbers
        often = [x for x in positions if x.startswith("ct") and surely[x] > 0.5]  # a majority whose interval says so
        never = [x for x in positions if x.startswith("ct") and numbers[x] <= 0.05]
        name = "some_never" if never else "most"
        page.say(result, name, often=listed(often) or "no thought", never=listed(never))
        findings.append((result, [finding_at("number_share", label, label) for label in often]))
        values = {key: final[key].values for key in ("n", *SHARES)}
        page.add("number_decoding", result, {"position": positions, "layer": int(final["layer"])} | values)
        series.append((result.look, *(values[key] for key in SHARES[:3])))
        longest = max(longest, positions, key=len)
    thoughts = [label for label in longest if label.startswith("ct")]
    if thoughts:
        draw_places(page.panel("places", wide=True, height=1.9), thoughts)
    page.bars("position_number_frequency", longest, series, "decodes to a number", top=1.02)
    beside(page, findings)
    tests = [
        page.text("test", label=one.label, q=float(one.data["q"][-1]), p=float(one.data["q_p_adjusted"][-1]))
        for one in page.results("lens_tests", is_plain, optional=True)
    ]
    page.set(tests="; ".join(tests))


def finding_at(name: str, what: str, position: str, step: int | None = None) -> Finding:
    """A number of the last layer of a lens."""

    def of(result: StoredResult) -> Triple:
        data = result.data.isel(layer=-1)
        key = "inner_share" if name == "step_share" and "inner_share" in data else name
        return number_at(data, key, position=position, **({} if step is None else {"step": step}))

    return Finding(what=what, of=of)


def chain_results(page: Page) -> None:
    """Which position holds which step of the chain."""
    findings = []
    for result in page.results("lens", is_plain):
        if not result.data.sizes.get("step"):
            continue
        rows = step_rows(up_to_eot(result.data).isel(layer=-1))
        if rows.empty:
            continue
        steps = [f"step {step}" for step in rows["step"].unique()]
        grid = rows["share"].to_numpy().reshape(len(steps), -1)
        page.percent_map("chain_results", result, grid, steps, rows["position"].unique())
        best = rows.loc[rows.groupby("step")["share"].idxmax().dropna()]
        cells = [page.text("cell" if row["low"] > NOTHING else "nowhere", **row) for row in best.to_dict("records")]
        page.say_of(result.label, ", ".join(cells))
        page.add("chain_results", result, rows)
        best = best[best["low"] > NOTHING]
        read = best[["step", "position"]].values
        findings.append(
            (result, [finding_at("step_share", f"step {step}", place_read, step - 1) for step, place_read in read])
        )
    page.need("chain_results")
    beside(page, findings)
    page.show(
        "chain_results", lambda rows: rows.loc[rows.groupby(["run", "step"], sort=False)["share"].idxmax().dropna()]
    )


def step_rows(lens: xr.Dataset) -> Any:
    """How often each step's result reads out at each position, of the steps that enough problems have."""
    inner = "inner_share" in lens
    which, count = ("inner_share", "n_inner") if inner else ("step_share", "n_step")
    names = {
        which: "share",
        f"{which}_low": "low",
        f"{which}_high": "high",
        "inner_control_share" if inner else "step_control_share": "control",
        "operator_share": "operator",
    }
    lens = lens.assign(n=lens[count if count in lens else "n_step"])
    lens = lens.isel(step=[i for i in range(lens.sizes["step"]) if lens["n"].isel(step=i).max() >= ENOUGH])
    if not lens.sizes["step"]:
        return pd.DataFrame()
    part = lens[["n", *names]].reset_coords(drop=True).rename(names)
    rows = part.to_dataframe(dim_order=["step", "position"]).reset_index()
    return rows.assign(step=rows["step"] + 1, n=rows["n"].astype(int))


SECTIONS = (
    Section(slug="number-decoding", write=number_decoding, chapter="report-000", order=10, needs=("lens",)),
    Section(slug="chain-results", write=chain_results, chapter="report-000", order=20, needs=("lens",), key=True),
)
