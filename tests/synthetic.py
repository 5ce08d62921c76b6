"""Runs and models made up in memory, labelled as a lake hands them out. For tests of everything that reads a lake."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from schemas import MODEL_VARIABLES, RUN_VARIABLES, fingerprint, latent_labels, position_coords, position_labels
from store import RunLayout, create_run, write_model

OPERATORS = np.array(["+", "-", "*", "/"], dtype=object)


def make_model(*, n_vocabulary: int = 40, hidden: int = 8, final_norm: str = "layer_norm", seed: int = 0) -> xr.Dataset:
    """Read-out of a model: tokens 0 .. are the numbers " 0", " 1" ..; the last eight are operators and words."""
    rng = np.random.default_rng([seed, 1])
    words = ["+", "-", "*", "/", " the", "<pad>", "<bot>", "<eot>"]
    strings = [f" {number}" for number in range(n_vocabulary - len(words))] + words
    bias = rng.normal(size=hidden) / 4 if final_norm == "layer_norm" else np.zeros(hidden)
    return xr.Dataset(
        {
            "unembedding": (("vocabulary", "hidden"), rng.normal(size=(n_vocabulary, hidden)).astype("float32")),
            "final_norm_weight": ("hidden", rng.uniform(0.5, 1.5, hidden).astype("float32")),
            "final_norm_bias": ("hidden", bias.astype("float32")),
            "token_string": ("vocabulary", np.array(strings, dtype=object)),
        },
        attrs={
            "final_norm": final_norm,
            "final_norm_epsilon": 1e-5,
            "architecture": "gpt2" if final_norm == "layer_norm" else "llama",
            "n_layer": 3,
            "n_head": 2,
            "pad_id": n_vocabulary - 3,
            "bot_id": n_vocabulary - 2,
            "eot_id": n_vocabulary - 1,
            "eos_id": n_vocabulary - 3,
        },
    )


def normalise(state: np.ndarray, model: xr.Dataset) -> np.ndarray:
    """Final norm of a model, over the last axis, by its definition."""
    state = state.astype("float64")
    if model.attrs["final_norm"] == "layer_norm":
        state = state - state.mean(-1, keepdims=True)
    scale = np.sqrt((state**2).mean(-1, keepdims=True) + model.attrs["final_norm_epsilon"])
    return np.asarray(state / scale * model["final_norm_weight"].values + model["final_norm_bias"].values)


def made_answers(rng: np.random.Generator, n_example: int, n_step: int, n_number: int) -> dict[str, Any]:
    """Questions, chains of 1 .. ``n_step`` results below ``n_number``, and answers, six in ten of them right."""
    n_used = rng.integers(1, n_step + 1, n_example)
    unused = np.arange(n_step) >= n_used[:, None]
    result = np.where(unused, np.nan, rng.integers(0, n_number, (n_example, n_step)).astype(float))
    operation = np.where(unused, "", rng.choice(OPERATORS, (n_example, n_step)))
    gold = result[np.arange(n_example), n_used - 1]
    correct = rng.random(n_example) < 0.6
    return {
        "question": np.array([f"question {label}" for label in range(n_example)], dtype=object),
        "gold_answer": np.array([f"{number:g}" for number in gold], dtype=object),
        "generated_text": np.array([f"The answer is: {number:g}" for number in gold], dtype=object),
        "predicted_answer": np.where(correct, gold, gold + 1),
        "correct": correct,
        "intermediate_result": result,
        "operation": operation.astype(object),
    }


def made_attention(rng: np.random.Generator, exists: np.ndarray, n_layer: int, n_head: int) -> np.ndarray:
    """Causal attention between the places ``(example, key)`` that exist; its rows sum to 1."""
    n_example, n_key = exists.shape
    logit = rng.normal(size=(n_example, n_layer, n_head, n_key, n_key))
    seen = exists[:, :, None] & exists[:, None, :] & np.tri(n_key, dtype=bool)  # (example, query, key)
    weight = np.where(seen[:, None, None], np.exp(logit), 0.0)
    return np.asarray(weight / np.maximum(weight.sum(-1, keepdims=True), 1e-30))


def make_run(
    *,
    name: str = "made-up/problems",
    n_example: int = 12,
    n_layer: int = 3,
    n_head: int = 2,
    hidden: int = 8,
    n_question: int = 5,
    n_answer: int = 3,
    n_latent: int = 6,
    n_step: int = 3,
    capture: str = "latent",
    twins: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    model: xr.Dataset | None = None,
    chunks: Mapping[str, int] | None = None,
    **changes: Any,
) -> xr.Dataset:
    """Run of random numbers that keeps every promise of the layout.

    Questions are 2 .. ``n_question`` tokens long (padded on the left), answers 1 .. ``n_answer``; attention is causal
    and its rows sum to 1; ``final_state`` is the final norm of the last layer's ``hidden_state`` under ``model``.

    Parameters
    ----------
    capture
        As in a run's spec; ``"latent"`` leaves the question's queries out.
    twins
        Whether examples come in clean/corrupted pairs that share ``problem``.
    model
        From :func:`make_model`; one of the same ``hidden`` and ``seed`` is made if absent.
    chunks
        Chunk sizes by dim, to get dask arrays; plain numpy if absent.
    **changes
        Variables or coordinates that replace the made-up ones: an array (the variable keeps its dims) or a pair
        ``(dims, array)``.
    """
    rng = np.random.default_rng(seed)
    model = make_model(hidden=hidden, seed=seed) if model is None else model
    n_vocabulary = model.sizes["vocabulary"]
    keys = position_labels(n_question, n_answer, n_latent)
    n_key, bot = len(keys), n_question
    first = 0 if capture == "full" else bot
    queries = keys[first:]

    start = bot - rng.integers(2, n_question + 1, n_example)
    stop = bot + n_latent + 2 + rng.integers(1, n_answer + 1, n_example)
    place = np.arange(n_key)
    exists = (place >= start[:, None]) & (place < stop[:, None])  # (example, key)

    attention = made_attention(rng, exists, n_layer, n_head)

    state = rng.normal(size=(n_example, n_layer, n_key, hidden)).astype(dtype)
    state[~np.broadcast_to(exists[:, None, :], state.shape[:3])] = np.nan
    token = np.where(exists, rng.integers(0, n_vocabulary - 3, (n_example, n_key)), -1)
    token[:, bot + 1 : bot + 1 + n_latent] = -1  # thoughts are vectors, not tokens
    token[:, bot], token[:, bot + 1 + n_latent] = n_vocabulary - 2, n_vocabulary - 1

    answers = made_answers(rng, n_example, n_step, n_vocabulary - 8)
    example = np.arange(n_example)
    values: dict[str, Any] = {
        "hidden_state": state[:, :, first:],
        "final_state": normalise(state[:, -1, first:], model).astype(dtype),
        "latent_embedding": rng.normal(size=(n_example, n_latent, hidden)).astype(dtype),
        "attention": attention[..., first:, :].astype(dtype),
        "token": token[:, first:].astype("int32"),
        **answers,
        "answer_logprob": -rng.exponential(size=n_example),
        "committed": np.ones(n_example, dtype=bool),
    }
    variables = {key: (RUN_VARIABLES[key].dims, value) for key, value in values.items()}
    coords: dict[str, Any] = {
        "example": example,
        "problem": ("example", example // 2 if twins else example),
        "variant": (
            "example",
            np.array([("clean", "corrupted")[i % 2] if twins else "" for i in example], dtype=object),
        ),
        "layer": np.arange(n_layer),
        "head": np.arange(n_head),
        "latent": np.array(latent_labels(n_latent), dtype=object),
        "position": np.array(queries, dtype=object),
        "key_position": np.array(keys, dtype=object),
        **position_coords(queries, n_latent),
    }
    for key, value in changes.items():
        target = coords if key in coords else variables
        target[key] = value if isinstance(value, tuple) or key not in variables else (variables[key][0], value)
    run = xr.Dataset(
        variables,
        coords=coords,
        attrs={
            "run": name,
            "spec": json.dumps({"capture": capture, "dtype": dtype}),
            "fingerprint": fingerprint({"run": name, "seed": seed, "sizes": [n_example, n_layer, n_head, hidden]}),
        },
    )
    for key, variable in run.data_vars.items():
        if key in RUN_VARIABLES:
            variable.attrs = {"units": RUN_VARIABLES[str(key)].units, "long_name": RUN_VARIABLES[str(key)].long_name}
    return run if chunks is None else run.chunk(dict(chunks))


def thought_attention(
    matrices: Mapping[tuple[int, int], Sequence[Sequence[float]] | np.ndarray],
    *,
    n_layer: int | None = None,
    n_head: int | None = None,
) -> xr.DataArray:
    """Attention of a few heads given by (layer, head), from what ct0 .. ct5 pay each other.

    Parameters
    ----------
    matrices
        Square (query, key), lower triangle; what is missing to 1 in a row goes to the question. Heads that are not
        given have NaN.

    Returns
    -------
    (layer, head, position, key_position), keys ``q-1, bot, ct0 ..``, queries ``bot, ct0 ..``
    """
    n_layer = 1 + max(layer for layer, _ in matrices) if n_layer is None else n_layer
    n_head = 1 + max(head for _, head in matrices) if n_head is None else n_head
    n_latent = len(next(iter(matrices.values())))
    labels = position_labels(1, 0, n_latent)[:-1]
    attention = np.full((n_layer, n_head, len(labels) - 1, len(labels)), np.nan)
    for (layer, head), matrix in matrices.items():
        block = attention[layer, head]
        block[:] = 0.0
        block[1:, 2:] = np.asarray(matrix)
        block[:, 0] = 1 - block.sum(-1)
    return xr.DataArray(
        attention,
        dims=("layer", "head", "position", "key_position"),
        coords={
            "layer": np.arange(n_layer),
            "head": np.arange(n_head),
            "position": np.array(labels[1:], dtype=object),
            "key_position": np.array(labels, dtype=object),
        },
        name="attention",
    )


def write_run(
    lake: str | Path,
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    shard_examples: int | None = None,
    shards: Sequence[int] | None = None,
    weights: str | None = None,
) -> str:
    """Put a made-up run and its model into a lake through the store, as an extraction would; returns the run's name.

    ``shards`` are written where they are named, as of an extraction that is at work.
    """
    name = str(run.attrs["run"])
    keys = [str(key) for key in run["key_position"].values]
    layout = RunLayout(
        n_example=run.sizes["example"],
        n_layer=run.sizes["layer"],
        n_head=run.sizes["head"],
        hidden=run.sizes["hidden"],
        n_latent=run.sizes["latent"],
        longest_question=keys.index("bot"),
        n_answer=len(keys) - keys.index("eot") - 1,
        capture=json.loads(run.attrs["spec"])["capture"],
        dtype=str(run["hidden_state"].dtype),
    )
    if shard_examples is not None:
        layout = replace(layout, shard_bytes=shard_examples * layout.example_bytes)
    write_model(
        lake,
        name.split("/")[0],
        lambda: {key: model[key].values for key in MODEL_VARIABLES},
        {**model.attrs, "fingerprint": {"weights": weights or name}},
    )
    static = ("question", "gold_answer", "intermediate_result", "operation")
    columns = {key: (("example",), run[key].values) for key in ("example", "problem", "variant")}
    columns |= {key: (run[key].dims, run[key].values) for key in static}
    identity = {"spec": json.loads(run.attrs["spec"]), "data": {"name": name, "sha256": run.attrs["fingerprint"]}}
    writer = create_run(lake, name, layout, identity=identity, columns=columns)
    labels = {"position": layout.positions, "key_position": layout.key_positions}
    for shard in range(layout.n_shard) if shards is None else shards:
        values = {}
        for key, buffer in writer.empty(shard).items():
            part = run[key].isel(example=layout.shard_slice(shard))
            wanted = {dim: labels[str(dim)] for dim in part.dims if dim in labels}
            values[key] = part.reindex(wanted, fill_value=RUN_VARIABLES[key].fill).values.astype(buffer.dtype)
        writer.write_shard(shard, values)
    return name


def no_compute() -> dask.config.set:
    """Within it whatever is computed fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was computed that must stay lazy")

    return dask.config.set(scheduler=refuse)
