"""Section on what is fitted on one run and tested on another, with its figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.beside import NOTHING, Finding, Pair, beside_pairs, number_at
from analyze.drawing import heat_map, panels, slanted
from analyze.page import Page, Section
from analyze.transfer.command import LENS_MEANS, SAE_MEANS, pairs
from analyze.transfer.matrix import pairs_of
from store.results import preferred


def plot_transfer(result: xr.Dataset, *, ax: Any = None) -> list[Any]:
    """Score of every fit (row) on every run (column), one panel for each kind; below, each run's own fit.

    Parameters
    ----------
    result
        From :func:`analyze.transfer.linear.transfer_probes`.
    ax
        As many axes as kinds.
    """
    main = "r2" if "r2" in result else "accuracy"
    kinds = result["kind"].values
    axes = panels(len(kinds), ax, size=(4.6, 1.4 + 0.35 * result.sizes["fit"]))
    for axis, kind in zip(axes, kinds, strict=True):
        part = result.sel(kind=kind)
        matrix = part[main].mean([dim for dim in part[main].dims if dim not in ("fit", "test")])
        own = part[f"own_{main}"].mean([dim for dim in part[f"own_{main}"].dims if dim != "test"])
        values = np.concatenate([matrix.transpose("fit", "test").values, own.values[None]])
        labels = np.where(values < -1, "< -1", np.array([[f"{x:.2f}" for x in row] for row in values]))
        heat_map(axis, np.clip(values, -1, 1), [*part["fit"].values, "own"], part["test"].values, labels=labels)
        axis.set(title=f"{kind}, {result.attrs['target']}: {main}", ylabel="fitted on", xlabel="tested on")
        slanted(axis)
    return axes


def transfer(page: Page) -> None:
    """Every stored matrix, the preferred one of each target and set of runs."""
    shown: dict[tuple[str, ...], Any] = {}
    for stored in preferred(result for result in page.context.results if result.kind == "transfer"):
        data = page.context.open(stored)
        names = [" ".join(map(str, data[dim].values)) for dim in ("fit", "test")]
        shown.setdefault((data.attrs["target"], *names), stored)
    left_out, findings = [], []
    for number, stored in enumerate(shown.values()):
        page.sources.append(stored)
        data = page.context.open(stored)
        n = data.sizes["kind"]
        height = 1.5 + 0.35 * data.sizes["fit"]
        axes = page.panel("transfer", str(number), wide=n > 1, height=height, ncols=n)
        plot_transfer(data, ax=axes)
        rows = list(pairs_of(data))
        target = data.attrs["target"]
        page.add("transfer", None, [{"target": target} | row for row in rows])
        for row in rows:
            if row["fit"] != row["test"]:
                step = f", step {row['step']}" if "step" in row else ""
                line = page.text("carried", **row | {"target": target, "step": step})
                page.say_of(f"{row['fit']} on {row['test']}", line)
                findings.append((pair_of(data, row), [carried_at(data, row, f"{row['kind']} for {target}{step}")]))
        if data.attrs["left_out"]:
            left_out.append(data.attrs["left_out"])
    page.need("transfer")
    beside_pairs(page, findings, ordered=True)
    page.set(left_out="; ".join(left_out))


def pair_of(data: xr.Dataset, row: dict[str, Any]) -> Pair:
    """What was fitted on one run and tested on another, as its sentence begins."""
    fit, test = str(row["fit"]), str(row["test"])
    return Pair(runs=(fit, test), label=f"{fit} on {test}", data=data.sel(fit=fit, test=test))


def carried_at(data: xr.Dataset, row: dict[str, Any], what: str) -> Finding:
    """The score where a transferred fit does best, with the interval that holds for all places at once."""
    main = "r2" if "r2" in data else "accuracy"
    place = {dim: row[dim] for dim in ("kind", "step", "layer", "position") if dim in data.dims}
    chance = NOTHING if main == "r2" else float(pair_of(data, row).data.sel(place)["majority_accuracy"])
    names = [main, f"{main}_low_joint", f"{main}_high_joint"]
    return Finding(
        what=f"{what} at layer {row['layer']}, {row['position']}", nothing=chance,
        of=lambda pair: [float(pair.data.sel(place)[name]) for name in names],
    )  # fmt: skip


def plot_pairs(result: xr.Dataset, name: str, *, high: float = 1.0, ax: Any = None) -> Any:
    """Mean over layers and positions for every fit (row) and run (column); below, each run's own.

    Parameters
    ----------
    result
        From :func:`analyze.transfer.dictionary.transfer_dictionaries` or
        :func:`analyze.transfer.tuned.transfer_lenses`.
    name
        Variable that is drawn.
    high
        Value of full strength.
    ax
        One axes.
    """
    (axis,) = panels(1, ax, size=(4.6, 1.4 + 0.35 * result.sizes["fit"]))
    matrix = result[name].mean(["layer", "position"]).transpose("fit", "test").values
    values = np.concatenate([matrix, result[f"own_{name}"].mean(["layer", "position"]).values[None]])
    labels = np.array([[f"{value:.2f}" for value in row] for row in values])
    rows = [*result["fit"].values, "own"]
    heat_map(axis, np.clip(values, -high, high), rows, result["test"].values, labels=labels, high=high)
    axis.set(ylabel="fitted on", xlabel="tested on")
    slanted(axis)
    return axis


def _pairs_section(page: Page, kind: str, drawn: str, columns: Sequence[str], line: Sequence[str], beside: str) -> None:
    """A map and a table of every stored result of a kind, and a sentence for each two runs; ``beside`` controls."""
    findings = []
    shown: dict[tuple[str, ...], Any] = {}
    for stored in preferred(result for result in page.context.results if result.kind == kind):
        data = page.context.open(stored)
        shown.setdefault(tuple(" ".join(map(str, data[dim].values)) for dim in ("fit", "test")), stored)
    for number, stored in enumerate(shown.values()):
        page.sources.append(stored)
        data = page.context.open(stored)
        height = 1.5 + 0.35 * data.sizes["fit"]
        high = max(1.0, float(data[f"plain_{drawn}"].mean())) if f"plain_{drawn}" in data else 1.0
        plot_pairs(data, drawn, high=high, ax=page.panel(kind, str(number), height=height))
        rows = []
        for pair in pairs(data):
            names = {dim: str(pair[dim].item()) for dim in ("fit", "test")}
            row = names | {name: float(pair[name].mean()) for name in columns} | {"n": int(pair["n_problem"])}
            rows.append(row)
            if names["fit"] != names["test"]:
                values = {name: row[name] for name in line}
                page.say_of(f"{names['fit']} on {names['test']}", page.text("read", **values))
                findings.append((pair_of(data, row), best_of(pair, beside)))
        page.add(kind, None, rows)
    page.need(kind)
    beside_pairs(page, findings, ordered=True)


def best_of(pair: xr.Dataset, name: str) -> list[Finding]:
    """A number where it is highest; nothing to be read at all where no place has it."""
    if not np.isfinite(pair[name]).any():
        return []
    best = pair[name].isel(pair[name].argmax(...))
    place = {"layer": best["layer"].item(), "position": best["position"].item()}
    nothing = f"other_{name}" if f"other_{name}" in pair else ""
    return [
        Finding(
            what=f"{name.replace('_', ' ')} at layer {place['layer']}, {place['position']}",
            of=lambda other: number_at(other.data, name, **place),
            nothing=float(pair[nothing].sel(place)) if nothing else NOTHING,
        )
    ]


def dictionaries(page: Page) -> None:
    """What dictionaries of one run explain of another."""
    line = ("explained_variance", "own_explained_variance", "dead_share", "own_dead_share")
    _pairs_section(page, "transfer_sae", "explained_variance", SAE_MEANS, line, "explained_variance")


def lenses(page: Page) -> None:
    """How well tuned lenses of one run read another."""
    line = ("kl", "own_kl", "plain_kl", "reciprocal_rank", "own_reciprocal_rank")
    _pairs_section(page, "transfer_lens", "kl", LENS_MEANS, line, "reciprocal_rank")


SECTIONS = (
    Section(slug="transfer", write=transfer, chapter="comparison", order=50, needs=("transfer",), of="width"),
    Section(
        slug="transfer-sae", write=dictionaries, chapter="comparison", order=51, needs=("transfer_sae",), of="width"
    ),
    Section(slug="transfer-lens", write=lenses, chapter="comparison", order=52, needs=("transfer_lens",), of="width"),
)
