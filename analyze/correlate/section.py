"""Section on attention beside importance."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.context import StoredResult
from analyze.correlate.choice import HeldOut, held_out_layer
from analyze.correlate.command import measure_of
from analyze.drawing import INK, MUTED, PALETTE, faint_grid, legend_below
from analyze.page import Page, Section
from schemas.statistics import smallest_correlation

CORRELATIONS = {
    "pooled": "pooled over problems and positions",
    "within": "within problems",
    "partial": "position accounted for",
    "two_way": "within problems, position accounted for",
}
ENDS = ("", "_low", "_high")


def attention_and_importance(page: Page) -> None:
    """Correlation of attention with importance."""
    # importance of single positions where there is any
    of_positions = page.results("correlate", lambda spec: ":" in str(spec.get("importance", "")), optional=True)
    results = of_positions or page.results("correlate")
    spec = results[0].stored.spec
    page.set(query=results[0].data.attrs.get("query", spec.get("query", "eot")), measure=measure_of(spec))
    for result in results:
        data = result.data
        kinds = [kind for kind in CORRELATIONS if np.isfinite(data[f"{kind}_r"].values).any()]
        if kinds:
            draw_correlations(page, result, kinds)
        draw_means(page, result)
        strict = next((kind for kind in ("two_way", "partial") if kind in kinds), "pooled")
        told = {name: held_out_layer(data, name) for name in ("pooled", strict)}
        name, values = sentence(told["pooled"], told[strict], strict)
        page.say(result, name, **values)
        page.add("attention_importance", result, correlation_rows(data, kinds))


def sentence(pooled: HeldOut | None, strict: HeldOut | None, kind: str) -> tuple[str, dict[str, Any]]:
    """The line that fits, and its values: an interval that holds 0 is a null, told with what could have been seen."""
    if pooled is None or strict is None or np.isnan(pooled.r):
        return "nothing", {}
    values = {"pooled": pooled.r, "pooled_low": pooled.low, "pooled_high": pooled.high, "layer": pooled.layer}
    values |= {"r": strict.r, "low": strict.low, "high": strict.high, "n": strict.n}
    values["smallest"] = smallest_correlation(strict.n)
    return kind if strict.low > 0 or strict.high < 0 else f"{kind}_null", values


def correlation_rows(data: xr.Dataset, kinds: list[str]) -> Any:
    """Every correlation of every layer, the kinds first, then single positions."""
    frames = []
    for order, (name, label) in enumerate((kind, CORRELATIONS[kind]) for kind in kinds):
        columns = {f"r{end}": data[f"{name}_r{end}"].values for end in ENDS}
        p = data[f"{name}_p_adjusted"].values if f"{name}_p_adjusted" in data else np.nan
        frames.append(pd.DataFrame({"layer": data["layer"], "kind": label, **columns, "p": p, "order": order}))
    for place, position in enumerate(data["position"].values):
        cell = data.isel(position=place)
        columns = {f"r{end}": cell[f"position_r{end}"].values for end in ENDS}
        label, p = f"at {position}, over problems", cell["position_p_adjusted"].values
        frames.append(
            pd.DataFrame({"layer": data["layer"], "kind": label, **columns, "p": p, "order": len(kinds) + place})
        )
    return pd.concat(frames).sort_values(["layer", "order"]).drop(columns="order")


def draw_correlations(page: Page, result: StoredResult, kinds: list[str]) -> None:
    """Each kind of correlation by layer, with its interval."""
    ax = page.panel("correlation", result, height=2.7)
    layers = [int(x) for x in result.data["layer"].values]
    for index, kind in enumerate(kinds):
        x = np.arange(len(layers)) + (index - (len(kinds) - 1) / 2) * 0.12
        r, low, high = (result.data[f"{kind}_r{end}"].values for end in ENDS)
        colour = (INK, *PALETTE)[index]
        ax.plot(x, r, linestyle="none", marker="osD^"[index], color=colour, label=CORRELATIONS[kind])
        ax.vlines(x, low, high, color=colour, linewidth=1)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set_ylim(-1.02, 1.02)
    ax.set_xticks(np.arange(len(layers)), [f"layer {x}" for x in layers] if len(layers) < 7 else layers)
    faint_grid(ax)
    ax.set_ylabel("Pearson's r")
    legend_below(ax, 0.1, 1)


def draw_means(page: Page, result: StoredResult) -> None:
    """Mean attention and mean importance of each thought at the last layer, as points with names."""
    ax = page.panel("attention_against_importance", result, height=2.7)
    last = result.data.isel(layer=-1)
    x, y = (np.asarray(last[name].values, dtype=float) for name in ("mean_attention", "mean_importance"))
    ax.plot(x, y, marker=result.look.marker, color=result.look.colour, linestyle="none")
    for place, position in enumerate(last["position"].values):
        # names of points close together go to different sides
        near = (np.abs(x[:place] - x[place]) < 0.12 * np.ptp(x)) & (np.abs(y[:place] - y[place]) < 0.1 * np.ptp(y))
        offset = ((6, 3), (-22, 3), (6, -10), (-22, -10))[near.sum() % 4]
        ax.annotate(str(position), (x[place], y[place]), xytext=offset, textcoords="offset points", fontsize=8)
    ax.margins(0.2)
    faint_grid(ax, "both")
    ax.set_xlabel("mean attention of the answer")
    ax.set_ylabel(f"mean importance ({measure_of(result.stored.spec)})")
    ax.set_title(f"{result.label}, layer {int(last['layer'])}")


SECTIONS = (
    Section(
        slug="attention-importance",
        write=attention_and_importance,
        chapter="report-003",
        order=20,
        needs=("corrupt", "correlate"),
        key=True,
    ),
)
