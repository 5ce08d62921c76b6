"""Section of differences between models."""

import json
from itertools import combinations

import numpy as np
import pandas as pd

from analyze.compare.differences import difference_table
from analyze.compare.figures import plot_differences
from analyze.compare.panels_section import comparison
from analyze.compare.sentences import WORDS, listed_missing, sentence, shown_rows, taken_elsewhere
from analyze.drawing import faint_grid
from analyze.page import Page, Section
from analyze.tables import Frame

MOST_PAIRS, MOST_ROWS = 4, 44
"""Pairs of models that are drawn, and differences of each."""


def differences(page: Page) -> None:
    """Models against each other, with intervals."""
    data, looks = comparison(page)
    table: Frame = difference_table(data)
    table["sure"] = (table["low"] > 0) | (table["high"] < 0)
    kind_of = {run: getattr(page.context.controls.get(run.partition("/")[0]), "kind", "") for run in looks}
    two = list(combinations(looks, 2))
    for first, second in ([pair for pair in two if kind_of[pair[0]] == kind_of[pair[1]]] or two[:1])[:MOST_PAIRS]:
        rows = table[(table["first"] == first) & (table["second"] == second)]
        if rows.empty:
            continue
        names = [looks[run].label for run in (first, second)]
        page.say_of(" − ".join(names), sentence(page, data, rows, first, second))
        shown = shown_rows(rows, f"depth {float(data['depth'].values[-1]):.2f}").head(MOST_ROWS)
        if len(shown):
            ax = page.panel("differences", f"{first}_{second}", wide=True, height=0.8 + 0.21 * len(shown))
            plot_differences(shown, ax=ax)
            faint_grid(ax, "x")
            ax.tick_params(axis="y", length=0, labelsize=7.5)
            ax.set_title(" minus ".join(names))
    label_of = {run: look.label for run, look in looks.items()}
    named = table.replace({"what": WORDS, "first": label_of, "second": label_of})
    named = named.assign(pairing=np.where(table["paired"], "paired", "unpaired"), size=table["difference"].abs())
    sure = named[named["sure"]].sort_values("size", ascending=False)
    page.add("differences", None, pd.concat([sure, named.drop(sure.index)], ignore_index=True).drop(columns="sure"))
    of = {name: json.loads(str(data.attrs.get(name, empty))) for name, empty in (("sources", "{}"), ("missing", "[]"))}
    missing = listed_missing(of["missing"], page.context.shown_location)
    page.set(note=data.attrs.get("note", ""), elsewhere=taken_elsewhere(of["sources"]), missing=missing)


SECTIONS = (
    Section(slug="differences", write=differences, chapter="comparison", order=20, needs=("compare",), of="several"),
)
