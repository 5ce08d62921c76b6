"""What the answer attends to, and what matters to it: of each example, by position."""

import json
from typing import Any

import numpy as np
import xarray as xr

from analyze.attention.shares import attention_shares
from analyze.labels import inherited, labels_along, thought_labels
from schemas import SchemaError, UsageError, nearest, segment_of


def answer_attention(attention: xr.DataArray, *, query: str = "eot", heads: bool = False) -> xr.DataArray:
    """Attention of the answer to each thought, in each example.

    Parameters
    ----------
    attention : (example, layer, head, position, key_position)
        Lazy input stays lazy.
    query
        ``"eot"``, which predicts the first answer token; ``"answer"``, the mean over answer tokens; a thought; or one
        answer token.
    heads
        Whether to keep the heads instead of their mean.

    Returns
    -------
    (example, layer, position), or with ``head`` after ``layer``
    """
    there = query in attention["position"].values and segment_of(query) != "question"
    shares = attention_shares(attention.sel(position=[query]), [query]) if there else attention_shares(attention)
    if query not in shares["query"].values:
        raise SchemaError(
            f"attention of query {query!r}: the run holds the queries {', '.join(shares['query'].values)}. "
            "Pick one of them."
        )
    thoughts = thought_labels(shares, "target")
    chosen = shares.sel(query=query, target=thoughts, drop=True).rename(target="position")
    chosen = chosen if heads else chosen.mean("head")
    return chosen.assign_attrs(shares.attrs, long_name=f"attention of {query}").transpose(
        "example", "layer", ..., "position"
    )


def failure_importance(baseline: xr.DataArray, ablated: xr.DataArray) -> xr.DataArray:
    """1 where an example that was answered right is answered wrong after an ablation, 0 where still right.

    Examples answered wrong to begin with are NaN: nothing can be lost there.

    Parameters
    ----------
    baseline : (example,), bool
    ablated : (example, ...), bool
        Whether it is right after the ablation, by ``position`` for example. Joined by label.
    """
    common, missing = in_both(baseline, ablated, "importance from an ablation")
    if missing:
        raise SchemaError(
            f"importance from an ablation: the ablation holds examples {listed(missing)} that the baseline lacks. "
            "Use the baseline of the same run."
        )
    right = baseline.sel(example=common).astype(bool)
    lost = (~ablated.sel(example=common).astype(bool)).astype("float64")
    return lost.where(right).assign_attrs(inherited(ablated, long_name="failure after ablation", units="1"))


def importance_of(result: xr.Dataset, name: str) -> xr.DataArray:
    """Importance by example, and by position where it has one, from a variable of a run or of a stored result.

    Parameters
    ----------
    result
        A run, or a result of a re-entry that keeps examples apart.
    name
        Variable with the dim ``example``, and ``position`` or none other. Bools count as 0 and 1.

    Raises
    ------
    SchemaError
        If there is no such variable; those that there are are named.
    """
    fitting = [
        str(key)
        for key, variable in result.data_vars.items()
        if key not in ("token", "committed")
        and "example" in variable.dims
        and set(variable.dims) <= {"example", "position"}
        and variable.dtype.kind in "bif"
    ]
    if name not in fitting:
        raise SchemaError(
            f"importance {name!r} of {result.attrs.get('run', 'the result')}: not a number by example, or by example "
            f"and position; such are {', '.join(fitting) or 'none'}{nearest(name, fitting)}"
        )
    return (
        result[name]
        .astype("float64")
        .assign_attrs(inherited(result), long_name=result[name].attrs.get("long_name", name))
    )


