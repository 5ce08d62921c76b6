"""What makes the vector fed at a thought from the state before."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from extract.model.checkpoint import misfits, some
from extract.model.protocols import Protocol
from schemas import UsageError


class Projection(nn.Module):
    """From the state at one thought to the vector fed at the next."""

    def __init__(self, hidden: int, inner: int, *, with_norm: bool) -> None:
        super().__init__()
        self.add_module("1", nn.Linear(hidden, inner))
        self.add_module("3", nn.Linear(inner, hidden))
        if with_norm:
            self.add_module("ln", nn.LayerNorm(hidden))

    def forward(self, state: Tensor) -> Tensor:
        """Linear, exact GELU, linear, and a layer norm unless it was trained without."""
        parts = self._modules
        out: Tensor = parts["3"](nn.functional.gelu(parts["1"](state)))  # type: ignore[misc]
        norm = parts.get("ln")
        return norm(out) if norm is not None else out


class Constant(nn.Module):
    """The same learned vector at every thought, whatever the state before."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(hidden))

    def forward(self, state: Tensor) -> Tensor:
        """Vector ``(hidden,)`` for every row of ``state``."""
        return self.vector.expand_as(state)


class Mixture(nn.Module):
    """Embeddings of the words that a state makes likeliest, mixed by their probabilities (Soft Thinking, 2505.15778).

    ``logits`` gives those of all words from states ``(..., hidden)``, ``embed`` the vectors that tokens are fed as.
    """

    def __init__(self, rule: Protocol) -> None:
        super().__init__()
        self.rule = rule
        self.logits: Callable[[Tensor], Tensor]
        self.embed: Callable[[Tensor], Tensor]

    def words(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``(..., word)`` of the words that are mixed, float32, the likeliest first; and their tokens."""
        rule = self.rule
        every = torch.softmax(self.logits(state).float() / rule.temperature, -1)
        tokens = every.topk(min(rule.top_k or every.shape[-1], every.shape[-1]), -1).indices
        share = every.gather(-1, tokens)
        share = share / share.sum(-1, keepdim=True)
        kept = (share.cumsum(-1) - share < rule.top_p) & (share >= rule.min_p * share[..., :1])
        share = share.where(kept, 0)[..., : rule.max_topk]
        return share / share.sum(-1, keepdim=True), tokens[..., : rule.max_topk]

    def forward(self, state: Tensor) -> Tensor:
        """Vector ``(..., hidden)``, mixed in float32."""
        share, tokens = self.words(state)
        return (share[..., None] * self.embed(tokens).float()).sum(-2).to(state.dtype)


def feeding_of(rule: Protocol, weights: Mapping[str, Tensor], hidden: int, source: str) -> nn.Module:
    """What makes the vector fed at a thought from the state before."""
    if rule.fed in ("state", "nothing"):
        return nn.Identity()
    if rule.fed == "mixture":
        return Mixture(rule)
    own: dict[str, tuple[int, ...]] = {}
    if rule.fed == "vector":
        # A vector may have been saved with dims of one around it.
        weights = {name: value.reshape(-1) if value.numel() == hidden else value for name, value in weights.items()}
        names = {rule.vector: rule.vector}
        feeding: nn.Module = Constant(hidden)
        own = {rule.vector: (hidden,)}
    else:
        what, (first, second, norm) = rule.projection
        inner = weights.get(f"{first}.weight")
        with_norm = any(key.startswith(f"{norm}.") for key in weights)
        feeding = Projection(
            hidden, len(inner) if inner is not None and inner.ndim == 2 else hidden, with_norm=with_norm
        )
        meanings = {"1": first, "3": second, "ln": norm}
        for name, value in feeding.state_dict().items():
            part, _, kind = name.partition(".")
            own[f"{meanings[part]}.{kind}"] = tuple(value.shape)
        names = {key: f"{what}.{key}" for key in own.keys() | weights.keys()}
    named = {names.get(key, key): value for key, value in weights.items()}
    problems = misfits(named, {names[key]: shape for key, shape in own.items()})
    if not_finite := [name for name, value in named.items() if not bool(torch.isfinite(value).all())]:
        problems.append(f"not finite {some(not_finite)}")
    if empty := [name for name, value in named.items() if value.numel() > hidden and not value.any()]:
        problems.append(f"zero throughout {some(empty)}")
    if problems:
        kind = "projection" if rule.fed == "projection" else "learned vector"
        raise UsageError(f"{kind} of {source} (protocol {rule.name}) does not fit: {'; '.join(problems)}")
    ordered = zip(feeding.state_dict(), own, strict=True)
    feeding.load_state_dict({name: weights[key].float() for name, key in ordered}, strict=True)
    return feeding


def new_feeding(rule: Protocol, words: Tensor) -> nn.Module:
    """What feeds the thoughts of a model that is to be trained, from its word embeddings ``(word, hidden)``."""
    if rule.fed == "mixture":
        raise UsageError(f"protocol {rule.name} is not trained: it feeds a language model mixtures of its own words")
    hidden = words.shape[1]
    if rule.fed == "vector":
        constant = Constant(hidden)
        constant.vector.data = words.mean(0)
        return constant
    if rule.fed != "projection":
        return nn.Identity()
    projection = Projection(hidden, hidden, with_norm=True)
    norm = projection.get_submodule("ln")
    nn.init.constant_(norm.weight, float(words.square().mean().sqrt()))  # type: ignore[arg-type]
    return projection
