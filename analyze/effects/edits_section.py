"""Section of values written into thoughts."""

from analyze.context import StoredResult
from analyze.curves import curves
from analyze.drawing import MUTED
from analyze.effects.shown import changed_places, reentries
from analyze.page import Page, Section
from analyze.tables import Frame


def thought_edits(page: Page) -> None:
    """Whether answers go where an edited thought leads, by method and dose."""
    for result, frame, _ in reentries(page, "edit"):
        edits = frame[(frame["changed"] != "") & (frame["also"] == "")]
        own, noise = (edits[edits["control"] == control] for control in ("", "noise of the same norm"))
        best = [dict(rows.loc[rows["hit_share"].idxmax()]) | {"place": name} for name, rows in changed_places(own)]
        page.say_of(result.label, "; ".join(page.texts("place", best)))
        draw(page, result, *changed_places(own)[0], changed_places(noise)[0][1])
        for name in ("follow", "side"):  # states after the edit that follow it, and others that changed
            n = result.data[f"n_{name}"]
            shares = (n * result.data[f"{name}_share"].fillna(0)).sum("position") / n.sum("position")
            frame[name] = shares.values[frame.index]
        page.add("thought_edits", result, frame)


def draw(page: Page, result: StoredResult, place: str, rows: Frame, noise: Frame) -> None:
    """Share of wanted answers by dose, for each method."""
    with page.shares("thought_edits", result, "dose", title=place) as ax:
        curves(ax, rows.assign(hit=rows["hit_share"]), "method", "dose", "hit")
        ax.plot(noise["dose"], noise["hit_share"], color=MUTED, marker="x", linestyle="", label="noise of that norm")


SECTIONS = (Section(slug="thought-edits", write=thought_edits, order=40, needs=("edit",)),)
