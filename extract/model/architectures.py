"""What is known of each architecture: where embedding, blocks and final norm live. A new one is one entry."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from schemas import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Where the parts of a causal language model are, below the model as transformers builds it."""

    model_type: str
    """``model_type`` of the base model's ``config.json``."""
    default_base: str = ""
    """Base model taken where none is named and the sizes are its own."""
    default_sizes: tuple[int, int] = (0, 0)
    """Hidden size and blocks of that base."""
    block_prefix: str
    """What the names of the blocks' weights begin with."""
    body: str
    """The decoder without its head."""
    embedding: str
    """Token embedding, below ``body``."""
    blocks: str
    """List of blocks, below ``body``."""
    final_norm: str
    """Norm after the last block, below ``body``."""
    norm: Literal["layer_norm", "rms_norm"]
    attention_output: str
    """Module whose output a block adds to the residual stream for its attention, below the block."""
    head_projection: str
    """Linear map from the outputs of all heads to what the attention adds, below the block."""
    norms: tuple[str, str]
    """What attention and MLP read the residual stream through, below the block; ``""``: as it is."""
    mlp_output: str = "mlp"
    """The same of its MLP."""
    norm_offset: float = 0.0
    """What the final norm adds to its weight before it multiplies."""

    @property
    def vocabulary_modules(self) -> tuple[str, str]:
        """Modules with a row for each token: the embedding and the head."""
        return f"{self.body}.{self.embedding}", "lm_head"

    def blocks_in(self, names: Iterable[str]) -> set[str]:
        """Numbers of the blocks that have weights of these names."""
        start = len(self.block_prefix)
        return {name[start:].split(".")[0] for name in names if name.startswith(self.block_prefix)}


GPT2 = Architecture(
    model_type="gpt2",
    default_base="openai-community/gpt2",
    default_sizes=(768, 12),
    block_prefix="transformer.h.",
    body="transformer",
    embedding="wte",
    blocks="h",
    final_norm="ln_f",
    norm="layer_norm",
    attention_output="attn",
    head_projection="attn.c_proj",
    norms=("ln_1", "ln_2"),
)
LLAMA = Architecture(
    model_type="llama",
    default_base="meta-llama/Llama-3.2-1B-Instruct",
    default_sizes=(2048, 16),
    block_prefix="model.layers.",
    body="model",
    embedding="embed_tokens",
    blocks="layers",
    final_norm="norm",
    norm="rms_norm",
    attention_output="self_attn",
    head_projection="self_attn.o_proj",
    norms=("input_layernorm", "post_attention_layernorm"),
)
# Its blocks norm what they add to the residual stream.
OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    default_base="",
    attention_output="post_attention_layernorm",
    mlp_output="post_feedforward_layernorm",
    norms=("", ""),
)
ARCHITECTURES: dict[str, Architecture] = {
    entry.model_type: entry
    for entry in (
        GPT2,
        LLAMA,
        # Biases of queries, keys and values; norms of queries and keys: what transformers computes needs no entry.
        # So with sliding windows and layers without rotary positions: attention functions are passed the first.
        *(
            replace(LLAMA, model_type=name, default_base="")
            for name in ("qwen2", "qwen3", "mistral", "phi3", "smollm3")
        ),
        OLMO2,
        *(
            replace(OLMO2, model_type=name, norm_offset=1.0, norms=("input_layernorm", "pre_feedforward_layernorm"))
            for name in ("gemma2", "gemma3_text")
        ),
        Architecture(
            model_type="gpt_neox",
            block_prefix="gpt_neox.layers.",
            body="gpt_neox",
            embedding="embed_in",
            blocks="layers",
            final_norm="final_layer_norm",
            norm="layer_norm",
            attention_output="attention",
            head_projection="attention.dense",
            norms=("input_layernorm", "post_attention_layernorm"),
        ),
    )
}


def default_base(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Public base model of which weights of these names and shapes are, if it is known beyond doubt."""
    for entry in ARCHITECTURES.values():
        rows = shapes.get(f"{entry.body}.{entry.embedding}.weight", shapes.get("lm_head.weight", ()))
        strange = any(
            key.endswith(("q_norm.weight", "q_proj.bias", "q_proj.base_layer.bias", "_feedforward_layernorm.weight"))
            for key in shapes
        )
        if entry.default_base and not strange and (*rows[1:], len(entry.blocks_in(shapes))) == entry.default_sizes:
            return entry.default_base
    return None


WRAPPED = "pccot-"
"""Before the ``model_type`` of a class that adds thoughts to the architecture of the name."""


def architecture_of(model_type: str, source: str) -> Architecture:
    """Entry for a ``model_type``; ``source`` is named if there is none."""
    model_type = model_type.removeprefix(WRAPPED)
    if model_type not in ARCHITECTURES:
        raise UsageError(
            f"{source} is a model of type {model_type!r}; supported are {', '.join(sorted(ARCHITECTURES))}"
            " (another is one entry in extract/model/architectures.py)"
        )
    return ARCHITECTURES[model_type]


def architecture_from_keys(keys: list[str], source: str) -> Architecture:
    """Entry whose block names the weights carry."""
    for entry in ARCHITECTURES.values():
        if entry.blocks_in(keys):
            return entry
    shown = ", ".join(sorted(keys)[:3])
    raise UsageError(
        f"{source} holds no CODI model of a supported architecture ({', '.join(sorted(ARCHITECTURES))}):"
        f" its weights are named {shown} ..."
    )
