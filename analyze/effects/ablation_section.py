"""Sections of thoughts taken out or changed: position ablation, token ablation, steering, integrated gradients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analyze.beside import beside
from analyze.context import StoredResult
from analyze.drawing import (
    HEAT,
    HEAT_NEGATIVE,
    INK,
    MUTED,
    Look,
    Series,
    as_percent,
    bars,
    faint_grid,
    legend_below,
    looks,
    random_range,
    reference,
    whiskers,
)  # fmt: skip
from analyze.effects.conditions import Frame, by_carrying, places_of
from analyze.effects.shown import ENDS, cost_of, power, reentries, told_apart, triple
from analyze.page import Page, Section, listed
from analyze.verdict.rules import NO, UNDECIDED, YES, decide
from schemas.intervention import STEERING_UNIT
from schemas.statistics import smallest_share

POWER = (1.96 + 0.84) / (2 * 1.96)
"""Effect that is found in 80% of cases, in widths of its 95% interval."""
TENTH = 0.1
"""Share of right answers whose loss is told of a thought."""

GROUPS = {
    "numbers": Look(label="thoughts that read as numbers", colour=HEAT),
    "others": Look(label="the other thoughts", colour=HEAT_NEGATIVE, hatch="////"),
    "random like numbers": Look(label="as many at random", colour=MUTED, hatch="...."),
    "all": Look(label="all thoughts", colour=INK, hatch="xxxx"),
}


def position_ablation(page: Page) -> None:
    """Number-carrying thoughts against the others."""
    not_counted, overlaps, findings = [], [], []
    for result, frame, base in reentries(page, "ablate", by_carrying):
        rows = frame[
            frame["group"].isin(list(GROUPS)) & ((frame["control"] == "") | frame["group"].str.startswith("random"))
        ]
        operations = [name for name in ("mean", "zero") if (rows["operation"] == name).any()]
        if not operations:
            continue
        for operation in operations:
            draw_groups(page, result, rows[rows["operation"] == operation], base["accuracy"], operation)
        place = places_of(rows[rows["operation"] == operations[0]])[0]
        cells = rows[(rows["operation"] == operations[0]) & (rows["place"] == place)]
        accuracy = cells.drop_duplicates("group").set_index("group")["accuracy"]
        share = overlap(result)
        random = "random" if np.isfinite(share) else "random_unread"
        groups = [
            page.text(name, accuracy=accuracy[group], share=share)
            for name, group in (("numbers", "numbers"), ("others", "others"), (random, "random like numbers"))
            if group in accuracy
        ]
        n = int(cells["n"].max())
        page.say(result, operations[0], untouched=base["accuracy"], groups=", ".join(groups), place=place, n=n)
        overlaps += [page.text("overlap", label=result.label, share=share)] if np.isfinite(share) else []
        where = {"operation": operations[0], "place": place}
        findings.append((result, [cost_of("numbers", {"group": "numbers", **where})] if "numbers" in accuracy else []))
        page.add("position_ablation", result, rows)
        worst = float(result.data["share_not_counted"].max()) if "share_not_counted" in result.data else 0
        if worst > 0:
            not_counted.append(page.text("not_counted", label=result.label, worst=worst))
    beside(page, findings)
    page.set(not_counted="; ".join(not_counted), overlaps="; ".join(overlaps))


def overlap(result: StoredResult) -> float:
    """How many of the thoughts drawn at random read as numbers themselves, on average; NaN where that is not stored."""
    if "number_share" not in result.data:
        return np.nan
    share = result.data["number_share"]
    thoughts = [label for label in share["position"].values if str(label).startswith("ct")]
    return float(share.sel(position=thoughts).mean())


def draw_groups(page: Page, result: StoredResult, rows: Frame, base: float, operation: str) -> None:
    """Accuracy by place for each group of thoughts."""
    places = places_of(rows)
    ax = page.panel(f"position_ablation_{operation}", result, height=3.1)
    series = []
    for group, look in GROUPS.items():
        if (rows["group"] == group).any():
            of_group = rows[rows["group"] == group].drop_duplicates("place").set_index("place").reindex(places)
            series.append((look, *triple(of_group, "accuracy")))
    bars(ax, places, series)
    reference(ax, float(base))
    ax.tick_params(axis="x", length=3)
    if len(places) > 6:
        ax.tick_params(axis="x", labelrotation=60, labelsize=7.5)
    ax.set_ylim(0, 1.03)
    as_percent(ax)
    ax.set_title(f"{result.label}, {operation}")
    legend_below(ax, 0.1 if len(places) <= 6 else 0.25)


def token_ablation(page: Page) -> None:
    """Importance of each thought under every corruption."""
    findings = []
    series: list[Series] = []
    thoughts: list[str] = []
    for result, frame, _ in reentries(page, "corrupt"):
        rows = frame[frame["control"] == ""]
        thoughts = [x for x in dict.fromkeys(rows["group"].astype(str)) if x.startswith("ct") or x == "bot"]
        corruptions = [x for x in dict.fromkeys(rows["corruption"].astype(str)) if x not in ("shuffle", "replace")]
        columns = [*thoughts, *(["all"] if (rows["group"] == "all").any() else [])]
        grid = rows.pivot_table(index="corruption", columns="group", values="importance", sort=False)
        page.percent_map("corruption", result, grid.reindex(index=corruptions, columns=columns), corruptions, columns)
        shown = "mean" if "mean" in corruptions else corruptions[0]
        of_thought = rows[rows["corruption"] == shown].drop_duplicates("group").set_index("group").reindex(thoughts)
        series.append((result.look, *triple(of_thought, "importance")))
        page.say(result, "thoughts", **importance_told(page, of_thought))
        page.add("token_ablation", result, rows)
        lost = of_thought.index[of_thought["importance_low"] > TENTH]
        findings.append((result, [cost_of(str(name), {"group": str(name), "corruption": shown}) for name in lost]))
    beside(page, findings)
    page.bars("importance_by_position", thoughts, series, "right answers that turn wrong", top=1.03)


def importance_told(page: Page, rows: Frame) -> dict[str, Any]:
    """Thoughts above a tenth of the answers, below it, not told from it, as their intervals say; n and its power."""
    order = rows.sort_values("importance", ascending=False)
    says = [
        decide(low, high, TENTH) for low, high in zip(order["importance_low"], order["importance_high"], strict=True)
    ]
    named: dict[str, list[str]] = {YES: [], NO: [], UNDECIDED: []}
    for (name, row), answer in zip(order.iterrows(), says, strict=True):
        value = page.text("one", thought=name, importance=row["importance"])
        named.setdefault(answer, []).append(str(name) if answer == NO else value)
    parts = [page.text("none_high") if not named[YES] else ", ".join(named[YES])]
    parts += [page.text("low", names=listed(named[NO]))] if named[NO] else []
    parts += [page.text("undecided", names=listed(named[UNDECIDED]))] if named[UNDECIDED] else []
    n = int(order["n"].max())
    return {"thoughts": "; ".join(parts), "n": n, "smallest": smallest_share(n, TENTH)}


def steering(page: Page) -> None:
    """Accuracy along a direction, beside random ones."""
    directions: list[str] = []
    for result, frame, base in reentries(page, "steer"):
        rows = frame[~frame["control"].str.startswith("self")].assign(strength=frame["strength"].astype(float))
        own = rows[~rows["direction"].astype(str).str.startswith("random")]
        draw_steering(page, result, rows, own, base)
        page.say_of(result.label, steering_told(page, rows, own, base))
        page.add("steering", result, rows)
        directions += [name for name in own["direction"].astype(str).unique() if name not in directions]
    named = [f"“{name}”".replace("correct-wrong", "correct minus wrong") for name in directions]
    page.set(directions=listed(named))


def steering_told(page: Page, rows: Frame, own: Frame, base: Any) -> str:
    """Whether a test tells that any strength helps or harms, beside what random directions do there."""
    best, worst = own.loc[own["accuracy"].idxmax()], own.loc[own["accuracy"].idxmin()]
    helps = bool(told_apart(own)[best.name]) and best["accuracy"] > base["accuracy"]
    harms = bool(told_apart(own)[worst.name]) and worst["accuracy"] < base["accuracy"]
    random = rows.drop(own.index).groupby("strength")["accuracy"].mean()
    values = {"untouched": base["accuracy"], "n": int(best["n"]), "smallest": power(own)}
    parts = [page.text("untouched", **values)]
    for name, row, told in (("best", best, helps), ("worst", worst, harms)):
        text = page.text(name if told else f"no_{name}", accuracy=row["accuracy"], strength=row["strength"])
        there = random.get(row["strength"])
        parts.append(text + (page.text("random", accuracy=there) if there is not None else page.text("no_random")))
    return "; ".join(parts)


def draw_steering(page: Page, result: StoredResult, rows: Frame, own: Frame, base: Any) -> None:
    """Accuracy by strength for each direction, and the range of random ones."""
    ax = page.panel("steering", result, height=2.8)
    random = rows.drop(own.index).groupby("strength")["accuracy"].agg(["mean", "min", "max"]).reset_index()
    random_range(ax, random["strength"], random, "random directions (range)")
    none = pd.DataFrame([{"strength": 0.0} | {f"accuracy{end}": base[f"accuracy{end}"] for end in ENDS}])
    for name, look in looks(list(own["direction"].astype(str).unique())).items():
        of_name = own[own["direction"] == name].groupby("strength", as_index=False).first()
        line = pd.concat([of_name, none], ignore_index=True).sort_values("strength")
        accuracy, low, high = triple(line, "accuracy")
        ax.plot(line["strength"], accuracy, color=look.colour, marker=look.marker, label=name)
        whiskers(ax, line["strength"], accuracy, low, high, colour=look.colour)
    reference(ax, float(base["accuracy"]))
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.set_xlabel(f"strength, in {result.data['strength'].attrs.get('units', STEERING_UNIT)}")
    legend_below(ax)


def gradients(page: Page) -> None:
    """Integrated gradients."""
    series: list[Series] = []
    thoughts: list[str] = []
    for result in page.results("gradients"):
        thoughts = [str(x) for x in result.data["latent"].values]
        columns = {
            f"{name}_{end}": result.data[f"{name}_{end}"].values
            for name in ("attribution", "magnitude")
            for end in ("mean", "low", "high")
        }
        series.append((result.look, *(columns[f"magnitude_{end}"] for end in ("mean", "low", "high"))))
        page.say_of(result.label, attribution_told(page, thoughts, columns, result))
        page.add("integrated_gradients", result, {"latent": thoughts} | columns)
    page.bars("integrated_gradients", thoughts, series, "mean size, logits")


def attribution_told(page: Page, thoughts: list[str], columns: Mapping[str, Any], result: StoredResult) -> str:
    """Thoughts whose attribution is told from 0, and what could have been told of the others."""
    mean, low, high = (columns[f"attribution_{end}"] for end in ("mean", "low", "high"))
    sure = [place for place in np.argsort(-np.abs(mean), kind="stable") if low[place] > 0 or high[place] < 0]
    named = [
        page.text("thought", thought=thoughts[place], value=mean[place], low=low[place], high=high[place])
        for place in sure
    ]
    others = [place for place in range(len(thoughts)) if place not in sure]
    # an interval is 2 x 1.96 standard errors; what is found in 80% of cases lies 1.96 + 0.84 of them from 0
    widths = (high - low)[others]
    smallest = POWER * float(np.nanmax(widths)) if np.isfinite(widths).any() else np.nan
    parts = [page.text("most", thoughts=", ".join(named)) if named else page.text("nothing", smallest=smallest)]
    if others and named:
        parts.append(page.text("null", thoughts=listed([thoughts[place] for place in others]), smallest=smallest))
    n, residual = result.data.sizes["example"], float(result.data.attrs.get("relative_residual", np.nan))
    return "; ".join([*parts, page.text("sum", n=n, residual=residual)])


SECTIONS = (
    Section(slug="position-ablation", write=position_ablation, chapter="report-000", order=30, needs=("ablate",)),
    Section(slug="token-ablation", write=token_ablation, chapter="report-001", order=50, needs=("corrupt",), key=True),
    Section(slug="integrated-gradients", write=gradients, chapter="report-001", order=60, needs=("gradients",)),
    Section(slug="steering", write=steering, chapter="report-004", order=70, needs=("steer",), of="mixed"),
)
