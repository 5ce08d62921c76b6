"""Section of how many thoughts an answer takes."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.context import StoredResult
from analyze.curves import curve
from analyze.drawing import legend_below, reference
from analyze.page import Page, Section, listed
from analyze.tables import triple

LINES = {"own": "-", "repeat": "--", "pause": ":"}
"""How the series are drawn."""


def thoughts_needed(page: Page) -> None:
    """Accuracy after every number of thoughts."""
    for result in page.results("depth"):
        depth, n_latent = result.data, int(result.data.attrs["n_latent"])
        part = depth.sel(marker="kept" if "kept" in depth["marker"].values else depth["marker"].values[0])
        whole = part.sel(stratum="all")
        draw(page, result, "depth_series", {name: whole.sel(series=name) for name in part["series"].values}, LINES)
        series = "repeat" if "repeat" in part["series"].values else str(part["series"].values[0])
        strata = [name for name in part["stratum"].values if name != "all"]
        of_stratum = {f"{name} operations": part.sel(series=series, stratum=name) for name in strata}
        styles = {name: list(LINES.values())[index % len(LINES)] for index, name in enumerate(of_stratum)}
        if strata:
            draw(page, result, "depth_strata", of_stratum, styles)
        own = whole.sel(series="own" if "own" in part["series"].values else series)
        trained, none = (float(own["accuracy"].isel(n_thought=n)) for n in (n_latent, 0))
        filled = first_right(page, part) if series == "repeat" else ""
        enough = float(own["n_enough"])
        page.say(result, "accuracy", n=n_latent, trained=trained, none=none, enough=enough, filled=filled)
        dims = {"series", "marker", "n_thought", "stratum"}
        frame = depth[[name for name in depth.data_vars if set(depth[name].dims) == dims]].to_dataframe().reset_index()
        page.add("thoughts_needed", result, frame[np.isfinite(frame["accuracy"])])


def first_right(page: Page, part: xr.Dataset) -> str:
    """After how many thoughts problems are first right, by operations, where the last thought fills the places."""
    medians = part["first_median"].sel(series="repeat").to_series().drop("all", errors="ignore").dropna()
    texts = [page.text("first", operations=name, median=median) for name, median in medians.items()]
    return page.text("filled", first=listed(texts)) if texts else ""


def draw(page: Page, result: StoredResult, figure: str, lines: dict[Any, Any], styles: dict[Any, Any]) -> None:
    """Accuracy by number of thoughts, a line for each series or number of operations."""
    with page.shares(figure, result, "thoughts") as ax:
        for name, line in lines.items():
            values = triple(line, "accuracy") if figure == "depth_series" else [line["accuracy"], None, None]
            curve(ax, result.look, line["n_thought"], values, label=name, linestyle=styles[name], markersize=3)
        reference(ax, int(result.data.attrs["n_latent"]), "x")
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend_below(ax, n_column=3)


SECTIONS = (Section(slug="thoughts-needed", write=thoughts_needed, order=10, needs=("depth",)),)
