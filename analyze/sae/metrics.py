"""How well a dictionary reconstructs, how sparsely, and which problems move its features; one pass over the data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyze.labels import numbered
from analyze.sae.batches import SPLITS, Block, Rows
from analyze.sae.codes import Activations, sources, weights
from schemas.errors import SchemaError
from schemas.progress import Progress, silent

DEFINITIONS = ("squared_error", "per_dimension", "all_elements")
_EDGES = np.linspace(-4, 2, 61)  # log10 of a code's size over the mean norm of centred rows


def sae_metrics(
    sae: xr.Dataset, activation: Activations, *, n_top: int = 10, progress: Progress = silent
) -> xr.Dataset:
    """Reconstruction, sparsity and top-activating problems of a dictionary.

    Explained variance has three definitions along ``definition``, with ``r = x - x_hat`` over the rows of a split (at a
    cell, or of all cells together in ``explained_variance_all``):

    - ``squared_error`` (ours): ``1 - sum |r|^2 / sum |x - mean x|^2``, with the mean vector of those rows; a constant
      offset of the reconstruction counts as error, and a dictionary that outputs the mean scores 0;
    - ``per_dimension`` (the reports' pilot): ``1 - mean_j Var(r_j) / mean_j Var(x_j)``, which forgives a constant
      offset;
    - ``all_elements`` (the reports' LLaMA and top-k scripts): ``1 - Var(r) / Var(x)`` over all numbers of all rows at
      once, which is higher where the means of the hidden dimensions differ, since reproducing those counts.

    Parameters
    ----------
    sae : Dataset of :func:`analyze.sae.dictionary.train_sae`
    activation : what it was trained on, or a selection; examples without a ``split`` in ``sae`` are refused
    n_top : int
    progress : called with (done, total) in chunks

    Returns
    -------
    Dataset
        ``explained_variance(definition, split, ...)`` and ``explained_variance_all(definition, split)``, with
        ``source`` for a crosscoder; ``n_infinite``, the rows left out because a number in them is infinite
        (rows with NaN, positions that the example lacks, are not counted); ``squared_error(split, ...)``, the
        mean ``|r|^2``; ``l0(split, ...)`` codes that are not 0 per row and ``l0_reports`` codes above 1e-3;
        ``n_row(split, ...)``; ``dead_share(split)``, features that fire on no row of the split;
        ``frequency(..., feature)``, the share of rows of all splits on which a feature fires, the mean
        magnitude of its codes while it fires, ``mean_activation``, and the largest, ``max_activation`` (codes
        of ``abs_topk`` have signs, others have not); ``activation_count(activation_size)``, a histogram of
        codes that are not 0; ``top_example(feature, rank)``, by magnitude, with ``top_activation``, the code
        itself, and the cell it was at, an example at most once:
        ``run["question"].sel(example=sae["top_example"].sel(feature=17))`` are the questions. Codes are
        compared in units of their cell's ``input_scale``, so that a layer of large states does not outweigh the
        others.
    """
    source = sources(activation, sae)
    is_grid = sae.attrs["scope"] == "cell"
    rows = Rows(source, pooled=not is_grid)
    first = next(iter(source.values()))
    remedy = "measure on the run it was trained on, or assign an 'example_split' of your own"
    side = split_numbers(sae, first, "metrics", remedy)
    known = weights(sae, source, rows)
    tally = _Tally(rows, sae.sizes["feature"], is_grid, n_top)
    n_block = len(measured_blocks(rows, sae.sizes["feature"]))
    for done, (block, example, x) in enumerate(rows.walk(side >= 0, measured_rows(sae.sizes["feature"]))):
        for place, cell in enumerate(rows.cell_numbers(block)):
            real = ~np.isnan(x[:, place]).any(axis=-1)
            here = x[real, place]
            codes = known.encode(here, int(cell))
            residual = here - known.decode(codes, int(cell))
            tally.add(int(cell), side[example[real]], example[real], here, residual, known.compared(codes, int(cell)))
        progress(done + 1, n_block)
    metrics = tally.dataset(sae, source, first)
    metrics["n_infinite"] = (), rows.n_infinite
    metrics["n_infinite"].attrs = {"long_name": "rows left out because a number in them is infinite"}
    return metrics


def measured_rows(n_feature: int) -> int:
    """Examples measured at once, so that their codes at a cell stay below 2 MB."""
    return max(64, 2**19 // n_feature)


def measured_blocks(rows: Rows, n_feature: int) -> list[Block]:
    """Pieces of the data that are measured one after the other."""
    return rows.blocks(max_rows=measured_rows(n_feature))


class _Tally:
    """Running sums of one pass; their size depends on cells, features and width, not on examples."""

    def __init__(self, rows: Rows, n_feature: int, is_grid: bool, n_top: int) -> None:
        self.rows, self.is_grid = rows, is_grid
        shape = (len(SPLITS), rows.n_cell)
        n_group = rows.n_cell if is_grid else 1
        self.count = np.zeros(shape)
        self.sums = {name: np.zeros((*shape, rows.width)) for name in ("x", "xx", "r", "rr")}
        self.l0, self.l0_reports = np.zeros(shape), np.zeros(shape)
        self.fired = np.zeros((*shape, n_feature), dtype=np.int64)
        self.total = np.zeros((n_group, n_feature))
        self.largest = np.zeros((n_group, n_feature), dtype=np.float32)
        self.histogram = np.zeros(len(_EDGES) - 1, dtype=np.int64)
        self.top = [_Top(n_feature, n_top) for _ in range(n_group)]

    def add(
        self,
        cell: int,
        side: NDArray[np.intp],
        example: NDArray[np.intp],
        x: NDArray[np.float32],
        residual: NDArray[np.float32],
        codes: NDArray[np.float32],
    ) -> None:
        """Count rows of one cell: x and residual (row, width), codes (row, feature)."""
        if not len(x):
            return
        on = codes != 0
        for s in np.unique(side):
            mine = side == s
            self.count[s, cell] += mine.sum()
            for name, value in (("x", x[mine]), ("r", residual[mine])):
                self.sums[name][s, cell] += value.sum(axis=0, dtype=np.float64)
                self.sums[name * 2][s, cell] += np.square(value, dtype=np.float64).sum(axis=0)
            self.fired[s, cell] += on[mine].sum(axis=0)
            self.l0[s, cell] += on[mine].sum()
            self.l0_reports[s, cell] += (np.abs(codes[mine]) > 1e-3).sum()
        group = cell if self.is_grid else 0
        magnitude = np.abs(codes)
        self.total[group] += magnitude.sum(axis=0, dtype=np.float64)
        self.largest[group] = np.maximum(self.largest[group], magnitude.max(axis=0))
        size = np.log10(magnitude[on])
        self.histogram += np.histogram(np.clip(size, _EDGES[0], _EDGES[-1]), _EDGES)[0]
        self.top[group].add(example, cell, codes)

    def dataset(self, sae: xr.Dataset, source: Mapping[str, xr.DataArray], first: xr.DataArray) -> xr.Dataset:
        """Labelled metrics."""
        rows = self.rows
        cell_dims, cell_shape = rows.cell_dims, rows.cell_shape
        edges = np.cumsum([0, *rows.hidden])[:-1]
        extra = ("source",) if sae.attrs["scope"] == "crosscoder" else ()
        ev = _explained(self.count, self.sums, edges)  # (definition, split, cell, source)
        pooled = _explained(self.count.sum(1), {k: v.sum(1) for k, v in self.sums.items()}, edges)
        error = np.add.reduceat(self.sums["rr"], edges, axis=-1) / np.maximum(self.count, 1)[..., None]
        error[self.count == 0] = np.nan
        if not extra:
            ev, pooled, error = ev[..., 0], pooled[..., 0], error[..., 0]
        with np.errstate(invalid="ignore"):
            l0, l0_reports = self.l0 / self.count, self.l0_reports / self.count
            frequency = self.fired.sum(0) / self.count.sum(0)[:, None]
        fired = self.fired if self.is_grid else self.fired.sum(1, keepdims=True)
        present = (self.count if self.is_grid else self.count.sum(1, keepdims=True)) > 0
        dead = np.where(present, (fired == 0).mean(-1), np.nan)
        n_fired = fired.sum(0)
        group_dims, group_shape = self._groups()
        n_feature = self.total.shape[-1]

        def shaped(value: NDArray[Any], n_lead: int, n_trail: int = 0, grouped: bool = False) -> NDArray[Any]:
            middle = group_shape if grouped else cell_shape
            return value.reshape(*value.shape[:n_lead], *middle, *value.shape[value.ndim - n_trail :])

        n_extra = len(extra)
        with np.errstate(invalid="ignore"):
            mean_activation = self.total / n_fired
        out = xr.Dataset(
            {
                "explained_variance": (("definition", "split", *cell_dims, *extra), shaped(ev, 2, n_extra)),
                "explained_variance_all": (("definition", "split", *extra), pooled),
                "squared_error": (("split", *cell_dims, *extra), shaped(error, 1, n_extra)),
                "l0": (("split", *cell_dims), shaped(l0, 1)),
                "l0_reports": (("split", *cell_dims), shaped(l0_reports, 1)),
                "n_row": (("split", *cell_dims), shaped(self.count.astype(np.int64), 1)),
                "dead_share": (("split", *group_dims), shaped(dead, 1, grouped=True)),
                "frequency": ((*cell_dims, "feature"), frequency.reshape(*cell_shape, n_feature)),
                "mean_activation": ((*group_dims, "feature"), shaped(mean_activation, 0, 1, grouped=True)),
                "max_activation": ((*group_dims, "feature"), shaped(self.largest, 0, 1, grouped=True)),
                "activation_count": ("activation_size", self.histogram),
            },
            coords={
                "definition": list(DEFINITIONS),
                "split": list(SPLITS),
                "feature": np.arange(n_feature),
                "activation_size": 10 ** ((_EDGES[:-1] + _EDGES[1:]) / 2),
                **{d: first[d].values for d in cell_dims if d in first.coords},
            },
        )
        if extra:
            out = out.assign_coords(source=list(source))
        out = self._with_top(out, first)
        out["explained_variance"].attrs = {"long_name": "explained variance", "range": "(-inf, 1]"}
        out["l0"].attrs = {"long_name": "features active per row", "units": "features"}
        out["dead_share"].attrs = {"long_name": "share of features that never fire", "range": "[0, 1]"}
        out["activation_size"].attrs = {"long_name": "code / mean norm of centred inputs"}
        return out

    def _groups(self) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Dims and shape of what has a dictionary of its own."""
        return (self.rows.cell_dims, self.rows.cell_shape) if self.is_grid else ((), ())

    def _with_top(self, out: xr.Dataset, first: xr.DataArray) -> xr.Dataset:
        """With the examples that activate each feature most, and where they do."""
        value = np.stack([t.value for t in self.top])  # (group, rank, feature)
        number = np.stack([t.example for t in self.top])
        place = np.stack([t.cell for t in self.top])
        group_dims, group_shape = self._groups()
        dims = (*group_dims, "feature", "rank")

        def ranked(array: NDArray[Any]) -> tuple[tuple[Any, ...], NDArray[Any]]:
            return dims, np.swapaxes(array, 1, 2).reshape(*group_shape, self.total.shape[-1], -1)

        labelled = numbered(first, ["example", *map(str, self.rows.cell_dims)])
        none = number < 0
        out["top_example"] = ranked(np.where(none, -1, labelled["example"].values[np.maximum(number, 0)]))
        out["top_activation"] = ranked(np.where(none, np.nan, value))
        if not self.is_grid and self.rows.cell_shape:
            cell_index = np.unravel_index(np.maximum(place, 0), self.rows.cell_shape)
            for dim, index in zip(self.rows.cell_dims, cell_index, strict=True):
                values = labelled[dim].values
                missing = "" if values.dtype.kind in "OUT" else -1
                out[f"top_{dim}"] = ranked(np.where(none, missing, values[index]))
        return out.assign_coords(rank=np.arange(value.shape[1]))


class _Top:
    """The examples with the code of largest magnitude of each feature, each at its best cell."""

    def __init__(self, n_feature: int, n_top: int) -> None:
        self.value = np.zeros((n_top, n_feature), dtype=np.float32)
        self.example = np.full((n_top, n_feature), -1, dtype=np.int64)
        self.cell = np.full((n_top, n_feature), -1, dtype=np.int32)

    def add(self, example: NDArray[np.intp], cell: int, codes: NDArray[np.float32]) -> None:
        """Take in codes (row, feature) of different examples at one cell."""
        n = min(len(codes), len(self.value))
        if not n:
            return
        index = (
            np.argpartition(-np.abs(codes), n - 1, axis=0)[:n]
            if n < len(codes)
            else np.repeat(np.arange(n)[:, None], codes.shape[1], axis=1)
        )
        value = np.take_along_axis(codes, index, axis=0)
        number = example[index]
        # an example that is already there keeps its better cell
        for rank in range(len(self.value)):
            same = (number == self.example[rank]) & (value != 0)
            best = np.where(same, value, 0).sum(0)  # at most one is the same
            better = np.abs(best) > np.abs(self.value[rank])
            self.value[rank] = np.where(better, best, self.value[rank])
            self.cell[rank] = np.where(better, cell, self.cell[rank])
            value = np.where(same, 0, value)
        value_all = np.concatenate([self.value, value])
        number_all = np.concatenate([self.example, np.where(value != 0, number, -1)])
        cell_all = np.concatenate([self.cell, np.where(value != 0, cell, -1).astype(np.int32)])
        order = np.argsort(-np.abs(value_all), axis=0, kind="stable")[: len(self.value)]
        self.value = np.take_along_axis(value_all, order, axis=0)
        self.example = np.take_along_axis(number_all, order, axis=0)
        self.cell = np.take_along_axis(cell_all, order, axis=0)


def split_numbers(sae: xr.Dataset, first: xr.DataArray, what: str, remedy: str) -> NDArray[np.intp]:
    """Number of each example's split, -1 for none; refuse ``what`` of examples that the dictionary does not know."""
    label = numbered(first, ["example"])["example"].values
    known = sae["example_split"].to_series()
    unknown = ~np.isin(label, known.index)
    if unknown.any():
        raise SchemaError(
            f"{what} on {int(unknown.sum())} examples that the dictionary's split does not know, such as "
            f"{label[unknown][0]}; {remedy}"
        )
    number = known.map({s: i for i, s in enumerate(SPLITS)}).fillna(-1).astype(int)
    return np.asarray(number.reindex(label).to_numpy(), dtype=np.intp)


def _explained(
    count: NDArray[np.float64], sums: Mapping[str, NDArray[np.float64]], edges: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Three explained variances (definition, ..., source) from sums (..., width) over ``count`` (...) rows."""
    n = np.where(count > 0, count, np.nan)[..., None]

    def per_source(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(value, edges, axis=-1))

    width = per_source(np.ones(sums["x"].shape[-1]))
    square_x = per_source(sums["xx"] / n)
    variance_x = square_x - per_source((sums["x"] / n) ** 2)
    variance_x[variance_x <= 1e-12 * square_x] = np.nan  # one row, or rows that are alike, have none to be explained
    variance_r = per_source(sums["rr"] / n - (sums["r"] / n) ** 2)
    squared = per_source(sums["rr"] / n)

    def elements(square: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(per_source(square / n) / width - (per_source(first / n) / width) ** 2)

    elements_x = elements(sums["xx"], sums["x"])
    elements_x[elements_x <= 1e-12 * square_x / width] = np.nan
    return np.stack([
        1 - squared / variance_x, 1 - variance_r / variance_x, 1 - elements(sums["rr"], sums["r"]) / elements_x,
    ])  # fmt: skip
