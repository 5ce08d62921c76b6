"""Using a trained dictionary: codes and reconstructions of labelled activations, lazily, with numpy alone."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyze.sae.batches import Rows, check_source
from analyze.sae.spec import Activation
from schemas.codes import active_codes
from schemas.errors import SchemaError, UsageError

Activations = xr.DataArray | Mapping[str, xr.DataArray]


def sae_codes(sae: xr.Dataset, activation: Activations) -> xr.DataArray:
    """Codes of activations under a trained dictionary.

    Parameters
    ----------
    sae : Dataset of :func:`analyze.sae.dictionary.train_sae` or :func:`analyze.sae.files.load_sae`
    activation : (example, ..., hidden), or a mapping of model name to such arrays for a crosscoder
        Of any run of the same model; a grid refuses cells that it was not trained on.

    Returns
    -------
    (example, ..., feature), float32, lazy where the activation is; NaN where the row is missing or not finite
    """
    pre: xr.DataArray | None = None
    for name, array in sources(activation, sae).items():
        part = _part(sae, name, array)
        n_hidden = int(part["n_hidden"])
        known = _same_cells(part[["encoder", "decoder_bias"]].isel(hidden=slice(n_hidden)), array)
        array = array.drop_vars("hidden", errors="ignore")
        new: xr.DataArray = xr.apply_ufunc(
            _pre_activation,
            array if array.chunks is None else array.chunk(hidden=-1),
            known["decoder_bias"],
            known["encoder"],
            input_core_dims=[["hidden"], ["hidden"], ["feature", "hidden"]],
            output_core_dims=[["feature"]],
            dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": {"feature": sae.sizes["feature"]}},
        )
        pre = new if pre is None else pre + new
    if pre is None:
        raise UsageError("codes of no activation: the mapping of models is empty")
    known = _same_cells(sae[["encoder_bias", "threshold"]], pre)
    codes: xr.DataArray = xr.apply_ufunc(
        active_codes,
        pre.drop_vars("feature", errors="ignore"),
        known["encoder_bias"],
        known["threshold"],
        input_core_dims=[["feature"]] * 3,
        output_core_dims=[["feature"]],
        kwargs={"activation": sae.attrs["activation"], "k": int(sae.attrs["k"])},
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    return codes.rename("code").assign_coords(feature=sae["feature"])


def sae_reconstruction(sae: xr.Dataset, code: xr.DataArray, *, source: str | None = None) -> xr.DataArray:
    """What a dictionary makes of codes, in the activation's own units.

    Parameters
    ----------
    sae : Dataset of :func:`analyze.sae.dictionary.train_sae`
    code : (example, ..., feature)
    source : for a crosscoder, which of its sources to write

    Returns
    -------
    (example, ..., hidden), float32, lazy where the codes are
    """
    if (source is None) == (sae.attrs["scope"] == "crosscoder"):
        known = ", ".join(map(str, sae["source"].values)) if "source" in sae.dims else "none: it is no crosscoder"
        raise UsageError(f"reconstruction for source {source!r}; the dictionary's sources are {known}")
    part = sae if source is None else sae.sel(source=source)
    n_hidden = int(part["n_hidden"])
    known_part = _same_cells(part[["decoder", "decoder_bias"]].isel(hidden=slice(n_hidden)), code)
    reconstruction: xr.DataArray = xr.apply_ufunc(
        _decoded,
        code if code.chunks is None else code.chunk(feature=-1),
        known_part["decoder"],
        known_part["decoder_bias"],
        input_core_dims=[["feature"], ["feature", "hidden"], ["hidden"]],
        output_core_dims=[["hidden"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"hidden": n_hidden}},
    )
    return reconstruction.drop_vars("feature", errors="ignore").rename("reconstruction")


class Weights(NamedTuple):
    """A dictionary as plain arrays whose first axis is the cell, or 1 long where all cells share."""

    encoder: NDArray[np.float32]  # (cell or 1, feature, width), width: all sources side by side
    encoder_bias: NDArray[np.float32]  # (cell or 1, feature)
    decoder: NDArray[np.float32]  # (cell or 1, feature, width)
    decoder_bias: NDArray[np.float32]  # (cell or 1, width)
    threshold: NDArray[np.float32]  # (cell or 1, feature)
    unit: NDArray[np.float32]  # (cell or 1,), what codes are divided by to be compared between cells
    activation: Activation
    k: int

    def encode(self, x: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
        """Codes (row, feature) of rows (row, width) at a cell."""
        pre = (x - _at(self.decoder_bias, cell)) @ _at(self.encoder, cell).T
        return active_codes(
            np.asarray(pre, dtype=np.float32),
            _at(self.encoder_bias, cell),
            _at(self.threshold, cell),
            self.activation,
            self.k,
        )

    def compared(self, f: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
        """Codes in units of the cell's own mean norm, so that a cell of large states does not outweigh the others."""
        return np.asarray(f / self.unit[cell if len(self.unit) > 1 else 0], dtype=np.float32)

    def decode(self, f: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
        """Reconstruction (row, width) of codes (row, feature)."""
        return np.asarray(f @ _at(self.decoder, cell) + _at(self.decoder_bias, cell))


def weights(sae: xr.Dataset, source: Mapping[str, xr.DataArray], rows: Rows) -> Weights:
    """The arrays of a labelled dictionary for the cells of ``rows``."""
    first = next(iter(source.values()))
    arrays: dict[str, NDArray[np.float32]] = {}
    for variable in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        pieces = []
        for name, array in source.items():
            part = _same_cells(_part(sae, name, array)[[variable, "n_hidden"]], first)
            value = part[variable]
            if "hidden" in value.dims:
                value = value.isel(hidden=slice(int(part["n_hidden"])))
            per_cell = [d for d in rows.cell_dims if d in value.dims]
            core = [d for d in ("feature", "hidden") if d in value.dims]
            if per_cell:
                piece = value.transpose(*rows.cell_dims, *core).values
                piece = piece.reshape(rows.n_cell, *piece.shape[len(rows.cell_dims) :])
            else:
                piece = value.transpose(*core).values[None]
            pieces.append(np.asarray(piece, dtype=np.float32))
            if "hidden" not in value.dims:
                break
        arrays[variable] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)
    unit = np.ones(1, dtype=np.float32)
    if "input_scale" in sae and "source" not in sae["input_scale"].dims:
        known_scale = _same_cells(sae[["input_scale"]], first)["input_scale"]
        order = [d for d in rows.cell_dims if d in known_scale.dims]
        unit = np.asarray(known_scale.transpose(*order).values, dtype=np.float32).reshape(-1)
    return Weights(**arrays, unit=unit, activation=sae.attrs["activation"], k=int(sae.attrs["k"]))


