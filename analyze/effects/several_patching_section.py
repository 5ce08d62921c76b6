"""Sections of the first N thoughts of one half of a pair put into the other."""

from analyze.beside import NOTHING
from analyze.context import Where
from analyze.effects.conditions import into_clean, into_corrupted, places_of
from analyze.effects.patched import by_step, draw_first, patched, step_sentence, win_sentence, winning_rows
from analyze.effects.shown import changed, next_sentence, paired
from analyze.page import Page, Section
from analyze.tables import rows_with


def first_thoughts(page: Page, where: Where, giver: str) -> None:
    """The first N thoughts of one half in the other, the N at which the giver wins, and each N against the next."""
    for result, frame in patched(page, where):
        first = rows_with(frame, kind="first")
        own = rows_with(first, control="")
        if own.empty:
            continue
        place = places_of(own)[0]
        line = rows_with(own, place=place).sort_values("n")
        random = rows_with(first, control="random donor", place=place).sort_values("n")
        draw_first(page, result, line, random, giver)
        splits, wins, steps = by_step(result.data, line, giver), winning_rows(result.data), paired(result.data, "n")
        after = rows_with(steps, place=place)
        text = win_sentence(page, wins, line) + step_sentence(page, result.data, splits, giver)
        page.say_of(result.label, text + (next_sentence(page, after) if len(after) else ""))
        last = line.iloc[-1]
        whole = changed(f"first {int(last['n'])}", giver, kind="first", n=last["n"], place=place)
        page.find(result, whole if last[f"{giver}_low"] > NOTHING else None)
        for name, rows in {"n_that_wins": wins, "several_patching": own, "by_step": splits, "next": steps}.items():
            page.add(name, result, rows)
        page.add("layers", result, paired(result.data, "layer"))
    page.need("several_patching")


def several_patching(page: Page) -> None:
    """The first N thoughts of the clean problem, and the N at which its answer wins."""
    first_thoughts(page, into_corrupted, "clean")


def patching_back(page: Page) -> None:
    """The first N thoughts of the corrupted problem, and the N at which its answer wins."""
    first_thoughts(page, into_clean, "corrupted")


SECTIONS = (
    Section(
        slug="several-patching", write=several_patching, chapter="report-002", order=20, needs=("patch",), of="pairs",
        key=True,
    ),
    Section(
        slug="patching-back", write=patching_back, chapter="report-002", order=40, needs=("patch --into clean",),
        of="pairs",
    ),
)  # fmt: skip
