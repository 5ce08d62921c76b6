"""Sections of the comparison: report 004's panels, and differences between models."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.compare.differences import comparison_table, difference_table
from analyze.compare.figures import SEVEN, plot_differences
from analyze.drawing import Look, faint_grid
from analyze.page import NothingStored, Page, Section, points
from schemas import Control, filled
from store.results import preferred

WORDS = {
    "accuracy": "accuracy",
    "number_share": "decodes to a number",
    "probe_auroc": "probe of correctness, AUROC",
    "step_probe": "probe of a step, R²",
    "error_auroc": "error prediction, AUROC",
    "importance": "importance",
    "attention": "attention of eot",
    "ablation_accuracy": "accuracy under ablation",
    "patch_clean": "clean answers after patching",
}
MOST_PAIRS, MOST_ROWS = 4, 44
"""Pairs of models that are drawn, and differences of each."""


def comparison(page: Page) -> tuple[xr.Dataset, dict[str, Look]]:
    """The stored comparison of the most of the page's models, and how they are drawn.

    Raises
    ------
    NothingStored
        If the lake has no comparison of two of them.
    """
    context = page.context
    main = set(context.main_runs())
    results = preferred(one for one in context.results if one.kind == "compare" and len(set(one.runs) & main) >= 2)
    if not results:
        raise NothingStored
    best = max(results, key=lambda one: len(set(one.runs) & main))
    page.sources.append(best)
    data = context.open(best)
    used = {source.split()[0] for source in json.loads(str(data.attrs.get("sources", "{}"))).values()}
    page.counted = [best, *(one for one in context.results if one.name in used)]
    models = [str(x) for x in data["model"].values]
    return data.assign_coords(model=models), context.relabel(models)


def seven_panels(page: Page) -> None:
    """Heads side by side."""
    data, looks = comparison(page)
    if "hub_received" not in data:
        raise NothingStored
    for index, (title, paint) in enumerate(SEVEN):
        ax = page.panel("model_comparison", str(index + 1), height=2.8)
        paint(data, looks, ax)
        faint_grid(ax)
        ax.set_title(title)
        if index == 0:
            ax.legend(loc="best", fontsize=7.5)
    rows: Any = comparison_table(data).to_dict("records")
    for row in rows:
        values = {"hub": "–", "hub_ratio": np.nan, "top_composite": np.nan} | row
        name = "none" if pd.isna(values["hub_ratio"]) else "ratio"
        page.say_of(looks[row["model"]].label, page.text(name, **values))


def differences(page: Page) -> None:
    """Models against each other, with intervals."""
    data, looks = comparison(page)
    table = difference_table(data)
    controls = page.context.controls
    alike = [(a, b) for a, b in combinations(looks, 2) if kind_of(controls, a) == kind_of(controls, b)]
    for first, second in (alike or list(combinations(looks, 2))[:1])[:MOST_PAIRS]:
        rows = table[(table["first"] == first) & (table["second"] == second)]
        names = [looks[run].label for run in (first, second)]
        page.say_of(" − ".join(names), pair_text(page, data, rows, first, second))
        shown = shown_rows(rows, f"depth {float(data['depth'].values[-1]):.2f}")
        if shown.empty:
            continue
        ax = page.panel("differences", f"{first}_{second}", wide=True, height=0.8 + 0.21 * len(shown))
        plot_differences(shown, ax=ax)
        faint_grid(ax, "x")
        ax.tick_params(axis="y", length=0, labelsize=7.5)
        ax.set_title(" minus ".join(names))
    named = table.assign(
        first=[looks[run].label for run in table["first"]],
        second=[looks[run].label for run in table["second"]],
        what=[WORDS.get(what, what) for what in table["what"]],
        pairing=np.where(table["paired"], "paired", "unpaired"),
        size=table["difference"].abs(),
    )
    sure = named[excludes_zero(named)].sort_values("size", ascending=False)
    page.add("differences", None, pd.concat([sure, named.drop(sure.index)], ignore_index=True))
    page.set(
        note=data.attrs.get("note", ""),
        elsewhere=taken_elsewhere(json.loads(str(data.attrs.get("sources", "{}")))),
        missing=listed_missing(json.loads(str(data.attrs.get("missing", "[]"))), page.context.shown_location),
    )


def pair_text(page: Page, data: xr.Dataset, rows: Any, first: str, second: str) -> str:
    """How far two models' accuracies lie apart, and how many differences are sure."""
    text = ""
    for row in rows[rows["what"] == "accuracy"].head(1).to_dict("records"):
        row |= {end: points(row[end], unit=False) for end in ("low", "high")}
        p = float(data["accuracy_p"].sel(model=first, other_model=second)) if "accuracy_p" in data else np.nan
        text = page.text("paired" if row["paired"] else "unpaired", **row, p=p)
    sure = rows[excludes_zero(rows) & (rows["what"] != "accuracy")]
    return text + page.text("sure", n_sure=len(sure), n=len(rows))


