"""Tables of docs/methods.md and docs/claims.md, from what docs/methods.py, claims.py and defects.py measured."""

import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas.statistics import wilson_interval

DOCS = Path(__file__).parent
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
METHODS = {
    "zero": "zero", "shuffle": "shuffle (all at once)", "noise": "noise", "edges cut": "edges cut",
    "heads": "heads zeroed (any)", "head attribution": "head attribution (any)", "attribution": "attribution patching",
    "lens": "lens (reads)", "probe": "probe (reads)", "traces": "traces (reads)",
    "decoder": "decoder trained afterwards (reads)",
    "mean": "mean", "resample": "another problem's",
    "patch": "patch from a twin", "edit": "edit", "erase": "erase", "verdict": "verdict",
}  # fmt: skip
YES, UNDECIDED = "yes", ("undecided", "not measured")


def known(name: str) -> dict[str, Any]:
    """What was measured, by the name of its file."""
    path = DOCS / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def said(measured: dict[str, Any]) -> Iterator[tuple[str, str, bool, str]]:
    """Of each method, model and thought of known truth, and seed: the truth and what the method says."""
    cells: dict[tuple[str, str, int, str], list[str]] = {}
    for row in measured["rows"]:
        key = (row["method"], row["model"], row["seed"], row["of_thought"])
        cells.setdefault(key, []).append(row["says"])
    for (method, model, _, thought), says in cells.items():
        truth = measured["truth"].get(model, {}).get(thought)
        if truth is not None:
            yield method, model, truth, YES if YES in says else UNDECIDED[0] if set(says) & set(UNDECIDED) else "no"


def conditions() -> str:
    """What was run, with what."""
    measured = known("methods")
    if not measured:
        return "Not measured yet.\n"
    sizes = measured["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    weights = ", ".join(f"`{name}` {digest[:12]}" for name, digest in sorted(measured["weights"].items()))
    n_seed, n, changed, pairs = len(sizes["seeds"]), sizes["problems"], sizes["changed"], sizes["pairs"]
    return (
        f"Each model on {n_seed} seeds{fewer_seeds(measured)}. A seed draws {n} held-out problems, of which {changed}"
        f" are changed, and {pairs} pairs, and decides what is resampled, what noise is added and how problems are"
        " halved. Weights are of one training each: how much trainings differ is not measured here. Measured with"
        f" {versions}. Weights: {weights} (first digits of their file's SHA-256).\n"
    )


def fewer_seeds(measured: dict[str, Any]) -> str:
    """Methods that were not run on every seed of a model, with the most seeds that any model has."""
    seeds: dict[str, dict[str, set[int]]] = {}
    for row in measured["rows"]:
        seeds.setdefault(row["method"], {}).setdefault(row["model"], set()).add(row["seed"])
    most = {method: max(map(len, by_model.values())) for method, by_model in seeds.items()}
    fewer = [f"{METHODS[method]} on {n}" for method, n in most.items() if n < len(measured["sizes"]["seeds"])]
    return f" ({', '.join(fewer)})" if fewer else ""


def share_of(says: Sequence[str]) -> str:
    """How often a method said yes, with its interval and what it left open."""
    if not says:
        return "-"
    count, n = says.count(YES), len(says)
    low, high = wilson_interval(count, n)
    left = sum(one == UNDECIDED[0] for one in says)
    return f"{count} of {n} [{float(low):.0%}, {float(high):.0%}]" + (f", {left} undecided" if left else "")


def rates(table: Table) -> str:
    """Hits and false alarms of each method, together and by model."""
    measured = known("methods")
    if not measured:
        return "Not measured yet.\n"
    cells = list(said(measured))
    rows = [
        [label, *(share_of([says for name, _, used, says in cells if name == method and used == truth])
                  for truth in (True, False))]
        for method, label in METHODS.items()
    ]  # fmt: skip
    models = [name for name in measured["truth"] if any(model == name for _, model, _, _ in cells)]
    by_model = []
    for method, label in METHODS.items():
        row = [label]
        for model in models:
            says = [one for name, of, _, one in cells if (name, of) == (method, model)]
            row.append(f"{says.count(YES)} of {len(says)}" if says else "-")
        by_model.append(row)
    used = {model: "used" if any(measured["truth"][model].values()) else "not used" for model in models}
    heads = ["says used", *(f"`{model}` ({used[model]})" for model in models)]
    return (
        table(["method", "hits: used, and said so", "false alarms: not used, and said to be"], rows)
        + "\nCells are thoughts, and all thoughts at once, times seeds; the seeds of a thought are not independent, so"
        " that the intervals are narrower than they should be.\n\n" + table(heads, by_model)
    )  # fmt: skip


def alarms(table: Table) -> str:
    """Of each method the unused thought of which it says most."""
    measured = known("methods")
    if not measured:
        return "Not measured yet.\n"
    rows = []
    for method, label in METHODS.items():
        figures = [
            row
            for row in measured["rows"]
            if row["method"] == method and "value" in row
            and measured["truth"].get(row["model"], {}).get(row["of_thought"]) is False
        ]  # fmt: skip
        if figures:
            most = max(figures, key=lambda row: row["value"])
            rows.append(
                [label, f"`{most['model']}`", most["of_thought"], str(most["seed"]), figure(most), most["says"]]
            )
    return table(["method", "model", "thought", "seed", "share", "says used"], rows)


def figure(row: dict[str, Any]) -> str:
    """A share with its interval and n."""
    return f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}], n {row['n']}"


