"""Section of sparse autoencoders."""

import json
from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import HEAT, bars_across
from analyze.page import NothingStored, Page, Section, listed
from store.results import preferred


def sparse_autoencoders(page: Page) -> None:
    """How well few features rebuild the states."""
    context = page.context
    results = preferred(
        one for one in context.results if one.kind == "sae" and "explained_variance_all" in context.open(one)
    )
    if not results:
        raise NothingStored
    looks = context.relabel([run for one in results for run in one.runs])
    results.sort(key=lambda one: (len(one.runs), context.runs.index(one.runs[0])))
    page.sources.extend(results)
    shown = [(one, dictionary_rows(context.open(one))) for one in results]
    for one, rows_of in shown:
        for source, row in rows_of.items():
            page.add("sparse_autoencoders", source_name(source) or looks[one.runs[0]].label, [row])
    frame = page.frame("sparse_autoencoders")
    names = [f"{row['run']}, {row['scope'] or 'pool'}, {row['activation']}" for row in frame.to_dict("records")]
    ax = page.panel("sae_variance", wide=True, height=0.9 + 0.34 * len(frame))
    bars_across(ax, names, frame["squared_error"].clip(lower=0), height=0.62, facecolor=HEAT, edgecolor=HEAT)
    ax.set_xlim(0, 1)
    ax.set_xlabel("variance explained on test problems")
    for run, rows in frame[frame["scope"] != "crosscoder"].groupby("run", sort=False):
        page.say_of(str(run), page.text("best", **dict(rows.loc[rows["squared_error"].idxmax()])))
    for _, rows_of in shown:
        say_crosscoder(page, rows_of)
    for own in dict.fromkeys(one.runs[0] for one in results if len(one.runs) == 1):
        model, _, data_set = own.partition("/")
        controls = [] if model in context.controls else context.controls_of(model)
        for run in (f"{name}/{data_set}" for name in controls):
            rows = frame[frame["run"] == looks[run].label] if run in looks else frame.head(0)
            if len(rows):
                best = page.text("control", run=looks[run].label, variance=rows["squared_error"].max())
                page.say_more(looks[own].label, best)


def say_crosscoder(page: Page, rows: dict[str, dict[str, Any]]) -> None:
    """One sentence of a dictionary that several layers share; nothing of any other."""
    spec = next(iter(rows.values()))
    if spec["scope"] != "crosscoder":
        return
    models = list(dict.fromkeys(source.rpartition("/")[0] or source for source in rows))
    parts = [page.text("layer", share=row["squared_error"], source=source_name(name)) for name, row in rows.items()]
    page.say_of(listed(models), page.text("crosscoder", parts=listed(parts), **spec))


def source_name(source: str) -> str:
    """A source of a crosscoder in words: ``model/4`` is a layer."""
    model, _, layer = source.rpartition("/")
    return f"layer {layer} of {model}" if model else source


def dictionary_rows(data: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Figures of a dictionary on held-out problems, by its source where it has several."""
    split = "test" if "test" in data["split"].values else str(data["split"].values[-1])
    held_out = data[["explained_variance_all", "dead_share", "l0"]].sel(split=split)
    spec = json.loads(data.attrs.get("spec", "{}"))
    row = {
        "scope": str(data.attrs.get("scope", spec.get("scope", ""))),
        "activation": str(spec.get("activation", data.attrs.get("activation", ""))),
        "n_feature": data.sizes["feature"],
        "l0": float(held_out["l0"].mean()),
        "dead": float(held_out["dead_share"].mean()),
    }
    variance = held_out["explained_variance_all"]
    if "source" not in variance.dims:
        variance = variance.expand_dims(source=[""])
    return {
        str(source): row
        | {str(name): float(of_source.sel(definition=name).mean()) for name in variance["definition"].values}
        for source, of_source in zip(
            np.atleast_1d(variance["source"].values), variance.transpose("source", ...), strict=True
        )
    }


SECTIONS = (
    Section(slug="sparse-autoencoders", write=sparse_autoencoders, chapter="report-001", order=30, needs=("sae",)),
)
