"""Values as JSON holds them, each as it is."""

import math
from collections.abc import Mapping
from typing import Any


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
