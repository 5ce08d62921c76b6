"""Scores of attention heads: what each does with what the continuous thoughts pay each other.

Two conventions. In ``"thoughts"``, the default, the matrix ``A`` of a head is the attention of ``ct0 .. ct5`` to
``ct0 .. ct5`` with the diagonal in. In ``"reports"`` it is what report 004 read: six steps ``bot, ct0 .. ct4``, the
key of step j+1 in column j, so that ``A[s, s-1]`` is the attention of step s to itself, row 0 and column 5 are empty,
the key ``bot`` is never read and flow is 1 by construction. It is there so that published tables can be set beside
ours.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr

from analyze.labels import inherited, labels_along, numbered, require_dims, take, thought_labels
from analyze.statistics import bootstrap_weights, draw_counts, percentile_interval
from schemas import SchemaError, UsageError, latent_labels, nearest

Convention = Literal["thoughts", "reports"]
Array = np.ndarray[Any, np.dtype[Any]]

METRICS = ("flow", "hub", "skip")
WEIGHTS = (0.4, 0.4, 0.2)
"""What each of the metrics adds to the composite, once scaled to 0 .. 1 over the heads of a model."""
HEAD_TYPES = ("Forward Flow", "Hub Aggregator", "Skip Connection", "Multi-Purpose")
BANDS = ("early", "middle", "late")
MULTI_PURPOSE = 0.7
"""A head is Multi-Purpose if its two best scaled metrics both exceed this."""
CONSTANT = 1e-6
"""A metric whose values over the heads differ by no more than this is constant."""
N_REPORT_STEP = 6
ROUNDING = 0.03
"""Hundredths by which a number printed with two decimals may be off once stored as float16."""

LONG_NAMES = {
    "flow": "share of the attention among thoughts that goes to earlier ones",
    "hub": "attention to the most sought thought, beyond an even spread",
    "hub_position": "most sought thought",
    "hub_ratio": "attention to the most sought thought, over that of an even spread",
    "skip": "mean attention of the last thought to the first half of them",
    "sequential": "mean attention of a thought to the one before it",
    "max_attention": "largest attention of one thought to another or itself",
    "composite": "weighted sum of scaled flow, hub and skip",
    "type": "what the head does most",
    "band": "third of the model's depth",
}


def head_scores(
    attention: xr.DataArray,
    convention: Convention = "thoughts",
    *,
    model_max: Mapping[str, float] | None = None,
    model_min: Mapping[str, float] | None = None,
    n_layer: int | None = None,
    per_example: bool = False,
) -> xr.Dataset:
    """Score every head, on the mean over examples or on each of them.

    With ``A[i, j]`` the attention of thought i to thought j <= i, ``n`` thoughts, row sums ``m[i] = sum_j A[i, j]``
    and, were each row spread evenly over itself and all before it, ``E[j] = sum_{i>j} m[i] / (i + 1)``:

    =================  =================================================  ==========================================
    variable           ``"thoughts"``                                     ``"reports"`` (their A, 6 x 6)
    =================  =================================================  ==========================================
    ``flow``           ``sum_{i>j} A / sum_{i>=j} A``; 0 if empty         the same: 1 for every head, by construction
    ``hub``            ``max_j (sum_{i>j} A[i, j] - E[j])``, at least 0   population variance of the column sums
    ``hub_position``   that j; ``""`` if no thought exceeds even spread   largest column; column j is the key ``ctj``
    ``hub_ratio``      ``sum_{i>j} A[i, j] / E[j]`` at that j             largest column sum over 1/6
    ``skip``           mean of ``A[n-1, 0 .. n//2-1]``                    mean of ``A[5, 0 .. 2]``
    ``sequential``     mean of ``A[i, i-1]``                              the same (there: attention to itself)
    ``max_attention``  largest ``A[i, j]``                                the same
    =================  =================================================  ==========================================

    A thought's attention to itself counts in ``m`` and so in ``E``, but not towards its being a hub. ``composite`` is
    0.4 flow + 0.4 hub + 0.2 skip, each scaled to 0 .. 1 over the heads of the model (over those of the same
    example if ``per_example``). In ``"thoughts"`` a metric that is constant over the heads gives its weight to the
    others in proportion: ``flow_weight``, ``hub_weight`` and ``skip_weight`` hold what was used, 0 for a constant
    metric, and without dask ``attrs["constant"]`` names them. In ``"reports"`` flow is constant and keeps its weight,
    so that 0.6 is the highest possible composite, as published. ``type`` is the metric with the highest scaled value
    (ties in the order of ``HEAD_TYPES``), or Multi-Purpose if the best two exceed 0.7, or ``""`` if all are
    lowest; ``band`` is the third of the depth.

    Parameters
    ----------
    attention : (layer, head, position, key_position), or with ``example``
        Only the thoughts' block is read. NaN above the diagonal is ignored; a head that is NaN elsewhere, or pays the
        thoughts nothing, is left out of the scaling and has type ``""``. Lazy input stays lazy.
    model_max, model_min
        Extremes of ``hub`` and ``skip`` over the whole model, where ``attention`` holds some of its heads only.
        Given maxima only, minima are 0. In ``"reports"`` minima are also 0 where the matrices are plainly not all of a
        model's own (heads are missing, the step ``bot`` is absent or attends to nothing, or no entry has more than two
        decimals): those of a published figure, whose own minimum is not the model's.
    n_layer
        Depth of the model, for ``band``; by default one more than the highest layer here.
    per_example
        Whether to score each example.

    Returns
    -------
    Dataset of the variables above : (layer, head), or (example, layer, head)

    Raises
    ------
    SchemaError
        If a dim or a thought is missing.
    """
    block, labels, complete = _block(attention, convention)
    unknown = sorted({*(model_max or {}), *(model_min or {})} - set(METRICS))
    if unknown:
        raise UsageError(f"model_max and model_min hold {', '.join(unknown)}; they take {', '.join(METRICS)}")
    if "example" in block.dims and not per_example:
        block = block.mean("example", dtype="float64", skipna=False)
        complete = complete.any("example") if "example" in complete.dims else complete
    elif per_example and "example" not in block.dims:
        found = ", ".join(map(str, attention.dims))
        raise SchemaError(f"per_example needs attention with the dim example; found {found}")
    return _score(block, complete, labels, convention, model_max, model_min, n_layer).assign_attrs(inherited(attention))


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

    Beside :func:`head_scores`: ``pattern`` the mean matrix the scores were read from (report convention: shifted);
    ``spread`` the population standard deviation over examples of an entry of the matrix, averaged over the entries that
    can be non-zero; ``hub_agreement`` the share of examples whose own hub is the mean's; ``rank`` by composite, ties by
    layer and head; and from a bootstrap over problems the 95% interval of composite (``composite_low``,
    ``composite_high``) and of the rank, and ``top_share``, how often the head is among the ``top`` best.

    Memory is that of the resampled matrices, ``n_resample`` x heads x 36, whatever the number of examples.

    Parameters
    ----------
    attention : (example, layer, head, position, key_position)
        Lazy input stays lazy; compute the result as a whole, so that it is read once.
    problem : (example,)
        Group of each example; by default the coordinate ``problem``, else each example is its own.
    """
    require_dims(attention, ["example"], "the analysis of heads over problems")
    block, labels, complete = _block(attention, convention)
    if problem is None:
        problem = attention.coords.get("problem", numbered(attention, ["example"])["example"])
    n = block.sizes["example"]
    sums = _sums(block, _chunk_like(problem, block), labels, convention, n_resample, seed)
    mean = sums.isel(part=n_resample) / n
    complete_mean = complete.any("example") if "example" in complete.dims else complete
    scores = _score(mean, complete_mean, labels, convention, None, None, n_layer)

    pattern = mean if convention == "thoughts" else _shifted(mean)
    lower = xr.DataArray(np.tri(len(labels)), dims=("position", "key_position"))
    deviation = (sums.isel(part=n_resample + 1) / n - mean**2).clip(min=0) ** 0.5
    scores["spread"] = (deviation * lower).sum(["position", "key_position"]) / lower.sum()

    counts = sums.isel(part=n_resample + 2, position=0)  # examples whose hub each thought is
    named = xr.DataArray(np.array(labels), dims="key_position")
    agreeing = counts.where(scores["hub_position"] == named, 0).sum("key_position")
    without = n - counts.sum("key_position")
    scores["hub_agreement"] = agreeing.where(scores["hub_position"] != "", without) / n

    weight = bootstrap_weights(_chunk_like(problem, block), n_resample, seed).sum("example")
    drawn = sums.isel(part=slice(0, n_resample)).rename(part="resample") / weight
    resampled = _score(drawn, complete_mean, labels, convention, None, None, n_layer)["composite"]
    ranks = _rank(resampled)
    if resampled.chunks is not None:
        resampled, ranks = resampled.chunk(resample=-1), ranks.chunk(resample=-1)
    scores["rank"] = _rank(scores["composite"])
    scores["composite_low"], scores["composite_high"] = percentile_interval(resampled)
    scores["rank_low"], scores["rank_high"] = percentile_interval(ranks.astype("float64"))
    scores["top_share"] = (ranks <= top).mean("resample")
    scores["pattern"] = pattern
    for name, text in {
        "spread": "standard deviation over examples of an entry of the matrix, mean over entries",
        "hub_agreement": "share of examples whose own hub is that of the mean",
        "rank": "rank by composite",
        "top_share": f"share of resamples that have the head among the best {top}",
        "pattern": "mean attention among the thoughts",
    }.items():
        scores[name].attrs = {"long_name": text, "units": "1"}
    return scores.assign_attrs(
        inherited(attention, kind="heads", top=top, n_resample=n_resample, n_example=attention.sizes["example"])
    )


