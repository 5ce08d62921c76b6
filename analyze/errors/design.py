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

_SPOOL_BYTES = 1 << 23
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
        self.n_row = 0
        self._files: list[Path] = []
        self._held: list[Matrix] = []
        self._size = 0

    def add(self, rows: Matrix) -> None:
        """Append rows (row, feature), dense or sparse."""
        self._held.append(rows)
        self.n_row += rows.shape[0]
        self._size += rows.data.nbytes * (2 if sparse.issparse(rows) else 1)
        if self.folder is not None and self._size > _SPOOL_BYTES:
            path = self.folder / f"{self.name}-{len(self._files)}"
            piece = _stacked(self._held)
            if isinstance(piece, np.ndarray):
                path = path.with_suffix(".npy")
                np.save(path, piece)
            else:
                path = path.with_suffix(".npz")
                sparse.save_npz(path, piece, compressed=False)
            self._files.append(path)
            self._held, self._size = [], 0

    def pieces(self) -> Iterator[tuple[slice, Matrix]]:
        """Ranges of rows and their values, in order."""
        start = 0
        for path in self._files:
            piece: Matrix = np.load(path) if path.suffix == ".npy" else sparse.csr_array(sparse.load_npz(path))
            yield slice(start, start + piece.shape[0]), piece
            start += piece.shape[0]
        if self._held:
            piece = _stacked(self._held)
            self._held = [piece]
            yield slice(start, start + piece.shape[0]), piece


def moments(design: Spool, keep: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature over the kept rows, without those that are missing."""
    total, square, count = np.zeros(0), np.zeros(0), np.zeros(0)
    for part, x in design.pieces():
        x = x[keep[part]]
        if isinstance(x, np.ndarray):
            real = ~np.isnan(x)
            new = np.where(real, x, 0).astype(np.float64)
            sums = new.sum(0), np.square(new).sum(0), real.sum(0).astype(np.float64)
        else:
            wide: Any = x.astype(np.float64)
            sums = np.asarray(wide.sum(axis=0)), np.asarray(wide.power(2).sum(axis=0)), np.full(x.shape[1], x.shape[0])
        total, square, count = (a + b if len(a) else b for a, b in zip((total, square, count), sums, strict=True))
    count = np.maximum(count, 1)
    mean = total / count
    return mean, np.sqrt(np.maximum(square / count - mean**2, 0))


def designs(rows: Rows, known: Weights, spec: ErrorSpec, folder: Path, is_joint: bool) -> tuple[Spool, Spool]:
    """Design matrices of codes (sparse) and of raw activations, from one pass; features are cell-major."""
    codes, raw = Spool(folder, "codes"), Spool(folder, "raw")
    everyone = np.ones(rows.n_example, dtype=bool)
    max_rows = max(64, 2**22 // known.encoder.shape[1])
    gathered: dict[int, tuple[Matrix, NDArray[np.float32]]] = {}

    def flush() -> None:
        if not gathered:
            return
        parts = [gathered[cell] for cell in sorted(gathered)]
        if spec.pooling == "concatenate":
            codes.add(sparse.csr_array(sparse.hstack([p[0] for p in parts], format="csr")))
            raw.add(np.concatenate([p[1] for p in parts], axis=1))
        else:
            x = np.stack([p[1] for p in parts], axis=1)  # (example, cell, width)
            real: Any = ~np.isnan(x).any(axis=-1)
            if spec.pooling == "mean":
                n_real = np.maximum(real.sum(1), 1)[:, None].astype(np.float32)
                total = parts[0][0]
                for code, _ in parts[1:]:
                    total = total + code
                codes.add(sparse.csr_array(total.multiply(1 / n_real)))
                pooled = np.where(real[..., None], x, 0).sum(1) / n_real
            else:
                largest = parts[0][0]
                for code, _ in parts[1:]:  # by magnitude, as codes of abs_topk have signs
                    larger = abs(code) > abs(largest)
                    largest = largest - largest.multiply(larger) + code.multiply(larger)
                codes.add(sparse.csr_array(largest))
                pooled = np.where(real[..., None], x, -np.inf).max(1)
            raw.add(np.where(real.any(1)[:, None], pooled, np.nan).astype(np.float32))
        gathered.clear()

    here: slice | None = None
    for block, _, x in rows.walk(everyone, max_rows):
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


def _stacked(rows: Sequence[Matrix]) -> Matrix:
    if len(rows) == 1:
        return rows[0]
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    return sparse.csr_array(sparse.vstack(rows, format="csr"))


def filled(x: Matrix, mean: NDArray[np.float64]) -> Any:
    """Missing values of a dense matrix replaced by the feature's mean."""
    if isinstance(x, np.ndarray):
        gap = np.isnan(x)
        return np.where(gap, mean, x) if gap.any() else x.astype(np.float64)
    return x
