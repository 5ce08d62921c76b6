"""Where the answer looks, and where each thought looks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.blocks import chunked_like
from analyze.labels import inherited, labels_along, problem_along, require_dims, take, thought_labels
from analyze.statistics import bootstrap_weights, percentile_interval
from schemas import SchemaError, segment_of

Array = npt.NDArray[Any]
EOT = "eot"
CONSTANT = 0.9
"""Share of examples with the same token from which on it says nothing of the problem."""
ANSWER_QUERY = "answer"
"""Query that stands for every answer token of an example, each counted alike."""


def writing_position(run: xr.Dataset) -> str:
    """Position whose pass predicts the first answer token that is not the same in nearly all examples.

    Before it stand words that every answer begins with ("The answer is:"), so that ``eot`` predicts "The" whatever the
    thoughts hold; this is where what was worked out is written. ``eot`` where the first token differs already, or
    where none does.
    """
    labels = [str(label) for label in run["position"].values]
    answer = [label for label in labels if segment_of(label) == "answer"]
    tokens = np.asarray(take(run["token"], "position", answer, "the answer's tokens").values) if answer else np.empty(0)
    for place, column in enumerate(tokens.T):
        written = column[column >= 0]
        if len(written) and np.unique(written, return_counts=True)[1].max() < CONSTANT * len(written):
            return answer[place - 1] if place else EOT
    return EOT


def attention_shares(attention: xr.DataArray, also: Sequence[str] = ()) -> xr.DataArray:
    """Share of each query's attention that goes to the question, ``bot``, each thought, ``eot`` and answer.

    The query ``eot`` is the pass that predicts the first answer token; ``answer`` is the mean over an example's answer
    tokens as queries. A query's attention to itself is counted where it is: in the share ``ct2`` of query ``ct2``,
    ``eot`` of ``eot``, ``answer`` of ``answer``. Targets are whole segments of keys, so shares sum to 1 (each row is
    divided by its sum, which differs from 1 by the rounding of the stored type).

    Parameters
    ----------
    attention : (..., position, key_position)
        Probabilities over all keys, as in a run. Lazy input stays lazy; rows of the question are not read.
    also
        Answer positions that are queries of their own as well, as :func:`writing_position`.

    Returns
    -------
    (..., query, target), NaN where an example has no such query; one array per chunk of the other dims

    Raises
    ------
    SchemaError
        If a dim, a label or all of the queries from ``bot`` on are missing.
    """
    what = "the shares of attention"
    require_dims(attention, ["position", "key_position"], what)
    queries = [x for x in labels_along(attention, "position") if segment_of(x) != "question"]
    thoughts = thought_labels(attention, "key_position")
    answer = [x for x in queries if segment_of(x) == "answer"]
    single = [x for x in queries if x not in answer or x in also]
    name = attention.name or "the array"
    if not thoughts:
        raise SchemaError(f"{what} are between thoughts, and from the answer to them; {name} is of a run without any")
    if not single:
        raise SchemaError(f"{what} need queries from bot on; {name} has none")
    targets = ["question", "bot", *thoughts, "eot", "answer"]
    target_of = [x if x in targets else segment_of(x) for x in labels_along(attention, "key_position")]
    member = np.array(target_of)[:, None] == np.array(targets)
    rows = take(attention, "position", queries, what).drop_vars(["segment", "offset"], errors="ignore")
    shares = _over_targets(rows.transpose(..., "position", "key_position"), member.astype("float32"))
    if shares.chunks is not None:
        shares = shares.chunk(position=-1)
    labels = shares["position"].values.tolist()
    places = {"single": [labels.index(x) for x in single], "answer": [labels.index(x) for x in answer]}
    by_query: xr.DataArray = xr.apply_ufunc(
        _by_query,
        shares.drop_vars("position"),
        kwargs=places,
        input_core_dims=[["position", "target"]],
        output_core_dims=[["query", "target"]],
        dask="parallelized",
        output_dtypes=["float32"],
        dask_gufunc_kwargs={"output_sizes": {"query": len(single) + bool(answer)}},
    )
    by_query = by_query.assign_coords(
        query=np.array([*single, *([ANSWER_QUERY] if answer else [])], dtype=object),
        target=np.array(targets, dtype=object),
    )
    by_query.attrs = inherited(attention, units="1", long_name="share of attention", range="0 to 1")
    return by_query.rename("share")


def _over_targets(rows: xr.DataArray, member: Array) -> xr.DataArray:
    """Sums of rows (..., key_position) over the keys that are members (key_position, target): (..., target)."""
    if rows.chunks is None:
        sums: Any = _product([rows.values], [member])
    else:
        import dask.array as da

        axes = tuple(range(rows.ndim))
        columns = da.from_array(member, chunks=(rows.chunks[-1], -1))
        sums = da.blockwise(  # da.tensordot would add the products of the chunks along a last axis, which is slow
            _product, (*axes[:-1], rows.ndim), rows.data, axes, columns, (axes[-1], rows.ndim), dtype="float32",
            meta=np.empty((0,) * rows.ndim, dtype="float32"),
        )  # fmt: skip
    dims = (*rows.dims[:-1], "target")
    return xr.DataArray(sums, dims=dims, coords=rows.drop_vars("key_position").coords)


def _product(rows: Sequence[Array], members: Sequence[Array]) -> Array:
    """Sum over chunks of keys of the rows' product with the targets between which they all are."""
    sums = np.zeros((*rows[0].shape[:-1], members[0].shape[1]), dtype="float32")
    for row, member in zip(rows, members, strict=True):
        named = np.flatnonzero(member.any(0))
        some = slice(named.min(initial=len(member.T)), named.max(initial=-1) + 1)
        sums[..., some] += np.tensordot(row.astype("float32", copy=False), member[:, some], 1)
    return sums


