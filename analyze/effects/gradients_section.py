"""Section of integrated gradients."""

from typing import Any

import numpy as np

from analyze.context import StoredResult
from analyze.drawing import Series
from analyze.page import Page, Section, listed
from schemas.picked import Pick, of_picked

POWER = 0.84 / (2 * 1.96)
"""How far beyond the ends of an interval an effect must lie to be found in 80% of cases, in widths of the 95% one."""
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
        page.say_of(result.label, sentence(page, thoughts, columns, result))
        page.add("integrated_gradients", result, {"latent": thoughts} | columns)
    page.bars("integrated_gradients", thoughts, series, "mean size, logits")


def sentence(page: Page, thoughts: list[str], columns: dict[str, Any], result: StoredResult) -> str:
    """Thoughts whose attribution differs from 0, and what could have been shown of the others."""
    own = np.array([columns[f"attribution_{end}"] for end in ENDS])
    mean, low, high = np.transpose([of_picked(figure, Pick(len(thoughts), by="any")) for figure in own.T])
    sure = [place for place in np.argsort(-np.abs(mean), kind="stable") if low[place] > 0 or high[place] < 0]
    named = page.texts(
        "thought", [{"thought": thoughts[i], "value": mean[i], "low": low[i], "high": high[i]} for i in sure]
    )
    others = [place for place in range(len(thoughts)) if place not in sure]
    found = ((high - low) / 2 + POWER * (own[2] - own[1]))[others]
    smallest = float(np.nanmax(found)) if np.isfinite(found).any() else np.nan
    parts = [page.text("most", thoughts=", ".join(named)) if named else page.text("nothing", smallest=smallest)]
    if others and named:
        parts.append(page.text("null", thoughts=listed([thoughts[place] for place in others]), smallest=smallest))
    n, residual = result.data.sizes["example"], float(result.data.attrs.get("relative_residual", np.nan))
    return "; ".join([*parts, page.text("sum", n=n, residual=residual)])


SECTIONS = (
    Section(slug="integrated-gradients", write=gradients, chapter="report-001", order=60, needs=("gradients",)),
)
