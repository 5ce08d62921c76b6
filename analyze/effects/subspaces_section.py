"""Section of subspaces erased from thoughts and exchanged between problems."""

import math
from typing import Any

from analyze.context import StoredResult
from analyze.curves import curves, random_curve
from analyze.effects.shown import changed_places, reentries
from analyze.page import Page, Section
from analyze.tables import Frame

WHOLE = "all of it"


def subspaces(page: Page) -> None:
    """What erasing and exchanging subspaces of growing rank does."""
    for result, frame, _ in reentries(page, "subspace"):
        rows = frame[~frame["control"].str.startswith("self")]
        for number, (name, at_place) in enumerate(changed_places(rows)):
            erased, exchanged = (at_place[at_place["change"] == change] for change in ("erase", "exchange"))
            values = extremes(erased, exchanged)
            page.say(result, "place" if math.isnan(values["apart"]) else "apart", **values, place=name)
            if number == 0:
                draw(page, result, erased, "erased", "importance", name)
                draw(page, result, exchanged.assign(hit=exchanged["hit_share"]), "exchanged", "hit", name)
        page.add("subspaces", result, rows)


def extremes(erased: Frame, exchanged: Frame) -> dict[str, Any]:
    """The subspace that costs most when erased, the whole state, random ones of its rank; the best exchange."""
    own, swaps = (rows[(rows["control"] == "") & (rows["subspace"] != WHOLE)] for rows in (erased, exchanged))
    most, best = own.loc[own["importance"].idxmax()], swaps.loc[swaps["hit_share"].idxmax()]
    same = erased[erased["rank"] == most["rank"]]
    random, apart = (same[same["control"] == control] for control in ("random subspace", "random, apart"))
    whole = erased[erased["subspace"] == WHOLE].iloc[0]
    return {
        "erased": most["importance"], "subspace": most["subspace"], "rank": most["rank"], "whole": whole["importance"],
        "random": random["importance"].mean(), "apart": apart["importance"].mean(), "hit": best["hit_share"],
        "by": best["subspace"], "of": best["rank"], "least": random["importance"].min(),
        "most": random["importance"].max(), "held": random["held_share"].mean() if "held_share" in random else math.nan,
    }  # fmt: skip


def draw(page: Page, result: StoredResult, rows: Frame, figure: str, value: str, place: str) -> None:
    """A share by rank for each subspace, the range of random ones, and all of the state."""
    own, whole = rows[rows["control"] == ""], rows["subspace"] == WHOLE
    lines, ranks = own[own["subspace"] != WHOLE], sorted(set(own["rank"][own["subspace"] != WHOLE]))
    with page.shares(figure, result, "rank", base=own[value][whole].iloc[0], title=place) as ax:
        random_curve(ax, rows[rows["control"] == "random subspace"], "rank", value, "random subspaces (range)")
        curves(ax, lines, "subspace", "rank", value)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ranks, labels=[str(rank) for rank in ranks])


SECTIONS = (Section(slug="subspaces", write=subspaces, order=50, needs=("subspace",)),)
