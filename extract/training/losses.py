"""What each protocol is trained for: parts of the loss of one batch, each a mean over it, unweighted."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from extract.training.student import Batch, Student, Thinking

SMALLEST = 0.01
"""Least deviation of a component, as a share of its layer's."""


def losses(student: Student, batch: Batch, thoughts: int | None = None) -> dict[str, Tensor]:
    """Parts of the loss of a batch, unweighted.

    Parameters
    ----------
    student
        What is trained; its protocol decides.
    batch
        Problems; of a decodable control with the thoughts that are exchanged.
    thoughts
        How many are thought, where that is not yet all of them.
    """
    kept = None if student.kept is None else student.kept_states(batch)
    student.merge()
    thinking = student.think(batch, thoughts)
    parts = _LOSSES.get(student.rule.name, text_losses)(student, batch, thinking)
    if kept is not None:
        parts["thought"] = functional.smooth_l1_loss(thinking.states[:, 1:], kept[:, 1:]) / kept[:, 1:].std()
    return parts


def text_losses(student: Student, batch: Batch, thinking: Thinking) -> dict[str, Tensor]:
    """Cross-entropy of what is written after the thoughts, or right after the question: steps that are left, answer."""
    return {"answer": student.cross_entropy(student.follow(thinking, batch, batch.text), batch.text)}


def direct_losses(student: Student, batch: Batch, thinking: Thinking) -> dict[str, Tensor]:
    """Cross-entropy of the answer, right after the question."""
    return {"answer": student.cross_entropy(student.follow(thinking, batch, batch.answer), batch.answer)}


def codi_losses(student: Student, batch: Batch, thinking: Thinking) -> dict[str, Tensor]:
    """CODI's three losses.

    ``answer``: cross-entropy of the answer after the thoughts. ``teacher``: that of the written chain and answer right
    after the question. ``distillation``: smooth L1 between the two at the token before the answer, over the teacher's
    standard deviation, mean over the entries of Hugging Face's tuple of states; no gradient reaches the teacher's.

    The deviation is that of all components of a layer, as in the official code. A real base has a few huge components,
    over which the distance of all others is next to nothing: on SmolLM2-135M a layer's deviation is up to thirty times
    that of a typical component over the problems. ``distillation_scale="component"`` takes each component's own.
    """
    teacher = thinking.columns.branch(batch.question.shape[1])
    rows = torch.arange(len(batch.pad), device=batch.pad.device)
    with student.keeping() as kept:
        states = student.follow(thinking, batch, batch.answer)
        student_states = [layer[rows, batch.answer_start] for layer in [*kept[:-1], states]]
    fed = student.words[batch.text[:, :-1].clamp_min(0)]
    with student.keeping() as kept:
        written = student.feed(fed, batch.pad, teacher)
        place = batch.chain_length + batch.answer_start - 1
        teacher_states = [layer[rows, place].detach() for layer in [*kept[:-1], written]]
    distances = [
        _distance(own, layer, student.distillation_scale)
        for own, layer in zip(student_states, teacher_states, strict=True)
    ]
    return {
        "answer": student.cross_entropy(states, batch.answer),
        "teacher": student.cross_entropy(torch.cat([thinking.states[:, :1], written], 1), batch.text),
        # The tuple's first entry, the embeddings, has no gradient; it counts in the mean.
        "distillation": torch.stack(distances).sum() / (len(distances) + 1),
    }


def _distance(own: Tensor, layer: Tensor, scale: str) -> Tensor:
    """Smooth L1 of a layer's states ``(row, hidden)`` from the teacher's, in standard deviations of the teacher's."""
    if scale == "layer":
        return functional.smooth_l1_loss(own, layer) / layer.std()
    # A component that hardly differs between problems must not outweigh all others.
    deviation = layer.std(0, correction=0).clamp_min(SMALLEST * layer.std())
    return functional.smooth_l1_loss(own / deviation, layer / deviation)


_LOSSES: dict[str, Callable[[Student, Batch, Thinking], dict[str, Tensor]]] = {
    **dict.fromkeys(("codi", "codi-pause", "codi-multipass-pause"), codi_losses),
    "direct": direct_losses,
}


def draw_exchanged(rng: np.random.Generator, n_row: int, n_latent: int) -> NDArray[np.bool_]:
    """Which thoughts ``(row, thought)`` are exchanged: none in half of the rows, else all of them or one, evenly."""
    any_at_all, every = rng.random((2, n_row, 1)) < 0.5
    one = rng.integers(n_latent, size=(n_row, 1)) == np.arange(n_latent)
    return np.asarray(any_at_all & (every | one))
