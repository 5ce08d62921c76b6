"""Problems as tokens on the device of the training, drawn in batches of like lengths."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.model.protocols import CODI
from extract.model.reasoner import Reasoner
from extract.training.data import Example
from extract.training.student import Batch
from schemas import UsageError

POOL = 64
"""Batches that are drawn together and sorted by their shapes."""
SHARES = (0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
"""Where, in the draws ordered by length, one shape of batches ends and the next begins."""


@dataclass(frozen=True)
class Shape:
    """Batches of one shape, so that a GPU meets few: widths, problems of a batch, and the problems that fit."""

    widths: tuple[int, int, int]
    """Columns of question, answer, and chain with answer."""
    rows: int
    members: NDArray[np.int64]


class Table:
    """Tokens of many problems, flat on a device."""

    def __init__(
        self, reasoner: Reasoner, examples: Sequence[Example], *, longest: int | None = None, last_step: bool = False
    ) -> None:
        prompts = reasoner.tokenize([reasoner.question_text(e.question) for e in examples], special=True)
        steps = _tokens_of_steps(reasoner, examples, last_step=last_step)
        chains = [list(itertools.chain.from_iterable(pieces)) for pieces in steps]
        known = {
            text: (reasoner.answer_tokens(text), reasoner.answer_start(text)) for text in {e.answer for e in examples}
        }
        answers, starts = [known[e.answer][0] for e in examples], [known[e.answer][1] for e in examples]
        self.n_latent = reasoner.n_latent
        self.n_between = self.n_latent + 2  # what begins and closes the thoughts
        total = [sum(map(len, parts)) + self.n_between for parts in zip(prompts, chains, answers, strict=True)]
        limit = min(longest or reasoner.context, reasoner.context)
        kept = [index for index, length in enumerate(total) if length <= limit]
        if not kept:
            raise UsageError(f"none of {len(examples)} problems has at most {limit} tokens")
        self.kept = np.array(kept)
        prompts, chains, answers = ([column[index] for index in kept] for column in (prompts, chains, answers))
        steps = [steps[index] for index in kept]
        device = reasoner.device
        self._question, self._answer, self._text = (
            _Flat(rows, device) for rows in (prompts, answers, [c + a for c, a in zip(chains, answers, strict=True)])
        )
        self._answer_start = torch.tensor([starts[index] for index in kept], device=device)
        # Where each step begins in the text; from the last one on, where the answer does.
        self.most_steps = max(map(len, steps))
        begin = np.zeros((len(kept), 1 + self.most_steps), dtype=np.int64)
        for row, pieces in enumerate(steps):
            begin[row, 1 : 1 + len(pieces)] = [len(piece) for piece in pieces]
        self._begin = torch.from_numpy(begin.cumsum(1)).to(device)
        self.length = self._question.length + self._text.length + self._answer.length

    def __len__(self) -> int:
        """Number of problems."""
        return len(self.length)

    def widths(self, rows: NDArray[np.int64]) -> tuple[int, int, int]:
        """Columns that some problems need, in multiples of eight."""
        question, answer, text = (
            -(-int(flat.length[rows].max()) // 8) * 8 for flat in (self._question, self._answer, self._text)
        )
        return question, answer, text

    def batch(
        self, rows: NDArray[np.int64], widths: tuple[int, int, int] | None = None, *, dropped: int = 0,
        exchanged: NDArray[np.bool_] | None = None,
    ) -> Batch:  # fmt: skip
        """Lay some problems side by side, in as many columns as they need or as are asked for.

        ``dropped`` of the first steps are left out of each text; ``exchanged`` is :attr:`Batch.exchanged`.
        """
        index = torch.from_numpy(rows).to(self._answer_start.device, non_blocking=True)
        wide = self.widths(rows) if widths is None else widths
        question, length = self._question.take(index, wide[0], left=True)
        answer, _ = self._answer.take(index, wide[1])
        begin = self._begin[index, min(dropped, self.most_steps)]
        text, _ = self._text.take(index, wide[2], begin)
        if exchanged is None:
            exchanged = np.zeros((len(rows), self.n_latent), dtype=bool)
        return Batch(
            question=question.clamp_min(0), pad=wide[0] - length, answer=answer, text=text,
            answer_start=self._answer_start[index], chain_length=self._begin[index, -1] - begin,
            exchanged=torch.from_numpy(exchanged).to(index.device, non_blocking=True),
        )  # fmt: skip


class _Flat:
    """Rows of tokens of any lengths, one after the other."""

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        self.length = np.array([len(row) for row in rows])
        self._tokens = torch.tensor(np.concatenate([np.array(row, dtype=np.int64) for row in rows]), device=device)
        self._length = torch.from_numpy(self.length).to(device)
        self._start = torch.from_numpy(self.length.cumsum() - self.length).to(device)

    def take(self, index: Tensor, width: int, begin: Tensor | int = 0, *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens ``(row, column)`` from some place of each row on, -100 where there is none, and how many there are."""
        length = self._length[index] - begin
        place = torch.arange(width, device=index.device) - (width - length[:, None] if left else 0)
        there = (place >= 0) & (place < length[:, None])
        flat = ((self._start[index] + begin)[:, None] + place).clamp(0, len(self._tokens) - 1)
        return torch.where(there, self._tokens[flat], -100), length


