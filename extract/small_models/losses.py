"""What the small models are trained on: texts, thoughts and exchanged thoughts."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from extract.small_models.network import N_LATENT, SmallCodi
from extract.small_models.settings import Stage
from extract.small_models.thinking import (
    N_NUMBER_THOUGHT,
    ProblemTable,
    Sequence,
    Words,
    continue_values,
    read_question,
    think,
)


def answer_texts(answer: torch.Tensor, words: Words) -> torch.Tensor:
    """``The answer is: N <eos>`` for every answer: (batch, 6)."""
    prefix = words.prefix.expand(len(answer), -1)
    return torch.cat([prefix, words.number[answer][:, None], torch.full_like(prefix[:, :1], words.eos)], 1)


def text_loss(model: SmallCodi, states: torch.Tensor, text: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Cross-entropy of the answer's number, and lightly of the template around it; states at eot and the text."""
    loss = functional.cross_entropy((states @ model.embedding.T).flatten(0, 1), text.flatten(), reduction="none")
    loss = loss.view(text.shape)
    return loss[:, -2].mean() + stage.template_weight * torch.cat([loss[:, :-2], loss[:, -1:]], 1).mean()


def feed_answer(
    model: SmallCodi, sequence: Sequence, text: torch.Tensor, every_layer: bool = False
) -> tuple[torch.Tensor, ...]:
    """Feed EOT and the text without its end; returns states (batch, 6, hidden) per layer, or the final ones."""
    eot = torch.full_like(text[:, :1], model.eot_id)
    return sequence.feed(model.embedding[torch.cat([eot, text[:, :-1]], 1)], every_layer=every_layer)


def direct_losses(model: SmallCodi, stage: Stage, batch: ProblemTable, words: Words) -> dict[str, torch.Tensor]:
    """Loss of answering right after the question: question, BOT, EOT, answer."""
    question = torch.from_numpy(batch.question).to(words.number.device)
    sequence, _ = read_question(model, question)
    text = answer_texts(torch.from_numpy(batch.answer).to(question.device), words)
    (states,) = feed_answer(model, sequence, text)
    return {"answer": text_loss(model, states, text, stage)}


def thought_losses(
    model: SmallCodi, stage: Stage, batch: ProblemTable, rng: np.random.Generator, words: Words
) -> dict[str, torch.Tensor]:
    """All parts of the loss of one batch, weighted.

    The first half of the batch is left alone and has a teacher. In the second half thoughts are replaced by those of
    problems of the first half, as the stage says: one number thought, and what follows is trained to what the rest of
    the story makes of the other problem's number; or one or all thoughts, and everything is trained to stay as it was.
    """
    device = words.number.device
    half = len(batch.n_operation) // 2
    rows = np.arange(2 * half)
    value, replace, first_changed = batch.value, None, np.full(2 * half, N_NUMBER_THOUGHT)
    if stage.exchange == "ignore":
        source = np.where(rows < half, rows, rng.integers(half, size=2 * half))
        which = rng.integers(-N_LATENT, N_LATENT, size=2 * half)  # below 0: all of them
        replace = {
            k: (
                torch.from_numpy((rows >= half) & ((which < 0) | (which == k))).to(device),
                torch.from_numpy(source).to(device),
            )
            for k in range(N_LATENT)
        }
    if stage.exchange == "follow":
        value, source, first_changed = draw_interchange(batch, rng)
        replace = {
            2 * j + 1: (torch.from_numpy(first_changed == j).to(device), torch.from_numpy(source).to(device))
            for j in range(N_NUMBER_THOUGHT)
        }
    before, after = (numbers[rows[:, None], batch.carried] for numbers in (batch.value, value))
    # the state at ct(2j) is computed before its projection is exchanged at ct(2j+1)
    carried = torch.from_numpy(np.where(np.arange(N_NUMBER_THOUGHT) <= first_changed[:, None], before, after)).to(
        device
    )
    answer = torch.from_numpy(value[rows, batch.n_operation]).to(device)
    operator = torch.from_numpy(batch.carried_operator).to(device)

    sequence, bot_state = read_question(model, torch.from_numpy(batch.question).to(device))
    n_question = sequence.valid.shape[1]
    teacher = sequence.branch(n_question - 1, slice(0, half))
    states, _ = think(model, sequence, bot_state, replace)
    text = answer_texts(answer, words)
    student_layers = feed_answer(model, sequence, text, every_layer=True)
    losses = {"answer": text_loss(model, student_layers[-1], text, stage)}

    logits = states @ model.embedding.T
    number_logits, operator_logits = logits[:, 1:N_LATENT:2], logits[:, 0 : N_LATENT + 1 : 2]
    losses["number"] = stage.number_weight * functional.cross_entropy(
        number_logits.flatten(0, 1), words.number[carried].flatten()
    )
    losses["operator"] = stage.operator_weight * functional.cross_entropy(
        operator_logits.flatten(0, 1), words.operator[operator].flatten()
    )

    teacher_loss, teacher_layers = read_chain(model, teacher, batch, text[:half], stage)
    losses["teacher"] = stage.teacher_weight * teacher_loss
    at_colon = len(words.prefix)
    distances = [
        functional.smooth_l1_loss(student[:half, at_colon], layer) / layer.std().clamp(min=1e-3)
        for student, layer in zip(student_layers, teacher_layers, strict=True)
    ]
    losses["distillation"] = stage.distillation_weight * torch.stack(distances).mean()
    return losses


