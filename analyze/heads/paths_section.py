"""Section of attention from step to step, and across."""

import math

import numpy as np
import pandas as pd
import xarray as xr

from analyze.beside import number, number_at
from analyze.drawing import as_percent, band, faint_grid
from analyze.heads.hubs_section import summaries
from analyze.page import Page, Section
from analyze.tables import ENDS

PATHS = {"sequential": "attention to the thought before", "skip": "skip attention"}
"""Ways between thoughts; no value of the attention on either is none."""
TITLES = ("to the thought before", "from the last thought")


def flow_and_skip(page: Page) -> None:
    """Step to step, and across."""
    axes = page.panel("flow_and_skip", wide=True, height=2.8, ncols=2)
    results = summaries(page)
    for one in results:
        means = {f"{kind}{end}": x for kind in PATHS
                 for end, x in zip(ENDS, number_at(one.data, f"mean_{kind}"), strict=True)}  # fmt: skip
        known = bool(np.isfinite([*means.values()]).all())
        page.say(one, "means_sure" if known else "means", **means)
        compared = [number(what, f"mean_{kind}", nothing=math.nan) for kind, what in PATHS.items()]
        page.find(one, *compared if known else ())
        for ax, kind in zip(axes, PATHS, strict=True):
            path = path_attention(one.data, kind)
            places = np.arange(len(path))
            ax.plot(places, path["attention"], **one.look.line())
            if "attention_low" in path:
                band(ax, places, path["attention_low"], path["attention_high"], one.look.colour, 0.15)
            page.add("flow_and_skip", one, path.assign(kind=kind))
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax, kind, title in zip(axes, PATHS, TITLES, strict=True):
        labels = path_attention(results[0].data, kind)["position"]
        ax.set_xticks(np.arange(len(labels)), labels)
        ax.set_title(title)
        ax.set_ylim(0, top)
        as_percent(ax)
        faint_grid(ax)
    axes[0].set_ylabel("attention, mean over heads")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def path_attention(data: xr.Dataset, kind: str) -> pd.DataFrame:
    """Attention step to step (``sequential``) or across (``skip``), by thought, with its interval."""
    names = [name for name in (f"{kind}{end}" for end in ENDS) if name in data]
    table = data[names].reset_coords(drop=True).to_dataframe().dropna()
    return table.rename(columns=lambda name: name.replace(kind, "attention")).rename_axis("position").reset_index()


SECTIONS = (Section(slug="flow-and-skip", write=flow_and_skip, chapter="report-004", order=30, needs=("heads",)),)
