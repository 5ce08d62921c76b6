"""GPT-2, LLaMA and the loop of thoughts anew in float64, of nothing but weights: no cache, no batch, no hooks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

Change = Callable[[Tensor], Tensor]
Changes = Mapping[tuple[str, int, int], Change]
"""What becomes of a value, by site, layer (-1: fed) and place in the sequence."""


class Slow:
    """One model, its weights by the names that checkpoints have."""

    def __init__(self, reasoner: Any) -> None:
        self.w = {name: value.double() for name, value in reasoner.model.state_dict().items()}
        self.prj = {name: value.double() for name, value in reasoner.projection.state_dict().items()}
        self.is_gpt2 = "transformer.wte.weight" in self.w
        config = reasoner.model.config
        self.n_layer, self.n_head = config.num_hidden_layers, config.num_attention_heads
        self.eps = config.layer_norm_epsilon if self.is_gpt2 else config.rms_norm_eps
        self.theta = 0.0 if self.is_gpt2 else config.rope_parameters["rope_theta"]
        self.n_latent, self.closing = reasoner.n_latent, list(reasoner.closing_ids)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Vectors (place, hidden) of tokens."""
        return self.w["transformer.wte.weight" if self.is_gpt2 else "model.embed_tokens.weight"][list(tokens)]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm, or RMSNorm."""
        weight = self.w[f"{name}.weight"]
        if self.is_gpt2:
            return layer_norm(x, x.shape[-1:], weight, self.w[f"{name}.bias"], self.eps)
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * weight

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary embedding of (place, head, size): halves as real and imaginary part."""
        half = x.shape[-1] // 2
        rate = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None, None] * rate
        real, imaginary = x[..., :half], x[..., half:]
        return torch.cat(
            [real * angle.cos() - imaginary * angle.sin(), imaginary * angle.cos() + real * angle.sin()], -1
        )

    def block(self, x: Tensor, layer: int, changes: Changes) -> Tensor:
        """Output (place, hidden) of a block."""
        n, name = len(x), f"transformer.h.{layer}" if self.is_gpt2 else f"model.layers.{layer}"
        if self.is_gpt2:
            y = self.norm(x, f"{name}.ln_1") @ self.w[f"{name}.attn.c_attn.weight"] + self.w[f"{name}.attn.c_attn.bias"]
            q, k, v = (each.reshape(n, self.n_head, -1) for each in y.chunk(3, -1))
        else:
            y, size = self.norm(x, f"{name}.input_layernorm"), None
            q, k, v = (y @ self.w[f"{name}.self_attn.{part}_proj.weight"].T for part in "qkv")
            q = q.reshape(n, self.n_head, -1)
            size = q.shape[-1]
            k, v = (each.reshape(n, -1, size) for each in (k, v))
            q, k = self.rotate(q), self.rotate(k)
            k, v = (each.repeat_interleave(self.n_head // each.shape[1], 1) for each in (k, v))
        score = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        score = score.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        head = changed(torch.einsum("hqk,khd->qhd", score.softmax(-1), v), "head_output", layer, changes).reshape(n, -1)
        if self.is_gpt2:
            x = x + head @ self.w[f"{name}.attn.c_proj.weight"] + self.w[f"{name}.attn.c_proj.bias"]
            y = self.norm(x, f"{name}.ln_2") @ self.w[f"{name}.mlp.c_fc.weight"] + self.w[f"{name}.mlp.c_fc.bias"]
            y = gelu(y, approximate="tanh") @ self.w[f"{name}.mlp.c_proj.weight"] + self.w[f"{name}.mlp.c_proj.bias"]
        else:
            x = x + head @ self.w[f"{name}.self_attn.o_proj.weight"].T
            y = self.norm(x, f"{name}.post_attention_layernorm")
            up = y @ self.w[f"{name}.mlp.up_proj.weight"].T
            y = (silu(y @ self.w[f"{name}.mlp.gate_proj.weight"].T) * up) @ self.w[f"{name}.mlp.down_proj.weight"].T
        return changed(x + y, "hidden_state", layer, changes)

    def states(self, vectors: Tensor, changes: Changes) -> Tensor:
        """Final states (place, hidden) of vectors fed."""
        x = vectors + self.w["transformer.wpe.weight"][: len(vectors)] if self.is_gpt2 else vectors
        for layer in range(self.n_layer):
            x = self.block(x, layer, changes)
        return self.norm(x, "transformer.ln_f" if self.is_gpt2 else "model.norm")

    def project(self, state: Tensor) -> Tensor:
        """The vector fed as a thought, from the final state before it."""
        y = gelu(state @ self.prj["1.weight"].T + self.prj["1.bias"])
        y = y @ self.prj["3.weight"].T + self.prj["3.bias"]
        return layer_norm(y, y.shape[-1:], self.prj["ln.weight"], self.prj["ln.bias"], 1e-5)

    def think(self, prompt: Sequence[int], changes: Changes | None = None) -> Tensor:
        """Vectors (place, hidden) fed up to what closes the thoughts; ``prompt`` ends at bot."""
        changes = changes or {}
        vectors = self.embed(prompt)
        for _ in range(self.n_latent):
            fed = self.project(self.states(vectors, changes)[-1])
            fed = changes.get(("latent_embedding", -1, len(vectors)), lambda x: x)(fed)
            vectors = torch.cat([vectors, fed[None]])
        return torch.cat([vectors, self.embed(self.closing)])

    def logits(self, vectors: Tensor, tokens: Sequence[int], changes: Changes | None = None) -> Tensor:
        """Logits (token, vocabulary) that predict each of some tokens after vectors."""
        states = self.states(torch.cat([vectors, self.embed(tokens)]), changes or {})
        return states[len(vectors) - 1 : -1] @ self.w["lm_head.weight"].T


def changed(x: Tensor, site: str, layer: int, changes: Changes) -> Tensor:
    """Values (place, ..) after the changes at a site."""
    rows = list(x.unbind())
    for (of, at, place), change in changes.items():
        if (of, at) == (site, layer) and place < len(rows):
            rows[place] = change(rows[place])
    return torch.stack(rows)