def read_chain(
    model: SmallCodi, sequence: Sequence, batch: ProblemTable, text: torch.Tensor, stage: Stage
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Teacher: feed the written chain and the answer right after the question.

    Returns its cross-entropy and, per entry of Hugging Face's tuple, its states at ``:`` (problem, hidden), detached.
    """
    n, width = len(text), text.shape[1]
    chain = torch.from_numpy(batch.chain[:n]).to(text.device)
    length = (chain >= 0).sum(1)
    ids = torch.cat([chain, torch.full_like(text, -1)], 1)
    ids.scatter_(1, length[:, None] + torch.arange(width, device=text.device), text)
    fed = ids.clamp(min=0)[:, :-1]
    layers = sequence.feed(model.embedding[fed], every_layer=True)
    target = ids[:, 1:]
    loss = functional.cross_entropy((layers[-1] @ model.embedding.T).flatten(0, 1), target.flatten(), ignore_index=-1)
    colon = length + width - 3
    rows = torch.arange(n, device=text.device)
    return loss, [layer[rows, colon].detach() for layer in layers]


def draw_interchange(
    batch: ProblemTable, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Choose, for the second half of a batch, a number thought and a donor in the first half whose number fits.

    Returns the values of every story after the exchange (problem, MAX_OPERATION + 1), the donor's row, and which number
    thought is exchanged (`N_NUMBER_THOUGHT` for none).
    """
    n = len(batch.n_operation)
    half = n // 2
    value, source = batch.value.copy(), np.arange(n)
    thought = np.full(n, N_NUMBER_THOUGHT)
    chosen = rng.integers(N_NUMBER_THOUGHT, size=half)
    own = np.repeat(np.arange(half, n), half)
    other = np.tile(np.arange(half), n - half)
    column = np.repeat(chosen, half)
    step = batch.carried[own, column]
    given = batch.value[other, batch.carried[other, column]]
    changed = continue_values(batch.take(own), step, given)
    answer = changed[np.arange(len(own)), batch.n_operation[own]]
    fits = ((answer >= 0) & (given != batch.value[own, step])).reshape(n - half, half)
    order = rng.random(fits.shape) * fits
    pick = order.argmax(1)
    fitting = fits.any(1)
    rows = np.arange(half, n)[fitting]
    value[rows] = changed.reshape(n - half, half, -1)[fitting.nonzero()[0], pick[fitting]]
    source[rows] = pick[fitting]
    thought[rows] = chosen[fitting]
    return value, source, thought
