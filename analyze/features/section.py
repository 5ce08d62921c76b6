"""Section on the features of stored dictionaries, and on those that two models share."""

from typing import Any

import numpy as np

from analyze.drawing import faint_grid, reference
from analyze.features.command import feature_rows
from analyze.page import NothingStored, Page, Section
from store.results import Result, preferred


def features(page: Page) -> None:
    """What the features of each model fire on and write."""
    for result in page.results("features"):
        frequency = result.data["frequency"]
        if {"layer", "position"} <= set(frequency.dims):
            alive = (frequency > 0).sum("feature").transpose("layer", "position")
            layers = [f"layer {layer}" for layer in alive["layer"].values]
            names, high = alive["position"].values, float(alive.max()) or 1.0
            page.map("alive", result, alive.values, layers, names, high=high, text="{:.0f}")
        rows = feature_rows(result.data)
        page.add("features", result, rows)
        page.say(result, "most", n=result.data.sizes["feature"], **rows[0])


def shared(page: Page) -> None:
    """How many features of a crosscoder two models share."""
    best: dict[tuple[str, ...], Result] = {}
    for one in preferred(each for each in page.context.results if each.kind == "shared_features"):
        best.setdefault(one.runs, one)
    if not best:
        raise NothingStored
    for stored in best.values():
        page.sources.append(stored)
        data = page.context.open(stored)
        looks = page.context.relabel(stored.runs)
        label = " and ".join(looks[run].label for run in stored.runs)
        ax = page.panel("shared", "_".join(stored.runs), wide=True, height=3.2)
        first, second = (str(model) for model in data["model"].values)
        for flag, colour in ((0, "#666c73"), (1, looks[stored.runs[0]].colour)):
            at = np.flatnonzero(data["alive"].values.astype(bool) & (data["shared"].values.astype(int) == flag))
            x, y = data["share"].isel(model=0).values[at], data["agreement"].values[at]
            ax.scatter(x, y, s=12, color=colour, alpha=0.7, label=("not shared", "shared")[flag])
        reference(ax, float(data["agreement_null"]))
        ax.set(xlabel=f"share of the feature in {first} (rest in {second})", ylabel="agreement", xlim=(0, 1))
        ax.legend()
        faint_grid(ax)
        numbers: dict[str, Any] = {str(name): float(data[name]) for name in data.data_vars if not data[name].dims}
        page.add("shared", label, [numbers])
        page.say_of(label, page.text("shared", **numbers))


SECTIONS = (
    Section(slug="features", write=features, chapter="report-001", order=32, needs=("features",)),
    Section(
        slug="shared-features",
        write=shared,
        chapter="report-001",
        order=34,
        needs=("sae --scope crosscoder", "shared_features"),
        of="several",
    ),
)
