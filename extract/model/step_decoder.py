"""SIM-CoT's decoder: a language model in a checkpoint, trained to write out a vector that is fed as a step."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from extract.model.architectures import architecture_of
from extract.model.base_model import base_config, build_model, embedding_of, find_base
from extract.model.checkpoint import find_checkpoint, misfits, read_weights
from extract.model.load import set_weights
from extract.model.reasoner import Reasoner
from schemas import UsageError
from schemas.json_values import read_json

DECODER, INWARD, OUTWARD = "decoder.", "pj_in.", "pj_out."


class Written(NamedTuple):
    """What a decoder wrote of some vectors, each along ``row``."""

    texts: list[str]
    """Without the end token."""
    n_token: np.ndarray
    """Without the end token, (row,)."""
    ended: np.ndarray
    """Whether the end token came, (row,)."""
    log_probability: np.ndarray
    """Sum over the tokens, the end token included, in nats, (row,)."""


@torch.inference_mode()
def write(
    model: Any, fed: Tensor, embed: Callable[[Tensor], Tensor], end: int, text: Callable[[list[int]], str],
    max_new_tokens: int, outward: Sequence[Tensor] = (),
) -> Written:  # fmt: skip
    """The likeliest token after what is fed, and after what was written, until the end token.

    Parameters
    ----------
    model
        Language model that takes ``inputs_embeds``.
    fed : (row, place, width)
        What it begins with.
    embed
        What is fed of tokens (row,) that were written: (row, width).
    end
        The end token.
    text
        What tokens say.
    max_new_tokens
        Longest text, end token included.
    outward
        Matrices that the logits go through.
    """
    tokens: list[list[int]] = [[] for _ in fed]
    ended, total, cache = np.zeros(len(fed), dtype=bool), np.zeros(len(fed)), None
    for _ in range(max_new_tokens):
        out = model(inputs_embeds=fed, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        for matrix in outward:
            logits = logits @ matrix
        best, likeliest = logits.log_softmax(-1).max(-1)
        total += np.where(ended, 0.0, best.cpu().numpy())
        ended |= (likeliest == end).cpu().numpy()
        for row in np.flatnonzero(~ended).tolist():
            tokens[row].append(int(likeliest[row]))
        if ended.all():
            break
        fed = embed(likeliest)[:, None]
    return Written([text(each) for each in tokens], np.array([len(each) for each in tokens]), ended, total)


class StepDecoder:
    """A language model that begins with a vector that is fed, and goes on in the reasoner's own word embeddings.

    The vector and the embeddings go through ``pj_in``, logits through ``pj_out``, where the decoder has another width
    or vocabulary than the reasoner (InternLM/SIM-CoT, CODI/src/model.py).
    """

    def __init__(self, reasoner: Reasoner, model: Any, inward: dict[str, Tensor], outward: list[Tensor]) -> None:
        self.reasoner = reasoner
        self.model = model
        self.inward = inward
        self.outward = outward

    def write(self, vectors: np.ndarray, max_new_tokens: int) -> Written:
        """What is written of vectors (row, hidden), as they are fed to the reasoner, all of them at once."""
        fed = torch.from_numpy(np.ascontiguousarray(vectors, dtype="float32")).to(self.reasoner.device)
        return write(
            self.model, self._inward(fed)[:, None], lambda tokens: self._inward(self.reasoner.embed(tokens).float()),
            self.reasoner.eos_id, self.reasoner.decode, max_new_tokens, self.outward,
        )  # fmt: skip

    def _inward(self, fed: Tensor) -> Tensor:
        return nn.functional.linear(fed, **self.inward) if self.inward else fed


def load_step_decoder(checkpoint: str, reasoner: Reasoner, base: str | None = None) -> StepDecoder:
    """The decoder in a checkpoint of SIM-CoT.

    Parameters
    ----------
    checkpoint
        As for :func:`extract.load_reasoner`.
    reasoner
        Loaded from it.
    base
        Folder or hub id of the model that the decoder began as, for its config; by default the reasoner's own.

    Raises
    ------
    UsageError
        If the checkpoint has none, or it does not fit that config.
    """
    _, path, folder = find_checkpoint(checkpoint)
    raw = read_weights(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value.float() for key, value in raw.items() if key.startswith(prefix)}

    weights, inward, outward = map(part, (DECODER, INWARD, OUTWARD))
    source = f"the decoder of {checkpoint}"
    if not weights:
        if base is not None and not (Path(base) / "config.json").exists():
            raise UsageError(f"{base} has no decoder that --train made, and {checkpoint} none of its own ({DECODER}*)")
        raise UsageError(
            f"{checkpoint} has no weights named {DECODER}*: only a checkpoint of SIM-CoT, saved with its decoder, can"
            " write out its thoughts. --train DIR trains a decoder of them first; lake analyze lens reads those of any"
            " model"
        )
    config: Any
    if base is None:
        config, architecture = deepcopy(reasoner.model.config), reasoner.architecture_entry
    else:
        place = find_base(base, folder, {}, trained_only=False)
        described = read_json(place / "config.json", "config of the decoder's base")
        architecture = architecture_of(str(described.get("model_type")), f"base {base}")
        config = base_config(place, architecture, base)
    words = embedding_of(weights, architecture)
    n_word, n_row, width = (0 if words is None else len(words)), len(reasoner.unembedding), int(config.hidden_size)
    model = build_model(config, n_word, architecture, base or source)
    try:
        set_weights(model, weights, source)
    except UsageError as error:
        raise UsageError(f"{error}; pass the model that it began as with --decoder") from error
    of_inward = {"weight": (width, reasoner.hidden), "bias": (width,)} if inward or width != reasoner.hidden else {}
    rank = len(outward.get("V", ()))
    n_written = outward["V"].shape[-1] if rank else n_row
    of_outward = {"U": (n_word, rank), "V": (rank, min(n_written, n_row))} if outward or n_word > n_row else {}
    for prefix, parts, sizes in ((INWARD, inward, of_inward), (OUTWARD, outward, of_outward)):
        if problems := misfits(parts, sizes):
            raise UsageError(f"{prefix}* of {checkpoint} does not fit its decoder and the model: {'; '.join(problems)}")
    device = reasoner.device
    return StepDecoder(
        reasoner, model.to(device).eval(), {name: value.to(device) for name, value in inward.items()},
        [outward[name].to(device) for name in of_outward],
    )  # fmt: skip
