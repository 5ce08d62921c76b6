"""Sections of the comparison: report 004's panels, differences between models, a model against its twin."""

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.compare.differences import comparison_table, difference_table
from analyze.compare.figures import SEVEN, plot_differences
from analyze.report import figures as draw
from analyze.report.content import Column, Context, Illustration, Panel, Section, Table, points, share
from schemas import filled
from store.read import Result, preferred

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


def comparison(context: Context) -> tuple[xr.Dataset, Result] | None:
    """The stored comparison of the most of the page's models."""
    main = set(context.main_runs())
    found = preferred(r for r in context.results if r.kind == "compare" and len(set(r.runs) & main) >= 2)
    if not found:
        return None
    best = max(found, key=lambda r: len(set(r.runs) & main))
    data = context.open(best)
    return data.assign_coords(model=[str(x) for x in data["model"].values]), best


def looks_of(context: Context, data: xr.Dataset) -> dict[str, dict[str, Any]]:
    """How the models of a comparison are drawn."""
    looks = context.relabel([str(x) for x in data["model"].values])
    return {
        run: {"label": k.label, "colour": k.colour, "marker": k.marker, "dashed": k.dashed} for run, k in looks.items()
    }


def is_twin(run: str) -> bool:
    """Whether a run is of a model trained not to use its thoughts."""
    return run.partition("/")[0].endswith("-decodable")


def spoken(what: str, where: str) -> str:
    """A difference in a few words."""
    parts = where.split(", ")
    if what == "importance" and len(parts) == 2:
        return f"importance of {parts[1]} ({parts[0]})"
    if what == "patch_clean" and len(parts) == 2:
        return f"clean answers, first {parts[1]} patched"
    return f"{WORDS.get(what, what)}{': ' if where else ''}{where}"


def listed_missing(lines: Sequence[str], location: object) -> str:
    """What is missing, by what it is rather than by run, each with the command that makes it for all of them."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        run, _, rest = line.partition(": ")
        part, _, command = rest.partition("; ")
        # The run it is computed from: patching is of the model's pairs.
        source = next((word for word in command.split() if word.startswith(run.partition("/")[0] + "/")), run)
        found.setdefault((part, command.replace(source, "RUNS")), {})[run] = source
    said = [
        f"{part} of {', '.join(runs)} ({filled(command, location, dict.fromkeys(runs.values()))})"
        for (part, command), runs in found.items()
    ]
    return "; ".join(said)


def taken_elsewhere(sources: dict[str, str]) -> str:
    """Parts that come from a run other than the one compared, with that result's name."""
    said = []
    for what, source in sources.items():
        part, _, run = what.rpartition(" of ")
        result = source.split()[0]
        if run.replace("/", ".") not in result:
            said.append(f"{part} of {run.partition('/')[0]} ({result.removeprefix('results/').partition('~')[0]})")
    return "; ".join(said)


def seven_panels(context: Context) -> Section | None:
    """Heads side by side."""
    found = comparison(context)
    if found is None or "hub_received" not in found[0]:
        return None
    data, result = found
    looks = looks_of(context, data)
    panels, lines = [], []
    for index, (title, paint) in enumerate(SEVEN):
        made, ax = draw.figure(4.6, 2.8)
        paint(data, looks, ax)
        draw.faint_grid(ax)
        ax.set_title(title)
        if index == 0:
            ax.legend(loc="best", fontsize=7.5)
        panels.append(Panel(name=f"model_comparison_{index + 1}", figure=made))
    table = comparison_table(data)
    for row in table.to_dict("records"):
        label = looks[row["model"]]["label"]
        ratio = f", {row['hub_ratio']:.2f} times an even spread" if not pd.isna(row.get("hub_ratio", np.nan)) else ""
        lines.append(
            (label, f"hub at {row.get('hub', '–')}{ratio}; top composite {row.get('top_composite', np.nan):.2f}")
        )
    return Section(
        headline="The models' heads side by side, in report 004's seven panels.",
        lines=lines,
        method="The same scores as in the sections above, of every model on one scale. Black lines: what an "
        "even causal spread would give.",
        illustrations=[
            Illustration(
                name="model_comparison",
                caption="Attention that later thoughts pay each thought, and its ratio to an even spread; "
                "composite of the highest-ranked heads; what those heads "
                "do and where they lie; mean scores over all heads; attention of the last thought to early "
                "ones. Twins are dashed and hatched.",
                panels=panels,
            )
        ],
        caveats=[
            "Counts and curves are of the 20 highest-ranked heads, or of all where a model has fewer; "
            "models with other numbers of heads are not on equal terms."
        ],
        sources=[result],
    )


