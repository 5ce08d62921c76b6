"""A latent-reasoning model at work: encode a question, think in vectors, answer; padding moves rounding only."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from extract.model.architectures import Architecture
from extract.model.capture import (
    Capture,
    Editor,
    KeyValues,
    Pass,
    block_hooks,
    cache_argument,
)
from extract.model.protocols import CODI, EOS, Protocol
from extract.model.recorder import Recorder, StoredRangeError
from schemas import Intervention, LakeError, Places, UsageError

StoredDtype = Literal["float16", "float32"]
Choose = Callable[[Tensor, int, Tensor], Tensor]
SMALL_HIDDEN = 128
"""Up to this width a model runs on one thread of a processor."""


class Projection(nn.Module):
    """From the state at one thought to the vector fed at the next."""

    def __init__(self, hidden: int, inner: int, *, with_norm: bool) -> None:
        super().__init__()
        self.add_module("1", nn.Linear(hidden, inner))
        self.add_module("3", nn.Linear(inner, hidden))
        if with_norm:
            self.add_module("ln", nn.LayerNorm(hidden))

    def forward(self, state: Tensor) -> Tensor:
        """Linear, exact GELU, linear, and a layer norm unless it was trained without."""
        parts = self._modules
        out: Tensor = parts["3"](nn.functional.gelu(parts["1"](state)))  # type: ignore[misc]
        norm = parts.get("ln")
        return norm(out) if norm is not None else out


class Constant(nn.Module):
    """The same learned vector at every thought, whatever the state before."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(hidden))

    def forward(self, state: Tensor) -> Tensor:
        """Vector ``(hidden,)`` for every row of ``state``."""
        return self.vector.expand_as(state)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """What one batch of questions left behind, aligned at ``bot``.

    Key positions are ``n_before`` question places, ``bot``, the thoughts, what closes them and ``n_answer`` answer
    places (see :class:`schemas.Places`);
    positions are the same, or begin at ``bot`` in a latent capture. Arrays that were not asked for are empty.
    """

    n_before: int
    """Question places before ``bot``: those of the longest question of the batch."""
    n_answer: int
    """Answer places: tokens of the longest answer of the batch, end token included."""
    hidden_state: np.ndarray
    """``(example, layer, position, hidden)``, NaN where an example has no such position."""
    final_state: np.ndarray
    """``(example, position, hidden)``, likewise."""
    latent_embedding: np.ndarray
    """``(example, latent, hidden)``."""
    attention: np.ndarray
    """``(example, layer, head, position, key_position)``, 0 for padding, future keys and rows that do not exist."""
    parts: Mapping[str, np.ndarray]
    """Further sites, where asked for, as ``(example, layer, position, hidden)`` or, of heads,
    ``(example, layer, position, head, head_size)``; NaN where an example has no such position."""
    token: np.ndarray
    """``(example, position)`` int32, -1 where there is none (at the thoughts, too); in a full capture all positions,
    otherwise from ``bot`` on."""
    generated_text: list[str]
    answer_logprob: np.ndarray
    """``(example,)`` float64, NaN where no gold answer was given."""


