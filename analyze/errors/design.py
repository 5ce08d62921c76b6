"""Designs of the error prediction: rows of a fold, spooled to disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from analyze.errors.spec import ErrorSpec
from analyze.sae.batches import Rows
from analyze.sae.codes import Weights

_SPOOL_BYTES = 1 << 21
_BLOCK_BYTES = 1 << 20
_GATHERED = 1 << 19  # numbers of some examples' states that are put side by side, at most, but for 64 examples
Matrix = Any  # (row, feature): a numpy array, or scipy's csr_array, whose stubs do not carry its number of dims


class Spool:
    """Rows of a design matrix in order, on disk beyond a few megabytes.

    Parameters
    ----------
    folder : where pieces go; ``None`` keeps all in memory
    name : of the pieces
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder, self.name = folder, name
        self.n_row, self.n_stored = 0, 0
        self.is_sparse = False
        self._files: list[tuple[tuple[int, int], list[Path]]] = []
        self._held: list[Matrix] = []
        self._size = 0

    def add(self, rows: Matrix) -> None:
        """Append rows (row, feature), dense or sparse; products of sparse ones take float64, so they are kept so."""
        self._held.append(rows if isinstance(rows, np.ndarray) else rows.astype(np.float64))
        self.n_row += rows.shape[0]
        self.n_stored += rows.size
        self.is_sparse = not isinstance(rows, np.ndarray)
        self._size += self._held[-1].data.nbytes
        if self.folder is not None and self._size > _SPOOL_BYTES:
            piece = _stacked(self._held)
            arrays = [piece] if isinstance(piece, np.ndarray) else [piece.data, piece.indices, piece.indptr]
            paths = [self.folder / f"{self.name}-{len(self._files)}-{part}.npy" for part in range(len(arrays))]
            for path, array in zip(paths, arrays, strict=True):
                np.save(path, array)
            self._files.append((piece.shape, paths))
            self._held, self._size = [], 0

    def pieces(self) -> Iterator[tuple[slice, Matrix]]:
        """Ranges of rows and their values, in order."""
        start = 0
        for shape, paths in self._files:
            arrays = [np.load(path, mmap_mode="r") for path in paths]
            piece: Matrix = arrays[0] if len(arrays) == 1 else sparse.csr_array(tuple(arrays), shape=shape)
            yield slice(start, start + shape[0]), piece
            start += shape[0]
        if self._held:
            piece = _stacked(self._held)
            self._held = [piece]
            yield slice(start, start + piece.shape[0]), piece

    def whole(self) -> Matrix:
        """All rows (row, feature)."""
        return _stacked([piece for _, piece in self.pieces()])

    def columns(self, part: slice, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Some features of all rows of a dense design, missing ones replaced by their ``mean``."""
        x = np.concatenate([piece[:, part] for _, piece in self.pieces()], dtype=np.float64)
        return np.where(np.isnan(x), mean, x) if np.isnan(x).any() else x

    def blocks(self, mean: NDArray[np.float64]) -> Iterator[tuple[slice, Any]]:
        """Ranges of rows and their values as float64, missing ones replaced by ``mean`` (feature,).

        Dense ones are few at a time, so that they are used again while they are at hand.
        """
        for part, piece in self.pieces():
            if not isinstance(piece, np.ndarray):
                yield part, piece
                continue
            step = max(1, _BLOCK_BYTES // max(8, 8 * piece.shape[1]))
            for first in range(0, len(piece), step):
                x = piece[first : first + step].astype(np.float64)
                gap = np.isnan(x)
                if gap.any():
                    x = np.where(gap, mean, x)
                yield slice(part.start + first, part.start + first + len(x)), x


def moments(design: Spool, keep: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over the kept rows, without those that are missing."""
    total, square, count = np.zeros(0), np.zeros(0), np.zeros(0)
    origin = np.zeros(0)  # a row's own numbers: what is the same in all rows is exactly 0 from there
    for part, x in design.pieces():
        x = x[keep[part]]
        if isinstance(x, np.ndarray):
            real = ~np.isnan(x)
            first = np.take_along_axis(x, real.argmax(0)[None], 0)[0] if len(x) else np.full(x.shape[1], np.nan)
            origin = np.where(np.isnan(origin), first, origin) if len(origin) else first.astype(np.float64)
            new = np.where(real, x - origin, 0)
            sums = new.sum(0), np.square(new).sum(0), real.sum(0).astype(np.float64)
        else:
            square_sums = np.asarray(x.power(2).sum(axis=0))
            sums = np.asarray(x.sum(axis=0)), square_sums, np.full(x.shape[1], float(x.shape[0]))
        total, square, count = (a + b if len(a) else b for a, b in zip((total, square, count), sums, strict=True))
    count = np.maximum(count, 1)
    mean = total / count
    return mean + (np.nan_to_num(origin) if len(origin) else 0), np.sqrt(np.maximum(square / count - mean**2, 0))


def designs(rows: Rows, known: Weights, spec: ErrorSpec, folder: Path) -> tuple[Spool, Spool]:
    """Design matrices of codes (sparse) and of raw activations, from one pass; features are cell-major."""
    codes, raw = Spool(folder, "codes"), Spool(folder, "raw")
    everyone = np.ones(rows.n_example, dtype=bool)
    max_rows = max(64, _GATHERED // max(known.encoder.shape[1], rows.n_cell * rows.width))
    gathered: dict[int, tuple[Matrix, NDArray[np.float32]]] = {}

    def flush() -> None:
        if not gathered:
            return
        code, states = pooled([gathered[cell] for cell in sorted(gathered)], spec.pooling)
        codes.add(code)
        raw.add(states)
        gathered.clear()

    here: slice | None = None
    for block, _, x in rows.walk(everyone, max_rows, 4 * _GATHERED):
        if here is not None and block.example != here:
            flush()
        here = block.example
        for place, cell in enumerate(rows.cell_numbers(block)):
            vectors = x[:, place]
            real = ~np.isnan(vectors).any(axis=-1)
            code = np.zeros((len(vectors), known.encoder.shape[1]), dtype=np.float32)
            code[real] = known.compared(known.encode(vectors[real], int(cell)), int(cell))
            gathered[int(cell)] = sparse.csr_array(code), vectors
    flush()
    return codes, raw


def pooled(parts: Sequence[tuple[Matrix, NDArray[np.float32]]], pooling: str) -> tuple[Matrix, NDArray[np.float32]]:
    """Codes (example, feature) and states (example, width) of every cell as one row of each example."""
    codes, states = zip(*parts, strict=True)
    if pooling == "concatenate":
        return sparse.csr_array(sparse.hstack(codes, format="csr")), np.concatenate(states, axis=1)
    x = np.stack(states, axis=1)  # (example, cell, width)
    real: Any = ~np.isnan(x).any(axis=-1)
    first, *others = codes
    if pooling == "mean":
        n_real = np.maximum(real.sum(1), 1)[:, None].astype(np.float32)
        code = sum(others, first).multiply(1 / n_real)
        state = np.where(real[..., None], x, 0).sum(1) / n_real
    else:
        code = first
        for other in others:  # by magnitude, as codes of abs_topk have signs
            larger = abs(other) > abs(code)
            code = code - code.multiply(larger) + other.multiply(larger)
        state = np.where(real[..., None], x, -np.inf).max(1)
    return sparse.csr_array(code), np.where(real.any(1)[:, None], state, np.nan).astype(np.float32)


def _stacked(rows: Sequence[Matrix]) -> Matrix:
    if len(rows) == 1:
        return rows[0]
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    return sparse.csr_array(sparse.vstack(rows, format="csr"))
