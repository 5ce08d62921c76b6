"""What each experiment of ``lake reenter`` costs against its conditions run one by one.

    python benchmarks/experiments.py demo.lake [--model small-gpt2] [--limit 200] [--experiments edit,cross]

In processor seconds, so that other work on the machine counts little. ``sweep`` is what the shared engine takes,
``command`` the whole experiment with its fits and statistics. One by one, a condition thinks every question through
from its beginning, in batches of 32 questions, with the same edits, and is scored and answered as extraction does it;
neither states of other thoughts nor a second answer are measured there. It is run for at least a dozen conditions of
each experiment and extrapolated to all of them; the texts of these must be those of the sweep.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import extract.reenter.depth.experiment as depth
import extract.reenter.target as engine
from extract.model.capture import KeyValues
from extract.model.flight import Flight
from extract.model.reasoner import Reasoner
from extract.reenter import open_target
from extract.reenter.armed import Armed
from extract.reenter.depth.experiment import pause_vector
from extract.reenter.depth.routes import Route
from extract.reenter.intervene import arm
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from extract.reenter.values import StoredValues
from schemas.command import Experiment
from schemas.registry import commands
from store import open_lake

BATCH, SAMPLED = 32, 12

# Which data set, the settings that are not the defaults, and a name where a command is measured twice.
MEASURED: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("ablate", "ablate", "test", {}),
    ("ablate counts", "ablate", "test", {"sets": ("counts",)}),
    ("corrupt", "corrupt", "test", {}),
    ("corrupt hold", "corrupt", "test", {"hold": True}),
    ("patch", "patch", "pairs", {}),
    ("heads", "heads", "test", {}),
    ("edges", "edges", "test", {}),
    ("steer", "steer", "hard", {}),
    ("cross", "cross", "hard", {}),
    ("depth", "depth", "test", {}),
    ("graph", "graph", "test", {}),
    ("edit", "edit", "test", {}),
    ("subspace", "subspace", "test", {}),
    ("transplant", "transplant", "test", {}),
    ("sweep", "sweep", "test", {"operations": ("zero", "mean", "resample")}),
    ("features", "features", "test", {}),
)
OTHER = {"small-gpt2": "small-llama", "small-llama": "small-gpt2"}


@dataclass(slots=True)
class Cost:
    """Processor seconds of an experiment."""

    conditions: int = 0
    sweep: float = 0.0
    one_by_one: float = 0.0
    aside: float = 0.0
    """Spent on running conditions one by one, within the command's time."""
    same: list[float] = field(default_factory=list)
    """Share of the same texts in each condition that was run one by one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lake", type=Path)
    parser.add_argument("--model", default="small-gpt2")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--experiments", default="", help="names, with commas; by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    declared = {each.name: each for each in commands() if isinstance(each, Experiment)}
    chosen = [name for name in options.experiments.split(",") if name]
    print(f"{options.model}, {options.limit} examples, processor seconds; load {os.getloadavg()[0]:.1f}")
    print(f"{'experiment':14}{'conditions':>11}{'one by one':>12}{'sweep':>8}{'command':>9}{'same texts':>12}")
    for name, command, data, settings in MEASURED:
        if chosen and name not in chosen:
            continue
        if command == "transplant":
            settings = {"source": f"{OTHER[options.model]}/{data}"}
        target = open_target(open_lake(options.lake), f"{options.model}/{data}", limit=options.limit)
        cost = Cost()
        seconds = measured(declared[command], target, settings, cost)
        shares = f"{cost.sweep / cost.one_by_one:.2f}", f"{seconds / cost.one_by_one:.2f}"
        print(
            f"{name:14}{cost.conditions:11}{cost.one_by_one:12.1f}{cost.sweep:8.1f}{seconds:9.1f}"
            f"{np.mean(cost.same):12.1%}   sweep {shares[0]} of one by one, command {shares[1]}",
            flush=True,
        )


def measured(command: Experiment, target: Target, settings: dict[str, Any], cost: Cost) -> float:
    """Run a command with its sweeps watched; its own processor seconds."""
    sweep, routes = engine.sweep, depth._run
    engine.sweep, depth._run = watched(sweep, sweep_alone, cost), watched(routes, routes_alone, cost)  # type: ignore[assignment]
    try:
        start = time.process_time()
        command.run(target, command.settings(**settings))
        return time.process_time() - start - cost.aside
    finally:
        engine.sweep, depth._run = sweep, routes


def watched(work: Callable[..., Any], alone: Callable[..., tuple[int, int, float]], cost: Cost) -> Callable[..., Any]:
    """The same work, timed, after which some of its conditions are run one by one."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = work(*arguments, **options)
        middle = time.process_time()
        n_all, n_some, seconds = alone(result, cost, *arguments, **options)
        cost.conditions += n_all
        cost.sweep += middle - start
        cost.one_by_one += seconds * n_all / max(1, n_some)
        cost.aside += time.process_time() - middle
        return result

    return timed


