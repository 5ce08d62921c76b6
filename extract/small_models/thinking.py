"""One forward pass of a small CODI model, written for training: question once, six thoughts, then the texts."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from extract.model.capture import cache_argument
from extract.small_models.network import ANSWER_PREFIX, SmallCodi, make_tokenizer
from extract.small_models.problems import LARGEST_NUMBER, MAX_OPERATION, OPERATORS, Problem, carried_step
from schemas import N_LATENT

QUESTION_LENGTH = 12 + 5 * MAX_OPERATION
CHAIN_LENGTH = 7 * MAX_OPERATION
N_NUMBER_THOUGHT = N_LATENT // 2


class ProblemTable(NamedTuple):
    """Problems as arrays; questions are padded on the left with -1, chains on the right."""

    question: NDArray[np.int64]  # (problem, QUESTION_LENGTH)
    chain: NDArray[np.int64]  # (problem, CHAIN_LENGTH)
    value: NDArray[np.int64]  # (problem, MAX_OPERATION + 1): start and results, then -1
    operator: NDArray[np.int64]  # (problem, MAX_OPERATION): index into OPERATORS, -1 for none
    operand: NDArray[np.int64]  # (problem, MAX_OPERATION)
    n_operation: NDArray[np.int64]  # (problem,)

    def take(self, rows: NDArray[np.int64]) -> "ProblemTable":
        """Return the given rows."""
        return ProblemTable(*(column[rows] for column in self))

    @property
    def answer(self) -> NDArray[np.int64]:
        """Final answers (problem,)."""
        return self.value[np.arange(len(self.n_operation)), self.n_operation]

    @property
    def carried(self) -> NDArray[np.int64]:
        """The index into `value` of the number each of the number thoughts carries: (problem, thought)."""
        columns = [[carried_step(n, j) + 1 for j in range(N_NUMBER_THOUGHT)] for n in range(1, MAX_OPERATION + 1)]
        return np.array(columns)[self.n_operation - 1]

    @property
    def carried_operator(self) -> NDArray[np.int64]:
        """The operator read off at bot, ct1, ct3, ct5 (problem, 4): the next one, the last one repeated."""
        order = np.minimum(np.arange(MAX_OPERATION), self.n_operation[:, None] - 1)
        return np.take_along_axis(self.operator, order, 1)


def tabulate(problems: list[Problem]) -> ProblemTable:
    """Tokenize problems and write their numbers as arrays."""
    tokenizer = make_tokenizer()
    n = len(problems)
    question = np.full((n, QUESTION_LENGTH), -1)
    chain = np.full((n, CHAIN_LENGTH), -1)
    value = np.full((n, MAX_OPERATION + 1), -1)
    operator = np.full((n, MAX_OPERATION), -1)
    operand = np.zeros((n, MAX_OPERATION), dtype=np.int64)
    questions = tokenizer([p.question for p in problems], add_special_tokens=False)["input_ids"]
    chains = tokenizer([p.chain for p in problems], add_special_tokens=False)["input_ids"]
    for i, problem in enumerate(problems):
        question[i, QUESTION_LENGTH - len(questions[i]) :] = questions[i]
        chain[i, : len(chains[i])] = chains[i]
        value[i, : len(problem.operations) + 1] = problem.values
        for k, step in enumerate(problem.operations):
            operator[i, k], operand[i, k] = OPERATORS.index(step.operator), step.operand
    n_operation = np.array([len(p.operations) for p in problems])
    return ProblemTable(question, chain, value, operator, operand, n_operation)


def continue_values(table: ProblemTable, step: NDArray[np.int64], given: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start and results (problem, MAX_OPERATION + 1) if entry `step` of `value` were `given`.

    A story that cannot be continued has -1 from there on; entries before `step` keep their values.
    """
    value = table.value.copy()
    rows = np.arange(len(step))
    value[rows, step] = given
    for k in range(MAX_OPERATION):
        before, operand = value[:, k], table.operand[:, k]
        after = np.select(
            [table.operator[:, k] == i for i in range(4)],
            [before + operand, before - operand, before * operand, before // np.maximum(operand, 1)],
            -1,
        )
        halves = (table.operator[:, k] != 3) | (before % 2 == 0)
        valid = (before >= 0) & (after >= 0) & (after <= LARGEST_NUMBER) & halves
        value[:, k + 1] = np.where(k >= step, np.where(valid, after, -1), value[:, k + 1])
    return value


class Words(NamedTuple):
    """Token ids of what the losses read."""

    number: torch.Tensor  # (31,)
    operator: torch.Tensor  # (4,)
    prefix: torch.Tensor  # "The answer is:"
    eos: int

    @classmethod
    def of(cls, device: str | torch.device) -> "Words":
        """Look the ids up in the tokenizer."""
        tokenizer = make_tokenizer()
        number = tokenizer.convert_tokens_to_ids([str(n) for n in range(LARGEST_NUMBER + 1)])
        operator = tokenizer.convert_tokens_to_ids(list(OPERATORS))
        prefix = tokenizer.encode(ANSWER_PREFIX, add_special_tokens=False)
        return cls(
            torch.tensor(number, device=device),
            torch.tensor(operator, device=device),
            torch.tensor(prefix, device=device),
            tokenizer.eos_token_id,
        )


class Sequence:
    """A batch of sequences that grows at its end and remembers its keys, masks and position ids."""

    def __init__(self, model: Any, batch: int, device: torch.device) -> None:
        self.model = model  # a small model: its body is fed
        self.cache = DynamicCache()
        self.valid = torch.zeros(batch, 0, dtype=torch.bool, device=device)

    def feed(
        self,
        embedding: torch.Tensor,
        valid: torch.Tensor | None = None,
        every_layer: bool = False,
        apart: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Feed vectors (batch, new, hidden) and return final states; with `every_layer`, Hugging Face's whole tuple.

        With `apart` (new,) they do not see each other, and these are their position ids.
        """
        batch, new, _ = embedding.shape
        if valid is None:
            valid = torch.ones(batch, new, dtype=torch.bool, device=embedding.device)
        old = self.valid.shape[1]
        self.valid = torch.cat([self.valid, valid], 1)
        order = torch.arange(old + new, device=embedding.device)
        seen = self.valid[:, None, :] & (order[None, :] <= (order[old:, None] if apart is None else old - 1))
        seen = seen | (order[None, :] == order[old:, None])  # a padding query sees itself, so that no row is empty
        mask = torch.zeros(seen.shape, device=embedding.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        position = (self.valid.cumsum(1) - 1).clamp(min=0)[:, old:]
        if apart is not None:
            position = apart.expand(batch, -1)
        output = self.model.body(
            inputs_embeds=embedding,
            attention_mask=mask[:, None],
            position_ids=position,
            use_cache=True,
            output_hidden_states=every_layer,
            **{cache_argument(self.model.body): self.cache},
        )
        return tuple(output.hidden_states) if every_layer else (output.last_hidden_state,)

    def branch(self, length: int, rows: slice = slice(None)) -> "Sequence":
        """Return a copy of the first `length` positions of some rows, sharing their keys and values."""
        other = Sequence(self.model, 0, self.valid.device)
        other.valid = self.valid[rows, :length]
        for index, layer in enumerate(self.cache.layers):
            other.cache.update(layer.keys[rows, :, :length], layer.values[rows, :, :length], index)
        return other


def read_question(model: SmallCodi, question: torch.Tensor) -> tuple[Sequence, torch.Tensor]:
    """Feed questions (batch, token; -1 padding) and BOT; return the sequence and the final state at bot."""
    batch = len(question)
    bot = torch.full((batch, 1), model.bot_id, device=question.device)
    ids = torch.cat([question, bot], 1)
    sequence = Sequence(model, batch, question.device)
    (state,) = sequence.feed(model.embedding[ids.clamp(min=0)], ids >= 0)
    return sequence, state[:, -1]


def think(
    model: SmallCodi,
    sequence: Sequence,
    state: torch.Tensor,
    replace: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Feed the six thoughts.

    Parameters
    ----------
    model, sequence
        The model and the question it has read.
    state
        Final state at bot (batch, hidden).
    replace
        For some thoughts: a mask (batch; bool) and what is fed where it is true, either vectors (batch, hidden) or the
        rows (batch; long) of this batch whose own vector is taken.

    Returns
    -------
    tuple of Tensor
        Final states at bot, ct0..ct5 (batch, 7, hidden) and the vectors fed (batch, 6, hidden).
    """
    if model.kind == "pause" and not replace:  # all vectors are known before: one pass
        vectors = model.fed(state)[:, None].expand(-1, N_LATENT, -1)
        (after,) = sequence.feed(vectors)
        return torch.cat([state[:, None], after], 1), vectors
    states, fed = [state], []
    for k in range(N_LATENT):
        vector = model.fed(states[-1])
        if replace and k in replace:
            mask, source = replace[k]
            vector = torch.where(mask[:, None], source if source.is_floating_point() else vector[source], vector)
        fed.append(vector)
        states.append(sequence.feed(vector[:, None])[0][:, 0])
    return torch.stack(states, 1), torch.stack(fed, 1)
