"""Section of the comparison in report 004's panels."""

import json

import numpy as np
import pandas as pd
import xarray as xr

from analyze.compare.differences import comparison_table
from analyze.compare.figures import SEVEN
from analyze.drawing import Look, faint_grid
from analyze.page import NothingStored, Page, Section
from analyze.tables import Frame


def comparison(page: Page) -> tuple[xr.Dataset, dict[str, Look]]:
    """The stored comparison of the most of the page's models, and how they are drawn.

    Raises
    ------
    NothingStored
        If the lake has no comparison of two of them.
    """
    context, main = page.context, set(page.context.main_runs())
    (result,) = page.joint(
        "compare", where=lambda one: len(set(one.runs) & main) >= 2, best=lambda one: len(set(one.runs) & main)
    )
    used = {source.split()[0] for source in json.loads(str(result.data.attrs.get("sources", "{}"))).values()}
    page.counted = [result.stored, *(one for one in context.results if one.name in used)]
    models = [str(x) for x in result.data["model"].values]
    return result.data.assign_coords(model=models), context.relabel(models)


def seven_panels(page: Page) -> None:
    """Heads side by side."""
    data, looks = comparison(page)
    if "hub_received" not in data:
        raise NothingStored
    for index, (title, paint) in enumerate(SEVEN):
        ax = page.panel("model_comparison", str(index + 1), height=2.8)
        paint(data, looks, ax)
        faint_grid(ax)
        ax.set_title(title)
        if index == 0:
            ax.legend(loc="best", fontsize=7.5)
    table: Frame = comparison_table(data)
    for row in table.to_dict("records"):
        values = {"hub": "–", "hub_ratio": np.nan, "top_composite": np.nan} | row
        if pd.isna(values["hub_ratio"]) and pd.isna(values["top_composite"]):
            continue  # heads of this run were not scored
        line = "none" if pd.isna(values["hub_ratio"]) else "ratio"
        page.say_of(looks[row["model"]].label, page.text(line, **values))


SECTIONS = (
    Section(
        slug="model-comparison", write=seven_panels, chapter="comparison", order=10, needs=("compare",), of="several"
    ),
)
