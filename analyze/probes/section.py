"""Sections of what can be read off the states by linear probes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import NOTHING, Finding, Triple, beside, number_at
from analyze.context import StoredResult
from analyze.labels import labels_along, up_to_eot
from analyze.page import Page, Section, share
from analyze.probes.command import as_they_come
from analyze.probes.linear import summarise_probes


def probe_results(page: Page, target: str, *, optional: bool = False) -> list[StoredResult]:
    """Grids of probes for a target, over all examples rather than as many of each class."""
    return page.results("probes", lambda spec: spec.get("target") == target and as_they_come(spec), optional=optional)


def linear_probes(page: Page) -> None:
    """Is it correct: read off the states, held out."""
    few, findings = [], []
    results = probe_results(page, "correct")
    for result in results:
        data = up_to_eot(result.data)
        layers = [f"layer {x}" for x in data["layer"].values]
        grid = data["auroc"].transpose("layer", "position")
        ax = page.map("probe_heatmap", result, grid, layers, labels_along(data, "position"), low=0.5)
        ax.set_title(f"{result.label}, AUROC")
        summary, accuracy = summarise_probes(data, "auroc").iloc[0], summarise_probes(data).iloc[0]
        counts = {name: int(summary[name]) for name in ("found", "n_cell")}
        best = dict(summary) | counts
        page.say(result, "best", **best | {"accuracy": accuracy["mean"], "baseline": accuracy["baseline"]})
        page.add("linear_probes", result, probe_rows(data, {"layer", "position"}))
        place = {"layer": best["best_layer"], "position": best["best_position"]}
        findings.append((result, [cell_finding("auroc", f"layer {place['layer']}, {place['position']}", 0.5, place)]))
        wrong = 1 - float(data["majority_accuracy"].mean())
        if wrong < 0.03:
            few.append(page.text("few", label=result.label, wrong=wrong))
    beside(page, findings, "number")
    trained = page.frame("linear_probes").groupby("run", sort=False)["refit_training_accuracy"].mean()
    page.set(
        note=str(results[0].data.attrs.get("note", "")),
        few=few,
        trained="; ".join(f"{run} {share(value)}" for run, value in trained.items()),
    )


def cell_finding(name: str, what: str, nothing: float, place: Mapping[str, Any]) -> Finding:
    """A score of the probe at one place."""

    def of(result: StoredResult) -> Triple:
        data = up_to_eot(result.data)
        return number_at(data, name, **{dim: label for dim, label in place.items() if dim in data.dims})

    return Finding(what=what, of=of, nothing=nothing)


def probe_rows(data: xr.Dataset, dims: set[str]) -> Any:
    """Every figure of each probe."""
    return data[[name for name in data.data_vars if set(data[name].dims) <= dims]].to_dataframe().reset_index()


def chance(data: xr.Dataset, place: Mapping[str, Any]) -> float:
    """Score that says nothing: a tenth of the variance, or what the commonest class gives."""
    return NOTHING if "r2" in data else number_at(data, "majority_accuracy", **place)[0]


def step_probes(page: Page) -> None:
    """Which intermediate result can be read where."""
    results = probe_results(page, "intermediate_result")
    findings = []
    for result in results:
        data = up_to_eot(result.data)
        data = data if "step" in data.dims else data.expand_dims(step=[0])
        grid = data["r2" if "r2" in data else "accuracy"].isel(layer=-1).transpose("step", "position")
        steps, positions = [int(step) + 1 for step in grid["step"].values], labels_along(data, "position")
        page.map("step_probes", result, np.clip(grid, 0, None), [f"step {step}" for step in steps], positions)
        best = np.nanargmax(grid.fillna(-np.inf).values, axis=1)
        cells = [
            page.text(
                "cell" if float(grid[row, place]) > NOTHING else "nowhere",
                step=step,
                position=positions[place],
                score=float(grid[row, place]),
            )
            for row, (step, place) in enumerate(zip(steps, best, strict=True))
        ]
        page.say_of(result.label, ", ".join(cells))
        name, layer = str(grid.name), int(grid["layer"])
        read = zip(steps, best, strict=True)
        places = [{"step": step - 1, "layer": layer, "position": positions[place_read]} for step, place_read in read]
        told = [cell_finding(name, f"step {place['step'] + 1}", chance(data, place), place) for place in places]
        findings.append((result, told))
        page.add("step_probes", result, probe_rows(data, {"step", "layer", "position"}))
    beside(page, findings, "number")
    page.show("step_probes", lambda rows: rows[rows["layer"] == rows.groupby("run")["layer"].transform("max")])
    page.set(note=str(results[0].data.attrs.get("note", "")))
    for result in probe_results(page, "operation", optional=True):
        data = up_to_eot(result.data).isel(layer=-1)
        if "step" in data["balanced_accuracy"].dims and result.run in {one.run for one in results}:
            names = [f"step {int(step) + 1}" for step in data["step"].values]
            grid = data["balanced_accuracy"].transpose("step", "position")
            page.map("operation_probes", result, grid, names, labels_along(data, "position"), low=0.25)


SECTIONS = (
    Section(
        slug="linear-probes", write=linear_probes, chapter="report-001", order=10, needs=("probes --target correct",)
    ),
    Section(
        slug="step-probes",
        write=step_probes,
        chapter="report-001",
        order=20,
        needs=("probes --target intermediate_result", "probes --target operation"),
    ),
)
