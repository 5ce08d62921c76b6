"""Sections of how many thoughts can go, and of thoughts that go over between right and wrong answers."""

from typing import Any

from analyze.context import StoredResult
from analyze.drawing import (
    HEAT,
    HEAT_NEGATIVE,
    Look,
    as_percent,
    bars,
    faint_grid,
    legend_below,
    looks,
    reference,
    whiskers,
)
from analyze.effects.conditions import Frame, by_count, place_name, places_of
from analyze.effects.shown import LEVEL, differing, paired, reentries, triple
from analyze.page import Page, Section, listed

GIVERS = {
    "right": Look(label="with thoughts of rightly answered problems", colour=HEAT),
    "wrong": Look(label="with thoughts of wrongly answered problems", colour=HEAT_NEGATIVE, hatch="////"),
}


def thoughts_spared(page: Page) -> None:
    """How many thoughts can be taken away before accuracy falls."""
    for result, frame, base in reentries(page, "ablate", by_count):
        rows = frame[(frame["n_thought"] > 0) & (frame["control"] == "")]
        operation = "mean" if (rows["operation"] == "mean").any() else str(rows["operation"].iloc[0])
        place = places_of(rows)[0]
        shown = rows[(rows["operation"] == operation) & (rows["place"] == place)].sort_values("n_thought")
        draw_counts(page, result, shown, float(base["accuracy"]), f"{operation}, {place}")
        page.say_of(result.label, told_counts(page, result, shown, base, operation, place))
        page.add("thoughts_spared", result, rows)
        page.add("next", result, paired(result.data, "n_thought"))
        page.add("layers", result, paired(result.data, "layer"))


def told_counts(page: Page, result: StoredResult, rows: Frame, base: Any, operation: str, place: str) -> str:
    """How many of each series can go, what is left without any, and between which numbers one more tells."""
    series = dict(list(rows.groupby("group", sort=False)))
    most = int(rows["n_thought"].max())
    without = rows[rows["n_thought"] == most].iloc[0]
    values = {
        "untouched": base["accuracy"], "n": int(without["n"]), "most": most, "operation": operation, "place": place,
        "accuracy": without["accuracy"], "low": without["accuracy_low"], "high": without["accuracy_high"],
    }  # fmt: skip
    if all(line["n_spared"].iloc[0] == most for line in series.values()):
        return page.text("none_needed", **values)
    parts = [page.text(f"of_{str(group).split()[0]}", n=line["n_spared"].iloc[0]) for group, line in series.items()]
    steps = paired(result.data, "n_thought")
    at_place = steps[(steps["place"] == place) & (steps["operation"] == operation) & (steps["group"] == "first")]
    pairs = differing(at_place)
    after = page.text("next", pairs=listed(pairs)) if pairs else page.text("no_next")
    return page.text("some_needed", spared=listed(parts), **values) + after


def draw_counts(page: Page, result: StoredResult, rows: Frame, base: float, title: str) -> None:
    """Accuracy by how many thoughts are gone, for the first, the last and any."""
    ax = page.panel("thoughts_spared", result, height=2.8)
    for group, look in looks(list(dict.fromkeys(rows["group"]))).items():
        line = rows[rows["group"] == group]
        accuracy, low, high = triple(line, "accuracy")
        ax.plot(line["n_thought"], accuracy, **(look.line() | {"label": f"{group} N"}))
        whiskers(ax, line["n_thought"].to_numpy(dtype=float), accuracy, low, high, colour=look.colour)
    reference(ax, base)
    ax.set_ylim(-0.02, 1.03)
    as_percent(ax)
    faint_grid(ax)
    ax.set_xlabel("thoughts taken away")
    ax.set_title(f"{result.label}, {title}")
    legend_below(ax)


def crossing(page: Page) -> None:
    """Thoughts of rightly answered problems in wrongly answered ones, and the reverse."""
    for result, _, _ in reentries(page, "cross"):
        rows = crossed_rows(result)
        place = places_of(rows)[0]
        told = []
        for receiver in ("wrong", "right"):
            of_receiver = rows[rows["receiver"] == receiver]
            draw_crossed(page, result, of_receiver[of_receiver["place"] == place], receiver, place)
            apart = of_receiver[of_receiver["p_holm"] < LEVEL]
            widest = of_receiver.loc[of_receiver["difference"].abs().idxmax()]
            values = {"n": int(widest["n"]), "tests": len(of_receiver), "receiver": f"{receiver}ly"}
            if len(apart):
                parts = [page.text("one", **row) for row in apart.to_dict("records")]
                told.append(page.text("some", differences=listed(parts), **values))
            else:
                told.append(page.text("none", largest=page.text("one", **dict(widest)), **values))
        page.say_of(result.label, "; ".join(told))
        page.add("crossing", result, rows)


def crossed_rows(result: StoredResult) -> Frame:
    """What thoughts of each outcome make of problems of each outcome: a row for each place and receiver."""
    data = result.data
    names = {"difference": "crossed_difference", "p_holm": "crossed_p_holm"}
    names |= {f"difference{end}": f"crossed_difference{end}" for end in ("_low", "_high")}
    frame = (
        data[[*names.values()]].to_dataframe().reset_index().rename(columns={new: old for old, new in names.items()})
    )
    frame["n"] = [int(data["n_receiver"].sel(receiver=receiver)) for receiver in frame["receiver"]]
    sites, layers = frame["place_site"], frame["place_layer"]
    number, frame["group"] = frame["place"].copy(), frame["place_group"]
    frame["place"] = [place_name(site, layer) for site, layer in zip(sites, layers, strict=True)]
    for giver in GIVERS:
        for end in ("", "_low", "_high"):
            value = data[f"crossed{end}"].sel(giver=giver)
            cells = zip(number, frame["receiver"], strict=True)
            frame[f"{giver}{end}"] = [
                float(value.isel(place=int(place)).sel(receiver=receiver)) for place, receiver in cells
            ]
    return frame


def draw_crossed(page: Page, result: StoredResult, rows: Frame, receiver: str, place: str) -> None:
    """Right answers of the problems of one outcome, by which thought is replaced and by whose."""
    ax = page.panel("crossing", result, height=2.8)
    bars(ax, list(rows["group"]), [(look, *triple(rows, giver)) for giver, look in GIVERS.items()])
    ax.set_ylim(0, 1.03)
    as_percent(ax)
    ax.set_title(f"{result.label}, answered {receiver}ly, {place}")
    legend_below(ax, 0.1)


SECTIONS = (
    Section(
        slug="thoughts-spared",
        write=thoughts_spared,
        chapter="report-000",
        order=35,
        needs=("ablate --sets counts",),
    ),
    Section(slug="crossing", write=crossing, chapter="report-004", order=65, needs=("cross",), of="mixed"),
)
