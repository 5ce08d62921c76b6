"""Section on probes and directions that are fitted on one run and tested on another."""

from typing import Any

import xarray as xr

from analyze.beside import NOTHING, Finding, Pair
from analyze.context import StoredResult
from analyze.page import Page, Section
from analyze.tables import ENDS
from analyze.transfer.figures import plot_transfer
from analyze.transfer.matrix import pairs_of, scores_of


def runs_of(result: StoredResult) -> tuple[str, ...]:
    """Runs that were fitted on and tested on, and the target if there is one."""
    names = [" ".join(map(str, result.data[dim].values)) for dim in ("fit", "test")]
    return str(result.data.attrs.get("target", "")), *names


def transfer(page: Page) -> None:
    """Every stored matrix, the preferred one of each target and set of runs."""
    for number, result in enumerate(page.joint("transfer", runs_of)):
        data, target = result.data, result.data.attrs["target"]
        n, height = data.sizes["kind"], 1.5 + 0.35 * data.sizes["fit"]
        plot_transfer(data, ax=page.panel("transfer", str(number), wide=n > 1, height=height, ncols=n))
        rows = [{"target": target} | row for row in pairs_of(data)]
        page.add("transfer", None, rows)
        for row in rows:
            if row["fit"] != row["test"]:
                pair = pair_of(data, row)
                step = f", step {row['step']}" if "step" in row else ""
                page.say_of(pair.label, page.text("carried", **row | {"step": step}))
                page.find(pair, carried(data, row, f"{row['kind']} for {target}{step}"))
        page.join("left_out", data.attrs["left_out"])
    page.need("transfer")


def pair_of(data: xr.Dataset, row: dict[str, Any]) -> Pair:
    """What was fitted on one run and tested on another, as its sentence begins."""
    fit, test = str(row["fit"]), str(row["test"])
    return Pair(runs=(fit, test), label=f"{fit} on {test}", data=data.sel(fit=fit, test=test))


def carried(data: xr.Dataset, row: dict[str, Any], what: str) -> Finding:
    """The score where a transferred fit does best, with the interval that holds for all places at once."""
    main, _ = scores_of(data)
    place = {dim: row[dim] for dim in ("kind", "step", "layer", "position") if dim in data.dims}
    chance = NOTHING if main == "r2" else float(pair_of(data, row).data.sel(place)["majority_accuracy"])
    return Finding(
        what=f"{what} at layer {row['layer']}, {row['position']}", nothing=chance,
        of=lambda pair: [float(pair.data.sel(place)[f"{main}{end}_joint" if end else main]) for end in ENDS],
    )  # fmt: skip


SECTIONS = (Section(slug="transfer", write=transfer, chapter="comparison", order=50, needs=("transfer",), of="width"),)