def claims(report: str, table: Table) -> str:
    """Every conclusion of a report, its defects, what was measured here, and the verdict."""
    listed = tomllib.loads((DOCS / "claims.toml").read_text(encoding="utf-8"))["claim"]
    rows = []
    for claim in listed:
        if claim["report"] == report:
            defects = ", ".join(f"[{name}](defects.md)" for name in claim.get("defects", [])) or "-"
            cell = "<br>".join(evidence(one) for one in claim.get("measured", [])) or "-"
            decides = f"<br>`{claim['command']}`" if "command" in claim else ""
            verdict = f"**{claim['verdict']}**. {claim['because']}{decides}"
            rows.append([claim["says"], defects, cell, verdict])
    return table(["the report says", "defects", "measured here", "verdict"], rows)


def evidence(reference: str) -> str:
    """A stored figure in words.

    ``E4 1`` is a row of a defect's table, ``MODEL THOUGHT METHOD`` one of docs/methods.json, ``by-step MODEL`` one of
    docs/claims.json.
    """
    words = reference.split()
    if words[0] == "by-step":
        return by_step(words[1])
    if words[0].startswith("E"):
        defects = known("defects")["defects"][words[0]]
        row = defects["rows"][int(words[1])]
        sides = f"{row['wrong']} as the scripts do, {row['right']} as it should be"
        return f"{row['what']}: {sides} ({defects['on'].rstrip('.')})"
    model, thought, method = words[0], words[1], " ".join(words[2:])
    rows = [
        row for row in known("methods").get("rows", [])
        if (row["model"], row["of_thought"], row["method"]) == (model, thought, method) and "value" in row
    ]  # fmt: skip
    if not rows:
        return f"{model}, {thought}, {method}: not measured yet"
    best = {row["seed"]: row for row in sorted(rows, key=lambda row: row["value"])}
    return f"{model}, {thought}, {METHODS[method]}: " + "; ".join(figure(best[seed]) for seed in sorted(best))


def by_step(model: str) -> str:
    """From how many thoughts on pairs follow, by the step in which they first differ."""
    of_model = known("claims").get(model)
    if not of_model:
        return f"{model}, pairs by the step that differs: not measured yet"
    parts = []
    for row in of_model["steps"]:
        never = row["wins"] is None
        wins = "at no N" if never else f"from N = {row['wins']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"
        parts.append(f"{row['step']} (n {row['n']}) {wins}")
    what = f"{model}, {of_model['n']} pairs by the step that differs first"
    return (
        f"{what}: {', '.join(parts)}; all together from N = {of_model['wins']:.0f}; ceiling {of_model['ceiling']:.1%}"
    )
