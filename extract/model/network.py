"""A causal language model as its reasoner sees it: where its parts are, its sizes, and what reads its states."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from extract.model.architectures import Architecture
from extract.model.capture import cache_argument
from schemas import UsageError


class Network:
    """A language model with known parts."""

    def __init__(self, *, name: str, model: nn.Module, architecture: Architecture) -> None:
        self.name = name
        self.model = model
        self.architecture_entry = architecture
        self.architecture = architecture.model_type
        config: Any = model.config
        self.n_layer = int(config.num_hidden_layers)
        self.n_head = int(config.num_attention_heads)
        self.hidden = int(config.hidden_size)
        self.context = _context(config)
        self._body: Any = model.get_submodule(architecture.body)
        self._cache_argument = cache_argument(self._body)
        self._embedding: Any = self._body.get_submodule(architecture.embedding)
        self.blocks: list[nn.Module] = list(self._body.get_submodule(architecture.blocks))  # type: ignore[call-overload]
        self._parts = {site: getattr(architecture, site) for site in ("attention_output", "mlp_output")}
        self._norm: Any = self._body.get_submodule(architecture.final_norm)
        self._head: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._head_weight: Tensor | None = None

    def _stated(self, field: str) -> Any:
        """Field of the config; ``None`` also where it stands in the file and is none of the architecture's."""
        config: Any = self.model.config
        return getattr(config, field, None) if hasattr(type(config), field) else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._embedding.weight.device  # type: ignore[no-any-return]

    @property
    def head_size(self) -> int:
        """Width of one head's output."""
        return int(self._stated("head_dim") or self.hidden // self.n_head)

    @property
    def n_cache_head(self) -> int:
        """Heads of keys and values; each serves one query head or several."""
        return int(self._stated("num_key_value_heads") or self.n_head)

    def part_shape(self, site: str) -> tuple[int, ...]:
        """Shape of a site's value at one layer and position: ``(hidden,)``, or ``(head, head_size)``."""
        heads = {"head_output": self.n_head, "key": self.n_cache_head, "value": self.n_cache_head}
        return (heads[site], self.head_size) if site in heads else (self.hidden,)

    @property
    def inner(self) -> int:
        """Width of a block's MLP."""
        return int(self._stated("intermediate_size") or self._stated("n_inner") or 4 * self.hidden)

    @property
    def key_value_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return 2 * self.n_layer * self.n_cache_head * self.head_size * int(self._embedding.weight.element_size())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, and of the float32 head that logits are computed with."""
        weights = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        return weights + (0 if self._head.weight.dtype == torch.float32 else 4 * self._head.weight.numel())

    @functools.cached_property
    def unembedding(self) -> np.ndarray:
        """``(vocabulary, hidden)`` float32."""
        return self._head.weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Literal["layer_norm", "rms_norm"]:
        """Kind of the final norm."""
        return self.architecture_entry.norm

    @property
    def final_norm_weight(self) -> np.ndarray:
        """``(hidden,)`` float32, what it multiplies by."""
        weight = self._norm.weight.detach().float() + self.architecture_entry.norm_offset
        return weight.cpu().numpy()  # type: ignore[no-any-return]

    @property
    def logit_softcap(self) -> float | None:
        """What logits are squashed below, ``softcap tanh(logit / softcap)``, in models that do so."""
        cap = self._stated("final_logit_softcapping")
        return None if cap is None else float(cap)

    @property
    def final_norm_bias(self) -> np.ndarray:
        """``(hidden,)`` float32; zeros for an RMS norm."""
        bias = getattr(self._norm, "bias", None)
        if bias is None:
            return np.zeros(self.hidden, dtype=np.float32)
        return bias.detach().float().cpu().numpy()  # type: ignore[no-any-return]

    @property
    def final_norm_epsilon(self) -> float:
        """Constant added to the variance."""
        for name in ("eps", "variance_epsilon"):
            if (value := getattr(self._norm, name, None)) is not None:
                return float(value)
        raise UsageError(f"the final norm of {self.name} names no epsilon")

    def embed(self, tokens: Tensor) -> Tensor:
        """Vectors ``(..., hidden)`` that tokens are fed as."""
        out: Tensor = self._embedding(tokens)
        return out

    def logits(self, state: Tensor) -> Tensor:
        """Logits ``(..., token)`` of states after the final norm, float32 whatever type the model runs in.

        In bfloat16 neighbours among large logits are an eighth apart.
        """
        weight = self._head.weight
        if weight.dtype != torch.float32:
            if self._head_weight is None:
                with torch.inference_mode(False):  # gradients go through it, too
                    self._head_weight = weight.detach().float()
            weight = self._head_weight
        # torch takes a view row by row, several times slower
        logits = nn.functional.linear(state.float().contiguous(), weight)
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _context(config: Any) -> int:
    """Places that a model's positions reach.

    ``longrope`` turns every position otherwise once any question of the batch is longer than it was first trained for
    (``dynamic`` beyond the model's own length): up to there, a question is the same in any batch.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    kinds = [stated, *(kind for kind in stated.values() if isinstance(kind, Mapping))]
    first = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return int(min([config.max_position_embeddings, *first]))
