"""Section of thoughts pushed along a direction."""

from typing import Any

import pandas as pd

from analyze.context import StoredResult
from analyze.curves import curve, random_curve
from analyze.drawing import looks
from analyze.effects.shown import differs, power, reentries
from analyze.page import Page, Section, listed
from analyze.tables import Frame, triple
from schemas.intervention import STEERING_UNIT


def steering(page: Page) -> None:
    """Accuracy along a direction, beside random ones."""
    directions: dict[str, None] = {}
    for result, frame, base in reentries(page, "steer"):
        rows = frame[~frame["control"].str.startswith("self")].assign(strength=frame["strength"].astype(float))
        own = rows[~rows["direction"].astype(str).str.startswith("random")]
        draw(page, result, rows, own, base)
        page.say_of(result.label, sentence(page, rows, own, base))
        page.add("steering", result, rows)
        directions |= dict.fromkeys(own["direction"].astype(str))
    page.set(directions=listed([f"“{name}”".replace("correct-wrong", "correct minus wrong") for name in directions]))


def sentence(page: Page, rows: Frame, own: Frame, base: Any) -> str:
    """Whether a test shows that any strength helps or harms, beside what random directions do there."""
    best, worst = own.loc[own["accuracy"].idxmax()], own.loc[own["accuracy"].idxmin()]
    random = rows.drop(own.index).groupby("strength")["accuracy"].mean()
    parts = [page.text("untouched", untouched=base["accuracy"], n=int(best["n"]), smallest=power(own))]
    for name, row, beyond in (("best", best, best["accuracy"] - base["accuracy"]),
                              ("worst", worst, base["accuracy"] - worst["accuracy"])):  # fmt: skip
        sure = bool(differs(own)[row.name]) and beyond > 0
        text = page.text(name if sure else f"no_{name}", accuracy=row["accuracy"], strength=row["strength"])
        there = random.get(row["strength"])
        parts.append(text + (page.text("no_random") if there is None else page.text("random", accuracy=there)))
    return "; ".join(parts)


def draw(page: Page, result: StoredResult, rows: Frame, own: Frame, base: Any) -> None:
    """Accuracy by strength for each direction, and the range of random ones."""
    along = f"strength, in {result.data['strength'].attrs.get('units', STEERING_UNIT)}"
    none = pd.DataFrame([{"strength": 0.0} | dict(base.filter(like="accuracy"))])
    with page.shares("steering", result, along, base=base["accuracy"]) as ax:
        random_curve(ax, rows.drop(own.index), "strength", "accuracy", "random directions (range)")
        for name, look in looks(list(own["direction"].astype(str).unique())).items():
            of_name = own[own["direction"] == name].groupby("strength", as_index=False).first()
            line = pd.concat([of_name, none], ignore_index=True).sort_values("strength")
            curve(ax, look, line["strength"], triple(line, "accuracy"))


SECTIONS = (Section(slug="steering", write=steering, chapter="report-004", order=70, needs=("steer",), of="mixed"),)
