"""What the small Coconut model and its controls can do, by a plain script of its own.

It is slow, simple and independent of the extraction command, whose figures the model cards give; the two should agree.
``python -m extract.small_models.graph_evaluate FOLDER`` prints the table.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from extract.small_models.evaluate import Rate, print_rates
from extract.small_models.graph_network import (
    ANSWER,
    END,
    FIRST_KIND,
    NEWLINE,
    Kind,
    SmallCoconut,
    load_graph_checkpoint,
)
from extract.small_models.graph_problems import DEPTH, Graphs, held_out_graphs
from extract.small_models.graph_train import EOS, think_graph, tokens_of

Replacement = dict[int, torch.Tensor]


class GraphAnswers(NamedTuple):
    """Index of the kind answered with (-1: no such text), and the states before the thoughts."""

    predicted: np.ndarray  # (problem,)
    states: torch.Tensor  # (problem, DEPTH, hidden)


@torch.no_grad()
def answer_graphs(model: SmallCoconut, kind: Kind, graphs: Graphs, replace: Replacement | None = None) -> GraphAnswers:
    """Answer greedily; right form is ``###``, a kind, the end."""
    sequence, states = think_graph(model, kind, torch.from_numpy(tokens_of(graphs)), replace=replace)
    token = torch.full((len(graphs.asked),), NEWLINE if kind == "direct" else END)
    written = []
    for _ in range(3):
        (final,) = sequence.feed(model.embedding[token][:, None])
        token = (final[:, 0] @ model.embedding.T).argmax(1)
        written.append(token.numpy())
    well = (written[0] == ANSWER) & (written[2] == EOS) & (written[1] >= FIRST_KIND)
    return GraphAnswers(np.where(well, written[1] - FIRST_KIND, -1), states)


def evaluate_graphs(folder: Path, n_problem: int = 1000) -> dict[str, Rate]:
    """Measure a checkpoint on held-out problems; every share with its interval, by a short name."""
    model, kind = load_graph_checkpoint(folder)
    graphs = held_out_graphs("test", n_problem)
    clean = answer_graphs(model, kind, graphs)
    rates = {"accuracy": Rate.of(clean.predicted == graphs.answer)}
    rates["answers with a word asked about"] = Rate.of((clean.predicted[:, None] == graphs.candidate).any(1))
    if kind != "coconut":
        return rates
    top = (clean.states @ model.embedding.T).topk(2).indices.sort(-1).values.numpy() - FIRST_KIND
    for k, position in enumerate(("bot", "ct0", "ct1")):
        rates[f"lens at {position}, both kinds reached"] = Rate.of((top[:, k] == np.sort(graphs.frontier[:, k])).all(1))

    rng = np.random.default_rng(0)
    other = torch.from_numpy((np.arange(n_problem) + rng.integers(1, n_problem, size=n_problem)) % n_problem)
    vectors: dict[str, Callable[[int], torch.Tensor]] = {
        "zero": lambda k: torch.zeros_like(clean.states[:, k]),
        "mean": lambda k: clean.states[:, k].mean(0).expand(n_problem, -1),
        "from another problem": lambda k: clean.states[other, k],
    }
    for name, make in vectors.items():
        for label, those in {"all": range(DEPTH), **{f"ct{k}": (k,) for k in range(DEPTH)}}.items():
            predicted = answer_graphs(model, kind, graphs, {k: make(k) for k in those}).predicted
            rates[f"{label} {name}"] = Rate.of(predicted == graphs.answer)
    for step in range(1, DEPTH + 1):
        twin = graphs.crossed(step)
        states = answer_graphs(model, kind, twin).states
        for k in range(DEPTH):
            predicted = answer_graphs(model, kind, graphs, {k: states[:, k]}).predicted
            rates[f"ct{k} of a twin that differs from step {step}: its answer"] = Rate.of(predicted == twin.answer)
    return rates


def _main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a small Coconut checkpoint by a script of its own.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_rates(evaluate_graphs(options.folder), as_json=options.json)


if __name__ == "__main__":
    _main()
