"""Section of thoughts and heads of one model put into another."""

from typing import Any

import numpy as np
import pandas as pd

from analyze.context import StoredResult
from analyze.drawing import MUTED, as_percent, faint_grid, legend_below, looks, reference, whiskers
from analyze.effects.conditions import Frame
from analyze.effects.shown import reentries, triple
from analyze.page import Page, Section, listed

MAPPED, OTHER, RAW = "mapped", "of another problem, mapped", "as they are"


def transplants(page: Page) -> None:
    """What is left of the answers with another model's thoughts, beside controls of the same map."""
    for result, frame, base in reentries(page, "transplant"):
        rows = frame[~frame["control"].str.startswith("self")]
        line, values = findings(rows, base)
        page.say(result, line, **values, source=result.data.attrs["source"])
        draw(page, result, rows, float(base["accuracy"]))
        page.add("transplants", result, rows)
        maps = {"place": result.data["place"].values.astype(str), "r2": result.data["r2"].values}
        page.add("transplant_maps", result, pd.DataFrame(maps))


def findings(rows: Frame, base: Any) -> tuple[str, dict[str, Any]]:
    """Which line of the texts holds by the intervals, and its values.

    What goes in is told from another problem's where the intervals of right answers lie apart.
    """
    groups = list(dict.fromkeys(rows["group"]))
    told = [group for group in groups if _one(rows, group, MAPPED)["accuracy_low"] > _worst(rows, group)]
    last = "all" if "all" in groups else groups[-1]
    mapped, other = (_one(rows, last, values) for values in (MAPPED, OTHER))
    line = "none"
    if last in told:
        line = "as_right" if mapped["accuracy_high"] >= base["accuracy_low"] else "less_right"
    return line, {
        "group": "all of them" if last == "all" else last, "untouched": base["accuracy"],
        "mapped": mapped["accuracy"], "low": mapped["accuracy_low"], "high": mapped["accuracy_high"],
        "other": other["accuracy"], "told": listed([group for group in told if group != "all"]) or "none",
    }  # fmt: skip


def _one(rows: Frame, group: str, values: str) -> Any:
    """Row of a thing that goes in somewhere."""
    return rows[(rows["group"] == group) & (rows["values"] == values)].iloc[0]


def _worst(rows: Frame, group: str) -> float:
    """Upper end of the share that is right with another problem's values."""
    return float(_one(rows, group, OTHER)["accuracy_high"])


def draw(page: Page, result: StoredResult, rows: Frame, base: float) -> None:
    """Right answers by what goes in and where."""
    ax = page.panel("transplants", result, height=2.9)
    groups = list(dict.fromkeys(rows["group"]))
    kinds: list[str] = list(dict.fromkeys(rows["values"]))
    look_of = looks([kind for kind in kinds if kind != RAW])
    for number, values in enumerate(kinds):
        line = rows[rows["values"] == values]
        x = np.array([groups.index(group) for group in line["group"]]) + 0.08 * (number - (len(kinds) - 1) / 2)
        share, low, high = triple(line, "accuracy")
        colour, marker = (MUTED, "x") if values == RAW else (look_of[values].colour, look_of[values].marker)
        ax.plot(x, share, color=colour, marker=marker, linestyle="", label=values)
        whiskers(ax, x, share, low, high, colour=colour)
    reference(ax, base)
    ax.set_xticks(range(len(groups)), labels=groups)
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.set_title(f"{result.label}, from {result.data.attrs['source']}")
    legend_below(ax)


SECTIONS = (Section(slug="transplants", write=transplants, order=60, needs=("transplant --source DONOR",), of="donor"),)
