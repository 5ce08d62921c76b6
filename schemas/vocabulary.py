"""Names of dims, positions and variables: the words every other package speaks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

N_LATENT = 6
"""Continuous thoughts of a CODI model unless its checkpoint says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """One array of a run."""

    dims: tuple[str, ...]
    dtype: str
    """Numpy dtype; ``"stored"`` is the run's float type, ``"text"`` variable-length UTF-8."""
    units: str
    """Unit of the values; ``"1"`` for a plain number, ``""`` where there is none."""
    long_name: str
    fill: float | int | str | bool
    """What stands where an example has no such entry."""


def _state(long_name: str, *dims: str) -> Variable:
    """An activation in the run's float type; NaN where there is none."""
    return Variable(dims=dims, dtype="stored", units="1", long_name=long_name, fill=float("nan"))


def _number(long_name: str, *dims: str, units: str = "1") -> Variable:
    """A double; NaN where there is none."""
    return Variable(dims=dims, dtype="float64", units=units, long_name=long_name, fill=float("nan"))


def _id(dtype: str, long_name: str, *dims: str) -> Variable:
    """A whole number that names something; -1 where there is none."""
    return Variable(dims=dims, dtype=dtype, units="", long_name=long_name, fill=-1)


def _flag(long_name: str) -> Variable:
    """Yes or no of each example."""
    return Variable(dims=("example",), dtype="bool", units="", long_name=long_name, fill=False)


def _text(long_name: str, *dims: str) -> Variable:
    """A text; empty where there is none."""
    return Variable(dims=dims, dtype="text", units="", long_name=long_name, fill="")


RUN_VARIABLES: dict[str, Variable] = {
    "hidden_state": _state(
        "residual stream after each block, before any final norm", "example", "layer", "position", "hidden"
    ),
    "final_state": _state(
        "after the final norm: what the projection and the unembedding read", "example", "position", "hidden"
    ),
    "latent_embedding": _state("vectors fed in at the continuous thoughts", "example", "latent", "hidden"),
    "iteration_embedding": _state(
        "vectors fed in at the thoughts in each round, the last of which is what the run's states are of",
        "example", "iteration", "latent", "hidden",
    ),
    "iteration_state": _state(
        "after the final norm, at the thoughts in each round", "example", "iteration", "latent", "hidden"
    ),
    "attention": Variable(
        dims=("example", "layer", "head", "position", "key_position"),
        dtype="stored",
        units="1",
        long_name="attention probability of each query over all keys; rows sum to 1",
        fill=0.0,
    ),
    "mlp_output": _state(
        "what each block's MLP adds to the residual stream; with --capture ..+parts",
        "example", "layer", "position", "hidden",
    ),
    "attention_output": _state(
        "what each block's attention adds to the residual stream; with --capture ..+parts",
        "example", "layer", "position", "hidden",
    ),
    "token": _id("int32", "token id, -1: none", "example", "position"),
    "question": _text("question as asked", "example"),
    "gold_answer": _text("gold answer", "example"),
    "generated_text": _text("greedy answer text", "example"),
    "predicted_answer": _number(
        "number answered, NaN: none (text, empty: none, where answers are no numbers)", "example"
    ),
    "correct": _flag("predicted answer is the gold answer"),
    "answer_logprob": _number(
        "log probability of the gold answer after the answer's prefix, end token included", "example", units="nat"
    ),
    "intermediate_result": _number(
        "results of the written chain, the last one the answer, NaN: no such step", "example", "step"
    ),
    "operation": _text("operator of each step of the chain", "example", "step"),
    "expression": _text("left side of each step of the chain", "example", "step"),
    "step_text": _text("step of a chain in words, as written", "example", "step"),
    "intermediate_text": _text("word that each step of a chain in words arrives at", "example", "step"),
    "distractor": _text(
        "nodes of the problem's graph as far from its root as the step, on no way to the target", "example", "step"
    ),
    "other_answer": _text("the wrong one of the two answers asked about", "example"),
    "pair": _id("int64", "number of the clean/corrupted pair, -1: none", "example"),
    "committed": _flag("written, checksummed and readable"),
}  # fmt: skip

PARTS = ("mlp_output", "attention_output")
"""Variables that a run has where they were asked for."""
ITERATIONS = ("iteration_embedding", "iteration_state")
"""Variables of a model whose thoughts are computed side by side, in rounds."""

MODEL_VARIABLES: dict[str, Variable] = {
    "unembedding": Variable(
        dims=("vocabulary", "hidden"), dtype="float32", units="1", long_name="unembedding matrix", fill=0.0
    ),
    "final_norm_weight": Variable(
        dims=("hidden",), dtype="float32", units="1", long_name="scale of the final norm", fill=0.0
    ),
    "final_norm_bias": Variable(
        dims=("hidden",), dtype="float32", units="1", long_name="shift of the final norm (0 for an RMS norm)", fill=0.0
    ),
    "token_string": Variable(
        dims=("vocabulary",), dtype="text", units="", long_name="text of each token of the vocabulary", fill=""
    ),
}

DIMS: dict[str, str] = {
    "example": "one problem of a dataset; the label is its line number in the data file",
    "layer": "block of the model, from 0; the state is the block's output",
    "head": "attention head, from 0 (query heads where keys are grouped)",
    "position": "place in the sequence, the query's side of attention",
    "key_position": "place in the sequence, the key's side of attention",
    "latent": "continuous thought, named by the position it is fed at",
    "iteration": "round in which all thoughts are computed side by side, from 0",
    "hidden": "component of the residual stream",
    "step": "step of the written chain, from 0",
    "vocabulary": "token id",
    "feature": "feature of a sparse autoencoder",
    "model": "run, where results of several are laid side by side",
}

