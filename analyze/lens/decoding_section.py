"""Section of how often each position reads out as a number."""

from analyze.beside import last_layer, number
from analyze.drawing import Series
from analyze.labels import thought_labels, up_to_eot
from analyze.lens.command import is_plain
from analyze.page import Page, Section, listed
from analyze.places import draw_places
from analyze.tables import triple

COLUMNS = (
    "n", "number_share", "number_share_low", "number_share_high", "result_share", "control_share", "gold_first_share"
)  # fmt: skip


def number_decoding(page: Page) -> None:
    """How often each position reads out as a number."""
    series: list[Series] = []
    longest: list[str] = []
    for result in page.results("lens", is_plain):
        lens = up_to_eot(result.data)
        page.percent_map("number_decoding", result, lens["number_share"].transpose("layer", "position"))
        final = lens.isel(layer=-1)
        positions, thoughts = [str(x) for x in lens["position"].values], thought_labels(lens)
        numbers = final["number_share"].sel(position=thoughts)
        surely = final["number_share_low"].sel(position=thoughts) if "number_share_low" in final else numbers
        # a majority whose interval says so
        often, never = ([str(x) for x in numbers["position"].values[told]] for told in (surely > 0.5, numbers <= 0.05))
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
