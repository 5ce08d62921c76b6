"""A base model with low-rank adapters that learns to think: passes with gradients, and the losses of CODI."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.pytorch_utils import Conv1D

from extract.model.capture import within
from extract.model.checkpoint import ROWS
from extract.model.reasoner import Reasoner
from schemas import UsageError

Protocol = Literal["codi", "pause"]
ATTENTION = "activation_lake_training"
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
"""Fields of a config that say so."""


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it, in the values' type; keys of a group of heads are repeated."""
    near = within(sliding_window, query.shape[2], key.shape[2], query.device)
    if near is not None and attention_mask is not None:
        attention_mask = attention_mask.masked_fill(~near, torch.finfo(attention_mask.dtype).min)
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (each[:, :, None].expand(-1, -1, repeat, -1, -1).flatten(1, 2) for each in (key, value))
    out = scaled_dot_product_attention(query.to(value.dtype), key, value, attention_mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


class Columns:
    """Keys and values of the columns fed so far, kept for gradients: nothing is written in place."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(row, head, position, head_size)`` of a layer; give all of them."""
        key = key.to(value.dtype)
        if layer == len(self._keys):
            self._keys.append(key)
            self._values.append(value)
        else:
            self._keys[layer] = torch.cat([self._keys[layer], key], 2)
            self._values[layer] = torch.cat([self._values[layer], value], 2)
        return self._keys[layer], self._values[layer]

    def branch(self, length: int) -> "Columns":
        """The first columns, to go on from in another way."""
        other = Columns()
        other.length = length
        other._keys = [key[:, :, :length] for key in self._keys]
        other._values = [value[:, :, :length] for value in self._values]
        return other

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns filled; asked by the library where no position ids are given."""
        return self.length


class Adapted(nn.Module):
    """A linear layer whose frozen weight W is used as ``W + alpha / rank * B A``.

    The sum is formed once a step (:meth:`merge`) and serves all passes of the step; PEFT's own layer multiplies by A
    and B in each of them, four more launches a layer and pass, and a small model on a GPU spends its time on launches.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        self.register_buffer("weight", weight.T.contiguous() if isinstance(layer, Conv1D) else weight)
        bias: Any = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach())
        n_out, n_in = self.weight.shape
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(weight.new_empty(rank, n_in))
        self.lora_B = nn.Parameter(weight.new_zeros(n_out, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT begins
        self.merged = self.weight

    def merge(self, dtype: torch.dtype) -> None:
        """Form the weight of this step, in the type in which it is multiplied."""
        self.merged = torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scale).to(dtype)

    def forward(self, state: Tensor) -> Tensor:
        """Multiply, in the type of the merged weight."""
        dtype = self.merged.dtype
        return functional.linear(state.to(dtype), self.merged, None if self.bias is None else self.bias.to(dtype))


class FusedNorm(nn.Module):
    """RMS norm of a block: two launches instead of the library's eight, in the type in which the block multiplies."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", norm.weight.detach())
        self.epsilon = float(norm.variance_epsilon)
        self.dtype = dtype

    def forward(self, state: Tensor) -> Tensor:
        """Norm in float32, rounded once."""
        weight: Any = self.weight
        return functional.rms_norm(state, weight.shape, weight, self.epsilon).to(self.dtype)


class Constant(nn.Module):
    """What is fed at every thought of a pause model: one learned vector, whatever the state."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector.clone())

    def forward(self, state: Tensor) -> Tensor:
        """The vector, for every row."""
        return self.vector.expand_as(state)


@dataclass(frozen=True)
class Batch:
    """Problems side by side as tokens: questions end, and texts begin, in the same column."""

    question: Tensor
    """``(row, column)``, padded on the left; without BOT."""
    pad: Tensor
    """``(row,)``: padding before each question."""
    answer: Tensor
    """``(row, place)``: prefix, number, end token; -100 after the end."""
    text: Tensor
    """``(row, place)``: the written chain and then the same answer; -100 after the end."""
    answer_start: Tensor
    """``(row,)``: answer tokens before the number's first."""
    chain_length: Tensor
    """``(row,)``: tokens of the chain."""

    def rows(self, which: slice) -> "Batch":
        """Some of the problems."""
        return Batch(**{name: value[which] for name, value in vars(self).items()})


class Student(nn.Module):
    """A reasoner in training: adapters on every linear layer of its blocks, projection and three extra rows.

    Everything else is frozen. What is trained is float32 whatever the type of the products; the residual stream too.
    """

    def __init__(self, reasoner: Reasoner, rank: int, alpha: float, protocol: Protocol, dtype: torch.dtype) -> None:
        super().__init__()
        self.reasoner = reasoner
        self.protocol = protocol
        self.dtype = dtype
        self.n_latent = reasoner.n_latent
        model: Any = reasoner.model
        capped = [name for name in SOFTCAPS if getattr(model.config, name, None) is not None]
        if capped:
            raise UsageError(
                f"{reasoner.architecture} squashes scores or logits ({', '.join(capped)}), which training leaves out;"
                " take a base without"
            )
        model.requires_grad_(False)
        model.set_attn_implementation(ATTENTION)
        entry = reasoner.architecture_entry
        self.body: Any = model.get_submodule(entry.body)
        self._blocks = list(self.body.get_submodule(entry.blocks))
        self._prefix = f"{entry.body}.{entry.blocks}"
        self.adapters = nn.ModuleDict()
        for index, block in enumerate(self._blocks):
            for name, layer in list(block.named_modules()):
                if hasattr(layer, "variance_epsilon") and layer.weight.shape[0] == reasoner.hidden:
                    block.set_submodule(name, FusedNorm(layer, dtype))
                if isinstance(layer, nn.Linear | Conv1D):
                    adapted = Adapted(layer, rank, alpha)
                    block.set_submodule(name, adapted)
                    self.adapters[f"{self._prefix}.{index}.{name}".replace(".", "/")] = adapted
        embedding = self.body.get_submodule(entry.embedding)
        n_word = reasoner.vocabulary
        self._embedding_name = f"{entry.body}.{entry.embedding}"
        self.words = embedding.weight.detach()[:n_word].clone()
        self.extra_rows = nn.Parameter(embedding.weight.detach()[n_word:].clone())
        tied = bool(model.config.tie_word_embeddings)
        head = model.get_output_embeddings().weight.detach()
        self.head = self.words.to(dtype) if tied else head[:n_word].to(dtype)
        self.extra_head = None if tied else nn.Parameter(head[n_word:].clone())
        projection = reasoner.projection.requires_grad_(True)
        self.projection: nn.Module = projection if protocol == "codi" else Constant(self.words.mean(0))
        self._states: list[Tensor] | None = None
        for block in self._blocks:
            block.register_forward_hook(self._keep)
        self.to(reasoner.device)

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._states is not None:
            self._states.append(output[0] if isinstance(output, tuple) else output)

    @contextmanager
    def _keeping(self) -> Iterator[list[Tensor]]:
        self._states = []
        try:
            yield self._states
        finally:
            self._states = None

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by a short name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def feed(self, vectors: Tensor, pad: Tensor, columns: Columns) -> Tensor:
        """Feed vectors ``(row, position, hidden)`` at the next columns; give the states after the final norm."""
        start, n = columns.length, vectors.shape[1]
        query = torch.arange(start, start + n, device=vectors.device)
        key = torch.arange(start + n, device=vectors.device)
        seen = (key <= query[:, None]) & (key >= pad[:, None, None])
        # Padding sees itself only: no row without a key, and nothing else ever sees it.
        seen = seen | (key == query[:, None])
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=vectors.device)
        mask = mask.masked_fill(~seen, torch.finfo(self.dtype).min)[:, None]
        states: Tensor = self.body(
            inputs_embeds=vectors, attention_mask=mask, position_ids=(query - pad[:, None]).clamp_min(0),
            past_key_values=columns, use_cache=True,
        ).last_hidden_state  # fmt: skip
        columns.length += n
        return states

    def think(self, batch: Batch, thoughts: int | None = None) -> tuple[Tensor, Columns]:
        """Read the questions and think; give the states of the last question token and BOT, and the columns.

        With no thoughts the columns end with BOT.
        """
        n_row = len(batch.pad)
        marker = self.extra_rows[1].expand(n_row, 1, -1)
        columns = Columns()
        states = self.feed(torch.cat([self.words[batch.question], marker], 1), batch.pad, columns)
        state = states[:, -1]
        n_latent = self.n_latent if thoughts is None else thoughts
        if self.protocol == "pause" and n_latent:
            self.feed(self.projection(state)[:, None].expand(-1, n_latent, -1), batch.pad, columns)
        else:
            for _ in range(n_latent):
                state = self.feed(self.projection(state)[:, None], batch.pad, columns)[:, -1]
        return states[:, -2:], columns

    def answer_states(self, batch: Batch, columns: Columns) -> Tensor:
        """Feed EOT and the answer but for its end; states ``(row, place, hidden)`` that its tokens follow."""
        marker = self.extra_rows[2].expand(len(batch.pad), 1, -1)
        fed = self.words[batch.answer[:, :-1].clamp_min(0)]
        return self.feed(torch.cat([marker, fed], 1), batch.pad, columns)

    def merge(self) -> None:
        """Form the weights of this step."""
        for adapter in self.adapters.values():
            adapter.merge(self.dtype)  # type: ignore[operator]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """CODI's three losses, each a mean over the batch, unweighted.

        ``answer``: cross-entropy of the answer after the thoughts. ``teacher``: that of the written chain and answer
        right after the question. ``distillation``: smooth L1 between the two at the token before the number, over the
        teacher's standard deviation, mean over the entries of Hugging Face's tuple of states; no gradient reaches the
        teacher's.
        """
        self.merge()
        before, columns = self.think(batch)
        teacher = columns.branch(batch.question.shape[1])
        rows = torch.arange(len(batch.pad), device=batch.pad.device)
        with self._keeping() as kept:
            states = self.answer_states(batch, columns)
            student_states = [layer[rows, batch.answer_start] for layer in [*kept[:-1], states]]
        fed = self.words[batch.text[:, :-1].clamp_min(0)]
        with self._keeping() as kept:
            written = self.feed(fed, batch.pad, teacher)
            place = batch.chain_length + batch.answer_start - 1
            teacher_states = [layer[rows, place].detach() for layer in [*kept[:-1], written]]
        distances = [
            functional.smooth_l1_loss(student, layer) / layer.std()
            for student, layer in zip(student_states, teacher_states, strict=True)
        ]
        return {
            "answer": self.cross_entropy(states, batch.answer),
            "teacher": self.cross_entropy(torch.cat([before[:, :1], written], 1), batch.text),
            # The tuple's first entry, the embeddings, has no gradient; it counts in the mean.
            "distillation": torch.stack(distances).sum() / (len(distances) + 1),
        }

    def logits(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the words and of the three extra rows."""
        extra = self.extra_rows if self.extra_head is None else self.extra_head
        return functional.linear(states.to(self.dtype), self.head), functional.linear(states, extra)

    def cross_entropy(self, states: Tensor, target: Tensor) -> Tensor:
        """Mean over the targets that are no padding; the extra rows are among what could be chosen.

        The logits, larger than all else of a pass, are computed again for the gradient instead of being kept.
        """
        loss: Tensor = checkpoint(self._cross_entropy, states, target, use_reentrant=False, preserve_rng_state=False)
        return loss

    def _cross_entropy(self, states: Tensor, target: Tensor) -> Tensor:
        words, extra = self.logits(states)
        words = words.float()
        chosen = words.gather(-1, target.clamp_min(0)[..., None])[..., 0]
        total = torch.logaddexp(words.logsumexp(-1), extra.float().logsumexp(-1))
        is_target = target >= 0
        return ((total - chosen) * is_target).sum() / is_target.sum()

    @torch.no_grad()
    def right(self, batch: Batch, thoughts: int | None = None) -> Tensor:
        """Whether greedy writing gives exactly the answer ``(row,)``: every token of it is the likeliest there."""
        self.merge()
        _, columns = self.think(batch, thoughts)
        words, extra = self.logits(self.answer_states(batch, columns))
        best, token = words.float().max(-1)
        # The row of EOT, the last, is never written.
        written = torch.where(extra[..., :-1].amax(-1) > best, -1, token)
        return ((written == batch.answer) | (batch.answer < 0)).all(1)

    def checkpoint(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What was trained, by the names of the official layout."""
        tensors: dict[str, Tensor] = {}
        for key, adapter in self.adapters.items():
            name = "codi.base_model.model." + key.replace("/", ".")
            tensors[f"{name}.lora_A.default.weight"] = adapter.lora_A  # type: ignore[assignment]
            tensors[f"{name}.lora_B.default.weight"] = adapter.lora_B  # type: ignore[assignment]
        tensors[f"codi.base_model.model.{self._embedding_name}{ROWS}"] = self.extra_rows
        if self.extra_head is not None:
            tensors[f"codi.base_model.model.lm_head{ROWS}"] = self.extra_head
        if isinstance(self.projection, Constant):
            tensors.update(_constant_projection(self.projection.vector))
        else:
            tensors.update({f"prj.{name}": value for name, value in self.projection.named_parameters()})
        return {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}


def _constant_projection(vector: Tensor) -> dict[str, Tensor]:
    """A projection without norm that gives a vector whatever it reads."""
    hidden = len(vector)
    zeros = {"prj.1.weight": (1, hidden), "prj.1.bias": (1,), "prj.3.weight": (hidden, 1)}
    return {**{name: vector.new_zeros(shape) for name, shape in zeros.items()}, "prj.3.bias": vector}
