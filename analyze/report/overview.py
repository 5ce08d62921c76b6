"""What was run, how complete it is, how well it answered; and where each experiment of the reports stands."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyze.report import figures as draw
from analyze.report.content import Column, Context, Experiment, Illustration, Panel, Section, Table, share
from analyze.statistics import wilson_interval
from store import precision_text

KEY_FINDINGS = (
    "chain-results",
    "token-ablation",
    "several-patching",
    "attention-importance",
    "critical-heads",
    "twins",
)
"""Experiments whose findings stand at the top of the page; the others fold."""


def run_rows(context: Context) -> list[dict[str, Any]]:
    """One row for each run: model, data, completeness, accuracy, fingerprints."""
    rows: list[Any] = []
    for name in context.runs:
        attributes = context.lake.attributes(name)
        layout, spec, data = attributes["layout"], attributes["spec"], attributes["data"]
        run = context.run(name)
        model = context.lake.model_attributes(name.partition("/")[0])
        correct = np.asarray(run["correct"].values, dtype=bool)
        low, high = wilson_interval(correct.sum(), correct.size)
        rows.append(
            {
                "run": name,
                "label": context.looks[name].label,
                "architecture": model.get("architecture", ""),
                "checkpoint": model.get("checkpoint", ""),
                "size": f"{layout['n_layer']} × {layout['n_head']} × {layout['hidden']}",
                "data": data["name"],
                "n": int(correct.size),
                "of": int(layout["n_example"]),
                "accuracy": share(float(correct.mean())) if correct.size else "–",
                "interval": f"[{share(float(low))}, {share(float(high))}]" if correct.size else "",
                "spec": f"{spec['dtype']}, {spec['capture']}",
                "precision": precision_text(attributes.get("precision")),
                "mark": attributes["fingerprint"][:12],
                "weights": str(attributes.get("weights", ""))[:12],
                "data_mark": str(data.get("sha256", ""))[:12],
                "provenance": json.dumps(attributes.get("provenance", {}), sort_keys=True),
            }
        )
    return rows


def accuracy_by_steps(context: Context) -> Section | None:
    """Accuracy over the length of the written chain."""
    series = []
    rows: list[Any] = []
    longest = 0
    main = context.main_runs()
    looks = context.relabel(main)
    for name in main:
        run = context.run(name)
        correct = np.asarray(run["correct"].values, dtype=bool)
        steps = (
            np.isfinite(run["intermediate_result"].values).sum(1)
            if "intermediate_result" in run
            else np.zeros(len(correct), dtype=int)
        )
        longest = max(longest, int(steps.max(initial=0)))
        series.append((name, correct, steps))
    groups = [n for n in range(1, longest + 1) if any((steps == n).any() for _, _, steps in series)]
    if not groups:
        return None
    drawn = []
    for name, correct, steps in series:
        count = np.array([correct[steps == n].sum() for n in groups])
        total = np.array([(steps == n).sum() for n in groups])
        low, high = wilson_interval(count, total)
        rate = np.where(total > 0, count / np.maximum(total, 1), np.nan)
        drawn.append((looks[name], rate, low, high))
        rows.extend(
            {
                "run": looks[name].label,
                "steps": n,
                "n": int(total[i]),
                "correct": int(count[i]),
                "accuracy": float(rate[i]),
                "low": float(low[i]),
                "high": float(high[i]),
            }
            for i, n in enumerate(groups)
            if total[i]
        )
    made, ax = draw.figure(9.2, 2.9)
    draw.bars(ax, groups, drawn)
    ax.set_ylim(0, 1.02)
    draw.as_percent(ax)
    ax.set_xlabel("steps of the written chain")
    ax.set_ylabel("answered correctly")
    draw.legend_above(ax, 4)
    return Section(
        headline="-",
        illustrations=[
            Illustration(
                name="accuracy_by_steps",
                caption="Accuracy by the number of steps in the problem's written solution. Thin lines are "
                "95% Wilson intervals; where a bar "
                "has a wide one, few problems are that long.",
                panels=[Panel(name="accuracy_by_steps", figure=made, wide=True)],
            )
        ],
        tables=[
            Table(
                name="accuracy_by_steps",
                caption="Accuracy by number of steps.",
                frame=pd.DataFrame(rows),
                columns=[
                    Column(label="Run", key="run", kind="text"),
                    Column(label="Steps", key="steps", kind="count"),
                    Column(label="n", key="n", kind="count"),
                    Column(label="Correct", key="accuracy", kind="share", low="low", high="high"),
                ],
            )
        ],
    )


def experiment_rows(experiments: Sequence[Experiment], shown: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The reports' experiments and their places on the page."""
    few = sum(bool(view["headline"]) for view in shown.values()) <= len(KEY_FINDINGS)
    return [
        {
            "title": e.title,
            "report": e.report or "–",
            "slug": e.slug,
            "key": few or e.slug in KEY_FINDINGS,
            "there": bool(shown[e.slug]["headline"]),
            "error": shown[e.slug]["error"],
            "headline": shown[e.slug]["headline"],
            "lines": shown[e.slug]["lines"],
            "command": shown[e.slug]["commands"][-1] if shown[e.slug]["commands"] else "",
        }
        for e in experiments
    ]
