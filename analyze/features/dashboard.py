"""A dictionary's features as the JSON that SAEDashboard writes and Neuronpedia takes in.

One source for each layer that the dictionary was learned at, as Neuronpedia's are of one layer: a folder with files
``batch-N.json``, each ``{model_id, layer, sae_set, sae_id_suffix, features}``. A text of theirs is a problem: the
words of its question, on which nothing was read, then the positions by name, with the feature's codes there.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analyze.features.pages import direct_logits
from analyze.lens.readout import ReadOut
from analyze.sae.codes import sae_codes
from analyze.sae.dictionary import activation_of
from schemas import UsageError
from schemas.codes import dictionaries
from schemas.progress import Progress, silent
from schemas.whole_files import check_outside, write_whole

Array = np.ndarray[Any, np.dtype[Any]]
BATCH = 128
"""Features of a file."""
BLOCK = 64
"""Examples whose codes are held at once."""
N_TOP, N_TOKEN, N_BAR, N_ALIGNED = 20, 10, 40, 3
"""Texts and tokens told of each feature, bars of its histograms, and components of the states that it lies along."""


@dataclass(frozen=True, slots=True)
class Fired:
    """Where the features of a dictionary fire at one layer."""

    row: Array
    """(feature, top): rows of the examples on which it fires most, -1: on no more."""
    code: Array
    """(feature, top, position): its codes there."""
    share: Array
    """(feature,) of the states at which it fires."""
    low: Array
    """(feature,): the smallest code that is not 0."""
    high: Array
    """(feature,): the largest."""
    count: Array
    """(feature, bar): codes between these, by size."""


def write_dashboards(
    sae: xr.Dataset, run: xr.Dataset, model: xr.Dataset, folder: Path, progress: Progress = silent
) -> list[Path]:
    """Write the features of a dictionary of one run for SAEDashboard and Neuronpedia.

    Reads the states twice, some examples at a time; memory is that of a block's codes and of the texts told.

    Parameters
    ----------
    sae
        Dictionary of :func:`analyze.sae.dictionary.train_sae` of one model: of a pool of states, or of each cell.
    run
        The run it was learned from.
    model
        Its read-out, from ``lake.model``.
    folder
        Gets a folder for each layer, ``LAYER-SET``, or for each cell, ``LAYER-SET-POSITION``, with a file for
        each 128 features that fire there and ``skipped_indexes.json``, which names the others. Layer 0 and a
        set ``latent-embedding-N`` are the vectors fed; final states are one layer more.
    progress
        Called with examples read and their number, over layers and both readings.

    Returns
    -------
    Folders, one for each layer

    Raises
    ------
    UsageError
        If the dictionary is a crosscoder.
    """
    if sae.attrs["scope"] == "crosscoder":
        raise UsageError("SAEDashboard shows dictionaries of one model's states; this one is a crosscoder")
    parts = []
    for _, one in dictionaries(sae):
        activation = activation_of(one, {"": run})
        assert isinstance(activation, xr.DataArray)
        if "layer" in activation.dims:
            parts += [(one, activation.sel(layer=[layer]), layer) for layer in activation["layer"].values.tolist()]
        else:  # final states come after the last layer, the vectors fed before the first
            final = sae.attrs.get("variable") == "final_state"
            parts.append((one, activation, int(run["layer"].values[-1]) + 1 if final else 0))
    readout, folders = ReadOut(model), []
    for number, (one, states, layer) in enumerate(parts):

        def report(done: int, total: int, number: int = number) -> None:
            progress(number * total + done, len(parts) * total)

        fired = where_fired(one, states, report)
        of_cell = "".join(f"-{states[dim].item()}" for dim in ("position", "latent") if dim in states.dims
                          and sae.attrs["scope"] == "cell")  # fmt: skip
        variable = str(sae.attrs.get("variable", "hidden_state")).replace("_", "-")
        names = {"model_id": str(run.attrs["run"]).partition("/")[0], "layer": int(layer),
                 "sae_set": f"{variable}-{sae.sizes['feature']}{of_cell}"}  # fmt: skip
        place = folder / f"{names['layer']}-{names['sae_set']}"
        check_outside(place)
        place.mkdir(parents=True, exist_ok=True)
        for stale in place.glob("batch-*.json"):
            stale.unlink()
        alive = np.flatnonzero(fired.share > 0)
        for batch, start in enumerate(range(0, len(alive), BATCH)):
            chosen = alive[start : start + BATCH]
            features = list(_features(one, states, run, model, readout, fired, chosen))
            content = names | {"sae_id_suffix": None, "features": features}
            write_whole(place / f"batch-{batch}.json", json.dumps(content, allow_nan=False))
        dead = one["feature"].values[fired.share == 0].tolist()
        skipped = {**names, "layer": str(names["layer"]), "log_sparsity": None, "skipped_indexes": dead}
        write_whole(place / "skipped_indexes.json", json.dumps(skipped, allow_nan=False))
        folders.append(place)
    return folders


def where_fired(sae: xr.Dataset, states: xr.DataArray, progress: Progress) -> Fired:
    """Examples on which each feature fires most, and its codes by size; two readings of ``states`` of one layer."""
    n, n_feature = states.sizes["example"], sae.sizes["feature"]
    best, row = np.zeros((n_feature, 0)), np.zeros((n_feature, 0), dtype=int)
    low, high = np.full(n_feature, np.inf), np.full(n_feature, -np.inf)
    n_fired, n_state = np.zeros(n_feature, dtype=int), 0
    for start, codes in _blocks(sae, states):
        fires = (codes != 0) & np.isfinite(codes)
        n_fired += fires.sum((0, 1))
        n_state += int(np.isfinite(codes[..., 0]).sum())
        low = np.minimum(low, np.where(fires, codes, np.inf).min((0, 1)))
        high = np.maximum(high, np.where(fires, codes, -np.inf).max((0, 1)))
        size = np.where(fires, np.abs(codes), 0).max(1).T  # (feature, example)
        best = np.concatenate([best, size], axis=1)
        row = np.concatenate([row, np.broadcast_to(start + np.arange(len(codes)), size.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :N_TOP]
        best, row = np.take_along_axis(best, order, axis=1), np.take_along_axis(row, order, axis=1)
        progress(start + len(codes), 2 * n)
    row = np.where(best > 0, row, -1)
    count = np.zeros(n_feature * N_BAR, dtype=int)
    told = np.zeros((*row.shape, int(np.prod(states.shape)) // n // states.sizes["hidden"]))
    width = np.where(high > low, high - low, 1.0)
    for start, codes in _blocks(sae, states):
        fired_at = np.nonzero((codes != 0) & np.isfinite(codes))
        bar = ((codes[fired_at] - low[fired_at[2]]) / width[fired_at[2]] * N_BAR).astype(int).clip(0, N_BAR - 1)
        count += np.bincount(fired_at[2] * N_BAR + bar, minlength=len(count))
        feature, top = np.nonzero((row >= start) & (row < start + len(codes)))
        told[feature, top] = np.nan_to_num(codes[row[feature, top] - start, :, feature])
        progress(n + start + len(codes), 2 * n)
    share = n_fired / max(n_state, 1)
    return Fired(row=row, code=told, share=share, low=low, high=high, count=count.reshape(n_feature, N_BAR))


def _blocks(sae: xr.Dataset, states: xr.DataArray) -> Iterator[tuple[int, Array]]:
    """Codes (example, position, feature) of some examples at a time, and the first one's row."""
    for start in range(0, states.sizes["example"], BLOCK):
        block = states.isel(example=slice(start, start + BLOCK))
        codes = sae_codes(sae, block).transpose("example", ..., "feature").values
        yield start, codes.reshape(len(codes), -1, codes.shape[-1])