def differences(context: Context) -> Section | None:
    """Models against each other, with intervals."""
    found = comparison(context)
    if found is None:
        return None
    data, result = found
    looks = looks_of(context, data)
    table = difference_table(data)
    models = [str(x) for x in data["model"].values]
    pairs = [(a, b) for a, b in combinations(models, 2) if is_twin(a) == is_twin(b)] or list(combinations(models, 2))[
        :1
    ]
    panels, lines = [], []
    last = f"depth {float(data['depth'].values[-1]):.2f}"
    for first, second in pairs[:4]:
        part = table[(table["first"] == first) & (table["second"] == second)]
        whole = part[part["what"] == "accuracy"]
        text = ""
        if len(whole):
            row = whole.iloc[0]
            p = float(data["accuracy_p"].sel(model=first, other_model=second)) if "accuracy_p" in data else np.nan
            ends = f"[{points(row['low'], unit=False)}, {points(row['high'], unit=False)}]"
            text = f"accuracy {points(row['difference'])} {ends}, "
            if row["paired"]:
                text += f"paired over the same problems, McNemar p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
            else:
                text += "unpaired, as the problems differ"
        sure = part[((part["low"] > 0) | (part["high"] < 0)) & ~part["what"].isin(["accuracy"])]
        text += f"; {len(sure)} of {len(part)} differences have an interval that leaves out 0"
        lines.append((f"{looks[first]['label']} − {looks[second]['label']}", text))
        shown = part[
            part["where"].str.contains(last, regex=False)
            | part["what"].isin(["accuracy", "error_auroc"])
            | (part["where"].str.startswith("mean, ct"))
            | part["where"].str.startswith("fed, ")
        ]
        shown = shown[~shown["what"].isin(["step_probe"])]
        named = [
            spoken(what, where.replace(f"{last}, ", ""))
            for what, where in zip(shown["what"], shown["where"], strict=True)
        ]
        shown = shown.assign(what=named, where="").head(44)
        if shown.empty:
            continue
        made, ax = draw.figure(9.2, 0.8 + 0.21 * len(shown))
        plot_differences(shown, ax=ax)
        draw.faint_grid(ax, "x")
        ax.tick_params(axis="y", length=0, labelsize=7.5)
        ax.set_title(f"{looks[first]['label']} minus {looks[second]['label']}")
        panels.append(Panel(name=f"differences_{first}_{second}", figure=made, wide=True))
    shown_table = table.assign(
        first=[looks[x]["label"] for x in table["first"]],
        second=[looks[x]["label"] for x in table["second"]],
        what=[WORDS.get(w, w) for w in table["what"]],
        pairing=np.where(table["paired"], "paired", "unpaired"),
        size=table["difference"].abs(),
    )
    sure = shown_table[(shown_table["low"] > 0) | (shown_table["high"] < 0)].sort_values("size", ascending=False)
    missing = json.loads(str(data.attrs.get("missing", "[]")))
    caveats = [
        "Layers meet by relative depth l / (L − 1), each depth by every model's nearest layer. “Unpaired” "
        "intervals are made from the two models' own as if "
        "they were independent; over the same problems they are wider than need be.",
        "These are many differences at once and not corrected for it: one in twenty of those that are "
        "nothing will still leave out 0.",
    ]
    elsewhere = taken_elsewhere(json.loads(str(data.attrs.get("sources", "{}"))))
    if elsewhere:
        caveats.append(f"Taken from another run of the same model: {elsewhere}.")
    if missing:
        caveats.append("Not compared, as the lake lacks it: " + listed_missing(missing, context.lake.location) + ".")
    return Section(
        headline="Differences between models, with their intervals.",
        lines=lines,
        method=f"First model minus second. Runs {data.attrs.get('note', '')}.",
        illustrations=[
            Illustration(
                name="differences",
                caption="Differences at the last layer and at the vectors fed in, with 95% intervals; "
                "filled where paired over the same problems, hollow where not; "
                "strong where the interval leaves out 0.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="differences",
                caption="The largest differences whose interval leaves out 0, of all pairs of models. The "
                "CSV holds every difference.",
                frame=pd.concat([sure, shown_table.drop(sure.index)], ignore_index=True),
                columns=[
                    Column(label="What", key="what", kind="text"),
                    Column(label="Where", key="where", kind="text"),
                    Column(label="First", key="first", kind="text"),
                    Column(label="Second", key="second", kind="text"),
                    Column(label="Difference", key="difference", kind="signed", low="low", high="high", digits=3),
                    Column(label="", key="pairing", kind="text"),
                ],
                limit=40,
            )
        ],
        caveats=caveats,
        sources=[result],
    )


