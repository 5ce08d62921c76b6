"""Sections of how many thoughts an answer takes, and of when what is read stops changing."""

from typing import Any

import numpy as np

from analyze.context import StoredResult
from analyze.drawing import as_percent, faint_grid, legend_below, reference, whiskers
from analyze.page import Page, Section, listed

LINES = {"own": "-", "repeat": "--", "pause": ":"}
"""How the series are drawn."""


def thoughts_needed(page: Page) -> None:
    """Accuracy after every number of thoughts."""
    for result in page.results("depth"):
        depth, n_latent = result.data, int(result.data.attrs["n_latent"])
        part = depth.sel(marker="kept" if "kept" in depth["marker"].values else depth["marker"].values[0])
        draw_series(page, result, part.sel(stratum="all"), n_latent)
        series = "repeat" if "repeat" in part["series"].values else str(part["series"].values[0])
        draw_strata(page, result, part.sel(series=series), n_latent)
        own = part.sel(stratum="all", series="own" if "own" in part["series"].values else series)
        trained, none = (float(own["accuracy"].isel(n_thought=n)) for n in (n_latent, 0))
        filled = first_right(page, part) if series == "repeat" else ""
        enough = float(own["n_enough"])
        page.say(result, "accuracy", n=n_latent, trained=trained, none=none, enough=enough, filled=filled)
        page.add("thoughts_needed", result, rows_of(depth))


def first_right(page: Page, part: Any) -> str:
    """After how many thoughts problems are first right, by operations, where the last thought fills the places."""
    medians = part["first_median"].sel(series="repeat")
    texts = [
        page.text("first", operations=str(stratum), median=float(medians.sel(stratum=stratum)))
        for stratum in part["stratum"].values
        if str(stratum) != "all" and np.isfinite(float(medians.sel(stratum=stratum)))
    ]
    return page.text("filled", first=listed(texts)) if texts else ""


def draw_series(page: Page, result: StoredResult, part: Any, n_latent: int) -> None:
    """Accuracy by number of thoughts, a line for each series."""
    ax = page.panel("depth_series", result, height=2.8)
    n_thought = part["n_thought"].values
    for series in part["series"].values:
        line = part.sel(series=series)
        look = result.look.line() | {"label": str(series), "linestyle": LINES[str(series)], "markersize": 3}
        ax.plot(n_thought, line["accuracy"], **look)
        whiskers(ax, n_thought, *(line[f"accuracy{end}"] for end in ("", "_low", "_high")), colour=result.look.colour)
    _finish(ax, n_latent)


def draw_strata(page: Page, result: StoredResult, part: Any, n_latent: int) -> None:
    """Accuracy by number of thoughts, a line for each number of operations."""
    strata = [str(stratum) for stratum in part["stratum"].values if str(stratum) != "all"]
    if not strata:
        return
    ax = page.panel("depth_strata", result, height=2.8)
    for index, stratum in enumerate(strata):
        line = part.sel(stratum=stratum)
        style = list(LINES.values())[index % len(LINES)]
        look = result.look.line() | {"label": f"{stratum} operations", "linestyle": style, "markersize": 3}
        ax.plot(part["n_thought"].values, line["accuracy"], **look)
    _finish(ax, n_latent)


def _finish(ax: Any, n_latent: int) -> None:
    reference(ax, n_latent, "x")
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("thoughts")
    legend_below(ax, n_column=3)


def rows_of(depth: Any) -> Any:
    """Figures of every route as rows."""
    names = [str(name) for name, value in depth.data_vars.items() if set(value.dims) == {*ROUTE, "stratum"}]
    frame = depth[names].to_dataframe().reset_index()
    return frame[np.isfinite(frame["accuracy"])]


ROUTE = ("series", "marker", "n_thought")


def readout_settles(page: Page) -> None:
    """Where answer and results can be read, and when the read-out stops changing."""
    for result in page.results("depth_readout"):
        depth = result.data.sel(stratum="all")
        final = depth.isel(layer=-1)
        positions = [str(position) for position in depth["position"].values]
        whats = [str(what) for what in depth["what"].values if not str(what).startswith("other")]
        shares = final["first_share"].sel(what=whats).transpose("what", "position")
        page.percent_map("readout_first", result, shares, whats, positions)
        ranks = np.exp(final["log_rank"].sel(what=whats).transpose("what", "position"))
        page.map("readout_rank", result, ranks, whats, positions, high=float(np.nanmax(ranks)), text="{:.0f}")
        page.say(
            result, "settled", position=float(final["settled_position"]), n=len(positions),
            answer=float(final["answer_found"]),
        )  # fmt: skip
        page.add("readout_settles", result, readout_rows(result.data))


def readout_rows(depth: Any) -> Any:
    """Ranks by stratum, layer, position and token as rows."""
    names = [f"{name}{end}" for name in ("log_rank", "first_share") for end in ("", "_low", "_high")]
    frame = depth[names].to_dataframe().reset_index()
    return frame[np.isfinite(frame["log_rank"])].assign(rank=lambda rows: np.exp(rows["log_rank"]))


SECTIONS = (
    Section(slug="thoughts-needed", write=thoughts_needed, order=10, needs=("depth",)),
    Section(slug="readout-settles", write=readout_settles, order=11, needs=("depth_readout",)),
)
