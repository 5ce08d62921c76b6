"""What codi-smollm2 or one of its controls answers, with its thoughts and without them: the figures of their cards.

``python benchmarks/real_model.py [--model NAME] [--data NAME=FILE ...]`` asks it the held-out problems of the small
models and stories that it was not trained on, and those of further files. Every problem is asked twice: with six
thoughts, and with none, the markers alone. Of each data set and number of steps it keeps how many problems are right
with thoughts and without, with thoughts alone, without alone, and neither way; from these four come shares, intervals
and the paired test.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from extract import Reasoner, load_reasoner
from extract.model.checkpoint import SHIPPED
from extract.run.data import Problems, read_problems
from extract.small_models.problems import SPLIT_SIZES, make_splits, write_problems
from extract.training.data import normalised
from extract.training.stories import draw_stories, write_stories
from schemas import Scoring
from schemas.statistics import mcnemar_exact, wilson_interval

MODEL = "codi-smollm2"
N_SMALL = {"test-one": 200, "test": 500}
"""Of the small models' held-out problems, of one step and of two to four, the first so many."""
N_STORY, SEED, LARGEST = 300, 1, 100
"""Stories, as ``lake problems --stories`` draws them; training drew from seed 0."""


def data_sets(folder: Path, further: list[str]) -> dict[str, Problems]:
    """The held-out problems by the name of their data set."""
    splits = make_splits(0, {split: size for split, size in SPLIT_SIZES.items() if split != "train"})
    small = [problem for split, n in N_SMALL.items() for problem in splits[split][:n]]
    write_problems(small, folder / "small.jsonl")
    write_stories(500, SEED, folder / "stories.jsonl", LARGEST)
    files = [f"small={folder / 'small.jsonl'}", f"stories={folder / 'stories.jsonl'}", *further]
    sets = {problems.name: problems for problems in map(read_problems, files)}
    seen = {normalised(story.question) for story in draw_stories(100_000, 0, LARGEST)}
    stories = sets["stories"].take(range(N_STORY))
    new = [row for row, question in enumerate(stories.question) if normalised(question) not in seen]
    print(f"stories: {len(stories) - len(new)} of {len(stories)} are among those of the training and are left out")
    return sets | {"stories": stories.take(new)}


def right(reasoner: Reasoner, problems: Problems, batch: int = 50) -> np.ndarray:
    """Whether each answer is right ``(problem,)``."""
    scoring = Scoring(problems.answer_kind, prefix=reasoner.answer_prefix)
    prompts = [reasoner.encode(question) for question in problems.question]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    found = np.zeros(len(prompts), dtype=bool)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        texts = reasoner.think([prompts[row] for row in rows], capture=None, max_new_tokens=12).generated_text
        gold = np.array([scoring.gold(problems.gold_answer[row]) for row in rows])
        found[rows] = scoring.equal(scoring.column([scoring.answer(text) for text in texts]), gold)
    return found


def counted(with_thoughts: np.ndarray, without: np.ndarray, steps: np.ndarray) -> dict[str, list[int]]:
    """Right both ways, with thoughts alone, without alone, neither way: of all problems, and by number of steps."""
    outcome = np.where(with_thoughts, np.where(without, 0, 1), np.where(without, 2, 3))
    groups = {"all": np.ones(len(steps), dtype=bool)} | {str(n): steps == n for n in np.unique(steps)}
    return {name: np.bincount(outcome[group], minlength=4).tolist() for name, group in groups.items()}


def card_row(name: str, steps: str, counts: list[int]) -> str:
    """A row of the card's table."""
    both, with_alone, without_alone, neither = counts
    n = sum(counts)

    def share(right: int) -> str:
        low, high = (float(end) for end in wilson_interval(right, n))
        return f"{right / n:.3f} ({low:.3f}..{high:.3f})"

    first = np.repeat([True, True, False, False], counts)
    p = mcnemar_exact(first, np.repeat([True, False, True, False], counts)).p
    cells = (name, steps, n, share(both + with_alone), share(both + without_alone), with_alone, without_alone)
    return f"| {' | '.join(map(str, cells))} | {p:.2g} |"


def main() -> None:
    """Ask, count, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="further held-out problems")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="where the counts are kept; by default, beside its weights"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sets = data_sets(Path(folder), options.data)
    reasoner = load_reasoner(options.model)
    trained_for = reasoner.n_latent
    kept = options.record or SHIPPED / options.model / "accuracy.json"
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name, problems in sets.items():
        steps = (np.asarray(problems.columns["expression"][1]) != "").sum(1)
        answers = []
        for reasoner.n_latent in (trained_for, 0):
            answers.append(right(reasoner, problems))
        record[name] = counted(*answers, steps)
        kept.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for group, counts in record[name].items():
            print(card_row(name, group, counts), flush=True)


if __name__ == "__main__":
    main()
