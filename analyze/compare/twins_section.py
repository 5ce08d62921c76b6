"""Section of a model beside its decodable twin: read alike, used or not."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.compare.section import comparison
from analyze.drawing import MUTED, RULE, Look, faint_grid
from analyze.labels import thought_labels
from analyze.page import Page, Section

Measure = tuple[str, str, str, dict[str, Any]]
"""Whether it is of what can be read or used, its name, its variable, and where that is taken."""


def twins(page: Page) -> None:
    """A model and its decodable twin."""
    data, looks = comparison(page)
    pairs = {run: run.replace("/", "-decodable/", 1) for run in looks}
    for run, twin in pairs.items():
        if twin not in looks:
            continue
        one, other = (data.sel(model=name, drop=True) for name in (run, twin))
        rows: Any = pd.DataFrame(measure_rows(one, other, measures(one)))
        if rows.empty:
            continue
        draw_twins(page, run, rows, (looks[run], looks[twin]))
        reads, uses = (rows[rows["kind"] == kind]["difference"].abs() for kind in ("can be read", "is used"))
        furthest = dict(rows.loc[uses.idxmax()]) if len(uses) else {}
        text = page.text("uses" if len(uses) else "reads", reads=100 * reads.mean(), uses=100 * uses.mean(), **furthest)
        page.say_of(looks[run].label, text)
        page.add("twins", looks[run].label, rows)
    page.need("twins")


def measures(data: xr.Dataset) -> Iterator[Measure]:
    """What can be read from a model's thoughts, at the position where it is read best; then what the answer uses."""
    yield "can be read", "accuracy, untouched", "accuracy", {}
    for step in data["step"].values[:3] if "step" in data.dims else []:
        for name, label, where in (
            ("chain_share", "lens: step {} at {}", {"step": step}),
            ("step_probe", "probe: step {} at {}, R²", {"step": step, "depth": float(data["depth"].values[-1])}),
        ):
            by_position = data[name].sel(where) if name in data else xr.DataArray(np.nan)
            if by_position.notnull().any():
                best = str(by_position["position"].values[int(np.nanargmax(by_position.values))])
                yield "can be read", label.format(int(step) + 1, best), name, where | {"position": best}
    for thought in thought_labels(data) if "position" in data.dims else []:
        where = {"corruption": "mean", "position": thought}
        yield "is used", f"{thought} averaged: answers lost", "importance", where
    for group in ("all", "numbers"):
        where = {"operation": "mean", "group": group, "place": "fed"}
        yield "is used", f"{group} averaged: accuracy", "ablation_accuracy", where
    if "n_thought" in data.dims:
        n = int(data["n_thought"].values.max())
        yield "is used", f"{n} patched: clean answers", "patch_clean", {"place": "fed", "n_thought": n}


def measure_rows(one: xr.Dataset, other: xr.Dataset, wanted: Iterator[Measure]) -> Iterator[dict[str, Any]]:
    """Each measure of a model and of its twin, with intervals, where both have it."""
    for kind, what, name, where in wanted:
        values = [interval(data, name, where) for data in (one, other)]
        if all(np.isfinite(value[0]) for value in values):
            columns = {
                f"{of}{end}": value
                for of, ends in zip(("model", "twin"), values, strict=True)
                for end, value in zip(("", "_low", "_high"), ends, strict=True)
            }
            difference = columns["model"] - columns["twin"]
            yield {"kind": kind, "what": what} | columns | {"difference": difference}


def interval(data: xr.Dataset, name: str, where: dict[str, Any]) -> list[float]:
    """A figure and the ends of its interval; NaN where there is none."""
    values = []
    for variable in (name, f"{name}_low", f"{name}_high"):
        there = variable in data and all(
            dim in data[variable].dims and label in data[dim].values for dim, label in where.items()
        )
        cell = data[variable].sel(where) if there else xr.DataArray(np.nan)
        values.append(float(cell) if not cell.ndim else np.nan)
    return values


def draw_twins(page: Page, run: str, rows: Any, looks: tuple[Look, Look]) -> None:
    """Each measure as two marks on a line."""
    ax = page.panel("twins", run, height=0.9 + 0.23 * len(rows))
    y = np.arange(len(rows))
    ax.hlines(y, rows[["model", "twin"]].min(axis=1), rows[["model", "twin"]].max(axis=1), color=RULE, linewidth=2.5)
    for look, of in zip(looks, ("model", "twin"), strict=True):
        known = np.isfinite(rows[f"{of}_low"]) & np.isfinite(rows[f"{of}_high"])
        ends = (rows[f"{of}{end}"][known] for end in ("_low", "_high"))
        ax.hlines(y[known], *ends, color=look.colour, linewidth=1.2, zorder=2)
        ax.plot(rows[of], y, **look.line() | {"linestyle": "none", "markersize": 6, "zorder": 3})
    ax.axhline((rows["kind"] == "can be read").sum() - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    ax.set_yticks(y, rows["what"])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.tick_params(axis="y", length=0)
    faint_grid(ax, "x")
    ax.legend(loc="upper right", bbox_to_anchor=(1.0, -0.06), ncols=2, fontsize=8)


SECTIONS = (Section(slug="twins", write=twins, chapter="verdict", order=-10, needs=("compare",), of="several"),)
