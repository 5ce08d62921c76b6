"""Section on what heads and thoughts do from run to run, with its figure."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import Finding, Pair, beside_pairs, number_at
from analyze.drawing import heat_map, panels
from analyze.page import Page, Section
from analyze.stability.command import pair_rows
from store.results import preferred


def plot_stability(result: xr.Dataset, *, ax: Any = None) -> list[Any]:
    """Runs against runs: rank correlation of heads, same hubs, overlap of what thoughts read out as.

    Parameters
    ----------
    result
        From :func:`analyze.stability.between.stability`.
    ax
        Three axes.
    """
    axes = panels(3, ax, size=(3.6, 2.3 + 0.35 * result.sizes["run"]))
    drawn = {
        "composite score": result["correlation"].sel(score="composite"),
        "same hub": result["same_hub"],
        "what thoughts read": result["overlap"],
    }
    for index, (axis, (title, values)) in enumerate(zip(axes, drawn.items(), strict=True)):
        rows = result["run"].values if index == 0 else [""] * result.sizes["run"]
        heat_map(axis, values.values, rows, result["other"].values)
        axis.set_title(title)
        axis.tick_params(axis="x", rotation=90)
    return axes


def alike(pair: Pair) -> list[Finding]:
    """What two runs have in common; nothing is what shuffled heads, or thoughts, have on average."""

    def of(name: str, **place: str) -> Any:
        return lambda other: number_at(other.data, name, **place)

    composite = pair.data["correlation_null"].sel(score="composite")
    shares = {"same_hub": "heads with the same hub", "overlap": "what thoughts read"}
    return [
        Finding(what="composite score", of=of("correlation", score="composite"), nothing=float(composite)),
        *(Finding(what=what, of=of(name), nothing=float(pair.data[f"{name}_null"])) for name, what in shares.items()),
    ]


def stability(page: Page) -> None:
    """The stored comparison of the most runs."""
    stored = preferred(result for result in page.context.results if result.kind == "stability")
    if stored:
        best = max(stored, key=lambda result: len(result.runs))
        page.sources.append(best)
        data = page.context.open(best)
        height = 2.4 + 0.35 * data.sizes["run"]
        plot_stability(data, ax=page.panel("stability", wide=True, height=height, ncols=3))
        rows = pair_rows(data)
        page.add("stability", None, rows)
        findings = []
        for row in rows:
            if row["run"] != row["other"]:
                line = "pair" if np.isfinite(row["same_type"]) else "thoughts"
                label = f"{row['run']} and {row['other']}"
                page.say_of(label, page.text(line, **row))
                runs = str(row["run"]), str(row["other"])
                pair = Pair(runs=runs, label=label, data=data.sel(run=runs[0], other=runs[1]))
                findings.append((pair, [one for one in alike(pair) if np.isfinite(one.of(pair)).all()]))
        beside_pairs(page, findings)
        roles = [
            {
                "model": run,
                "position": position,
                "reads": cell["role"].item(),
                "share": float(cell["role_share"].max()),
                "hub": float(cell["hub_share"]),
            }
            for run in data["run"].values
            for position in data["position"].values
            for cell in [data.sel(run=run, position=position)]
            if cell["role"].item()
        ]
        page.add("roles", None, roles)
    page.need("stability")


SECTIONS = (
    Section(slug="stability", write=stability, chapter="comparison", order=45, needs=("stability",), of="several"),
)