def head_summary(
    attention: xr.DataArray, convention: Convention = "thoughts", *, scores: xr.Dataset | None = None, top: int = 20
) -> xr.Dataset:
    """What the heads of a model do together.

    ``incoming`` : (key_position), attention that later thoughts pay to each, mean over heads (report convention: its
    shifted column sums, itself included); ``expected`` what an even causal spread of the same attention gives it
    (report convention: 1/6); ``ratio`` of the two; ``hub_position`` the thought furthest beyond ``expected`` (report
    convention: the largest). ``sequential`` : (position), attention to the thought before, and ``skip`` :
    (key_position), attention of the last thought to those of the first half, means over heads. ``hub_count`` :
    (key_position), ``type_count`` : (type) and ``band_count`` : (band), of the ``top`` best heads.

    Parameters
    ----------
    attention
        As in :func:`head_scores`.
    scores
        From :func:`head_scores` or :func:`head_analysis` of the same attention; computed if absent.

    Notes
    -----
    Computes: the result is small and holds no dask arrays of its own.
    """
    if scores is None:
        scores = head_scores(attention, convention)
    block, labels, _ = _block(attention, convention)
    if "example" in block.dims:
        block = block.mean("example", dtype="float64", skipna=False)
    matrix = np.tril(block.transpose("layer", "head", "position", "key_position").values)
    return _summary(matrix, labels, scores, convention, top).assign_attrs(inherited(attention, kind="head_summary"))


