"""Section of direct logit attribution."""

import numpy as np
import xarray as xr

from analyze.page import Page, Section, listed
from schemas.picked import of_largest

NAMES = ["contribution", "contribution_low", "contribution_high"]


def attribution(page: Page) -> None:
    """Contributions of every part at the thoughts and around them."""
    results = page.results("attribution")
    most = max(float(np.nanmax(np.abs(result.data["contribution"].values))) for result in results)
    for result in results:
        behind = [label for label in result.data["position"].values if not str(label).startswith("q-")]
        data = result.data.sel(position=behind)
        page.map("attribution", result, data["contribution"].transpose("part", "position"), high=most, text="{:.1f}")
        told = [label for label in behind if label == "bot" or label.startswith("ct")]
        page.say_of(result.label, "; ".join(position_sentence(page, data.sel(position=label)) for label in told))
        page.add("attribution", result, result.data[NAMES].to_dataframe().reset_index())


def position_sentence(page: Page, data: xr.Dataset) -> str:
    """The part that adds most to what a position reads as, where any is shown to add something."""
    figures = np.nan_to_num([data[name].values for name in NAMES])
    where = {"position": data["position"].item(), "logit": float(data["logit"]), "n": int(data["n"])}
    most, (value, low, high), others = of_largest(figures)
    if not low > 0:
        return page.text("none", **where)
    near = [str(data["part"].values[place]) for place in others]
    return page.text(
        "near" if near else "largest", part=data["part"].values[most], value=value, low=low, high=high,
        near=listed(near), **where,
    )  # fmt: skip


SECTIONS = (Section(slug="attribution", write=attribution, needs=("attribution",), of="parts", order=60),)