class Flight:
    """A batch in flight: cache, column, rows still running. Everything that feeds a model goes through it."""

    def __init__(
        self, reasoner: "Reasoner", pad: Tensor, n_before: int, cache: KeyValues, *,
        recorder: Recorder | None = None, editor: Editor | None = None, rows: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.reasoner = reasoner
        self.pad = pad
        self.n_before = n_before
        self.cache = cache
        self.recorder = recorder
        self.editor = editor
        self.rows = torch.arange(len(pad), device=pad.device) if rows is None else rows
        self.all_rows = rows is None
        self.n_row = len(pad) if rows is None else int(rows.max()) + 1
        self.fed = 0
        self.calls = 0
        self.states: dict[int, Tensor] | None = None
        """Where these are asked for, the last state ``(row, hidden)`` at every offset from ``bot`` up to the answer."""
        # Of every column that may be fed, once: a pass takes slices.
        self.start = cache.length
        key = torch.arange(cache.capacity, device=pad.device)
        query = key[self.start :, None]
        # Padding sees itself only: no row without a key, and nothing else ever sees it.
        self.seen = (((key <= query) & (key >= pad[:, None, None])) | (key == query))[:, None]
        self.position = (query[:, 0] - pad[:, None]).clamp_min(0)

    @property
    def column(self) -> int:
        """Next column to be fed."""
        return self.cache.length

    def feed(self, embeddings: Tensor, *, record: bool = True) -> Tensor:
        """Feed vectors ``(row, position, hidden)`` at the next columns; give the states after the final norm."""
        n_row, n_position = embeddings.shape[:2]
        column = self.column
        begin, end = column - self.start, column - self.start + n_position
        mask = self.seen[:, :, begin:end, : column + n_position]
        running = Pass(
            column=column, n_before=self.n_before, rows=self.rows, all_rows=self.all_rows, mask=mask,
            recorder=self.recorder if record else None, editor=self.editor,
        )  # fmt: skip
        self.cache.running = running
        with self.reasoner._running(running):
            states: Tensor = self.reasoner._body(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=self.position[:, begin:end], use_cache=True,
                lake_pass=running, **{self.reasoner._cache_argument: self.cache},
            ).last_hidden_state  # fmt: skip
        if self.states is not None:
            offsets = range(column - self.n_before, column - self.n_before + n_position)
            middle = range(self.reasoner.places.n_middle)
            self.states |= {offset: states[:, index] for index, offset in enumerate(offsets) if offset in middle}
        self.cache.running = None
        self.cache.length += n_position
        self.fed += n_row * n_position
        self.calls += 1
        if running.recorder is not None:
            running.recorder.final(states, column, running.kept_rows)
        return states

    def feed_tokens(self, tokens: Tensor, *, record: bool = True) -> Tensor:
        """Feed tokens ``(row, position)``."""
        return self.feed(self.reasoner._embed(tokens), record=record)

    def think(self, state: Tensor, first: int = 0) -> Tensor:
        """Feed the thoughts from ``ct{first}`` on, each made from the state before; give the last state."""
        for index in range(first, self.reasoner.n_latent):
            vector = self.reasoner.projection(state)
            if self.editor is not None:
                vector = self.editor.embedding(vector, index + 1, self.rows)
            if self.recorder is not None:
                self.recorder.latent_embedding[self.rows, index] = vector.to(self.recorder.stored)
            state = self.feed(vector[:, None])[:, -1]
        return state

    def close(self, state: Tensor, first: int = 0) -> Tensor:
        """Feed the tokens that close the thoughts, from the ``first`` on; give the state before the answer."""
        closing = self.reasoner.closing_tokens(len(self.pad), self.pad.device)[:, first:]
        return self.feed_tokens(closing)[:, -1] if closing.shape[1] else state

    def keep(self, kept: Tensor) -> None:
        """Go on with some rows only."""
        self.cache = self.cache.take(kept, self.column, self.cache.capacity)
        self.pad, self.rows = self.pad[kept], self.rows[kept]
        self.seen, self.position = self.seen[kept], self.position[kept]
        self.all_rows = False

    def answer(
        self, state: Tensor, max_new_tokens: int, token: Tensor | None = None, *, choose: Choose | None = None
    ) -> Tensor:
        """Write from the state before the answer; tokens ``(row of the batch, place)``, -1 after the end.

        Every token written is fed, the last one only where it is recorded. ``token`` is the first, where it is known.
        ``choose`` gives the tokens ``(row,)`` from logits ``(row, token)`` of those that may be written, the place and
        the rows of the batch that are running; by default the likeliest.
        """
        reasoner = self.reasoner
        tokens = torch.full((self.n_row, max_new_tokens), -1, dtype=torch.long, device=state.device)
        ended = torch.zeros(len(self.rows), dtype=torch.bool, device=state.device)
        for place in range(max_new_tokens):
            if token is None:
                logits = reasoner._written(reasoner._logits(state))
                token = logits.argmax(-1) if choose is None else choose(logits, place, self.rows)
            tokens[self.rows, place] = token.where(~ended, -1)
            ended |= token == reasoner.eos_id
            n_running = len(ended) - int(ended.sum())  # the one look at a token; a GPU waits here
            last = n_running == 0 or place == max_new_tokens - 1
            if last and self.recorder is None:
                break
            state = self.feed_tokens(token[:, None])[:, -1]
            if last:
                break
            if n_running <= len(ended) // 2:
                kept = (~ended).nonzero()[:, 0]
                self.keep(kept)
                state, ended = state[kept], ended[kept]
            token = None
        return tokens

    def answer_beside(
        self, state: Tensor, continuations: Sequence[Sequence[int]], first: Sequence[int], max_new_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Close the thoughts; score given continuations and write greedily, as :meth:`answer` does.

        All of the continuations is fed in one pass. What would have been written anyway is thereby written; only the
        rest is written token by token.

        Parameters
        ----------
        state
            Of each row, the last before the thoughts are closed.
        continuations
            Of each row, its end token included.
        first
            Of each, the token from which on its log probability is asked.
        max_new_tokens
            Longest answer.

        Returns
        -------
        tuple
            Log probabilities ``(row, place)`` of the tokens asked for, 0 elsewhere, to be summed; tokens
            ``(row, place)``, -1 after the end.
        """
        reasoner, device = self.reasoner, self.pad.device
        n_row, longest = len(continuations), max(len(tokens) for tokens in continuations)
        laid = np.full((n_row, longest), reasoner.eos_id)
        scored, written_to = np.zeros((n_row, longest), dtype=bool), np.zeros((n_row, longest), dtype=bool)
        for row, (continuation, start) in enumerate(zip(continuations, first, strict=True)):
            end = len(continuation)
            laid[row, :end] = continuation
            written_to[row, : min(end, max_new_tokens)] = True
            scored[row, start:end] = True
        padded, given, asked = (_on_device(torch.from_numpy(each), device) for each in (laid, written_to, scored))
        closing = reasoner.closing_tokens(n_row, device)
        fed = self.feed_tokens(torch.cat([closing, padded], dim=1))
        states = torch.cat([state[:, None], fed], dim=1)[:, closing.shape[1] : -1]
        # The vocabulary is wide: logits of the prefix only where its first token is what the model writes.
        places = sorted({0, *range(min(first), longest)})
        logits = reasoner._logits(states[:, places])
        log_p = logits.gather(-1, padded[:, places, None])[..., 0] - logits.logsumexp(-1)
        written = torch.full_like(padded, -1)
        written[:, places] = reasoner._likeliest(logits)
        prefix = [place for place in range(longest) if place not in places]
        if prefix and bool((written[:, 0] == padded[:, 0]).any()):
            written[:, prefix] = reasoner._likeliest(reasoner._logits(states[:, prefix]))
        same = ((written == padded) & given).long().cumprod(1)
        tokens = torch.full((n_row, max_new_tokens), -1, dtype=torch.long, device=device)
        width = min(longest, max_new_tokens)
        tokens[:, :width] = torch.where(same > 0, padded, -1)[:, :width]
        n_same = same.sum(1)
        others = (n_same < given.sum(1)).nonzero()[:, 0]
        if len(others):
            place = int(n_same[others].min())
            self.cache.length -= longest - place
            if len(others) < n_row:
                self.keep(others)
            token = written[others, place]
            tokens[others, place:] = self.answer(states[others, place], max_new_tokens - place, token)[others]
        return log_p.where(asked[:, places], 0), tokens


class Reasoner:
    """A latent reasoner with its tokenizer; made by :func:`extract.load_reasoner`."""

    def __init__(
        self, *, name: str, model: nn.Module, projection: nn.Module, tokenizer: Any, architecture: Architecture,
        vocabulary: int, n_latent: int, answer_prefix: str, fingerprint: dict[str, str], protocol: Protocol = CODI,
        extra_rows: tuple[str, ...] = CODI.rows,
    ) -> None:  # fmt: skip
        self.name = name
        self.model = model
        self.projection = projection
        self.tokenizer = tokenizer
        self.architecture_entry = architecture
        self.architecture = architecture.model_type
        self.n_latent = n_latent
        self.answer_prefix = answer_prefix
        self.fingerprint = fingerprint
        config: Any = model.config
        self.n_layer = int(config.num_hidden_layers)
        self.n_head = int(config.num_attention_heads)
        self.hidden = int(config.hidden_size)
        self.context = int(config.max_position_embeddings)
        self.vocabulary = vocabulary
        self.protocol = protocol
        self.extra_rows = extra_rows
        self.eos_id = int(tokenizer.eos_token_id)
        known = tokenizer.get_vocab()
        self._known = {EOS: self.eos_id, **{text: vocabulary + row for row, text in enumerate(extra_rows)}}
        self._before_bot = [
            self._id_of(text, known) for text in protocol.before_bot if text not in protocol.if_known or text in known
        ]
        self.closing_ids = [self._id_of(text, known) for text in protocol.closing]
        self.bot_id = self._id_of(protocol.bot, known) if protocol.bot else None
        self.eot_id = self.closing_ids[0] if self.closing_ids else None
        self.pad_id = self._known.get("[PAD]", self.eos_id)
        # What is no text: rows of the protocol, and its markers where the tokenizer has them.
        self._marks = {self._id_of(text, known) for text in (*protocol.rows, *protocol.closing[:1])}
        self._body: Any = model.get_submodule(architecture.body)
        self._cache_argument = cache_argument(self._body)
        self._embedding: Any = self._body.get_submodule(architecture.embedding)
        self._blocks: list[nn.Module] = list(self._body.get_submodule(architecture.blocks))  # type: ignore[call-overload]
        self._parts = {site: getattr(architecture, site) for site in ("attention_output", "mlp_output")}
        self._norm: Any = self._body.get_submodule(architecture.final_norm)
        self._head: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._head_weight: Tensor | None = None
        self._answers: dict[str, tuple[list[int], int]] = {}
        self._current: Pass | None = None
        self._hooked = False
        self._in_use = threading.RLock()

    def _id_of(self, text: str, known: Mapping[str, int]) -> int:
        """Id of a token by its text."""
        if text not in self._known and text not in known:
            raise UsageError(f"protocol {self.protocol.name} needs the token {text}, which the tokenizer lacks")
        return self._known.get(text, known.get(text, -1))

    @property
    def places(self) -> Places:
        """Places between question and answer."""
        return self.protocol.places(self.n_latent)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._embedding.weight.device  # type: ignore[no-any-return]

    @property
    def head_size(self) -> int:
        """Width of one head's output."""
        config: Any = self.model.config
        return int(getattr(config, "head_dim", None) or self.hidden // self.n_head)

    @property
    def n_cache_head(self) -> int:
        """Heads of keys and values; each serves one query head or several."""
        config: Any = self.model.config
        return int(getattr(config, "num_key_value_heads", None) or self.n_head)

    def part_shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site's value at one layer and position: ``(hidden,)``, or ``(head, head_size)``."""
        heads = {"head_output": self.n_head, "key": self.n_cache_head, "value": self.n_cache_head}
        return (heads[site], self.head_size) if site in heads else (self.hidden,)

    def check(self, intervention: Intervention) -> None:
        """Check an intervention against the model's size and places.

        Raises
        ------
        UsageError
            Naming the layer, head or position that is not there.
        """
        intervention.check(n_layer=self.n_layer, n_head=self.n_head, n_cache_head=self.n_cache_head, places=self.places)

    @property
    def inner(self) -> int:
        """Width of a block's MLP."""
        config: Any = self.model.config
        return int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * self.hidden)

    @property
    def key_value_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        config: Any = self.model.config
        heads = int(getattr(config, "num_key_value_heads", None) or self.n_head)
        return 2 * self.n_layer * heads * self.head_size * self._embedding.weight.element_size()  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, and of the float32 head that logits are computed with."""
        weights = sum(each.numel() * each.element_size() for each in self.model.parameters())
        return weights + (0 if self._head.weight.dtype == torch.float32 else 4 * self._head.weight.numel())

    @functools.cached_property
    def unembedding(self) -> np.ndarray:
        """``(vocabulary, hidden)`` float32."""
        return self._head.weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Literal["layer_norm", "rms_norm"]:
        """Kind of the final norm."""
        return self.architecture_entry.norm

    @property
    def final_norm_weight(self) -> np.ndarray:
        """``(hidden,)`` float32, what it multiplies by."""
        weight = self._norm.weight.detach().float() + self.architecture_entry.norm_offset
        return weight.cpu().numpy()  # type: ignore[no-any-return]

    @property
    def logit_softcap(self) -> float | None:
        """What logits are squashed below, ``softcap tanh(logit / softcap)``, in models that do so."""
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    @property
    def final_norm_bias(self) -> np.ndarray:
        """``(hidden,)`` float32; zeros for an RMS norm."""
        bias = getattr(self._norm, "bias", None)
        if bias is None:
            return np.zeros(self.hidden, dtype=np.float32)
        return bias.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    @property
    def final_norm_epsilon(self) -> float:
        """Constant added to the variance."""
        for name in ("eps", "variance_epsilon"):
            if (value := getattr(self._norm, name, None)) is not None:
                return float(value)
        raise UsageError(f"the final norm of {self.name} names no epsilon")

    @functools.cached_property
    def token_strings(self) -> list[str]:
        """Text of each token of the vocabulary, the extra rows last."""
        known = len(self.tokenizer)
        texts = self.tokenizer.batch_decode([[index] for index in range(min(known, self.vocabulary))])
        return [*texts, *[""] * (self.vocabulary - len(texts)), *self.extra_rows]

    def encode(self, question: str) -> list[int]:
        """Prompt of a question: its tokens (with the tokenizer's own beginning, if any) up to where thinking begins."""
        question_ids = self.tokenizer(self.question_text(question))["input_ids"]
        return [*question_ids, *self._before_bot, *([] if self.bot_id is None else [self.bot_id])]

    def question_text(self, question: str) -> str:
        """A question as the official code of the protocol reads it."""
        text = question.strip().replace("  ", " ") if self.protocol.trimmed else question
        return f"{self.protocol.before_question}{text}{self.protocol.after_question}"

    def closing_tokens(self, n_row: int, device: torch.device) -> Tensor:
        """Tokens ``(row, place)`` that close the thoughts."""
        return torch.tensor(self.closing_ids, dtype=torch.long, device=device).expand(n_row, -1)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of answer tokens, without special ones."""
        inside = [int(token) for token in tokens if 0 <= token < self.vocabulary and int(token) not in self._marks]
        return str(self.tokenizer.decode(inside, skip_special_tokens=True))

    def answer_tokens(self, answer: str) -> list[int]:
        """Tokens of prefix, answer and end as the model would write them; the number in its context, not by itself."""
        return [*self._plain(f"{self.answer_prefix} {answer}" if self.answer_prefix else answer), self.eos_id]

    def answer_start(self, *answers: str) -> int:
        """How many tokens of :meth:`answer_tokens` come before the first that tells these answers apart.

        Of one answer, before its number: a space that is a token of its own belongs to what comes before.
        """
        prefix = self._plain(self.answer_prefix)
        sequences = [self.answer_tokens(answer)[:-1] for answer in answers]
        start = 0
        while start < len(prefix) and all(tokens[start : start + 1] == [prefix[start]] for tokens in sequences):
            start += 1
        while all(len(tokens) > start + 1 for tokens in sequences) and all(
            not self.tokenizer.decode([tokens[start]]).strip() for tokens in sequences
        ):
            start += 1
        return start

    def first_token(self, text: str) -> int:
        """Token that begins a text; of an empty one the end token."""
        return [*self._plain(text), self.eos_id][0]

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def longest(self, n_token: int, max_new_tokens: int) -> int:
        """Places that a prompt of ``n_token`` tokens needs, thoughts, what closes them and answer included."""
        return n_token + self.places.n_middle - 1 + max_new_tokens

    def check_length(self, n_token: int, max_new_tokens: int, what: str = "question") -> None:
        """Refuse a prompt that does not fit the context with its thoughts and answer.

        Raises
        ------
        UsageError
            Naming ``what`` and the lengths.
        """
        if self.longest(n_token, max_new_tokens) > self.context:
            raise UsageError(
                f"{what} has {n_token} tokens with BOT; with {self.n_latent} thoughts, EOT and {max_new_tokens} answer"
                f" tokens it needs {self.longest(n_token, max_new_tokens)} places, {self.name} has {self.context}"
            )

    @contextmanager
    def session(self, *, hooks: bool = True) -> Iterator[None]:
        """Hooks on, modes as for reading; everything is put back at the end, whatever is raised.

        One thread at a time: a second one waits until the first is done, as both would share hooks and modes.
        """
        with self._in_use:
            yield from self._session(hooks)

    def _session(self, hooks: bool) -> Iterator[None]:
        training = [(module, module.training) for root in (self.model, self.projection) for module in root.modules()]
        for module, _ in training:
            module.training = False
        # Small matrices: a second thread mostly waits, and on a busy machine waits long.
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and self.hidden <= SMALL_HIDDEN:
            torch.set_num_threads(1)
        try:
            if hooks and not self._hooked:
                self._hooked = True
                try:
                    with block_hooks(self._blocks, self._parts, lambda: self._current):
                        yield
                finally:
                    self._hooked = False
            else:
                yield
        finally:
            torch.set_num_threads(threads)
            for module, mode in training:
                module.training = mode

    @contextmanager
    def _running(self, running: Pass) -> Iterator[None]:
        self._current = running
        try:
            yield
        finally:
            self._current = None

    def _embed(self, tokens: Tensor) -> Tensor:
        out: Tensor = self._embedding(tokens)
        return out

    def _logits(self, state: Tensor) -> Tensor:
        """Float32 whatever type the model runs in: in bfloat16 neighbours among large logits are an eighth apart."""
        weight = self._head.weight
        if weight.dtype != torch.float32:
            if self._head_weight is None:
                with torch.inference_mode(False):  # gradients go through it, too
                    self._head_weight = weight.detach().float()
            weight = self._head_weight
        # torch takes a view row by row, several times slower
        logits = nn.functional.linear(state.float().contiguous(), weight)
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _likeliest(self, logits: Tensor) -> Tensor:
        """Likeliest token of those that the model may write."""
        return self._written(logits).argmax(-1)

    def _written(self, logits: Tensor) -> Tensor:
        """Logits of the tokens that the model may write."""
        return logits[..., : logits.shape[-1] - self.protocol.n_unwritten]

    def lay_out(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
        """Prompts side by side, ends aligned: tokens ``(row, column)``, empty places before each, column of BOT."""
        longest = max(len(prompt) for prompt in prompts)
        tokens = np.full((len(prompts), longest), self.pad_id)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = prompt
        pad = np.array([longest - len(prompt) for prompt in prompts])
        laid, empty = (_on_device(torch.from_numpy(each), self.device) for each in (tokens, pad))
        return laid, empty, longest - 1

    def _check_prompts(self, prompts: Sequence[Sequence[int]], room: int) -> None:
        if not prompts:
            raise UsageError("no question to think about")
        for row, prompt in enumerate(prompts):
            if len(prompt) < (1 if self.bot_id is None else 2) or self.bot_id not in (None, prompt[-1]):
                raise UsageError(f"prompt {row} has no question or does not end with BOT; make prompts with encode()")
            self.check_length(len(prompt), room, f"question {row} of the batch")

    def think(self, prompts: Sequence[Sequence[int]], **options: Any) -> Thinking:
        """Think through a batch of questions and answer them, once: :meth:`begin` and its end, options likewise."""
        return self.begin(prompts, **options)()

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        capture: Capture | None = "latent",
        stored_dtype: StoredDtype = "float16",
        max_new_tokens: int = 24,
        gold: Sequence[str] | None = None,
        editor: Editor | None = None,
        parts: Sequence[str] = (),
    ) -> Callable[[], Thinking]:
        """Think through a batch of questions and answer them; on a GPU what was captured is still on its way then.

        Parameters
        ----------
        prompts
            Of :meth:`encode`; of any lengths.
        capture
            ``"latent"``: states and attention rows from ``bot`` on; ``"full"``: all; ``None``: the answers only.
        stored_dtype
            Type of the arrays given back.
        max_new_tokens
            Longest answer, end token included.
        gold
            Answers whose log probability is asked, one per prompt: the sum over the tokens of the answer and the end
            token, after the prefix, given what comes before them (not over the tokens of the prefix).
        editor
            Interventions armed during the pass.
        parts
            Further sites to keep (with a capture): ``mlp_output``, ``attention_output``, ``head_output``, ``key``,
            ``value``.

        Returns
        -------
        callable
            Waits for the copies, checks what was captured and gives the :class:`Thinking`. Another batch may begin
            before it is called. It raises ``LakeError`` if what was computed is not finite, does not fit the stored
            type, or attention is not a distribution over the past.
        """
        if gold is not None and len(gold) != len(prompts):
            raise UsageError(f"{len(gold)} gold answers were given for {len(prompts)} prompts")
        asked = [self.tokens_and_prefix(answer) for answer in gold] if gold is not None else []
        room = max([max_new_tokens, *(len(tokens) for tokens, _ in asked)])
        self._check_prompts(prompts, room)
        tokens, pad, n_before = self.lay_out(prompts)
        n_row = len(prompts)
        head = n_before + self.places.n_middle
        recorder = None
        if capture is not None:
            recorder = Recorder(
                rows=n_row, layers=self.n_layer, heads=self.n_head, hidden=self.hidden, columns=head + room,
                first=0 if capture == "full" else n_before, latents=self.n_latent,
                stored=getattr(torch, stored_dtype), device=self.device,
                parts={site: self.part_shape(site) for site in parts},
            )  # fmt: skip
        log_p = torch.full((n_row, 1), torch.nan, device=self.device)
        with torch.inference_mode(), self.session(hooks=recorder is not None or editor is not None):
            flight = Flight(self, pad, n_before, KeyValues(head + room), recorder=recorder, editor=editor)
            state = flight.think(flight.feed_tokens(tokens)[:, -1])
            if gold is None or self.protocol.writes_steps:
                answers = flight.answer(flight.close(state), max_new_tokens)
                if gold is not None:
                    log_p = self._after_own_steps(prompts, answers.tolist(), asked)
            else:
                log_p, answers = flight.answer_beside(
                    state, [tokens for tokens, _ in asked], [start for _, start in asked], max_new_tokens
                )
            n_answer = int((answers >= 0).sum(1).max())
            answers = answers[:, :n_answer]
            columns = torch.arange(head + n_answer, device=self.device)
            all_tokens = torch.full((n_row, head + n_answer), -1, dtype=torch.int32, device=self.device)
            all_tokens[:, : n_before + 1] = tokens.where(columns[: n_before + 1] >= pad[:, None], -1)
            all_tokens[:, head - len(self.closing_ids) : head] = self.closing_tokens(n_row, self.device)
            all_tokens[:, head:] = answers
            start = n_before if capture != "full" else 0
            exists = (columns >= pad[:, None]) & ((columns < head) | (all_tokens >= 0))
            arrays = {"token": all_tokens[:, start:], "answers": answers, "log_p": log_p}
            if recorder is not None:
                kept, arrays["measured"] = recorder.finish(exists[:, start:], head + n_answer)
                arrays |= kept
            fetched, wait = to_host(arrays)

        def end() -> Thinking:
            wait()
            if recorder is not None:
                try:
                    recorder.check(fetched["measured"])
                except StoredRangeError as error:
                    wider = self.think(
                        prompts, capture=capture, stored_dtype="float32", max_new_tokens=max_new_tokens, editor=editor,
                        parts=parts,
                    )  # fmt: skip
                    raise LakeError(_beyond_range(wider, stored_dtype, error)) from error
            empty = np.empty(0)
            names = ("hidden_state", "final_state", "latent_embedding", "attention")
            return Thinking(
                n_before=n_before,
                n_answer=n_answer,
                token=fetched["token"].numpy(),
                generated_text=[self.decode(row) for row in fetched["answers"].tolist()],
                answer_logprob=fetched["log_p"].double().sum(1).numpy(),
                **{name: fetched[name].numpy() if name in fetched else empty for name in names},
                parts={site: fetched[site].numpy() for site in parts},
            )

        return end

    def _after_own_steps(
        self, prompts: Sequence[Sequence[int]], written: Sequence[list[int]], asked: Sequence[tuple[list[int], int]]
    ) -> Tensor:
        """Log probability ``(row, 1)`` of answers after the steps that were written; NaN where no prefix ends them.

        ``asked`` are tokens of each answer and how many of them are the prefix's.
        """
        prefix = self._plain(self.answer_prefix)
        rows: list[int] = []
        texts: list[list[int]] = []
        golds: list[list[int]] = []
        for row, (prompt, tokens, gold) in enumerate(zip(prompts, written, asked, strict=True)):
            ends = [end for end in range(len(prefix), len(tokens) + 1) if tokens[end - len(prefix) : end] == prefix]
            answer = gold[0][gold[1] :]
            text = [*prompt, *tokens[: ends[-1]], *answer] if ends else []
            if text and len(text) <= self.context:
                rows.append(row)
                texts.append(text)
                golds.append(answer)
        log_p = torch.full((len(prompts), 1), torch.nan, device=self.device)
        if not rows:
            return log_p
        laid, pad, n_before = self.lay_out(texts)
        states = Flight(self, pad, n_before, KeyValues(n_before + 1)).feed_tokens(laid)
        longest = max(map(len, golds))
        logits = self._logits(states[:, -longest - 1 : -1])
        each = logits.gather(-1, laid[:, -longest:, None])[..., 0] - logits.logsumexp(-1)
        n_asked = torch.tensor([len(gold) for gold in golds], device=self.device)
        inside = torch.arange(longest, 0, -1, device=self.device) <= n_asked[:, None]
        log_p[rows, 0] = each.where(inside, 0).sum(1)
        return log_p

    def tokens_and_prefix(self, answer: str) -> tuple[list[int], int]:
        """Tokens of an answer and how many of them are the prefix's; kept, as answers come again and again."""
        if answer not in self._answers:
            self._answers[answer] = self.answer_tokens(answer), self.prefix_length(answer)
        return self._answers[answer]

    def prefix_length(self, answer: str) -> int:
        """Tokens that :meth:`answer_tokens` shares with the prefix alone."""
        prefix, full = self._plain(self.answer_prefix), self.answer_tokens(answer)
        shared = 0
        while shared < min(len(prefix), len(full)) and prefix[shared] == full[shared]:
            shared += 1
        return shared


def to_host(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Arrays in the host's memory, and what waits until they are there; on a GPU it computes on meanwhile.

    Copies go through a stream of their own into page-locked memory, which torch keeps and gives out again.
    """
    device = next(iter(arrays.values())).device
    if device.type != "cuda":
        return {name: array.cpu() for name, array in arrays.items()}, lambda: None
    stream = _copies(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    fetched, done = {}, torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for name, array in arrays.items():
            fetched[name] = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
            fetched[name].copy_(array, non_blocking=True)
            array.record_stream(stream)
        done.record(stream)
    return fetched, done.synchronize


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which captured arrays leave it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    """Values moved to a device without waiting for what runs there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _beyond_range(wider: Thinking, stored_dtype: str, error: StoredRangeError) -> str:
    """What to say of values that fit float32 but not the stored type."""
    states = [wider.hidden_state[:, layer] for layer in range(wider.hidden_state.shape[1])]
    values = [*states, wider.final_state, wider.latent_embedding, *wider.parts.values()][error.place]
    limit = torch.finfo(getattr(torch, stored_dtype)).max
    return (
        f"{error} reach {np.nanmax(np.abs(values)):.3g}, beyond the largest {stored_dtype} ({limit:.0f});"
        " store them with --dtype float32"
    )
