"""Integrated gradients beside captum, Jacobians and attribution patching beside a loop of torch.autograd.

    python benchmarks/gradients.py [WORK ..] [--pairs N] [--steps N] [--questions N] [--rounds N]

integrated   Of the answer's logit difference with respect to the thoughts, along the straight way from their means;
             midpoint rule. captum gets the question's keys and values, computed once, and all steps in one batch, which
             is its default, or as many as it was fastest with; both also say what the attributions fail to add up to
             (its return_convergence_delta, https://captum.ai/api/integrated_gradients.html). This project also reads
             the vectors from its lake, makes tokens of the answers and gives intervals.
jacobians    Of the state that the answer begins from, with respect to all vectors fed and all states after blocks from
             ``bot`` to the last thought, summed over questions: a gradient for each component, in a loop over
             questions, or over all questions in one batch.
attributed   Attribution patching of vectors fed, heads and MLPs over clean and corrupted pairs, one pair after the
             other. This project scores every edge between them, too.

small-gpt2, float32. All get the same questions, vectors and answers; what they find is compared before it is timed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from beside.sides import OURS, Side, compared, peers_python, take_turns, versions
from results import keep

from extract.small_models.problems import make_pairs, write_pairs

CLOSE = {"integrated": 1e-3, "jacobians": 1e-3, "attributed": 1e-3}
"""How far two findings may be apart, as a share of the largest."""
TITLES = {
    "integrated": "Integrated gradients of thoughts",
    "jacobians": "Jacobians through the loop of thoughts",
    "attributed": "Attribution patching",
}


def check(work: str, ours: str, others: dict[str, str]) -> float:
    """Largest difference from this project's finding, as a share of its largest value.

    Raises
    ------
    SystemExit
        If it is more than rounding.
    """
    own, worst = np.load(ours), 0.0
    for name, path in others.items():
        apart = float(np.abs(np.load(path) - own).max() / np.abs(own).max())
        if not apart < CLOSE[work]:
            raise SystemExit(f"{work}: {name} found something else than this project, by {apart:.2g} of the largest")
        worst = max(worst, apart)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="*", choices=[*TITLES, []], help="all if none is named")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--questions", type=int, default=8, help="of the Jacobians")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, data = Path(place), Path(place) / "pairs.json"
        write_pairs(make_pairs(arguments.pairs, 3), data)
        settings = json.dumps({"batch_size": 16, "max_new_tokens": 10, "dtype": "float32"})
        ours = Side("this_gradients.py", "small-gpt2", data, settings, folder / "x.lake")
        (folder / "job").mkdir()
        ours("job", out=str(folder / "job"), n_answer=10)
        sizes = ours("asked")["value"]
        hand = Side("by_autograd.py", folder)
        captum = Side("by_autograd.py", folder, python=peers_python(), path="")
        steps, n = arguments.steps, arguments.questions
        works: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
            "integrated": {
                OURS: partial(ours, "integrated", steps=steps),
                "captum, all steps at once": partial(captum, "integrated", steps=steps, at_once=None),
                "captum, 64 rows at once": partial(captum, "integrated", steps=steps, at_once=64),
            },
            "jacobians": {
                OURS: partial(ours, "jacobians", questions=n),
                "torch.autograd, question by question": partial(hand, "jacobians", questions=n, together=False),
                "torch.autograd, questions in one batch": partial(hand, "jacobians", questions=n, together=True),
            },
            "attributed": {
                OURS: partial(ours, "attributed"),
                "torch.autograd, pair by pair": partial(hand, "attributed"),
            },
        }
        words = dict(part.split(None, 1) for part in _parts(__doc__))
        for work in arguments.work or works:
            sides = works[work]
            done = {name: side()["value"] for name, side in sides.items()}
            apart = check(work, done.pop(OURS), done)
            rows = compared(take_turns(sides, arguments.rounds, warm=0), unit="ms", per=1e-3)
            text = (
                f"{' '.join(words[work].split())} small-gpt2, {size_of(work, sizes, arguments)}, float32, one thread."
            )
            text += f" Findings differ by {apart:.1g} of the largest at most."
            peers = versions(peers_python(), "captum") if work == "integrated" else None
            keep(f"gradients-{work}", TITLES[work], rows, text=text, versions=peers)
        for side in (ours, hand, captum):
            side.end()


def _parts(text: str) -> list[str]:
    """Lines of the docstring that say what each work is, joined."""
    lines = text.split("\n\n")[2].split("\n")
    parts: list[str] = []
    for line in lines:
        if line.startswith(" "):
            parts[-1] += f" {line.strip()}"
        else:
            parts.append(line)
    return parts


def size_of(work: str, sizes: dict[str, int], arguments: argparse.Namespace) -> str:
    """How much it is."""
    if work == "integrated":
        return f"{2 * arguments.pairs} questions, {arguments.steps} steps"
    if work == "jacobians":
        return f"{arguments.questions} questions, {sizes['places']} places"
    return f"{sizes['pairs']} pairs, {sizes['nodes']} nodes"


if __name__ == "__main__":
    main()
