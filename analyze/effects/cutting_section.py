"""Sections of heads and attention edges cut."""

import numpy as np
import pandas as pd
from scipy import stats

from analyze.beside import beside
from analyze.context import StoredResult
from analyze.drawing import as_percent, bars_across, faint_grid, legend_below, random_range, reference, whiskers
from analyze.effects.conditions import Frame
from analyze.effects.shown import cost_of, power, reentries, told_apart, triple
from analyze.heads.command import by_thoughts
from analyze.page import Page, Section, listed
from schemas.statistics import smallest_correlation

LEAST_PROBLEMS = 10
"""Problems of which a share is told."""
LEAST_HEADS = 4
"""Heads of which a rank correlation is told."""
CUT = {"zero": "zeroed", "mean": "set to the mean", "resample": "exchanged for another problem's"}
"""What was done to heads, in words, by operation."""


def how_cut(result: StoredResult) -> str:
    """What was done to the heads of a result, in words."""
    return CUT[str(result.stored.spec.get("operation", "zero"))]


def head_ablation(page: Page) -> None:
    """Heads alone, the top together, random ones beside them."""
    results = reentries(page, "ablate_heads")
    findings = []
    page.set(cut=listed(list(dict.fromkeys(how_cut(result) for result, _, _ in results))))
    for result, frame, base in results:
        group = frame["group"].astype(str)
        # the coordinate n, how many heads, gives way to the number of examples; the group's name has both
        frame["count"] = pd.to_numeric(group.str.extract(r"^(?:top|random) (\d+)")[0], errors="coerce")
        changed, by_chance = frame["control"] == "", group.str.startswith("random")
        top = frame[group.str.startswith("top") & changed].drop_duplicates("count").sort_values("count")
        random = frame[by_chance].groupby("count")["accuracy"].agg(["mean", "min", "max"]).reset_index()
        draw_top(page, result, top, random, float(base["accuracy"]))
        texts = []
        alone = frame[group.str.fullmatch(r"L\d+H\d+") & changed]
        if len(alone):
            draw_alone(page, result, alone)
            texts.append(alone_told(page, alone))
            texts += rank_told(page, result, alone)
            needed = alone[told_apart(alone)].sort_values("drop", ascending=False)
            findings.append((result, [cost_of(str(name), {"group": str(name)}) for name in needed["group"].head(3)]))
        if len(top):
            some = top.iloc[min(1, len(top) - 1)]
            same = random[random["count"] == some["count"]]
            drawn = [page.text("random", count=some["count"], accuracy=mean) for mean in same["mean"]]
            texts.append(page.text("top", count=some["count"], accuracy=some["accuracy"]) + "".join(drawn))
        page.say_of(result.label, "; ".join(texts))
        page.add("head_ablation", result, frame[changed | by_chance])
    beside(page, findings)


def alone_told(page: Page, alone: Frame) -> str:
    """The head that costs most, if a test tells that any costs answers; else what could have been told."""
    worst = alone.loc[alone["drop"].idxmax()]
    costly = alone[told_apart(alone) & (alone["drop"] > 0)]
    values = {"n": int(worst["n"]), "smallest": power(alone), "n_head": len(alone), "needed": len(costly)}
    return page.text("alone" if len(costly) else "none", group=worst["group"], drop=worst["drop"], **values)


def rank_told(page: Page, result: StoredResult, alone: Frame) -> list[str]:
    """How the score of heads goes with what each costs alone, where their scores are stored and both vary."""
    model = result.run.partition("/")[0]
    scores = [one.data for one in page.results("heads", by_thoughts, optional=True) if one.run.startswith(f"{model}/")]
    if not scores or len(alone) < LEAST_HEADS:
        return []
    composite = [float(scores[0]["composite"].sel(layer=row.layer, head=row.head)) for row in alone.itertuples()]
    if len(set(composite)) < 2 or alone["drop"].nunique() < 2:
        return []
    rank = float(stats.spearmanr(composite, alone["drop"]).statistic)
    return [page.text("rank", rank=rank, n_head=len(alone), smallest=smallest_correlation(len(alone)))]