def sources(
    activation: Activations, sae: xr.Dataset | None = None, scope: str | None = None
) -> dict[str, xr.DataArray]:
    """Named arrays that a row is made of, with the same examples and cells.

    A pool or a grid has one. A crosscoder has one for each layer of each model, joined by example and by position.
    """
    scope = scope or (sae.attrs["scope"] if sae is not None else "pool")
    if scope != "crosscoder":
        if not isinstance(activation, xr.DataArray):
            raise UsageError(
                f"scope {scope!r} reads one array; several models share a dictionary with scope 'crosscoder'"
            )
        check_source({"activation": activation}, "a dictionary")
        return {"": activation}
    if isinstance(activation, xr.DataArray):
        activation = {str(activation.attrs.get("model", "model")): activation}
    check_source(activation, "a crosscoder")
    by_name: dict[str, xr.DataArray] = {}
    for model, array in activation.items():
        layers = np.atleast_1d(array["layer"].values) if "layer" in array.coords else [None]
        for layer in layers:
            one = array if layer is None or "layer" not in array.dims else array.sel(layer=layer, drop=True)
            by_name[model if layer is None else f"{model}/{layer}"] = one.drop_vars("layer", errors="ignore")
    if sae is not None:
        missing = [str(s) for s in sae["source"].values if str(s) not in by_name]
        if missing:
            raise SchemaError(
                f"a crosscoder of {list(sae['source'].values)} is given {list(by_name)}; {missing} are missing. "
                "Pass a mapping of the same model names with the same layers."
            )
        by_name = {str(s): by_name[str(s)] for s in sae["source"].values}
    joined = xr.align(*by_name.values(), join="inner", exclude=["hidden"], copy=False)
    if not joined[0].sizes["example"]:
        raise UsageError(f"a crosscoder joins {list(activation)} by example, but they share none")
    other = {d for array in joined for d in array.dims} - {"example", "position", "latent", "hidden"}
    if other or len({frozenset(array.dims) for array in joined}) > 1:
        raise SchemaError(
            f"a crosscoder's sources have dims {[a.dims for a in joined]}; expected the same, with no {other}"
        )
    if all("problem" in array.coords for array in joined):
        problem = joined[0]["problem"].values
        if any(not np.array_equal(problem, array["problem"].values) for array in joined[1:]):
            raise UsageError(
                f"a crosscoder joins {list(activation)} by example, but the same example is another problem in each; "
                "join runs of one data file"
            )
    return dict(zip(by_name, joined, strict=True))


