"""Finished pieces of an analysis at work, in a folder beside the lake until all are done."""

import hashlib
import os
from pathlib import Path

import joblib


def pieces_in(folder: str | os.PathLike[str] | None, *modules: str) -> joblib.Memory:
    """What keeps the values of functions in a folder; without one it keeps nothing.

    Parameters
    ----------
    folder
        Of the run, see :attr:`analyze.source.Source.folder`.
    modules
        Files of the question at work (``__file__``): pieces that another version of anything beside them made are not
        taken up.
    """
    if folder is None:
        return joblib.Memory(None, verbose=0)
    sources = [path for module in modules for path in sorted(Path(module).parent.glob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return joblib.Memory(Path(folder) / digest[:16], verbose=0)
