"""Section on the attention of the answer."""

import math

import numpy as np
import xarray as xr

from analyze.beside import number
from analyze.drawing import Series, as_percent
from analyze.page import Page, Section, listed
from analyze.tables import result_table, triple
from schemas import segment_of


def at_answer(data: xr.Dataset) -> xr.Dataset:
    """Shares of the pass that writes the answer's number, in a result that has it, else of the last query."""
    query = str(data.attrs.get("writes", "eot"))
    return data.sel(query=query if query in data["query"].values else data["query"].values[-1])


def answer_attention(page: Page) -> None:
    """Where the answer looks."""
    series: list[Series] = []
    thoughts: list[str] = []
    for result in page.results("attention"):
        at_query = at_answer(result.data)
        query = str(at_query["query"].item())
        within = query == "answer" or segment_of(query) == "answer"
        targets = [str(x) for x in at_query["target"].values if within or str(x) != "answer"]
        names = ["layer_share", "layer_share_low", "layer_share_high"]
        shares = at_query[names].sel(target=targets).transpose("layer", "target")
        cells = 100 * shares["layer_share"]
        high = max(1.0, float(np.nanmax(cells)))
        ax = page.map("answer_attention", result, cells, high=high, text="{:.0f}", title=f"query {query}")
        ax.tick_params(axis="x", labelrotation=40)
        thoughts = [target for target in targets if target.startswith("ct")]
        means = shares.mean("layer")
        among = means.sel(target=thoughts)
        value, low, high = triple(among, "layer_share")
        series.append((result.look, value, low, high))
        best = int(np.nanargmax(value))
        rivals = [thoughts[place] for place in np.flatnonzero(high >= low[best]) if place != best]
        page.say(
            result, "shares", rivals=page.text("rivals", names=listed(rivals)) if rivals else "", query=query,
            total=float(among["layer_share"].sum()), top=thoughts[best], most=float(value[best]),
            question=float(means["layer_share"].sel(target="question")), n=int(at_query["n"]),
        )  # fmt: skip
        read, target = (lambda data: at_answer(data).mean("layer")), thoughts[best]
        page.find(result, number(f"{query} to {target}", "layer_share", nothing=math.nan, read=read, target=target))
        rows = result_table(shares.drop_vars("query"), names)
        rows.columns = [name.removeprefix("layer_share_").removeprefix("layer_") for name in rows.columns]
        page.add("answer_attention", result, rows.assign(query=query))
    page.show("answer_attention", lambda rows: rows[rows["layer"] == rows.groupby("run")["layer"].transform("max")])
    as_percent(page.bars("attention_by_thought", thoughts, series, "share of attention"))


SECTIONS = (
    Section(slug="answer-attention", write=answer_attention, chapter="report-003", order=10, needs=("attention",)),
)
