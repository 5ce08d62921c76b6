"""What code of one's own captured, checked against everything known of it before it is kept.

A mistake of alignment would look like a finding: a state one place off reads as something else.
"""

from collections.abc import Sequence
from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from extract.model.thinking import Thinking
from schemas import LakeError
from schemas.spec import StoredDtype

if TYPE_CHECKING:
    from extract.model.own import Captured, OwnModel

SUM_OFF, LATER = 2e-3, 1e-6
"""How far the probabilities of one query may be from 1 in all; how large one may be where nothing can be looked at."""
AGREE = 0.9
"""Share of the answers' tokens that the read-out must find likeliest at the place before."""
NORMED = 0.01
"""How far from 1 the size of a state is after the final norm, its weight and bias undone."""
ARRAYS = ("hidden_state", "latent_embedding", "attention")
Array = np.ndarray[Any, Any]


class Checked:
    """A batch that is checked against everything known of it."""

    def __init__(
        self, model: "OwnModel", prompts: Sequence[Sequence[int]], captured: "Captured", max_new_tokens: int
    ) -> None:
        arrays: dict[str, Any] = {name: floats(name, getattr(captured, name)) for name in ARRAYS}
        if captured.answer_logprob is not None:
            arrays["answer_logprob"] = floats("answer_logprob", captured.answer_logprob)
        captured = replace(captured, answers=[_ids(answer) for answer in captured.answers], **arrays)
        self.model, self.prompts, self.captured = model, prompts, captured
        self.n_before = max(map(len, prompts)) - 1
        self.head = self.n_before + model.places.n_middle
        self._check_answers(max_new_tokens)
        self.n_answer = max(map(len, captured.answers))
        self.token = self._tokens()
        first = np.array([self.n_before + 1 - len(prompt) for prompt in prompts])[:, None]
        columns = np.arange(self.head + self.n_answer)
        self.exists = (columns >= first) & ((columns < self.head) | (self.token >= 0))
        self._check_shapes()
        self._check_attention()
        self._check_layers()
        self._check_texts()
        self.final = self._final_states()

    def _check_answers(self, max_new_tokens: int) -> None:
        """As many as questions, none too long, and nothing but tokens; prompts likewise."""
        model, answers = self.model, self.captured.answers
        found = {"answers": len(answers), "texts": len(self.captured.texts)}
        for name, n_row in found.items():
            if n_row != len(self.prompts):
                raise LakeError(f"{n_row} {name} came back for {len(self.prompts)} questions")
        for row, (prompt, answer) in enumerate(zip(self.prompts, answers, strict=True)):
            if not prompt or model.bot_id not in (None, prompt[-1]):
                raise LakeError(
                    f"prompt {row} of a batch does not end with bot, token {model.bot_id}; encode() makes it"
                )
            if not 1 <= len(answer) <= max_new_tokens:
                raise LakeError(f"answer {row} of a batch has {len(answer)} tokens; it may have 1 to {max_new_tokens}")
            if strange := [token for token in (*prompt, *answer) if not 0 <= token < model.vocabulary]:
                raise LakeError(f"question {row} of a batch: token {strange[0]} is none of {model.vocabulary}")

    def _tokens(self) -> Array:
        """``(row, column)``, -1 where there is none."""
        token = np.full((len(self.prompts), self.head + self.n_answer), -1, dtype=np.int32)
        closing = self.model.closing_ids
        for row, (prompt, answer) in enumerate(zip(self.prompts, self.captured.answers, strict=True)):
            token[row, self.n_before + 1 - len(prompt) : self.n_before + 1] = prompt
            token[row, self.head - len(closing) : self.head] = closing
            token[row, self.head : self.head + len(answer)] = answer
        return token

    def _check_shapes(self) -> None:
        model, (n_row, n_column) = self.model, self.exists.shape
        expected = {
            "hidden_state": (n_row, model.n_layer, n_column, model.hidden),
            "latent_embedding": (n_row, model.n_latent, model.hidden),
            "attention": (n_row, model.n_layer, model.n_head, n_column, n_column),
        }
        if self.captured.answer_logprob is not None:
            expected["answer_logprob"] = (n_row,)
        for name, shape in expected.items():
            found = np.shape(getattr(self.captured, name))
            if found != shape:
                thoughts = model.places.n_middle - 1
                raise LakeError(
                    f"{name} is {found}; of these questions and answers it must be {shape}: {self.n_before + 1} columns"
                    f" up to bot, {thoughts} of thoughts and what closes them, {self.n_answer} of answers"
                )

    def _check_attention(self) -> None:
        """Probabilities of every query that there is sum to 1, over keys that there are and that came before it."""
        causal = np.tri(self.exists.shape[1], dtype=bool)
        for row, exists in enumerate(self.exists):
            seen = (causal & exists)[exists]
            for layer in range(self.model.n_layer):
                there = np.asarray(self.captured.attention[row][layer], dtype=np.float32)[:, exists]
                off, beyond = np.abs(there.sum(-1) - 1).max(), np.abs(there * ~seen).max()
                where = f"attention of layer {layer}, question {row} of a batch"
                if not off <= SUM_OFF:
                    raise LakeError(f"{where}: a query's probabilities sum to 1 only within {off:.1e}")
                if not beyond <= LATER:
                    raise LakeError(
                        f"{where}: {beyond:.1e} on a key that is padding or comes after the query; batches are padded"
                        " on the left"
                    )

    def _check_layers(self) -> None:
        """Each layer has states and attention of its own, and its heads have: none was taken twice, none averaged."""
        for name in ("hidden_state", "attention"):
            first = getattr(self.captured, name)[0]
            for layer in range(1, self.model.n_layer):
                if same := [other for other in range(layer) if np.array_equal(first[other], first[layer])]:
                    raise LakeError(f"{name} of layers {same[0]} and {layer} is the same: one was taken twice")
        heads = self.captured.attention[0]
        for layer, own in enumerate(heads if self.model.n_head > 1 and self.head > 1 else ()):
            if (own == own[:1]).all():
                raise LakeError(f"attention of layer {layer} is the same in all heads: it may be their mean")

    def _check_texts(self) -> None:
        """Each text is what its answer's tokens say, of which some may be left out."""
        for row, (answer, text) in enumerate(zip(self.captured.answers, self.captured.texts, strict=True)):
            said = _plain("".join(self.model.token_strings[token] for token in answer if token != self.model.eos_id))
            rest = iter(said)
            if not isinstance(text, str) or not all(sign in rest for sign in _plain(text)) or (said and not text):
                raise LakeError(f"answer {row} of a batch is the text {text!r:.80}; its tokens say {said!r:.80}")
        given = self.captured.answer_logprob
        if given is not None and not (np.isnan(given) | ((given <= 0) & np.isfinite(given))).all():
            raise LakeError("answer_logprob holds what is no log probability: it is finite and at most 0, or NaN")

    def _final_states(self) -> Array:
        """States after the final norm, which must read out as the tokens that were chosen."""
        states = np.asarray(self.captured.hidden_state)
        there = {"states": states.swapaxes(1, 2)[self.exists], "vectors fed": self.captured.latent_embedding}
        for name, values in there.items():
            if not np.isfinite(values).all():
                raise LakeError(f"{name} of a batch are not finite")
        last, read_out = states[:, -1][self.exists], self.model.read_out
        with np.errstate(divide="ignore", invalid="ignore"):
            before = (last - (0 if read_out.bias is None else read_out.bias)) / read_out.weight
        size = np.sqrt(np.nanmean(np.where(np.isfinite(before), before, np.nan) ** 2, axis=-1))
        if (np.abs(size - 1) < NORMED).all():
            raise LakeError("states of the last layer are those after the final norm; give those before it")
        final = read_out.normalised(states[:, -1])
        if self.model.greedy:
            chosen = (self.token >= 0) & (np.arange(self.token.shape[1]) >= self.head)
            before = np.roll(chosen, -1, axis=1)
            likeliest = (final[before] @ self.model.unembedding.T).argmax(-1)
            share = float((likeliest == self.token[chosen]).mean())
            if share < AGREE:
                raise LakeError(
                    f"the read-out finds {share:.0%} of the answers' tokens likeliest at the place before, {AGREE:.0%}"
                    " are needed: columns are shifted, states are not those before the final norm, the read-out is"
                    " another one, or answers are not greedy (greedy=False)"
                )
        return final

    def thinking(self, capture: str, dtype: StoredDtype) -> Thinking:
        """Arrays as they are stored."""
        start, captured = 0 if capture == "full" else self.n_before, self.captured
        exists = self.exists[:, start:]
        pairs = exists[:, None, None, :, None] & self.exists[:, None, None, None]
        given = captured.answer_logprob
        return Thinking(
            n_before=self.n_before,
            n_answer=self.n_answer,
            hidden_state=_stored(captured.hidden_state[:, :, start:], dtype, exists[:, None, :, None], np.nan),
            final_state=_stored(self.final[:, start:], dtype, exists[..., None], np.nan),
            latent_embedding=_stored(captured.latent_embedding, dtype, True, np.nan),
            attention=_stored(captured.attention[:, :, :, start:], dtype, pairs, 0),
            parts={},
            iterations={},
            token=self.token[:, start:],
            generated_text=[*map(str, captured.texts)],
            answer_logprob=np.full(len(exists), np.nan) if given is None else np.asarray(given, dtype=np.float64),
        )


