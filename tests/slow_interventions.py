"""Interventions by a slow reference: the whole sequence anew for every position, one problem, eager attention."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from transformers import AttentionInterface

from extract import Reasoner
from schemas import Intervention, position_offset

Change = Callable[[Tensor], Tensor]
INSIDE: dict[tuple[str, int], list[tuple[int, Change]]] = {}
"""By site and layer, what is changed in the reference's attention: rows ``(head, key)`` of query places, and keys and
values ``(key head, head_size)`` of places."""


def reference_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    for site, cached in (("key", key), ("value", value)):
        for place, change in INSIDE.get((site, module.layer_idx), []):
            if place < cached.shape[2]:
                cached[0, :, place] = change(cached[0, :, place].clone())
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    n = query.shape[2]
    scores = (query @ key.mT * scaling).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    weights = scores.softmax(-1)
    for place, change in INSIDE.get(("attention", module.layer_idx), []):
        if place < n:
            weights[0, :, place] = change(weights[0, :, place].clone())
    return (weights @ value).transpose(1, 2), None


@contextmanager
def patched(reasoner: Reasoner, changes: list[tuple[str, int, int, Change]]) -> Iterator[None]:
    """Plain hooks on the model, at absolute places of an unpadded sequence."""
    body = reasoner.model.base_model
    blocks = body.h if reasoner.architecture == "gpt2" else body.layers
    handles = []

    def hidden_hook(place: int, change: Change) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            if place < stream.shape[1]:
                stream = stream.clone()
                stream[0, place] = change(stream[0, place])
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    def head_hook(place: int, change: Change) -> Callable[..., Any]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            value = inputs[0].clone()
            if place < value.shape[1]:
                value[0, place] = change(value[0, place].reshape(reasoner.n_head, -1)).reshape(-1)
            return (value,)

        return hook

    INSIDE.clear()
    for site, layer, place, change in changes:
        if site in ("hidden_state", "mlp_output", "attention_output"):
            attention = "attn" if reasoner.architecture == "gpt2" else "self_attn"
            name = {"hidden_state": "", "mlp_output": "mlp", "attention_output": attention}[site]
            handles.append(blocks[layer].get_submodule(name).register_forward_hook(hidden_hook(place, change)))
        elif site == "head_output":
            block = blocks[layer]
            module = block.attn.c_proj if reasoner.architecture == "gpt2" else block.self_attn.o_proj
            handles.append(module.register_forward_pre_hook(head_hook(place, change)))
        elif site != "latent_embedding":
            INSIDE.setdefault((site, layer), []).append((place, change))
    before = reasoner.model.config._attn_implementation
    reasoner.model.config._attn_implementation = "slow_reference"
    try:
        yield
    finally:
        reasoner.model.config._attn_implementation = before
        for handle in handles:
            handle.remove()


@torch.no_grad()
def slowly(
    reasoner: Reasoner,
    prompt: list[int],
    changes: list[tuple[str, int, int, Change]],
    answers: list[str],
    n_new: int = 4,
) -> dict[str, Any]:
    """Think one problem through with changes at absolute places; log probabilities and the answer."""
    embed = reasoner.model.get_input_embeddings()
    latents = {place: change for site, _, place, change in changes if site == "latent_embedding"}

    def states(vectors: Tensor) -> Tensor:
        return reasoner.model.base_model(inputs_embeds=vectors).last_hidden_state[0]

    with patched(reasoner, changes):
        vectors = embed(torch.tensor([prompt]))
        for _ in range(6):
            fed = reasoner.projection(states(vectors)[-1])
            fed = latents.get(vectors.shape[1], lambda x: x)(fed)
            vectors = torch.cat([vectors, fed[None, None]], dim=1)
        vectors = torch.cat([vectors, embed(torch.tensor([[reasoner.eot_id]]))], dim=1)
        head = vectors.shape[1]
        log_p = []
        for answer in answers:
            tokens = reasoner.answer_tokens(answer)
            with_answer = torch.cat([vectors, embed(torch.tensor([tokens]))], dim=1)
            log_p.append(reasoner.logits(states(with_answer)[head - 1 : -1]).log_softmax(-1))
        logprob = [
            float(each.gather(-1, torch.tensor(tokens)[:, None])[reasoner.prefix_length(answer) :].sum())
            for each, answer in zip(log_p, answers, strict=True)
            for tokens in [reasoner.answer_tokens(answer)]
        ]
        one, other = (reasoner.answer_tokens(answer) for answer in answers[:2])
        place = next(index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        start = min(reasoner.answer_start(answer) for answer in answers)
        tokens: list[int] = []
        while len(tokens) < n_new and (not tokens or tokens[-1] != reasoner.eos_id):
            tokens.append(int(reasoner.logits(states(vectors)[-1])[:-1].argmax()))
            vectors = torch.cat([vectors, embed(torch.tensor([[tokens[-1]]]))], dim=1)
    return {
        "answer_logprob": logprob,
        "logit_difference": float(log_p[0][place, one[place]] - log_p[0][place, other[place]]),
        "distribution": log_p[0][start],
        "generated_text": reasoner.decode(tokens),
    }


def stored_value(
    reasoner: Reasoner, run: xr.Dataset, intervention: Intervention, index: int, layer: int, position: str
) -> Tensor:
    """What a run holds of an example at a place, or the model computes again."""
    site = intervention.site
    if site not in run:
        found = reasoner.think([reasoner.encode(str(run.question.values[index]))], parts=[site],
                               stored_dtype="float32", max_new_tokens=1)  # fmt: skip
        return torch.tensor(found.parts[site][0, layer, position_offset(position)])
    array = run[site].isel(example=index)
    array = array.sel(latent=position) if layer < 0 else array.sel(layer=layer, position=position)
    if site == "attention":
        array = array.sel(key_position=list(intervention.keys))
    return torch.tensor(array.values.astype("float32"))


def value_put_in(
    reasoner: Reasoner, run: xr.Dataset, intervention: Intervention, row: int, layer: int, position: str
) -> Tensor:
    """The mean, noise or donor's value that an operation puts in, if it puts one in."""
    n, operation = run.sizes["example"], intervention.operation

    def stored(index: int, position: str = position) -> Tensor:
        return stored_value(reasoner, run, intervention, index, layer, position)

    if operation == "mean":
        chosen = {"position": range(n), "run": range(n), "correct": range(0, n, 3),
                  "wrong": [i for i in range(n) if i % 3]}[intervention.average]  # fmt: skip
        spots = [position] if intervention.average != "run" else [f"ct{index}" for index in range(6)]
        return torch.stack([stored(index, spot) for index in chosen for spot in spots]).mean(0)
    if operation == "noise":
        spread = torch.stack([stored(index) for index in range(n)]).std(0, correction=0)
        seed = [intervention.seed, row, layer + 1, position_offset(position) + 10_000]
        draw = np.random.default_rng(seed).standard_normal(spread.shape, dtype=np.float32)
        return intervention.strength * spread * torch.tensor(draw)
    if operation == "resample" or intervention.donor == "other":
        others = [index for index in range(0, n, 2) if index // 2 != row // 2]
        return stored(int(np.random.default_rng([intervention.seed, row]).choice(others)))
    return stored(row + 1 - 2 * (row % 2) if intervention.donor == "twin" else row)


def changed_attention(
    old: Tensor, intervention: Intervention, new: Tensor, bot: int, seed: list[int], heads: list[int]
) -> Tensor:
    """Rows of attention ``(head, key)`` of one query."""
    operation = intervention.operation
    columns = [bot + position_offset(key) for key in intervention.keys]
    part = old[heads]
    if operation in ("zero", "scale"):
        part[:, columns] *= 0 if operation == "zero" else intervention.strength
        part = part / part.sum(-1, keepdim=True)
    elif operation in ("even", "shuffle"):
        places = sorted(column for column in columns if column >= 0)
        draws = np.random.default_rng(seed).standard_normal((len(old), len(columns)), dtype=np.float32)
        for line, drawn in zip(part, draws[heads, -len(places) :], strict=True):
            got = line[places].clone()
            line[places] = got.mean() if operation == "even" else got[drawn.argsort()]
    elif operation == "force":
        part = torch.zeros_like(part)
        part[:, columns] = 1 / len(columns)
    elif intervention.donor != "forward" or operation != "replace":
        part[:, columns] = 0
        part = part / part.sum(-1, keepdim=True) * (1 - new[heads].sum(-1, keepdim=True))
        part[:, columns] = new[heads]
    old[heads] = part
    return old


def changed_state(old: Tensor, reasoner: Reasoner, intervention: Intervention, new: Tensor, layer: int) -> Tensor:
    """A changed state, vector fed, or values of some heads."""
    operation, strength = intervention.operation, intervention.strength
    if operation in ("replace", "replace_in") and intervention.donor == "forward":
        return old
    if operation in ("project_out", "replace_in", "write"):
        onto = projector(reasoner, layer, intervention.subspace)
        wanted = {"project_out": centre(reasoner), "write": direction(reasoner, layer)}.get(operation, new)
        return old + strength * onto @ (wanted - old)
    if operation == "add":
        return old + strength * direction(reasoner, layer)
    if operation in ("zero", "scale"):
        return old * (0 if operation == "zero" else strength)
    return old + new if operation == "noise" else new


def reference_changes(
    reasoner: Reasoner, run: xr.Dataset, intervention: Intervention, row: int, prompt: list[int]
) -> list[tuple[str, int, int, Change]]:
    """What an intervention means, written down once more from its definition."""
    bot = len(prompt) - 1
    site, operation = intervention.site, intervention.operation
    n_head = reasoner.n_cache_head if site in ("key", "value") else reasoner.n_head
    heads = list(intervention.heads or range(n_head))
    takes = operation in ("mean", "noise", "resample") or (
        operation in ("replace", "replace_in") and intervention.donor != "forward"
    )
    changes: list[tuple[str, int, int, Change]] = []
    for layer, position in itertools.product(intervention.layers or (-1,), intervention.positions):
        # Now, not inside the hooks: it may need the model itself.
        new = value_put_in(reasoner, run, intervention, row, layer, position) if takes else torch.zeros(n_head)
        seed = [intervention.seed, row, layer + 1, position_offset(position) + 10_000]

        def change(old: Tensor, new: Tensor = new, layer: int = layer, seed: list[int] = seed) -> Tensor:
            if site == "attention":
                return changed_attention(old, intervention, new, bot, seed, heads)
            if site in ("head_output", "key", "value"):
                old[heads] = changed_state(old[heads], reasoner, intervention, new[heads], layer)
                return old
            return changed_state(old, reasoner, intervention, new, layer)

        changes.append((site, layer, bot + position_offset(position), change))
    return changes


AttentionInterface.register("slow_reference", reference_attention)


def direction(reasoner: Reasoner, layer: int) -> Tensor:
    return torch.linspace(-1, 1, reasoner.hidden) * (layer + 2)


def factors(reasoner: Reasoner, layer: int) -> tuple[Tensor, Tensor]:
    """Vectors that span an oblique subspace of rank 3, and those that read coordinates in it, ``(3, hidden)`` each."""
    generator = torch.Generator().manual_seed(layer + 7)
    basis, other = (torch.randn(3, reasoner.hidden, generator=generator) for _ in range(2))
    return basis, torch.linalg.solve(other @ basis.mT, other)


def centre(reasoner: Reasoner) -> Tensor:
    return torch.linspace(0, 0.5, reasoner.hidden)


def projector(reasoner: Reasoner, layer: int, name: str) -> Tensor:
    """Onto the subspace, from its definition: an idempotent matrix."""
    if not name:
        return torch.eye(reasoner.hidden)
    basis, dual = factors(reasoner, layer)
    if name == "straight":
        return basis.mT @ torch.linalg.inv(basis @ basis.mT) @ basis
    return basis.mT @ dual


def named_values(reasoner: Reasoner) -> tuple[dict[str, xr.DataArray], dict[str, xr.Dataset]]:
    """A direction of every layer, and two subspaces."""
    layers = range(-1, reasoner.n_layer)
    ramp = np.stack([direction(reasoner, layer).numpy() for layer in layers])
    oblique = [factors(reasoner, layer) for layer in layers]
    arrays = {
        "straight": {"basis": [torch.linalg.qr(basis.mT)[0].mT for basis, _ in oblique]},
        "oblique": {"basis": [basis for basis, _ in oblique], "dual": [dual for _, dual in oblique]},
    }
    subspaces = {
        name: xr.Dataset(
            {key: (("layer", "rank", "hidden"), np.stack(each)) for key, each in found.items()}
            | {"mean": ("hidden", centre(reasoner).numpy())},
            coords={"layer": layers},
        )
        for name, found in arrays.items()
    }
    return {"ramp": xr.DataArray(ramp, dims=("layer", "hidden"), coords={"layer": layers})}, subspaces