def _by_query(sums: Array, single: Sequence[int], answer: Sequence[int]) -> Array:
    """Shares of queries from sums over targets (..., position, target): those of ``single``, the mean of ``answer``."""
    # as a product, as a sum over so short an axis takes ten times as long
    total = (sums @ np.ones(sums.shape[-1], sums.dtype))[..., None]
    some = total > 0
    shares = sums / np.where(some, total, np.nan)
    if not answer:
        return np.asarray(shares[..., single, :])
    among = some[..., answer, :]
    count = among.sum(-2, keepdims=True)
    mean = np.where(among, shares[..., answer, :], 0).sum(-2, keepdims=True) / np.where(count, count, np.nan)
    return np.concatenate([shares[..., single, :], mean.astype(shares.dtype)], axis=-2)


def attention_summary(
    attention: xr.DataArray, *, problem: xr.DataArray | None = None, n_resample: int = 300, seed: int = 0,
    also: Sequence[str] = (),
) -> xr.Dataset:  # fmt: skip
    """Where every query of every head looks, over all examples, and how sure that is.

    ``share`` : (layer, head, query, target), the mean of :func:`attention_shares` over the examples that have the
    query; ``n`` : (query). ``thought_total`` : (layer, head, query), share of all thoughts together, and
    ``thought_share`` : (layer, head, query, thought), what each gets of that (of means, so
    heads that hardly look at the thoughts in some examples do not blow up). ``layer_share``, ``layer_share_low``,
    ``layer_share_high`` : (layer, query, target), mean over heads with a 95% bootstrap interval over problems, and
    ``layer_thought_share`` : (layer, query, thought).

    Parameters
    ----------
    attention : (example, layer, head, position, key_position)
        Lazy input stays lazy; compute the result as a whole, so that it is read once, in memory that does not grow.
    problem : (example,)
        Group of each example; by default the coordinate ``problem``, else each example is its own.
    also
        Answer positions that are queries of their own as well.
    """
    require_dims(attention, ["example", "layer", "head"], "the summary of attention")
    shares = attention_shares(attention, also)
    problem = chunked_like(problem_along(attention) if problem is None else problem, shares)
    sums = _sums(shares, bootstrap_weights(problem, n_resample, seed))
    count = sums["by_head"].sel(part="count")
    count = count.where(count > 0)
    mean = sums["by_head"].sel(part="sum") / count
    n = count.isel(layer=0, head=0, target=0, drop=True).fillna(0).astype(int)
    drawn = sums["by_layer"].sel(part="count")
    means = sums["by_layer"].sel(part="sum") / drawn.where(drawn > 0)
    whole, drawn = drawn.isel(resample=n_resample, drop=True), drawn.isel(resample=slice(n_resample))
    layer_mean = means.isel(resample=n_resample, drop=True)
    low, high = percentile_interval(means.isel(resample=slice(n_resample)), whole, drawn)

    def among_thoughts(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        labels = thought_labels(values, "target")
        part = values.sel(target=labels).rename(target="thought")
        total = part.sum("thought")
        return total, part / total.where(total > 0)

    total, by_thought = among_thoughts(mean)
    layer_total, layer_each = among_thoughts(layer_mean)
    figures = {
        "share": (mean, "share of attention"),
        "n": (n, "examples that have the query"),
        "thought_total": (total, "share of all thoughts"),
        "thought_share": (by_thought, "share of the attention among thoughts"),
        "layer_share": (layer_mean, "share of attention, mean over heads"),
        "layer_share_low": (low, "its interval, low"),
        "layer_share_high": (high, "its interval, high"),
        "layer_thought_total": (layer_total, "share of all thoughts, mean over heads"),
        "layer_thought_share": (layer_each, "share of the attention among thoughts, mean over heads"),
    }
    result = xr.Dataset({name: values for name, (values, _) in figures.items()}).reset_coords(drop=True)
    for name, (_, text) in figures.items():
        result[name].attrs = {"long_name": text, "units": "1"}
    result.attrs = inherited(attention, kind="attention", n_resample=n_resample, n_example=attention.sizes["example"])
    return result


def _sums(shares: xr.DataArray, weights: xr.DataArray) -> dict[str, xr.DataArray]:
    """Sums over examples of all that the summary needs, in one pass: a task for each block of examples and layer.

    ``by_head`` : (part, layer, head, query, target) of the shares and how many there are; ``by_layer`` :
    (part, layer, query, target, resample) of the means over heads and how many there are, under each resample's weights
    and, as the last of ``resample``, under weights of 1.
    """
    dims = ["layer", "head", "query", "target"]
    shares = shares.transpose("example", *dims)
    n_head, n_drawn = shares.sizes["head"], weights.sizes["resample"] + 1
    if shares.chunks is None:
        total = _block_sums(shares.values, weights.values)[0]
    else:
        import dask.array as da

        partial = da.blockwise(
            _block_sums,
            "elqtp",
            shares.chunk(dict.fromkeys(dims[1:], -1)).data,
            "elhqt",
            weights.data,
            "er",
            new_axes={"p": 2 * n_head + 2 * n_drawn},
            adjust_chunks={"e": lambda _: 1},
            dtype="float64",
            concatenate=True,
            meta=np.empty((0,) * 5),
        )
        total = partial.sum(axis=0, split_every=8)
    labels = {dim: shares[dim].values for dim in dims}
    heads = total[..., : 2 * n_head].reshape(*total.shape[:-1], 2, n_head)
    layers = total[..., 2 * n_head :].reshape(*total.shape[:-1], 2, n_drawn)
    by_head = xr.DataArray(heads, dims=("layer", "query", "target", "part", "head"), coords=labels)
    by_layer = xr.DataArray(layers, dims=("layer", "query", "target", "part", "resample"))
    return {
        "by_head": by_head.assign_coords(part=["sum", "count"]).transpose("part", *dims),
        "by_layer": by_layer.assign_coords({dim: labels[dim] for dim in by_layer.dims if dim in labels}).assign_coords(
            part=["sum", "count"]
        ),
    }


def _block_sums(shares: Array, weights: Array) -> Array:
    """:func:`_sums` of some examples (example, layer, head, query, target), one part after the other, on the last axis.

    A query that an example lacks is NaN in all of its targets.
    """
    known = ~np.isnan(shares[..., 0])  # (example, layer, head, query)
    values = np.where(known[..., None], shares, 0)
    count = known.sum(2)  # of heads
    by_layer = values.sum(2) / np.maximum(count, 1)[..., None].astype(values.dtype)
    drawn = np.concatenate([weights, np.ones_like(weights[:, :1])], axis=1)
    parts = [
        values.sum(0, dtype="float64"),
        np.broadcast_to(known.sum(0)[..., None], values.shape[1:]),
    ]
    by_head = [np.moveaxis(part, 1, -1) for part in parts]
    drawn_sum = np.tensordot(by_layer, drawn, axes=(0, 0))
    drawn_count = np.tensordot((count > 0).astype(drawn.dtype), drawn, axes=(0, 0))
    drawn_count = np.broadcast_to(drawn_count[:, :, None], drawn_sum.shape)
    return np.concatenate([*by_head, drawn_sum, drawn_count], axis=-1, dtype="float64")[None]
