"""What is known of each architecture: where embedding, blocks and final norm live. A new one is one entry."""

from dataclasses import dataclass
from typing import Literal

from schemas import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Where the parts of a causal language model are, below the model as transformers builds it."""

    model_type: str
    """``model_type`` of the base model's ``config.json``."""
    default_base: str
    """Base model taken where none is named."""
    block_prefix: str
    """What the names of the blocks' weights begin with: tells architectures apart where no config is given."""
    body: str
    """The decoder without its head."""
    embedding: str
    """Token embedding, below ``body``."""
    blocks: str
    """List of blocks, below ``body``."""
    final_norm: str
    """Norm after the last block, below ``body``."""
    norm: Literal["layer_norm", "rms_norm"]


ARCHITECTURES: dict[str, Architecture] = {
    entry.model_type: entry
    for entry in (
        Architecture(
            model_type="gpt2",
            default_base="openai-community/gpt2",
            block_prefix="transformer.h.",
            body="transformer",
            embedding="wte",
            blocks="h",
            final_norm="ln_f",
            norm="layer_norm",
        ),
        Architecture(
            model_type="llama",
            default_base="meta-llama/Llama-3.2-1B-Instruct",
            block_prefix="model.layers.",
            body="model",
            embedding="embed_tokens",
            blocks="layers",
            final_norm="norm",
            norm="rms_norm",
        ),
    )
}


def architecture_of(model_type: str, source: str) -> Architecture:
    """Entry for a ``model_type``; ``source`` is named if there is none."""
    if model_type not in ARCHITECTURES:
        raise UsageError(
            f"{source} is a model of type {model_type!r}; supported are {', '.join(sorted(ARCHITECTURES))}"
            " (another is one entry in extract/architectures.py)"
        )
    return ARCHITECTURES[model_type]


def architecture_from_keys(keys: list[str], source: str) -> Architecture:
    """Entry whose block names the weights carry."""
    for entry in ARCHITECTURES.values():
        if any(key.startswith(entry.block_prefix) for key in keys):
            return entry
    shown = ", ".join(sorted(keys)[:3])
    raise UsageError(
        f"{source} holds no CODI model of a supported architecture ({', '.join(sorted(ARCHITECTURES))}):"
        f" its weights are named {shown} ..."
    )
