"""Sections of what can be read off the states: probes, sparse autoencoders, error prediction."""

import json
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.probes.linear import summarise_probes
from analyze.report import figures as draw
from analyze.report.content import Column, Context, Found, Illustration, Panel, Section, Table, share
from store.read import preferred


def probe_results(context: Context, target: str) -> list[Found]:
    """Grids of probes for a target, over all examples where there are several."""
    return context.find("probes", lambda spec: spec.get("target") == target and not spec.get("n_per_class"))


def shown_positions(data: xr.Dataset) -> list[str]:
    """Positions up to ``eot``."""
    return [str(x) for x in data["position"].values if not str(x).startswith(("q-", "a"))]


def probe_map(each: Found, grid: xr.DataArray, title: str, name: str, high: float, low: float) -> Panel:
    """Map of a grid of probes."""
    made, ax = draw.figure(4.6, 0.9 + 0.28 * grid.sizes["layer"])
    draw.heat_map(
        ax,
        grid.transpose("layer", "position").values,
        [f"layer {x}" for x in grid["layer"].values],
        [str(x) for x in grid["position"].values],
        low=low,
        high=high,
    )
    ax.set_title(title)
    return Panel(name=f"{name}_{each.run}", figure=made)


def linear_probes(context: Context) -> Section | None:
    """Is it correct: read off the states, held out."""
    found = probe_results(context, "correct")
    if not found:
        return None
    panels, lines, caveats = [], [], []
    rows: list[Any] = []
    for each in found:
        positions = shown_positions(each.data)
        data = each.data.sel(position=positions)
        panels.append(probe_map(each, data["auroc"], f"{each.look.label}, AUROC", "probe_heatmap", 1.0, 0.5))
        summary = summarise_probes(data, "auroc").iloc[0]
        accuracy = summarise_probes(data).iloc[0]
        n_found, n_cell = int(summary["found"]), int(summary["n_cell"])
        lines.append(
            (
                each.look.label,
                f"AUROC {summary['mean']:.2f} on average over cells, at best {summary['highest']:.2f} "
                f"[{summary['best_low']:.2f}, {summary['best_high']:.2f}] (layer {summary['best_layer']}, "
                f"{summary['best_position']}); accuracy "
                f"{share(accuracy['mean'])} where always saying “right” gives {share(accuracy['baseline'])}; "
                f"{n_found} of {n_cell} cells beyond chance",
            )
        )
        table = (
            data[[v for v in data.data_vars if set(data[v].dims) <= {"layer", "position"}]].to_dataframe().reset_index()
        )
        rows.append(table.assign(run=each.look.label))
        wrong = 1 - float(data["majority_accuracy"].mean())
        if wrong < 0.03:
            caveats.append(
                f"{each.look.label} is wrong in only {share(wrong)} of its problems: its probes rest on few "
                f"examples of being wrong."
            )
    frame = pd.concat(rows, ignore_index=True)
    refit = frame.groupby("run", sort=False)["refit_training_accuracy"].mean()
    return Section(
        headline="Whether the answer will be right, read linearly off one state, on problems held out.",
        lines=lines,
        method="For every layer and position a logistic regression with nested cross-validation, folds of "
        "whole problems, scaling inside. "
        "AUROC is the chance that a problem answered rightly scores above one answered wrongly: 0.5 says nothing.",
        illustrations=[
            Illustration(
                name="probe_heatmap",
                caption="Held-out AUROC of a probe at each layer (rows) and position (columns); colour from 0.5 to 1.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="linear_probes",
                caption="Held-out figures of each probe; p is corrected for the number of cells. Trained: "
                "accuracy on the rows the probe was fitted to.",
                frame=frame,
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Layer", key="layer", kind="count"),
                    Column(label="Position", key="position", kind="text"),
                    Column(label="AUROC", key="auroc", low="auroc_low", high="auroc_high"),
                    Column(label="Accuracy", key="accuracy", kind="share", low="accuracy_low", high="accuracy_high"),
                    Column(label="Majority", key="majority_accuracy", kind="share"),
                    Column(label="Shuffled", key="control_accuracy", kind="share"),
                    Column(label="p (corrected)", key="p_corrected", kind="p"),
                    Column(label="Trained", key="refit_training_accuracy", kind="share"),
                ],
                limit=16,
            )
        ],
        caveats=[
            str(found[0].data.attrs.get("note", "")),
            *caveats,
            "Report 001 gave accuracy on the training rows; that figure here would be "
            + "; ".join(f"{run} {share(value)}" for run, value in refit.items())
            + ".",
        ],
        sources=[each.result for each in found],
    )