def _part(sae: xr.Dataset, name: str, array: xr.DataArray) -> xr.Dataset:
    part = sae.sel(source=name) if sae.attrs["scope"] == "crosscoder" else sae
    if array.sizes["hidden"] != int(part["n_hidden"]):
        raise SchemaError(
            f"codes of {name or 'the activation'}: it has {array.sizes['hidden']} hidden numbers, the dictionary reads "
            f"{int(part['n_hidden'])}. Pass activations of the model it was trained on."
        )
    return part


def _same_cells(part: xr.Dataset, array: xr.DataArray) -> xr.Dataset:
    """The part's own cells reduced to those of the array, in its order."""
    for dim in set(part.dims) & (set(array.dims) - {"example", "hidden", "feature"}):
        wanted = array[dim].values
        missing = sorted(set(wanted.tolist()) - set(part[dim].values.tolist()), key=str)
        if missing:
            raise SchemaError(
                f"the dictionary has no {dim} {missing}; it was trained on {part[dim].values.tolist()}. "
                f"Take no other {dim}s of the run."
            )
        part = part.sel({dim: wanted})
    for dim in set(part.dims) - set(array.dims) - {"feature", "hidden", "source"}:
        name: Hashable = dim
        if name in array.coords:  # one cell was selected
            part = part.sel({name: array[name].item()}, drop=True)
    return part.drop_vars(["hidden", "feature"], errors="ignore")


def _pre_activation(
    x: NDArray[Any], decoder_bias: NDArray[np.float32], encoder: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(example, ..., hidden), (..., hidden), (..., feature, hidden) -> (example, ..., feature)."""
    inside = x.astype(np.float32) - decoder_bias
    known = np.isfinite(inside).all(axis=-1, keepdims=True)
    if not known.all():
        inside = np.where(known, inside, np.float32(np.nan))
    if encoder.ndim == 2:
        return _product(inside, encoder.T)
    encoder = encoder.reshape(encoder.shape[-inside.ndim :]) if encoder.ndim > inside.ndim else encoder
    moved = np.moveaxis(inside, 0, -2) @ np.swapaxes(encoder, -1, -2)  # a product for each cell
    return np.asarray(np.moveaxis(moved, -2, 0))


def _decoded(
    code: NDArray[np.float32], decoder: NDArray[np.float32], decoder_bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    if decoder.ndim == 2:
        return np.asarray(_product(code, decoder) + decoder_bias)
    return np.asarray(np.moveaxis(np.moveaxis(code, 0, -2) @ decoder, -2, 0) + decoder_bias)


def _product(values: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., n), (n, m) -> (..., m), as one product of all rows: numpy would do one for each example."""
    rows = values.reshape(-1, values.shape[-1]) @ matrix
    return np.asarray(rows.reshape(*values.shape[:-1], matrix.shape[-1]))


def _at(array: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    return np.asarray(array[cell if len(array) > 1 else 0])