def _tokens_of_steps(reasoner: Reasoner, examples: Sequence[Example], *, last_step: bool) -> list[list[list[int]]]:
    """Tokens of every written step of every problem.

    CODI's teacher writes them in one line, as one text; the last one, whose result is the answer, is left out unless
    asked for: with it the teacher would only copy at the token whose states the student is to reproduce. Otherwise each
    step has a line of its own, as in Coconut's code.
    """
    if reasoner.protocol.name.startswith(CODI.name):
        lines = [[" ".join(e.steps if last_step else e.steps[:-1])] for e in examples]
    else:
        lines = [[f"{step}\n" for step in e.steps] for e in examples]
    tokens = iter(reasoner.tokenize([line for pieces in lines for line in pieces]))
    return [[next(tokens) for _ in pieces] for pieces in lines]


def shapes_of(table: Table, weights: NDArray[np.float64], size: int, tokens: int) -> list[Shape]:
    """A few shapes of batches, by length, and which problems each holds.

    Parameters
    ----------
    table
        Problems to draw from.
    weights : (problem,), adding up to 1
        How often each is drawn.
    size
        Problems of a batch.
    tokens
        Tokens of a batch at most, padding included; batches of long problems are smaller.
    """
    order = np.argsort(table.length, kind="stable")
    share = weights[order].cumsum()
    shapes, start = [], 0
    for bound in SHARES:
        end = len(order) if bound == 1 else int(np.searchsorted(share, bound, side="right"))
        if end > start:
            members = order[start:end]
            widths = table.widths(members)
            rows = max(1, min(size, tokens // (sum(widths) + table.n_between)))
            shapes.append(Shape(widths, rows, np.sort(members)))
            start = end
    return shapes


def draw_batches(
    shapes: Sequence[Shape], weights: NDArray[np.float64], size: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], Shape]]:
    """Draw batches without end, each as large as its shape says; the same for the same seed."""
    which = np.empty(len(weights), dtype=np.int64)
    for index, shape in enumerate(shapes):
        which[shape.members] = index
    waiting: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64) for _ in shapes]
    for pool in itertools.count():
        rng = np.random.default_rng([seed, pool])
        rows = rng.choice(len(weights), POOL * size, p=weights)
        batches = []
        for index, shape in enumerate(shapes):
            ready = np.concatenate([waiting[index], rows[which[rows] == index]])
            whole = len(ready) // shape.rows * shape.rows
            batches += [(part, shape) for part in ready[:whole].reshape(-1, shape.rows)]
            waiting[index] = ready[whole:]
        for index in rng.permutation(len(batches)):
            yield batches[index]
