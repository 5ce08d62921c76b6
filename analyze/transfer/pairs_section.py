"""Sections on dictionaries and tuned lenses of one run on the states of another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import NOTHING, Finding, number
from analyze.page import Page, Section
from analyze.transfer.command import LENS_MEANS, SAE_MEANS, pairs
from analyze.transfer.figures import plot_pairs
from analyze.transfer.section import pair_of, runs_of
from schemas.picked import Pick


def every_pair(page: Page, kind: str, drawn: str, told: str, columns: Sequence[str]) -> None:
    """A map and a table of every result of a kind, and a sentence for each two runs; ``told`` beside controls."""
    for index, result in enumerate(page.joint(kind, runs_of)):
        data = result.data
        high = max(1.0, float(data[f"plain_{drawn}"].mean())) if f"plain_{drawn}" in data else 1.0
        plot_pairs(data, drawn, high=high, ax=page.panel(kind, str(index), height=1.5 + 0.35 * data.sizes["fit"]))
        rows = []
        for pair in pairs(data):
            row: dict[str, Any] = {dim: str(pair[dim].item()) for dim in ("fit", "test")}
            row |= {name: float(pair[name].mean()) for name in columns} | {"n": int(pair["n_problem"])}
            rows.append(row)
            if row["fit"] != row["test"]:
                two = pair_of(data, row)
                page.say_of(two.label, page.text("read", **row))
                page.find(two, best_of(pair, told))
        page.add(kind, None, rows)
    page.need(kind)


def best_of(pair: xr.Dataset, name: str) -> Finding | None:
    """A number where it is highest; nothing to be read at all where no place has it."""
    if not np.isfinite(pair[name]).any():
        return None
    best = pair[name].isel(pair[name].argmax(...))
    place = {"layer": best["layer"].item(), "position": best["position"].item()}
    nothing = float(pair[f"other_{name}"].sel(place)) if f"other_{name}" in pair else NOTHING
    what = f"{name.replace('_', ' ')} at layer {place['layer']}, {place['position']}"
    return number(what, name, nothing=nothing, pick=Pick(int(pair[name].notnull().sum())), **place)


def saes(page: Page) -> None:
    """What dictionaries of one run explain of another."""
    every_pair(page, "transfer_sae", "explained_variance", "explained_variance", SAE_MEANS)


def lenses(page: Page) -> None:
    """How well tuned lenses of one run read another."""
    every_pair(page, "transfer_lens", "kl", "reciprocal_rank", LENS_MEANS)


SECTIONS = (
    Section(slug="transfer-sae", write=saes, chapter="comparison", order=51, needs=("transfer_sae",), of="width"),
    Section(slug="transfer-lens", write=lenses, chapter="comparison", order=52, needs=("transfer_lens",), of="width"),
)
