"""Section of thoughts taken out by whether they read as numbers."""

from typing import Any

from analyze.context import StoredResult
from analyze.effects.conditions import by_carrying, places_of
from analyze.effects.figures import GROUPS, plot_groups
from analyze.effects.shown import changed, reentries
from analyze.labels import thought_labels
from analyze.page import Page, Section
from analyze.tables import rows_with

MANY = 16
"""Places above which a figure takes the width of the page."""


def position_ablation(page: Page) -> None:
    """Number-carrying thoughts against the others."""
    for result, frame, base in reentries(page, "ablate", by_carrying):
        rows = frame[frame["group"].isin(list(GROUPS)) & (frame["control"].eq("") | frame["group"].str.match("random"))]
        operations = [name for name in ("mean", "zero") if (rows["operation"] == name).any()]
        for operation in operations:
            shown, figure = rows_with(rows, operation=operation), f"position_ablation_{operation}"
            n_place = len(places_of(shown))
            more: dict[str, Any] = {"legend": 0.25 if n_place > 6 else 0.1, "title": operation, "wide": n_place > MANY}
            with page.shares(figure, result, base=base["accuracy"], low=0.0, height=3.1, **more) as ax:
                plot_groups(shown, places_of(shown), ax)
        if not operations:
            continue
        where: dict[str, Any] = {"operation": operations[0]}
        where["place"] = places_of(rows_with(rows, **where))[0]
        cells = rows_with(rows, **where)
        accuracy: Any = cells.drop_duplicates("group").set_index("group")["accuracy"]
        values = {"untouched": base["accuracy"], "place": where["place"], "n": int(cells["n"].max())}
        page.say(result, operations[0], groups=sentence(page, result, accuracy), **values)
        page.find(result, changed("numbers", group="numbers", **where) if "numbers" in accuracy else None)
        page.add("position_ablation", result, rows)
        worst = float(result.data["share_not_counted"].max()) if "share_not_counted" in result.data else 0
        page.join("not_counted", page.text("not_counted", label=result.label, worst=worst) if worst > 0 else "")


def sentence(page: Page, result: StoredResult, accuracy: Any) -> str:
    """What is left without each group; how many of those at random read as numbers themselves, where it is known."""
    lines = {"numbers": "numbers", "others": "others", "random like numbers": "random_unread"}
    share = float("nan")
    if (reads := result.data.get("number_share")) is not None:
        share, lines["random like numbers"] = float(reads.sel(position=thought_labels(reads)).mean()), "random"
        page.join("overlaps", page.text("overlap", label=result.label, share=share))
    return ", ".join(page.text(lines[x], accuracy=accuracy[x], share=share) for x in lines if x in accuracy)


SECTIONS = (
    Section(slug="position-ablation", write=position_ablation, chapter="report-000", order=30, needs=("ablate",)),
)
