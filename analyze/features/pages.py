"""A page of each feature of a stored dictionary: where it fires, on which problems, what is read there, what it writes.

What a feature writes is its decoder direction d through the final norm's weight w and the unembedding U, the direct
path to the logits:

    written_t = U_t . (w * (d - mean(d)))     mean(d) for a layer norm only, 0 for an RMS norm

told as standard deviations over the vocabulary, as the norm divides by a length that the whole state decides.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.features.command import EFFECT
from analyze.lens.readout import ReadOut
from analyze.sae.dictionary import with_final_state
from schemas import UsageError
from schemas.codes import dictionaries

Array = np.ndarray[Any, np.dtype[Any]]
READ_TOGETHER = 4096
"""States that are read out together."""
LOGIT_BYTES = 1 << 26
"""Logits of features that are held at once."""
KEPT = ("frequency", "mean_activation", "max_activation", "top_activation", "top_example", "top_layer", "top_position")
"""What the dictionary itself knows of its features."""


def feature_pages(sae: xr.Dataset, run: xr.Dataset, model: xr.Dataset, *, tokens: int = 8) -> xr.Dataset:
    """What is known of each feature of a dictionary in one run.

    Reads only the states at which features fire most; memory is that of those and of a block of logits, and of a
    dictionary of each cell that of how often each of all features fires in each cell.

    Parameters
    ----------
    sae
        Dictionary of :func:`analyze.sae.dictionary.train_sae`. Features of dictionaries of each cell count on from cell
        to cell; a crosscoder's are named by the layer of the run's model in which most of their decoder's square lies.
    run
        The run it was learned from, or one of them.
    model
        Its read-out, from ``lake.model``.
    tokens
        How many tokens are named that a feature adds most to, and takes most from.

    Returns
    -------
    Dataset
        ``frequency`` (.., feature), ``mean_activation``, ``max_activation`` (feature) and ``top_..`` (feature, rank)
        as the dictionary has them; ``top_question`` and ``top_reading`` (feature, rank), the problem and the first
        token of the logit lens at the thought where the feature fires; ``writes`` (feature, sign, token), the tokens
        it adds most to and takes most from, and ``written`` by how many standard deviations over the vocabulary; of a
        crosscoder ``share`` (feature), how much of its decoder's square lies in the run's model.
    """
    readout = ReadOut(model)
    parts = [_pages_of(one, start, run, model, readout, tokens) for start, one in dictionaries(of_model(sae, run))]
    pages = parts[0] if len(parts) == 1 else xr.concat(
        parts, "feature", join="outer", fill_value={"frequency": np.float32(0)}, data_vars="all"
    )  # fmt: skip
    cells = [str(dim) for dim in sae["frequency"].dims if dim != "feature"]
    pages = pages.reindex({dim: sae[dim].values for dim in cells if dim in pages.dims})
    return pages.assign_attrs(
        kind="features", n_example=sae.sizes["example"], activation=sae.attrs["activation"], scope=sae.attrs["scope"],
        dictionary=str(sae.attrs.get("fingerprint", "")), variable=str(sae.attrs.get("variable", "hidden_state")),
    )  # fmt: skip


def of_model(sae: xr.Dataset, run: xr.Dataset) -> xr.Dataset:
    """A crosscoder as a dictionary of the run's model, each feature as its own layer there has it; any other as it is.

    Raises
    ------
    UsageError
        If the crosscoder is of other models.
    """
    if sae.attrs["scope"] != "crosscoder":
        return sae
    model = str(run.attrs["run"]).partition("/")[0]
    named = [str(source).rpartition("/") for source in sae["source"].values]
    own = [index for index, (owner, _, rest) in enumerate(named) if (owner or rest) == model]
    if not own:
        raise UsageError(f"the crosscoder is of {', '.join(map(str, sae['source'].values))}, not of {model}")
    part = sae.isel(source=own)
    part = part.isel(hidden=slice(int(part["n_hidden"][0])))
    home = part["source_share"].transpose("source", "feature").argmax("source")
    decoder = part["decoder"].isel(source=home).transpose("feature", "hidden").drop_vars("source")
    kept = sae.drop_dims(["source", "hidden"])
    kept["decoder"], kept["n_hidden"], kept["share"] = decoder, part["n_hidden"][0], part["source_share"].sum("source")
    if named[own[0]][0]:
        layers = np.array([int(named[index][2]) for index in own])
        top = np.broadcast_to(layers[home.values][:, None], kept["top_example"].shape)
        kept["top_layer"] = kept["top_example"].dims, top
    return kept.drop_vars("source", errors="ignore")


def _pages_of(
    sae: xr.Dataset, start: int, run: xr.Dataset, model: xr.Dataset, readout: ReadOut, tokens: int
) -> xr.Dataset:
    """Pages of one dictionary, whose features are numbered from ``start``."""
    known = (*KEPT, "top_latent", "share")
    pages = sae[[str(name) for name in sae.data_vars if str(name) in known]].drop_attrs()
    token, written = writes_of(sae["decoder"].values[:, : int(sae["n_hidden"])], model, readout, tokens)
    pages["writes"] = (("feature", "sign", "token"), np.array(readout.strings, dtype=object)[token])
    pages["written"] = (("feature", "sign", "token"), written, {"units": "standard deviations over the vocabulary"})
    pages = pages.assign_coords(
        feature=start + sae["feature"].values, sign=np.array(["+", "-"], dtype=object), token=np.arange(token.shape[-1])
    )
    top = pd.Index(sae["top_example"].values.reshape(-1))
    rows = run.indexes["example"].get_indexer(top).reshape(sae["top_example"].shape)
    pages["top_question"] = (("feature", "rank"), np.where(rows >= 0, run["question"].values[rows], ""))
    variable = str(sae.attrs.get("variable", "hidden_state"))
    states = with_final_state(run) if variable == "all_states" else run[variable]
    pages["top_reading"] = (("feature", "rank"), _readings(sae, run, states, rows, readout))
    return pages


def with_effects(pages: xr.Dataset, effects: xr.Dataset) -> xr.Dataset:
    """Pages with what was measured of each feature where ``lake reenter features`` took it out; NaN of the others.

    ``kl`` (nat) and ``broken`` with ``_low``, ``_high`` and ``_random``, ``kl_more`` than random directions, and
    ``kl_p``, ``broken_p``, corrected over all features (feature).
    """
    renamed = effects.rename({"p_kl_holm": "kl_p", "p_broken_holm": "broken_p"})
    chosen = renamed[list(EFFECT)].reset_coords(drop=True).reindex(feature=pages["feature"].values)
    return pages.assign({name: chosen[name] for name in EFFECT})


def writes_of(decoder: Array, model: xr.Dataset, readout: ReadOut, n: int) -> tuple[Array, Array]:
    """Tokens whose logits directions (feature, hidden) add most to and take most from.

    Returns
    -------
    (feature, sign, token) each: ids, and by how many standard deviations over the vocabulary
    """
    n = min(n, len(readout.unembedding))
    token = np.empty((len(decoder), 2, n), dtype="int64")
    size = np.empty(token.shape, dtype="float32")
    for start, logits in direct_logits(decoder, model, readout):
        rows = slice(start, start + len(logits))
        token[rows], size[rows] = ends(logits, n)
    return token, size


def ends(logits: Array, n: int) -> tuple[Array, Array]:
    """Tokens and sizes, (feature, sign, token) each, of the n largest and smallest logits (feature, vocabulary).

    In standard deviations, by which the logits are divided where they are.
    """
    logits /= np.maximum(logits.std(-1, keepdims=True), 1e-30)
    token = np.stack([smallest(sign * logits, n) for sign in (-1, 1)], axis=1)
    return token, np.take_along_axis(logits[:, None], token, axis=-1)


def smallest(values: Array, n: int) -> Array:
    """Places of the n smallest values of each row in order, of equal ones the first; a tenth of the time of a sort."""
    bound = np.partition(values, n - 1, axis=-1)[:, n - 1]
    few = [np.flatnonzero(row <= most) for row, most in zip(values, bound, strict=True)]
    return np.stack([
        place[np.argsort(row[place], kind="stable")[:n]] for row, place in zip(values, few, strict=True)
    ])  # fmt: skip


def direct_logits(decoder: Array, model: xr.Dataset, readout: ReadOut) -> Iterator[tuple[int, Array]]:
    """What directions (feature, hidden) add to the logits by the direct path, less its mean: (feature, vocabulary).

    Some features at a time, with the number of the first of them.
    """
    weight = model["final_norm_weight"].values.astype("float32")
    step = max(1, LOGIT_BYTES // (4 * len(readout.unembedding)))
    for start in range(0, len(decoder), step):
        moved = decoder[start : start + step].astype("float32")
        if model.attrs["final_norm"] == "layer_norm":
            moved = moved - moved.mean(-1, keepdims=True)
        logits = (moved * weight) @ readout.unembedding.T
        yield start, logits - logits.mean(-1, keepdims=True)


def _readings(sae: xr.Dataset, run: xr.Dataset, activation: xr.DataArray, rows: Array, readout: ReadOut) -> Array:
    """First token of the logit lens at the state where each feature fires most: (feature, rank), text."""
    dims = [str(dim) for dim in activation.dims if f"top_{dim}" in sae and dim != "example"]
    frequency = sae["frequency"]
    alone = {dim: [frequency[dim].item()] for dim in ("layer", "position", "latent")
             if dim in activation.dims and dim not in dims and dim in frequency.coords}  # fmt: skip
    activation = activation.sel(alone).squeeze(list(alone))  # of a dictionary of one layer or position alone
    places = np.stack(
        [activation.indexes[dim].get_indexer(pd.Index(sae[f"top_{dim}"].values.reshape(-1))) for dim in dims]
        or [np.zeros(rows.size)]
    ).astype("int64")  # (dim, feature x rank)
    readings = np.full(rows.size, "", dtype=object)
    strings = np.array(readout.strings, dtype=object)
    flat = rows.reshape(-1)
    waiting: list[tuple[Array, Array]] = []

    def read() -> None:
        """Read out what waits, together: each reading goes through the whole unembedding."""
        if waiting:
            final = np.concatenate([states for states, _ in waiting])
            best = readout.best(final)
            starts = np.cumsum([0, *(len(states) for states, _ in waiting)])
            for start, (states, which) in zip(starts[:-1], waiting, strict=True):
                readings[which[0]] = strings[best[start : start + len(states)][which[1]]]
            waiting.clear()

    for place in sorted(set(map(tuple, places.T.tolist()))):
        here = np.flatnonzero((places == np.array(place)[:, None]).all(0) & (flat >= 0))
        if not len(here) or -1 in place:
            continue
        cell = dict(zip(dims, place, strict=False))
        examples, inverse = np.unique(flat[here], return_inverse=True)
        states = activation.isel(example=examples, **cell).transpose("example", "hidden").values.astype("float32")
        # The final state, also as the layer past the last block, has been through the norm.
        layer = activation["layer"].values[cell["layer"]] if "layer" in cell else activation.coords.get("layer", 0)
        past = int(layer) > run["layer"].values.max()
        final = states if past or sae.attrs.get("variable") == "final_state" else readout.norm(states)
        waiting.append((final, np.stack([here, inverse])))
        if sum(len(states) for states, _ in waiting) >= READ_TOGETHER:
            read()
    read()
    return readings.reshape(rows.shape)
