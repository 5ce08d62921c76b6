"""Section of single thoughts corrupted: how many right answers each costs."""

from typing import Any

from analyze.drawing import Series
from analyze.effects.shown import changed, reentries
from analyze.page import Page, Section, listed
from analyze.tables import Frame, as_picked, triple
from analyze.verdict.rules import NO, UNDECIDED, YES, decide
from schemas.picked import Pick
from schemas.statistics import smallest_share

TENTH = 0.1
"""Share of right answers that must be lost for a thought to be named."""


def token_ablation(page: Page) -> None:
    """Importance of each thought under every corruption."""
    series: list[Series] = []
    thoughts: list[str] = []
    for result, frame, _ in reentries(page, "corrupt"):
        rows = frame[frame["control"] == ""]
        thoughts = [x for x in dict.fromkeys(rows["group"].astype(str)) if x.startswith("ct") or x == "bot"]
        corruptions = [x for x in dict.fromkeys(rows["corruption"].astype(str)) if x not in ("shuffle", "replace")]
        grid = rows.pivot_table(index="corruption", columns="group", values="importance", sort=False)
        columns = [*thoughts, *["all"] * bool((rows["group"] == "all").any())]
        page.percent_map("corruption", result, grid.reindex(index=corruptions, columns=columns))
        shown = "mean" if "mean" in corruptions else corruptions[0]
        of_thought = rows[rows["corruption"] == shown].drop_duplicates("group").set_index("group").reindex(thoughts)
        series.append((result.look, *triple(of_thought, "importance")))
        of_thought = as_picked(of_thought, Pick(len(thoughts), "any", share=True), "importance")
        page.say(result, "thoughts", **importance_values(page, of_thought))
        page.add("token_ablation", result, rows)
        lost = of_thought.index[of_thought["importance_low"] > TENTH]
        page.find(result, *[changed(str(name), group=name, corruption=shown) for name in lost])
    page.bars("importance_by_position", thoughts, series, "right answers that turn wrong", top=1.03)


def importance_values(page: Page, rows: Frame) -> dict[str, Any]:
    """Thoughts above a tenth of the answers, below it, and not distinguishable from it; n, and what it could show."""
    named: dict[str, list[str]] = {YES: [], NO: [], UNDECIDED: []}
    for name, row in rows.sort_values("importance", ascending=False).iterrows():
        answer = decide(row["importance_low"], row["importance_high"], TENTH)
        value = page.text("one", thought=name, importance=row["importance"])
        named.setdefault(answer, []).append(str(name) if answer == NO else value)
    parts = [", ".join(named[YES]) or page.text("none_high")]
    lines = (("low", NO), ("undecided", UNDECIDED))
    parts += [page.text(line, names=listed(named[answer])) for line, answer in lines if named[answer]]
    n = int(rows["n"].max())
    return {"thoughts": "; ".join(parts), "n": n, "smallest": smallest_share(n, TENTH, 1 - 0.05 / len(rows))}


SECTIONS = (
    Section(slug="token-ablation", write=token_ablation, chapter="report-001", order=50, needs=("corrupt",), key=True),
)
