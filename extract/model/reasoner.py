"""A latent-reasoning model at work: encode a question, think in vectors, answer; padding moves rounding only."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extract.model.architectures import Architecture
from extract.model.capture import Editor, KeyValues, Pass, block_hooks
from extract.model.feeding import Mixture
from extract.model.flight import Flight
from extract.model.network import Network
from extract.model.protocols import CODI, Protocol
from extract.model.recorder import Recorder, StoredRangeError
from extract.model.thinking import Thinking, beyond_range, check_length, on_device, thinking_of, to_host
from extract.model.wording import Wording
from schemas import Control, Intervention, LakeError, Places, UsageError
from schemas.spec import Rows, StoredDtype

SMALL_HIDDEN = 128
"""Up to this width a model runs on one thread of a processor."""


class Reasoner(Network, Wording):
    """A latent reasoner with its tokenizer; made by :func:`extract.load_reasoner`."""

    def __init__(
        self, *, name: str, model: nn.Module, projection: nn.Module, tokenizer: Any, architecture: Architecture,
        vocabulary: int, n_latent: int, answer_prefix: str, fingerprint: dict[str, str], protocol: Protocol = CODI,
        extra_rows: tuple[str, ...] = CODI.rows, control: Control | None = None,
        notes: tuple[str, ...] = (), described: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        Network.__init__(self, name=name, model=model, architecture=architecture)
        Wording.__init__(
            self, tokenizer=tokenizer, protocol=protocol, vocabulary=vocabulary, extra_rows=extra_rows,
            answer_prefix=answer_prefix,
        )  # fmt: skip
        self.control = control
        self.notes = notes
        self.described = described
        """The protocol's fields, where whoever loaded it stated them."""
        self.projection = projection
        if isinstance(projection, Mixture):
            projection.logits = lambda state: self.writable(self.logits(state))
            projection.embed = self.embed
        self.n_latent = n_latent
        self.fingerprint = fingerprint
        self._current: Pass | None = None
        self._hooked = False
        self._in_use = threading.RLock()

    @property
    def places(self) -> Places:
        """Places between question and answer."""
        return self.protocol.places(self.n_latent)

    def check(self, intervention: Intervention) -> None:
        """Check an intervention against the model's size and places.

        Raises
        ------
        UsageError
            Naming the layer, head or position that is not there.
        """
        intervention.check(n_layer=self.n_layer, n_head=self.n_head, n_cache_head=self.n_cache_head, places=self.places)

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
                    with block_hooks(self.blocks, self._parts, lambda: self._current):
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

    def likeliest(self, logits: Tensor) -> Tensor:
        """Likeliest token of those that the model may write."""
        return self.writable(logits).argmax(-1)

    def writable(self, logits: Tensor) -> Tensor:
        """Logits of the tokens that the model may write."""
        return logits[..., : logits.shape[-1] - self.protocol.n_unwritten]

    def lay_out(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, int]:
        """Prompts side by side, ends aligned: tokens ``(row, column)``, empty places before each, column of BOT."""
        longest = max(len(prompt) for prompt in prompts)
        tokens = np.full((len(prompts), longest), self.pad_id)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = prompt
        pad = np.array([longest - len(prompt) for prompt in prompts])
        laid, empty = (on_device(torch.from_numpy(array), self.device) for array in (tokens, pad))
        return laid, empty, longest - 1

    def _check_prompts(self, prompts: Sequence[Sequence[int]], room: int) -> None:
        if not prompts:
            raise UsageError("no question to think about")
        for row, prompt in enumerate(prompts):
            if len(prompt) < (1 if self.bot_id is None else 2) or self.bot_id not in (None, prompt[-1]):
                raise UsageError(f"prompt {row} has no question or does not end with BOT; make prompts with encode()")
            check_length(self, len(prompt), room, f"question {row} of the batch")

    def think(self, prompts: Sequence[Sequence[int]], **options: Any) -> Thinking:
        """Think through a batch of questions and answer them, once: :meth:`begin` and its end, options likewise."""
        return self.begin(prompts, **options)()

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        capture: Rows | None = "latent",
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
            Of :meth:`extract.model.wording.Wording.encode`; of any lengths.
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
        asked = [self.tokens_and_prefix(answer) for answer in gold] if gold is not None else None
        room = max([max_new_tokens, *(len(tokens) for tokens, _ in asked or ())])
        self._check_prompts(prompts, room)
        tokens, pad, n_before = self.lay_out(prompts)
        head = n_before + self.places.n_middle
        recorder = (
            None
            if capture is None
            else self._recorder(capture, len(prompts), n_before, head + room, stored_dtype, parts)
        )
        with torch.inference_mode(), self.session(hooks=recorder is not None or editor is not None):
            flight = Flight(self, pad, n_before, KeyValues(head + room), recorder=recorder, editor=editor)
            state = flight.think(flight.feed_tokens(tokens)[:, -1])
            answers, log_p = self._answer(flight, state, prompts, asked, max_new_tokens)
            arrays = {"answers": answers, "log_p": log_p}
            arrays["token"], exists = self._tokens_fed(tokens, pad, answers, 0 if capture == "full" else n_before)
            if recorder is not None:
                kept, arrays["measured"] = recorder.finish(exists, head + answers.shape[1])
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
                    raise LakeError(beyond_range(wider, stored_dtype, error)) from error
            texts = [self.decode(row) for row in fetched["answers"].tolist()]
            return thinking_of(fetched, n_before=n_before, generated_text=texts, parts=parts)

        return end

    def _recorder(
        self, capture: Rows, n_row: int, n_before: int, n_column: int, stored_dtype: StoredDtype,
        parts: Sequence[str],
    ) -> Recorder:  # fmt: skip
        """Buffers of a batch of the size."""
        return Recorder(
            rows=n_row, layers=self.n_layer, heads=self.n_head, hidden=self.hidden, columns=n_column,
            first=0 if capture == "full" else n_before, latents=self.n_latent, rounds=self.protocol.n_round,
            stored=getattr(torch, stored_dtype), device=self.device,
            parts={site: self.part_shape(site) for site in parts},
        )  # fmt: skip

    def _answer(
        self, flight: Flight, state: Tensor, prompts: Sequence[Sequence[int]],
        asked: Sequence[tuple[list[int], int]] | None, max_new_tokens: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Close the thoughts and write; tokens ``(row, place)`` as long as the longest, and log p of what is asked."""
        log_p = torch.full((len(prompts), 1), torch.nan, device=self.device)
        if asked is None or self.protocol.writes_steps:
            answers = flight.answer(flight.close(state), max_new_tokens)
            if asked is not None:
                log_p = self._after_own_steps(prompts, answers.tolist(), asked)
        else:
            texts, starts = [tokens for tokens, _ in asked], [start for _, start in asked]
            log_p, answers = flight.answer_beside(state, texts, starts, max_new_tokens)
        return answers[:, : int((answers >= 0).sum(1).max())], log_p

    def _tokens_fed(self, question: Tensor, pad: Tensor, answers: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Tokens ``(row, position)`` int32 from column ``start`` on, -1 where there is none; and where a row is fed."""
        n_question, n_row = question.shape[1], len(pad)
        head = n_question - 1 + self.places.n_middle
        columns = torch.arange(head + answers.shape[1], device=self.device)
        fed = torch.full((n_row, len(columns)), -1, dtype=torch.int32, device=self.device)
        fed[:, :n_question] = question.where(columns[:n_question] >= pad[:, None], -1)
        fed[:, head - len(self.closing_ids) : head] = self.closing_tokens(n_row, self.device)
        fed[:, head:] = answers
        exists = (columns >= pad[:, None]) & ((columns < head) | (fed >= 0))
        return fed[:, start:], exists[:, start:]

    def _after_own_steps(
        self, prompts: Sequence[Sequence[int]], written: Sequence[list[int]], asked: Sequence[tuple[list[int], int]]
    ) -> Tensor:
        """Log probability ``(row, 1)`` of answers after the steps that were written; NaN where no prefix ends them.

        ``asked`` are tokens of each answer and how many of them are the prefix's.
        """
        prefix = self.text_tokens(self.answer_prefix)
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
        logits = self.logits(states[:, -longest - 1 : -1])
        logprob = logits.gather(-1, laid[:, -longest:, None])[..., 0] - logits.logsumexp(-1)
        n_asked = torch.tensor([len(gold) for gold in golds], device=self.device)
        inside = torch.arange(longest, 0, -1, device=self.device) <= n_asked[:, None]
        log_p[rows, 0] = logprob.where(inside, 0).sum(1)
        return log_p