def step_probes(context: Context) -> Section | None:
    """Which intermediate result can be read where."""
    found = probe_results(context, "intermediate_result")
    operations = {f.run: f for f in probe_results(context, "operation")}
    if not found:
        return None
    panels, lines, operation_panels = [], [], []
    rows: list[Any] = []
    for each in found:
        positions = shown_positions(each.data)
        data = each.data.sel(position=positions)
        measure = "r2" if "r2" in data else "accuracy"
        grid = data[measure].isel(layer=-1)
        steps = [int(s) for s in np.atleast_1d(grid["step"].values)] if "step" in grid.dims else [0]
        values = grid.transpose("step", "position").values if "step" in grid.dims else grid.values[None]
        made, ax = draw.figure(4.6, 0.9 + 0.3 * len(steps))
        draw.heat_map(ax, np.clip(values, 0, None), [f"step {s + 1}" for s in steps], positions, high=1.0)
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"step_probes_{each.run}", figure=made))
        best = np.nanargmax(np.where(np.isfinite(values), values, -np.inf), axis=1)
        lines.append(
            (
                each.look.label,
                ", ".join(
                    f"step {s + 1} best at {positions[b]} ({values[i, b]:.2f})"
                    for i, (s, b) in enumerate(zip(steps, best, strict=True))
                ),
            )
        )
        kept = [v for v in data.data_vars if set(data[v].dims) <= {"step", "layer", "position"}]
        rows.append(data[kept].to_dataframe().reset_index().assign(run=each.look.label))
        if each.run in operations:
            other = operations[each.run].data
            other = other.sel(position=shown_positions(other)).isel(layer=-1)
            if "step" in other["accuracy"].dims:
                made, ax = draw.figure(4.6, 0.9 + 0.3 * other.sizes["step"])
                names = [f"step {int(s) + 1}" for s in other["step"].values]
                balanced = other["balanced_accuracy"].transpose("step", "position").values
                draw.heat_map(ax, balanced, names, shown_positions(other), low=0.25, high=1.0)
                ax.set_title(each.look.label)
                operation_panels.append(Panel(name=f"operation_probes_{each.run}", figure=made))
    illustrations = [
        Illustration(
            name="step_probes",
            caption="Held-out R² of a ridge regression of each intermediate result (rows) on the state at "
            "each position (columns), last layer; what is "
            "below 0, worse than the mean, is shown as 0.",
            panels=panels,
        )
    ]
    if operation_panels:
        illustrations.append(
            Illustration(
                name="operation_probes",
                caption="Held-out balanced accuracy of a probe for the operator of each step, last layer; "
                "colour from 0.25.",
                panels=operation_panels,
            )
        )
    frame = pd.concat(rows, ignore_index=True)
    return Section(
        headline="How well each intermediate result can be read linearly off the last layer's states.",
        lines=lines,
        method="As above, with the number each step of the written chain gives as the target. A problem "
        "counts only for the steps it has.",
        illustrations=illustrations,
        tables=[
            Table(
                name="step_probes",
                caption="Held-out R² of each probe, with intervals; the CSV holds every layer.",
                frame=frame[frame["layer"] == frame.groupby("run")["layer"].transform("max")].reset_index(drop=True),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Step", key="step", kind="count"),
                    Column(label="Position", key="position", kind="text"),
                    Column(label="n", key="n_example", kind="count"),
                    Column(label="R²", key="r2", low="r2_low", high="r2_high"),
                    Column(label="Shuffled", key="control_r2"),
                    Column(label="p (corrected)", key="p_corrected", kind="p"),
                ],
                limit=16,
            )
        ],
        caveats=[
            str(found[0].data.attrs.get("note", "")),
            "The same holds for a model and its decodable twin; the interventions tell them apart.",
        ],
        sources=[each.result for each in [*found, *operations.values()]],
    )


