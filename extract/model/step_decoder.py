"""SIM-CoT's decoder: a language model in a checkpoint, trained to write out a vector that is fed as a step."""

from copy import deepcopy
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

    tokens: list[list[int]]
    """Without the end token."""
    ended: np.ndarray
    """Whether the end token came, (row,)."""
    log_probability: np.ndarray
    """Sum over the tokens, the end token included, in nats, (row,)."""


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

    @torch.inference_mode()
    def write(self, vectors: np.ndarray, max_new_tokens: int) -> Written:
        """The likeliest token after each vector, and after what was written, until the end token.

        Parameters
        ----------
        vectors : (row, hidden)
            As they are fed to the reasoner; all of them at once.
        max_new_tokens
            Longest step, end token included.
        """
        fed = torch.from_numpy(np.ascontiguousarray(vectors, dtype="float32")).to(self.reasoner.device)
        tokens: list[list[int]] = [[] for _ in vectors]
        ended, total, cache = np.zeros(len(vectors), dtype=bool), np.zeros(len(vectors)), None
        for _ in range(max_new_tokens):
            fed = nn.functional.linear(fed, **self.inward) if self.inward else fed
            out = self.model(inputs_embeds=fed[:, None], past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1].float()
            for matrix in self.outward:
                logits = logits @ matrix
            best, likeliest = logits.log_softmax(-1).max(-1)
            total += np.where(ended, 0.0, best.cpu().numpy())
            ended |= (likeliest == self.reasoner.eos_id).cpu().numpy()
            for row in np.flatnonzero(~ended).tolist():
                tokens[row].append(int(likeliest[row]))
            if ended.all():
                break
            fed = self.reasoner._embed(likeliest).float()
        return Written(tokens, ended, total)


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
        raise UsageError(
            f"{checkpoint} has no weights named {DECODER}*: only a checkpoint of SIM-CoT, saved with its decoder, can"
            " write out its thoughts; lake analyze lens reads those of any model"
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
