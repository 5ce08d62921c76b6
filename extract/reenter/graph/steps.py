"""Where the steps of a written chain stand among the tokens of an answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from extract.model.reasoner import Reasoner
from extract.reenter.target import Target
from schemas import UsageError, nearest

RESULT = re.compile(r"=\s*[^\w\s=<>]?\s*-?\d[\d,]*(?:\.\d+)?")
"""A step of arithmetic ends with its result."""
SENTENCE = re.compile(r"[.\n]+(?=\s|$)")
"""Where nothing is computed, a step is a sentence or a line."""
USUAL = 0.5
"""Steps that at least this share of the written chains have are nodes by default."""


@dataclass(frozen=True, slots=True)
class WrittenChains:
    """Answers of a run that write the same steps before what they answer."""

    rows: np.ndarray
    """Rows ``(example,)`` of the run."""
    tokens: list[list[int]]
    """What was written, end token included, by example."""
    bounds: list[list[int]]
    """Places at which step 1, step 2, .. begin, and at last what is answered, by example."""

    def span(self, example: int, step: int) -> range:
        """Places of a step, from 0; of what is answered for a step of -1."""
        bounds = [*self.bounds[example], len(self.tokens[example])]
        return range(bounds[step - 1], bounds[step]) if step < 0 else range(bounds[step], bounds[step + 1])


def step_bounds(reasoner: Reasoner, tokens: Sequence[int]) -> list[int]:
    """Places at which the steps of an answer begin, and at last what is answered; only that where there is no step."""
    text = reasoner.decode(tokens)
    prefix = reasoner.decode(reasoner.text_tokens(reasoner.answer_prefix)).strip()
    cut = text.find(prefix) if prefix else -1
    chain = text if cut < 0 else text[:cut]
    ends = [match.end() for match in RESULT.finditer(chain)] or [match.end() for match in SENTENCE.finditer(chain)]
    lengths = np.array([len(reasoner.decode(tokens[: place + 1])) for place in range(len(tokens))])
    return [0, *dict.fromkeys(int(np.searchsorted(lengths, end)) + 1 for end in ends)]


def written_chains(target: Target, names: Sequence[str] | None) -> tuple[list[str], WrittenChains]:
    """Nodes of an explicit chain, and the answers that write all of them and end.

    The nodes are named ``step1``, ``step2``, ..; by default they are those that at least half of the answers write.

    Raises
    ------
    UsageError
        If no steps are written, or a step asked for is not.
    """
    reasoner, data = target.reasoner, target.data
    tokens = data["token"].sel(position=[str(p) for p in data["position"].values if str(p).startswith("a")]).values
    lines = [[int(token) for token in row if token >= 0] for row in tokens]
    bounds = [step_bounds(reasoner, line) for line in lines]
    n_step = np.array([len(bound) - 1 for bound in bounds])
    most = max((n for n in range(1, int(n_step.max()) + 1) if (n_step >= n).mean() >= USUAL), default=0)
    known = [f"step{number + 1}" for number in range(int(n_step.max()))]
    if len(known) < 2:
        raise UsageError(
            f"{target.run} has no thoughts, and its answers write no steps, so there is no graph between them"
        )
    nodes = list(dict.fromkeys(names)) if names else known[: max(2, most)]
    if strangers := [node for node in nodes if node not in known]:
        raise UsageError(
            f"{strangers[0]!r} is no step that {target.run} writes; there are {', '.join(known)}"
            + nearest(strangers[0], known)
        )
    nodes.sort(key=known.index)
    needed = known.index(nodes[-1]) + 1
    ended = np.array([line[-1:] == [reasoner.eos_id] for line in lines])
    rows = np.flatnonzero((n_step >= needed) & ended)
    if not len(rows):
        raise UsageError(f"no answer of {target.run} writes {nodes[-1]} and ends; extract with more --max-new-tokens")
    return nodes, WrittenChains(rows, [lines[row] for row in rows], [bounds[row] for row in rows])
