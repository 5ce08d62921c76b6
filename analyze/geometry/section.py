"""Sections on the shape of the states, and on rotations between models."""

import math
from typing import Any

import numpy as np

from analyze.beside import Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.drawing import MARKERS, PALETTE, Series, as_percent, faint_grid, heat_map, legend_above, legend_below
from analyze.geometry.command import component_rows
from analyze.page import Page, Section
from store.results import Result, preferred


def plot_scores(result: Any, ax: Any) -> None:
    """Problems along the first two principal components of the last layer, by position."""
    for index, position in enumerate(result["position"].values):
        x, y = result["score"].sel(position=position).transpose("axis", "example").values
        marker = MARKERS[index // len(PALETTE) % len(MARKERS)]
        ax.scatter(
            x, y, s=5, marker=marker, color=PALETTE[index % len(PALETTE)], alpha=0.6, linewidths=0, label=position
        )
    ax.set(xlabel="first component", ylabel="second")
    legend_below(ax, 0.18, 4)


def shape(page: Page) -> None:
    """How many directions thoughts fill, what these are, and how many a reading takes."""
    results = page.results("geometry")
    series: list[Series] = []
    positions = [str(x) for x in results[0].data["position"].values]
    curves = page.panel("kept", wide=True, height=2.9)
    findings = []
    for result in results:
        last = result.data.isel(layer=-1)
        plot_scores(last, page.panel("scores", result, height=3.6))
        names = last["position"].values
        ax = page.map("turns", result, last["centred_cosine"].values, names, last["other_position"].values)
        ax.set_title(f"{result.label}, layer {last['layer'].item()}")
        ratio = [last[f"participation_ratio{end}"].values for end in ("", "_low", "_high")]
        series.append((result.look, *ratio))
        kept = last["kept_reading"].mean("position")
        curves.plot(kept["n_component"].values, kept.values, **result.look.line())
        few = kept["n_component"].values[kept.values >= 0.9]
        page.say(
            result,
            "shape",
            low=np.nanmin(ratio[0]),
            high=np.nanmax(ratio[0]),
            null=float(last["participation_ratio_null"].mean()),
            dimension=float(last["two_nn"].mean()),
            few=f"{few[0]} components" if len(few) else "more components than were tried",
        )
        page.add("components", result, component_rows(last))
        findings.append((result, [directions_at(str(names[place])) for place in widest_and_narrowest(ratio[0])]))
    counts = results[0].data["n_component"].values
    curves.set_xscale("log", base=2)
    curves.set_xticks(counts, [str(count) for count in counts])
    curves.set(xlabel="components kept", ylabel="first token stays", ylim=(0, 1.02))
    as_percent(curves)
    faint_grid(curves)
    legend_above(curves, 4)
    page.bars("directions", positions, series, "directions")
    beside(page, findings, "number")


def widest_and_narrowest(ratio: Any) -> list[int]:
    """Places that fill the most and the fewest directions."""
    return list(dict.fromkeys((int(np.nanargmax(ratio)), int(np.nanargmin(ratio))))) if np.isfinite(ratio).any() else []


def directions_at(position: str) -> Finding:
    """How many directions the states of a position fill at the last layer; no number of them is nothing."""

    def of(result: StoredResult) -> Triple:
        return number_at(result.data.isel(layer=-1), "participation_ratio", position=position)

    return Finding(what=f"directions at {position}", of=of, nothing=math.nan)


def rotations(page: Page) -> None:
    """How far a rotation turns the thoughts of one model into those of another."""
    shown: dict[tuple[str, ...], Result] = {}
    for one in preferred(
        result for result in page.context.results if result.kind == "procrustes" and len(result.runs) == 2
    ):
        shown.setdefault(tuple(sorted(one.runs)), one)
    for stored in shown.values():
        page.sources.append(stored)
        data = page.context.open(stored)
        looks = page.context.relabel(stored.runs)
        label = " to ".join(looks[run].label for run in stored.runs)
        last = data.isel(layer=-1, other_layer=-1)
        ax = page.panel("rotations", "_".join(stored.runs), height=1.2 + 0.29 * data.sizes["position"])
        heat_map(ax, last["r2"].values, last["position"].values, last["other_position"].values)
        ax.set_title(label)
        rows: list[dict[str, Any]] = [
            {
                "position": str(name),
                "r2": float(cell["r2"]),
                "low": float(cell["r2_low"]),
                "high": float(cell["r2_high"]),
            }
            | {"p": float(cell["p"])}
            for name in last["position"].values
            if name in last["other_position"].values
            for cell in [last.sel(position=name, other_position=name)]
        ]
        page.add("rotations", label, rows)
        if rows:
            page.say_of(
                label, page.text("same", mean=np.mean([row["r2"] for row in rows]), null=float(data["r2_null"]))
            )
    page.need("rotations")


SECTIONS = (
    Section(slug="geometry", write=shape, order=20, needs=("geometry",)),
    Section(slug="rotations", write=rotations, chapter="comparison", order=40, needs=("procrustes",), of="several"),
)