COORDINATES: dict[str, str] = {
    **{name: DIMS[name] for name in ("example", "layer", "head", "position", "key_position", "latent", "iteration")},
    "problem": "problem the example tells; tellings of one problem share it",
    "variant": "which telling of the problem",
    "segment": "part of the sequence: question, bot, latent, eot or answer",
    "offset": "tokens after the place where thinking begins",
}
"""Coordinates of a run."""

CLOSING = ("eot", "eos")
"""Names of the places at which the tokens that close the thoughts are fed, in their order."""


def latent_labels(n_latent: int = N_LATENT) -> list[str]:
    """Names of the continuous thoughts: ``ct0 .. ct{n-1}``."""
    return [f"ct{index}" for index in range(n_latent)]


@dataclass(frozen=True, slots=True)
class Places:
    """Which places a model's sequences have between question and answer, and how far they are from the first.

    The first of them, at offset 0, is where thinking begins: ``bot`` or, where no marker stands before the answer,
    the last token of the question, ``q-1``.
    """

    n_latent: int = N_LATENT
    """Continuous thoughts."""
    n_closing: int = 1
    """Tokens fed after the thoughts: ``eot``, and with two of them ``eos``."""
    bot: bool = True
    """Whether a marker stands where thinking begins."""

    def __post_init__(self) -> None:
        """Check that every place has a name."""
        if not 0 <= self.n_closing <= len(CLOSING):
            raise ValueError(f"{self.n_closing} tokens close the thoughts; names are known of {len(CLOSING)}")

    @property
    def middle(self) -> list[str]:
        """Places from the first, at offset 0, up to the answer."""
        return ["bot" if self.bot else "q-1", *latent_labels(self.n_latent), *CLOSING[: self.n_closing]]

    @property
    def n_middle(self) -> int:
        """How many places there are from the first, at offset 0, up to the answer."""
        return 1 + self.n_latent + self.n_closing

    def needed(self, n_token: int, n_answer: int) -> int:
        """Places of a sequence: a prompt of ``n_token`` tokens up to offset 0, those up to the answer, the answer."""
        return n_token + self.n_middle - 1 + n_answer

    def labels(self, n_before: int, n_answer: int) -> list[str]:
        """Names of ``n_before`` places before offset 0, of those up to the answer, and of ``n_answer`` in it.

        >>> Places(2, 2).labels(2, 1)
        ['q-2', 'q-1', 'bot', 'ct0', 'ct1', 'eot', 'eos', 'a0']
        >>> Places(0, 0, bot=False).labels(2, 1)
        ['q-3', 'q-2', 'q-1', 'a0']
        """
        nearest = 1 if self.bot else 2
        question = [f"q-{distance}" for distance in range(n_before + nearest - 1, nearest - 1, -1)]
        return [*question, *self.middle, *(f"a{index}" for index in range(n_answer))]

    def offset(self, label: str) -> int:
        """Distance of a place from the first, in tokens.

        Raises
        ------
        ValueError
            If no place has that name.
        """
        middle = self.middle
        if label in middle:
            return middle.index(label)
        for prefix, first, sign in (("q-", 0 if self.bot else 1, -1), ("a", self.n_middle, 1)):
            number = label.removeprefix(prefix)
            if label.startswith(prefix) and number.isdecimal() and label != "q-0":
                return first + sign * int(number)
        meant = re.fullmatch(r"(q-|ct|a)\d+|bot|eot|eos", label)
        what = f"position {label!r} is not there" if meant else f"no position is called {label!r}"
        raise ValueError(f"{what}; positions are {self}")

    def __str__(self) -> str:
        """All places in one line, as messages list them."""
        question = "q-N .. q-1"
        thoughts = {0: [], 1: ["ct0"]}.get(self.n_latent, [f"ct0 .. ct{self.n_latent - 1}"])
        named = [*(["bot"] if self.bot else []), *thoughts, *CLOSING[: self.n_closing]]
        return ", ".join([question, *named, "a0 .."])


USUAL = Places()
"""Places of CODI."""


def position_labels(n_question: int, n_answer: int, n_latent: int = N_LATENT) -> list[str]:
    """Names of ``n_question`` places before ``bot``, of ``bot``, the thoughts, ``eot`` and ``n_answer`` after it.

    >>> position_labels(2, 1)
    ['q-2', 'q-1', 'bot', 'ct0', 'ct1', 'ct2', 'ct3', 'ct4', 'ct5', 'eot', 'a0']
    """
    return Places(n_latent).labels(n_question, n_answer)


def position_offset(label: str, n_latent: int = N_LATENT) -> int:
    """Distance of a position from ``bot``, in tokens, where one token closes the thoughts; see :class:`Places`."""
    return Places(n_latent).offset(label)


def segment_of(label: str) -> str:
    """Segment of a position: ``question``, ``bot``, ``latent``, ``eot`` (with ``eos``) or ``answer``.

    Steps that a model writes out (``step1``, ``fed1``; see ``analyze.written``) are in its answer.
    """
    if label in ("bot", "eot", "eos"):
        return "bot" if label == "bot" else "eot"
    return {"q": "question", "c": "latent", "a": "answer", "s": "answer", "f": "answer"}[label[0]]


def position_coords(labels: Sequence[str], n_latent: int = N_LATENT) -> dict[str, tuple[str, "np.ndarray"]]:
    """Coordinates ``segment`` and ``offset`` that go with a ``position`` axis."""
    import numpy as np  # the rest of this module is read by every command's help

    return {
        "segment": ("position", np.array([segment_of(label) for label in labels], dtype=object)),
        "offset": ("position", np.array([position_offset(label, n_latent) for label in labels], dtype=np.int64)),
    }
