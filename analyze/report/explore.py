"""Data behind the page's interactive parts: some problems of every run, every head, the features that fire most."""

from typing import Any

import numpy as np

from analyze.context import Context
from analyze.explorer.features import feature_lists
from analyze.explorer.heads import heads
from analyze.explorer.problems import problems

WINDOW = 1024
"""Neighbouring examples that problems are chosen from where no more are wanted, so that few shards are read."""
MAX_LAYER = 12
"""Layers whose attention is embedded; of a deeper model these many, evenly spread."""
MAX_FEATURE = 40
"""Features of each dictionary that are embedded: those that fire most often."""


def page_data(context: Context, *, n_problem: int, seed: int) -> dict[str, Any]:
    """Everything the explorer of a report reads."""
    chosen = choose_problems(context, n_problem, seed)
    runs = []
    for name in context.runs:
        look = context.looks[name]
        runs.append(
            {
                "name": name,
                "label": look.label,
                "problems": problems(context, name, chosen[name], most_layers=MAX_LAYER),
                "heads": heads(context, name),
                "features": feature_lists(context, name, most=MAX_FEATURE, details=True),
            }
        )
    return {"runs": runs}


def choose_problems(context: Context, n: int, seed: int) -> dict[str, list[int]]:
    """Examples of each run: the same for runs over the same data, spread over who answered them rightly.

    Every pattern of right and wrong over the runs gives one in turn until ``n`` are found, so that rare ones are there.
    """
    groups: dict[str, list[str]] = {}
    for name in context.runs:
        data = context.lake.attributes(name).get("data", {})
        groups.setdefault(str(data.get("sha256", name)), []).append(name)
    chosen = {}
    for names in groups.values():
        correct = {name: context.run(name)["correct"].compute().to_series() for name in names}
        common = set.intersection(*(set(column.index) for column in correct.values()))
        rng = np.random.default_rng(seed)
        labels = sorted(common)
        window = max(WINDOW, n)
        if len(labels) > window:
            first = int(rng.integers(0, len(labels) - window + 1))
            labels = labels[first : first + window]
        order = rng.permutation(labels)
        patterns: dict[tuple[bool, ...], list[int]] = {}
        for example in order:
            patterns.setdefault(tuple(bool(correct[name][example]) for name in names), []).append(int(example))
        taken: list[int] = []
        while len(taken) < min(n, len(order)):
            for queue in patterns.values():
                if queue and len(taken) < n:
                    taken.append(queue.pop())
        for name in names:
            chosen[name] = sorted(taken)
    return chosen
