"""A model that this project cannot load: code of one's own runs it, and the lake takes what it captured.

Everything after the capture is as for any other model: shards, resuming, calibration, every analysis. What code of
one's own gives is checked before it is kept, as a mistake of alignment would look like a finding.
"""

import importlib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from extract.model.device import device_failure, first_line
from extract.model.own_check import Checked, floats
from extract.model.protocols import Protocol
from extract.model.thinking import Thinking
from schemas import LakeError, Places, UsageError, fingerprint
from schemas.errors import line_of
from schemas.spec import Rows, StoredDtype

NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How such a model is named: ``MODULE:FUNCTION``."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ReadOut:
    """What turns a state after the last block into logits."""

    unembedding: Array
    """``(vocabulary, hidden)``."""
    token_string: Sequence[str]
    """Text of each token of the vocabulary, spaces included."""
    norm: Literal["layer_norm", "rms_norm"]
    """Kind of the final norm."""
    weight: Array
    """``(hidden,)``, what it multiplies by."""
    bias: Array | None = None
    """``(hidden,)``, what it adds."""
    epsilon: float = 1e-5
    """Added to the variance."""
    softcap: float | None = None
    """What logits are squashed below, ``softcap tanh(logit / softcap)``, in models that do so."""

    def __post_init__(self) -> None:
        """Take arrays of any library, and check that the parts fit each other."""
        for name in ("unembedding", "weight", "bias"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, floats(f"{name} of the read-out", given))
        if self.unembedding.ndim != 2:
            raise UsageError(f"unembedding of the read-out is {self.unembedding.shape}, not (vocabulary, hidden)")
        vocabulary, hidden = self.unembedding.shape
        sizes = {"token_string": (len(self.token_string), vocabulary), "weight": (np.size(self.weight), hidden)}
        if self.bias is not None:
            sizes["bias"] = (np.size(self.bias), hidden)
        for name, (found, expected) in sizes.items():
            if found != expected:
                raise UsageError(
                    f"{name} of the read-out has {found} values; an unembedding of {vocabulary} x {hidden}"
                    f" (vocabulary x hidden) needs {expected}"
                )

    def normalised(self, state: Array) -> Array:
        """States ``(..., hidden)`` after the final norm, float32."""
        state = state.astype(np.float32)
        if self.norm == "layer_norm":
            state = state - state.mean(-1, keepdims=True)
        scaled = state / np.sqrt((state**2).mean(-1, keepdims=True) + self.epsilon) * self.weight
        return np.asarray(scaled if self.bias is None else scaled + self.bias, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Captured:
    """What a batch of questions leaves behind, padded on the left: ``bot`` is in one column of all rows.

    Columns are those of the longest prompt, of the thoughts, of what closes them, and of the longest answer, its end
    token included: that too is fed, for its state. States in columns that a row has not do not matter, attention on
    them is 0.
    """

    hidden_state: Array
    """``(row, layer, column, hidden)``: after each block, the last one before the final norm."""
    latent_embedding: Array
    """``(row, latent, hidden)``: vectors fed at the thoughts."""
    attention: Array
    """``(row, layer, head, column, column)``: probabilities of each query over all keys."""
    answers: Sequence[Sequence[int]]
    """Tokens of each answer as the model chose them, its end token included where it came to it."""
    texts: Sequence[str]
    """The answers as text."""
    answer_logprob: Array | None = None
    """``(row,)``: log probability of the gold answer after the answer's prefix; NaN or nothing: not known."""


class OwnModel(ABC):
    """A model that code of one's own runs.

    Parameters
    ----------
    weights
        What tells its weights from others, as a digest of their file: a lake takes no second model under a name.
    read_out
        For lenses and probes.
    n_layer, n_head, n_latent
        Blocks, heads of a block, thoughts.
    context
        Most places of a sequence.
    eos_id, bot_id, closing_ids
        Tokens that end an answer, stand where thinking begins (``None``: the question's last token does), and are
        fed after the thoughts (one or two; none in a model without thoughts).
    answer_prefix
        Text that the model writes before an answer.
    compute_dtype
        Type it computes in.
    architecture
        What the lake says that it is.
    greedy
        Whether an answer's tokens are the likeliest: what was captured is then checked against the read-out.
    """

    control = None
    described = None
    notes: tuple[str, ...] = ()
    device = torch.device("cpu")
    """Where captured arrays are; wherever the model runs."""
    protocol = Protocol(name="own")

    def __init__(
        self, *, weights: str, read_out: ReadOut, n_layer: int, n_head: int, n_latent: int, context: int, eos_id: int,
        bot_id: int | None = None, closing_ids: Sequence[int] = (), answer_prefix: str = "",
        compute_dtype: Literal["float32", "float16", "bfloat16"] = "float32", architecture: str = "own",
        greedy: bool = True,
    ) -> None:  # fmt: skip
        self.read_out, self.n_layer, self.n_head, self.n_latent = read_out, n_layer, n_head, n_latent
        self.vocabulary, self.hidden = np.shape(read_out.unembedding)
        self.context, self.eos_id, self.bot_id, self.closing_ids = context, eos_id, bot_id, list(closing_ids)
        self.pad_id, self.eot_id = eos_id, self.closing_ids[0] if self.closing_ids else None
        self.answer_prefix, self.compute_dtype, self.architecture = answer_prefix, compute_dtype, architecture
        self.greedy = greedy
        self.places = Places(n_latent, len(self.closing_ids), bot_id is not None)
        self.fingerprint = {
            "weights": fingerprint(weights), "tokenizer": fingerprint([*map(str, read_out.token_string)])
        }  # fmt: skip
        self.unembedding = np.asarray(read_out.unembedding, dtype=np.float32)
        self.final_norm, self.final_norm_epsilon = read_out.norm, read_out.epsilon
        self.logit_softcap = read_out.softcap
        self.final_norm_weight = np.asarray(read_out.weight, dtype=np.float32)
        bias = np.zeros(self.hidden) if read_out.bias is None else read_out.bias
        self.final_norm_bias = np.asarray(bias, dtype=np.float32)
        self.token_strings = [*map(str, read_out.token_string)]

    def marks_in(self, questions: Sequence[str]) -> tuple[str, ...]:
        """Nothing is known of what its own tokens stand for."""
        return ()

    @abstractmethod
    def encode(self, question: str) -> list[int]:
        """Tokens of a question up to where thinking begins, ``bot`` the last."""

    @abstractmethod
    def run(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, gold: Sequence[str] | None) -> Captured:
        """Think through a batch and answer.

        Parameters
        ----------
        prompts
            Of :meth:`encode`, of any lengths.
        max_new_tokens
            Most tokens of an answer, its end token included.
        gold
            Gold answers, for :attr:`Captured.answer_logprob`; ``None``: not asked.
        """

    def answer_tokens(self, answer: str) -> list[int]:
        """Tokens of an answer as the model would write it, for what a question needs of the context."""
        return []

    def think(self, prompts: Sequence[Sequence[int]], **options: Any) -> Thinking:
        """Think through a batch of questions, once: :meth:`begin` and its end."""
        return self.begin(prompts, **options)()

    def begin(
        self, prompts: Sequence[Sequence[int]], *, capture: Rows = "latent",
        stored_dtype: StoredDtype = "float16", max_new_tokens: int = 24,
        gold: Sequence[str] | None = None, parts: Sequence[str] = (),
    ) -> Callable[[], Thinking]:  # fmt: skip
        """As :meth:`extract.Reasoner.begin`, but that all is done when it returns.

        Raises
        ------
        UsageError
            If parts of the blocks are asked for.
        LakeError
            If it fails, or what was captured is of another shape, not finite, beyond the stored type, looks ahead, or
            does not read out as the answer that was given.
        """
        if parts:
            raise UsageError("code of one's own captures states and attention alone; leave +parts out of --capture")
        try:
            captured = self.run(prompts, max_new_tokens, gold)
        except Exception as error:
            if isinstance(error, LakeError | OSError) or device_failure(error):
                raise
            name = type(self).__name__
            place = line_of(error, type(self).__module__) or "beside its code"
            raise LakeError(f"{name}.run failed, {place}: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(captured, Captured):
            raise LakeError(f"{type(self).__name__}.run gives {type(captured).__name__}; it must give extract.Captured")
        thinking = Checked(self, prompts, captured, max_new_tokens).thinking(capture, stored_dtype)
        return lambda: thinking


def is_own(checkpoint: str) -> bool:
    """Whether a checkpoint names code of one's own: ``MODULE:FUNCTION``."""
    return NAMED.fullmatch(checkpoint) is not None and not Path(checkpoint).exists()


def open_own(checkpoint: str, device: str = "cpu", **others: Any) -> OwnModel:
    """Call ``MODULE:FUNCTION``, of this folder or installed, which makes the model.

    Parameters
    ----------
    checkpoint
        Its name.
    device, others
        Settings that code of one's own decides by itself; none may be given.

    Raises
    ------
    UsageError
        If there is no such function, it fails, or it gives something else.
    """
    others["device"] = None if device == "cpu" else device
    if given := [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]:
        raise UsageError(f"{checkpoint} is code of your own, which decides itself what {', '.join(given)} would say")
    module, name = checkpoint.split(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever code of one's own raises
        place = line_of(error, module)
        raise UsageError(
            f"{checkpoint} makes no model{place and ', '}{place}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(made, OwnModel):
        raise UsageError(f"{checkpoint} gives {type(made).__name__}; it must give an extract.OwnModel")
    if not hasattr(made, "read_out"):
        raise UsageError(f"{checkpoint} makes no model: its __init__ must call super().__init__(weights=.., ..)")
    return made
