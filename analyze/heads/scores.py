"""Scores of attention heads: what each does with what the continuous thoughts pay each other.

Two conventions. In ``"thoughts"``, the default, the matrix ``A`` of a head is the attention of ``ct0 .. ct5`` to
``ct0 .. ct5`` with the diagonal in. In ``"reports"`` it is what report 004 read: six steps ``bot, ct0 .. ct4``, the
key of step j+1 in column j, so that ``A[s, s-1]`` is the attention of step s to itself, row 0 and column 5 are empty,
the key ``bot`` is never read and flow is 1 by construction. It is there so that published tables can be set beside
ours.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from analyze.labels import inherited, labels_along, numbered, require_dims, take, thought_labels
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
ROUNDING = 0.01
"""By how much stored probabilities may miss what probabilities are."""
N_REPORT_STEP = 6
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
    attention: xr.DataArray | xr.Dataset,
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
        Or a run, whose attention it is. Only the thoughts' block is read. NaN above the diagonal is ignored; a head
        that is NaN elsewhere, or pays the thoughts nothing, is left out of the scaling and has type ``""``. Lazy input
        stays lazy.
    model_max, model_min
        Extremes of ``hub`` and ``skip`` over the whole model, where ``attention`` holds some of its heads only.
        Given maxima only, minima are 0. In ``"reports"`` minima are also 0 where heads are missing, or the step ``bot``
        is absent or attends to nothing: the matrices of a published figure are not all of a model's heads. Where they
        look complete, say so: ``model_min={"hub": 0, "skip": 0}``.
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
        If a dim or a thought is missing, or what is read is no distribution.
    """
    if isinstance(attention, xr.Dataset):
        attention = attention["attention"]
    block, labels, complete = thought_block(attention, convention)
    unknown = sorted({*(model_max or {}), *(model_min or {})} - set(METRICS))
    if unknown:
        raise UsageError(f"model_max and model_min hold {', '.join(unknown)}; they take {', '.join(METRICS)}")
    if "example" in block.dims and not per_example:
        block = block.mean("example", dtype="float64", skipna=False)
        complete = complete.any("example") if "example" in complete.dims else complete
    elif per_example and "example" not in block.dims:
        dims = ", ".join(map(str, attention.dims))
        raise SchemaError(f"per_example needs attention with the dim example; found {dims}")
    scores = score_block(block, complete, labels, convention, model_max=model_max, model_min=model_min, n_layer=n_layer)
    return scores.assign_attrs(inherited(attention))


def thought_block(attention: xr.DataArray, convention: Convention) -> tuple[xr.DataArray, list[str], xr.DataArray]:
    """Attention among the thoughts, the thoughts' names, and whether the attention paid at ``bot`` is there as well.

    Only a model's own attention in the convention of the reports has it; published matrices leave that row out.
    """
    if convention not in get_args(Convention):
        allowed = get_args(Convention)
        raise UsageError(f"convention {convention!r} is not one of {', '.join(allowed)}{nearest(convention, allowed)}")
    what = f"the head scores of convention {convention!r}"
    require_dims(attention, ["layer", "head", "position", "key_position"], what)
    attention = numbered(attention, ["layer", "head"])
    labels = sorted({*thought_labels(attention, "key_position"), *thought_labels(attention)}, key=lambda x: int(x[2:]))
    if convention == "reports":
        labels = latent_labels(N_REPORT_STEP - 1)
    elif len(labels) < 2:
        held = ", ".join(labels) or "none"
        raise SchemaError(f"{what} need at least two thoughts; key_position holds {held} of ct0 ..")
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


def score_block(
    block: xr.DataArray,
    complete: xr.DataArray,
    labels: list[str],
    convention: Convention,
    *,
    model_max: Mapping[str, float] | None = None,
    model_min: Mapping[str, float] | None = None,
    n_layer: int | None = None,
) -> xr.Dataset:
    """Scores of blocks (..., layer, head, position, key_position), labelled; parameters as of :func:`head_scores`."""
    core = ["layer", "head", "position", "key_position"]
    if block.chunks is not None:
        block = block.chunk(dict.fromkeys(core, -1))
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
    if (known < -ROUNDING).any() or (known.sum(-1) > 1 + ROUNDING).any():
        raise SchemaError(
            f"attention is no distribution: values from {np.nanmin(known):.3g}, sums over thoughts up to"
            f" {np.nanmax(known.sum(-1)):.3g}; pass probabilities, as a run holds them, not scores or sums of them"
        )
    present = np.isfinite(known).all((-2, -1)) & (known.sum((-2, -1)) > 0)  # (..., layer, head)
    matrix = np.where(np.isfinite(known), known, 0.0)
    raw = thought_metrics(matrix) if convention == "thoughts" else report_metrics(matrix)
    metrics = np.stack([raw["flow"], raw["hub"], raw["skip"]], axis=-1)  # (..., layer, head, metric)

    low, high = _extremes(metrics, present, complete, convention, model_max, model_min)  # (..., metric)
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


def _extremes(
    metrics: Array, present: Array, complete: Array, convention: Convention, model_max: dict[str, float],
    model_min: dict[str, float],
) -> tuple[Array, Array]:  # fmt: skip
    """What metrics (..., layer, head, metric) are scaled between: (..., metric) each."""
    kept = present[..., None]
    low = np.where(kept, metrics, np.inf).min((-3, -2))
    high = np.where(kept, metrics, -np.inf).max((-3, -2))
    if convention == "reports":  # flow keeps its own minimum: it is constant
        whole = np.asarray(complete) & present.all((-2, -1))
        low[..., 1:] = np.where(whole[..., None], low[..., 1:], 0.0)
    for index, metric in enumerate(METRICS):
        if metric in model_max:
            high[..., index] = model_max[metric]
            low[..., index] = 0.0 if metric != "flow" else low[..., index]
        if metric in model_min:
            low[..., index] = model_min[metric]
    return np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)


def thought_metrics(matrix: Array) -> dict[str, Array]:
    """Metrics of lower-triangular matrices (..., i, j), diagonal in."""
    n = matrix.shape[-1]
    row = matrix.sum(-1)  # (..., i)
    total = row.sum(-1)
    itself = np.diagonal(matrix, axis1=-2, axis2=-1)
    incoming, expected = incoming_attention(matrix)
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


def incoming_attention(matrix: Array) -> tuple[Array, Array]:
    """Attention each thought gets from later ones, and what an even spread of every row would give it: (..., j)."""
    n = matrix.shape[-1]
    incoming = matrix.sum(-2) - np.diagonal(matrix, axis1=-2, axis2=-1)
    even = matrix.sum(-1) / np.arange(1, n + 1)
    expected = np.cumsum(even[..., ::-1], axis=-1)[..., ::-1] - even
    return incoming, expected


def report_metrics(matrix: Array) -> dict[str, Array]:
    """Metrics of report 004, from the attention (..., i, j) among ct0 .. ct4."""
    shifted = report_steps(matrix)  # (..., 6, 6)
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


def report_steps(matrix: Array) -> Array:
    """Attention among ct0 .. ct4 as the reports stored it: row s is step s (0 is bot), column j the key of step j+1."""
    shifted = np.zeros((*matrix.shape[:-2], N_REPORT_STEP, N_REPORT_STEP))
    shifted[..., 1:, :-1] = np.tril(matrix)
    return shifted
