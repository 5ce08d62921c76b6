"""Dictionaries as the files SAELens loads: ``cfg.json`` and ``sae_weights.safetensors``.

Weights are those of the labelled dataset, already folded, so the files apply to stored activations without further
scaling: ``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``W_dec`` (d_sae, d_in), ``b_dec`` (d_in,), float32, with
``b_dec`` subtracted from the input. ReLU is SAELens' architecture ``standard``, TopK is ``topk`` with ``k``, and
JumpReLU and BatchTopK (which uses a threshold outside training) are ``jumprelu`` with ``threshold`` (d_sae,).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from schemas.errors import LakeError, UsageError

CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"
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
    sae : Dataset of :func:`analyze.sae.train_sae`
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
        target.mkdir(parents=True, exist_ok=True)
        tensors = _tensors(one, sae.attrs["activation"])
        config = _config(sae, tensors, {"cell": cell, **_plain(metadata or {})})
        save_file(tensors, target / WEIGHTS_NAME)
        (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written.append(target)
    return written


def load_sae(folder: str | Path) -> xr.Dataset:
    """A dictionary from SAELens' layout, whoever trained it, for :func:`analyze.sae_apply.sae_codes` and steering.

    Raises
    ------
    UsageError
        If the folder lacks the files, or its architecture or input normalisation is none that is known here.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"no dictionary in {folder}: {' and '.join(missing)} missing. A grid has one folder per cell.")
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    tensors = {name: np.asarray(t, dtype=np.float32) for name, t in load_file(folder / WEIGHTS_NAME).items()}
    names = {"standard": "relu", "topk": "topk", "abstopk": "abs_topk", "jumprelu": "jumprelu"}
    architecture = config.get("architecture", "standard")
    if architecture not in names:
        raise UsageError(f"dictionary {folder} has architecture {architecture!r}; known are {', '.join(names)}")
    if config.get("normalize_activations", "none") != "none":
        raise UsageError(
            f"dictionary {folder} normalises its input ({config['normalize_activations']}); fold that into its weights"
        )
    if config.get("rescale_acts_by_decoder_norm"):
        norm = np.linalg.norm(tensors["W_dec"], axis=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norm, tensors["b_enc"] * norm
        tensors["W_dec"] = tensors["W_dec"] / norm[:, None]
    bias = tensors["b_enc"]
    if not config.get("apply_b_dec_to_input", True):
        bias = bias + tensors["b_dec"] @ tensors["W_enc"]
    activation = config.get("metadata", {}).get("activation", names[architecture])
    threshold = tensors.get("threshold", np.zeros_like(bias))
    return xr.Dataset(
        {
            "encoder": (("feature", "hidden"), np.ascontiguousarray(tensors["W_enc"].T)),
            "encoder_bias": ("feature", bias),
            "decoder": (("feature", "hidden"), tensors["W_dec"]),
            "decoder_bias": ("hidden", tensors["b_dec"]),
            "threshold": ("feature", threshold),
            "n_hidden": ((), tensors["W_dec"].shape[1]),
        },
        coords={"feature": np.arange(len(bias))},
        attrs={"scope": "pool", "activation": activation, "k": int(config.get("k", 0))},
    )


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
