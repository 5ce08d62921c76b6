"""Section of thoughts that go over between right and wrong answers."""

import xarray as xr

from analyze.drawing import HEAT, HEAT_NEGATIVE, Look, bars
from analyze.effects.conditions import place_name, places_of
from analyze.effects.shown import LEVEL, reentries
from analyze.page import Page, Section, listed
from analyze.tables import ENDS, Frame, as_picked, rows_with, triple
from schemas.picked import Pick

GIVERS = {
    "right": Look(label="with a right answer's thoughts", colour=HEAT),
    "wrong": Look(label="with a wrong answer's thoughts", colour=HEAT_NEGATIVE, hatch="////"),
}


def crossing(page: Page) -> None:
    """Thoughts of rightly answered problems in wrongly answered ones, and the reverse."""
    for result, _, _ in reentries(page, "cross"):
        rows = crossed_rows(result.data)
        place = places_of(rows)[0]
        texts = []
        for receiver in ("wrong", "right"):
            some = rows_with(rows, receiver=receiver)
            allowed = as_picked(some, Pick(len(rows), by="any"), "difference")
            shown, title = rows_with(some, place=place), f"answered {receiver}ly, {place}"
            with page.shares("crossing", result, low=0.0, legend=0.1, title=title) as ax:
                bars(ax, list(shown["group"]), [(look, *triple(shown, giver)) for giver, look in GIVERS.items()])
            apart, widest = allowed[some["p_holm"] < LEVEL], allowed.loc[some["difference"].abs().idxmax()]
            values = {"n": int(widest["n"]), "tests": len(some), "receiver": f"{receiver}ly"}
            values |= {"differences": listed(page.texts("one", apart)), "largest": page.text("one", **dict(widest))}
            texts.append(page.text("some" if len(apart) else "none", **values))
        page.say_of(result.label, "; ".join(texts))
        page.add("crossing", result, rows)


def crossed_rows(data: xr.Dataset) -> Frame:
    """What thoughts of each outcome make of problems of each outcome: a row for each place and receiver."""
    names = {"crossed_p_holm": "p_holm"} | {f"crossed_difference{end}": f"difference{end}" for end in ENDS}
    crossed = data[[f"crossed{end}" for end in ENDS]].astype("float64")
    shares = {f"{giver}{end}": crossed[f"crossed{end}"].sel(giver=giver, drop=True) for giver in GIVERS for end in ENDS}
    part = data[[*names, "n_receiver"]].rename(names).rename(n_receiver="n").assign(shares)
    frame = part.to_dataframe().reset_index()
    sites = zip(frame["place_site"], frame["place_layer"], strict=True)
    return frame.assign(place=[place_name(site, layer) for site, layer in sites], group=frame["place_group"])


SECTIONS = (Section(slug="crossing", write=crossing, chapter="report-004", order=65, needs=("cross",), of="mixed"),)
