"""A protocol's tokens and a tokenizer's: questions, answers and texts in the tokens of one model."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from extract.model.device import first_line
from extract.model.protocols import EOS, TURN, Protocol
from schemas import UsageError

TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Before a chat template: the day that it is told when it asks, so that a question is read alike on every day."""


@functools.cache
def byte_signs() -> dict[str, int]:
    """Byte of each sign of a byte-level tokenizer: printable ones stand for themselves, the others begin at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def with_bytes(token: str, text: str) -> str:
    """Text of a token that is a part of a character: its bytes as ``<0xE2>``, as they are no text.

    So tokens that are different bytes have different texts. ``text`` stays where the token is not in signs for bytes.
    """
    signs = byte_signs()
    if not all(sign in signs for sign in token):
        return text
    shown = bytes(signs[sign] for sign in token).decode("utf-8", errors="surrogateescape")
    return "".join(f"<0x{ord(sign) - 0xDC00:02X}>" if 0xDC80 <= ord(sign) <= 0xDCFF else sign for sign in shown)


class Wording:
    """How questions and answers are put into a model's tokens, and read from them."""

    def __init__(
        self, *, tokenizer: Any, protocol: Protocol, vocabulary: int, extra_rows: tuple[str, ...], answer_prefix: str
    ) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.vocabulary = vocabulary
        self.extra_rows = extra_rows
        self.answer_prefix = answer_prefix
        self._text_tokens: dict[str, list[int]] = {}
        self.eos_id = int(tokenizer.eos_token_id)
        known = tokenizer.get_vocab()
        self._known = {EOS: self.eos_id, **{text: vocabulary + row for row, text in enumerate(extra_rows)}}
        self.in_template = protocol.chat and bool(tokenizer.chat_template)
        """Whether questions are put into the tokenizer's chat template."""
        self._after_question = [
            self._id_of(text, known) for text in protocol.before_bot if text not in protocol.if_known or text in known
        ]
        self._after_question += self._marker(protocol.bot, known)
        self.closing_ids = [token for text in protocol.closing for token in self._marker(text, known)]
        if any(len(self._marker(text, known)) != 1 for text in protocol.closing):
            raise UsageError(
                f"protocol {protocol.name} closes the thoughts with {' '.join(map(repr, protocol.closing))}, which this"
                f" tokenizer makes {len(self.closing_ids)} tokens; places are named for one each: close with another,"
                " as --protocol soft and hard do (a newline) or in a --protocol FILE.json, and put what is to follow it"
                " into answer_prefix"
            )
        self.bot_id = self._last_of_prompt() if protocol.bot else None
        self.eot_id = self.closing_ids[0] if self.closing_ids else None
        self.pad_id = self._known.get("[PAD]", self.eos_id)
        # Not text: rows of the protocol, and its markers where the tokenizer has them.
        marks = protocol.rows if protocol.fed == "mixture" else (*protocol.rows, *protocol.closing[:1])
        self._marks = {self._id_of(text, known) for text in marks}
        self.placeholder_id = self._id_of(protocol.placeholder, known) if protocol.placeholder else -1
        self.given = self.text_tokens(answer_prefix) if protocol.given_prefix else []
        """Tokens that are fed after the thoughts, not chosen."""

    def _id_of(self, text: str, known: Mapping[str, int]) -> int:
        """Id of a token by its text."""
        if text not in self._known and text not in known:
            raise UsageError(f"protocol {self.protocol.name} needs the token {text}, which the tokenizer lacks")
        return self._known.get(text, known.get(text, -1))

    def _marker(self, text: str, known: Mapping[str, int]) -> list[int]:
        """Tokens of a marker; several only of a model that was not trained with it."""
        if text == TURN:
            return [] if self.in_template else self.text_tokens("\n")
        if not text or self.protocol.fed != "mixture" or text in self._known or text in known:
            return [self._id_of(text, known)] if text else []
        return self.text_tokens(text)

    def _last_of_prompt(self) -> int:
        """Token at which every prompt ends."""
        last = {self.encode(question)[-1] for question in ("Why?", "1 + 2")}
        if len(last) > 1:
            raise UsageError(
                f"the chat template ends with the question, so protocol {self.protocol.name} has no token with which"
                " the model's turn begins; name another bot"
            )
        return last.pop()

    @functools.cached_property
    def token_strings(self) -> list[str]:
        """Text of each token of the vocabulary, the extra rows last."""
        known = len(self.tokenizer)
        texts = self.tokenizer.batch_decode([[index] for index in range(min(known, self.vocabulary))])
        for index in [index for index, text in enumerate(texts) if "\ufffd" in text]:
            texts[index] = with_bytes(str(self.tokenizer.convert_ids_to_tokens(index)), texts[index])
        return [*texts, *[""] * (self.vocabulary - len(texts)), *self.extra_rows]

    def tokenize(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Tokens of texts, with the tokenizer's own beginning and end if asked for.

        Raises
        ------
        UsageError
            If one is no word of the model: its row would be a mark of the protocol, or none.
        """
        rows: list[list[int]] = (
            self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"] if texts else []
        )  # what is too long for the model is told with its line
        if (last := max((token for row in rows for token in row), default=0)) >= self.vocabulary:
            raise UsageError(
                f"the tokenizer writes {self.tokenizer.convert_ids_to_tokens(last)!r} as token {last}, the model has"
                f" {self.vocabulary} words; it is the tokenizer of another model, or has tokens that were added to it"
            )
        return rows

    def encode(self, question: str) -> list[int]:
        """Prompt of a question: its tokens (with the tokenizer's own beginning, if any) up to where thinking begins."""
        return self.prompts([question])[0]

    def prompts(self, questions: Iterable[str]) -> list[list[int]]:
        """Prompts of questions, in one call of the tokenizer."""
        texts = [self.question_text(str(question)) for question in questions]
        return [[*tokens, *self._after_question] for tokens in self.tokenize(texts, special=not self.in_template)]

    def marks_in(self, questions: Sequence[str]) -> tuple[str, ...]:
        """What is to be said of special tokens that questions hold, which the model reads as such and not as text.

        Some come with chat templates; one stands for what the tokenizer does not know, which is told apart.
        """
        texts = [self.question_text(text) for text in ("", *questions)]
        protocol, *rows = (set(row) & set(self.tokenizer.all_special_ids) for row in self.tokenize(texts))
        held = [marks - protocol for marks in rows]
        unknown, name = self.tokenizer.unk_token_id, str(self.tokenizer.unk_token)
        lost = [unknown in marks and name not in text for marks, text in zip(held, questions, strict=True)]
        held = [marks - {unknown} if is_lost else marks for marks, is_lost in zip(held, lost, strict=True)]
        notes = [f"{sum(lost)} of {len(rows)} questions have words that the tokenizer does not know; the model reads"
                 f" {name} in their place"] if any(lost) else []  # fmt: skip
        if not (n_held := sum(map(bool, held))):
            return tuple(notes)
        names = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(sorted(set().union(*held)))))
        note = f"special tokens stand in {n_held} of {len(rows)} questions and are read as such, not as text: {names}"
        first = [] if self.in_template else self.tokenizer("", add_special_tokens=True)["input_ids"][:1]
        if twice := sum(row[:1] == first for row in self.tokenize(texts[1:])) if first else 0:
            name = self.tokenizer.convert_ids_to_tokens(first)[0]
            note += f"; {twice} begin with {name}, which the tokenizer puts there, too: it stands there twice"
        return (*notes, note)

    def question_text(self, question: str) -> str:
        """A question as the official code of the protocol reads it."""
        text = question.strip().replace("  ", " ") if self.protocol.trimmed else question
        text = f"{self.protocol.before_question}{text}{self.protocol.after_question}"
        if not self.in_template:
            return text
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
                    chat_template=TODAY + self.tokenizer.get_chat_template(),
                )
            )  # fmt: skip
        except Exception as error:  # whatever a template raises
            raise UsageError(f"the tokenizer's chat template cannot be filled in: {first_line(error)}") from error

    def closing_tokens(self, n_row: int, device: torch.device) -> Tensor:
        """Tokens ``(row, place)`` that close the thoughts."""
        return torch.tensor(self.closing_ids, dtype=torch.long, device=device).expand(n_row, -1)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of answer tokens, without special ones."""
        inside = [int(token) for token in tokens if 0 <= token < self.vocabulary and int(token) not in self._marks]
        return str(self.tokenizer.decode(inside, skip_special_tokens=True))

    def answer_tokens(self, answer: str) -> list[int]:
        """Tokens of prefix, answer and end as the model would write them; the number in its context, not by itself."""
        before = f"{self.answer_prefix}{self.protocol.after_prefix}" if self.answer_prefix else ""
        return [*self.text_tokens(f"{before}{answer}"), self.eos_id]

    def answer_start(self, *answers: str) -> int:
        """How many tokens of :meth:`answer_tokens` come before the first that tells these answers apart.

        Of one answer, before its number: a space that is a token of its own belongs to what comes before.
        """
        prefix = self.text_tokens(self.answer_prefix)
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
        return [*self.text_tokens(text), self.eos_id][0]

    def text_tokens(self, text: str) -> list[int]:
        """Tokens of a text alone, without markers; kept, as answers come again and again."""
        if text not in self._text_tokens:
            (self._text_tokens[text],) = self.tokenize([text])
        return list(self._text_tokens[text])

    def tokens_and_prefix(self, answer: str) -> tuple[list[int], int]:
        """Tokens of an answer and how many of them are the prefix's."""
        return self.answer_tokens(answer), self.prefix_length(answer)

    def prefix_length(self, answer: str) -> int:
        """Tokens that :meth:`answer_tokens` shares with the prefix alone."""
        prefix, full = self.text_tokens(self.answer_prefix), self.answer_tokens(answer)
        shared = 0
        while shared < min(len(prefix), len(full)) and prefix[shared] == full[shared]:
            shared += 1
        return shared
