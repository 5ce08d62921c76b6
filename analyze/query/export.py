"""A selection of a run as one file for other tools, written block by block, so that memory does not grow with it."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analyze.blocks import reported_blocks
from analyze.labels import part_of
from schemas import UsageError, nearest
from schemas.progress import Progress, silent
from schemas.whole_files import beside, check_outside
from store import Lake

SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""What the format calls a type."""
CUT = (".npz", ".nc")
"""Formats whose texts are of one width, filled up with NUL."""


def export(
    lake: Lake,
    run: str,
    to: Path,
    variables: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    limit: int | None = None,
    stored: bool = False,
    progress: Progress = silent,
) -> xr.Dataset:
    """Write variables of a run, with their labels, into one file.

    ``.npz`` holds an array for each variable and each label; ``.safetensors`` an array for each, and texts as JSON in
    its metadata; ``.nc`` (netCDF) what xarray opens again; ``.parquet`` a row for each example and further dims of the
    first variable but its last, which is a list: ``example, layer, position, hidden_state``. Where an example has no
    token, states are NaN. The file takes its place once it is whole.

    Parameters
    ----------
    lake, run, variables
        What is written.
    to
        File; its ending says the format.
    layers, positions, limit
        Only this part, see :func:`analyze.labels.part_of`.
    stored
        Numbers in the type they are stored in; else float32.

    Returns
    -------
    Dataset
        What was written, lazy.

    Raises
    ------
    UsageError
        If a variable, a label or the format is not there, or the format cannot hold what is asked for.
    """
    if to.suffix not in WRITERS:
        raise UsageError(f"{to} ends in none of {', '.join(WRITERS)}{nearest(to.suffix, WRITERS)}")
    check_outside(to)
    run_data = lake.open(run, chunks="auto" if to.suffix == ".nc" else None, stored=stored)
    missing = [name for name in variables if name not in run_data.data_vars]
    if missing or not variables:
        known = list(map(str, run_data.data_vars))
        raise UsageError(
            f"{run} has no variable {', '.join(missing) or 'of an empty name'}; it has {', '.join(known)}"
            + (nearest(missing[0], known) if missing else "")
        )
    dims = {dim for name in variables for dim in run_data[name].dims}
    for what, labels, along in (("layers", layers, {"layer"}), ("positions", positions, {"position", "latent"})):
        if labels is not None and not dims & along:
            raise UsageError(f"{', '.join(variables)} of {run}: no {what} to choose from; leave --{what} out")
    data = part_of(run_data, layers=layers, positions=positions, limit=limit)[list(variables)]
    if positions is not None and "latent" in dims:
        latents = [label for label in run_data["latent"].values.tolist() if label in positions]
        if not latents:
            raise UsageError(f"{run} feeds a vector at {', '.join(run_data['latent'].values)}, not {positions[0]}")
        data = data.sel(latent=latents)
    data = data.drop_vars([name for name, coord in data.coords.items() if not set(coord.dims) <= set(data.dims)])
    texts = [name for name, variable in data.variables.items() if variable.dtype == object] if to.suffix in CUT else []
    if cut := [str(name) for name in texts if any(text.endswith("\0") for text in data[name].values.flat)]:
        raise UsageError(f"{to}: texts of {', '.join(cut)} end in NUL, which {to.suffix} cuts off; name another format")
    if stored and to.suffix == ".nc":
        raise UsageError(f"{to}: netCDF has no float16; leave --stored out, or name another format")
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(beside(to))
        except OSError as error:
            raise UsageError(f"{to} cannot be written ({error.strerror or error}); name another place") from error
        WRITERS[to.suffix](data, partial, progress)
    return data


def _blocks(variable: xr.DataArray, progress: Progress = silent) -> Iterator[np.ndarray]:
    """Values of a variable, some examples at a time where it has such."""
    if variable.dims[:1] != ("example",):
        yield np.ascontiguousarray(variable.values)
        return
    for rows in reported_blocks(variable.sizes["example"], progress):
        yield np.ascontiguousarray(variable[rows].values)


def _write_npz(data: xr.Dataset, path: Path, progress: Progress) -> None:
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, variable in data.variables.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if variable.dtype == object:
                    np.lib.format.write_array(file, np.asarray(variable.values, dtype=str), allow_pickle=False)
                    continue
                header = {"descr": variable.dtype.str, "fortran_order": False, "shape": variable.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for block in _blocks(data[name], progress if variable.ndim > 1 else silent):
                    file.write(block.data)


def _write_safetensors(data: xr.Dataset, path: Path, progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {}}
    numbers = [str(name) for name, variable in data.variables.items() if variable.dtype != object]
    numbers.sort(key=lambda name: -data[name].dtype.itemsize)  # every array begins at a multiple of its item's size
    begin = 0
    for name in numbers:
        end = begin + data[name].dtype.itemsize * math.prod(data[name].shape)
        kind = SAFETENSORS[data[name].dtype.name]
        header[name] = {"dtype": kind, "shape": list(data[name].shape), "data_offsets": [begin, end]}
        begin = end
    texts = {
        str(name): variable.values.tolist() for name, variable in data.variables.items() if str(name) not in header
    }
    stated = {name: list(data[name].dims) for name in numbers}
    header["__metadata__"] = {name: json.dumps(value) for name, value in (texts | {"dims": stated}).items()}
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        for name in numbers:
            for block in _blocks(data[name], progress if data[name].ndim > 1 else silent):
                file.write(block.data)


def _write_netcdf(data: xr.Dataset, path: Path, progress: Progress) -> None:
    try:
        data.to_netcdf(path)
    except ValueError as error:  # of version 3, which scipy writes, whole numbers have 32 bits
        reason = str(error).partition(". ")[0]
        raise UsageError(f"netCDF cannot hold {', '.join(map(str, data))}: {reason}; name another format") from error


def _write_parquet(data: xr.Dataset, path: Path, progress: Progress) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed; pip install 'activation-lake[export]', or export .npz"
        ) from error
    first = data[next(iter(data.data_vars))]
    rows = first.dims if first.ndim == 1 else first.dims[:-1]
    for name, array in data.data_vars.items():
        if array.dims not in (rows, first.dims) and not set(array.dims) <= set(rows):
            raise UsageError(
                f"rows of one table are of {', '.join(map(str, rows))}, as {first.name} has them; {name} has"
                f" {', '.join(map(str, array.dims))}. Export it into a file of its own"
            )
    labels = [name for name in data.coords if set(data[name].dims) <= set(rows)]
    writer = None
    for examples in reported_blocks(first.sizes["example"], progress):
        block = data.isel(example=examples).load()
        whole = block[first.name].isel({} if first.ndim == 1 else {first.dims[-1]: 0}, drop=True)
        columns = {}
        for name in [*labels, *block.data_vars]:
            if block[name].dims == first.dims and first.ndim > 1:
                flat = pyarrow.array(block[name].values.reshape(-1))
                columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, first.shape[-1])
            else:
                columns[name] = pyarrow.array(block[name].broadcast_like(whole).transpose(*rows).values.reshape(-1))
        table = pyarrow.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


WRITERS: dict[str, Callable[[xr.Dataset, Path, Progress], None]] = {
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
    ".nc": _write_netcdf,
}