def sparse_autoencoders(context: Context) -> Section | None:
    """How well few features rebuild the states."""
    results = preferred(
        r for r in context.results if r.kind in ("sae", "saes") and "explained_variance_all" in context.open(r)
    )
    if not results:
        return None
    rows: list[dict[str, Any]] = []
    looks = context.relabel([run for r in results for run in r.runs])
    results.sort(key=lambda r: (len(r.runs), context.runs.index(r.runs[0])))
    for result in results:
        data = context.open(result)
        split = "test" if "test" in data["split"].values else str(data["split"].values[-1])
        variance = data["explained_variance_all"].sel(split=split)
        spec = json.loads(data.attrs.get("spec", "{}"))
        sources = (
            [str(s) for s in np.atleast_1d(variance["source"].values)]
            if "source" in variance.dims
            else [", ".join(result.runs)]
        )
        for index, source in enumerate(sources):
            one = variance.isel(source=index) if "source" in variance.dims else variance
            label = looks[result.runs[0]].label if len(result.runs) == 1 else source
            dead = data["dead_share"].sel(split=split)
            l0 = data["l0"].sel(split=split)
            rows.append(
                {
                    "run": label,
                    "scope": str(data.attrs.get("scope", spec.get("scope", ""))),
                    "activation": str(spec.get("activation", data.attrs.get("activation", ""))),
                    "n_feature": data.sizes["feature"],
                    "l0": float(l0.mean()),
                    "dead": float(dead.mean()),
                    **{str(d): float(one.sel(definition=d).mean()) for d in one["definition"].values},
                }
            )
    frame: Any = pd.DataFrame(rows)
    made, ax = draw.figure(9.2, 0.9 + 0.34 * len(frame))
    y = np.arange(len(frame))
    ax.barh(y, frame["squared_error"].clip(lower=0), height=0.62, facecolor=draw.HEAT, edgecolor=draw.HEAT)
    ax.set_yticks(y, [f"{r['run']}, {r['scope'] or 'pool'}, {r['activation']}" for r in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    draw.as_percent(ax, "x")
    draw.faint_grid(ax, "x")
    ax.set_xlabel("variance explained on test problems")
    best = [
        (str(run), f"{share(part['squared_error'].max())} of the variance with "
                   f"{part.loc[part['squared_error'].idxmax(), 'l0']:.1f} of "
         f"{part.loc[part['squared_error'].idxmax(), 'n_feature']} features at a time, "
         f"{share(part.loc[part['squared_error'].idxmax(), 'dead'])} of them dead")
        for run, part in frame.groupby("run", sort=False)
    ]  # fmt: skip
    return Section(
        headline="How much of the states' variance a sparse dictionary rebuilds, on problems it was not fitted to.",
        lines=best,
        method="Dictionaries are fitted on training problems and judged on test problems; variance "
        "explained is 1 − Σ|x − x̂|² / Σ|x − mean|².",
        illustrations=[
            Illustration(
                name="sae_variance",
                caption="Explained variance of each dictionary in the lake: one for a pool of cells, one "
                "per cell (mean), or one shared by several models "
                "(a crosscoder, one bar for each).",
                panels=[Panel(name="sae_variance", figure=made, wide=True)],
            )
        ],
        tables=[
            Table(
                name="sparse_autoencoders",
                caption="Dictionaries. The reports used two other definitions of explained variance, which "
                "forgive a constant offset or count reproducing the means.",
                frame=frame,
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Scope", key="scope", kind="text"),
                    Column(label="Kind", key="activation", kind="text"),
                    Column(label="Features", key="n_feature", kind="count"),
                    Column(label="Active", key="l0", digits=1),
                    Column(label="Dead", key="dead", kind="share"),
                    Column(label="Explained", key="squared_error", kind="share"),
                    Column(label="Per dimension", key="per_dimension", kind="share"),
                    Column(label="All elements", key="all_elements", kind="share"),
                ],
            )
        ],
        caveats=[
            "Report 001's penalty was averaged over features, a four-thousandth of the usual sum, and its "
            "dictionaries saw the classifier's test rows."
        ],
        sources=results,
    )


PREDICTOR_NAMES = {
    "sae_codes": "sparse codes",
    "raw_activation": "raw activations",
    "question_length": "question length",
    "majority": "majority",
}


def error_prediction(context: Context) -> Section | None:
    """Will the answer be wrong."""
    found = context.find("errors") or context.find("error_prediction")
    if not found:
        return None
    panels, lines = [], []
    rows: list[Any] = []
    for each in found:
        data = each.data
        names = [str(x) for x in data["predictor"].values]
        value, low, high = (data[k].values for k in ("auroc", "auroc_low", "auroc_high"))
        made, ax = draw.figure(4.6, 2.2)
        y = np.arange(len(names))
        ax.plot(
            value,
            y,
            linestyle="none",
            marker=each.look.marker,
            color=each.look.colour,
            markerfacecolor=draw.PAPER if each.look.dashed else each.look.colour,
        )
        ax.hlines(y, low, high, color=draw.INK, linewidth=1)
        ax.axvline(0.5, color=draw.MUTED, linewidth=1, linestyle=(0, (2, 2)))
        ax.set_yticks(y, [PREDICTOR_NAMES.get(n, n) for n in names])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.02)
        ax.set_ylim(len(names) - 0.5, -0.5)
        draw.faint_grid(ax, "x")
        ax.set_xlabel("AUROC")
        ax.set_title(each.look.label)
        panels.append(Panel(name=f"error_prediction_{each.run}", figure=made))
        at = {n: i for i, n in enumerate(names)}
        parts = [
            f"{PREDICTOR_NAMES.get(n, n)} {value[at[n]]:.2f} [{low[at[n]]:.2f}, {high[at[n]]:.2f}]"
            for n in ("sae_codes", "raw_activation", "question_length") if n in at and np.isfinite(value[at[n]])
        ]  # fmt: skip
        lines.append(
            (
                each.look.label,
                "AUROC of " + ", ".join(parts) if parts else "no AUROC: the test problems have one outcome only",
            )
        )
        for i, name in enumerate(names):
            row: dict[str, Any] = {"run": each.look.label, "predictor": PREDICTOR_NAMES.get(name, name)}
            for key in ("accuracy", "balanced_accuracy", "auroc"):
                row |= {f"{key}{end}": float(data[f"{key}{end}"].values[i]) for end in ("", "_low", "_high")}
            row["train_accuracy"] = float(data["train_accuracy"].values[i])
            for key in ("precision", "recall"):
                for outcome in data["outcome"].values:
                    row[f"{key}_{outcome}"] = float(data[key].isel(predictor=i).sel(outcome=outcome))
            rows.append(row)
    notes = [f"{each.look.label}: {each.data.attrs['note']}" for each in found if each.data.attrs.get("note")]
    return Section(
        headline="Whether a wrong answer can be foreseen from sparse codes of the thoughts, and whether "
        "simpler predictors do as well.",
        lines=lines,
        method="A logistic regression on each predictor, fitted on training problems; all are judged on the "
        "same test problems, which neither it nor the "
        "dictionary has seen.",
        illustrations=[
            Illustration(
                name="error_prediction",
                caption="AUROC of foreseeing a wrong answer, with 95% bootstrap intervals over problems; "
                "dashed, chance.",
                panels=panels,
            )
        ],
        tables=[
            Table(
                name="error_prediction",
                caption="Held-out figures of each predictor.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="From", key="predictor", kind="text"),
                    Column(label="AUROC", key="auroc", low="auroc_low", high="auroc_high"),
                    Column(label="Accuracy", key="accuracy", kind="share", low="accuracy_low", high="accuracy_high"),
                    Column(label="Precision, wrong", key="precision_wrong", kind="share"),
                    Column(label="Recall, wrong", key="recall_wrong", kind="share"),
                    Column(label="On training", key="train_accuracy", kind="share"),
                ],
            )
        ],
        caveats=[
            *notes,
            "Where a model is nearly always right, accuracy says little: the majority answer has it too. "
            "Report 001's 70–75% had labels from other problems "
            "or twins on both sides of the split.",
        ],
        sources=[each.result for each in found],
    )
