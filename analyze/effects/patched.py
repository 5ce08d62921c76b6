"""Results of patching: their rows, from how many thoughts on the giver's answer wins, and the drawing of it."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import NOTHING
from analyze.context import StoredResult, Where
from analyze.curves import curve
from analyze.drawing import HEAT, HEAT_NEGATIVE, MUTED, Look, reference
from analyze.effects.conditions import into_corrupted, place_name
from analyze.effects.shown import reentries
from analyze.page import Page
from analyze.tables import ENDS, Frame, as_picked, rows_with, triple
from schemas.picked import Pick

OPEN = 0.025
"""Share of resamples in which a giver wins at no N, above which it is open whether it does."""


def patched(page: Page, where: Where = into_corrupted) -> list[tuple[StoredResult, Frame]]:
    """Results of patching with their conditions; how many pairs count goes to the texts."""
    results = reentries(page, "patch", where)
    notes = [
        f"{result.label}: {counts.get('n_counted')} of {counts['n_pair']} pairs count "
        f"({counts.get('n_same_answer', 0)} have the same answer twice, "
        f"{counts.get('n_not_both_right', 0)} are not both answered rightly: the clean half wrong in "
        f"{counts.get('n_clean_wrong', 0)}, the corrupted one in {counts.get('n_corrupted_wrong', 0)})"
        for result, counts in ((result, result.data.attrs) for result, _, _ in results)
        if "n_pair" in counts
    ]
    page.set(pairs="; ".join(notes) + "." if notes else "")
    return [(result, frame) for result, frame, _ in results]


def say_best(page: Page, result: StoredResult, rows: Frame) -> None:
    """The condition with the most clean answers, and how many have as many; or that none is shown to bring them."""
    best = most_clean(rows)
    others = int((rows["clean"] == best["clean"]).sum()) - 1
    more = page.text("more", n=others) if others else ""
    page.say(result, "best" if best["clean_low"] > NOTHING else "null", **dict(best) | {"more": more})


def most_clean(rows: Frame) -> Any:
    """The condition with the most clean answers, whose interval allows for having been picked among all."""
    return as_picked(rows, Pick(len(rows), share=True), "clean").loc[rows["clean"].idxmax()]


def winning_rows(data: xr.Dataset) -> Frame:
    """The N from which on the donor wins, at each place."""
    if "n_that_wins" not in data:
        return pd.DataFrame()
    names = {"n_that_wins": "n", "n_that_wins_low": "low", "n_that_wins_high": "high", "never_wins": "never"}
    columns = {short: data[name].values.astype(float) for name, short in names.items()}
    return pd.DataFrame({"place": series_places(data)} | columns)


def series_places(data: xr.Dataset) -> list[str]:
    """Where the thoughts of each series were patched."""
    cells = zip(data["series_site"].values, data["series_layer"].values, strict=True)
    return [place_name(site, layer) for site, layer in cells]


def win_sentence(page: Page, wins: Frame, line: Frame) -> str:
    """From which N on the giver wins, of conditions of one place, or that it never does, or that it is open."""
    last, at_place = line.iloc[-1], rows_with(wins, place=line["place"].iloc[0])
    win = (at_place if len(at_place) else wins).tail(1).to_dict("records")
    name = "unknown" if not win else "never" if not np.isfinite(win[0]["n"]) else "wins"
    if name == "wins" and win[0]["never"] > OPEN:
        name = "open"
    values: dict[str, Any] = dict(last.filter(regex="^(clean|corrupted)")) | {"all": last["n"], "place": last["place"]}
    return page.text(name, **(win[0] if win else {}) | values)


def by_step(data: xr.Dataset, line: Frame, giver: str) -> Frame:
    """The giver's answers by the number of first thoughts, for pairs that first differ in the same step."""
    rows: list[dict[str, Any]] = []
    for step in data["differs"].values if "differs" in data.dims else ():
        of_step = data.sel(differs=step)
        wins = of_step["n_that_wins_by_step"].values[series_places(data).index(line["place"].iloc[0])]
        for index, n in zip(line.index, line["n"], strict=True):
            cell = of_step.isel(condition=int(index)).sel(outcome_kind=f"{giver}_answer")
            shares = {f"{giver}{end}": float(cell[f"share_by_step{end}"]) for end in ENDS}
            rows.append({"differs": str(step), "pairs": int(cell["n_by_step"]), "n": int(n), "wins": wins} | shares)
    return pd.DataFrame(rows)


def step_sentence(page: Page, data: xr.Dataset, splits: Frame, giver: str) -> str:
    """From which N pairs of each first differing step follow, and what the pairs allow at most."""
    if splits.empty:
        return ""
    steps = [
        page.text(
            "step_wins" if np.isfinite(rows["wins"].iloc[0]) else "step_never", step=step, n=rows["wins"].iloc[0],
            pairs=rows["pairs"].iloc[0], best=rows[giver].max(),
        )
        for step, rows in splits.groupby("differs", sort=False)
    ]  # fmt: skip
    return page.text("by_step", ceiling=data.attrs["ceiling"], steps=", ".join(steps))


def draw_first(page: Page, result: StoredResult, line: Frame, random: Frame, giver: str) -> None:
    """Share of clean and corrupted answers by the number of first thoughts patched."""
    n, title = line["n"].to_numpy(dtype=float), line["place"].iloc[0]
    with page.shares("several_patching", result, "first thoughts patched", height=2.9, title=title) as ax:
        for name, colour, marker, style in (("clean", HEAT, "o", "-"), ("corrupted", HEAT_NEGATIVE, "s", "--")):
            look = Look(label=f"{name} answer", colour=colour, marker=marker)
            curve(ax, look, n, triple(line, name), shade=True, linestyle=style)
        if len(random):
            look = Look(label=f"{giver} answer, random donor", colour=MUTED, marker="^")
            curve(ax, look, random["n"], [random[giver], None, None], linestyle=":")
        if "ceiling" in result.data.attrs:
            reference(ax, float(result.data.attrs["ceiling"]))
        ax.set_xlim(0.7, max(n) + 0.3)
