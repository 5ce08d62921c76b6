"""Section of heads cut."""

import numpy as np
import pandas as pd

from analyze.context import StoredResult
from analyze.curves import curve, random_curve
from analyze.effects.shown import changed, differs, power, reentries, score_rank
from analyze.page import Page, Section, listed
from analyze.tables import Frame, triple
from schemas.picked import Pick

CUT = {"zero": "zeroed", "mean": "set to the mean", "resample": "exchanged for another problem's"}
"""What was done to heads, in words, by operation."""


def head_ablation(page: Page) -> None:
    """Heads alone, the top together, random ones beside them."""
    cuts: dict[str, None] = {}
    for result, frame, base in reentries(page, "ablate_heads"):
        cut = CUT[str(result.stored.spec.get("operation", "zero"))]
        cuts[cut] = None
        group = frame["group"].astype(str)
        # the coordinate n, how many heads, gives way to the number of examples; the group's name has both
        frame["count"] = pd.to_numeric(group.str.extract(r"^(?:top|random) (\d+)")[0], errors="coerce")
        own, random = frame["control"] == "", frame[group.str.startswith("random")]
        top = frame[group.str.startswith("top") & own].drop_duplicates("count").sort_values("count")
        with page.shares("head_ablation", result, f"heads {cut} together", base=base["accuracy"]) as ax:
            curve(ax, result.look, top["count"].astype(float), triple(top, "accuracy"), label="highest-ranked heads")
            random_curve(ax, random, "count", "accuracy", "as many at random (range)")
        alone = frame[group.str.fullmatch(r"L\d+H\d+") & own]
        texts = alone_sentences(page, result, alone) if len(alone) else []
        if len(top):
            some = top.iloc[min(1, len(top) - 1)]
            same = random["accuracy"][random["count"] == some["count"]]
            drawn = page.text("random", count=some["count"], accuracy=same.mean()) if len(same) else ""
            texts.append(page.text("top", count=some["count"], accuracy=some["accuracy"]) + drawn)
        page.say_of(result.label, "; ".join(texts))
        page.add("head_ablation", result, frame[own | group.str.startswith("random")])
    page.set(cut=listed([*cuts]))


def alone_sentences(page: Page, result: StoredResult, alone: Frame) -> list[str]:
    """The head that costs most, if a test shows that any costs answers, else what could have been shown; its map."""
    grid = alone.pivot_table(index="layer", columns="head", values="drop").rename(columns=int)
    high, text = max(5.0, 100 * float(np.nanmax(np.abs(grid)))), "{:.0f}" if grid.shape[1] <= 12 else None
    page.percent_map("head_ablation_alone", result, grid, high=high, text=text)
    worst, needed = alone.loc[alone["drop"].idxmax()], alone[differs(alone)].sort_values("drop", ascending=False)
    pick = Pick(len(alone), share=True)
    page.find(result, *[changed(str(name), pick=pick, group=name) for name in needed["group"].head(3)])
    costly = int((needed["drop"] > 0).sum())
    values = {"n": int(worst["n"]), "smallest": power(alone), "n_head": len(alone), "needed": costly}
    texts = [page.text("alone" if costly else "none", group=worst["group"], drop=worst["drop"], **values)]
    return [*texts, *score_rank(page, result, alone)]


SECTIONS = (
    Section(slug="head-ablation", write=head_ablation, chapter="report-004", order=50, needs=("heads", "ablate_heads")),
)
