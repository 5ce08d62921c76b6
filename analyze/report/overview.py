"""What was run, how complete it is, how well it answered; and where each experiment of the reports stands."""

import json
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import numpy as np

from analyze.context import Context, without_folders
from analyze.explorer.listing import chain_lengths
from analyze.page import NothingStored, Page, Section, share
from analyze.report.sections import sections
from schemas.statistics import share_interval
from store import precision_text

FIRST = 50
"""Problems among which the shortest is shown."""


def run_rows(context: Context) -> list[dict[str, Any]]:
    """One row for each run: model, data, completeness, accuracy, fingerprints."""
    rows: list[Any] = []
    for name in context.runs:
        attributes = context.lake.attributes(name)
        layout, data = attributes["layout"], attributes.get("data", {})
        run = context.run(name)
        model = context.lake.model_attributes(name.partition("/")[0])
        correct = np.asarray(run["correct"].values, dtype=bool)
        low, high = share_interval(correct, np.ones_like(correct), run["problem"].values)
        rows.append(
            {
                "run": name,
                "label": context.looks[name].label,
                "architecture": model.get("architecture", ""),
                "checkpoint": without_folders(str(model.get("checkpoint", ""))),
                "size": f"{layout['n_layer']} × {layout['n_head']} × {layout['hidden']}",
                "data": data.get("name", ""),
                "n": int(correct.size),
                "of": int(layout["n_example"]),
                "accuracy": share(float(correct.mean())) if correct.size else "–",
                "interval": f"[{share(float(low))}, {share(float(high))}]" if correct.size else "",
                "spec": f"{layout['dtype']}, {layout['capture']}",
                "precision": precision_text(attributes.get("precision")),
                "mark": attributes["fingerprint"][:12],
                "weights": str(attributes.get("weights", ""))[:12],
                "data_mark": str(data.get("sha256", ""))[:12],
                "provenance": json.dumps(attributes.get("provenance", {}), sort_keys=True),
            }
        )
    return rows


def accuracy_by_steps(page: Page) -> None:
    """Accuracy over the length of the written chain."""
    runs = page.context.main_runs()
    steps = {name: chain_lengths(page.context.run(name)) for name in runs}
    groups = sorted({int(n) for lengths in steps.values() for n in lengths if n > 0})
    if not groups:
        raise NothingStored
    series = []
    for name, look in page.context.relabel(runs).items():
        run = page.context.run(name)
        correct, of_length = np.asarray(run["correct"].values, dtype=bool), steps[name] == np.array(groups)[:, None]
        count, total = (correct & of_length).sum(1), of_length.sum(1)
        low, high = share_interval(np.broadcast_to(correct, of_length.shape), of_length, run["problem"].values)
        rate = np.where(total > 0, count / np.maximum(total, 1), np.nan)
        series.append((look, rate, low, high))
        rows = {"steps": groups, "n": total, "correct": count, "accuracy": rate, "low": low, "high": high}
        there = total > 0
        page.add("accuracy_by_steps", look.label, {key: np.asarray(values)[there] for key, values in rows.items()})
    ax = page.bars("accuracy_by_steps", groups, series, "answered correctly", top=1.02)
    ax.set_xlabel("steps of the written chain")


OVERVIEW = Section(slug="what-was-run", write=accuracy_by_steps)


def opening_sentence(context: Context, shown: Mapping[str, Mapping[str, Any]]) -> str:
    """What the page says first: the first section's sentence that has one, else what the main run answers."""
    for section in sections():
        if sentence := shown[section.slug]["opening"]:
            return str(sentence)
    run = context.main_runs()[0]
    correct = context.run(run)["correct"].values
    if not correct.size:
        return f"Nothing of {run} is stored yet."
    return (
        f"{run.partition('/')[0]} answers {share(float(correct.mean()))} of {correct.size} problems of"
        f" {run.partition('/')[2]} rightly; no result in this lake says yet what its thoughts do."
    )


def about(context: Context) -> str:
    """What a thought is, if the main run has any, and the shortest of its first problems."""
    run = context.main_runs()[0]
    data = context.run(run)
    text = (
        "A thought (ct0, ct1, ..) is a vector that a model makes and is fed in place of a word, between question and"
        " answer. "
    ) * ("ct0" in data["position"].values)
    questions = data["question"].values[:FIRST].astype(str)
    if not len(questions):
        return text
    shortest = int(np.argmin([len(question) for question in questions]))
    question = shorten(questions[shortest], 200, placeholder=" ..")
    answer = data["gold_answer"].values[shortest]
    return f"{text}A problem of {run.partition('/')[2]}: “{question}” Answer: {answer}."


def experiment_rows(shown: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every section, and what the page has of it."""
    return [
        {
            "title": view["title"],
            "report": view["report"] or "–",
            "slug": view["slug"],
            "set": view["set"],
            "key": section.key,
            "there": bool(view["headline"]),
            "error": view["error"],
            "headline": view["headline"],
            "lines": view["lines"],
            "command": view["commands"][-1] if view["commands"] else "",
        }
        for section, view in ((section, shown[section.slug]) for section in sections())
    ]
