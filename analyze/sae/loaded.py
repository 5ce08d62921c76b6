"""A dictionary as a library's files hold it, before it is checked and folded; and what reads such files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyze.sae.spec import Activation
from schemas.errors import UsageError

DESCRIBED = "config of the dictionary"
"""What its JSON file is called in errors."""
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass
class Loaded:
    """Weights under SAELens' names, and how they are used.

    ``pre = W_enc^T (x - b_dec) + b_enc``, codes by ``activation``, ``x_hat = W_dec^T (scale * codes) + b_dec``.
    """

    tensors: dict[str, NDArray[Any]]
    """``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``W_dec`` (d_sae, d_in), ``b_dec`` (d_in,) and, of jumprelu and
    batch_topk, ``threshold`` (d_sae,)."""
    activation: Activation
    k: int
    problems: list[str]
    """Why its codes would be wrong; empty where it can be used."""
    hook: str = ""
    """What it reads, in the library's own words."""
    subtracts: bool = True
    """Whether ``b_dec`` is subtracted from the input."""
    scale: NDArray[np.float64] | float = 1.0
    """What codes are multiplied with before they are decoded."""
    by_norm: bool = False
    """Whether codes are in units of the decoder's rows, which the decoder then has at unit norm."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """``d_in`` and ``d_sae`` as the config says them, where it does."""

    def check(self) -> None:
        """Add tensors that are missing, unexpected, or of other shapes than they and the config say."""
        first = self.tensors.get("W_enc", np.empty(()))
        d_in, d_sae = first.shape if first.ndim == 2 else (None, None)
        shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        if self.activation in ("jumprelu", "batch_topk"):
            shapes["threshold"] = (d_sae,)
        if missing := sorted(shapes.keys() - self.tensors.keys()):
            self.problems.append(f"{', '.join(missing)} missing")
        if unexpected := sorted(self.tensors.keys() - shapes.keys()):
            self.problems.append(f"tensors that are not known: {', '.join(unexpected)}")
        for name in shapes.keys() & self.tensors.keys():
            found = self.tensors[name]
            if found.shape != shapes[name] or not found.size:
                self.problems.append(f"{name} has shape {found.shape}, W_enc {first.shape}")
        for name, size in (("d_in", d_in), ("d_sae", d_sae)):
            if self.sizes.get(name) not in (None, size):
                self.problems.append(f"{name} is {self.sizes[name]}, but W_enc has shape {first.shape}")
        if d_sae is not None and self.k > d_sae:
            self.problems.append(f"k is {self.k}, but it has {d_sae} features")


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Tensors by name, and a list of what is wrong with them: other types, numbers that are not finite."""
    from safetensors import SafetensorError, deserialize

    try:
        read = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the dictionary's {path} cannot be read: {error}; is the file complete?") from error
    tensors, problems = {}, []
    for name, part in read:
        if part["dtype"] == "BF16":  # the upper half of a float32
            value = (np.frombuffer(part["data"], "<u2").astype("<u4") << 16).view("<f4")
        elif part["dtype"] in _TYPES:
            value = np.frombuffer(part["data"], _TYPES[part["dtype"]])
        else:
            problems.append(f"{name} has type {part['dtype']}, known are BF16, {', '.join(_TYPES)}")
            continue
        tensors[name] = value.reshape(part["shape"])
    return tensors, problems + not_finite(tensors)


def not_finite(tensors: Mapping[str, NDArray[Any]]) -> list[str]:
    """What is wrong with tensors whose numbers are not finite in float32."""
    largest = np.finfo(np.float32).max
    return [
        f"{name} has numbers that are not finite in float32"
        for name, value in tensors.items()
        if not (np.abs(value) <= largest).all()
    ]
