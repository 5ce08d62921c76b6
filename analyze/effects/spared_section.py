"""Section of how many thoughts can be taken away before accuracy falls."""

from typing import Any

from analyze.curves import curves
from analyze.effects.conditions import by_count, places_of
from analyze.effects.shown import next_sentence, paired, reentries
from analyze.page import Page, Section, listed
from analyze.tables import Frame, rows_with


def thoughts_spared(page: Page) -> None:
    """How many thoughts can be taken away before accuracy falls."""
    for result, frame, base in reentries(page, "ablate", by_count):
        rows = frame[(frame["n_thought"] > 0) & (frame["control"] == "")]
        operation = "mean" if (rows["operation"] == "mean").any() else str(rows["operation"].iloc[0])
        where = {"operation": operation, "place": places_of(rows)[0]}
        shown = rows_with(rows, **where).sort_values("n_thought")
        series = dict(list(shown.groupby("group", sort=False)))
        title = ", ".join(where.values())
        with page.shares("thoughts_spared", result, "thoughts taken away", base=base["accuracy"], title=title) as ax:
            curves(ax, shown, "group", "n_thought", "accuracy", "{} N")
        steps = paired(result.data, "n_thought")
        page.say_of(result.label, sentence(page, shown, series, where | {"untouched": base["accuracy"]}, steps))
        tables = {"thoughts_spared": rows, "next": steps, "layers": paired(result.data, "layer")}
        for table, of_table in tables.items():
            page.add(table, result, of_table)


def sentence(page: Page, rows: Frame, series: dict[str, Frame], values: dict[str, Any], steps: Frame) -> str:
    """How many of each series can go, what is left without any, and between which numbers one more matters."""
    most = int(rows["n_thought"].max())
    without = rows[rows["n_thought"] == most].iloc[0]
    values |= {"n": int(without["n"]), "most": most, "accuracy": without["accuracy"]}
    values |= {"low": without["accuracy_low"], "high": without["accuracy_high"]}
    if all(line["n_spared"].iloc[0] == most for line in series.values()):
        return page.text("none_needed", **values)
    parts = [page.text(f"of_{str(group).split()[0]}", n=line["n_spared"].iloc[0]) for group, line in series.items()]
    where = {"place": values["place"], "operation": values["operation"], "group": "first"}
    after = next_sentence(page, rows_with(steps, **where))
    return page.text("some_needed", spared=listed(parts), **values) + after


SECTIONS = (
    Section(
        slug="thoughts-spared", write=thoughts_spared, chapter="report-000", order=35, needs=("ablate --sets counts",)
    ),
)
