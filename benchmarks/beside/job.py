"""What every side of an extraction does: one model's thoughts and answers over the same batches, made durable.

A job's folder holds the model as Hugging Face saves it, the projection, and ``job.json`` with tokens and batches. What
a side captures goes, padded on the left, into float16 arrays and from there into one npz file a batch, flushed to disk.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Job:
    """A job's folder, read.

    Parameters
    ----------
    folder
        Of the job.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.model = str(self.folder / "model")
        stated = json.loads((self.folder / "job.json").read_text())
        self.prompts: list[list[int]] = stated["prompts"]
        self.batches: list[list[int]] = stated["batches"]
        self.n_latent: int = stated["n_latent"]
        self.closing: list[int] = stated["closing"]
        self.n_answer: int = stated["n_answer"]
        self.n_written: int = stated["n_written"]
        """Tokens of the vocabulary that may be written."""
        self.eos: int = stated["eos"]
        self.sizes: dict[str, int] = stated["sizes"]
        path = self.folder / "projection.pt"
        self.projection: Any = torch.load(path, weights_only=False).eval() if path.is_file() else None

    def columns(self, batch: list[int]) -> tuple[int, int]:
        """Number of columns of a batch's longest question, and of question, thoughts and answer."""
        longest = max(len(self.prompts[index]) for index in batch)
        return longest, longest + self.n_latent + len(self.closing) + self.n_answer

    def laid_out(self, batch: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a batch padded on the left, ``(row, column)``; which of all columns exist; their position ids."""
        longest, n_column = self.columns(batch)
        tokens = torch.full((len(batch), longest), self.eos)
        mask = torch.ones(len(batch), n_column, dtype=torch.long)
        for row, index in enumerate(batch):
            tokens[row, longest - len(self.prompts[index]) :] = torch.tensor(self.prompts[index])
            mask[row, : longest - len(self.prompts[index])] = 0
        return tokens, mask, (mask.cumsum(1) - 1).clamp_min(0)

    def likeliest(self, logits: Tensor) -> Tensor:
        """Likeliest token of those that may be written."""
        return logits[:, -1, : self.n_written].argmax(-1)


class Kept:
    """Float16 arrays of a batch that a side fills, pass by pass.

    Parameters
    ----------
    job
        For its sizes.
    batch
        Indices of its questions.
    """

    def __init__(self, job: Job, batch: list[int]) -> None:
        n_row, n_column = len(batch), job.columns(batch)[1]
        n_layer, n_head, hidden = (job.sizes[name] for name in ("layer", "head", "hidden"))
        self.hidden_state = np.zeros((n_row, n_layer, n_column, hidden), "float16")
        self.final_state = np.zeros((n_row, n_column, hidden), "float16")
        self.attention = np.zeros((n_row, n_layer, n_head, n_column, n_column), "float16")
        self.token = np.full((n_row, n_column), -1, "int32")

    def add(self, column: int, states: list[Tensor], final: Tensor, attentions: list[Tensor]) -> None:
        """Keep one pass: states after each block, after the final norm, and attention, ``column`` its first."""
        end = column + final.shape[1]
        for layer, (state, attention) in enumerate(zip(states, attentions, strict=True)):
            torch.from_numpy(self.hidden_state[:, layer, column:end]).copy_(state)
            torch.from_numpy(self.attention[:, layer, :, column:end, :end]).copy_(attention)
        torch.from_numpy(self.final_state[:, column:end]).copy_(final)

    def save(self, path: Path) -> int:
        """Write what was kept and wait until it is on the disk; bytes."""
        with path.open("wb") as file:
            np.savez(file, **vars(self))
            file.flush()
            os.fsync(file.fileno())
        return path.stat().st_size


@torch.no_grad()
def think(job: Job, batch: list[int], feed: Any, kept: Kept | None, *, last: bool = True) -> Tensor:
    """Question, thoughts and answer of a batch by one side's passes; tokens written ``(row, place)``.

    Parameters
    ----------
    job, batch
        What is asked.
    feed
        One pass: ``feed(column, mask, position, tokens=..)`` or ``(.., vectors=..)``, which gives states after the
        final norm and logits and keeps what it captured.
    kept
        Where tokens are noted.
    last
        Whether the last token is fed, too, which only a capture wants.
    """
    tokens, mask, position = job.laid_out(batch)
    column = tokens.shape[1]
    final, logits = feed(0, mask[:, :column], position[:, :column], tokens=tokens)

    def go_on(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal column
        begun, column = column, column + next(iter(inputs.values())).shape[1]
        return feed(begun, mask[:, :column], position[:, begun:column], **inputs)

    for _ in range(job.n_latent):
        final, logits = go_on(vectors=job.projection(final[:, -1])[:, None])
    written = []
    if job.closing:
        final, logits = go_on(tokens=torch.tensor([job.closing] * len(batch)))
    begun = column
    ended = torch.zeros(len(batch), dtype=torch.bool)
    for place in range(job.n_answer):
        token = job.likeliest(logits)
        written.append(token.where(~ended, -1))
        ended |= token == job.eos
        done = bool(ended.all()) or place == job.n_answer - 1
        if last or not done:
            final, logits = go_on(tokens=token[:, None])
        if done:
            break
    answer = torch.stack(written, 1) if written else torch.empty(len(batch), 0, dtype=torch.long)
    if kept is not None:
        kept.token[:, : tokens.shape[1]] = tokens.where(mask[:, : tokens.shape[1]] > 0, -1)
        kept.token[:, begun - len(job.closing) : begun] = job.closing
        kept.token[:, begun : begun + answer.shape[1]] = answer
    return answer


def patched_one_by_one(
    job: Job, patches: str, patch: Callable[[list[int], int, int, Tensor], list[list[int]]]
) -> list[list[list[int]]]:
    """Answers, by condition and question, where one block's state at one thought is another.

    ``patch(batch, layer, thought, values)`` answers a batch; ``patches`` is a file of layers, and of the states
    (layer, thought, question, hidden) that go in there.
    """
    kept = np.load(patches)
    return [
        [row for batch in job.batches for row in patch(batch, layer, thought, torch.from_numpy(values))]
        for layer, of_layer in zip(kept["layers"].tolist(), kept["values"], strict=True)
        for thought, values in enumerate(of_layer)
    ]
