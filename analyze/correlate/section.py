"""Section on attention beside importance."""

from typing import Any

import numpy as np

from analyze.correlate.choice import HeldOut, held_out_layer
from analyze.correlate.command import measure_of
from analyze.correlate.figures import plot_correlations, plot_means
from analyze.correlate.rows import KINDS, correlation_rows
from analyze.page import Page, Section
from schemas.statistics import smallest_correlation


def attention_and_importance(page: Page) -> None:
    """Correlation of attention with importance."""
    # importance of single positions where there is any
    of_positions = page.results("correlate", lambda spec: ":" in str(spec.get("importance", "")), optional=True)
    results = of_positions or page.results("correlate")
    spec = results[0].stored.spec
    page.set(query=results[0].data.attrs.get("query", spec.get("query", "eot")), measure=measure_of(spec))
    for result in results:
        data = result.data
        kinds = [kind for kind in KINDS if np.isfinite(data[f"{kind}_r"].values).any()]
        if kinds:
            plot_correlations(data, kinds, page.panel("correlation", result, height=2.7))
        title = f"layer {int(data['layer'][-1])}"
        ax = page.panel("attention_against_importance", result, height=2.7, title=title)
        plot_means(data.isel(layer=-1), result.look, ax)
        ax.set_ylabel(f"mean importance\n{measure_of(result.stored.spec)}", fontsize=8)
        strict = next((kind for kind in ("two_way", "partial") if kind in kinds), "pooled")
        name, values = sentence(held_out_layer(data, "pooled"), held_out_layer(data, strict), strict)
        page.say(result, name, **values)
        page.add("attention_importance", result, correlation_rows(data, kinds))


def sentence(pooled: HeldOut | None, strict: HeldOut | None, kind: str) -> tuple[str, dict[str, Any]]:
    """The line that fits, and its values: an interval that holds 0 is a null, with what could have been shown."""
    if pooled is None or strict is None or np.isnan(pooled.r):
        return "nothing", {}
    values = {"pooled": pooled.r, "pooled_low": pooled.low, "pooled_high": pooled.high, "layer": pooled.layer}
    values |= {"r": strict.r, "low": strict.low, "high": strict.high, "n": strict.n}
    values["smallest"] = smallest_correlation(strict.n)
    return kind if strict.low > 0 or strict.high < 0 else f"{kind}_null", values


SECTIONS = (
    Section(
        slug="attention-importance", write=attention_and_importance, chapter="report-003", order=20,
        needs=("corrupt", "correlate"), key=True,
    ),
)  # fmt: skip
