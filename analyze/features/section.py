"""Section on the features of stored dictionaries, and on those that two models share."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import Finding, beside
from analyze.context import StoredResult
from analyze.drawing import INK, MUTED, faint_grid, legend_below, reference
from analyze.features.command import feature_rows, steps_from_one
from analyze.page import NothingStored, Page, Section
from schemas.statistics import wilson_interval
from store.results import Result, preferred

LEAST = 1e-5
"""Nat below which an effect is drawn at the edge of the figure: about what float32 leaves of nothing."""

SMALL = 0.05
"""Nat up to which an effect on the answer is nothing to speak of."""


def features(page: Page) -> None:
    """What the features of each model fire on and write."""
    findings = []
    for result in page.results("features"):
        frequency = result.data["frequency"]
        if {"layer", "position"} <= set(frequency.dims):
            alive = (frequency > 0).sum("feature").transpose("layer", "position")
            layers = [f"layer {layer}" for layer in alive["layer"].values]
            names, high = alive["position"].values, float(alive.max()) or 1.0
            page.map("alive", result, alive.values, layers, names, high=high, text="{:.0f}")
        rows = feature_rows(result.data)
        rows = [row | {"tells": steps_from_one(row["tells"])} if "tells" in row else row for row in rows]
        page.add("features", result, rows)
        page.say(result, "most" if rows[0]["fires"] > 0 else "silent", n=result.data.sizes["feature"], **rows[0])
        if "tells" in result.data:
            told = sorted((row for row in rows if row["tells"]), key=lambda row: -float(row["area"]))
            page.add("told", result, told)
            telling = sum(row["area_p"] < 0.05 for row in told)
            above = result.data.attrs["area_null"]
            if told:
                page.say_more(result.label, page.text("tell", n=len(told), telling=telling, above=above, **told[0]))
            findings.append((result, [Finding(what="best area of a feature", of=best_area, nothing=0.6)]))
    beside(page, findings, "number")


def best_area(result: StoredResult) -> list[float]:
    """Area of the feature that tells most, with its interval."""
    if "area" not in result.data or not result.data["area"].notnull().any():
        return [np.nan] * 3
    best = result.data.isel(feature=int(np.nanargmax(result.data["area"].values)))
    return [float(best[f"area{end}"]) for end in ("", "_low", "_high")]


def moving_share(result: StoredResult) -> list[float]:
    """Share of the features that move the answer more than random directions do, with Wilson's interval over them."""
    telling = (result.data["p_kl_holm"] < 0.05) & (result.data["kl_more"] > 0)
    n = result.data.sizes["feature"]
    return [float(telling.mean()), *map(float, wilson_interval(int(telling.sum()), n))]


def largest_effect(result: StoredResult) -> list[float]:
    """Nat by which a feature moves the answer beyond random directions, at most, with its interval."""
    best = result.data.isel(feature=int(np.nanargmax(result.data["kl_more"].values)))
    return [float(best[f"kl_more{end}"]) for end in ("", "_low", "_high")]


def effects(page: Page) -> None:
    """What taking each feature out does to the answer, beside random directions as long."""
    told = {result.run: result.data for result in page.results("features", optional=True)}
    findings = []
    for result in page.results("feature_effects"):
        data = result.data
        ax = page.panel("effects", result, height=3.2)
        own, random = (np.maximum(data[name].values, LEAST) for name in ("kl", "kl_random"))
        telling = ((data["p_kl_holm"] < 0.05) & (data["kl_more"] > 0)).values
        for chosen, colour, label in ((~telling, MUTED, "no more than chance"), (telling, result.look.colour, "more")):
            ax.scatter(random[chosen], own[chosen], s=12, color=colour, alpha=0.7, label=label)
        ends = [LEAST, float(max(own.max(), random.max())) * 1.5]
        ax.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        ax.set(xscale="log", yscale="log", xlabel="random directions, nat", ylabel="the feature, nat")
        faint_grid(ax, "both")
        legend_below(ax)
        rows = effect_rows(data, told.get(result.run))
        page.add("effects", result, rows)
        broken = int((data["p_broken_holm"] < 0.05).sum())
        line = "does" if telling.any() or broken else "none"
        page.say(result, line, n_feature=data.sizes["feature"], telling=int(telling.sum()), turned=broken, **rows[0])
        largest = Finding(what="largest effect of a feature (nat)", of=largest_effect, nothing=SMALL)
        moving = Finding(what="share of features that move the answer", of=moving_share)
        findings.append((result, [largest, moving]))
    beside(page, findings, "number")


def effect_rows(data: xr.Dataset, told: xr.Dataset | None) -> list[dict[str, Any]]:
    """What taking each feature out does, those first that do most beyond random directions, and what each tells."""
    tells = {} if told is None or "tells" not in told else told["tells"].to_series().to_dict()
    rows = []
    for index in (-data["kl_more"]).argsort().values:
        one = data.isel(feature=int(index))
        layer = int(one["layer"])
        place = f"{one['position'].item()}, {'fed' if layer == -1 else f'layer {layer}'}"
        figures = {str(name): one[name].item() for name in data.data_vars}
        number = int(one["feature"])
        rows.append({"feature": number, "place": place, "tells": steps_from_one(tells.get(number, "")), **figures})
    return rows


def shared(page: Page) -> None:
    """How many features of a crosscoder two models share."""
    best: dict[tuple[str, ...], Result] = {}
    for one in preferred(result for result in page.context.results if result.kind == "shared_features"):
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
            of_flag = np.flatnonzero(data["alive"].values.astype(bool) & (data["shared"].values.astype(int) == flag))
            x, y = data["share"].isel(model=0).values[of_flag], data["agreement"].values[of_flag]
            ax.scatter(x, y, s=12, color=colour, alpha=0.7, label=("not shared", "shared")[flag])
        reference(ax, float(data["agreement_null"]))
        ax.set(xlabel=f"share of the feature in {first} (rest in {second})", ylabel="agreement", xlim=(0, 1))
        ax.legend()
        faint_grid(ax)
        numbers: dict[str, Any] = {str(name): float(data[name]) for name in data.data_vars if not data[name].dims}
        page.add("shared", label, [numbers])
        page.say_of(label, page.text("shared" if numbers["n_alive"] >= 1 else "silent", **numbers))


SECTIONS = (
    Section(slug="features", write=features, chapter="report-001", order=32, needs=("features",)),
    Section(
        slug="feature-effects",
        write=effects,
        chapter="report-001",
        order=33,
        needs=("sae", "feature_effects"),
    ),
    Section(
        slug="shared-features",
        write=shared,
        chapter="report-001",
        order=34,
        needs=("sae --scope crosscoder", "shared_features"),
        of="several",
    ),
)
