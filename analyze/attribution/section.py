"""Section of direct logit attribution."""

import numpy as np

from analyze.page import Page, Section


def attribution(page: Page) -> None:
    """Contributions of every part at the thoughts and around them."""
    for result in page.results("attribution"):
        data = result.data
        positions = [str(label) for label in data["position"].values if not str(label).startswith("q-")]
        parts = [str(part) for part in data["part"].values]
        values = data["contribution"].sel(position=positions).transpose("part", "position")
        page.map("attribution", result, values.values, parts, positions, text="{:.1f}")
        sentences = []
        for position in [label for label in positions if label == "bot" or label.startswith("ct")]:
            column = values.sel(position=position)
            largest = int(np.nanargmax(column.values))
            sentences.append(
                page.text(
                    "largest", position=position, part=parts[largest], value=float(column[largest]),
                    logit=float(data["logit"].sel(position=position)),
                )
            )  # fmt: skip
        page.say_of(result.label, "; ".join(sentences))
        names = ["contribution", "contribution_low", "contribution_high"]
        page.add("attribution", result, data[names].to_dataframe().reset_index())


SECTIONS = (Section(slug="attribution", write=attribution, needs=("attribution",), of="parts", order=60),)
