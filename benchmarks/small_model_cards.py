"""Write the model cards of the shipped small models from what ``small_models.py`` measured.

``python benchmarks/small_model_cards.py`` reads, from ``benchmarks/small_models``, ``NAME.json`` for the shipped
models (of those that search graphs, what ``python -m extract.small_models.graph_evaluate FOLDER --json`` prints),
``small-ARCH-direct.json`` for the comparison without thoughts (the same of ``evaluate FOLDER --direct``) and
``NAME-seedN.json`` for other seeds, and writes ``README.md`` and ``curve.png`` into each folder of
``extract/checkpoints``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt

CHECKPOINTS = Path(__file__).parents[1] / "extract" / "checkpoints"
NAMES = ("small-gpt2", "small-llama", "small-gpt2-decodable", "small-llama-decodable")
COT_NAMES = ("small-gpt2-cot",)
PAUSE_NAMES = ("small-gpt2-pause",)
GRAPH_NAMES = ("small-graph", "small-graph-pause", "small-graph-direct")
TWIN = "ct{k} of a twin that differs from step {step}: its answer"
FAMILY = {
    "gpt2": "`GPT2LMHeadModel`, learned positions, 122,496 weights",
    "llama": "`LlamaForCausalLM`, rotary positions, 114,880 weights",
}
CONDITIONS = (
    "accuracy",
    "all zero",
    "all mean",
    "all from another problem",
    *(f"ct{k} mean" for k in range(6)),
    *(f"ct{k} swapped, {what}" for k in (1, 3, 5) for what in ("follows the donor", "keeps its answer")),
)
LENSES = (
    *(f"lens at ct{k}, the number carried" for k in (0, 2, 4)),
    *(f"lens at {p}, a number" for p in ("ct0", "ct2", "ct4", "bot", "ct1", "ct3", "ct5")),
    *(f"lens at {p}, the operator" for p in ("bot", "ct1", "ct3", "ct5")),
)
PARTS = ("answer", "number", "operator", "teacher", "distillation", "thought", "look_up")
GOALS: dict[str, list[tuple[str, str, float]]] = {
    "": [
        ("accuracy", ">=", 0.95),
        ("accuracy, 4 operations", ">=", 0.90),
        ("all mean", "<=", 0.15),
        ("all from another problem", "<=", 0.15),
        *((f"ct{k} swapped, follows the donor", ">=", 0.75) for k in (1, 3, 5)),
        *((f"lens at ct{k}, the number carried", ">=", 0.95) for k in (0, 2, 4)),
        *((f"lens at {p}, a number", "<=", 0.05) for p in ("bot", "ct1", "ct3", "ct5")),
        ("pairs, both sides right", ">=", 0.70),
    ],
}
GOALS["-decodable"] = [
    *(goal for goal in GOALS[""] if goal[0].startswith("lens")),
    *((f"ct{k} swapped, follows the donor", "<=", 0.10) for k in (1, 3, 5)),
]


def reaches(rates: dict[str, Any], kind: str) -> list[str]:
    """Return the goals that are missed."""
    missed = []
    for label, sign, bound in GOALS[kind]:
        share = rates[label]["share"]
        if not (share >= bound if sign == ">=" else share <= bound):
            missed.append(f"{label} {share:.3f}")
    return missed


def rate_text(rate: dict[str, Any] | None) -> str:
    """A share with its interval, for a table."""
    return (
        "-" if rate is None or not rate["n_problem"] else f"{rate['share']:.3f} ({rate['low']:.3f}..{rate['high']:.3f})"
    )


def operations_table(rates: dict[str, Any], direct: dict[str, Any] | None) -> list[str]:
    """Rows by condition, columns by number of operations."""
    lines = ["| thoughts | 2 to 4 | 2 | 3 | 4 |", "|---|---|---|---|---|"]
    for label in CONDITIONS:
        cells = [rate_text(rates.get(key)) for key in (label, *(f"{label}, {n} operations" for n in (2, 3, 4)))]
        lines.append(f"| {'as they are: right' if label == 'accuracy' else label} | {' | '.join(cells)} |")
    if direct:
        cells = [rate_text(direct.get(key)) for key in ("accuracy", *(f"accuracy, {n} operations" for n in (2, 3, 4)))]
        lines.append(f"| *trained without thoughts*: right | {' | '.join(cells)} |")
    return lines


def draw_curve(curve: list[dict[str, float]], path: Path) -> None:
    """Loss and validation accuracy over the steps of all stages."""
    last = max(point["step"] for point in curve if point["stage"] == 1)
    step = [point["step"] + (last if point["stage"] == 2 else 0) for point in curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.4), layout="constrained")
    for part in PARTS:
        points = [(x, max(point[part], 1e-4)) for x, point in zip(step, curve, strict=True) if part in point]
        if points:
            left.plot(*zip(*points, strict=True), lw=0.8, label=part)
    left.set(yscale="log", xlabel="step", ylabel="loss (one batch)")
    left.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    lengths = {"1 to 4 operations": "accuracy", "4 operations": "accuracy_4"}
    for label, key in (lengths if "accuracy_4" in curve[0] else {"validation problems": "accuracy"}).items():
        right.plot(step, [point[key] for point in curve], lw=0.9, label=label)
    right.set(xlabel="step", ylabel="validation accuracy", ylim=(0, 1.02))
    right.legend(fontsize=6, frameon=False, loc="lower right")
    for axes in (left, right):
        axes.axvline(last, color="0.7", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def seeds_text(work: Path, name: str, kind: str, shipped: dict[str, Any]) -> list[str]:
    """One row per seed that was trained with the shipped command."""
    rows = {0: shipped}
    for path in sorted(work.glob(f"{name}-seed*.json")):
        rows[int(path.stem.rsplit("seed", 1)[1])] = read(path)
    good = sum(not reaches(rates, kind) for rates in rows.values())
    lines = [
        f"Trained to the end with {len(rows)} seed{'s' if len(rows) > 1 else ''}, of which {good} reached every figure"
        " asked of this model:",
        "",
        *(f"- {text}" for text in goal_texts(kind)),
        "",
        "| seed | right, 2 to 4 operations | right, 4 | ct1 / ct3 / ct5 swapped: follows the donor | missed |",
        "|---|---|---|---|---|",
    ]
    for seed, rates in rows.items():
        swaps = " / ".join(f"{rates[f'ct{k} swapped, follows the donor']['share']:.3f}" for k in (1, 3, 5))
        accuracy = f"{rates['accuracy']['share']:.3f} | {rates['accuracy, 4 operations']['share']:.3f}"
        lines.append(f"| {seed} | {accuracy} | {swaps} | {', '.join(reaches(rates, kind)) or 'none'} |")
    return lines


def goal_texts(kind: str) -> list[str]:
    """The goals in words."""
    if kind:
        return [
            "lens: the number carried >= 0.95 at ct0, ct2, ct4, a number <= 0.05 elsewhere",
            "swaps followed <= 0.10",
        ]
    return [
        "right >= 0.95, at four operations >= 0.90",
        "<= 0.15 with all thoughts their mean or another problem's",
        "each number thought swapped: >= 0.75 follow the donor",
        "lens: the number carried >= 0.95 at ct0, ct2, ct4, a number <= 0.05 elsewhere",
        "pairs >= 0.70",
    ]


def read(path: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def rendered(template: str, name: str, work: Path, **more: Any) -> str:
    """Text of a card from its template, with what every model has and more."""
    training, rates = read(CHECKPOINTS / name / "training.json"), read(work / f"{name}.json")
    text = Path(__file__).with_name(f"{template}_model_card.md").read_text(encoding="utf-8")
    known = {"name": name, "training": training, "first": training["stages"][0], "second": training["stages"][-1]}
    return jinja2.Template(text).render(**known, rates=rates, **more) + "\n"


def story_card(name: str, work: Path) -> str:
    """Text of the card of a model that thinks about stories, or is fed one vector at every thought."""
    architecture = name.split("-")[1]
    rates, first = read(work / f"{name}.json"), read(CHECKPOINTS / name / "training.json")["stages"][0]
    direct_file = work / f"small-{architecture}-direct.json"
    direct = read(direct_file) if direct_file.exists() else None
    known = {
        "architecture": architecture,
        "direct": direct,
        "mixture": ", ".join(f"{share:.0%}" for share in first["mixture"]),
        "text": {label: rate_text(rate) for label, rate in rates.items()},
        "operations": "\n".join(operations_table(rates, direct)),
        "lenses": "\n".join(f"| {label.removeprefix('lens at ')} | {rate_text(rates[label])} |" for label in LENSES),
    }
    if name in PAUSE_NAMES:
        return rendered("pause", name, work, family=network(architecture), **known)
    kind = "-decodable" if name.endswith("-decodable") else ""
    seeds = "\n".join(seeds_text(work, name, kind, rates))
    return rendered("small", name, work, family=FAMILY[architecture], used=not kind, seeds=seeds, **known)


def cot_card(name: str, work: Path) -> str:
    """Text of the card of a model that writes its steps."""
    architecture = name.split("-")[1]
    scores = [("right" if label == "accuracy" else label, rate_text(rate))
              for label, rate in read(work / f"{name}.json").items()]  # fmt: skip
    return rendered("cot", name, work, architecture=architecture, family=network(architecture), scores=scores)


def network(architecture: str) -> str:
    """Class and positions of a network, without its number of weights."""
    return ", ".join(FAMILY[architecture].split(", ")[:2])


def graph_card(name: str, work: Path) -> str:
    """Text of the card of the Coconut model or of one of its controls."""
    rates = read(work / f"{name}.json")
    twins = {label: rate for label, rate in rates.items() if "of a twin" in label}
    scores = [("right" if label == "accuracy" else label, rate_text(rate))
              for label, rate in rates.items() if label not in twins]  # fmt: skip
    if name == "small-graph":
        for control in ("pause", "direct"):
            accuracy = read(work / f"{name}-{control}.json")["accuracy"]
            scores.append((f"*the {control} control*: right", rate_text(accuracy)))
    return rendered(
        "graph", name, work, kind=read(CHECKPOINTS / name / "training.json")["stages"][1]["kind"], scores=scores,
        shortcut={label: rate_text(rate) for label, rate in read(work / "shortcuts.json").items()},
        twins=[
            [f"ct{k}", *(rate_text(twins[TWIN.format(k=k, step=step)]) for step in (1, 2, 3))]
            for k in range(3 if twins else 0)
        ],
    )  # fmt: skip


def main() -> None:
    """Write all cards whose figures are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(__file__).with_name("small_models"), metavar="DIR")
    options = parser.parse_args()
    writers = {(*NAMES, *PAUSE_NAMES): story_card, COT_NAMES: cot_card, GRAPH_NAMES: graph_card}
    for name, write in [(name, write) for names, write in writers.items() for name in names]:
        folder = CHECKPOINTS / name
        if not (options.work / f"{name}.json").exists():
            print(f"{name}: not measured")
            continue
        draw_curve(read(folder / "training.json")["curve"], folder / "curve.png")
        (folder / "README.md").write_text(write(name, options.work), encoding="utf-8")
        print(f"{name}: written")


if __name__ == "__main__":
    main()
