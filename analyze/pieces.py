"""Finished pieces of an analysis at work, in a folder beside the lake until all are done."""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import xarray as xr

from schemas.progress import Progress
from store.keeping import remove_folder

Piece = TypeVar("Piece")


def pieces_in(folder: str | os.PathLike[str] | None, *modules: str) -> joblib.Memory:
    """Memory that keeps values of functions in a folder; without a folder it keeps nothing.

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
    for harmless in ("Persisting input arguments took", "Unable to (cache to disk|write)"):  # a disk is busy, or full
        warnings.filterwarnings("ignore", harmless, Warning)
    sources = [path for module in modules for path in sorted(Path(module).parent.glob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return joblib.Memory(Path(folder) / digest[:16], verbose=0)


def remove_unused(folder: Path | None) -> None:
    """Remove the folder of a command that was refused, where it has finished no piece."""
    if folder is not None and not any(folder.rglob("output.pkl")):
        remove_folder(folder)


def taken_up(
    memory: joblib.Memory,
    function: Callable[..., Piece],
    parts: Sequence[xr.Dataset],
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Piece:
    """Value of ``function(*parts, **settings)``, as :func:`pieces_in` kept it where a stopped command had it already.

    Pieces of other runs, models, examples, layers or positions are not taken up.
    """
    marks = [joblib.hash([part.attrs, {str(dim): index for dim, index in part.indexes.items()}]) for part in parts]
    made: Piece = memory.cache(_made, ignore=["function", "parts", "progress"])(
        function, function.__name__, marks, settings, parts, progress
    )
    return made


def _made(
    function: Callable[..., Piece], name: str, marks: Sequence[str], settings: Mapping[str, Any],
    parts: Sequence[xr.Dataset], progress: Progress | None,
) -> Piece:  # fmt: skip
    """A piece; joblib keeps it by its name, marks and settings."""
    more = {} if progress is None else {"progress": progress}
    return function(*parts, **settings, **more)
