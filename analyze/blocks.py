"""What is worked out of every example, held for a block of examples at a time."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import xarray as xr

from analyze.cluster import in_turn
from schemas.progress import Progress, silent
from schemas.resampling import DRAWN_TOGETHER

CHUNK_EXAMPLES = 256
"""Examples that are read together: as many as a chunk of states holds."""
Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)


def computed_blocks(lazy: Labelled, progress: Progress = silent) -> Iterator[Labelled]:
    """Blocks of examples of a lazy result, handed out one after the other along its chunks.

    Of what lies in memory blocks are 512 examples. ``progress(done, total)`` is called in examples.
    """
    n = lazy.sizes["example"]
    done = 0
    for block in in_turn(lazy.isel(example=rows) for rows in example_blocks(lazy, DRAWN_TOGETHER)):
        yield block
        done += block.sizes["example"]
        progress(done, n)


def reported_blocks(n: int, progress: Progress = silent) -> Iterator[slice]:
    """Slices of ``n`` examples, to be read one after the other; ``progress(done, n)`` is called after each."""
    for start in range(0, n, CHUNK_EXAMPLES):
        rows = slice(start, min(start + CHUNK_EXAMPLES, n))
        yield rows
        progress(rows.stop, n)


def example_blocks(data: xr.DataArray | xr.Dataset, most: int) -> list[slice]:
    """Examples of each chunk; of what lies in memory ``most`` at a time."""
    parts = [data] if isinstance(data, xr.DataArray) else data.data_vars.values()
    chunks = next((part.variable.chunksizes["example"] for part in parts if part.chunks is not None), None)
    ends = range(most, data.sizes["example"] + most, most) if chunks is None else np.cumsum(chunks).tolist()
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def chunked_like(problem: xr.DataArray, data: xr.DataArray) -> xr.DataArray:
    """Problems (example,) in the chunks of data, so that each task gets those of its own examples."""
    return problem if data.chunks is None else problem.chunk(example=data.variable.chunksizes["example"])


def whole_chunks(chunks: Sequence[int], most: int) -> tuple[int, ...]:
    """Sizes of blocks of at most so many examples that join chunks, and share none: it would be read for each of them.

    Of a chunk of more examples they are parts.
    """
    sizes = [0]
    for chunk in chunks:
        if sizes[-1] + chunk > most:
            sizes += [most] * ((chunk - 1) // most) + [0]
            chunk -= (chunk - 1) // most * most
        sizes[-1] += chunk
    return tuple(filter(None, sizes)) or (0,)