def draw_top(page: Page, result: StoredResult, top: Frame, random: Frame, base: float) -> None:
    """Accuracy without the highest-ranked heads, and without as many at random."""
    ax = page.panel("head_ablation", result, height=2.8)
    n = top["count"].to_numpy(dtype=float)
    ax.plot(n, top["accuracy"], **(result.look.line() | {"label": "highest-ranked heads"}))
    accuracy, low, high = triple(top, "accuracy")
    whiskers(ax, n, accuracy, low, high, colour=result.look.colour)
    random_range(ax, random["count"], random, "as many at random (range)")
    reference(ax, base)
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.set_xlabel(f"heads {how_cut(result)} together")
    legend_below(ax)


def draw_alone(page: Page, result: StoredResult, alone: Frame) -> None:
    """Accuracy lost without each head."""
    grid = alone.pivot_table(index="layer", columns="head", values="drop")
    layers, heads = [f"layer {x}" for x in grid.index], [f"H{int(x)}" for x in grid.columns]
    high = max(5.0, 100 * float(np.nanmax(np.abs(grid.to_numpy()))))
    text = "{:.0f}" if len(heads) <= 12 else None
    page.percent_map("head_ablation_alone", result, grid, layers, heads, high=high, text=text)


def edge_ablation(page: Page) -> None:
    """Attention edges cut or forced."""
    findings = []
    for result, frame, base in reentries(page, "edges"):
        rows = frame[frame["control"].isin(["", "random edges"])].drop_duplicates("group")
        single = rows[~rows["group"].astype(str).str.contains("+", regex=False)]
        ax = page.panel("edge_ablation", result, height=0.8 + 0.25 * len(single))
        bars_across(ax, list(single["group"].astype(str)), *triple(single, "accuracy"), **result.look.bar())
        reference(ax, float(base["accuracy"]), "x")
        ax.set_xlim(0, 1.03)
        ax.tick_params(axis="y", length=0)
        accuracy = rows.set_index("group")["accuracy"]
        names = ("hub cut", "sequence cut", "thoughts cut from answer", "question cut from answer")
        cuts = [page.text("one", name=name, accuracy=accuracy[name]) for name in names if name in accuracy]
        hub = page.text("hub", hub=result.data.attrs["hub"]) if "hub" in result.data.attrs else ""
        hub += by_outcome(page, result)
        shown = rows[rows["group"].isin(names)]
        same = list(shown.loc[~told_apart(shown), "group"])
        hub += page.text("same", names=listed(same), smallest=power(rows)) if same else ""
        page.say(result, "cut", untouched=base["accuracy"], n=int(base["n"]), cuts=", ".join(cuts), hub=hub)
        page.add("edge_ablation", result, rows)
        findings.append((result, [cost_of(str(name), {"group": str(name)}) for name in shown["group"]]))
    beside(page, findings)


def by_outcome(page: Page, result: StoredResult) -> str:
    """What cutting the hub does to problems answered rightly and wrongly before, where there are both."""
    data = result.data
    if "stratum" not in data.dims or "wrong" not in data["stratum"].values:
        return ""
    cut = data.isel(condition=data["group"].values.tolist().index("hub cut"))
    values = {stratum: float(cut["accuracy"].sel(stratum=stratum)) for stratum in ("right", "wrong")}
    counts = {f"n_{stratum}": int(cut["n"].sel(stratum=stratum)) for stratum in ("right", "wrong")}
    return page.text("wrong", **values, **counts) if min(counts.values()) >= LEAST_PROBLEMS else ""


SECTIONS = (
    Section(
        slug="head-ablation",
        write=head_ablation,
        chapter="report-004",
        order=50,
        needs=("heads", "ablate_heads"),
    ),
    Section(slug="edge-ablation", write=edge_ablation, chapter="report-004", order=60, needs=("edges",)),
)