def _measure(
    rows: list[dict[str, Any]], kind: str, what: str, one: xr.Dataset, other: xr.Dataset, name: str, **labels: Any
) -> None:
    """Add one measure of a model and of its twin, where both have it."""
    values = []
    for data in (one, other):
        if name not in data:
            return
        part = data
        for dim, label in labels.items():
            if dim not in part[name].dims or label not in part[dim].values:
                return
            part = part.sel({dim: label})
        if part[name].ndim or not np.isfinite(float(part[name])):
            return
        ends = [
            float(part[f"{name}_{end}"]) if f"{name}_{end}" in part and part[f"{name}_{end}"].ndim == 0 else np.nan
            for end in ("low", "high")
        ]
        values.append((float(part[name]), *ends))
    (a, a_low, a_high), (b, b_low, b_high) = values
    rows.append(
        {
            "kind": kind,
            "what": what,
            "model": a,
            "model_low": a_low,
            "model_high": a_high,
            "twin": b,
            "twin_low": b_low,
            "twin_high": b_high,
            "difference": a - b,
        }
    )


def twins(context: Context) -> Section | None:
    """A model and its decodable twin: read alike, used or not."""
    found = comparison(context)
    if found is None:
        return None
    data, result = found
    runs = [str(x) for x in data["model"].values]
    partner = {}
    for run in runs:
        model, _, dataset = run.partition("/")
        twin = f"{model}-decodable/{dataset}"
        if twin in runs:
            partner[run] = twin
    if not partner:
        return None
    looks = looks_of(context, data)
    last = float(data["depth"].values[-1])
    panels, lines, tables = [], [], []
    for run, twin in partner.items():
        one, other = data.sel(model=run, drop=True), data.sel(model=twin, drop=True)
        rows: list[dict[str, Any]] = []
        _measure(rows, "reads", "accuracy, untouched", one, other, "accuracy")
        thoughts = [str(p) for p in data["position"].values if str(p).startswith("ct")]
        for step in [s for s in (data["step"].values if "step" in data.dims else [])][:3]:
            if "chain_share" in one:
                share_at = one["chain_share"].sel(step=step)
                if share_at.notnull().any():
                    best = str(share_at["position"].values[int(np.nanargmax(share_at.values))])
                    _measure(
                        rows,
                        "reads",
                        f"lens: step {int(step) + 1} at {best}",
                        one,
                        other,
                        "chain_share",
                        step=step,
                        position=best,
                    )
            if "step_probe" in one:
                probe_at = one["step_probe"].sel(step=step, depth=last)
                if probe_at.notnull().any():
                    best = str(probe_at["position"].values[int(np.nanargmax(probe_at.values))])
                    _measure(
                        rows,
                        "reads",
                        f"probe: step {int(step) + 1} at {best}, R²",
                        one,
                        other,
                        "step_probe",
                        step=step,
                        depth=last,
                        position=best,
                    )
        if "importance" in one:
            for thought in thoughts:
                _measure(
                    rows,
                    "uses",
                    f"{thought} averaged: answers lost",
                    one,
                    other,
                    "importance",
                    corruption="mean",
                    position=thought,
                )
        _measure(
            rows,
            "uses",
            "all averaged: accuracy",
            one,
            other,
            "ablation_accuracy",
            operation="mean",
            group="all",
            place="fed",
        )
        _measure(
            rows,
            "uses",
            "numbers averaged: accuracy",
            one,
            other,
            "ablation_accuracy",
            operation="mean",
            group="numbers",
            place="fed",
        )
        if "n_thought" in data.dims:
            n = int(data["n_thought"].values.max())
            _measure(
                rows,
                "uses",
                f"{n} patched: clean answers",
                one,
                other,
                "patch_clean",
                place="fed",
                n_thought=n,
            )
        if not rows:
            continue
        frame: Any = pd.DataFrame(rows)
        made, ax = draw.figure(4.6, 0.9 + 0.23 * len(frame))
        look, twin_look = (context.relabel([run, twin])[r] for r in (run, twin))
        rows_drawn: list[Any] = list(frame.itertuples())
        for y, row in enumerate(rows_drawn):
            ax.plot([row.model, row.twin], [y, y], color=draw.RULE, linewidth=2.5, zorder=1)
            for value, low, high, mark in (
                (row.model, row.model_low, row.model_high, look),
                (row.twin, row.twin_low, row.twin_high, twin_look),
            ):
                if np.isfinite(low) and np.isfinite(high):
                    ax.hlines(y, low, high, color=mark.colour, linewidth=1.2, zorder=2)
                ax.plot(
                    value,
                    y,
                    marker=mark.marker,
                    color=mark.colour,
                    markersize=6,
                    markerfacecolor=draw.PAPER if mark.dashed else mark.colour,
                    linestyle="none",
                    zorder=3,
                    label=mark.label if y == 0 else None,
                )
        border = int((frame["kind"] == "reads").sum())
        ax.axhline(border - 0.5, color=draw.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        ax.set_yticks(np.arange(len(frame)), frame["what"])
        ax.set_ylim(len(frame) - 0.4, -0.6)
        ax.set_xlim(-0.03, 1.03)
        ax.tick_params(axis="y", length=0)
        draw.faint_grid(ax, "x")
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, -0.06), ncols=2, fontsize=8)
        panels.append(Panel(name=f"twins_{run}", figure=made))
        reads, uses = (frame[frame["kind"] == kind]["difference"].abs() for kind in ("reads", "uses"))
        text = f"measures of what can be read lie {100 * float(reads.mean()):.1f} points apart on average"
        if len(uses):
            worst = frame.loc[uses.idxmax()]
            text += f", measures of what is used {100 * float(uses.mean()):.1f}; furthest “{worst['what']}”, "
            text += f"{share(worst['model'])} against {share(worst['twin'])} in the twin"
        lines.append((looks[run]["label"], text))
        tables.append(
            frame.assign(run=looks[run]["label"], kind=np.where(frame["kind"] == "reads", "can be read", "is used"))
        )
    if not tables:
        return None
    return Section(
        headline="What can be read from the thoughts of a model and of its decodable twin, and what is made of it.",
        lines=lines,
        method="The twin was trained so that lens and probes read the same intermediate results while its "
        "answer does not depend on them. Measures above the dashed "
        "line ask what can be read from the thoughts, those below what the answer makes of them.",
        illustrations=[
            Illustration(
                name="twins",
                caption="Each measure (rows) of a model (filled) and of its twin (hollow), with 95% "
                "intervals. “Averaged”: thoughts set to their mean over the run; “answers lost”: right ones that turn "
                "wrong; “numbers”: the thoughts that read as numbers; “patched”: from the clean problem of a pair. "
                "Above the dashed line, what can be read: the marks "
                "should coincide. Below, what is used: they should lie apart.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="twins",
                caption="The same in numbers.",
                frame=pd.concat(tables, ignore_index=True),
                columns=[
                    Column(label="Model", key="run", kind="text"),
                    Column(label="", key="kind", kind="text"),
                    Column(label="Measure", key="what", kind="text"),
                    Column(label="Model", key="model", low="model_low", high="model_high"),
                    Column(label="Twin", key="twin", low="twin_low", high="twin_high"),
                    Column(label="Difference", key="difference", kind="signed"),
                ],
            )
        ],
        caveats=[
            "A method that gives a model and its twin the same result says nothing about use. Lens, probes "
            "and attention are such methods; ablation and patching are not."
        ],
        sources=[result],
    )