def spread(items: Sequence[Any]) -> list[int]:
    """Places of a dozen items or more, evenly spread."""
    return list(range(0, len(items), max(1, len(items) // SAMPLED)))


def sweep_alone(
    result: xr.Dataset, cost: Cost, reasoner: Reasoner, run: xr.Dataset, conditions: Sequence[Condition], *,
    values: StoredValues, examples: Sequence[int], answers: dict[str, list[str]], **_: Any,
) -> tuple[int, int, float]:  # fmt: skip
    """Some conditions of a sweep, and the untouched run, one by one."""
    everything = [Condition(name="untouched", interventions=()), *conditions]
    places = spread(everything)
    values.prepare((each for place in places for each in everything[place].interventions), BATCH)
    n_new, rows_of = engine.json.loads(run.attrs["spec"])["max_new_tokens"], values.rows(list(examples))
    gold = next(iter(answers.values()))
    prompts = [reasoner.encode(str(run["question"].values[row])) for row in rows_of]
    start = time.process_time()
    for place in places:
        texts: list[str] = []
        for first in range(0, len(rows_of), BATCH):
            part = slice(first, first + BATCH)
            rows, where = rows_of[part], everything[place].where
            here = None if where is None else {position: mask[part] for position, mask in where.items()}
            armed = Armed(len(rows), reasoner.device)
            for stage, each in enumerate(everything[place].interventions):
                arm(armed, each, values, rows, np.arange(len(rows)), stage=stage, where=here)
            texts += reasoner.think(
                prompts[part], capture=None, max_new_tokens=n_new, gold=gold[part], editor=armed
            ).generated_text
        cost.same.append(float(np.mean(result["generated_text"].values[place] == np.array(texts, dtype=object))))
    return len(everything), len(places), time.process_time() - start


def routes_alone(
    result: Any, cost: Cost, target: Target, routes: Sequence[Route], *_: Any
) -> tuple[int, int, float]:  # fmt: skip
    """Some routes of an experiment on depth, one by one."""
    reasoner, chosen = target.reasoner, spread(routes)
    prompts = [reasoner.encode(str(text)) for text in target.data["question"].values]
    pause = torch.from_numpy(pause_vector(target))
    start = time.process_time()
    for place in chosen:
        texts: list[str] = []
        with torch.inference_mode(), reasoner.session(hooks=False):
            for first in range(0, len(prompts), BATCH):
                gold = [str(text) for text in target.data["gold_answer"].values[first : first + BATCH]]
                texts += route_alone(target, prompts[first : first + BATCH], gold, routes[place], pause)
        cost.same.append(float(np.mean(result[0][routes[place]]["text"] == np.array(texts, dtype=object))))
    return len(routes), len(chosen), time.process_time() - start


def route_alone(
    target: Target, prompts: Sequence[list[int]], gold: Sequence[str], route: Route, pause: torch.Tensor
) -> list[str]:
    """Texts of a batch after some thoughts, from the questions on."""
    reasoner = target.reasoner
    if route.marker == "none":
        prompts = [prompt[:-1] for prompt in prompts]
    n, n_latent = route.n_thought, reasoner.n_latent
    own = n if route.series == "own" else min(n, n_latent)
    tokens, pad, n_before = reasoner.lay_out(prompts)
    flight = Flight(reasoner, pad, n_before, KeyValues(n_before + 1 + max(n, n_latent) + 40))
    state = flight.feed_tokens(tokens)[:, -1]
    vector = state
    for _ in range(own):
        vector = reasoner.projection(state)
        state = flight.feed(vector[:, None])[:, -1]
    if route.series != "own" and max(n, n_latent) > own:
        filler = vector if route.series == "repeat" else pause.to(state).expand_as(state)
        state = flight.feed(filler[:, None].expand(-1, max(n, n_latent) - own, -1))[:, -1]
    asked = [reasoner.tokens_and_prefix(text) for text in gold]
    if route.marker == "none":  # what closes the thoughts is left out, so nothing is scored beside writing
        answers = flight.answer(state, target.max_new_tokens)
    else:
        _, answers = flight.answer_beside(
            state, [text for text, _ in asked], [begin for _, begin in asked], target.max_new_tokens
        )
    return [reasoner.decode(row) for row in answers.cpu().tolist()]


if __name__ == "__main__":
    main()
