"""Section on traces: how many problems are explained by what their thoughts read as, and trees of some of them."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.drawing import INK, MUTED, RULE, as_percent, faint_grid, legend_below, whiskers
from analyze.page import Page, Section
from analyze.traces.command import place_of
from analyze.traces.nodes import nodes_of

DRAWN = 6
"""Problems whose tree is drawn."""
LEVEL = 0.05
"""Of the test against the thoughts of other problems; twenty shuffles reach no less than 1 in 21."""
OUTCOMES = {
    "found": "a tree ends at\nthe answer",
    "recovered": "the written\nchain",
    "in_order": "results read\nin order",
}


def traces(page: Page) -> None:
    """Every run whose traces are stored."""
    findings = []
    for result in page.results("traces"):
        data = result.data.isel(layer=-1)
        rows = outcome_rows(data)
        if rows.empty:
            continue
        page.add("traces", result, rows)
        draw_shares(page, result, rows)
        chosen = telling(data)
        plot_trees(data.isel(example=chosen), ax=page.panel("trees", result, height=0.9 + 0.42 * len(chosen)))
        questions = page.context.run(result.run)["question"].isel(example=chosen).values
        page.add("trees", result, tree_rows(data.isel(example=chosen), questions))
        own, chance = (float(data[f"recovered_{name}"]) for name in ("share", "null"))
        texts = {
            "layer": place_of(int(data["layer"])),
            "lens": data.attrs["lens"],
            "own": own,
            "chance": chance,
            "p": float(data["recovered_p"]),
            "n": data.attrs["n_counted"],
        }
        told = "recovered" if float(data["recovered_p"]) < LEVEL else "untold"
        page.say(result, told if np.isfinite(own) else "none", **texts)
        above = float(data["recovered_null_high"])
        findings.append((result, [Finding(what="the written chain", of=recovered, nothing=above)]))
        if "frontier_share" in data:
            page.percent_map(
                "frontier", result, data["frontier_share"].values.T,
                [f"{int(distance)} away" for distance in data["distance"].values], data["position"].values,
            )  # fmt: skip
    page.need("traces")
    beside(page, findings)


def recovered(result: StoredResult) -> Triple:
    """Share of the problems whose written chain is a best tree."""
    return number_at(result.data.isel(layer=-1), "recovered_share")


def outcome_rows(data: xr.Dataset) -> Any:
    """Shares of the problems with their intervals and nulls."""
    rows = [
        {
            "outcome": text.replace("\n", " "), "share": float(data[f"{name}_share"]),
            "low": float(data[f"{name}_share_low"]), "high": float(data[f"{name}_share_high"]),
            "null": float(data[f"{name}_null"]), "null_high": float(data[f"{name}_null_high"]),
            "p": float(data[f"{name}_p"]), "n": data.attrs["n_counted"],
        }
        for name, text in OUTCOMES.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).dropna(subset="share")


def draw_shares(page: Page, result: StoredResult, rows: Any) -> None:
    """Shares beside what shuffled thoughts give."""
    ax = page.panel("traces", result, height=2.6)
    x = np.arange(len(rows))
    ax.bar(x, rows["share"], width=0.55, **result.look.bar() | {"label": "own thoughts"})
    whiskers(ax, x, rows["share"], rows["low"], rows["high"])
    ax.plot(x, rows["null"], linestyle="", marker="_", markersize=18, color=MUTED, label="of another problem")
    ax.set_xticks(x, [OUTCOMES[name] for name in OUTCOMES if OUTCOMES[name].replace("\n", " ") in set(rows["outcome"])])
    ax.set_ylim(0, 1.03)
    as_percent(ax)
    faint_grid(ax)
    legend_below(ax, 0.3)


def telling(data: xr.Dataset) -> list[int]:
    """Rows of the problems shown: those counted with the longest trees, one that is not as written among them."""
    length = np.array([str(text).count(";") for text in data["tree"].values])
    written = data["recovered"].values.astype(bool) & data["counted"].values.astype(bool)
    others = np.flatnonzero(~written & data["counted"].values.astype(bool))[:1]
    best = np.setdiff1d(np.argsort(-length * written, kind="stable"), others, assume_unique=True)
    return [*map(int, best[: DRAWN - len(others)]), *map(int, others)]


def tree_rows(data: xr.Dataset, questions: Any) -> Any:
    """Trees of some problems in words."""
    return pd.DataFrame({
        "example": data["example"].values, "question": questions, "n_tree": data["n_tree"].values,
        "tree": [str(x) or "none" for x in data["tree"].values],
        "written": np.where(data["recovered"].values.astype(bool), "yes", "no"),
    })  # fmt: skip


def plot_trees(data: xr.Dataset, *, ax: Any) -> Any:
    """What each thought of some problems reads as, and the tree: framed what it uses, arrows from operand to result.

    Parameters
    ----------
    data
        Examples of :func:`analyze.traces.traces.traces`, at one layer.
    ax
        Where it is drawn.
    """
    places = [*map(str, data["position"].values), "answer"]
    for row in range(data.sizes["example"]):
        nodes = nodes_of(str(data["tree"].values[row]))
        shown = {place: str(text) for place, text in zip(places, data["read"].values[row], strict=False)}
        for place, text in shown.items():
            ax.text(places.index(place), row, text, ha="center", va="center", fontsize=7, color=MUTED)
        for place, name, sources in nodes:
            frame = {"boxstyle": "round,pad=0.25", "facecolor": RULE, "edgecolor": INK, "linewidth": 0.6}
            ax.text(places.index(place), row, name, ha="center", va="center", fontsize=7.5, color=INK, bbox=frame)
            for source in sources:
                arrow = {"arrowstyle": "->", "color": INK, "linewidth": 0.7, "shrinkA": 9, "shrinkB": 9,
                         "connectionstyle": "arc3,rad=-0.25"}  # fmt: skip
                ax.annotate("", (places.index(place), row), (places.index(source), row), arrowprops=arrow)
    ax.set_xticks(range(len(places)), places, fontsize=7)
    ax.set_yticks(range(data.sizes["example"]), [str(int(x)) for x in data["example"].values], fontsize=7)
    ax.set_ylabel("example")
    ax.set_xlim(-0.6, len(places) - 0.4)
    ax.set_ylim(data.sizes["example"] - 0.4, -0.6)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


SECTIONS = (Section(slug="traces", write=traces, chapter="report-000", order=40, needs=("traces",)),)
