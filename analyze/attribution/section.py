"""Section of direct logit attribution."""

import numpy as np
import xarray as xr

from analyze.page import Page, Section, listed


def attribution(page: Page) -> None:
    """Contributions of every part at the thoughts and around them."""
    results = page.results("attribution")
    most = max(float(np.nanmax(np.abs(result.data["contribution"].values))) for result in results)
    for result in results:
        data = result.data
        positions = [str(label) for label in data["position"].values if not str(label).startswith("q-")]
        parts = [str(part) for part in data["part"].values]
        values = data["contribution"].sel(position=positions).transpose("part", "position")
        page.map("attribution", result, values.values, parts, positions, high=most, text="{:.1f}")
        sentences = []
        for position in [label for label in positions if label == "bot" or label.startswith("ct")]:
            sentences.append(position_sentence(page, data.sel(position=position)))
        page.say_of(result.label, "; ".join(sentences))
        names = ["contribution", "contribution_low", "contribution_high"]
        page.add("attribution", result, data[names].to_dataframe().reset_index())


def position_sentence(page: Page, data: xr.Dataset) -> str:
    """The part that adds most to what a position reads as, where one is told to add anything."""
    names = ("contribution", "contribution_low", "contribution_high")
    value, low, high = (np.nan_to_num(data[name].values) for name in names)
    where = {"position": data["position"].item(), "logit": float(data["logit"]), "n": int(data["n"])}
    most = int(value.argmax())
    if not low[most] > 0:
        return page.text("none", **where)
    near = [str(part) for part, top in zip(data["part"].values, high, strict=True) if top >= low[most]]
    near.remove(str(data["part"].values[most]))
    return page.text(
        "near" if near else "largest", part=data["part"].values[most], value=value[most], low=low[most],
        high=high[most], near=listed(near), **where,
    )  # fmt: skip


SECTIONS = (Section(slug="attribution", write=attribution, needs=("attribution",), of="parts", order=60),)
