"""Problems as tokens on the device of the training, drawn in batches of like lengths."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.reasoner import Reasoner
from extract.training.data import Example, drop_last_step
from extract.training.student import Batch
from schemas import UsageError

POOL = 64
"""Batches that are drawn together, sorted by length and cut apart."""


class Table:
    """Tokens of many problems, flat on a device."""

    def __init__(
        self, reasoner: Reasoner, examples: Sequence[Example], *, longest: int | None = None, last_step: bool = False
    ) -> None:
        prompts = _tokens(reasoner, [reasoner.question_text(e.question) for e in examples], special=True)
        chains = _tokens(reasoner, [e.chain if last_step else drop_last_step(e.chain) for e in examples])
        known = {
            e.answer: (reasoner.answer_tokens(e.answer), reasoner.answer_start(e.answer)) for e in _by_answer(examples)
        }
        answers, starts = [known[e.answer][0] for e in examples], [known[e.answer][1] for e in examples]
        total = [
            len(q) + len(c) + len(a) + reasoner.n_latent + 2 for q, c, a in zip(prompts, chains, answers, strict=True)
        ]
        limit = min(longest or reasoner.context, reasoner.context)
        kept = [index for index, length in enumerate(total) if length <= limit]
        if not kept:
            raise UsageError(f"none of {len(examples)} problems has at most {limit} tokens")
        self.kept = np.array(kept)
        prompts, chains, answers = ([each[index] for index in kept] for each in (prompts, chains, answers))
        device = reasoner.device
        self._question, self._answer, self._text = (
            _Flat(rows, device) for rows in (prompts, answers, [c + a for c, a in zip(chains, answers, strict=True)])
        )
        self._answer_start = torch.tensor([starts[index] for index in kept], device=device)
        self._chain_length = torch.tensor([len(chain) for chain in chains], device=device)
        self._pad_id = reasoner.eos_id
        self.length = self._question.length + self._text.length + self._answer.length

    def __len__(self) -> int:
        """Number of problems."""
        return len(self.length)

    def batch(self, rows: NDArray[np.int64], multiple: int = 8) -> Batch:
        """Lay some problems side by side; widths are multiples of a number, so that memory is used again."""
        device = self._answer_start.device
        index = torch.from_numpy(rows).to(device, non_blocking=True)
        question, length = self._question.take(rows, index, multiple, left=True)
        answer, _ = self._answer.take(rows, index, max(multiple // 2, 8))
        text, _ = self._text.take(rows, index, multiple)
        return Batch(
            question=question.clamp_min(0), pad=question.shape[1] - length, answer=answer, text=text,
            answer_start=self._answer_start[index], chain_length=self._chain_length[index],
        )  # fmt: skip


class _Flat:
    """Rows of tokens of any lengths, one after the other."""

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        self.length = np.array([len(row) for row in rows])
        self._tokens = torch.tensor(np.concatenate([np.array(row, dtype=np.int64) for row in rows]), device=device)
        self._length = torch.from_numpy(self.length).to(device)
        self._start = torch.from_numpy(self.length.cumsum() - self.length).to(device)

    def take(
        self, rows: NDArray[np.int64], index: Tensor, multiple: int, *, left: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``(row, column)``, -100 where there is none, and lengths."""
        width = -(-int(self.length[rows].max()) // multiple) * multiple
        length = self._length[index]
        place = torch.arange(width, device=index.device) - (width - length[:, None] if left else 0)
        there = (place >= 0) & (place < length[:, None])
        flat = (self._start[index][:, None] + place).clamp(0, len(self._tokens) - 1)
        return torch.where(there, self._tokens[flat], -100), length


def _tokens(reasoner: Reasoner, texts: Sequence[str], special: bool = False) -> list[list[int]]:
    found: list[list[int]] = reasoner.tokenizer(list(texts), add_special_tokens=special)["input_ids"] if texts else []
    return found


def _by_answer(examples: Sequence[Example]) -> list[Example]:
    return list({example.answer: example for example in examples}.values())


def draw_batches(
    table: Table, weights: NDArray[np.float64], size: int, tokens: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Draw batches without end, the same for the same seed.

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
    seed
        Of the drawing.
    """
    for pool in itertools.count():
        rng = np.random.default_rng([seed, pool])
        rows = rng.choice(len(table), POOL * size, p=weights)
        rows = rows[np.argsort(table.length[rows], kind="stable")]
        cuts, start = [], 0
        while start < len(rows):
            longest = table.length[rows[min(start + size, len(rows)) - 1]]
            end = start + max(1, min(size, tokens // longest))
            cuts.append(rows[start:end])
            start = end
        for index in rng.permutation(len(cuts)):
            yield cuts[index]
