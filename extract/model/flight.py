"""A batch in flight: everything that feeds a model its questions, thoughts and answers."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from extract.model.capture import Editor, KeyValues, Pass
from extract.model.recorder import Recorder
from extract.model.thinking import on_device
from schemas.vocabulary import ITERATIONS

if TYPE_CHECKING:
    from extract.model.reasoner import Reasoner

Choose = Callable[[Tensor, int, Tensor], Tensor]


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
        return self.feed(self.reasoner.embed(tokens), record=record)

    def think(self, state: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """Feed the thoughts from ``ct{first}`` up to ``end``, each made from the state before; give the last state.

        Side by side (see :meth:`think_in_rounds`) where the protocol has rounds.
        """
        if self.reasoner.protocol.n_round:
            return self.think_in_rounds(state)
        for index in range(first, self.reasoner.n_latent if end is None else end):
            vector = self.reasoner.projection(state)
            if self.editor is not None:
                vector = self.editor.embedding(vector, index + 1, self.rows)
            if self.recorder is not None:
                self.recorder.latent_embedding[self.rows, index] = vector.to(self.recorder.stored)
            state = self.feed(vector[:, None])[:, -1]
        return state

    def think_in_rounds(self, state: Tensor) -> Tensor:
        """Compute all thoughts side by side, in rounds; give the last state of the last round.

        Every thought begins as a token that stands for it. In a round each is made from the state that the one before
        it (the first: ``bot``) had in the round before: Jacobi iteration, which ends where thinking one after another
        does after as many rounds as thoughts (PCCoT, arXiv 2506.18582). The last round stays in the cache.
        """
        reasoner, n_row = self.reasoner, len(state)
        token = torch.full((n_row, reasoner.n_latent), reasoner.placeholder_id, device=state.device)
        vectors = reasoner.embed(token)
        for index in range(reasoner.protocol.n_round + 1):
            last = index == reasoner.protocol.n_round
            if last and self.recorder is not None:
                self.recorder.latent_embedding[self.rows] = vectors.to(self.recorder.stored)
            states = self.feed(vectors, record=last)
            if index and self.recorder is not None:
                for name, value in zip(ITERATIONS, (vectors, states), strict=True):
                    self.recorder.iterations[name][self.rows, index - 1] = value.to(self.recorder.stored)
            if not last:
                self.cache.length -= reasoner.n_latent
                vectors = reasoner.projection(torch.cat([state[:, None], states[:, :-1]], dim=1))
        return states[:, -1]

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

    def first(self, n_row: int) -> "Flight":
        """The first rows alone, which go on in this flight's cache while the others stay where they are."""
        part = copy(self)
        part.cache, part.all_rows = self.cache.first(n_row), False
        part.pad, part.rows, part.seen, part.position = (
            each[:n_row] for each in (self.pad, self.rows, self.seen, self.position)
        )
        part.fed = part.calls = 0
        part.states = None if self.states is None else {}
        return part

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
        given = reasoner.given if token is None else []
        ended = torch.zeros(len(self.rows), dtype=torch.bool, device=state.device)
        for place in range(max_new_tokens):
            if place < len(given):
                token = torch.full_like(self.rows, given[place])
            elif token is None:
                logits = reasoner.writable(reasoner.logits(state))
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

        The continuations are fed in one pass. Where greedy writing would have begun with the same tokens, these count
        as written; only what follows is written token by token.

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
        padded, given, asked = _lay_out(continuations, first, max_new_tokens, reasoner.eos_id, device)
        n_row, longest = padded.shape
        closing = reasoner.closing_tokens(n_row, device)
        fed = self.feed_tokens(torch.cat([closing, padded], dim=1))
        states = torch.cat([state[:, None], fed], dim=1)[:, closing.shape[1] : -1]
        # The vocabulary is wide: logits of the prefix only where its first token is what the model writes.
        places = sorted({0, *range(min(first), longest)})
        logits = reasoner.logits(states[:, places])
        log_p = logits.gather(-1, padded[:, places, None])[..., 0] - logits.logsumexp(-1)
        written = torch.full_like(padded, -1)
        written[:, places] = reasoner.likeliest(logits)
        prefix = [place for place in range(longest) if place not in places]
        if prefix and bool((written[:, 0] == padded[:, 0]).any()):
            written[:, prefix] = reasoner.likeliest(reasoner.logits(states[:, prefix]))
        written[:, : len(reasoner.given)] = padded[:, : len(reasoner.given)]
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


def _lay_out(
    continuations: Sequence[Sequence[int]], first: Sequence[int], most: int, filler: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Continuations side by side; which of their places may be written, and which are asked for; ``(row, place)``."""
    n_row, longest = len(continuations), max(len(tokens) for tokens in continuations)
    laid = np.full((n_row, longest), filler)
    asked, given = np.zeros((n_row, longest), dtype=bool), np.zeros((n_row, longest), dtype=bool)
    for row, (continuation, start) in enumerate(zip(continuations, first, strict=True)):
        end = len(continuation)
        laid[row, :end] = continuation
        given[row, : min(end, most)] = True
        asked[row, start:end] = True
    padded, given_there, asked_there = (on_device(torch.from_numpy(array), device) for array in (laid, given, asked))
    return padded, given_there, asked_there
