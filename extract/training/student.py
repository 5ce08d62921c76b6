"""A base model with low-rank adapters that learns to think, by any protocol that is trained here."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from extract.model.checkpoint import ROWS
from extract.model.reasoner import Reasoner
from extract.training.layers import ATTENTION, Adapted, Columns, FusedNorm
from schemas import UsageError

SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
"""Fields of a config that say that scores or logits are squashed."""
IN_PASSES = "multipass-pause"
"""End of the names of protocols whose vector is fed in as many passes as there are thoughts."""


@dataclass(frozen=True)
class Batch:
    """Problems side by side as tokens: questions end, and texts begin, in the same column."""

    question: Tensor
    """``(row, column)``, padded on the left; without what begins the thoughts."""
    pad: Tensor
    """``(row,)``: padding before each question."""
    answer: Tensor
    """``(row, place)``: prefix, answer, end token; -100 after the end."""
    text: Tensor
    """``(row, place)``: what is left of the written steps, and then the same answer; -100 after the end."""
    answer_start: Tensor
    """``(row,)``: answer tokens before the answer's own first."""
    chain_length: Tensor
    """``(row,)``: tokens of the steps in the text."""
    exchanged: Tensor
    """``(row, thought)``: whether the vector of another problem, half a batch away, is fed there."""

    def rows(self, which: slice) -> "Batch":
        """Some of the problems."""
        return Batch(**{name: value[which] for name, value in vars(self).items()})


class Thinking(NamedTuple):
    """Where a batch stands after its thoughts."""

    states: Tensor
    """``(row, place, hidden)`` after the final norm: last question token, and where there are thoughts bot and each."""
    columns: Columns


