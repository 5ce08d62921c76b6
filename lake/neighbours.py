"""Ends in one line where another module hides one of this project's packages; imported before any of them is."""

import sys
from importlib.util import find_spec
from pathlib import Path

for _package in ("schemas", "store", "extract", "analyze"):
    _spec = find_spec(_package)
    _origin = Path(_spec.origin) if _spec is not None and _spec.origin else None
    if _origin is None or _origin.resolve().parents[1] != Path(__file__).resolve().parents[1]:
        sys.stderr.write(
            f"lake: {_package!r} is {_origin or 'not there'}, which is not the package of activation-lake; rename that "
            "file, or run from another folder\n"
        )
        raise SystemExit(2)
