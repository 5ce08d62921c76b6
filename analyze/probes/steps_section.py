"""Section of which intermediate result can be read where by linear probes."""

import numpy as np
import xarray as xr

from analyze.beside import NOTHING, Finding, number, number_at
from analyze.labels import up_to_eot
from analyze.page import Page, Section
from analyze.probes.correct_section import probe_results, probe_rows
from schemas.picked import Pick


def step_probes(page: Page) -> None:
    """Which intermediate result can be read where."""
    results = probe_results(page, "intermediate_result")
    for result in results:
        data = with_steps(result.data)
        grid = data["r2" if "r2" in data else "accuracy"].isel(layer=-1).transpose("step", "position")
        page.map("step_probes", result, grid.clip(0))
        best = grid.isel(position=grid.fillna(-np.inf).argmax("position"))
        pick = Pick(grid.sizes["position"])
        said, found = zip(*[sentence(page, data, str(grid.name), cell, pick) for cell in best], strict=True)
        page.say_of(result.label, ", ".join(said))
        page.find(result, *found)
        page.add("step_probes", result, probe_rows(data.assign_coords(step=data["step"] + 1)))
    page.show("step_probes", lambda rows: rows[rows["layer"] == rows.groupby("run")["layer"].transform("max")])
    page.set(note=str(results[0].data.attrs.get("note", "")))
    for result in probe_results(page, "operation", optional=True):
        data = up_to_eot(result.data).isel(layer=-1)
        if "step" in data["balanced_accuracy"].dims and result.run in {one.run for one in results}:
            page.map("operation_probes", result, data["balanced_accuracy"].transpose("step", "position"), low=0.25)


def with_steps(data: xr.Dataset) -> xr.Dataset:
    """Scores up to eot by step, where they are of one only as well."""
    data = up_to_eot(data)
    return data if "step" in data.dims else data.expand_dims(step=[0])


def sentence(page: Page, data: xr.Dataset, name: str, cell: xr.DataArray, pick: Pick) -> tuple[str, Finding]:
    """A step's best score in words, and as a finding.

    It says nothing up to a tenth of the variance, or what the commonest class gives; the words go by the interval that
    allows for all cells.
    """
    place = {dim: cell[dim].item() for dim in ("step", "layer", "position")}
    step, nothing = place["step"] + 1, NOTHING if name == "r2" else number_at(data, "majority_accuracy", **place)[0]
    said = "cell" if number_at(data, f"{name}_low_joint", **place)[0] > nothing else "nowhere"
    finding = number(f"step {step}", name, nothing=nothing, read=with_steps, pick=pick, **place)
    return page.text(said, step=step, position=place["position"], score=cell.item()), finding


SECTIONS = (
    Section(
        slug="step-probes", write=step_probes, chapter="report-001", order=20,
        needs=("probes --target intermediate_result", "probes --target operation"),
    ),
)  # fmt: skip