def excludes_zero(rows: Any) -> Any:
    """Whether the interval of each difference leaves out 0."""
    return (rows["low"] > 0) | (rows["high"] < 0)


def shown_rows(rows: Any, last: str) -> Any:
    """Differences that are drawn, in words: those of the last layer, of the vectors fed in, and of the whole."""
    where = rows["where"]
    shown = rows[
        (
            where.str.contains(last, regex=False)
            | rows["what"].isin(["accuracy", "error_auroc"])
            | where.str.startswith(("mean, ct", "fed, "))
        )
        & (rows["what"] != "step_probe")
    ]
    names = [
        spoken(what, place.replace(f"{last}, ", "")) for what, place in zip(shown["what"], shown["where"], strict=True)
    ]
    return shown.assign(what=names, where="").head(MOST_ROWS)


def kind_of(controls: Mapping[str, Control], run: str) -> str:
    """Kind of control that a run's model is; empty where it is none."""
    control = controls.get(run.partition("/")[0])
    return "" if control is None else control.kind


def spoken(what: str, where: str) -> str:
    """A difference in a few words."""
    words = where.split(", ")
    if what == "importance" and len(words) == 2:
        return f"importance of {words[1]} ({words[0]})"
    if what == "patch_clean" and len(words) == 2:
        return f"clean answers, first {words[1]} patched"
    return f"{WORDS.get(what, what)}{': ' if where else ''}{where}"


def listed_missing(lines: Sequence[str], location: object) -> str:
    """What is missing, by what it is rather than by run, each with the command that makes it for all of them."""
    runs_of: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        run, _, rest = line.partition(": ")
        what, _, command = rest.partition("; ")
        # The run it is computed from: patching is of the model's pairs.
        source = next((word for word in command.split() if word.startswith(run.partition("/")[0] + "/")), run)
        runs_of.setdefault((what, command.replace(source, "RUNS")), {})[run] = source
    return "; ".join(
        f"{what} of {', '.join(runs)} ({filled(command, location, dict.fromkeys(runs.values()))})"
        for (what, command), runs in runs_of.items()
    )


def taken_elsewhere(sources: dict[str, str]) -> str:
    """Measures that come from a run other than the one compared, with that result's name."""
    texts = []
    for what, source in sources.items():
        measure, _, run = what.rpartition(" of ")
        result = source.split()[0]
        if run.replace("/", ".") not in result:
            name = result.removeprefix("results/").partition("~")[0]
            texts.append(f"{measure} of {run.partition('/')[0]} ({name})")
    return "; ".join(texts)


SECTIONS = tuple(
    Section(slug=slug, write=write, chapter="comparison", order=order, needs=("compare",), of="several")
    for slug, write, order in (("model-comparison", seven_panels, 10), ("differences", differences, 20))
)
