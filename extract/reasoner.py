"""A latent-reasoning model at work: encode a question, think in vectors, answer; exact at every batch size."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from extract.architectures import Architecture
from extract.capture import Capture, Editor, KeyValues, Pass, Recorder, block_hooks
from schemas import UsageError

StoredDtype = Literal["float16", "float32"]
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """What one batch of questions left behind, aligned at ``bot``.

    Key positions are ``n_before`` question places, ``bot``, the thoughts, ``eot`` and ``n_answer`` answer places;
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
    head_output: np.ndarray
    """``(example, layer, position, head, head_size)``: inputs of the output projections, where asked for."""
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
        self.fed = 0
        self.calls = 0

    @property
    def column(self) -> int:
        """Next column to be fed."""
        return self.cache.length

    def feed(self, embeddings: Tensor, *, record: bool = True) -> Tensor:
        """Feed vectors ``(row, position, hidden)`` at the next columns; give the states after the final norm."""
        n_row, n_position = embeddings.shape[:2]
        column = self.column
        query = torch.arange(column, column + n_position, device=embeddings.device)
        key = torch.arange(column + n_position, device=embeddings.device)
        causal = key[None, :] <= query[:, None]
        itself = key[None, :] == query[:, None]
        # Padding sees itself only: no row without a key, and nothing else ever sees it.
        mask = (causal[None] & (key[None, None, :] >= self.pad[:, None, None])) | itself[None]
        mask = mask[:, None]
        running = Pass(
            column=column, n_before=self.n_before, rows=self.rows, all_rows=self.all_rows, mask=mask,
            recorder=self.recorder if record else None, editor=self.editor,
        )  # fmt: skip
        position_ids = (query[None, :] - self.pad[:, None]).clamp_min(0)
        with self.reasoner._running(running):
            states: Tensor = self.reasoner._body(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=position_ids, past_key_values=self.cache,
                use_cache=True, lake_pass=running,
            ).last_hidden_state  # fmt: skip
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
        """Feed the thoughts from ``ct{first}`` on, each projected from the state before; give the last state."""
        for index in range(first, self.reasoner.n_latent):
            vector = self.reasoner.projection(state)
            if self.editor is not None:
                vector = self.editor.embedding(vector, index + 1, self.rows)
            if self.recorder is not None:
                self.recorder.latent_embedding[self.rows, index] = vector.to(self.recorder.stored)
            state = self.feed(vector[:, None])[:, -1]
        return state

    def keep(self, kept: Tensor) -> None:
        """Go on with some rows only."""
        self.cache = self.cache.take(kept, self.column, self.cache.capacity)
        self.pad = self.pad[kept]
        self.rows = self.rows[kept]
        self.all_rows = False

    def answer(self, state: Tensor, max_new_tokens: int, token: Tensor | None = None) -> Tensor:
        """Write greedily from the state at ``eot``; tokens ``(row of the batch, place)``, -1 after the end.

        Every token written is fed, the end token too. ``token`` is the first, where it is known.
        """
        reasoner = self.reasoner
        n_row = int(self.rows.max()) + 1 if len(self.rows) else 0
        tokens = torch.full((n_row, max_new_tokens), -1, dtype=torch.long, device=state.device)
        ended = torch.zeros(len(self.rows), dtype=torch.bool, device=state.device)
        for place in range(max_new_tokens):
            if token is None:
                token = reasoner._logits(state)[:, :-1].argmax(-1)  # the row of EOT, the last, is never written
            running = ~ended
            tokens[self.rows[running], place] = token[running]
            state = self.feed_tokens(token[:, None])[:, -1]
            ended = ended | (token == reasoner.eos_id)
            n_running = len(ended) - int(ended.sum())
            if n_running == 0:
                break
            if n_running <= len(ended) // 2:
                kept = (~ended).nonzero()[:, 0]
                self.keep(kept)
                state, ended = state[kept], ended[kept]
            token = None
        return tokens

    def answer_beside(
        self, continuations: Sequence[Sequence[int]], first: Sequence[int], max_new_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Feed ``eot``; score given continuations and write greedily, as :meth:`answer` does.

        All of the continuations is fed in one pass. What would have been written anyway is thereby written; only the
        rest is written token by token.

        Parameters
        ----------
        continuations
            Of each row, its end token included.
        first
            Of each, the token from which on its log probability is asked.
        max_new_tokens
            Longest answer.

        Returns
        -------
        tuple
            Log probability (row,) float64, on the CPU; tokens ``(row, place)``, -1 after the end.
        """
        reasoner, device = self.reasoner, self.pad.device
        n_row, longest = len(continuations), max(len(tokens) for tokens in continuations)
        padded = torch.full((n_row, longest), reasoner.eos_id, dtype=torch.long)
        given, asked = torch.zeros(n_row, longest, dtype=torch.bool), torch.zeros(n_row, longest, dtype=torch.float64)
        for row, (continuation, start) in enumerate(zip(continuations, first, strict=True)):
            end = len(continuation)
            padded[row, :end] = torch.tensor(continuation)
            given[row, : min(end, max_new_tokens)] = True
            asked[row, start:end] = 1
        padded, given = padded.to(device), given.to(device)
        eot = torch.full((n_row, 1), reasoner.eot_id, dtype=torch.long, device=device)
        states = self.feed_tokens(torch.cat([eot, padded], dim=1))[:, :-1]
        # The vocabulary is wide: logits of the prefix only where its first token is what the model writes.
        places = sorted({0, *range(min(first), longest)})
        logits = reasoner._logits(states[:, places]).float()
        log_p = logits.gather(-1, padded[:, places, None])[..., 0] - logits.logsumexp(-1)
        written = torch.full_like(padded, -1)
        written[:, places] = logits[..., :-1].argmax(-1)
        prefix = [place for place in range(longest) if place not in places]
        if prefix and bool((written[:, 0] == padded[:, 0]).any()):
            written[:, prefix] = reasoner._logits(states[:, prefix])[..., :-1].argmax(-1)
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
        # On the CPU: not every device has float64.
        return (log_p.cpu() * asked[:, places]).sum(1), tokens


class Reasoner:
    """A CODI model with its tokenizer; made by :func:`extract.load_reasoner`."""

    def __init__(
        self, *, name: str, model: nn.Module, projection: Projection, tokenizer: Any, architecture: Architecture,
        vocabulary: int, n_latent: int, answer_prefix: str, fingerprint: dict[str, str],
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
        self.pad_id, self.bot_id, self.eot_id = vocabulary, vocabulary + 1, vocabulary + 2
        self.eos_id = int(tokenizer.eos_token_id)
        self._body: Any = model.get_submodule(architecture.body)
        self._embedding: Any = self._body.get_submodule(architecture.embedding)
        self._blocks: list[nn.Module] = list(self._body.get_submodule(architecture.blocks))  # type: ignore[call-overload]
        self._norm: Any = self._body.get_submodule(architecture.final_norm)
        self._head: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._current: Pass | None = None
        self._hooked = False
        self._in_use = threading.RLock()

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
    def unembedding(self) -> np.ndarray:
        """``(vocabulary, hidden)`` float32."""
        return self._head.weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Literal["layer_norm", "rms_norm"]:
        """Kind of the final norm."""
        return self.architecture_entry.norm

    @property
    def final_norm_weight(self) -> np.ndarray:
        """``(hidden,)`` float32."""
        return self._norm.weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

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

    @property
    def token_strings(self) -> list[str]:
        """Text of each token of the vocabulary, the three extra rows last."""
        known = len(self.tokenizer)
        texts = self.tokenizer.batch_decode([[index] for index in range(min(known, self.vocabulary))])
        return [*texts, *[""] * (self.vocabulary - len(texts)), "[PAD]", "[BOT]", "[EOT]"]

    def encode(self, question: str) -> list[int]:
        """Prompt of a question: its tokens (with the tokenizer's own beginning, if any), then BOT."""
        text = question.strip().replace("  ", " ")
        return [*self.tokenizer(text)["input_ids"], self.bot_id]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of answer tokens, without special ones."""
        inside = [int(token) for token in tokens if 0 <= token < self.vocabulary]
        return str(self.tokenizer.decode(inside, skip_special_tokens=True))

    def answer_tokens(self, answer: str) -> list[int]:
        """Tokens of prefix, answer and end as the model would write them; the number in its context, not by itself."""
        return [*self._plain(f"{self.answer_prefix} {answer}"), self.eos_id]

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

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def longest(self, n_token: int, max_new_tokens: int) -> int:
        """Places that a prompt of ``n_token`` tokens needs, thoughts, EOT and answer included."""
        return n_token + self.n_latent + 1 + max_new_tokens

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
                    with block_hooks(self._blocks, lambda: self._current):
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
        out: Tensor = self._head(state.contiguous())  # torch takes a view row by row, several times slower
        return out

    def lay_out(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
        """Prompts side by side, ends aligned: tokens ``(row, column)``, empty places before each, column of BOT."""
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.full((len(prompts), longest), self.pad_id, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        pad = torch.tensor([longest - len(prompt) for prompt in prompts])
        return tokens.to(self.device), pad.to(self.device), longest - 1

    def _check_prompts(self, prompts: Sequence[Sequence[int]], room: int) -> None:
        if not prompts:
            raise UsageError("no question to think about")
        for row, prompt in enumerate(prompts):
            if len(prompt) < 2 or prompt[-1] != self.bot_id:
                raise UsageError(f"prompt {row} has no question or does not end with BOT; make prompts with encode()")
            self.check_length(len(prompt), room, f"question {row} of the batch")

    def think(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        capture: Capture | None = "latent",
        stored_dtype: StoredDtype = "float16",
        max_new_tokens: int = 24,
        gold: Sequence[str] | None = None,
        editor: Editor | None = None,
        head_output: bool = False,
    ) -> Thinking:
        """Think through a batch of questions and answer them, once.

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
        head_output
            Keep the heads' outputs too (with a capture).

        Returns
        -------
        Thinking

        Raises
        ------
        LakeError
            If what was computed is not finite, does not fit the stored type, or attention is not a distribution.
        """
        continuations = [self.answer_tokens(answer) for answer in gold] if gold is not None else []
        room = max([max_new_tokens, *(len(tokens) for tokens in continuations)])
        self._check_prompts(prompts, room)
        if gold is not None and len(gold) != len(prompts):
            raise UsageError(f"{len(gold)} gold answers were given for {len(prompts)} prompts")
        tokens, pad, n_before = self.lay_out(prompts)
        n_row = len(prompts)
        head = n_before + self.n_latent + 2
        recorder = None
        if capture is not None:
            recorder = Recorder(
                rows=n_row, layers=self.n_layer, heads=self.n_head, hidden=self.hidden, columns=head + room,
                first=0 if capture == "full" else n_before, latents=self.n_latent,
                stored=getattr(torch, stored_dtype), device=self.device,
                head_size=self.head_size if head_output else None,
            )  # fmt: skip
        with torch.inference_mode(), self.session(hooks=recorder is not None or editor is not None):
            flight = Flight(self, pad, n_before, KeyValues(head + room), recorder=recorder, editor=editor)
            flight.think(flight.feed_tokens(tokens)[:, -1])
            if gold is None:
                eot = torch.full((n_row, 1), self.eot_id, dtype=torch.long, device=self.device)
                answers = flight.answer(flight.feed_tokens(eot)[:, -1], max_new_tokens)
                logprob = np.full(n_row, np.nan)
            else:
                first = [self.prefix_length(answer) for answer in gold]
                scores, answers = flight.answer_beside(continuations, first, max_new_tokens)
                logprob = scores.cpu().numpy()
            if recorder is not None:
                recorder.check()
        n_answer = int((answers >= 0).sum(1).max())
        answers = answers[:, :n_answer]
        all_tokens = torch.full((n_row, head + n_answer), -1, dtype=torch.long, device=self.device)
        all_tokens[:, : n_before + 1] = tokens
        columns = torch.arange(head + n_answer, device=self.device)
        all_tokens[columns[None, :] < pad[:, None]] = -1
        all_tokens[:, head - 1] = self.eot_id
        all_tokens[:, head:] = answers
        exists = (columns[None, :] >= pad[:, None]) & ((columns[None, :] < head) | (all_tokens >= 0))
        start = n_before if capture != "full" else 0
        arrays = _finish(recorder, exists[:, start:], head + n_answer)
        return Thinking(
            n_before=n_before,
            n_answer=n_answer,
            token=all_tokens[:, start:].to(torch.int32).cpu().numpy(),
            generated_text=[self.decode(row) for row in answers.tolist()],
            answer_logprob=logprob,
            **arrays,
        )

    def prefix_length(self, answer: str) -> int:
        """Tokens that :meth:`answer_tokens` shares with the prefix alone."""
        prefix, full = self._plain(self.answer_prefix), self.answer_tokens(answer)
        shared = 0
        while shared < min(len(prefix), len(full)) and prefix[shared] == full[shared]:
            shared += 1
        return shared


def _finish(recorder: Recorder | None, exists: Tensor, columns: int) -> dict[str, np.ndarray]:
    """Arrays of a recorder: cut to the answer's length, with what does not exist marked as such."""
    names = ("hidden_state", "final_state", "latent_embedding", "attention", "head_output")
    if recorder is None:
        return {name: np.empty(0) for name in names}
    n_position = exists.shape[1]
    hidden = recorder.hidden_state[:, :, :n_position]
    final = recorder.final_state[:, :n_position]
    attention = recorder.attention[:, :, :, :n_position, :columns]
    heads = recorder.head_output[:, :, :n_position] if recorder.head_output is not None else None
    first = exists.int().argmax(1).tolist()
    end = (first + exists.sum(1).cpu().numpy()).tolist()
    for row in range(len(exists)):
        for gap in (slice(0, first[row]), slice(end[row], n_position)):
            hidden[row, :, gap] = torch.nan
            final[row, gap] = torch.nan
            attention[row, :, :, gap] = 0
            if heads is not None:
                heads[row, :, gap] = torch.nan
    return {
        "hidden_state": hidden.cpu().numpy(),
        "final_state": final.cpu().numpy(),
        "latent_embedding": recorder.latent_embedding.cpu().numpy(),
        "attention": attention.cpu().numpy(),
        "head_output": heads.cpu().numpy() if heads is not None else np.empty(0),
    }
