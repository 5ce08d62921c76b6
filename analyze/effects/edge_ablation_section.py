"""Section of attention edges cut."""

import xarray as xr

from analyze.drawing import bars_across, reference
from analyze.effects.shown import changed, differs, power, reentries
from analyze.page import Page, Section, listed
from analyze.tables import triple

LEAST_PROBLEMS = 10
"""Fewest problems of which a share is reported."""
NAMED = ("hub cut", "sequence cut", "thoughts cut from answer", "question cut from answer")


def edge_ablation(page: Page) -> None:
    """Attention edges cut or forced."""
    for result, frame, base in reentries(page, "edges"):
        rows = frame[frame["control"].isin(["", "random edges"])].drop_duplicates("group")
        single = rows[~rows["group"].astype(str).str.contains("+", regex=False)]
        ax = page.panel("edge_ablation", result, height=0.8 + 0.25 * len(single))
        bars_across(ax, list(single["group"].astype(str)), *triple(single, "accuracy"), **result.look.bar())
        reference(ax, float(base["accuracy"]), "x")
        ax.set_xlim(0, 1.03)
        ax.tick_params(axis="y", length=0)
        accuracy = rows.set_index("group")["accuracy"]
        cuts = [page.text("one", name=name, accuracy=accuracy[name]) for name in NAMED if name in accuracy]
        hub = page.text("hub", hub=result.data.attrs["hub"]) if "hub" in result.data.attrs else ""
        hub += by_outcome(page, result.data)
        shown = rows[rows["group"].isin(NAMED)]
        same = list(shown.loc[~differs(shown), "group"])
        hub += page.text("same", names=listed(same), smallest=power(rows)) if same else ""
        page.say(result, "cut", untouched=base["accuracy"], n=int(base["n"]), cuts=", ".join(cuts), hub=hub)
        page.add("edge_ablation", result, rows)
        page.find(result, *[changed(str(name), group=name) for name in shown["group"]])


def by_outcome(page: Page, data: xr.Dataset) -> str:
    """What cutting the hub does to problems answered rightly and wrongly before, where there are both."""
    if "stratum" not in data.dims or "wrong" not in data["stratum"].values:
        return ""
    cut = data.isel(condition=data["group"].values.tolist().index("hub cut"))
    values = {stratum: float(cut["accuracy"].sel(stratum=stratum)) for stratum in ("right", "wrong")}
    counts = {f"n_{stratum}": int(cut["n"].sel(stratum=stratum)) for stratum in ("right", "wrong")}
    return page.text("wrong", **values, **counts) if min(counts.values()) >= LEAST_PROBLEMS else ""


SECTIONS = (Section(slug="edge-ablation", write=edge_ablation, chapter="report-004", order=60, needs=("edges",)),)
