"""Section on the attention of the answer."""

import math
from collections.abc import Callable

import numpy as np
import xarray as xr

from analyze.beside import Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.drawing import Series, as_percent
from analyze.page import Page, Section, listed
from analyze.tables import result_table
from schemas import segment_of


def written(data: xr.Dataset) -> str:
    """Query of the pass that writes the answer's number, in a result that has it, else the last."""
    queries = [str(x) for x in data["query"].values]
    query = str(data.attrs.get("writes", "eot"))
    return query if query in queries else queries[-1]


def share_of(target: str) -> Callable[[StoredResult], Triple]:
    """Share of attention that a thought gets where a model's answer is written, mean over layers and heads."""

    def of(result: StoredResult) -> Triple:
        return number_at(result.data.mean("layer"), "layer_share", query=written(result.data), target=target)

    return of


def answer_attention(page: Page) -> None:
    """Where the answer looks."""
    series: list[Series] = []
    thoughts: list[str] = []
    findings = []
    for result in page.results("attention"):
        query = written(result.data)
        within = query == "answer" or segment_of(query) == "answer"
        targets = [str(x) for x in result.data["target"].values if within or str(x) != "answer"]
        shares = result.data[["layer_share", "layer_share_low", "layer_share_high"]].sel(query=query, target=targets)
        cells = 100 * shares["layer_share"].transpose("layer", "target").values
        layers = [f"layer {x}" for x in shares["layer"].values]
        ax = page.map(
            "answer_attention", result, cells, layers, targets, high=max(1.0, np.nanmax(cells)), text="{:.0f}"
        )
        ax.set_title(f"{result.label}, query {query}")
        ax.tick_params(axis="x", labelrotation=40)
        thoughts = [target for target in targets if target.startswith("ct")]
        means = shares.mean("layer")
        among = means.sel(target=thoughts)
        series.append((result.look, *(among[f"layer_share{end}"].values for end in ("", "_low", "_high"))))
        best = int(np.nanargmax(series[-1][1]))
        value, low, high = series[-1][1:]
        rivals = [thoughts[place] for place in np.flatnonzero(high >= low[best]) if place != best]
        page.say(
            result,
            "shares",
            rivals=page.text("rivals", names=listed(rivals)) if rivals else "",
            total=float(among["layer_share"].sum()),
            top=thoughts[best],
            most=float(value[best]),
            question=float(means["layer_share"].sel(target="question")),
            query=query,
            n=int(result.data["n"].sel(query=query)),
        )
        top = thoughts[best]
        findings.append((result, [Finding(what=f"{query} to {top}", of=share_of(top), nothing=math.nan)]))
        rows = result_table(shares.transpose("layer", "target"), [str(name) for name in shares.data_vars])
        rows.columns = [name.removeprefix("layer_share_").removeprefix("layer_") for name in rows.columns]
        rows.insert(0, "query", query)
        page.add("answer_attention", result, rows)
    beside(page, findings)
    page.show("answer_attention", lambda rows: rows[rows["layer"] == rows.groupby("run")["layer"].transform("max")])
    as_percent(page.bars("attention_by_thought", thoughts, series, "share of attention"))


SECTIONS = (
    Section(slug="answer-attention", write=answer_attention, chapter="report-003", order=10, needs=("attention",)),
)
