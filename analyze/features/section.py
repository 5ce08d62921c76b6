"""Section on what the features of stored dictionaries fire on and tell."""

import numpy as np

from analyze.beside import Finding, Triple
from analyze.context import StoredResult
from analyze.features.command import feature_rows, steps_from_one
from analyze.page import Page, Section
from analyze.tables import ENDS
from schemas.picked import Pick, of_picked


def features(page: Page) -> None:
    """What the features of each model fire on and write."""
    for result in page.results("features"):
        frequency = result.data["frequency"]
        if {"layer", "position"} <= set(frequency.dims):
            alive = (frequency > 0).sum("feature").transpose("layer", "position")
            page.map("alive", result, alive, high=float(alive.max()) or 1.0, text="{:.0f}")
        rows = feature_rows(result.data)
        rows = [row | {"tells": steps_from_one(row["tells"])} if "tells" in row else row for row in rows]
        page.add("features", result, rows)
        page.say(result, "most" if rows[0]["fires"] > 0 else "silent", n=result.data.sizes["feature"], **rows[0])
        if "tells" not in result.data:
            continue
        told = sorted((row for row in rows if row["tells"]), key=lambda row: -float(row["area"]))
        page.add("told", result, told)
        if told:
            telling, above = sum(row["area_p"] < 0.05 for row in told), result.data.attrs["area_null"]
            page.say_more(result.label, page.text("tell", n=len(told), telling=telling, above=above, **told[0]))
        page.find(result, Finding(what="best area of a feature", of=best_area, nothing=0.6))


def best_area(result: StoredResult) -> Triple:
    """Area of the feature that tells most, with the interval of one that was picked among all."""
    if "area" not in result.data or not result.data["area"].notnull().any():
        return [np.nan] * 3
    best = result.data.isel(feature=int(np.nanargmax(result.data["area"].values)))
    pick = Pick(int(result.data["area"].notnull().sum()), share=True)
    return of_picked((best[f"area{end}"] for end in ENDS), pick)


SECTIONS = (Section(slug="features", write=features, chapter="report-001", order=32, needs=("features",)),)
