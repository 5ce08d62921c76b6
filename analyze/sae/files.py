"""Dictionaries as files: written as SAELens loads them, read as four libraries write them.

Written are ``cfg.json`` and ``sae_weights.safetensors``, with the weights of the labelled dataset, already folded, so
that they apply to stored activations without further scaling: ``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``W_dec``
(d_sae, d_in), ``b_dec`` (d_in,), float32, with ``b_dec`` subtracted from the input. ReLU is SAELens' architecture
``standard``, TopK is ``topk`` with ``k``, and JumpReLU and BatchTopK (which uses a threshold outside training) are
``jumprelu`` with ``threshold`` (d_sae,).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyze.sae.loaded import Loaded
from analyze.sae.other_libraries import read_dictionary_learning, read_gemma_scope, read_sparsify
from analyze.sae.saelens import CONFIG_NAME, WEIGHTS_NAME, read_saelens
from schemas.errors import LakeError, UsageError
from schemas.whole_files import beside, check_outside

LIBRARIES: dict[str, tuple[tuple[str, ...], Callable[[Path], Loaded]]] = {
    "SAELens": ((WEIGHTS_NAME, CONFIG_NAME), read_saelens),
    "sparsify": (("sae.safetensors", "cfg.json"), read_sparsify),
    "dictionary_learning": (("ae.pt", "config.json"), read_dictionary_learning),
    "Gemma Scope": (("params.npz",), read_gemma_scope),
}
"""Whose dictionaries are read: their files, weights first, and what reads them."""
_ARCHITECTURE = {
    "relu": "standard",
    "topk": "topk",
    "abs_topk": "abstopk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
}
_LAYOUT_VERSION = "6.0.0"  # the layout's first version of SAELens; older ones had other names for the same things


def save_sae(sae: xr.Dataset, folder: str | Path, *, metadata: Mapping[str, Any] | None = None) -> list[Path]:
    """Write a dictionary in SAELens' layout, one folder for each cell that has weights of its own.

    Parameters
    ----------
    sae : Dataset of :func:`analyze.sae.dictionary.train_sae`
    folder : path
        Made if absent. A grid, or a pool with statistics for each cell, writes ``layer-3_position-ct0`` and so on
        below it. A crosscoder reads its sources' vectors side by side, in the order that ``metadata.sources`` in
        ``cfg.json`` gives.
    metadata : mapping of plain values
        More fields for ``cfg.json``'s ``metadata``, such as the model's name.

    Returns
    -------
    list of Path
        The folders written; each loads with ``sae_lens.SAE.load_from_disk(folder)``.
    """
    from safetensors.numpy import save_file

    cell_dims = [d for d in sae["decoder_bias"].dims if d not in ("hidden", "source")]
    stacked = sae[["encoder", "encoder_bias", "decoder", "decoder_bias", "threshold", "n_hidden"]]
    written = []
    for index in np.ndindex(*(sae.sizes[d] for d in cell_dims)):
        one = stacked.isel({d: i for d, i in zip(cell_dims, index, strict=True) if d in stacked.dims})
        cell = {str(d): sae[d][i].item() for d, i in zip(cell_dims, index, strict=True)}
        target = Path(folder, "_".join(f"{d}-{v}" for d, v in cell.items())) if cell else Path(folder)
        check_outside(target)
        target.mkdir(parents=True, exist_ok=True)
        tensors = _tensors(one, sae.attrs["activation"])
        config = _config(sae, tensors, {"cell": cell, **_plain(metadata or {})})
        with beside(target / WEIGHTS_NAME) as weights, beside(target / CONFIG_NAME) as stated:
            save_file(tensors, weights)
            stated.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written.append(target)
    return written


def load_sae(folder: str | Path) -> xr.Dataset:
    """A dictionary that some library trained, for :func:`analyze.sae.codes.sae_codes`, measures and steering.

    Read are files of SAELens 1 to 6, sparsify, dictionary_learning and Gemma Scope, in any of the types float16,
    bfloat16, float32 and float64. What changes codes or reconstruction is either done (TopK of an earlier version, a
    scaling factor from fine-tuning, codes in units of the decoder's norm, a bias that the input keeps) or refused
    (gated encoders, tanh, groups' maxima, skip connections, input normalisation, a head's own outputs), and so is every
    field and tensor that is not known here.

    Parameters
    ----------
    folder : path
        With the files of one of :data:`LIBRARIES`.

    Returns
    -------
    Dataset
        ``encoder`` and ``decoder`` (feature, hidden), ``encoder_bias`` and ``threshold`` (feature), ``decoder_bias``
        (hidden), float32, for stored values as they are; attributes ``library``, and ``hook_name`` where the files say
        what it reads.

    Raises
    ------
    UsageError
        If the folder lacks the files, they cannot be read, or something in them is not known; it lists what.
    """
    folder = Path(folder)
    library, read = _layout(folder)
    loaded = read(folder)
    loaded.check()
    if loaded.problems:
        raise UsageError(f"dictionary {folder} is not read, as its codes would be wrong: {'; '.join(loaded.problems)}")
    tensors = {name: value.astype(np.float64) for name, value in loaded.tensors.items()}
    w_enc, bias, w_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if loaded.by_norm:
        norm = np.linalg.norm(w_dec, axis=1)
        w_enc, bias, w_dec = w_enc * norm, bias * norm, w_dec / np.where(norm > 0, norm, 1)[:, None]
    if not loaded.subtracts:
        bias = bias + b_dec @ w_enc
    values = {
        "encoder": (("feature", "hidden"), w_enc.T),
        "encoder_bias": ("feature", bias),
        "decoder": (("feature", "hidden"), w_dec * np.broadcast_to(loaded.scale, bias.shape)[:, None]),
        "decoder_bias": ("hidden", b_dec),
        "threshold": ("feature", tensors.get("threshold", np.zeros_like(bias))),
    }
    attrs = {"scope": "pool", "activation": loaded.activation, "k": loaded.k, "library": library}
    return xr.Dataset(
        {name: (dims, np.ascontiguousarray(value, dtype=np.float32)) for name, (dims, value) in values.items()}
        | {"n_hidden": ((), w_dec.shape[1])},
        coords={"feature": np.arange(len(bias))},
        attrs=attrs | ({"hook_name": loaded.hook} if loaded.hook else {}),
    )


def _layout(folder: Path) -> tuple[str, Callable[[Path], Loaded]]:
    """The library whose weights are in a folder, and what reads them."""
    there = [name for name, (files, _) in LIBRARIES.items() if (folder / files[0]).is_file()]
    if len(there) > 1:
        raise UsageError(f"{folder} holds dictionaries of {' and '.join(there)}; give a folder of one")
    if not there:
        known = "; ".join(f"{name}: {' and '.join(files)}" for name, (files, _) in LIBRARIES.items())
        raise UsageError(f"no dictionary in {folder}, which has none of these: {known}. A grid has a folder per cell.")
    files, read = LIBRARIES[there[0]]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"the dictionary of {there[0]} in {folder} lacks {' and '.join(missing)}")
    return there[0], read


def _tensors(one: xr.Dataset, activation: str) -> dict[str, NDArray[np.float32]]:
    def joined(name: str) -> NDArray[np.float32]:
        value = one[name]
        if "source" in value.dims:  # side by side, without the padding of narrower sources
            pieces = [value.sel(source=s).isel(hidden=slice(int(one["n_hidden"].sel(source=s)))) for s in one["source"]]
            return np.concatenate([p.transpose(..., "hidden").values for p in pieces], axis=-1)
        return np.asarray(value.transpose(..., "hidden").values if "hidden" in value.dims else value.values)

    tensors = {
        "W_enc": joined("encoder").T,
        "b_enc": joined("encoder_bias"),
        "W_dec": joined("decoder"),
        "b_dec": joined("decoder_bias"),
    }
    if _ARCHITECTURE[activation] == "jumprelu":
        tensors["threshold"] = np.maximum(joined("threshold"), 0)
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise LakeError(f"a dictionary with NaN or infinite values in {', '.join(bad)} is not saved; train it again")
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}


def _config(sae: xr.Dataset, tensors: Mapping[str, NDArray[np.float32]], metadata: dict[str, Any]) -> dict[str, Any]:
    architecture = _ARCHITECTURE[sae.attrs["activation"]]
    d_in, d_sae = tensors["W_enc"].shape
    if "source" in sae.dims:
        metadata["sources"] = [str(s) for s in sae["source"].values]
        metadata["source_width"] = sae["n_hidden"].values.tolist()
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _LAYOUT_VERSION, "activation": sae.attrs["activation"], **metadata},
    }
    if architecture in ("topk", "abstopk"):
        config["k"] = int(sae.attrs["k"])
    if architecture == "topk":
        config["rescale_acts_by_decoder_norm"] = False
    return config


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in metadata.items()}
