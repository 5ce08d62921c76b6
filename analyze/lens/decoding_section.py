"""Section of how often each position reads out as a number."""

import pandas as pd

from analyze.beside import last_layer, number
from analyze.drawing import Series
from analyze.labels import thought_labels, up_to_eot
from analyze.lens.command import is_plain
from analyze.page import Page, Section, listed
from analyze.places import draw_places
from analyze.tables import as_picked, triple
from schemas.picked import Pick

COLUMNS = (
    "n", "number_share", "number_share_low", "number_share_high", "result_share", "control_share", "gold_first_share"
)  # fmt: skip
SHARE = COLUMNS[1:4]
MOST, NEXT_TO_NONE = 0.5, 0.1
"""What the intervals of all thoughts together must lie above, or below, for a thought to be named."""


def number_decoding(page: Page) -> None:
    """How often each position reads out as a number."""
    series: list[Series] = []
    longest: list[str] = []
    for result in page.results("lens", is_plain):
        lens = up_to_eot(result.data)
        page.percent_map("number_decoding", result, lens["number_share"].transpose("layer", "position"))
        final = lens.isel(layer=-1)
        positions, thoughts = [str(x) for x in lens["position"].values], thought_labels(lens)
        shares = pd.DataFrame({name: final[name].sel(position=thoughts).values for name in SHARE}, index=thoughts)
        shares = as_picked(shares, Pick(len(thoughts), "any", share=True), *SHARE)
        often, never = ([*shares.index[told]] for told in (shares[SHARE[1]] > MOST, shares[SHARE[2]] < NEXT_TO_NONE))
        page.say(result, "some_never" if never else "most", often=listed(often) or "no thought", never=listed(never))
        page.find(result, *[number(x, "number_share", read=last_layer, position=x) for x in often])
        values = {name: final[name].values for name in COLUMNS}
        page.add("number_decoding", result, {"position": positions, "layer": int(final["layer"])} | values)
        series.append((result.look, *triple(final, "number_share")))
        longest = max(longest, positions, key=len)
    if thoughts := [label for label in longest if label.startswith("ct")]:
        draw_places(page.panel("places", wide=True, height=1.9), thoughts)
    page.bars("position_number_frequency", longest, series, "decodes to a number", top=1.02)
    for one in page.results("lens_tests", is_plain, optional=True):
        q, p = (float(one.data[name][-1]) for name in ("q", "q_p_adjusted"))
        page.join("tests", page.text("test", label=one.label, q=q, p=p))


SECTIONS = (Section(slug="number-decoding", write=number_decoding, chapter="report-000", order=10, needs=("lens",)),)
