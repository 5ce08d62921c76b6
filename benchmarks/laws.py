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
READ = {"bot": 0.05, "ct0": 0.1, "ct1": 0.4, "ct2": 0.2, "ct3": 0.3}
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


LEAST_OPERAND, N_OPERAND, MOST_TAKEN = 3, 12, 5


def read_shares(turn: float = 0.0) -> Array:
    """How often each state of :func:`drawn_run` is meant to read as the first result."""
    return np.array([*READ.values()]) * (1 - turn * np.arange(len(READ)) / (len(READ) - 1))


def drawn_run(
    rng: np.random.Generator, n: int, name: str, *, heads: int = 0, turn: float = 0.0, readable: bool = True
) -> xr.Dataset:
    """Problems ``a + b - c`` of whose states some read as ``a + b``, others as any number or the word.

    Parameters
    ----------
    heads
        Which law its heads have.
    turn
        How much less the last thought reads as the result than :data:`READ` says, by degrees from the first on.
    readable
        Whether any thought reads as it but by chance.
    """
    a, b = rng.integers(LEAST_OPERAND, LEAST_OPERAND + N_OPERAND, (2, n))
    c = rng.integers(1, MOST_TAKEN + 1, n)
    result = np.stack([a + b, a + b - c], axis=1).astype("float64")
    u = rng.random((n, len(READ)))
    other = np.where(rng.random(u.shape) < 0.5, rng.integers(0, N_NUMBER, u.shape), N_NUMBER)
    token = np.where((u < read_shares(turn)) & readable, (a + b)[:, None], other)
    state = np.eye(N_NUMBER + 1, dtype="float32")[token][:, None] * 5
    state += 0.1 * rng.standard_normal(state.shape, dtype="float32")  # no two tokens are as likely
    problem = np.arange(n)
    states = labelled(state, ("example", "layer", "position", "hidden"), problem, [*READ])
    text = [f"{name}: {x}, then {y} more, {z} fewer" for x, y, z in zip(a, b, c, strict=True)]
    steps = [[f"{x}+{y}", f"{x + y}-{z}"] for x, y, z in zip(a, b, c, strict=True)]
    attention = drawn_attention(rng, n, head_law(heads), problem)
    return xr.Dataset(
        {
            "hidden_state": states.assign_coords(layer=[LAYERS - 1]),
            "intermediate_result": (("example", "step"), result),
            "expression": (("example", "step"), np.array(steps, dtype=object)),
            "question": ("example", np.array(text, dtype=object)),
            "gold_answer": ("example", np.array([f"{x:g}" for x in result[:, 1]], dtype=object)),
            "predicted_answer": ("example", result[:, 1]),
            "attention": attention.reindex(position=[*READ]),
        },
        attrs={"run": name},
    ).assign_coords(segment=("position", ["bot", *["latent"] * len(THOUGHTS)]))


def profiles(turn: float = 0.0) -> Array:
    """What states of :func:`drawn_run` read as: either result, another number, anything else, (position, reads)."""
    rest = (1 - read_shares(turn)) / 2
    by_chance = rest / N_NUMBER
    return np.stack([read_shares(turn) + by_chance, by_chance, rest - 2 * by_chance, rest], axis=-1)


def other_share() -> Array:
    """How often a state reads as the first result of another problem, (position,)."""
    sums = np.add.outer(np.arange(N_OPERAND), np.arange(N_OPERAND)).ravel()
    same = float(((np.bincount(sums) / len(sums)) ** 2).sum())
    return read_shares() * same + (1 - read_shares()) / 2 / N_NUMBER


def carried_runs(rng: np.random.Generator, n: int, *, shared: bool) -> dict[str, xr.Dataset]:
    """Two runs whose states carry whether the answer is right along directions 45 degrees apart.

    Parameters
    ----------
    shared
        Whether they are of the same problems, with half of the noise in common.
    """
    common = rng.standard_normal((n, 8))
    half = np.arange(n) % 2 == 0
    side = rng.permutation(half)
    runs = {}
    for name, direction in (("a/x", [1.0, 0.0]), ("b/x", [0.5**0.5, 0.5**0.5])):
        own = rng.standard_normal((n, 8))
        right = side if shared else rng.permutation(half)
        state = np.sqrt(0.5) * (own + (common if shared else rng.standard_normal((n, 8))))
        state[:, :2] += 2 * (right[:, None] - 0.5) * direction
        states = labelled(state[:, None, None].astype("float32"), ("example", "layer", "position", "hidden"),
                          np.arange(n)).assign_coords(layer=[0])  # fmt: skip
        texts = np.array([f"question {index} of {'both' if shared else name}" for index in range(n)], dtype=object)
        runs[name] = xr.Dataset(
            {"hidden_state": states, "correct": ("example", right), "question": ("example", texts)}, attrs={"run": name}
        )
    return runs
