"""Dictionaries of dictionary_learning, sparsify and Gemma Scope, read as :class:`analyze.sae.loaded.Loaded`."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyze.sae.loaded import DESCRIBED, Loaded, not_finite, read_safetensors
from analyze.sae.spec import Activation
from schemas.errors import UsageError
from schemas.json_values import read_json

_SPARSIFY = {
    "activation": ("topk",), "skip_connection": (False,), "transcode": (False,), "signed": (False,),
    "expansion_factor": None, "normalize_decoder": None, "num_latents": None, "k": None, "multi_topk": None,
    "d_in": None,
}  # fmt: skip
"""Fields of its ``cfg.json``: values under which codes are as here; None: any, as it is of training or read below."""
_LINEAR = {
    "encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "b_dec": "b_dec", "bias": "b_dec",
    "decoder.bias": "b_dec",
}  # fmt: skip
_CLASSES: dict[str, Activation] = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "batch_topk",
    "JumpReluAutoEncoder": "jumprelu",
}
"""dictionary_learning's classes; a gated one has two encoders and is not among them."""


def read_sparsify(folder: Path) -> Loaded:
    """``cfg.json`` and ``sae.safetensors``: the k largest of ``max(pre, 0)``, the decoder's bias subtracted."""
    config = read_json(folder / "cfg.json", DESCRIBED)
    tensors, problems = read_safetensors(folder / "sae.safetensors")
    for name, value in config.items():
        known = _SPARSIFY.get(name, ())
        if known is not None and value not in known:
            problems.append(f"{name} is {value!r}, which is not known here")
    tensors = {_LINEAR.get(name, name): value for name, value in tensors.items()}
    if "W_enc" in tensors:  # its decoder is stored as here
        tensors["W_enc"] = tensors["W_enc"].T
    hook = folder.name if re.search(r"\d", folder.name) else ""  # a folder for each place, called by its module
    return Loaded(
        tensors, "topk", _whole_k(config.get("k"), problems), problems, hook=hook,
        sizes={"d_in": config.get("d_in"), "d_sae": config.get("num_latents") or None},
    )  # fmt: skip


def read_dictionary_learning(folder: Path) -> Loaded:
    """``config.json`` and ``ae.pt``: the class says how they are used.

    Codes of ``AutoEncoder`` are in units of the decoder's columns, as its own loader makes them; those of ``BatchTopK``
    are above a threshold, as it is used outside training. Neither ``AutoEncoderNew`` nor ``JumpReluAutoEncoder``
    subtracts the decoder's bias.
    """
    config = read_json(folder / "config.json", DESCRIBED).get("trainer")
    config = config if isinstance(config, dict) else {}
    name = str(config.get("dict_class"))
    read = _read_torch(folder / "ae.pt")
    problems = not_finite(read)
    if name not in _CLASSES:
        problems.append(f"class {name!r} is not known; known are {', '.join(_CLASSES)}")
    activation = _CLASSES.get(name, "relu")
    tensors = {_LINEAR.get(key, key): value for key, value in read.items() if key not in ("k", "group_sizes")}
    if "encoder.weight" in read and "decoder.weight" in read:
        tensors |= {key: tensors[key].T for key in ("W_enc", "W_dec")}
    k = 0
    if activation in ("topk", "batch_topk"):
        k = _whole_k(config.get("k"), problems)
        if "k" in read and int(read["k"]) != k:
            problems.append(f"k is {k} in its config and {int(read['k'])} in its weights")
    threshold = tensors.pop("threshold", None)
    if activation in ("jumprelu", "batch_topk") and threshold is not None:
        tensors["threshold"] = np.broadcast_to(threshold, tensors["b_enc"].shape if "b_enc" in tensors else ())
    hook = str(config.get("submodule_name") or "")
    if isinstance(layer := config.get("layer"), int) and not re.search(r"\d", hook):
        hook = f"{hook} layer {layer}".strip()
    return Loaded(
        tensors, activation, k if activation == "topk" else 0, problems, hook=hook,
        subtracts=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"), by_norm=name == "AutoEncoder",
        sizes={"d_in": config.get("activation_dim"), "d_sae": config.get("dict_size")},
    )  # fmt: skip


def read_gemma_scope(folder: Path) -> Loaded:
    """``params.npz``: ``pre`` above a threshold of each feature, the decoder's bias not subtracted."""
    try:
        with np.load(folder / "params.npz", allow_pickle=False) as read:
            tensors = {str(name): np.asarray(read[name]) for name in read.files}
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"the dictionary's {folder / 'params.npz'} cannot be read: {error}") from error
    return Loaded(tensors, "jumprelu", 0, not_finite(tensors), subtracts=False)


def _whole_k(k: Any, problems: list[str]) -> int:
    if type(k) is not int or k < 1:
        problems.append(f"k is {'missing' if k is None else repr(k)}; it is a whole number above 0")
        return 0
    return k


def _read_torch(path: Path) -> dict[str, NDArray[Any]]:
    """Tensors of a state dict, without running what else a pickle may hold."""
    import torch

    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many types
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the dictionary's {path} cannot be read: {reason}; is the file complete?") from error
    if not isinstance(read, dict) or not all(isinstance(value, torch.Tensor) for value in read.values()):
        raise UsageError(f"the dictionary's {path} holds no tensors by name")
    return {str(name): value.double().numpy() for name, value in read.items()}
