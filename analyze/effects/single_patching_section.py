"""Section of single positions patched from the clean problem."""

from analyze.beside import NOTHING
from analyze.effects.conditions import places_of, single_positions
from analyze.effects.patched import most_clean, patched, say_best
from analyze.effects.shown import changed
from analyze.page import Page, Section
from analyze.places import draw_places
from analyze.tables import rows_with
from schemas.picked import Pick


def single_patching(page: Page) -> None:
    """One position at a time."""
    thoughts: list[str] = []
    for result, frame in patched(page):
        rows = rows_with(frame, kind="one", control="")
        if rows.empty:
            continue
        grid = rows.pivot_table(index="place", columns="positions", values="clean", sort=False)
        columns = single_positions(grid.columns)
        page.percent_map("single_patching", result, grid.reindex(index=places_of(rows), columns=columns))
        say_best(page, result, rows)
        best = most_clean(rows)
        where = {"kind": "one", "positions": best["positions"], "place": best["place"]}
        finding = changed(best["positions"], "clean", pick=Pick(len(rows), share=True), **where)
        page.find(result, finding if best["clean_low"] > NOTHING else None)
        page.add("single_patching", result, rows)
        thoughts = max(thoughts, [name for name in columns if name.startswith("ct")], key=len)
    page.need("single_patching")
    if thoughts:
        draw_places(page.panel("patch_places", wide=True, height=1.9), thoughts)


SECTIONS = (
    Section(
        slug="single-patching", write=single_patching, chapter="report-002", order=10, needs=("patch",), of="pairs"
    ),
)
