"""Section on what the vectors fed at the thoughts carry, by three lenses on the same held-out problems."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import NOTHING, Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.drawing import as_percent, faint_grid, legend_below
from analyze.lens.command import best_methods
from analyze.page import Page, Section, listed, share

TEXTS = r'''
[fed-thoughts]
title = "What a thought carries where it is fed"
headline = "The result that the Jacobian lens names in each vector fed, where the logit lens reads little."
method = """\
    A vector fed is read as the state it was made of: mean Jacobians of the projection are inverted by the best linear \
    estimate, with noise from how much Jacobians of single problems differ, weighed on other problems. Logit lens and \
    tuned lens read the same vectors. \
    All are measured on problems that nothing was fitted on; steps that are a problem's last are left out."""
caveats = [
    "That a lens names a result does not say that it is used: see patching, attribution and the decodable twins.",
    "Control: the same Jacobians turned at random, so that only their size is right, name it in {control:share0}.",
]
[fed-thoughts.lines]
named = "{thoughts} (logit lens: {logit})"
none = "no thought names a result in more than one problem of ten"
one = "{position} step {step} ({share:share0})"
[fed-thoughts.figures]
fed_thoughts = """\
    Share of held-out problems in which the best token is the result that the Jacobian lens names most often at that \
    thought."""
[fed-thoughts.tables.fed_thoughts]
caption = """\
    Of the step that the Jacobian lens names best at each thought. “1 / rank”: mean over problems, 0 where the result \
    is not among the best tokens kept. “Calibration”: how far the best token's probability is from how often it is a \
    result."""
limit = 24
columns = [
    ["Thought", "position", "text"],
    ["Step", "step", "count"],
    ["Lens", "lens", "text"],
    ["n", "n", "count"],
    ["Result named", "share", "share", "low", "high"],
    ["1 / rank", "rank", "number"],
    ["Calibration", "calibration", "number"],
]
[fed-thoughts.tables.lens_edits]
caption = """\
    In problems that nothing was fitted on and whose thought was edited: how often the lens names the result, how \
    often the answer follows the edit, how often both or neither, and how often that would be if readings and edits \
    had nothing to do with each other."""
columns = [
    ["Thought", "position", "text"],
    ["Step", "step", "count"],
    ["Edited by", "method", "text"],
    ["Lens", "lens", "text"],
    ["n", "n", "count"],
    ["Named", "read_share", "share", "read_share_low", "read_share_high"],
    ["Edit followed", "follow_share", "share", "follow_share_low", "follow_share_high"],
    ["Agree", "agreement", "share", "agreement_low", "agreement_high"],
    ["By chance", "chance", "share"],
]
'''
SHARES = ("read_share", "follow_share", "agreement")
EDIT_COLUMNS = ("n", *(name + end for name in SHARES for end in ("", "_low", "_high")), "chance")
MARKERS = {"jacobian": "o", "logit": "s", "tuned": "^", "jacobian, rotated": "x"}


def fed_thoughts(page: Page) -> None:
    """Every run whose lenses were compared."""
    controls, findings = [], []
    for result in page.results("lens_comparison"):
        rows = best_steps(result.data)
        if rows.empty:
            continue
        draw(page, result, rows)
        page.add("fed_thoughts", result, rows)
        own, logit, control = (rows[rows["lens"] == lens] for lens in ("jacobian", "logit", "jacobian, rotated"))
        named = own[own["share"] > 0.1]
        controls += control.loc[control["position"].isin(named["position"]), "share"].tolist()
        texts = [page.text("one", **row) for row in named.to_dict("records")]
        plain = logit.set_index("position")["share"].reindex(named["position"])
        percent = [share(value, 0) for value in plain]
        page.say(result, "named" if texts else "none", thoughts=listed(texts), logit=listed(percent))
        sure = own[own["low"] > NOTHING]
        findings.append((result, [named_at(str(row.position), int(row.step)) for row in sure.itertuples()]))
    for result in page.results("lens_edits", optional=True):
        page.add("lens_edits", result, edit_rows(result.data))
    page.need("fed_thoughts")
    beside(page, findings)
    page.set(control=float(np.mean(controls)) if controls else None)


def named_at(position: str, step: int) -> Finding:
    """How often the Jacobian lens names the result of a step in what is fed at a thought."""

    def of(result: StoredResult) -> Triple:
        data = result.data
        place = {"layer": -1, "lens": "jacobian", "position": position}
        if "step" in data.dims and "step" not in data.coords:
            data = data.assign_coords(step=range(data.sizes["step"]))
        return number_at(data, "inner_share", **place, step=data["step"].values[step - 1])

    return Finding(what=f"step {step} fed at {position}", of=of)


def best_steps(data: xr.Dataset) -> Any:
    """Of each thought the step whose result the Jacobian lens names most often, as every lens reads it."""
    fed = data.sel(layer=-1)
    rows = []
    for position in fed["position"].values:
        place = fed.sel(position=position)
        named = place["inner_share"].sel(lens="jacobian").values
        if not np.isfinite(named).any():
            continue
        step = int(np.nanargmax(named))
        for lens in place["lens"].values:
            read = place.sel(lens=lens).isel(step=step)
            rows.append({
                "position": str(position), "step": step + 1, "lens": str(lens), "n": float(read["n_inner"]),
                "share": float(read["inner_share"]), "low": float(read["inner_share_low"]),
                "high": float(read["inner_share_high"]), "rank": float(read["inner_reciprocal_rank"]),
                "calibration": float(read["calibration_error"]),
            })  # fmt: skip
    return pd.DataFrame(rows)


def edit_rows(data: xr.Dataset) -> list[dict[str, Any]]:
    """Readings of every lens beside the edits that are followed most at each thought."""
    rows: list[dict[str, Any]] = []
    for index in best_methods(data):
        for lens in data["lens"].values:
            one = data.isel(edit=index).sel(lens=lens)
            labels = {"position": one["position"].item(), "step": int(one["step"]) + 1,
                      "method": one["method"].item(), "lens": str(lens)}  # fmt: skip
            rows.append(labels | {name: float(one[name]) for name in EDIT_COLUMNS})
    return rows


def draw(page: Page, result: StoredResult, rows: Any) -> None:
    """Shares by thought, a line for each lens."""
    ax = page.panel("fed_thoughts", result, height=2.8)
    for lens, part in rows.groupby("lens", sort=False):
        main = lens == "jacobian"
        style = {"color": result.look.colour} if main else {"color": "0.55", "linestyle": ":", "linewidth": 1.0}
        ax.plot(part["position"], part["share"], marker=MARKERS.get(str(lens), "o"), label=f"{lens} lens", **style)
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    legend_below(ax)


SECTIONS = (
    Section(
        slug="fed-thoughts", write=fed_thoughts, chapter="report-000", order=30,
        needs=("jacobian", "lens_comparison --lens jacobian"),
    ),
)  # fmt: skip
