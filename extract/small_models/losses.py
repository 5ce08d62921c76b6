"""What the small models and their controls are trained for: the parts of the loss of one batch, and accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from extract.small_models.network import Kind, SmallCodi
from extract.small_models.problems import MAX_OPERATION
from extract.small_models.thinking import (
    N_NUMBER_THOUGHT,
    ProblemTable,
    Sequence,
    Words,
    continue_values,
    read_question,
    think,
)
from schemas import N_LATENT


@dataclass(frozen=True)
class Settings:
    """Settings that every stage of training has."""

    steps: int
    rate: float
    batch: int = 64
    warmup: int = 200
    decay: float = 0.01
    clip: float = 1.0


@dataclass(frozen=True)
class Stage(Settings):
    """Settings of one stage of training of a CODI model."""

    # thoughts exchanged in half of the batch: a number the answer follows, or any that it ignores
    exchange: Literal["none", "follow", "ignore"] = "none"
    kind: Kind = "codi"
    # share of problems with 1, 2, 3, 4 operations
    mixture: tuple[float, ...] = (0.05, 0.15, 0.3, 0.5)
    template_weight: float = 0.2
    number_weight: float = 1.0
    operator_weight: float = 0.3
    teacher_weight: float = 1.0
    distillation_weight: float = 1.0


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


def direct_losses(
    model: SmallCodi, stage: Stage, batch: ProblemTable, rng: np.random.Generator, words: Words
) -> dict[str, torch.Tensor]:
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

    states, losses = taught_losses(model, stage, batch, answer, half, words, replace)
    logits = states @ model.embedding.T
    number_logits, operator_logits = logits[:, 1:N_LATENT:2], logits[:, 0 : N_LATENT + 1 : 2]
    losses["number"] = stage.number_weight * functional.cross_entropy(
        number_logits.flatten(0, 1), words.number[carried].flatten()
    )
    losses["operator"] = stage.operator_weight * functional.cross_entropy(
        operator_logits.flatten(0, 1), words.operator[operator].flatten()
    )
    return losses


def pause_losses(
    model: SmallCodi, stage: Stage, batch: ProblemTable, rng: np.random.Generator, words: Words
) -> dict[str, torch.Tensor]:
    """CODI's losses where one vector is fed at every thought; nothing is asked of the states there."""
    answer = torch.from_numpy(batch.answer).to(words.number.device)
    return taught_losses(model, stage, batch, answer, len(answer) // 2, words)[1]


def taught_losses(
    model: SmallCodi, stage: Stage, batch: ProblemTable, answer: torch.Tensor, n_taught: int, words: Words,
    replace: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """States at bot and the thoughts; losses of the answer after them, of the teacher, and of the way between the two.

    The first `n_taught` problems have a teacher, which reads the chain instead of thinking.
    """
    sequence, bot_state = read_question(model, torch.from_numpy(batch.question).to(answer.device))
    n_question = sequence.valid.shape[1]
    teacher = sequence.branch(n_question - 1, slice(0, n_taught))
    states, _ = think(model, sequence, bot_state, replace)
    text = answer_texts(answer, words)
    student_layers = feed_answer(model, sequence, text, every_layer=True)
    losses = {"answer": text_loss(model, student_layers[-1], text, stage)}
    teacher_loss, teacher_layers = read_chain(model, teacher, batch, text[:n_taught])
    losses["teacher"] = stage.teacher_weight * teacher_loss
    at_colon = len(words.prefix)
    distances = [
        functional.smooth_l1_loss(student[:n_taught, at_colon], layer) / layer.std().clamp(min=1e-3)
        for student, layer in zip(student_layers, teacher_layers, strict=True)
    ]
    losses["distillation"] = stage.distillation_weight * torch.stack(distances).mean()
    return states, losses


def cot_losses(
    model: SmallCodi, stage: Stage, batch: ProblemTable, rng: np.random.Generator, words: Words
) -> dict[str, torch.Tensor]:
    """Loss of writing all steps and the answer right after the question, and nothing else."""
    logits, text, _ = write_chain(model, batch, words)
    return {"answer": functional.cross_entropy(logits.flatten(0, 1), text.flatten(), ignore_index=-1)}


def write_chain(model: SmallCodi, batch: ProblemTable, words: Words) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (problem, place, token) after the question and all but the last token of the text.

    Beside them the text (problem, place), steps and answer, -1 after its end; and the length of the steps (problem,).
    """
    question = torch.from_numpy(batch.question).to(words.number.device)
    sequence = Sequence(model, len(question), question.device)
    sequence.feed(model.embedding[question[:, :-1].clamp(min=0)], question[:, :-1] >= 0)
    answer = answer_texts(torch.from_numpy(batch.answer).to(question.device), words)
    text, length = chain_text(batch, answer)
    (states,) = sequence.feed(model.embedding[torch.cat([question[:, -1:], text[:, :-1].clamp(min=0)], 1)])
    return states @ model.embedding.T, text, length


def chain_text(batch: ProblemTable, answer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and answer of the first problems as one text (problem, place), -1 after its end; length of the steps."""
    n, width = answer.shape
    chain = torch.from_numpy(batch.chain[:n]).to(answer.device)
    length = (chain >= 0).sum(1)
    text = torch.cat([chain, torch.full_like(answer, -1)], 1)
    return text.scatter(1, length[:, None] + torch.arange(width, device=answer.device), answer), length


def read_chain(
    model: SmallCodi, sequence: Sequence, batch: ProblemTable, text: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Teacher: feed the written chain and the answer right after the question.

    Returns its cross-entropy and, per entry of Hugging Face's tuple, its states at ``:`` (problem, hidden), detached.
    """
    ids, length = chain_text(batch, text)
    fed = ids.clamp(min=0)[:, :-1]
    layers = sequence.feed(model.embedding[fed], every_layer=True)
    target = ids[:, 1:]
    loss = functional.cross_entropy((layers[-1] @ model.embedding.T).flatten(0, 1), target.flatten(), ignore_index=-1)
    colon = length + text.shape[1] - 3
    rows = torch.arange(len(text), device=text.device)
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


@torch.no_grad()
def quick_accuracy(model: SmallCodi, table: ProblemTable, words: Words) -> dict[str, float]:
    """Accuracy on the first 500 problems of a table, all and with the most operations; the template is given.

    Of a model that writes its steps: how often the whole text is what it writes.
    """
    model.eval()
    table = table.take(np.arange(min(500, len(table.n_operation))))
    if model.kind == "cot":
        logits, text, _ = write_chain(model, table, words)
        right = ((logits.argmax(-1) == text) | (text < 0)).all(1).cpu().numpy()
    else:
        answer = torch.from_numpy(table.answer).to(words.number.device)
        sequence, state = read_question(model, torch.from_numpy(table.question).to(answer.device))
        if model.kind != "direct":
            think(model, sequence, state)
        (states,) = feed_answer(model, sequence, answer_texts(answer, words))
        logits = states[:, -2] @ model.embedding.T
        right = (logits.argmax(1) == words.number[answer]).cpu().numpy()
    most = table.n_operation == MAX_OPERATION
    return {"accuracy": float(right.mean()), "accuracy_4": float(right[most].mean())}


LOSSES: dict[Kind, Callable[..., dict[str, torch.Tensor]]] = {
    "codi": thought_losses,
    "pause": pause_losses,
    "cot": cot_losses,
    "direct": direct_losses,
}
"""By the kind of a stage: all parts of the loss of one batch, weighted."""
