"""How sure the scores of heads are: one pass over the examples, resampled by problem."""

import functools
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from analyze.blocks import chunked_like, example_blocks
from analyze.heads.scores import (
    N_REPORT_STEP,
    Array,
    Convention,
    report_metrics,
    report_steps,
    score_block,
    thought_block,
    thought_metrics,
)
from analyze.heads.summary import BY_THOUGHT, TOGETHER, of_all_heads
from analyze.labels import inherited, problem_along, require_dims
from analyze.statistics import bootstrap_weights, percentile_interval
from schemas import latent_labels
from schemas.resampling import draw_counts


def head_analysis(
    attention: xr.DataArray,
    convention: Convention = "thoughts",
    *,
    problem: xr.DataArray | None = None,
    top: int = 20,
    n_resample: int = 300,
    seed: int = 0,
    n_layer: int | None = None,
) -> xr.Dataset:
    """Scores of every head with how sure they are, in one pass over the examples.

    Beside :func:`analyze.heads.scores.head_scores`: ``pattern`` the mean matrix the scores were computed from (report
    convention: shifted); ``spread`` the population standard deviation over examples of an entry of the matrix, averaged
    over the entries that can be non-zero; ``hub_agreement`` the share of examples whose own hub is the mean's; ``rank``
    by composite, ties by layer and head; and from a bootstrap over problems the 95% interval of composite
    (``composite_low``, ``composite_high``) and of the rank, ``top_share``, how often the head is among the ``top``
    best, ``type_share``, how often it has the type it has, and (not by the report convention) intervals of what
    :func:`analyze.heads.summary.head_summary` says of all heads.

    Memory is that of the resampled matrices, ``n_resample`` x heads x 36, whatever the number of examples.

    Parameters
    ----------
    attention : (example, layer, head, position, key_position)
        Lazy input stays lazy; compute the result as a whole, so that it is read once.
    problem : (example,)
        Group of each example; by default the coordinate ``problem``, else each example is its own.
    """
    require_dims(attention, ["example"], "the analysis of heads over problems")
    block, labels, complete = thought_block(attention, convention)
    problem = chunked_like(problem_along(attention) if problem is None else problem, block)
    n = block.sizes["example"]
    sums = _sums(block, problem, convention, n_resample, seed)
    mean = sums.isel(part=n_resample) / n
    complete_mean = complete.any("example") if "example" in complete.dims else complete
    scores = score_block(mean, complete_mean, labels, convention, n_layer=n_layer)

    pattern = mean if convention == "thoughts" else _shifted(mean)
    lower = xr.DataArray(np.tri(len(labels)), dims=("position", "key_position"))
    deviation = (sums.isel(part=n_resample + 1) / n - mean**2).clip(min=0) ** 0.5
    scores["spread"] = (deviation * lower).sum(["position", "key_position"]) / lower.sum()

    counts = sums.isel(part=n_resample + 2, position=0)  # examples whose hub each thought is
    named = xr.DataArray(np.array(labels), dims="key_position")
    agreeing = counts.where(scores["hub_position"] == named, 0).sum("key_position")
    without = n - counts.sum("key_position")
    scores["hub_agreement"] = agreeing.where(scores["hub_position"] != "", without) / n

    weight = bootstrap_weights(problem, n_resample, seed).sum("example")
    there = weight > 0  # a resample of few problems may hold none
    drawn = sums.isel(part=slice(0, n_resample)).rename(part="resample") / weight.where(there)
    again = score_block(drawn, complete_mean, labels, convention, n_layer=n_layer)
    resampled = again["composite"]
    ranks = _rank(resampled).where(there)
    if resampled.chunks is not None:
        resampled, ranks = resampled.chunk(resample=-1), ranks.chunk(resample=-1)
    scores["rank"] = _rank(scores["composite"])
    scores["composite_low"], scores["composite_high"] = percentile_interval(resampled, n, weight)
    scores["rank_low"], scores["rank_high"] = percentile_interval(ranks.astype("float64"), n, weight)
    scores["top_share"] = (ranks <= top).where(there).mean("resample")
    scores["type_share"] = (again["type"] == scores["type"]).where(there).mean("resample")
    if convention == "thoughts":
        scores = scores.assign(_together(drawn, n, weight))
    scores["pattern"] = pattern
    for name, text in {
        "spread": "standard deviation over examples of an entry of the matrix, mean over entries",
        "hub_agreement": "share of examples whose own hub is that of the mean",
        "rank": "rank by composite",
        "top_share": f"share of resamples that have the head among the best {top}",
        "type_share": "share of resamples that give the head the same type",
        "pattern": "mean attention among the thoughts",
    }.items():
        scores[name].attrs = {"long_name": text, "units": "1"}
    return scores.assign_attrs(
        inherited(attention, kind="heads", top=top, n_resample=n_resample, n_example=attention.sizes["example"])
    )