def summary_of_analysis(analysis: xr.Dataset, top: int = 20) -> xr.Dataset:
    """:func:`head_summary` from the finished result of :func:`head_analysis`, without the attention."""
    convention: Convention = analysis.attrs["convention"]
    pattern = analysis["pattern"].transpose("layer", "head", "position", "key_position")
    matrix = pattern.values if convention == "thoughts" else pattern.values[..., 1:, :-1]
    labels = [str(x) for x in pattern["position"].values[(convention == "reports") :]]
    return _summary(matrix, labels, analysis, convention, top).assign_attrs(inherited(analysis, kind="head_summary"))


def head_table(scores: xr.Dataset) -> pd.DataFrame:
    """Heads as rows, best first; ties by layer, then head.

    Parameters
    ----------
    scores
        From :func:`head_scores` or :func:`head_analysis`.
    """
    columns = [name for name, variable in scores.data_vars.items() if set(variable.dims) == {"layer", "head"}]
    table = scores[columns].to_dataframe(dim_order=["layer", "head"]).reset_index()
    table = table.sort_values(["composite", "layer", "head"], ascending=[False, True, True], ignore_index=True)
    if "rank" not in table:
        table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table[["rank", *(name for name in table.columns if name != "rank")]]


def _block(attention: xr.DataArray, convention: Convention) -> tuple[xr.DataArray, list[str], xr.DataArray]:
    """Attention among the thoughts, their names, and whether the matrices are a model's own (reports: bot attends)."""
    if convention not in get_args(Convention):
        allowed = get_args(Convention)
        raise UsageError(f"convention {convention!r} is not one of {', '.join(allowed)}{nearest(convention, allowed)}")
    what = f"the head scores of convention {convention!r}"
    require_dims(attention, ["layer", "head", "position", "key_position"], what)
    attention = numbered(attention, ["layer", "head"])
    labels = thought_labels(attention, "key_position")
    if convention == "reports":
        labels = latent_labels(N_REPORT_STEP - 1)
    elif len(labels) < 2:
        found = ", ".join(labels) or "none"
        raise SchemaError(f"{what} need at least two thoughts; key_position holds {found} of ct0 ..")
    block = take(take(attention, "position", labels, what), "key_position", labels, what)
    complete: xr.DataArray = xr.DataArray(True)
    if convention == "reports":
        complete = xr.DataArray(False)
        if "bot" in labels_along(attention, "position"):
            row = take(attention, "position", ["bot"], what).isel(position=0, drop=True)
            keys = [x for x in labels_along(row, "key_position") if x == "bot" or x.startswith("q-")]
            seen = take(row, "key_position", keys[-1:], what) if keys else row.isel(key_position=slice(0, 0))
            complete = (seen > 0).any(["layer", "head", "key_position"])
    kept = {"example", "problem", "layer", "head", "position", "key_position"}
    return block.drop_vars([name for name in block.coords if name not in kept]), labels, complete


