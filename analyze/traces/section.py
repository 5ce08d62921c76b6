"""Section on traces: how many problems are explained by what their thoughts read as, and trees of some of them."""

import numpy as np
import pandas as pd

from analyze.beside import last_layer, number
from analyze.drawing import MUTED, whiskers
from analyze.page import Page, Section
from analyze.tables import Frame
from analyze.traces.command import outcome_rows
from analyze.traces.figures import plot_trees, telling
from schemas.naming import layer_name

LEVEL = 0.05
"""Of the test against the thoughts of other problems; twenty shuffles reach no less than 1 in 21."""
OUTCOMES = {
    "found": "a tree ends at\nthe answer",
    "recovered": "the written\nchain",
    "in_order": "results read\nin order",
}


def traces(page: Page) -> None:
    """Every run whose traces are stored."""
    for result in page.results("traces"):
        data = result.data.isel(layer=-1)
        rows: Frame = pd.DataFrame(outcome_rows(data))
        if rows.empty:
            continue
        names = [OUTCOMES[name] for name in rows["outcome"]]
        page.add("traces", result, rows.assign(outcome=[name.replace("\n", " ") for name in names]))
        with page.shares("traces", result, low=0.0, legend=0.3, height=2.6) as ax:
            x = np.arange(len(rows))
            ax.bar(x, rows["share"], width=0.55, **result.look.bar() | {"label": "own thoughts"})
            whiskers(ax, x, rows["share"], rows["low"], rows["high"])
            ax.plot(x, rows["null"], linestyle="", marker="_", markersize=18, color=MUTED, label="of another problem")
            ax.set_xticks(x, names)
        shown = data.isel(example=telling(data))
        plot_trees(shown, ax=page.panel("trees", result, height=0.9 + 0.42 * shown.sizes["example"]))
        questions = page.context.run(result.run)["question"].sel(example=shown["example"]).values
        trees = {"question": questions, "tree": [str(x) or "none" for x in shown["tree"].values]}
        trees |= {name: shown[name].values for name in ("example", "n_tree")}
        page.add("trees", result, trees | {"written": np.where(shown["recovered"].values.astype(bool), "yes", "no")})
        own, chance, p = (float(data[f"recovered_{name}"]) for name in ("share", "null", "p"))
        line = "none" if not np.isfinite(own) else "recovered" if p < LEVEL else "untold"
        values = {"layer": layer_name(int(data["layer"])), "lens": data.attrs["lens"], "n": data.attrs["n_counted"]}
        page.say(result, line, own=own, chance=chance, p=p, **values)
        nothing = float(data["recovered_null_high"])
        page.find(result, number("the written chain", "recovered_share", nothing=nothing, read=last_layer))
        if "frontier_share" in data:
            shares = data["frontier_share"].transpose("distance", "position")
            names = [f"{int(distance)} away" for distance in data["distance"].values]
            page.percent_map("frontier", result, shares, names)
    page.need("traces")


SECTIONS = (Section(slug="traces", write=traces, chapter="report-000", order=40, needs=("traces",)),)
