"""Section on how alike the states of two runs are, with its figure."""

from typing import Any

import xarray as xr

from analyze.beside import Pair, number
from analyze.drawing import heat_map, panels
from analyze.page import Page, Section
from analyze.tables import ENDS, Frame, result_table
from schemas.picked import Pick

TEXTS = r'''
[similarity]
title = "How alike the states of two models are"
headline = "Centred kernel alignment (CKA) of the states of every two models, on the same problems."
controls = "number"
method = """\
    1: the states of the same problems lie alike, but for a rotation and a scale. 0 on average: they have nothing in \
    common (debiased estimator). Every layer and position of one model is compared with every one of the other. \
    Intervals come from halves of the problems."""
caveats = ["States may be alike because both still carry the question, and alike without being used alike."]
[similarity.lines]
same = """\
    the same position at the same depth is {mean:.2f} alike on average, from {worst[cka]:.2f} at {worst[position]} to \
    {best[cka]:.2f} at {best[position]}; {told} of {n} positions more than shuffled problems are ({null:.2f})"""
[similarity.figures]
similarity = """\
    CKA of positions, mean over layers at the same relative depth, and of layers, mean over positions that both have. \
    Rows: the first model; columns: the second."""
[similarity.tables.similarity]
caption = """\
    Positions of the same name; the CSV holds every two positions. “Null”: what the largest value of the whole map \
    stays below in 95% of shuffles of the problems of one model."""
columns = [["Position", "position", "text"], ["CKA", "cka", "number", "low", "high"], ["Null", "null", "number"]]
'''


def plot_similarity(result: xr.Dataset, *, ax: Any = None) -> list[Any]:
    """CKA of positions, mean over layers, and of layers, mean over positions.

    ``result`` is from :func:`analyze.similarity.cka.similarity`; it takes two axes.
    """
    axes = panels(2, ax, size=(4.6, 3.4))
    for axis, dim in zip(axes, ("position", "layer"), strict=True):
        heat_map(axis, result[f"{dim}_cka"].values, result[dim].values, result[f"other_{dim}"].values)
        axis.set(title=f"CKA of {dim}s", xlabel=result.attrs["second"], ylabel=result.attrs["first"])
    return axes


def similarity(page: Page) -> None:
    """Every two runs that were compared."""
    order = page.context.runs.index
    for result in sorted(page.joint("similarity"), key=lambda result: [order(run) for run in result.stored.runs]):
        data, runs = result.data, result.stored.runs
        label = result.label if len(runs) > 1 else f"{result.label} with itself"
        height = 1.2 + 0.29 * max(data.sizes["position"], data.sizes["layer"])
        plot_similarity(data, ax=page.panel("similarity", result, wide=True, height=height, ncols=2))
        rows: Frame = result_table(data, [f"position_cka{end}" for end in ENDS])
        rows.columns = ["position", "other_position", "cka", "low", "high"]
        null = float(data["position_cka_null"])
        page.add("similarity", label, rows.assign(null=null))
        same = rows[rows["position"] == rows["other_position"]].sort_values("cka")
        if same.empty:
            continue
        values = {"told": int((same["cka"] > null).sum()), "n": len(same), "null": null, "mean": same["cka"].mean()}
        page.say_of(label, page.text("same", worst=same.iloc[0], best=same.iloc[-1], **values))
        if len(runs) > 1:
            most = [str(place) for place in same["position"].iloc[:-4:-1]]
            told: dict[str, Any] = {"nothing": null, "pick": Pick(len(same))}  # what shuffled problems stay below
            alike = [number(x, "position_cka", **told, position=x, other_position=x) for x in most]
            page.find(Pair(runs=(runs[0], runs[1]), label=label, data=data), *alike)
    page.show("similarity", lambda rows: rows[rows["position"] == rows["other_position"]])


SECTIONS = (
    Section(slug="similarity", write=similarity, chapter="comparison", order=30, needs=("similarity",), of="several"),
)
