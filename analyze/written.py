"""Places of the steps that a model writes out: the same name for the same step in every example.

A model that reasons in words computes a result at the token before it and reads it where it stands, each time at
another place of the answer. ``step1`` is the place whose state the first written result follows from, as ``ct0`` is in
a latent reasoner that keeps the first result there, and ``fed1`` the last token of that result, as ``ct1`` is.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from schemas import SchemaError, UsageError, segment_of

WRITTEN = re.compile(r"(step|fed)([1-9]\d*)")
"""Labels of these places."""
_RESULT = re.compile(r"=\s*(\$?[-\u2212]?\$?\d[\d,]*(?:\.\d+)?)")


def is_written(label: str) -> bool:
    """Whether a position is a step that is written out, found anew in every example."""
    return WRITTEN.fullmatch(label) is not None


def results_in(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """First and last token of every number that follows ``=`` in a text of tokens.

    >>> results_in(["<<", "26", "/", "2", "=", "1", "3", ">>", "The answer is", "13"])
    [(5, 6)]
    """
    owner = np.repeat(np.arange(len(tokens)), [len(token) for token in tokens])
    return [(int(owner[match.start(1)]), int(owner[match.end(1) - 1])) for match in _RESULT.finditer("".join(tokens))]


def written_places(run: xr.Dataset, model: xr.Dataset) -> dict[str, npt.NDArray[np.int64]]:
    """Index along ``position`` of each written step, ``(example,)``, -1 where an example has fewer.

    Parameters
    ----------
    run : Dataset with ``token`` (example, position)
    model : Dataset with ``token_string`` (vocabulary)

    Raises
    ------
    SchemaError
        If the run keeps no tokens.
    """
    if "token" not in run:
        raise SchemaError("written steps are found by their tokens, and the run has no variable token")
    labels = [str(label) for label in run["position"].values]
    inside = [place for place, label in enumerate(labels) if segment_of(label) == "answer"]
    tokens = run["token"].isel(position=inside).values
    strings = model["token_string"].values
    places: dict[str, npt.NDArray[np.int64]] = {}
    for example, row in enumerate(tokens):
        written = [str(strings[token]) for token in row[row >= 0]]
        for step, (first, last) in enumerate(results_in(written), 1):
            before = inside[0] + first - 1  # where the answer begins with a number, what stands before the answer
            for label, place in ((f"step{step}", before), (f"fed{step}", inside[0] + last)):
                places.setdefault(label, np.full(len(tokens), -1))[example] = place
    return places


def at_places(run: xr.Dataset, model: xr.Dataset, positions: Sequence[str]) -> xr.Dataset:
    """The part of a run at some positions, written steps among them, in the order asked for; lazy.

    Where an example has no such step there is none: NaN, no attention, token -1.

    Raises
    ------
    UsageError
        If no example has one of the positions.
    """
    labels = [str(label) for label in run["position"].values]
    places = written_places(run, model)
    n_example = run.sizes["example"]
    known = {label: np.full(n_example, place) for place, label in enumerate(labels)} | places
    if missing := [label for label in positions if label not in known]:
        n_step = len(places) // 2
        shown = f"steps are written up to step{n_step}" if n_step else "no example writes steps as = NUMBER"
        raise UsageError(
            f"{run.attrs.get('run', 'the run')} has no position {', '.join(missing)};"
            f" it has {labels[0]} .. {labels[-1]} and {shown}"
        )
    index = xr.DataArray(np.stack([known[label] for label in positions], 1), dims=("example", "position"))
    there, rows = index >= 0, xr.DataArray(np.arange(n_example), dims="example")
    plain = run.drop_vars([name for name in run.coords if "position" in run[name].dims])
    taken = {}
    for name, array in plain.data_vars.items():
        if {"example", "position"} <= set(array.dims):
            fill = np.nan if array.dtype.kind == "f" and name != "attention" else 0 if name == "attention" else -1
            chosen = array.isel(example=rows, position=index.clip(0)).where(there, fill).astype(array.dtype)
            taken[name] = chosen.transpose(*array.dims)
    segments = [segment_of(label) for label in positions]
    return plain.drop_vars(taken).assign(taken).assign_coords(
        position=("position", np.array(positions, dtype=object)),
        segment=("position", np.array(segments, dtype=object)),
    ).assign_attrs(run.attrs)  # fmt: skip
