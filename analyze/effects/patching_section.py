"""Sections of clean thoughts put into corrupted problems."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import NOTHING, Finding, Triple, beside
from analyze.context import StoredResult, Where
from analyze.drawing import (
    HEAT,
    HEAT_NEGATIVE,
    MUTED,
    as_percent,
    band,
    bars_across,
    faint_grid,
    legend_below,
    reference,
)
from analyze.effects.conditions import (
    Frame,
    conditions,
    into_clean,
    into_corrupted,
    place_name,
    places_of,
    with_place,
)  # fmt: skip
from analyze.effects.shown import ENDS, differing, paired, reentries, triple
from analyze.page import Page, Section, listed
from analyze.places import draw_places

OUTCOMES = ("clean_answer", "corrupted_answer", "other", "gibberish")
OPEN = 0.025
"""Share of resamples in which a giver wins at no N, above which it is open whether it does."""
SET_NAMES = {
    "numbers": "those that read as numbers",
    "others": "those that do not",
}


def patched(page: Page, where: Where = into_corrupted) -> list[tuple[StoredResult, Frame]]:
    """Results of patching with the shares of their outcomes; how many pairs count goes to the texts."""
    ready, notes = [], []
    for result, frame, _ in reentries(page, "patch", where):
        ready.append((result, with_shares(result.data, frame)))
        counts = result.data.attrs
        if "n_pair" in counts:
            notes.append(
                f"{result.label}: {counts.get('n_counted')} of {counts['n_pair']} pairs count "
                f"({counts.get('n_same_answer', 0)} have the same answer twice, "
                f"{counts.get('n_not_both_right', 0)} are not both answered rightly: the clean half wrong in "
                f"{counts.get('n_clean_wrong', 0)}, the corrupted one in {counts.get('n_corrupted_wrong', 0)})"
            )
    page.set(pairs="; ".join(notes) + "." if notes else "")
    return ready


def with_shares(data: xr.Dataset, frame: Frame) -> Frame:
    """Conditions with the shares of their outcomes."""
    kind = "outcome_kind" if "outcome_kind" in data.dims else "outcome"
    for outcome in OUTCOMES:
        of_outcome = data.sel({kind: outcome})
        for end in ENDS:
            frame[outcome.removesuffix("_answer") + end] = of_outcome[f"share{end}"].values[frame.index]
    return frame


def given_by(giver: str, what: str, **where: str) -> Finding:
    """How often the answer of the half that gives its thoughts follows with these of them patched."""

    def of(result: StoredResult) -> Triple:
        frame = with_shares(result.data, with_place(conditions(result.data)))
        for name, label in {"control": "", **where}.items():
            frame = frame[frame[name].astype(str) == label] if name in frame else frame.head(0)
        return [float(frame[f"{giver}{end}"].iloc[0]) if len(frame) else np.nan for end in ENDS]

    return Finding(what=what, of=of)


def single_patching(page: Page) -> None:
    """One position at a time."""
    thoughts: list[str] = []
    findings = []
    for result, frame in patched(page):
        rows = frame[(frame["kind"] == "one") & (frame["control"] == "")]
        if rows.empty:
            continue
        grid = rows.pivot_table(index="place", columns="positions", values="clean", sort=False)
        columns = [x for x in ("bot", *(f"ct{i}" for i in range(32)), "eot") if x in grid.columns]
        places = places_of(rows)
        page.percent_map("single_patching", result, grid.reindex(index=places, columns=columns), places, columns)
        say_best(page, result, rows)
        best = rows.loc[rows["clean"].idxmax()]
        told = [given_by("clean", best["positions"], kind="one", positions=best["positions"], place=best["place"])]
        findings.append((result, told if best["clean_low"] > NOTHING else []))
        page.add("single_patching", result, rows)
        thoughts = max(thoughts, [name for name in columns if name.startswith("ct")], key=len)
    page.need("single_patching")
    beside(page, findings)
    if thoughts:
        draw_places(page.panel("patch_places", wide=True, height=1.9), thoughts)


def say_best(page: Page, result: StoredResult, rows: Frame) -> None:
    """The condition with the most clean answers, and how many have as many; or that none is told to bring them."""
    best = rows.loc[rows["clean"].idxmax()]
    others = int((rows["clean"] == best["clean"]).sum()) - 1
    more = page.text("more", n=others) if others else ""
    page.say(result, "best" if best["clean_low"] > NOTHING else "null", **dict(best) | {"more": more})


def several_patching(page: Page) -> None:
    """The first N thoughts of the clean problem, and the N at which its answer wins."""
    first_thoughts(page, into_corrupted, "clean", "corrupted")


def patching_back(page: Page) -> None:
    """The first N thoughts of the corrupted problem, and the N at which its answer wins."""
    first_thoughts(page, into_clean, "corrupted", "clean")


def first_thoughts(page: Page, where: Where, giver: str, own_half: str) -> None:
    """The first N thoughts of one half in the other, the N at which the giver wins, and each N against the next."""
    findings = []
    for result, frame in patched(page, where):
        first = frame[frame["kind"] == "first"]
        own = first[first["control"] == ""]
        if own.empty:
            continue
        place = places_of(own)[0]
        line = own[own["place"] == place].sort_values("n")
        random = first[(first["control"] == "random donor") & (first["place"] == place)].sort_values("n")
        draw_first(page, result, line, random, place, giver)
        splits = by_step(result, line, place, giver)
        wins = winning_rows(result.data)
        page.add("n_that_wins", result, wins)
        at_place = wins[wins["place"] == place] if len(wins) else wins
        win = (at_place if len(at_place) else wins).tail(1).to_dict("records")
        last = line.iloc[-1]
        values = {"all": last["n"], "place": place}
        values |= {f"{half}{end}": last[f"{half}{end}"] for half in (giver, own_half) for end in ENDS}
        name = "unknown" if not win else "never" if not np.isfinite(win[0]["n"]) else "wins"
        if name == "wins" and win[0]["never"] > OPEN:
            name = "open"
        text = page.text(name, **(win[0] if win else {}) | values)
        steps = paired(result.data, "n")
        page.say_of(result.label, text + told_by_step(page, result, splits, giver) + told_next(page, steps, place))
        whole = given_by(giver, f"first {int(last['n'])}", kind="first", n=str(last["n"]), place=place)
        findings.append((result, [whole] if last[f"{giver}_low"] > NOTHING else []))
        page.add("several_patching", result, own)
        page.add("by_step", result, splits)
        page.add("next", result, steps)
        page.add("layers", result, paired(result.data, "layer"))
    page.need("several_patching")
    beside(page, findings)


def told_next(page: Page, steps: Frame, place: str) -> str:
    """Between which numbers of thoughts one more makes a difference."""
    at_place = steps[steps["place"] == place] if len(steps) else steps
    if not len(at_place):
        return ""
    pairs = differing(at_place)
    return page.text("next", pairs=listed(pairs)) if pairs else page.text("no_next")


def winning_rows(data: xr.Dataset) -> Any:
    """The N from which on the donor wins, at each place."""
    if "n_that_wins" not in data:
        return pd.DataFrame()
    sites, layers = data["series_site"].values, data["series_layer"].values
    names = {"n_that_wins": "n", "n_that_wins_low": "low", "n_that_wins_high": "high", "never_wins": "never"}
    columns = {short: data[name].values.astype(float) for name, short in names.items()}
    places = [place_name(site, layer) for site, layer in zip(sites, layers, strict=True)]
    return pd.DataFrame({"place": places} | columns)


def by_step(result: StoredResult, line: Frame, place: str, giver: str) -> Any:
    """The giver's answers by the number of first thoughts, for pairs that first differ in the same step."""
    data = result.data
    if "differs" not in data.dims:
        return pd.DataFrame()
    places = [place_name(*cell) for cell in zip(data["series_site"].values, data["series_layer"].values, strict=True)]
    rows = []
    for step in data["differs"].values:
        of_step = data.sel(differs=step)
        wins = of_step["n_that_wins_by_step"].values[places.index(place)]
        for index, n in zip(line.index, line["n"], strict=True):
            cell = of_step.isel(condition=int(index)).sel(outcome_kind=f"{giver}_answer")
            shares = {f"{giver}{end}": float(cell[f"share_by_step{end}"]) for end in ENDS}
            rows.append({"differs": str(step), "pairs": int(cell["n_by_step"]), "n": int(n), "wins": wins} | shares)
    return pd.DataFrame(rows)


