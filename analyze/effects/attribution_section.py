"""Section on what heads, MLPs and thoughts carry of the clean answer, by attribution patching."""

import numpy as np

from analyze.context import StoredResult
from analyze.drawing import as_percent, band, faint_grid, legend_below
from analyze.effects.figures import plot_attribution
from analyze.effects.shown import differing_fed
from analyze.page import Page, Section, listed

COLUMNS = ("kind", "layer", "head", "position", "score", "score_low", "score_high", "exact", "exact_low", "exact_high")


def attribution(page: Page) -> None:
    """Every run that was attributed."""
    for result in page.results("attribute"):
        data = result.data
        plot_attribution(data, result.look.colour, page.panel("attribution_graph", result, wide=True, height=3.2))
        draw(page, result)
        nodes = data[list(COLUMNS[4:])].reset_coords(list(COLUMNS[:4])).to_dataframe()[list(COLUMNS)]
        nodes["head"] = nodes["head"].where(nodes["kind"] == "head")  # an MLP and a fed vector are of none
        page.add("attribution_patching", result, nodes := nodes.sort_values("score", key=abs, ascending=False))
        quarter = data.isel(size=int(np.abs(data["size"].values - data.sizes["node"] / 4).argmin()))
        page.say(
            result, "scored", thoughts=listed(page.texts("thought", differing_fed(nodes))) or page.text("no_thought"),
            spearman=data.attrs["spearman"], low=data.attrs["spearman_low"], high=data.attrs["spearman_high"],
            n=int(data["exact"].notnull().sum()), size=int(quarter["size"]), all=data.sizes["node"],
            kept=float(quarter["kept"]), random=float(quarter["kept_random"]),
        )  # fmt: skip


def draw(page: Page, result: StoredResult) -> None:
    """Scores against exact effects, fed vectors filled; what subgraphs of each size carry, and what is left."""
    data, colour = result.data, result.look.colour
    ax = page.panel("attribution_exact", result, height=2.8)
    for label, face in (("heads, MLPs", "none"), ("fed vectors", colour)):
        nodes = data.isel(node=(data["kind"] == "fed").values == (label == "fed vectors"))
        ax.scatter(
            nodes["exact"], nodes["score"], s=18, facecolors=face, edgecolors=colour, linewidths=0.8, label=label
        )
    ax.set(xlabel="moved by patching", ylabel="score")
    curves = page.panel("attribution_curve", result, height=2.8)
    size = data["size"].values
    for name, style, label in (("kept", "-", "alone"), ("left", "--", "all but these")):
        curves.plot(size, data[name], color=colour, linestyle=style, label=label)
        curves.plot(size, data[f"{name}_random"], color="0.55", linestyle=":", linewidth=1.0)
        band(curves, size, data[f"{name}_random_low"], data[f"{name}_random_high"], "0.55")
    curves.set_xscale("log", base=2)
    curves.set_xlabel("nodes")
    as_percent(curves)
    for axes in (ax, curves):
        faint_grid(axes)
        legend_below(axes)


SECTIONS = (
    Section(
        slug="attribution-patching", write=attribution, chapter="report-004", order=70, needs=("attribute",), of="pairs"
    ),
)