def _score(
    block: xr.DataArray,
    complete: xr.DataArray,
    labels: list[str],
    convention: Convention,
    model_max: Mapping[str, float] | None,
    model_min: Mapping[str, float] | None,
    n_layer: int | None,
) -> xr.Dataset:
    """Scores of blocks (..., layer, head, position, key_position), labelled."""
    core = ["layer", "head", "position", "key_position"]
    if block.chunks is not None:
        block = block.chunk({dim: -1 for dim in core})
    names = ["flow", "hub", "hub_position", "hub_ratio", "skip", "sequential", "max_attention", "composite", "type"]
    dtypes = ["float64", "float64", "<U8", "float64", "float64", "float64", "float64", "float64", "<U16", "float64"]
    values = xr.apply_ufunc(
        _head_scores,
        block,
        complete,
        input_core_dims=[core, []],
        output_core_dims=[["layer", "head"]] * len(names) + [["metric"]],
        kwargs={
            "labels": np.array(labels),
            "convention": convention,
            "model_max": dict(model_max or {}),
            "model_min": dict(model_min or {}),
        },
        dask="parallelized",
        output_dtypes=dtypes,
        dask_gufunc_kwargs={"output_sizes": {"metric": len(METRICS)}},
    )
    scores = xr.Dataset(dict(zip(names, values[:-1], strict=True)))
    layers = block["layer"].values
    depth = int(layers.max()) + 1 if n_layer is None else n_layer
    band = np.array(BANDS)[(layers >= depth // 3).astype(int) + (layers >= 2 * depth // 3)]
    scores["band"] = xr.DataArray(band, dims="layer").broadcast_like(block["layer"] * block["head"])
    order = ["flow", "hub", "hub_position", "skip", "sequential", "composite", "type", "band"]
    order += ["max_attention", "hub_ratio"]
    scores = scores[order].transpose(..., "layer", "head").assign_coords(layer=block["layer"], head=block["head"])
    for index, metric in enumerate(METRICS):
        scores[f"{metric}_weight"] = (
            values[-1]
            .isel(metric=index)
            .assign_attrs(long_name=f"weight of {metric} in the composite; 0: constant over the heads", units="1")
        )
    for name, text in LONG_NAMES.items():
        scores[name].attrs = {"long_name": text}
        if scores[name].dtype.kind == "f":
            scores[name].attrs["units"] = "1"
    for name in ("flow", "composite", "skip", "sequential", "max_attention"):
        scores[name].attrs["range"] = "0 to 1"
    scores.attrs["convention"] = convention
    if convention == "reports":
        scores.attrs["constant"] = "flow"
        scores.attrs["note"] = "flow is 1 by construction and keeps its weight, so no composite exceeds 0.6"
    elif block.chunks is None:
        weights = values[-1].values.reshape(-1, len(METRICS)).max(0)
        scores.attrs["constant"] = ", ".join(metric for metric, w in zip(METRICS, weights, strict=True) if w == 0)
    return scores


def _head_scores(
    block: Array,  # (..., layer, head, i, j)
    complete: Array,  # (...) or ()
    *,
    labels: Array,
    convention: Convention,
    model_max: dict[str, float],
    model_min: dict[str, float],
) -> tuple[Array, ...]:
    """Every score of every head, and the weights used."""
    n = block.shape[-1]
    causal = np.tri(n, dtype=bool)
    known = np.where(causal, block, 0.0).astype("float64")
    present = np.isfinite(known).all((-2, -1)) & (known.sum((-2, -1)) > 0)  # (..., layer, head)
    matrix = np.where(np.isfinite(known), known, 0.0)
    raw = _thoughts(matrix) if convention == "thoughts" else _reports(matrix)
    metrics = np.stack([raw["flow"], raw["hub"], raw["skip"]], axis=-1)  # (..., layer, head, metric)

    kept = present[..., None]
    low = np.where(kept, metrics, np.inf).min((-3, -2))  # (..., metric)
    high = np.where(kept, metrics, -np.inf).max((-3, -2))
    if convention == "reports":  # flow keeps its own minimum: it is constant
        cents = np.where(present[..., None, None], matrix, 0.0) * 100
        printed = (np.abs(cents - cents.round()) < ROUNDING).all((-4, -3, -2, -1))
        whole = np.asarray(complete) & present.all((-2, -1)) & ~printed
        low[..., 1:] = np.where(whole[..., None], low[..., 1:], 0.0)
    for index, metric in enumerate(METRICS):
        if metric in model_max:
            high[..., index] = model_max[metric]
            low[..., index] = 0.0 if metric != "flow" else low[..., index]
        if metric in model_min:
            low[..., index] = model_min[metric]
    low, high = np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)
    span = high - low
    weight = np.broadcast_to(np.array(WEIGHTS), span.shape).copy()
    if convention == "thoughts":
        varies = span > CONSTANT
        weight = np.where(varies, weight, 0.0)
        weight /= np.maximum(weight.sum(-1, keepdims=True), CONSTANT)
        scaled = (metrics - low[..., None, None, :]) / np.where(varies, span, np.inf)[..., None, None, :]
    else:
        scaled = (metrics - low[..., None, None, :]) / (span + 1e-10)[..., None, None, :]
    composite = (scaled * weight[..., None, None, :]).sum(-1)

    ranked = np.sort(scaled, axis=-1)
    best = scaled.argmax(-1)  # the first of equals
    kind = np.where(ranked[..., -2] > MULTI_PURPOSE, len(METRICS), best)
    typed = present if convention == "reports" else present & (ranked[..., -1] > 0)
    head_type = np.where(typed, np.array(HEAD_TYPES)[kind], "")
    hub_position = np.where(present & raw["is_hub"], labels[raw["hub_index"]], "")
    missing = ~np.isfinite(known).all((-2, -1))

    def shown(values: Array) -> Array:
        return np.where(missing, np.nan, values)

    return (
        shown(raw["flow"]),
        shown(raw["hub"]),
        hub_position.astype("<U8"),
        shown(raw["hub_ratio"]),
        shown(raw["skip"]),
        shown(raw["sequential"]),
        shown(raw["max_attention"]),
        shown(np.where(present, composite, 0.0)),
        head_type.astype("<U16"),
        weight,
    )


def _thoughts(matrix: Array) -> dict[str, Array]:
    """Metrics of lower-triangular matrices (..., i, j), diagonal in."""
    n = matrix.shape[-1]
    row = matrix.sum(-1)  # (..., i)
    total = row.sum(-1)
    itself = np.diagonal(matrix, axis1=-2, axis2=-1)
    incoming, expected = _incoming(matrix)
    beyond = (incoming - expected)[..., :-1]  # nobody comes after the last thought
    index = beyond.argmax(-1)
    at_hub = index[..., None]
    hub_expected = np.take_along_axis(expected, at_hub, -1)[..., 0]
    hub_incoming = np.take_along_axis(incoming, at_hub, -1)[..., 0]
    hub = np.maximum(beyond.max(-1), 0.0)
    return {
        "flow": np.where(total > 0, (total - itself.sum(-1)) / np.where(total > 0, total, 1), 0.0),
        "hub": hub,
        "hub_index": index,
        "is_hub": hub > CONSTANT,
        "hub_ratio": hub_incoming / np.where(hub_expected > 0, hub_expected, np.nan),
        "skip": matrix[..., n - 1, : n // 2].mean(-1),
        "sequential": np.diagonal(matrix, offset=-1, axis1=-2, axis2=-1).mean(-1),
        "max_attention": matrix.max((-2, -1)),
    }


def _incoming(matrix: Array) -> tuple[Array, Array]:
    """Attention each thought gets from later ones, and what an even spread of every row would give it: (..., j)."""
    n = matrix.shape[-1]
    incoming = matrix.sum(-2) - np.diagonal(matrix, axis1=-2, axis2=-1)
    even = matrix.sum(-1) / np.arange(1, n + 1)
    expected = np.cumsum(even[..., ::-1], axis=-1)[..., ::-1] - even
    return incoming, expected


def _reports(matrix: Array) -> dict[str, Array]:
    """Metrics of report 004, from the attention (..., i, j) among ct0 .. ct4."""
    shifted = _shift(matrix)  # (..., 6, 6)
    column = shifted.sum(-2)
    total = shifted.sum((-2, -1))
    index = column.argmax(-1)
    return {
        "flow": (total > 0).astype("float64"),  # every entry lies below the diagonal
        "hub": column.var(-1),
        "hub_index": index,
        "is_hub": total > 0,
        "hub_ratio": column.max(-1) * N_REPORT_STEP,
        "skip": shifted[..., N_REPORT_STEP - 1, :3].mean(-1),
        "sequential": np.diagonal(shifted, offset=-1, axis1=-2, axis2=-1).mean(-1),
        "max_attention": shifted.max((-2, -1)),
    }


def _shift(matrix: Array) -> Array:
    """Attention among ct0 .. ct4 as the reports stored it: row s is step s (0 is bot), column j the key of step j+1."""
    shifted = np.zeros((*matrix.shape[:-2], N_REPORT_STEP, N_REPORT_STEP))
    shifted[..., 1:, :-1] = np.tril(matrix)
    return shifted


def _shifted(mean: xr.DataArray) -> xr.DataArray:
    """Labelled :func:`_shift`; columns are named by the keys they hold, the empty last one by the next key, eot."""
    core = ["position", "key_position"]
    values: xr.DataArray = xr.apply_ufunc(
        _shift,
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


def _rank(composite: xr.DataArray) -> xr.DataArray:
    """Ranks from 1, best first, ties by layer and head; heads that are NaN come last."""

    def rank(values: Array) -> Array:  # (..., layer, head)
        flat = np.nan_to_num(values, nan=-1.0).reshape(*values.shape[:-2], -1)
        order = np.argsort(-flat, axis=-1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(1, flat.shape[-1] + 1), flat.shape).copy(), axis=-1)
        return ranks.reshape(values.shape)

    core = ["layer", "head"]
    ranks: xr.DataArray = xr.apply_ufunc(
        rank, composite, input_core_dims=[core], output_core_dims=[core], dask="parallelized", output_dtypes=["int64"]
    )
    return ranks


def _sums(
    block: xr.DataArray, problem: xr.DataArray, labels: list[str], convention: Convention, n_resample: int, seed: int
) -> xr.DataArray:
    """All sums over examples that the analysis needs, in one pass: (part, layer, head, position, key_position).

    Parts are the sum of each resample, the sum, the sum of squares, and, in its first row, how many examples have each
    thought as their hub. Sums of a few examples take the place of the examples at once, so memory stays flat.
    """
    dims = ["layer", "head", "position", "key_position"]
    block = block.transpose("example", *dims)
    options: dict[str, Any] = {"n_resample": n_resample, "seed": seed, "convention": convention}
    if block.chunks is None:
        edges = [*range(0, block.sizes["example"], 256), block.sizes["example"]]
        pieces = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        parts = (_block_sums(block.values[piece], problem.values[piece], **options)[0] for piece in pieces)
        total = functools.reduce(np.add, parts)
    else:
        import dask.array as da

        whole = block.chunk({dim: -1 for dim in dims})
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
    own = _thoughts(values.astype("float64")) if convention == "thoughts" else _reports(values)
    place = np.arange(values.shape[-1])
    sums[n_resample + 2, ..., 0, :] = (own["is_hub"][..., None] & (own["hub_index"][..., None] == place)).sum(0)
    return sums[None]


def _chunk_like(problem: xr.DataArray, block: xr.DataArray) -> xr.DataArray:
    """Groups in the chunks of the data, so that nothing about all examples is held at once."""
    return problem.chunk(example=block.variable.chunksizes["example"]) if block.chunks is not None else problem


def _summary(matrix: Array, labels: list[str], scores: xr.Dataset, convention: Convention, top: int) -> xr.Dataset:
    """Summary from the attention among the thoughts (layer, head, i, j)."""
    n = len(labels)
    matrix = matrix[np.isfinite(matrix).all((-2, -1))]  # (heads that are there, i, j)
    if convention == "thoughts":
        incoming, expected = (x.mean(0) for x in _incoming(matrix))
        keys, queries = labels, labels[1:]
        hub = int((incoming - expected)[:-1].argmax())
        before = np.diagonal(matrix, offset=-1, axis1=-2, axis2=-1).mean(0)
        far = matrix[:, n - 1, : n // 2].mean(0)
    else:
        shifted = _shift(matrix).mean(0)
        incoming, expected = shifted.sum(0), np.full(N_REPORT_STEP, 1 / N_REPORT_STEP)
        keys, queries = [*labels, "eot"], labels
        hub = int(incoming.argmax())
        before = np.diagonal(shifted, offset=-1)
        far = shifted[-1, :3]
    skip = np.full(len(keys), np.nan)
    skip[: len(far)] = far
    best = head_table(scores).head(top)
    counts = {
        name: best[name].value_counts().reindex(list(order), fill_value=0).to_numpy()
        for name, order in (("type", HEAD_TYPES), ("band", BANDS), ("hub_position", keys))
    }
    named = {name: np.array(values, dtype=object) for name, values in (("key", keys), ("query", queries))}
    summary = xr.Dataset(
        {
            "incoming": ("key_position", incoming, {"long_name": "attention from later thoughts, mean over heads"}),
            "expected": ("key_position", expected, {"long_name": "the same, spread evenly"}),
            "ratio": ("key_position", incoming / np.where(expected > 0, expected, np.nan)),
            "skip": ("key_position", skip, {"long_name": "attention of the last thought, mean over heads"}),
            "sequential": ("position", before, {"long_name": "attention to the thought before, mean over heads"}),
            "hub_count": ("key_position", counts["hub_position"]),
            "type_count": ("type", counts["type"]),
            "band_count": ("band", counts["band"]),
            "hub_position": ((), keys[hub]),
            "mean_sequential": ((), float(before.mean())),
            "mean_skip": ((), float(far.mean())),
            "mean_hub": ((), float(scores["hub"].mean())),
        },
        coords={
            "key_position": named["key"],
            "position": named["query"],
            "type": np.array(HEAD_TYPES, dtype=object),
            "band": np.array(BANDS, dtype=object),
        },
        attrs={"convention": convention, "top": len(best), "n_head": len(matrix)},
    )
    if convention == "reports":
        summary["incoming"].attrs["long_name"] = "shifted column sums, mean over heads"
        summary["sequential"].attrs["long_name"] = "attention of each step to itself, mean over heads"
    return summary
