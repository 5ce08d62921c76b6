"""Runs whose problems are drawn from a law of which what analyses estimate is known, for ``calibration.py``."""

from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from analyze.heads.scores import head_scores
from analyze.heads.summary import head_table

Array = np.ndarray[Any, np.dtype[Any]]
THOUGHTS = ["ct0", "ct1", "ct2", "ct3"]
LAYERS, HEADS = 3, 4
SHARPNESS = 8.0
"""Of Dirichlet's law of an attention row: how near those of single problems are to their mean."""
N_NUMBER = 40
READ = {"bot": 0.1, "ct0": 0.3, "ct1": 0.8, "ct2": 0.5, "ct3": 0.6}
"""How often a state reads as the result of the first step; else as any number or a word."""


def labelled(values: Array, dims: tuple[str, ...], problem: Array, positions: list[str] | None = None) -> xr.DataArray:
    """Values of examples with labels; positions are thoughts where none are given."""
    positions = positions or [f"ct{index}" for index in range(values.shape[dims.index("position")])]
    labels: dict[str, Any] = {"example": np.arange(len(values)), "position": positions, "problem": ("example", problem)}
    return xr.DataArray(values, dims=dims, coords=labels)


@cache
def head_law(seed: int) -> Array:
    """Mean attention among the thoughts of each head, (layer, head, i, j); what is left to 1 goes to the question.

    Heads lie on a line from one that looks at the first thought to one that looks evenly, so that neighbours in rank
    differ little.
    """
    rng = np.random.default_rng(seed)
    strength = rng.permutation(np.linspace(0.5, 3, LAYERS * HEADS)).reshape(LAYERS, HEADS, 1, 1)
    n = len(THOUGHTS)
    weight = np.exp(strength * (np.arange(n) == 0) + 0.3 * rng.standard_normal((LAYERS, HEADS, n, n)))
    weight = np.where(np.tri(n, dtype=bool), weight, 0)
    return np.asarray(weight / (weight.sum(-1, keepdims=True) + 2))


def drawn_attention(rng: np.random.Generator, n: int, law: Array, problem: Array) -> xr.DataArray:
    """Attention of examples about the mean of each head; those of one problem are the same draw."""
    rest = 1 - law.sum(-1, keepdims=True)
    share = SHARPNESS * np.concatenate([law, rest], axis=-1)
    drawn = rng.gamma(np.broadcast_to(share, (n, *share.shape)))
    drawn = drawn[np.unique(problem, return_inverse=True)[1]]
    rows = (drawn / drawn.sum(-1, keepdims=True))[..., :-1]
    array = labelled(rows, ("example", "layer", "head", "position", "key_position"), problem, THOUGHTS)
    return array.assign_coords(layer=range(LAYERS), head=range(HEADS), key_position=THOUGHTS)


@cache
def true_heads(seed: int) -> xr.Dataset:
    """Scores and ranks of the heads of a law."""
    attention = drawn_attention(np.random.default_rng(0), 1, head_law(seed), np.zeros(1, dtype=int)).isel(example=0)
    scores = head_scores(attention.copy(data=head_law(seed)))
    ranks = head_table(scores).set_index(["layer", "head"])["rank"].to_xarray()
    return scores.assign(rank=ranks)


def model() -> xr.Dataset:
    """A read-out that names the unit a state lies along: the first are numbers, the last is a word."""
    strings = [*(f" {number}" for number in range(N_NUMBER)), " the"]
    size = len(strings)
    arrays: dict[str, Any] = {
        "unembedding": (("vocabulary", "hidden"), np.eye(size, dtype="float32")),
        "final_norm_weight": ("hidden", np.ones(size, dtype="float32")),
        "final_norm_bias": ("hidden", np.zeros(size, dtype="float32")),
        "token_string": ("vocabulary", np.array(strings, dtype=object)),
    }
    attrs: dict[str, Any] = {"final_norm": "rms_norm", "final_norm_epsilon": 1e-5, "n_layer": LAYERS, "n_head": HEADS}
    return xr.Dataset(arrays, attrs=attrs | dict.fromkeys(("eos_id", "pad_id", "bot_id", "eot_id"), size - 1))


def drawn_run(rng: np.random.Generator, n: int, name: str, *, seed: int = 0, turn: float = 0.0) -> xr.Dataset:
    """Problems ``a + b - c`` whose states read as ``a + b`` as often as :data:`READ` says, less by ``turn``.

    Parameters
    ----------
    seed
        Of the law of its heads.
    """
    a, b, c = rng.integers(3, 15, (3, n))
    result = np.stack([a + b, a + b - c], axis=1).astype("float64")
    share = np.array([*READ.values()]) - turn * np.arange(len(READ)) / len(READ)
    u = rng.random((n, len(READ)))
    other = np.where(rng.random(u.shape) < 0.5, rng.integers(0, N_NUMBER, u.shape), N_NUMBER)
    token = np.where(u < share, (a + b)[:, None], other)
    state = np.eye(N_NUMBER + 1, dtype="float32")[token][:, None] * 5
    state += 0.1 * rng.standard_normal(state.shape, dtype="float32")  # no two tokens are as likely
    problem = np.arange(n)
    states = labelled(state, ("example", "layer", "position", "hidden"), problem, [*READ])
    text = [f"{name}: {x}, then {y} more, {z} fewer" for x, y, z in zip(a, b, c, strict=True)]
    steps = [[f"{x}+{y}", f"{x + y}-{z}"] for x, y, z in zip(a, b, c, strict=True)]
    attention = drawn_attention(rng, n, head_law(seed), problem).rename(position="query")
    return xr.Dataset(
        {
            "hidden_state": states.assign_coords(layer=[LAYERS - 1]),
            "intermediate_result": (("example", "step"), result),
            "expression": (("example", "step"), np.array(steps, dtype=object)),
            "question": ("example", np.array(text, dtype=object)),
            "gold_answer": ("example", np.array([f"{x:g}" for x in result[:, 1]], dtype=object)),
            "predicted_answer": ("example", result[:, 1]),
            "attention": attention.rename(query="position").reindex(position=[*READ]),
        },
        attrs={"run": name},
    ).assign_coords(segment=("position", ["bot", *["latent"] * len(THOUGHTS)]))