def told_by_step(page: Page, result: StoredResult, splits: Any, giver: str) -> str:
    """From which N pairs of each first differing step follow, and what the pairs allow at most."""
    if not len(splits):
        return ""
    parts = []
    for step, rows in splits.groupby("differs", sort=False):
        wins = rows["wins"].iloc[0]
        name = "step_wins" if np.isfinite(wins) else "step_never"
        parts.append(page.text(name, step=step, n=wins, pairs=rows["pairs"].iloc[0], best=rows[giver].max()))
    return page.text("by_step", ceiling=result.data.attrs["ceiling"], steps=", ".join(parts))


def draw_first(page: Page, result: StoredResult, line: Frame, random: Frame, place: str, giver: str) -> None:
    """Share of clean and corrupted answers by the number of first thoughts patched."""
    ax, n = page.panel("several_patching", result, height=2.9), line["n"].to_numpy(dtype=float)
    for name, colour, style, marker in (("clean", HEAT, "-", "o"), ("corrupted", HEAT_NEGATIVE, "--", "s")):
        share, low, high = triple(line, name)
        ax.plot(n, share, color=colour, linestyle=style, marker=marker, label=f"{name} answer")
        band(ax, n, low, high, colour)
    if len(random):
        grey = {"color": MUTED, "linestyle": ":", "marker": "^", "label": f"{giver} answer, random donor"}
        ax.plot(random["n"], random[giver], **grey)
    if "ceiling" in result.data.attrs:
        reference(ax, float(result.data.attrs["ceiling"]))
    ax.set_ylim(-0.02, 1.03)
    ax.set_xlim(0.7, max(n) + 0.3)
    as_percent(ax)
    faint_grid(ax)
    ax.set_xlabel("first thoughts patched")
    ax.set_title(f"{result.label}, {place}")
    legend_below(ax)


