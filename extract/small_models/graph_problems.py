"""Seeded graph-search problems whose answer is a word and whose every step of search is known.

In the form of ProsQA (Hao et al., *Training large language models to reason in a continuous latent space*, 2024): two
people, twelve kinds of thing, sentences that say who is what and which kind is another, in any order, and ``Is Tom a
sterpus or a hilpus?``. From each person two paths lead down `DEPTH` steps, over six kinds of their own. One kind asked
about ends a path of the person asked about, the other one a path of the other person.

So no shortcut is there to be found. To every problem there is another, equally likely, that differs in the sentences
of one step alone and has the other answer (`Graphs.crossed`), whichever step it is: who has not followed all steps can
only guess. Both people, both words asked about and both halves of the graph are alike in everything else: number of
sentences, order, words.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.whole_files import write_json, write_json_lines

DEPTH = 3
PEOPLE = ("Tom", "Ben", "Sam", "Max", "Anna", "Lucy", "Mia", "Eva")
KINDS = (
    "wumpus", "yumpus", "zumpus", "rompus", "jompus", "lempus", "gerpus", "brimpus", "sterpus", "hilpus", "tumpus",
    "vumpus",
)  # fmt: skip
N_SENTENCE = 4 * DEPTH


class Graphs(NamedTuple):
    """Problems as arrays. Person c reaches column c of the kinds; both branches of a column go down in parallel."""

    person: NDArray[np.int64]  # (problem, 2): index into PEOPLE
    kind: NDArray[np.int64]  # (problem, DEPTH, 2 columns, 2 branches): index into KINDS
    order: NDArray[np.int64]  # (problem, N_SENTENCE): which sentence is told first, second ...
    asked: NDArray[np.int64]  # (problem,): column of the person asked about
    branch: NDArray[np.int64]  # (problem, 2 columns): branch whose end is asked about
    first: NDArray[np.int64]  # (problem,): column whose end is named first in the question

    def take(self, rows: NDArray[np.int64]) -> "Graphs":
        """Return the given rows."""
        return Graphs(*(column[rows] for column in self))

    @property
    def frontier(self) -> NDArray[np.int64]:
        """Kinds that the person asked about reaches in 1, 2 .. steps: (problem, DEPTH, 2)."""
        reached: NDArray[np.int64] = self.kind[np.arange(len(self.asked)), :, self.asked]
        return reached

    @property
    def path(self) -> NDArray[np.int64]:
        """Kinds on the way to the answer, itself last: (problem, DEPTH)."""
        rows = np.arange(len(self.asked))
        path: NDArray[np.int64] = self.kind[rows, :, self.asked, self.branch[rows, self.asked]]
        return path

    @property
    def candidate(self) -> NDArray[np.int64]:
        """Both kinds asked about, in the order of the question: (problem, 2)."""
        rows = np.arange(len(self.asked))[:, None]
        column = np.stack([self.first, 1 - self.first], 1)
        candidate: NDArray[np.int64] = self.kind[rows, DEPTH - 1, column, self.branch[rows, column]]
        return candidate

    @property
    def answer(self) -> NDArray[np.int64]:
        """The kind asked about that the person reaches: (problem,)."""
        return self.path[:, -1]

    @property
    def edge(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Subject and object of every sentence as told (problem, N_SENTENCE); people after the kinds."""
        people = np.repeat(len(KINDS) + self.person[:, None, :, None], 2, axis=3)
        subject = np.concatenate([people, self.kind[:, :-1]], 1).reshape(len(self.asked), -1)
        sides = (subject, self.kind.reshape(len(self.asked), -1))
        told, what = (np.take_along_axis(side, self.order, 1) for side in sides)
        return told, what

    def with_other_person(self) -> "Graphs":
        """The same graphs and words, asked of the other person: the other word is the answer."""
        return self._replace(asked=1 - self.asked)

    def crossed(self, step: int) -> "Graphs":
        """The same texts, but for the objects of the sentences of one step, exchanged between the two columns.

        The other word is the answer. What is reached before this step (1 is the first) stays as it was; from it on it
        is what the other person reached.
        """
        kind = self.kind.copy()
        kind[:, step - 1 :] = kind[:, step - 1 :, ::-1]
        depth, column, branch = np.unravel_index(self.order, self.kind.shape[1:])
        moved = np.where(depth >= step, 1 - column, column)  # later sentences keep their places in the text
        order = np.ravel_multi_index((depth, moved, branch), self.kind.shape[1:])
        return self._replace(kind=kind, order=order, branch=self.branch[:, ::-1], first=1 - self.first)


