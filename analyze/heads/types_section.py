"""Section of what the best heads do and where they lie."""

from collections.abc import Mapping

from analyze.drawing import bars, legend_above
from analyze.heads.figures import SHORT_TYPES
from analyze.heads.hubs_section import summaries
from analyze.page import Page, Section, listed
from analyze.statistics import is_majority


def types_and_layers(page: Page) -> None:
    """What the best heads do and where they lie."""
    results = summaries(page)
    for dim, title in (("type", "what they do"), ("band", "where they lie")):
        if any(f"{dim}_count" not in one.data for one in results):
            continue
        groups = [str(x) for x in results[0].data[dim].values]
        counts = [one.data[f"{dim}_count"].sel({dim: groups}).values.astype(int) for one in results]
        ax = page.panel("top_heads", dim, height=2.6)
        series = [(one.look, heads, None, None) for one, heads in zip(results, counts, strict=True)]
        bars(ax, [SHORT_TYPES.get(group, group) for group in groups], series)
        ax.set(xlabel=f"top heads: {title}", ylabel="heads")
        ax.yaxis.get_major_locator().set_params(integer=True)
        if dim == "type":
            legend_above(ax)
        for one, heads in zip(results, counts, strict=True):
            page.add("types_and_layers", one, {"group": dim, "value": groups, "heads": heads})
    for one in results:
        types, bands = (one.data[f"{dim}_count"].to_series().astype(int).to_dict() for dim in ("type", "band"))
        values = {
            "n": sum(types.values()),
            "bands": counted({str(name): n for name, n in bands.items()}),
            "sure": int(one.data.get("type_sure", 0)),
        }
        values["types"] = counted({SHORT_TYPES.get(str(name), str(name)): n for name, n in types.items()})
        page.say(one, "counts_sure" if "type_sure" in one.data else "counts", **values)


def counted(counts: Mapping[str, int]) -> str:
    """Counts in words, the largest first; it is called most only where so few heads say so."""
    n = sum(counts.values())
    there = sorted(((count, name) for name, count in counts.items() if count), key=lambda one: -one[0])
    if there and is_majority(there[0][0], n):
        return f"most {there[0][1]} ({there[0][0]})"
    return listed([f"{count} {name}" for count, name in there]) or "none"


SECTIONS = (Section(slug="types-and-layers", write=types_and_layers, chapter="report-004", order=40, needs=("heads",)),)