def _shifted(mean: xr.DataArray) -> xr.DataArray:
    """Labelled :func:`report_steps`; columns are named by the keys they hold, the empty last one by ``eot``."""
    core = ["position", "key_position"]
    values: xr.DataArray = xr.apply_ufunc(
        report_steps,
        mean.chunk(dict.fromkeys(core, -1)) if mean.chunks is not None else mean,
        input_core_dims=[core],
        output_core_dims=[core],
        exclude_dims=set(core),
        dask="parallelized",
        output_dtypes=["float64"],
        dask_gufunc_kwargs={"output_sizes": dict.fromkeys(core, N_REPORT_STEP)},
    )
    steps = np.array(["bot", *latent_labels(N_REPORT_STEP - 1), "eot"], dtype=object)
    return values.assign_coords(position=steps[:-1], key_position=steps[1:])


def _together(drawn: xr.DataArray, n: int, weight: xr.DataArray) -> dict[str, xr.DataArray]:
    """Intervals of what the heads do together, from resampled matrices (resample, layer, head, i, j)."""

    def kernel(values: Array) -> tuple[Array, ...]:  # (..., layer, head, i, j)
        past = np.tril(values)
        count = np.isfinite(past).sum((-4, -3))  # none in a resample that holds no problem
        together = of_all_heads(np.nansum(past, (-4, -3)) / np.where(count > 0, count, np.nan))
        return tuple(together[name] for name in TOGETHER)

    core = ["layer", "head", "position", "key_position"]
    whole = drawn.chunk(dict.fromkeys(core, -1)) if drawn.chunks is not None else drawn
    parts = xr.apply_ufunc(
        kernel, whole, input_core_dims=[core], output_core_dims=list(TOGETHER.values()), dask="parallelized",
        output_dtypes=["float64"] * len(TOGETHER),
    )  # fmt: skip
    ends: dict[str, xr.DataArray] = {}
    for name, part in zip(TOGETHER, parts, strict=True):
        low, high = percentile_interval(part.chunk(resample=-1) if part.chunks is not None else part, n, weight)
        name += BY_THOUGHT.get(name, "")
        ends |= {f"{name}_low": low, f"{name}_high": high}
    return ends


def _rank(composite: xr.DataArray) -> xr.DataArray:
    """Ranks from 1, best first, ties by layer and head; heads that are NaN come last."""

    def rank(values: Array) -> Array:  # (..., layer, head)
        flat = np.nan_to_num(values, nan=-1.0).reshape(*values.shape[:-2], -1)
        return rankdata(-flat, method="ordinal", axis=-1).reshape(values.shape)

    core = ["layer", "head"]
    ranks: xr.DataArray = xr.apply_ufunc(
        rank, composite, input_core_dims=[core], output_core_dims=[core], dask="parallelized", output_dtypes=["int64"]
    )
    return ranks


def _sums(
    block: xr.DataArray, problem: xr.DataArray, convention: Convention, n_resample: int, seed: int
) -> xr.DataArray:
    """All sums over examples that the analysis needs, in one pass: (part, layer, head, position, key_position).

    Parts are the sum of each resample, the sum, the sum of squares, and, in its first row, how many examples have each
    thought as their hub. Sums of a few examples take the place of the examples at once, so memory stays flat.
    """
    dims = ["layer", "head", "position", "key_position"]
    block = block.transpose("example", *dims)
    options: dict[str, Any] = {"n_resample": n_resample, "seed": seed, "convention": convention}
    if block.chunks is None:
        pieces = example_blocks(block, 256)
        parts = (_block_sums(block.values[piece], problem.values[piece], **options)[0] for piece in pieces)
        total = functools.reduce(np.add, parts)
    else:
        import dask.array as da

        whole = block.chunk(dict.fromkeys(dims, -1))
        partial = da.blockwise(
            _block_sums,
            "eplhij",
            whole.data,
            "elhij",
            problem.data,
            "e",
            new_axes={"p": n_resample + 3},
            adjust_chunks={"e": lambda _: 1},
            dtype="float64",
            concatenate=True,
            meta=np.empty((0,) * 6),
            **options,
        )
        total = partial.sum(axis=0, split_every=2)
    coords = {dim: block[dim].values for dim in dims}
    return xr.DataArray(total, dims=("part", *dims), coords=coords)


def _block_sums(block: Array, problem: Array, *, n_resample: int, seed: int, convention: Convention) -> Array:
    """:func:`_sums` of some examples (example, layer, head, i, j), with a first axis of one."""
    values = np.where(np.tri(block.shape[-1], dtype=bool), block, 0).astype("float32")
    sums = np.zeros((n_resample + 3, *values.shape[1:]))
    weights = draw_counts(problem, n_resample=n_resample, seed=seed)  # (example, resample)
    sums[:n_resample] = np.tensordot(weights, values, axes=(0, 0))
    sums[n_resample] = values.sum(0, dtype="float64")
    sums[n_resample + 1] = np.square(values, dtype="float64").sum(0)
    own = thought_metrics(values.astype("float64")) if convention == "thoughts" else report_metrics(values)
    place = np.arange(values.shape[-1])
    sums[n_resample + 2, ..., 0, :] = (own["is_hub"][..., None] & (own["hub_index"][..., None] == place)).sum(0)
    return sums[None]
