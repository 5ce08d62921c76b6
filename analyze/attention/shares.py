"""Where the answer looks, and where each thought looks."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from analyze.labels import inherited, labels_along, numbered, require_dims, take, thought_labels
from analyze.statistics import bootstrap_weights, percentile_interval, weighted_mean
from schemas import SchemaError, segment_of

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
    member = xr.DataArray(
        (np.array(target_of)[:, None] == np.array(targets)).astype("float32"), dims=("key_position", "target")
    )
    rows = take(attention, "position", queries, what).drop_vars(["segment", "offset"], errors="ignore")
    if rows.chunks is not None:
        member = member.chunk(key_position=rows.variable.chunksizes["key_position"])
    shares: xr.DataArray = xr.apply_ufunc(  # xr.dot would sum term by term, not as one product of matrices
        lambda row, column: np.tensordot(row, column, 1),
        rows.drop_vars("key_position").astype("float32"),
        member,
        input_core_dims=[["key_position"], ["key_position", "target"]],
        output_core_dims=[["target"]],
        dask="allowed",
    )
    if shares.chunks is not None:
        shares = shares.chunk(target=-1)
    total = shares.sum("target")
    shares = shares / total.where(total > 0)
    parts = [take(shares, "position", single, what)]
    if answer:
        mean = take(shares, "position", answer, what).mean("position", skipna=True)
        parts.append(mean.expand_dims(position=[ANSWER_QUERY]))
    found = xr.concat(parts, "position", coords="minimal", compat="override", join="exact").rename(position="query")
    if found.chunks is not None:
        found = found.chunk(query=-1)
    found = found.assign_coords(
        query=np.array([*single, *([ANSWER_QUERY] if answer else [])], dtype=object),
        target=np.array(targets, dtype=object),
    )
    found.attrs = inherited(attention, units="1", long_name="share of attention", range="0 to 1")
    return found.transpose(..., "query", "target").rename("share")


def attention_summary(
    attention: xr.DataArray, *, problem: xr.DataArray | None = None, n_resample: int = 300, seed: int = 0,
    also: Sequence[str] = (),
) -> xr.Dataset:  # fmt: skip
    """Where every query of every head looks, over all examples, and how sure that is.

    ``share`` : (layer, head, query, target), the mean of :func:`attention_shares` over the examples that have the
    query, and ``share_error`` its standard error; ``n`` : (query). ``thought_total`` : (layer, head, query), share of
    all thoughts together, and ``thought_share`` : (layer, head, query, thought), what each gets of that (of means, so
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
    if problem is None:
        problem = attention.coords.get("problem", numbered(attention, ["example"])["example"])
    n = shares.isel(layer=0, head=0, target=0, drop=True).notnull().sum("example")
    mean = shares.mean("example", dtype="float64")
    square = (shares**2).mean("example", dtype="float64")
    error = np.sqrt((square - mean**2).clip(min=0) / (n - 1).clip(min=1))

    if shares.chunks is not None:
        problem = problem.chunk(example=shares.variable.chunksizes["example"])
    weights = bootstrap_weights(problem, n_resample, seed)
    by_layer = shares.mean("head")
    drawn = weighted_mean(by_layer, weights)
    low, high = percentile_interval(drawn.chunk(resample=-1) if drawn.chunks is not None else drawn)

    def among_thoughts(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        labels = thought_labels(values, "target")
        part = values.sel(target=labels).rename(target="thought")
        total = part.sum("thought")
        return total, part / total.where(total > 0)

    total, each = among_thoughts(mean)
    layer_mean = by_layer.mean("example", dtype="float64")
    layer_total, layer_each = among_thoughts(layer_mean)
    result = xr.Dataset(
        {
            "share": mean,
            "share_error": error,
            "n": n,
            "thought_total": total,
            "thought_share": each,
            "layer_share": layer_mean,
            "layer_share_low": low,
            "layer_share_high": high,
            "layer_thought_total": layer_total,
            "layer_thought_share": layer_each,
        }
    ).reset_coords(drop=True)
    names = {
        "share": "share of attention",
        "share_error": "standard error of the share",
        "n": "examples that have the query",
        "thought_total": "share of all thoughts",
        "thought_share": "share of the attention among thoughts",
        "layer_share": "share of attention, mean over heads",
        "layer_share_low": "its interval, low",
        "layer_share_high": "its interval, high",
        "layer_thought_total": "share of all thoughts, mean over heads",
        "layer_thought_share": "share of the attention among thoughts, mean over heads",
    }
    for name, text in names.items():
        result[name].attrs = {"long_name": text, "units": "1"}
    result.attrs = inherited(attention, kind="attention", n_resample=n_resample, n_example=attention.sizes["example"])
    return result
