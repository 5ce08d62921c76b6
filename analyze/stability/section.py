"""Section on what heads and thoughts do from run to run."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import Finding, Pair, number
from analyze.page import Page, Section
from analyze.stability.command import pair_rows
from analyze.stability.figures import plot_stability


def stability(page: Page) -> None:
    """The stored comparison of the most runs."""
    for result in page.joint("stability", best=lambda one: len(one.runs)):
        data = result.data
        height = 2.4 + 0.35 * data.sizes["run"]
        plot_stability(data, ax=page.panel("stability", wide=True, height=height, ncols=3))
        rows = pair_rows(data)
        page.add("stability", None, rows)
        for row in rows:
            if row["run"] != row["other"]:
                label = f"{row['run']} and {row['other']}"
                page.say_of(label, page.text("pair" if np.isfinite(row["same_type"]) else "thoughts", **row))
                runs = str(row["run"]), str(row["other"])
                pair = Pair(runs=runs, label=label, data=data.sel(run=runs[0], other=runs[1]))
                page.find(pair, *[one for one in alike(pair.data) if np.isfinite(one.of(pair)).all()])
        page.add("roles", None, role_rows(data))


def alike(data: xr.Dataset) -> list[Finding]:
    """What two runs have in common; nothing is what shuffled heads, or thoughts, have on average."""
    null = float(data["correlation_null"].sel(score="composite"))
    shares = {"same_hub": "heads with the same hub", "overlap": "what thoughts read"}
    return [
        number("composite score", "correlation", nothing=null, score="composite"),
        *(number(what, name, nothing=float(data[f"{name}_null"])) for name, what in shares.items()),
    ]


def role_rows(data: xr.Dataset) -> list[dict[str, Any]]:
    """What most examples read out as at each position of each run that has something to read."""
    cells = [data.sel(run=run, position=position) for run in data["run"].values for position in data["position"].values]
    return [
        {
            "model": cell["run"].item(), "position": cell["position"].item(), "reads": cell["role"].item(),
            "share": float(cell["role_share"].max()), "hub": float(cell["hub_share"]),
        }
        for cell in cells if cell["role"].item()
    ]  # fmt: skip


SECTIONS = (
    Section(slug="stability", write=stability, chapter="comparison", order=45, needs=("stability",), of="several"),
)
