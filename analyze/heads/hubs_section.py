"""Section of the thought that the others look at."""

from dataclasses import replace

import numpy as np

from analyze.beside import number, number_at
from analyze.context import StoredResult
from analyze.drawing import INK, bars
from analyze.heads.command import by_thoughts
from analyze.heads.summary import head_summary
from analyze.page import Page, Section
from analyze.tables import ENDS, triple
from schemas.picked import Pick, of_picked


def summaries(page: Page) -> list[StoredResult]:
    """Summary over heads, of every run whose heads were scored."""
    return [replace(one, data=head_summary(one.data)) for one in page.results("heads", by_thoughts)]


def hubs(page: Page) -> None:
    """Which thought the others look at."""
    results = summaries(page)
    highest = 1.05 * max(float(one.data[name].max()) for one in results for name in ("incoming", "expected"))
    for result in results:
        data = result.data
        thoughts = [str(x) for x in data["key_position"].values]
        places = np.arange(len(thoughts))
        ax = page.panel("hubs", result, height=2.5)
        bars(ax, thoughts, [(result.look, *triple(data, "incoming"))])
        ax.set_ylim(0, highest or 1.0)
        ax.hlines(data["expected"].values, places - 0.45, places + 0.45, color=INK, linewidth=1.6)
        ax.set_ylabel("attention received")
        hub = str(data["hub_position"].item())
        pick = Pick(len(thoughts) - 1)  # no thought comes after the last
        ratio, low, high = of_picked(number_at(data, "ratio", key_position=hub), pick)
        sought = "sought_sure" if np.isfinite([low, high]).all() else "sought"
        page.say(result, sought if ratio > 1 else "even", hub=hub, ratio=ratio, low=low, high=high)
        # up to 1, a thought is not sought
        found = number(f"hub at {hub}", "ratio", nothing=1.0, pick=pick, key_position=hub)
        page.find(result, found if ratio > 1 else None)
        names = [f"{name}{end}" for name in ("incoming", "ratio") for end in ENDS] + ["expected"]
        columns = {name: data[name].values for name in names if name in data}
        if "hub_count" in data:
            columns["hub_heads"] = data["hub_count"].sel(key_position=thoughts).values.astype(int)
        page.add("hubs", result, {"thought": thoughts} | columns)


SECTIONS = (Section(slug="hubs", write=hubs, chapter="report-004", order=20, needs=("heads",)),)
