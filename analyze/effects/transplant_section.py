"""Section of thoughts and heads of one model put into another."""

from typing import Any

import numpy as np

from analyze.context import StoredResult
from analyze.curves import curve
from analyze.drawing import MUTED, Look, looks
from analyze.effects.shown import reentries
from analyze.page import Page, Section, listed
from analyze.tables import Frame, rows_with, triple

MAPPED, OTHER, RAW = "mapped", "of another problem, mapped", "as they are"


def transplants(page: Page) -> None:
    """What is left of the answers with another model's thoughts, beside controls of the same map."""
    for result, frame, base in reentries(page, "transplant"):
        rows = frame[~frame["control"].str.startswith("self")]
        line, values = sentence(rows, base)
        page.say(result, line, source=result.data.attrs["source"], **values)
        draw(page, result, rows, base["accuracy"])
        page.add("transplants", result, rows)
        page.add("transplant_maps", result, {name: result.data[name].values for name in ("place", "r2")})


def sentence(rows: Frame, base: Any) -> tuple[str, dict[str, Any]]:
    """Which line of the texts holds by the intervals, and its values.

    What goes in differs from another problem's where the intervals of right answers lie apart.
    """
    cells = rows.drop_duplicates(["values", "group"]).set_index(["values", "group"])
    groups = list(dict.fromkeys(rows["group"]))
    apart = [group for group in groups if cells.loc[MAPPED, group].accuracy_low > cells.loc[OTHER, group].accuracy_high]
    last = "all" if "all" in groups else groups[-1]
    mapped, other = (cells.loc[(values, last)] for values in (MAPPED, OTHER))
    line = "none"
    if last in apart:
        line = "as_right" if mapped["accuracy_high"] >= base["accuracy_low"] else "less_right"
    return line, {
        "group": "all of them" if last == "all" else last, "untouched": base["accuracy"],
        "mapped": mapped["accuracy"], "low": mapped["accuracy_low"], "high": mapped["accuracy_high"],
        "other": other["accuracy"], "differ": listed([group for group in apart if group != "all"]) or "none",
    }  # fmt: skip


def draw(page: Page, result: StoredResult, rows: Frame, base: float) -> None:
    """Right answers by what goes in and where."""
    groups, kinds = (list(dict.fromkeys(rows[name])) for name in ("group", "values"))
    look_of = looks([kind for kind in kinds if kind != RAW]) | {RAW: Look(label=RAW, colour=MUTED, marker="x")}
    with page.shares("transplants", result, base=base, height=2.9, title=f"from {result.data.attrs['source']}") as ax:
        for number, values in enumerate(kinds):
            line = rows_with(rows, values=values)
            x = np.array([groups.index(group) for group in line["group"]]) + 0.08 * (number - (len(kinds) - 1) / 2)
            curve(ax, look_of[values], x, triple(line, "accuracy"), linestyle="")
        ax.set_xticks(range(len(groups)), labels=groups)


SECTIONS = (Section(slug="transplants", write=transplants, order=60, needs=("transplant --source DONOR",), of="donor"),)