def reentry_importance(result: xr.Dataset, measure: str = "failure", **where: Any) -> xr.DataArray:
    """Importance of each position in each example, from a stored re-entry that changes one position at a time.

    Conditions that are left for a position after ``where`` and differ in what was done to it (``corruption``,
    ``operation``) are averaged, as the reports did over their seven corruptions; controls are left out.

    Parameters
    ----------
    result
        Result of a re-entry with the dim ``condition`` (its first is the untouched run; coordinate ``group`` names the
        position, or ``position``), or with a dim ``position`` and ``untouched_...`` variables. Examples kept apart.
    measure
        ``"failure"``: right before and wrong after, see :func:`failure_importance`; ``"logprob"``: fall of the gold
        answer's log probability, nat; ``"kl"``: divergence at the answer's first token, nat.
    **where
        Labels to select, such as ``corruption="mean"`` or ``layer=1``.
    """
    name = {"failure": "correct", "logprob": "answer_logprob", "kl": "kl"}.get(measure)
    what = f"importance from a re-entry by {measure!r}"
    if name is None:
        raise UsageError(f"{what}: measures are failure, logprob, kl{nearest(measure, ('failure', 'logprob', 'kl'))}")
    if name not in result or "example" not in result[name].dims:
        raise SchemaError(
            f"{what}: the result has no {name} by example; it holds {', '.join(map(str, result.data_vars))}"
        )
    values = result[name]
    if "answer" in values.dims:
        values = values.isel(answer=0, drop=True)
    counted: xr.DataArray | bool = True  # where a condition was armed
    if "condition" in values.dims:
        if "counted" in result:
            counted = _by_position(result["counted"].isel(condition=slice(1, None)), where).astype(bool)
        before, values = values.isel(condition=0, drop=True), _by_position(values.isel(condition=slice(1, None)), where)
    else:
        before = result.get(f"untouched_{name}", xr.zeros_like(values.isel(position=0, drop=True)))
        for key, value in where.items():
            held = labels_along(values, key) if key in values.dims else []
            if str(value) not in held:
                raise SchemaError(
                    f"{what}: the result has no {key} {value!r}; it has {', '.join(held) or 'no such dim'}"
                )
            values = values.isel({key: held.index(str(value))})
    over = [str(dim) for dim in values.dims if dim not in ("example", "position")]
    many = [dim for dim in over if values.sizes[dim] > 1 and dim not in ("corruption", "operation")]
    if many:
        several = "; ".join(f"{dim} {', '.join(map(str, values[dim].values))}" for dim in many)
        raise SchemaError(f"{what}: the result holds {several}. Select one of each.")
    if measure == "failure":
        change = failure_importance(before.astype(bool), values.astype(bool))
    else:
        change = before - values if measure == "logprob" else values
    text = {"failure": "failure after intervention", "logprob": "fall of log p of the answer", "kl": "divergence"}
    change = change.where(counted)
    mean = change.mean(over, skipna=False) if over else change
    runs = json.loads(result.attrs.get("runs", "[]"))
    attrs = {"run": runs[0]} if len(runs) == 1 else inherited(result)
    return mean.transpose("example", "position").assign_attrs(attrs, long_name=text[measure])


def _by_position(values: xr.DataArray, where: dict[str, Any]) -> xr.DataArray:
    """(condition, example) as (position, corruption, example), of the conditions that change one position."""
    label = next((name for name in ("group", "positions", "position") if name in values.coords), None)
    if label is None:
        raise SchemaError(
            f"the re-entry's conditions name no position; their coordinates are {', '.join(map(str, values.coords))}"
        )
    keep = np.array([str(x)[:2] == "ct" or str(x) in ("bot", "eot") for x in values[label].values])
    keep &= np.array(["+" not in str(x) for x in values[label].values])
    if "control" in values.coords and "control" not in where:
        keep &= values["control"].values.astype(str) == ""
    for key, value in where.items():
        if key not in values.coords:
            raise SchemaError(
                f"the re-entry's conditions have no {key!r}; they have {', '.join(map(str, values.coords))}"
            )
        keep &= values[key].values.astype(str) == str(value)
    values = values.isel(condition=np.flatnonzero(keep))
    for key in ("site", "layer", "stratum"):
        labels = sorted({str(x) for x in values[key].values}) if key in values.coords else []
        if len(labels) > 1:
            raise SchemaError(f"the re-entry holds {key} {', '.join(labels)}; choose one, as --where {key}={labels[0]}")
    places = list(dict.fromkeys(str(x) for x in values[label].values))
    parts = [values.isel(condition=np.flatnonzero(values[label].values.astype(str) == place)) for place in places]
    sizes = {part.sizes["condition"] for part in parts}
    if len(sizes) != 1:
        raise SchemaError(
            f"the re-entry changes positions {', '.join(places) or '(none)'} unequally often; choose conditions with"
            " --where, as corruption=mean"
        )
    bare = [part.drop_vars([c for c in part.coords if "condition" in part[c].dims]) for part in parts]
    joined = xr.concat(bare, xr.DataArray(np.array(places, dtype=object), dims="position", name="position"))
    return joined.rename(condition="corruption")


def in_both(reference: xr.DataArray, other: xr.DataArray, what: str) -> tuple[list[Any], list[Any]]:
    """Examples of ``other`` that are in the reference, and those that are not; refuses labels that do not identify."""
    for array in (reference, other):
        name = array.name or "one side"
        if "example" not in array.coords:
            raise SchemaError(
                f"{what}: {name} has no labels along example, so it cannot be joined. Keep the run's own."
            )
        if not array.get_index("example").is_unique:
            raise SchemaError(f"{what}: {name} has an example more than once. Select one variant, or relabel.")
    known = set(reference["example"].values.tolist())
    labels = other["example"].values.tolist()
    return [x for x in labels if x in known], [x for x in labels if x not in known]


def listed(labels: list[Any]) -> str:
    """The first five labels."""
    return ", ".join(map(str, labels[:5])) + (", .." if len(labels) > 5 else "")
