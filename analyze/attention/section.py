"""Section on the attention of the answer."""

import math

import numpy as np
import xarray as xr

from analyze.beside import number
from analyze.drawing import Series, as_percent
from analyze.labels import thought_labels
from analyze.page import Page, Section, listed
from analyze.tables import ENDS, result_table, triple
from schemas import segment_of
from schemas.picked import Pick, of_largest


def at_answer(data: xr.Dataset) -> xr.Dataset:
    """Shares of the pass that writes the answer's number, in a result that has it, else of the last query."""
    query = str(data.attrs.get("writes", "eot"))
    return data.sel(query=query if query in data["query"].values else data["query"].values[-1])


def mean_at_answer(data: xr.Dataset) -> xr.Dataset:
    """The same, mean over layers."""
    return at_answer(data).mean("layer")


def attention(page: Page) -> None:
    """Where the answer looks."""
    series: list[Series] = []
    thoughts: list[str] = []
    names = [f"layer_share{end}" for end in ENDS]
    for result in page.results("attention"):
        shares = at_answer(result.data)
        query = str(shares["query"].item())
        if segment_of(query) != "answer" and query != "answer":
            shares = shares.drop_sel(target="answer", errors="ignore")
        cells, title = 100 * shares["layer_share"].transpose("layer", "target"), f"query {query}"
        ax = page.map("answer_attention", result, cells, high=max(1.0, np.nanmax(cells)), text="{:.0f}", title=title)
        ax.tick_params(axis="x", labelrotation=40)
        thoughts = thought_labels(shares, "target")
        means = shares[names].mean("layer")
        among = means.sel(target=thoughts)
        series.append((result.look, *triple(among, "layer_share")))
        best, (most, *_), near = of_largest(triple(among, "layer_share"))
        top, rivals = thoughts[best], page.text("rivals", names=listed([thoughts[place] for place in near]))
        page.say(
            result, "shares", rivals=rivals if near else "", query=query, top=top, most=most, n=int(shares["n"]),
            total=float(among["layer_share"].sum()), question=float(means["layer_share"].sel(target="question")),
        )  # fmt: skip
        what, pick = f"{query} to {top}", Pick(len(thoughts))
        page.find(result, number(what, "layer_share", nothing=math.nan, read=mean_at_answer, pick=pick, target=top))
        rows = result_table(shares[names].drop_vars("query").transpose("layer", "target"), names)
        rows.columns = [name.removeprefix("layer_share_").removeprefix("layer_") for name in rows.columns]
        page.add("answer_attention", result, rows.assign(query=query))
    page.show("answer_attention", lambda rows: rows[rows["layer"] == rows.groupby("run")["layer"].transform("max")])
    as_percent(page.bars("attention_by_thought", thoughts, series, "share of attention"))


SECTIONS = (Section(slug="answer-attention", write=attention, chapter="report-003", order=10, needs=("attention",)),)