def check_places(model: "OwnModel", prompt: Sequence[int], max_new_tokens: int, rounding: float) -> None:
    """Refuse states that are not of the places and blocks that they are called by, as another token shows.

    One token in the middle of a question is made another. Every layer's state changes there and, as blocks attend to
    it, later; not before.

    ``rounding`` is the largest difference between states, of their size, that counts as none. A question that is too
    short shows nothing.

    Raises
    ------
    LakeError
        Naming the layer, and what its states do.
    """
    place, last = len(prompt) // 2, len(prompt) - 1
    others = [token for token in prompt[:last] if token != prompt[place]]
    if not 0 < place < last or not others:
        return
    changed = [*prompt[:place], others[0], *prompt[place + 1 :]]
    thought = model.think([prompt, changed], capture="full", stored_dtype="float32", max_new_tokens=max_new_tokens)
    one, other = thought.hidden_state[:, :, : last + 1]
    size = np.sqrt((one**2).mean(-1)) + np.finfo(np.float32).tiny
    apart = np.sqrt(((one - other) ** 2).mean(-1)) / size
    for layer, moved in enumerate(apart):
        what = (
            "change before it" if moved[:place].max() > rounding
            else "are as they were at it" if not moved[place] > rounding
            else "are as they were after it, as embeddings are" if not moved[place + 1 :].any()
            else ""
        )  # fmt: skip
        if what:
            raise LakeError(
                f"states of layer {layer} {what} when one token of the question is another: columns are shifted, or"
                " they are not what a block that attends gives"
            )


def floats(name: str, values: Any) -> Array:
    """Numbers as NumPy's, whatever library they came from."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    found = np.asarray(values)
    if found.dtype.kind != "f":
        raise LakeError(f"{name} is of type {found.dtype}; it must hold floating-point numbers")
    return found


def _ids(answer: Any) -> list[int]:
    """Tokens as whole numbers."""
    try:
        return [index(token) for token in answer]
    except TypeError as error:
        raise LakeError(f"tokens of an answer must be whole numbers: {error}") from error


def _plain(text: str) -> str:
    """Letters and digits of a text that every tokenizer has as such."""
    return "".join(sign for sign in text if sign.isascii() and sign.isalnum())


def _stored(values: Array, dtype: str, exists: Any, fill: float) -> Array:
    """Values of a type, those that do not exist marked as such."""
    kept = np.where(exists, values, np.float32(fill))
    largest = np.nanmax(np.abs(kept), initial=0)
    if largest > np.finfo(dtype).max:
        raise LakeError(f"values reach {largest:.3g}, beyond the largest {dtype}; store them with --dtype float32")
    return kept.astype(dtype)
