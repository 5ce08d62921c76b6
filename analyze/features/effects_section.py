"""Section on what taking features out does to the answer."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import Finding, Triple, number_at
from analyze.context import StoredResult
from analyze.features.command import effect_rows
from analyze.features.figures import plot_effects
from analyze.page import Page, Section
from schemas.picked import Pick, of_picked
from schemas.statistics import wilson_interval

SMALL = 0.05
"""Nat up to which an effect on the answer is nothing to speak of."""


def effects(page: Page) -> None:
    """What taking each feature out does to the answer, beside random directions as long."""
    told = {result.run: result.data for result in page.results("features", optional=True)}
    for result in page.results("feature_effects"):
        data, telling = result.data, moves(result.data)
        plot_effects(data, telling, result.look.colour, page.panel("effects", result, height=3.2))
        rows = effect_rows(data, told.get(result.run))
        page.add("effects", result, rows)
        broken = int((data["p_broken_holm"] < 0.05).sum())
        line = "does" if telling.any() or broken else "none"
        page.say(result, line, n_feature=data.sizes["feature"], telling=int(telling.sum()), turned=broken, **rows[0])
        page.find(
            result, Finding(what="largest effect of a feature (nat)", of=largest_effect, nothing=SMALL),
            Finding(what="share of features that move the answer", of=moving_share),
        )  # fmt: skip


def moves(data: xr.Dataset) -> Any:
    """Whether each feature moves the answer more than random directions do."""
    return ((data["p_kl_holm"] < 0.05) & (data["kl_more"] > 0)).values


def moving_share(result: StoredResult) -> Triple:
    """Share of the features that move the answer, with Wilson's interval over them."""
    telling = moves(result.data)
    return [float(telling.mean()), *map(float, wilson_interval(int(telling.sum()), len(telling)))]


def largest_effect(result: StoredResult) -> Triple:
    """How much more than random directions the feature moves the answer that does most, picked among all of them."""
    more = result.data["kl_more"]
    best = result.data.isel(feature=int(np.nanargmax(more.values)))
    return of_picked(number_at(best, "kl_more"), Pick(int(more.notnull().sum())))


SECTIONS = (
    Section(slug="feature-effects", write=effects, chapter="report-001", order=33, needs=("sae", "feature_effects")),
)