def _features(
    sae: xr.Dataset,
    states: xr.DataArray,
    run: xr.Dataset,
    model: xr.Dataset,
    readout: ReadOut,
    fired: Fired,
    chosen: Array,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """What is written of each feature chosen (feature,), by the names of their schema."""
    decoder = sae["decoder"].transpose("feature", "hidden").values[chosen]
    positions = [str(label) for dim in ("position", "latent") if dim in states.dims for label in states[dim].values]
    strings = readout.strings
    for start, logits in direct_logits(decoder, model, readout):
        for index, line in enumerate(logits, start):
            feature, direction = int(chosen[index]), decoder[index]
            down, up = np.argsort(line, kind="stable")[:N_TOKEN], np.argsort(-line, kind="stable")[:N_TOKEN]
            heights, edges = np.histogram(line, bins=N_BAR)
            aligned = np.argsort(-np.abs(direction), kind="stable")[:N_ALIGNED]
            ends = np.linspace(fired.low[feature], fired.high[feature], N_BAR + 1)
            yield {
                "feature_index": int(sae["feature"].values[feature]),
                "neuron_alignment_indices": aligned.tolist(),
                "neuron_alignment_values": _rounded(direction[aligned]),
                "neuron_alignment_l1": _rounded(direction[aligned] / np.abs(direction).sum()),
                **{f"correlated_{of}_{what}": [] for of in ("neurons", "features")
                   for what in ("indices", "l1", "pearson")},
                "neg_str": [strings[token] for token in down], "neg_values": _rounded(line[down]),
                "pos_str": [strings[token] for token in up], "pos_values": _rounded(line[up]),
                "frac_nonzero": float(fired.share[feature]),
                "freq_hist_data_bar_values": _rounded((ends[1:] + ends[:-1]) / 2),
                "freq_hist_data_bar_heights": fired.count[feature].astype(float).tolist(),
                "logits_hist_data_bar_heights": heights.astype(float).tolist(),
                "logits_hist_data_bar_values": _rounded((edges[1:] + edges[:-1]) / 2),
                "n_prompts_total": run.sizes["example"], "n_tokens_in_prompt": len(positions),
                "dataset": str(run.attrs["run"]).partition("/")[2],
                "activations": list(_texts(run, positions, fired, feature)),
                "decoder_weights_dist": [], "vector": [],
            }  # fmt: skip


def _texts(run: xr.Dataset, positions: list[str], fired: Fired, feature: int) -> Iterator[dict[str, Any]]:
    """Problems on which a feature fires most: their words, and its codes at the positions."""
    rows = fired.row[feature]
    for row, codes in zip(rows[rows >= 0], fired.code[feature], strict=False):
        words = re.findall(r"\s*\S+", str(run["question"].values[row]))
        values = [0.0] * len(words) + _rounded(codes)
        yield {
            "bin_min": -1.0, "bin_max": round(float(fired.high[feature]), 4), "bin_contains": -1.0,
            "tokens": [*words, *(f" {position}" for position in positions)], "values": values,
            "qualifying_token_index": len(words) + int(np.abs(codes).argmax()),
        }  # fmt: skip


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 4) for value in values]
