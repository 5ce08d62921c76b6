"""Values as JSON holds them, each as it is; and objects of JSON files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import UsageError


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
    """A JSON object; ``missing`` stands for a file that is not there, or empty, where that may be.

    Raises
    ------
    UsageError
        If it cannot be read, or is no object.
    """
    if missing is not None and not (path.is_file() and path.stat().st_size):
        return missing
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{what} cannot be read from {path}: {reason}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{what} in {path} is no JSON object")
    return value
