"""Section of integrated gradients."""

from typing import Any

import numpy as np

from analyze.context import StoredResult
from analyze.drawing import Series
from analyze.page import Page, Section, listed

POWER = (1.96 + 0.84) / (2 * 1.96)
"""Effect that is found in 80% of cases, in widths of its 95% interval, which is 2 x 1.96 standard errors wide."""
ENDS = ("mean", "low", "high")


def gradients(page: Page) -> None:
    """Integrated gradients."""
    series: list[Series] = []
    thoughts: list[str] = []
    for result in page.results("gradients"):
        thoughts = [str(x) for x in result.data["latent"].values]
        names = [f"{name}_{end}" for name in ("attribution", "magnitude") for end in ENDS]
        columns = {name: result.data[name].values for name in names}
        series.append((result.look, *(columns[f"magnitude_{end}"] for end in ENDS)))
        page.say_of(result.label, told(page, thoughts, columns, result))
        page.add("integrated_gradients", result, {"latent": thoughts} | columns)
    page.bars("integrated_gradients", thoughts, series, "mean size, logits")


def told(page: Page, thoughts: list[str], columns: dict[str, Any], result: StoredResult) -> str:
    """Thoughts whose attribution is told from 0, and what could have been told of the others."""
    mean, low, high = (columns[f"attribution_{end}"] for end in ENDS)
    sure = [place for place in np.argsort(-np.abs(mean), kind="stable") if low[place] > 0 or high[place] < 0]
    named = page.texts(
        "thought", [{"thought": thoughts[i], "value": mean[i], "low": low[i], "high": high[i]} for i in sure]
    )
    others = [place for place in range(len(thoughts)) if place not in sure]
    widths = (high - low)[others]
    smallest = POWER * float(np.nanmax(widths)) if np.isfinite(widths).any() else np.nan
    parts = [page.text("most", thoughts=", ".join(named)) if named else page.text("nothing", smallest=smallest)]
    if others and named:
        parts.append(page.text("null", thoughts=listed([thoughts[place] for place in others]), smallest=smallest))
    n, residual = result.data.sizes["example"], float(result.data.attrs.get("relative_residual", np.nan))
    return "; ".join([*parts, page.text("sum", n=n, residual=residual)])


SECTIONS = (
    Section(slug="integrated-gradients", write=gradients, chapter="report-001", order=60, needs=("gradients",)),
)