def set_name(positions: Any) -> str:
    """A set of thoughts in words."""
    name = str(positions).replace("random like numbers", "as many at random")
    return SET_NAMES.get(name, name.replace("+", " "))


def subset_patching(page: Page) -> None:
    """Chosen subsets of thoughts, and those that carry numbers, beside as many at random."""
    overlaps = []
    for result, frame in patched(page):
        chosen = frame["kind"].isin(["named", "subset", "carrying"])
        rows = frame[chosen & frame["control"].isin(["", "random positions"])]
        if rows.empty:
            continue
        place = places_of(rows)[0]
        best = rows[rows["place"] == place].sort_values("clean", ascending=False, kind="stable")
        drawn = best["control"] == "random positions"
        say_best(
            page, result, best[~drawn].assign(name=[set_name(positions) for positions in best["positions"][~drawn]])
        )
        if drawn.any():
            page.say_more(result.label, random_told(page, best, drawn))
            if "with_number" in best:
                share = float(best["with_number"][drawn].mean())
                overlaps.append(page.text("overlap", label=result.label, share=share))
        page.add("subset_patching", result, rows)
        shown = best.head(14)
        ax = page.panel("subset_patching", result, height=0.8 + 0.28 * len(shown))
        names = [set_name(positions) for positions in shown["positions"]]
        bars_across(ax, names, *triple(shown, "clean"), **result.look.bar())
        ax.set_xlim(0, 1.03)
        ax.tick_params(axis="y", length=0)
    page.need("subset_patching")
    page.set(overlaps="; ".join(overlaps))


def random_told(page: Page, rows: Frame, drawn: Frame) -> str:
    """What the thoughts that read as numbers bring over, the others, and as many as the first drawn at random."""
    clean = {name: float(rows["clean"][rows["positions"] == name].iloc[0]) for name in ("numbers", "others")}
    random = rows["clean"][drawn]
    name = "random_once" if len(random) == 1 else "random" if random.nunique() > 1 else "random_same"
    return page.text(name, **clean, n=len(random), low=random.min(), high=random.max())


def _section(name: str, write: Any, order: int, *, needs: str = "patch", key: bool = False) -> Section:
    return Section(slug=name, write=write, chapter="report-002", order=order, needs=(needs,), of="pairs", key=key)


SECTIONS = (
    _section("single-patching", single_patching, 10),
    _section("several-patching", several_patching, 20, key=True),
    _section("subset-patching", subset_patching, 30),
    _section("patching-back", patching_back, 40, needs="patch --into clean"),
)
