"""Section of the heads with the highest composite."""

import math
from typing import Any

import numpy as np

from analyze.beside import number
from analyze.heads.command import by_thoughts
from analyze.heads.figures import SHORT_TYPES, draw_heads, head_name
from analyze.heads.summary import head_table
from analyze.page import Page, Section, listed
from analyze.tables import triple
from schemas.picked import Pick, of_largest

N_SHOWN = 6
"""Heads of each model whose maps are drawn."""


def critical_heads(page: Page) -> None:
    """Ranked heads, with the maps of the best; all models on one scale."""
    results = page.results("heads", by_thoughts)
    best_of = [one.data["pattern"].sel(layer=head.layer, head=head.head) for one in results
               for head in head_table(one.data).head(N_SHOWN).itertuples()]  # fmt: skip
    strongest = max(float(np.nanmax(np.tril(pattern.values))) for pattern in best_of)
    for result in results:
        table = head_table(result.data)
        table.insert(1, "name", [head_name(head) for head in table.to_dict("records")])
        # where all heads are among the best, that each is says nothing
        all_best = len(table) <= int(result.data.attrs.get("top", 0))
        page.add("ranked_heads", result, table.drop(columns="top_share") if all_best else table)
        _, (_, low, high), near = of_largest(triple(table, "composite"))
        best: dict[Any, Any] = table.to_dict("records")[0] | {"composite_low": low, "composite_high": high}
        rivals = page.text("rivals", names=listed(list(table["name"][near]))) if near else ""
        page.say(result, "best", **best | {"type": SHORT_TYPES.get(best["type"], best["type"]), "rivals": rivals})
        place, pick = {"layer": best["layer"], "head": best["head"]}, Pick(len(table))
        page.find(result, number(f"{best['name']}, composite", "composite", nothing=math.nan, pick=pick, **place))
        axes = page.panel("critical_heads", result, wide=True, height=2.2, ncols=N_SHOWN)
        draw_heads(axes, result.data, strongest)
        page.caption("critical_heads", label=result.label, n=min(N_SHOWN, len(table)), strongest=strongest)
        weights = {name: result.data.get(f"{name}_weight") for name in ("flow", "hub", "skip")}
        constant = [name for name, weight in weights.items() if weight is not None and not weight.any()]
        page.join("constant", f"{result.label}: {listed(constant)}" if constant else "")
    for result in page.results("heads", lambda spec: not by_thoughts(spec), optional=True):
        first = head_table(result.data).iloc[0]
        label = page.context.relabel([result.run])[result.run].label
        page.join("reports", page.text("reports", label=label, name=head_name(first), composite=first["composite"]))


SECTIONS = (
    Section(slug="critical-heads", write=critical_heads, chapter="report-004", order=10, needs=("heads",), key=True),
)
