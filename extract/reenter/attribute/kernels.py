"""What a batch of pairs gives: scores of nodes and edges to first order, and what patching itself does."""

import numpy as np
import torch
from torch import Tensor

from extract.model.capture import KeyValues
from extract.model.reasoner import Reasoner
from extract.reenter.attribute.pairs import Nodes
from extract.reenter.attribute.passes import (
    Asked,
    Parts,
    Patcher,
    Tracer,
    difference,
    head_writes,
    question_cache,
    reading,
)

PATCHED_ROWS = 512
"""Rows (pairs times patched subgraphs) that are thought through together."""


def score_batch(
    reasoner: Reasoner, nodes: Nodes, clean: Asked, corrupted: Asked, steps: int, tried: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of nodes by pair, of edges summed over pairs, effects of patching, and what the question's scores lack.

    Parameters
    ----------
    steps
        Points on the way from the corrupted embeddings to the clean ones at which gradients are taken; 1: the
        corrupted.
    tried
        Nodes that are patched exactly.
    """
    (clean_values, clean_logit), (values, logit) = (_values(reasoner, asked) for asked in (clean, corrupted))
    change = clean_values.each(torch.sub, values)
    alike = clean.embedding.shape == corrupted.embedding.shape and torch.equal(clean.pad, corrupted.pad)
    way = clean.embedding - corrupted.embedding if alike else torch.zeros_like(corrupted.embedding)
    values_of = []
    for step in range(steps):
        point = corrupted.embedding + (0 if steps == 1 else (step + 0.5) / steps) * way
        values_of.append(_gradients(reasoner, corrupted, point))
        if len(values_of) == 2:
            (one, read, given), (other, other_read, other_given) = values_of
            values_of = [(one.each(torch.add, other), read + other_read, given + other_given)]
    gradient, received, by_question = values_of[0]
    score = change.each(lambda moved, slope: (moved * slope).float().sum(-1) / steps, gradient)
    one_each = np.zeros((len(tried), len(nodes)), dtype=bool)
    one_each[np.arange(len(tried)), tried] = True
    gap = clean_logit - logit
    residual = gap - (way * by_question).sum((-2, -1)) / steps if alike else torch.full_like(gap, torch.nan)
    arrays = {"score": nodes.flat(score), "edges": edge_sums(reasoner, change, received / steps),
              "residual": residual, "gap": gap}  # fmt: skip
    return {
        **{name: array.cpu().double().numpy() for name, array in arrays.items()},
        "exact": patch_nodes(reasoner, nodes, clean, corrupted, one_each).T,
    }


def patch_nodes(reasoner: Reasoner, nodes: Nodes, clean: Asked, corrupted: Asked, chosen: np.ndarray) -> np.ndarray:
    """How far the logit difference moves ``(condition, pair)`` where nodes ``(condition, node)`` get clean values."""
    n_pair = len(clean.pad)
    values, _ = _values(reasoner, clean)
    at_once = max(1, PATCHED_ROWS // n_pair)
    moved = np.empty((len(chosen), n_pair))
    with torch.no_grad():
        cache = question_cache(reasoner, corrupted)
        base = _branch(reasoner, corrupted, cache, 1, None)
        for start in range(0, len(chosen), at_once):
            part = chosen[start : start + at_once]
            copies = torch.arange(n_pair, device=reasoner.device).repeat(len(part))
            rows = values.each(lambda states, copies=copies: states[copies])
            editor = Patcher(rows, nodes.masks(part, n_pair, reasoner.device))
            logit = _branch(reasoner, corrupted, cache, len(part), editor)
            moved[start : start + at_once] = (logit.view(len(part), n_pair) - base).cpu().double().numpy()
    return moved


def edge_sums(reasoner: Reasoner, change: Parts, received: Tensor) -> Tensor:
    """Scores of edges ``(reader, sender, position)`` summed over pairs; 0 where the sender writes after the reader.

    Senders of a position: the vector fed, then the heads and the MLP of each layer; readers: attention and MLP of each
    layer, then the final norm.

    Parameters
    ----------
    change
        Clean values less corrupted ones.
    received : (pair, reader, position, hidden)
        Gradients of what readers read.
    """
    weights = head_writes(reasoner)
    n_pair, n_layer, n_position, n_head, _ = change.head_output.shape
    out = torch.zeros(2 * n_layer + 1, 1 + n_layer * (n_head + 1), n_position, device=weights.device)
    fed = torch.zeros(n_pair, n_position, received.shape[-1], device=weights.device)
    fed[:, 1 : change.fed.shape[1] + 1] = change.fed.float()
    received = received.float()
    out[:, 0] = torch.einsum("bph,brph->rp", fed, received)
    for layer in range(n_layer):
        written = torch.einsum("bpns,nsh->bpnh", change.head_output[:, layer], weights[layer]).float()
        after_heads, after_mlp = 2 * layer + 1, 2 * layer + 2
        first = 1 + layer * (n_head + 1)
        heads = torch.einsum("bpnh,brph->rnp", written, received[:, after_heads:])
        out[after_heads:, first : first + n_head] = heads
        mlp = change.mlp_output[:, layer].float()
        out[after_mlp:, first + n_head] = torch.einsum("bph,brph->rp", mlp, received[:, after_mlp:])
    return out


def _values(reasoner: Reasoner, asked: Asked) -> tuple[Parts, Tensor]:
    """Values of all parts, and the logit difference, untouched."""
    tracer = Tracer()
    with torch.no_grad():
        logit = difference(reasoner, asked, tracer)
    return tracer.parts(reasoner.n_layer), logit


def _gradients(reasoner: Reasoner, asked: Asked, embedding: Tensor) -> tuple[Parts, Tensor, Tensor]:
    """Gradients of the logit difference: of what parts write, of what they read, of the question's embeddings."""
    tracer = Tracer()
    embedding = embedding.detach().requires_grad_()
    here = Asked(pad=asked.pad, n_before=asked.n_before, embedding=embedding, tokens=asked.tokens, ids=asked.ids)
    with reading(reasoner, tracer):
        logit = difference(reasoner, here, tracer)
    tensors = [*tracer.tensors(), embedding]
    # What the first layer reads of a marker depends on nothing before it.
    depending = [value for value in tensors if value.requires_grad]
    gradients = torch.autograd.grad(logit.sum(), depending, allow_unused=True, materialize_grads=True)
    known = {id(value): torch.zeros_like(value) for value in tensors}
    known |= {id(value): gradient for value, gradient in zip(depending, gradients, strict=True)}
    return tracer.parts(reasoner.n_layer, known), tracer.received(reasoner.n_layer, known), known[id(embedding)]


def _branch(reasoner: Reasoner, asked: Asked, cache: KeyValues, n_copy: int, editor: Patcher | None) -> Tensor:
    """Logit differences of copies of a batch that go on from the same questions."""
    rows = torch.arange(len(asked.pad), device=asked.pad.device).repeat(n_copy)
    own = cache.take(rows, asked.n_before, cache.capacity, differentiable=True)
    return difference(reasoner, asked.rows(rows), editor, own)
