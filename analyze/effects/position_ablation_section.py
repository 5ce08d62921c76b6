"""Section of thoughts taken out by whether they read as numbers."""

from typing import Any

from analyze.context import StoredResult
from analyze.drawing import HEAT, HEAT_NEGATIVE, INK, MUTED, Look, bars
from analyze.effects.conditions import Frame, by_carrying, places_of
from analyze.effects.shown import changed, reentries
from analyze.labels import thought_labels
from analyze.page import Page, Section
from analyze.tables import rows_with, triple

GROUPS = {
    "numbers": Look(label="thoughts that read as numbers", colour=HEAT),
    "others": Look(label="the other thoughts", colour=HEAT_NEGATIVE, hatch="////"),
    "random like numbers": Look(label="as many at random", colour=MUTED, hatch="...."),
    "all": Look(label="all thoughts", colour=INK, hatch="xxxx"),
}


def position_ablation(page: Page) -> None:
    """Number-carrying thoughts against the others."""
    for result, frame, base in reentries(page, "ablate", by_carrying):
        rows = frame[frame["group"].isin(list(GROUPS)) & (frame["control"].eq("") | frame["group"].str.match("random"))]
        operations = [name for name in ("mean", "zero") if (rows["operation"] == name).any()]
        for operation in operations:
            draw(page, result, rows_with(rows, operation=operation), base["accuracy"], operation)
        for operation in operations[:1]:
            place = places_of(rows_with(rows, operation=operation))[0]
            cells = rows_with(rows, operation=operation, place=place)
            of_group: Any = cells.drop_duplicates("group").set_index("group")["accuracy"]
            values = {"untouched": base["accuracy"], "place": place, "n": int(cells["n"].max())}
            page.say(result, operation, groups=told(page, result, of_group), **values)
            carrying = changed("numbers", group="numbers", operation=operation, place=place)
            page.find(result, carrying if "numbers" in of_group else None)
            page.add("position_ablation", result, rows)
            worst = float(result.data["share_not_counted"].max()) if "share_not_counted" in result.data else 0
            page.join("not_counted", page.text("not_counted", label=result.label, worst=worst) if worst > 0 else "")


def told(page: Page, result: StoredResult, accuracy: Any) -> str:
    """What is left without each group; how many of those at random read as numbers themselves, where it is known."""
    lines = {"numbers": "numbers", "others": "others", "random like numbers": "random_unread"}
    share = float("nan")
    if (reads := result.data.get("number_share")) is not None:
        share, lines["random like numbers"] = float(reads.sel(position=thought_labels(reads)).mean()), "random"
        page.join("overlaps", page.text("overlap", label=result.label, share=share))
    return ", ".join(page.text(lines[x], accuracy=accuracy[x], share=share) for x in lines if x in accuracy)


def draw(page: Page, result: StoredResult, rows: Frame, base: float, operation: str) -> None:
    """Accuracy by place for each group of thoughts."""
    places, figure = places_of(rows), f"position_ablation_{operation}"
    legend, turned = (0.25, {"labelrotation": 60, "labelsize": 7.5}) if len(places) > 6 else (0.1, {})
    of_group = {name: rows_with(rows, group=name).drop_duplicates("place").set_index("place") for name in GROUPS}
    with page.shares(figure, result, base=base, low=0.0, legend=legend, height=3.1, title=operation) as ax:
        there = [name for name in GROUPS if len(of_group[name])]
        bars(ax, places, [(GROUPS[name], *triple(of_group[name].reindex(places), "accuracy")) for name in there])
        ax.tick_params(axis="x", length=3, **turned)


SECTIONS = (
    Section(slug="position-ablation", write=position_ablation, chapter="report-000", order=30, needs=("ablate",)),
)