def draw_graphs(rng: np.random.Generator, n: int) -> Graphs:
    """Draw problems, everything of them uniformly."""
    person = rng.permuted(np.tile(np.arange(len(PEOPLE)), (n, 1)), axis=1)[:, :2]
    kind = rng.permuted(np.tile(np.arange(len(KINDS)), (n, 1)), axis=1).reshape(n, DEPTH, 2, 2)
    order = rng.permuted(np.tile(np.arange(N_SENTENCE), (n, 1)), axis=1)
    return Graphs(person, kind, order, rng.integers(2, size=n), rng.integers(2, size=(n, 2)), rng.integers(2, size=n))


def held_out_graphs(split: str, n: int, seed: int = 0) -> Graphs:
    """Draw the problems of ``validation``, ``test`` or ``pairs``; training draws its own, see ``graph_train``."""
    return draw_graphs(np.random.default_rng([seed, 1, ("validation", "test", "pairs").index(split)]), n)


def sentence(subject: int, what: int) -> str:
    """Say one edge, as ProsQA does."""
    name = PEOPLE[subject - len(KINDS)] if subject >= len(KINDS) else f"Every {KINDS[subject]}"
    return f"{name} is a {KINDS[what]}."


def tell(graphs: Graphs) -> list[dict[str, Any]]:
    """Write problems with the fields of ProsQA.

    Returns
    -------
    list of dict
        ``question``, ``answer`` (a word), ``steps`` (the sentences of its path) and the graph: ``idx_to_symbol``,
        ``edges``, ``root``, ``target``, ``neg_target``.
    """
    records = []
    subjects, whats = graphs.edge
    symbols = [*KINDS, *PEOPLE]
    for i, (candidates, path) in enumerate(zip(graphs.candidate.tolist(), graphs.path.tolist(), strict=True)):
        root = len(KINDS) + int(graphs.person[i, graphs.asked[i]])
        edges = list(zip(subjects[i].tolist(), whats[i].tolist(), strict=True))
        first, second = (KINDS[k] for k in candidates)
        question = f"Is {symbols[root]} a {first} or {second}?"
        records.append(
            {
                "question": " ".join([*(sentence(*edge) for edge in edges), question]),
                "answer": KINDS[path[-1]],
                "steps": [sentence(*edge) for edge in zip([root, *path], path, strict=False)],
                "idx_to_symbol": symbols,
                "edges": [list(edge) for edge in edges],
                "root": root,
                "target": path[-1],
                "neg_target": sum(candidates) - path[-1],
            }
        )
    return records


def make_graph_pairs(n_pair: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """Draw clean/corrupted pairs: two questions of which the second has the other answer.

    ``changed_step`` goes round: 1 where the question asks about the other person, so that all that is reached differs;
    2 .. where the sentences of that step are crossed, so that what is reached before is the same.
    """
    graphs = held_out_graphs("pairs", n_pair, seed)
    others = [graphs.with_other_person(), *(graphs.crossed(step) for step in range(2, DEPTH + 1))]
    corrupted = [tell(other) for other in others]
    return [
        {"pair_id": i, "clean": clean, "corrupted": corrupted[i % DEPTH][i], "changed_step": i % DEPTH + 1}
        for i, clean in enumerate(tell(graphs))
    ]


def write_graph_problems(
    folder: Path | str, n_problem: int = 1000, n_pair: int = 500, seed: int = 0
) -> dict[Path, str]:
    """Write ``graph.jsonl`` (test problems) and ``graph-pairs.json`` into a folder; returns how many, by file."""
    problems, pairs = Path(folder) / "graph.jsonl", Path(folder) / "graph-pairs.json"
    write_json_lines(problems, tell(held_out_graphs("test", n_problem, seed)))
    write_json(pairs, make_graph_pairs(n_pair, seed))
    return {problems: f"{n_problem} problems", pairs: f"{n_pair} pairs"}
