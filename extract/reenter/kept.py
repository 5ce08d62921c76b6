"""Finished batches of an experiment, kept in a folder until all are done."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from schemas import canonical_json, fingerprint
from schemas.json_values import json_value


def array_digest(array: xr.DataArray) -> str:
    """SHA-256 of an array's labels and values."""
    labels = {str(dim): [str(label) for label in array[dim].values] for dim in array.dims}
    digest = hashlib.sha256(canonical_json(labels).encode())
    digest.update(np.ascontiguousarray(array.values).tobytes())
    return digest.hexdigest()


TEXTS = ("text", "sample_text")
"""Values of a batch that are not numbers."""


class Kept:
    """Finished batches of a sweep in a folder, under the digest of everything that decides them.

    Each file says which examples and conditions it holds and carries a digest of its content. A batch whose file holds
    others, or was cut short, is computed again.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.folder = None if folder is None else folder / identity[:32]

    def get(
        self, name: str, holds: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Values of a batch: taken from its file, or computed and kept. Without a folder nothing is kept."""
        values = self.load(name, holds)
        if values is None:
            values = compute()
            self.save(name, holds, values)
        return values

    def load(self, name: str, holds: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """Values of a batch, if its file is there, whole, and of these examples and conditions."""
        if self.folder is None:
            return None
        try:
            kept = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            digest = kept.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        if kept.get("holds") != holds or digest != fingerprint(kept):
            return None
        return {
            key: np.array(value, dtype=object if key in TEXTS else np.float64).reshape(kept["shapes"][key])
            for key, value in kept["values"].items()
        }

    def save(self, name: str, holds: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Keep the values of a batch, whole or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        content = {
            "holds": holds,
            "values": {key: json_value(value.ravel()) for key, value in arrays.items()},
            "shapes": {key: list(value.shape) for key, value in arrays.items()},
        }
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content | {"sha256": fingerprint(content)}), encoding="utf-8")
        partial.replace(path)
