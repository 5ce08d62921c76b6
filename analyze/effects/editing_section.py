"""Sections of values written into thoughts, and of subspaces erased and exchanged."""

import math
from typing import Any

from analyze.context import StoredResult
from analyze.drawing import MUTED, as_percent, faint_grid, legend_below, looks, random_range, reference, whiskers
from analyze.effects.conditions import Frame
from analyze.effects.shown import reentries, triple
from analyze.page import Page, Section

WHOLE = "all of it"


def places(rows: Frame) -> list[tuple[str, Frame]]:
    """Changed places in words, in order, with their rows."""
    names = rows["changed"].astype(str) + [f", {place}" if place != "fed vector" else "" for place in rows["place"]]
    return [(str(name), rows[names == name]) for name in dict.fromkeys(names)]


def thought_edits(page: Page) -> None:
    """Whether answers go where an edited thought leads, by method and dose."""
    for result, frame, _ in reentries(page, "edit"):
        edits = frame[(frame["changed"] != "") & (frame["also"] == "")]
        own, noise = edits[edits["control"] == ""], edits[edits["control"] == "noise of the same norm"]
        sentences = []
        for name, rows in places(own):
            best = rows.loc[rows["hit_share"].idxmax()]
            sentences.append(
                page.text(
                    "place", place=name, hit=best["hit_share"], kept=best["kept_share"], method=best["method"],
                    dose=best["dose"],
                )
            )  # fmt: skip
        page.say_of(result.label, "; ".join(sentences))
        name, rows = places(own)[0]
        draw_doses(page, result, rows, places(noise)[0][1], name)
        page.add("thought_edits", result, with_others(result, frame))


def with_others(result: StoredResult, frame: Frame) -> Frame:
    """Rows with the shares of states after the edit that follow it, and of others that changed."""
    frame = frame.copy()
    for name in ("follow", "side"):
        n = result.data[f"n_{name}"]
        shares = ((n * result.data[f"{name}_share"].fillna(0)).sum("position") / n.sum("position")).values
        frame[name] = shares[frame.index]
    return frame


def draw_doses(page: Page, result: StoredResult, rows: Frame, noise: Frame, place: str) -> None:
    """Share of wanted answers by dose, for each method."""
    ax = page.panel("thought_edits", result, height=2.8)
    for method, look in looks(list(dict.fromkeys(rows["method"]))).items():
        line = rows[rows["method"] == method].sort_values("dose")
        share, low, high = (line[f"hit_{end}"].to_numpy(dtype=float) for end in ("share", "low", "high"))
        ax.plot(line["dose"], share, color=look.colour, marker=look.marker, label=method)
        whiskers(ax, line["dose"], share, low, high, colour=look.colour)
    ax.plot(noise["dose"], noise["hit_share"], color=MUTED, marker="x", linestyle="", label="noise of that norm")
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.set_xlabel("dose")
    ax.set_title(f"{result.label}, {place}")
    legend_below(ax)


def subspaces(page: Page) -> None:
    """What erasing and exchanging subspaces of growing rank does."""
    for result, frame, _ in reentries(page, "subspace"):
        rows = frame[~frame["control"].str.startswith("self")]
        for number, (name, at_place) in enumerate(places(rows)):
            erased, exchanged = (at_place[at_place["change"] == change] for change in ("erase", "exchange"))
            values = findings(erased, exchanged)
            page.say(result, "apart" if values["apart"] == values["apart"] else "place", **values, place=name)
            if number == 0:
                draw_ranks(page, result, erased, "importance", name)
                draw_ranks(page, result, exchanged, "hit", name)
        page.add("subspaces", result, rows)


def findings(erased: Frame, exchanged: Frame) -> dict[str, Any]:
    """The subspace that costs most when erased, the whole state, random ones of its rank; the best exchange."""
    own = erased[(erased["control"] == "") & (erased["subspace"] != WHOLE)]
    most = own.loc[own["importance"].idxmax()]
    random, apart = (
        erased[(erased["control"] == control) & (erased["rank"] == most["rank"])]
        for control in ("random subspace", "random, apart")
    )
    swaps = exchanged[(exchanged["control"] == "") & (exchanged["subspace"] != WHOLE)]
    best = swaps.loc[swaps["hit_share"].idxmax()]
    whole = erased[erased["subspace"] == WHOLE].iloc[0]
    return {
        "erased": most["importance"], "subspace": most["subspace"], "rank": most["rank"], "whole": whole["importance"],
        "random": random["importance"].mean(), "apart": apart["importance"].mean(), "hit": best["hit_share"],
        "by": best["subspace"], "of": best["rank"], "least": random["importance"].min(),
        "most": random["importance"].max(), "held": random["held_share"].mean() if "held_share" in random else math.nan,
    }  # fmt: skip


def draw_ranks(page: Page, result: StoredResult, rows: Frame, figure: str, place: str) -> None:
    """A share by rank for each subspace, the range of random ones, and all of the state."""
    name = "erased" if figure == "importance" else "exchanged"
    value = "importance" if figure == "importance" else "hit_share"
    ax = page.panel(name, result, height=2.8)
    random = rows[rows["control"] == "random subspace"].groupby("rank")[value].agg(["mean", "min", "max"]).reset_index()
    random_range(ax, random["rank"], random, "random subspaces (range)")
    own = rows[(rows["control"] == "") & (rows["subspace"] != WHOLE)]
    for subspace, look in looks(list(dict.fromkeys(own["subspace"]))).items():
        line = own[own["subspace"] == subspace].sort_values("rank")
        share, low, high = triple(line.rename(columns={"hit_share": "hit"}), figure)
        ax.plot(line["rank"], share, color=look.colour, marker=look.marker, label=subspace)
        whiskers(ax, line["rank"], share, low, high, colour=look.colour)
    reference(ax, float(rows[(rows["subspace"] == WHOLE) & (rows["control"] == "")][value].iloc[0]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(set(own["rank"])), labels=[str(rank) for rank in sorted(set(own["rank"]))])
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.set_xlabel("rank")
    ax.set_title(f"{result.label}, {place}")
    legend_below(ax)


SECTIONS = (
    Section(slug="thought-edits", write=thought_edits, order=40, needs=("edit",)),
    Section(slug="subspaces", write=subspaces, order=50, needs=("subspace",)),
)