class Student(nn.Module):
    """A reasoner in training: adapters on every linear layer of its blocks, what feeds its thoughts, and its rows.

    Everything else is frozen. What is trained is float32 whatever the type of the products; the residual stream too.
    """

    def __init__(self, reasoner: Reasoner, rank: int, alpha: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.reasoner = reasoner
        self.rule = reasoner.protocol
        self.dtype = dtype
        self.n_latent = reasoner.n_latent
        self.distillation_scale = "layer"
        self.kept: dict[str, Tensor] | None = None
        """Of a decodable control, the trained values of its model, whose thoughts it is to keep."""
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
        self._take_rows(model, f"{entry.body}.{entry.embedding}")
        self.projection: nn.Module = reasoner.projection.requires_grad_(True)
        self._states: list[Tensor] | None = None
        for block in self._blocks:
            block.register_forward_hook(self._keep)
        self.to(reasoner.device)

    def _take_rows(self, model: Any, name: str) -> None:
        """Set apart the rows of the vocabulary that are trained: those of the protocol."""
        embedding, n_word = model.get_submodule(name), self.reasoner.vocabulary
        self._embedding_name = name
        self.words = embedding.weight.detach()[:n_word].clone()
        self.extra_rows: nn.Parameter | None = None
        self.extra_head: nn.Parameter | None = None
        head = model.get_output_embeddings().weight.detach()
        tied = bool(model.config.tie_word_embeddings)
        self.head = self.words.to(self.dtype) if tied else head[:n_word].to(self.dtype)
        if self.rule.rows:
            self.extra_rows = nn.Parameter(embedding.weight.detach()[n_word:].clone())
            self.extra_head = None if tied else nn.Parameter(head[n_word:].clone())

    def _keep(self, _: nn.Module, __: Any, output: Any) -> None:
        if self._states is not None:
            self._states.append(output[0] if isinstance(output, tuple) else output)

    @contextmanager
    def keeping(self) -> Iterator[list[Tensor]]:
        """Outputs of every block, in a list that is filled as vectors are fed."""
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

    def _marker(self, token: str, n_row: int) -> Tensor:
        """Embedding ``(row, 1, hidden)`` of a token of the protocol."""
        assert self.extra_rows is not None
        return self.extra_rows[self.rule.rows.index(token)].expand(n_row, 1, -1)

    def think(self, batch: Batch, thoughts: int | None = None) -> Thinking:
        """Read the questions and think; with no thoughts the columns end with what begins them."""
        n_row, columns = len(batch.pad), Columns()
        question = self.words[batch.question]
        if not self.rule.bot:
            return Thinking(self.feed(question, batch.pad, columns)[:, -1:], columns)
        states = self.feed(torch.cat([question, self._marker(self.rule.bot, n_row)], 1), batch.pad, columns)
        n_latent = self.n_latent if thoughts is None else thoughts
        every = [states[:, -2:]]
        if self.rule.fed == "vector" and not self.rule.name.endswith(IN_PASSES) and n_latent:
            vector = self.projection(states[:, -1:]).expand(-1, n_latent, -1)
            every.append(self.feed(vector, batch.pad, columns))
        else:
            for index in range(n_latent):
                vector = self.projection(every[-1][:, -1])
                if self.kept is not None:
                    vector = vector.where(~batch.exchanged[:, index, None], vector.roll(n_row // 2, 0))
                every.append(self.feed(vector[:, None], batch.pad, columns))
        return Thinking(torch.cat(every, 1), columns)

    def kept_states(self, batch: Batch) -> Tensor:
        """States ``(row, place, hidden)`` of :meth:`think` with :attr:`kept`, no thought exchanged."""
        assert self.kept is not None
        trained = self.trained()
        own = {name: value.data for name, value in trained.items()}
        try:
            self._set(trained, self.kept)
            with torch.no_grad():
                return self.think(replace(batch, exchanged=torch.zeros_like(batch.exchanged))).states
        finally:
            self._set(trained, own)

    def _set(self, trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        for name, value in trained.items():
            value.data = values[name]
        self.merge()

    def follow(self, thinking: Thinking, batch: Batch, text: Tensor) -> Tensor:
        """Close the thoughts and feed a text but for its end; states ``(row, place, hidden)`` its tokens follow."""
        fed = self.words[text[:, :-1].clamp_min(0)]
        if not self.rule.closing:
            return torch.cat([thinking.states[:, -1:], self.feed(fed, batch.pad, thinking.columns)], 1)
        closing = [self._marker(token, len(batch.pad)) for token in self.rule.closing]
        return self.feed(torch.cat([*closing, fed], 1), batch.pad, thinking.columns)[:, len(closing) - 1 :]

    def merge(self) -> None:
        """Form the weights of this step."""
        for adapter in self.adapters.values():
            adapter.merge(self.dtype)  # type: ignore[operator]

    def logits(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the words, and of the protocol's rows if it has any."""
        words = functional.linear(states.to(self.dtype), self.head)
        extra = self.extra_rows if self.extra_head is None else self.extra_head
        return words, None if extra is None else functional.linear(states, extra)

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
        total = words.logsumexp(-1)
        if extra is not None:
            total = torch.logaddexp(total, extra.float().logsumexp(-1))
        is_target = target >= 0
        return ((total - chosen) * is_target).sum() / is_target.sum()

    @torch.no_grad()
    def right(self, batch: Batch, thoughts: int | None = None) -> Tensor:
        """Whether greedy decoding gives exactly the right text ``(row,)``: the answer, or steps and answer."""
        self.merge()
        target = batch.text if self.rule.writes_steps else batch.answer
        batch = replace(batch, exchanged=torch.zeros_like(batch.exchanged))
        words, extra = self.logits(self.follow(self.think(batch, thoughts), batch, target))
        best, token = words.float().max(-1)
        if extra is not None and (written := extra[..., : extra.shape[-1] - self.rule.n_unwritten]).shape[-1]:
            token = torch.where(written.amax(-1) > best, -1, token)
        return ((token == target) | (target < 0)).all(1)

    def named(self) -> dict[str, nn.Parameter]:
        """What is trained, by the names that the protocol's checkpoints have."""
        prefix = self.rule.prefixes[0]
        named: dict[str, Any] = {}
        for key, adapter in self.adapters.items():
            name = prefix + key.replace("/", ".")
            named[f"{name}.lora_A.default.weight"] = adapter.lora_A
            named[f"{name}.lora_B.default.weight"] = adapter.lora_B
        for name, rows in ((self._embedding_name, self.extra_rows), ("lm_head", self.extra_head)):
            if rows is not None:
                named[f"{prefix}{name}{ROWS}"] = rows
        if self.rule.fed == "vector":
            named[self.rule.vector] = self.projection.vector
        else:
            what = self.rule.projection[0]
            named.update({f"{what}.{name}": value for name, value in self.projection.named_parameters()})
        return named

    def checkpoint(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What was trained, as it is written."""
        return {name: value.detach().to("cpu", dtype).contiguous() for name, value in self.named().items()}

    def begin_with(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take over what another training wrote.

        Raises
        ------
        UsageError
            If it trained other weights than this one does.
        """
        own = self.named()
        kinds = [{name: tuple(value.shape) for name, value in each.items()} for each in (own, weights)]
        if kinds[0] != kinds[1]:
            name = min(name for name in kinds[0].keys() | kinds[1].keys() if kinds[0].get(name) != kinds[1].get(name))
            there, here = (kind.get(name, "not there") for kind in reversed(kinds))
            raise UsageError(f"{source} holds other weights than these: {name} is {there} there, {here} here")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])
