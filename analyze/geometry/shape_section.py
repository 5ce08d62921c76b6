"""Section on how many directions thoughts fill, and how many a reading takes."""

import math

import numpy as np

from analyze.beside import Finding, last_layer, number
from analyze.drawing import Series, as_percent, faint_grid, legend_above
from analyze.geometry.command import component_rows
from analyze.geometry.figures import plot_scores
from analyze.page import Page, Section
from analyze.tables import triple
from schemas.picked import Pick


def shape(page: Page) -> None:
    """How many directions thoughts fill, what these are, and how many a reading takes."""
    results = page.results("geometry")
    series: list[Series] = []
    curves = page.panel("kept", wide=True, height=2.9)
    for result in results:
        last = result.data.isel(layer=-1)
        plot_scores(last, page.panel("scores", result, height=3.6))
        page.map("turns", result, last["centred_cosine"], title=f"layer {last['layer'].item()}")
        ratio, *ends = triple(last, "participation_ratio")
        series.append((result.look, ratio, *ends))
        kept = last["kept_reading"].mean("position")
        curves.plot(kept["n_component"].values, kept.values, **result.look.line())
        few = kept["n_component"].values[kept.values >= 0.9]
        page.say(
            result, "shape", low=np.nanmin(ratio), high=np.nanmax(ratio), dimension=float(last["two_nn"].mean()),
            null=float(last["participation_ratio_null"].mean()),
            few=f"{few[0]} components" if len(few) else "more components than were tried",
        )  # fmt: skip
        page.add("components", result, component_rows(last))
        extremes = [find(ratio) for find in (np.nanargmax, np.nanargmin) if np.isfinite(ratio).any()]
        names = dict.fromkeys(str(last["position"].values[place]) for place in extremes)
        pick = Pick(int(np.isfinite(ratio).sum()), by="any")
        page.find(result, *(directions_at(name, pick) for name in names))
    counts = results[0].data["n_component"].values
    curves.set_xscale("log", base=2)
    curves.set_xticks(counts, [str(count) for count in counts])
    curves.set(xlabel="components kept", ylabel="first token stays", ylim=(0, 1.02))
    as_percent(curves)
    faint_grid(curves)
    legend_above(curves, 4)
    page.bars("directions", [str(x) for x in results[0].data["position"].values], series, "directions")


def directions_at(position: str, pick: Pick) -> Finding:
    """How many directions the states of a position fill at the last layer; no number of them is nothing."""
    what = f"directions at {position}"
    return number(what, "participation_ratio", nothing=math.nan, read=last_layer, pick=pick, position=position)


SECTIONS = (Section(slug="geometry", write=shape, order=20, needs=("geometry",)),)
