"""Section of chosen sets of thoughts patched from the clean problem."""

from typing import Any

from analyze.drawing import bars_across
from analyze.effects.conditions import places_of
from analyze.effects.patched import patched, say_best
from analyze.page import Page, Section
from analyze.tables import Frame, rows_with, triple

SET_NAMES = {"numbers": "those that read as numbers", "others": "those that do not"}


def subset_patching(page: Page) -> None:
    """Chosen subsets of thoughts, and those that carry numbers, beside as many at random."""
    for result, frame in patched(page):
        chosen = frame["kind"].isin(["named", "subset", "carrying"])
        rows = frame[chosen & frame["control"].isin(["", "random positions"])]
        if rows.empty:
            continue
        best = rows_with(rows, place=places_of(rows)[0]).sort_values("clean", ascending=False, kind="stable")
        best = best.assign(name=[set_name(str(positions)) for positions in best["positions"]])
        drawn = best["control"] == "random positions"
        say_best(page, result, best[~drawn])
        if drawn.any():
            page.say_more(result.label, random_sentence(page, best, best["clean"][drawn]))
        if drawn.any() and "with_number" in best:
            share = float(best["with_number"][drawn].mean())
            page.join("overlaps", page.text("overlap", label=result.label, share=share))
        page.add("subset_patching", result, rows)
        shown = best.head(14)
        ax = page.panel("subset_patching", result, height=0.8 + 0.28 * len(shown))
        bars_across(ax, shown["name"], *triple(shown, "clean"), **result.look.bar())
        ax.set_xlim(0, 1.03)
        ax.tick_params(axis="y", length=0)
    page.need("subset_patching")


def set_name(positions: str) -> str:
    """A set of thoughts in words."""
    name = positions.replace("random like numbers", "as many at random")
    return SET_NAMES.get(name, name.replace("+", " "))


def random_sentence(page: Page, rows: Frame, random: Any) -> str:
    """What the thoughts that read as numbers bring over, the others, and as many as the first drawn at random."""
    clean = {name: float(rows["clean"][rows["positions"] == name].iloc[0]) for name in ("numbers", "others")}
    name = "random_once" if len(random) == 1 else "random" if random.nunique() > 1 else "random_same"
    return page.text(name, **clean, n=len(random), low=random.min(), high=random.max())


SECTIONS = (
    Section(
        slug="subset-patching", write=subset_patching, chapter="report-002", order=30, needs=("patch",), of="pairs"
    ),
)
