"""Values as JSON holds them, each as it is; and objects of JSON files."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import UsageError

LFS_POINTER = "version https://git-lfs"
"""How a file begins that Git left in place of a large one."""
NOT_FETCHED = "it is Git's pointer to a large file, not the file itself; fetch it with git lfs pull"


def json_value(value: Any) -> Any:
    """A value, with all in it, as JSON holds it: ``null`` for NaN, a text for what is infinite.

    >>> json_value({"p": 1e-12, "low": [math.nan, -math.inf]})
    {'p': 1e-12, 'low': [None, '-inf']}
    """
    if hasattr(value, "tolist"):  # NumPy's, which printing a help needs not import
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def read_json(path: Path, what: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object; ``missing`` stands for a file that is not there, where that may be.

    An empty file, a folder or a link to nothing is none: it stands where something was said that is lost.

    Raises
    ------
    UsageError
        If it cannot be read, is no object, has a field twice, or NaN or infinity, which JSON knows not.
    """
    if missing is not None and not os.path.lexists(path):
        return missing
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith(LFS_POINTER):
            raise ValueError(NOT_FETCHED)
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{what} cannot be read from {path}: {reason}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{what} in {path} is no JSON object")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"it holds {text}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"it has {twice[0]!r} twice")
    return value
