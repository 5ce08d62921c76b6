"""Section on how alike the states of two runs are, with its figure."""

from typing import Any

import xarray as xr

from analyze.beside import Finding, Pair, beside_pairs, number_at
from analyze.drawing import heat_map, panels
from analyze.page import Page, Section
from analyze.tables import result_table
from store.results import Result, preferred

TEXTS = r'''
[similarity]
title = "How alike the states of two models are"
headline = "Centred kernel alignment (CKA) of the states of every two models, on the same problems."
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

    Parameters
    ----------
    result
        From :func:`analyze.similarity.cka.similarity`.
    ax
        Two axes.
    """
    axes = panels(2, ax, size=(4.6, 3.4))
    for axis, dim in zip(axes, ("position", "layer"), strict=True):
        heat_map(axis, result[f"{dim}_cka"].values, result[dim].values, result[f"other_{dim}"].values)
        axis.set(title=f"CKA of {dim}s", xlabel=result.attrs["second"], ylabel=result.attrs["first"])
    return axes


def alike_at(position: str, null: float) -> Finding:
    """How alike states at a position are; nothing is what shuffled problems stay below."""

    def of(pair: Pair) -> list[float]:
        return number_at(pair.data, "position_cka", position=position, other_position=position)

    return Finding(what=position, of=of, nothing=null)


def similarity(page: Page) -> None:
    """Every two runs that were compared."""
    shown: dict[tuple[str, ...], Result] = {}
    for result in preferred(result for result in page.context.results if result.kind == "similarity"):
        shown.setdefault(tuple(sorted(result.runs)), result)
    findings = []
    for stored in sorted(shown.values(), key=lambda result: [page.context.runs.index(run) for run in result.runs]):
        page.sources.append(stored)
        data = page.context.open(stored)
        looks = page.context.relabel(stored.runs)
        labels = [looks[run].label for run in stored.runs]
        label = " and ".join(labels) if len(labels) > 1 else f"{labels[0]} with itself"
        height = 1.2 + 0.29 * max(data.sizes["position"], data.sizes["layer"])
        plot_similarity(data, ax=page.panel("similarity", "_".join(stored.runs), wide=True, height=height, ncols=2))
        rows: Any = result_table(data, [f"position_cka{end}" for end in ("", "_low", "_high")])
        rows.columns = ["position", "other_position", "cka", "low", "high"]
        page.add("similarity", label, rows.assign(null=float(data["position_cka_null"])))
        same = rows[rows["position"] == rows["other_position"]].sort_values("cka")
        if len(same):
            worst, best = same.iloc[0], same.iloc[-1]
            null = float(data["position_cka_null"])
            told, n = int((same["cka"] > null).sum()), len(same)
            page.say_of(label, page.text("same", mean=same["cka"].mean(), worst=worst, best=best, told=told, n=n,
                                         null=null))  # fmt: skip
            if len(stored.runs) > 1:
                places = same["position"].iloc[:-4:-1]
                pair = Pair(runs=(stored.runs[0], stored.runs[1]), label=label, data=data)
                findings.append((pair, [alike_at(str(place), null) for place in places]))
    page.need("similarity")
    beside_pairs(page, findings)
    page.show("similarity", lambda rows: rows[rows["position"] == rows["other_position"]])


SECTIONS = (
    Section(slug="similarity", write=similarity, chapter="comparison", order=30, needs=("similarity",), of="several"),
)
