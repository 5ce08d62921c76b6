"""Direct logit attribution: the read-out of a state as a sum over what embedding, attention and MLPs added to it."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.blocks import computed_blocks, whole_chunks
from analyze.labels import inherited
from analyze.lens.readout import ReadOut, check_model
from schemas import SchemaError
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import DRAWN_TOGETHER, DrawnMean, draw_counts
from schemas.vocabulary import PARTS
from schemas.wording import interval_columns
from store.chunked import read_in

Array = np.ndarray[Any, np.dtype[Any]]
ROWS = 256
"""States whose parts are read at once."""
ADDED = 64
"""States of which these are added up at once."""


def logit_attribution(run: xr.Dataset, model: xr.Dataset) -> xr.DataArray:
    """What each part of the residual stream adds to the logit of the token that its last state reads as.

    The state after the last block is the sum of the vector fed (``embedding``) and of what attention and MLP of each
    block added. With the final norm's scale held at what it is for the whole state, the norm is linear, and so is the
    logit: it falls into one number for each part, and one for the norm's bias. Logits are less their mean over the
    vocabulary, which no softmax sees, and before a soft cap where a model has one.

    Parameters
    ----------
    run : Dataset with ``hidden_state``, ``attention_output`` and ``mlp_output`` of every layer
        Lazy input stays lazy.
    model
        Read-out of the run's model, from ``lake.model``.

    Returns
    -------
    (example, part, position), in logits; over ``part`` they add up to the logit of the likeliest token less the mean

    Raises
    ------
    SchemaError
        If the run has no parts, or not all layers.

    References
    ----------
    Elhage et al., *A mathematical framework for transformer circuits*, 2021; nostalgebraist, *logit lens*, 2020.
    """
    if missing := [name for name in PARTS if name not in run]:
        raise SchemaError(
            f"run {run.attrs.get('run', '')!r} has no {missing[0]}; attribution needs what each block adds: extract"
            " with --capture latent+parts"
        )
    check_model(model, run)
    layers = run["hidden_state"]["layer"].values.tolist()
    if layers != list(range(len(layers))):
        raise SchemaError(f"attribution adds up over all layers; found {layers}")
    names = ["embedding", *(f"{part} {layer}" for layer in layers for part in ("attention", "MLP")), "bias of the norm"]
    arrays = [ends_of(run), run["attention_output"], run["mlp_output"]]
    chunks = arrays[0].chunksizes.get("example", (DRAWN_TOGETHER,))
    most = min(DRAWN_TOGETHER, max(chunks))
    blocks = {"position": max(1, ROWS // most), "layer": -1, "hidden": -1, "example": whole_chunks(chunks, most)}
    arrays = [read_in(array, blocks) if array.chunks is not None else array for array in arrays]
    arrays[0] = arrays[0].rename(layer="end")
    result: xr.DataArray = xr.apply_ufunc(
        attribute,
        *arrays,
        input_core_dims=[["end", "hidden"], ["layer", "hidden"], ["layer", "hidden"]],
        output_core_dims=[["part"]],
        kwargs={"readout": ReadOut(model)},
        dask="parallelized",
        output_dtypes=["float32"],
        dask_gufunc_kwargs={"output_sizes": {"part": len(names)}},
    )
    result = result.assign_coords(part=names).transpose("example", "part", "position")
    return result.rename("contribution").assign_attrs(units="logit", long_name="what a part adds to the read-out")


def ends_of(run: xr.Dataset) -> xr.DataArray:
    """States after the first and the last block, which is all of them that attribution reads."""
    return run["hidden_state"].isel(layer=[0, -1])


def attribute(ends: Array, attention: Array, mlp: Array, readout: ReadOut) -> Array:
    """Contributions ``(..., part)`` from the first and last state ``(..., end, hidden)`` and what the blocks added.

    ``attention``, ``mlp`` : ``(..., layer, hidden)``
    """
    shape, n_part = ends.shape[:-2], 2 * attention.shape[-2] + 2
    ends, attention, mlp = (array.reshape(-1, *array.shape[-2:]) for array in (ends, attention, mlp))
    out = np.full((len(ends), n_part), np.nan, dtype="float32")
    there = np.flatnonzero(~np.isnan(ends[:, -1, 0]))
    tokens = readout.best(readout.norm(ends[there, -1]))
    for start in range(0, len(there), ADDED):
        rows, token = there[start : start + ADDED], tokens[start : start + ADDED]
        state, heads, mlps = (array[rows].astype("float32") for array in (ends, attention, mlp))
        towards = readout.unembedding[token] - readout.mean_token
        along, bias = readout.along(state[:, -1], towards)
        out[rows, 0] = np.einsum("sd,sd->s", state[:, 0] - heads[:, 0] - mlps[:, 0], along)
        out[rows, 1:-1:2], out[rows, 2:-1:2] = (np.einsum("sld,sd->sl", part, along) for part in (heads, mlps))
        out[rows, -1] = bias
    return out.reshape(*shape, -1)


def attribution_summary(
    contribution: xr.DataArray, *, n_resample: int = 500, seed: int = 0, progress: Progress = silent
) -> xr.Dataset:
    """Mean contribution of each part at each position, with bootstrap intervals over problems.

    Positions at which no example is are left out. Computes, a block of examples at a time.

    Parameters
    ----------
    contribution : (example, part, position)
        Of :func:`logit_attribution`.
    progress
        Called as ``progress(done, total)``, in examples.

    Returns
    -------
    Dataset of ``contribution``, ``contribution_low``, ``contribution_high`` : (part, position), in logits; ``logit``
    with the same ends : (position,), their sum; ``n`` : (position,) examples
    """
    one = contribution.isel(example=0, drop=True).drop_vars("problem", errors="ignore").to_dataset()
    drawn = DrawnMean(contribution.shape[1:], n_resample), DrawnMean(contribution.shape[2:], n_resample)
    n = np.zeros(contribution.sizes["position"], dtype="int64")
    for block in computed_blocks(contribution, progress):
        problem = problem_of(block)
        draws = draw_counts(problem, n_resample=n_resample, seed=seed)
        values = block.transpose("part", "position", "example").values
        drawn[0].add(values, draws)
        drawn[1].add(values.sum(0, dtype="float64"), draws)
        n += np.isfinite(values[0]).sum(1)
    dims = {"contribution": ("part", "position"), "logit": ("position",)}
    result = one.drop_vars("contribution").assign(n=("position", n))
    for (name, dim), means in zip(dims.items(), drawn, strict=True):
        for key, values in interval_columns(name, means.interval()).items():
            result[key] = (dim, values, {"units": "logit"} if key == name else {})
    counts = {"n_example": contribution.sizes["example"], "n_resample": n_resample}
    result.attrs = inherited(contribution, kind="attribution", **counts)
    return result.isel(position=np.flatnonzero(n))
