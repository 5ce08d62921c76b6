"""Whether what the answer attends to is what matters: correlations that keep apart what the pooled one mixes.

A pooled correlation over examples and positions is large as soon as some position is both attended and important in
every problem, whatever happens within positions. So five are reported: pooled; at each position, over problems; within
problems, over positions; with position accounted for; and with both accounted for.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from analyze.attention.shares import attention_shares
from analyze.labels import inherited, labels_along, require_dims, take, thought_labels
from analyze.statistics import adjust
from schemas import SchemaError, UsageError, nearest
from schemas.checks import check_whole

Array = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[int, int], None]

BATCH = 50
"""Resamples whose sums are held at once."""


def answer_attention(attention: xr.DataArray, *, query: str = "eot", heads: bool = False) -> xr.DataArray:
    """Attention of the answer to each thought, in each example.

    Parameters
    ----------
    attention : (example, layer, head, position, key_position)
        Lazy input stays lazy.
    query
        ``"eot"``, which predicts the first answer token; ``"answer"``, the mean over answer tokens; or a thought.
    heads
        Whether to keep the heads instead of their mean.

    Returns
    -------
    (example, layer, position), or with ``head`` after ``layer``
    """
    shares = attention_shares(attention)
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
    found, missing = _in_both(baseline, ablated, "importance from an ablation")
    if missing:
        raise SchemaError(
            f"importance from an ablation: the ablation holds examples {_some(missing)} that the baseline lacks. "
            "Use the baseline of the same run."
        )
    right = baseline.sel(example=found).astype(bool)
    lost = (~ablated.sel(example=found).astype(bool)).astype("float64")
    return lost.where(right).assign_attrs(inherited(ablated, long_name="failure after ablation", units="1"))


def importance_of(found: xr.Dataset, name: str) -> xr.DataArray:
    """Importance by example, and by position where it has one, from a variable of a run or of a stored result.

    Parameters
    ----------
    found
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
        for key, variable in found.data_vars.items()
        if key not in ("token", "committed")
        and "example" in variable.dims
        and set(variable.dims) <= {"example", "position"}
        and variable.dtype.kind in "bif"
    ]
    if name not in fitting:
        raise SchemaError(
            f"importance {name!r} of {found.attrs.get('run', 'the result')}: not a number by example, or by example "
            f"and position; such are {', '.join(fitting) or 'none'}{nearest(name, fitting)}"
        )
    return (
        found[name].astype("float64").assign_attrs(inherited(found), long_name=found[name].attrs.get("long_name", name))
    )


def reentry_importance(found: xr.Dataset, measure: str = "failure", **where: Any) -> xr.DataArray:
    """Importance of each position in each example, from a stored re-entry that changes one position at a time.

    Conditions that are left for a position after ``where`` and differ in what was done to it (``corruption``,
    ``operation``) are averaged, as the reports did over their seven corruptions; controls are left out.

    Parameters
    ----------
    found
        Result of a re-entry with the dim ``condition`` (its first is the untouched run; coordinate ``group`` names the
        position, or ``position``), or with a dim ``position`` and ``untouched_...`` variables. Examples kept apart.
    measure
        ``"failure"``: right before and wrong after, see :func:`failure_importance`; ``"logprob"``: fall of the gold
        answer's log probability, nat; ``"kl"``: divergence at the answer's number, nat.
    **where
        Labels to select, such as ``corruption="mean"`` or ``layer=1``.
    """
    name = {"failure": "correct", "logprob": "answer_logprob", "kl": "kl"}.get(measure)
    what = f"importance from a re-entry by {measure!r}"
    if name is None:
        raise UsageError(f"{what}: measures are failure, logprob, kl{nearest(measure, ('failure', 'logprob', 'kl'))}")
    if name not in found or "example" not in found[name].dims:
        raise SchemaError(
            f"{what}: the result has no {name} by example; it holds {', '.join(map(str, found.data_vars))}"
        )
    values = found[name]
    if "answer" in values.dims:
        values = values.isel(answer=0, drop=True)
    if "condition" in values.dims:
        before, values = values.isel(condition=0, drop=True), _by_position(values.isel(condition=slice(1, None)), where)
    else:
        before = found.get(f"untouched_{name}", xr.zeros_like(values.isel(position=0, drop=True)))
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
    mean = change.mean(over, skipna=False) if over else change
    runs = json.loads(found.attrs.get("runs", "[]"))
    attrs = {"run": runs[0]} if len(runs) == 1 else inherited(found)
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
            raise SchemaError(f"the re-entry holds {key} {', '.join(labels)}; select one")
    places = list(dict.fromkeys(str(x) for x in values[label].values))
    parts = [values.isel(condition=np.flatnonzero(values[label].values.astype(str) == place)) for place in places]
    sizes = {part.sizes["condition"] for part in parts}
    if len(sizes) != 1:
        raise SchemaError(
            f"the re-entry changes positions {', '.join(places) or '(none)'} unequally often; select with where"
        )
    bare = [part.drop_vars([c for c in part.coords if "condition" in part[c].dims]) for part in parts]
    joined = xr.concat(bare, xr.DataArray(np.array(places, dtype=object), dims="position", name="position"))
    return joined.rename(condition="corruption")


def attention_importance(
    attention: xr.DataArray,
    importance: xr.DataArray,
    *,
    correction: str = "holm",
    n_permutation: int = 1000,
    n_resample: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Correlate attention with importance, joined by example and position.

    Examples with importance at every position are used (so an example NaN for having been wrong to begin with is out).
    With both centred as named, Pearson's r of

    ``pooled``
        nothing removed; interval only: its points are not independent, and it mixes what the others keep apart
    ``position`` : (..., position)
        one position, over examples; p by exchanging importance between problems
    ``within``
        each example's mean over positions removed; p by exchanging importance between positions of an example.
        Positions that differ in every example alike count here
    ``partial``
        each position's mean over examples removed; p by exchanging importance between problems
    ``two_way``
        both removed; p by exchanging between problems

    None depends on the units or the origin of either. Each has ``_r``, a 95% interval ``_r_low``, ``_r_high`` from a
    bootstrap over problems and, but for pooled, ``_p`` (two-sided) and ``_p_adjusted`` for the number of its tests
    here. A correlation with something constant is NaN. Problems are exchanged whole, with all their examples, among
    those of the same number of examples.

    Parameters
    ----------
    attention : (example, ..., position)
        For instance :func:`answer_attention`; every other dim (layer, head) is tested on its own. Computed and held.
    importance : (example, position) or (example,)
        For instance :func:`failure_importance`, or any column; one without position is held against attention at every
        position, and has no correlation within problems. Its examples must all be in ``attention``, with the same
        ``problem`` if both know it, and its positions too.
    correction
        ``"holm"`` or ``"bh"``.
    progress
        Called with resamples done and their number.

    Returns
    -------
    Dataset
        The above and what they were computed from: ``attention`` and ``importance`` of the examples used
        (``n_example``), and their means ``mean_attention`` : (..., position) and ``mean_importance`` : (position) with
        intervals; the line of the pooled points, ``slope`` and ``intercept``.

    Raises
    ------
    SchemaError
        If examples, problems, positions or runs do not line up, or are not labelled.
    """
    check_whole("n_permutation", n_permutation, 0)
    check_whole("n_resample", n_resample, 0)
    x, y = _joined(attention, importance)
    dims = [str(dim) for dim in x.dims if dim not in ("example", "position")]
    x = x.transpose("example", *dims, "position")
    lead = tuple(x.sizes[dim] for dim in dims)
    groups = np.asarray(x.coords["problem"].values if "problem" in x.coords else x["example"].values)
    values = np.asarray(x.values, dtype="float64").reshape(
        x.sizes["example"], -1, x.sizes["position"]
    )  # (example, test, position)
    target = np.asarray(y.values, dtype="float64")  # (example, position)

    resolution = _resolution(x), _resolution(importance)
    raw = _Pair(values, target, (np.abs(values).max(0), np.abs(target).max(0)), resolution)
    largest = np.abs(values).max((0, 2))[:, None], np.abs(target).max(keepdims=True)[0]
    rows = _Pair(_row_centred(values), _row_centred(target), largest, resolution)
    means = raw.whole
    observed = _correlations(raw, means, rows, rows.whole)
    rng = np.random.default_rng(seed)
    total = n_permutation + n_resample
    done = 0
    beyond = {name: np.zeros_like(value) for name, value in observed.items()}
    exchange = _Exchange(groups)
    for _ in range(n_permutation):
        between = exchange.between(rng)
        shuffled = np.argsort(rng.random(target.shape), axis=1)
        drawn = _correlations(raw, raw.moments(between), rows, rows.moments(between))
        drawn["within"] = rows.shuffled(shuffled)
        for name, value in observed.items():
            with np.errstate(invalid="ignore"):
                beyond[name] += np.abs(drawn[name]) >= np.abs(value) - 1e-12
        done += 1
        if progress is not None and done % BATCH == 0:
            progress(done, total)
    draws: dict[str, list[Array]] = {name: [] for name in (*observed, "mean_attention", "mean_importance")}
    for _ in range(n_resample):
        chosen = exchange.resample(rng)
        moments = raw.moments(rows=chosen)
        drawn = _correlations(raw, moments, rows, rows.moments(rows=chosen))
        drawn |= {"mean_attention": raw.x.natural(moments.x), "mean_importance": raw.y.natural(moments.y)}
        for name, value in drawn.items():
            draws[name].append(value)
        done += 1
        if progress is not None and (done % BATCH == 0 or done == total):
            progress(done, total)

    result = xr.Dataset(coords={dim: x[dim].values for dim in (*dims, "position")})
    for name, value in observed.items():
        shape = (*lead, len(result["position"])) if name == "position" else lead
        over = [*dims, "position"] if name == "position" else dims
        low, high = _quantiles(np.stack(draws[name])) if n_resample else (np.full_like(value, np.nan),) * 2
        known = np.isfinite(value)
        for suffix, part in (("r", value), ("r_low", low), ("r_high", high)):
            result[f"{name}_{suffix}"] = (over, np.where(known, part, np.nan).reshape(shape))
        if name != "pooled":
            p = np.where(known, (beyond[name] + 1) / (n_permutation + 1), np.nan)
            result[f"{name}_p"] = (over, p.reshape(shape))
            result[f"{name}_p_adjusted"] = (over, adjust(p, correction).reshape(shape))
            result[f"{name}_p_adjusted"].attrs = {"long_name": f"p, corrected ({correction})", "units": "1"}
        result[f"{name}_r"].attrs = {"long_name": LONG_NAMES[name], "units": "1", "range": "-1 to 1"}
    plain = ["example", *([name for name in ("problem", "variant") if name in x.coords])]
    result = result.assign_coords({name: ("example", x[name].values) for name in plain})
    result["attention"] = (("example", *dims, "position"), np.asarray(x.values, dtype="float32"))
    result["importance"] = (("example", "position"), target)
    for name, mean, over in (
        ("mean_attention", raw.x.natural(means.x).reshape(*lead, -1), [*dims, "position"]),
        ("mean_importance", raw.y.natural(means.y), ["position"]),
    ):
        result[name] = (over, mean)
        if n_resample:
            for suffix, bound in zip(("low", "high"), _quantiles(np.stack(draws[name])), strict=True):
                result[f"{name}_{suffix}"] = (over, bound.reshape(mean.shape))
    result["slope"] = (dims, raw.slope(means).reshape(lead))
    result["intercept"] = result["mean_importance"].mean() - result["slope"] * result["mean_attention"].mean("position")
    result["n_example"] = len(target)
    result["attention"].attrs = {"long_name": attention.attrs.get("long_name", "attention"), "units": "1"}
    result["importance"].attrs = {"long_name": importance.attrs.get("long_name", "importance"), "units": "1"}
    attrs = inherited(attention, kind="correlate", correction=correction, n_permutation=n_permutation)
    return result.assign_attrs(attrs, n_resample=n_resample, seed=seed)


LONG_NAMES = {
    "pooled": "r over examples and positions",
    "position": "r over examples at the position",
    "within": "r within problems",
    "partial": "r with position accounted for",
    "two_way": "r within problems with position accounted for",
}


class _Moments(NamedTuple):
    """Means over examples and central moments, by position, in units of the pair."""

    x: Array  # (test, position)
    y: Array  # (position,)
    xx: Array  # (test, position)
    yy: Array  # (position,)
    xy: Array  # (test, position)


class _Centred:
    """Values less their mean over examples at each position, over the largest that is left.

    So moments lose no digits to a large offset and neither over- nor underflow, whatever unit the values have. What
    varies by no more than rounding is constant, and exactly 0 here.

    Parameters
    ----------
    values : (example, ..., position)
    magnitude : (..., position or 1)
        Largest of the numbers that the values were computed from.
    resolution
        Rounding of one such number relative to it.
    """

    def __init__(self, values: Array, magnitude: Array, resolution: float) -> None:
        rounding = 32 * resolution * magnitude
        mean = values.mean(0)
        rest = values - mean
        mean, rest = mean + rest.mean(0), rest - rest.mean(0)
        self.middle = mean.mean(-1, keepdims=True)  # (..., 1)
        mean = np.where(np.abs(mean - self.middle) > rounding, mean - self.middle, 0.0)
        rest = np.where(np.abs(rest).max(0) > rounding, rest, 0.0)
        unit = np.maximum(np.abs(rest).max((0, -1)), np.abs(mean).max(-1))[..., None]
        self.unit = np.where(unit > 0, unit, 1.0)  # (..., 1)
        self.values = rest / self.unit
        self.mean = mean / self.unit  # (..., position), less the middle

    def natural(self, mean: Array) -> Array:
        """Means in the values' own unit."""
        return np.asarray(self.middle + self.unit * mean)


class _Pair:
    """Two arrays and the moments their correlations need.

    Parameters
    ----------
    x : (example, test, position)
    y : (example, position)
    magnitude, resolution
        Of both, see :class:`_Centred`.
    """

    def __init__(self, x: Array, y: Array, magnitude: tuple[Array, Array], resolution: tuple[float, float]) -> None:
        self.x, self.y = _Centred(x, magnitude[0], resolution[0]), _Centred(y, magnitude[1], resolution[1])
        self._flat = np.ascontiguousarray(self.x.values.transpose(1, 2, 0))  # (test, position, example)
        self._square = self._flat**2
        self.whole = self.moments()

    def moments(self, exchanged: Array | None = None, rows: Array | None = None) -> _Moments:
        """Moments with the second's examples exchanged, or of examples drawn with repeats."""
        y = self.y.values if exchanged is None else self.y.values[exchanged]
        n = len(y)
        weight = np.ones(n) if rows is None else np.bincount(rows, minlength=n).astype("float64")
        weight /= weight.sum()
        x_mean, y_mean = self._flat @ weight, weight @ y
        return _Moments(
            self.x.mean + x_mean,
            self.y.mean + y_mean,
            self._square @ weight - x_mean**2,
            weight @ y**2 - y_mean**2,
            np.einsum("tpe,pe->tp", self._flat, (y * weight[:, None]).T, optimize=True) - x_mean * y_mean,
        )

    def shuffled(self, order: Array) -> Array:
        """Pooled correlation (test,) of values less each example's mean, the second's positions in another order."""
        y = np.take_along_axis(self.y.values + self.y.mean, order, 1)
        xy = np.einsum("etp,ep->t", self.x.values + self.x.mean, y, optimize=True) / y.size
        _, xx, yy = _pooled(self.whole)
        return _ratio(xy, xx, yy, (xx, yy))

    def slope(self, moments: _Moments) -> Array:
        """Least-squares slope (test,) of the pooled points, in the values' own units."""
        xy, xx, _ = _pooled(moments)
        slope = np.where(xx > 0, xy / np.where(xx > 0, xx, 1), np.nan)
        return np.asarray(slope * (self.y.unit / self.x.unit[:, 0]))


def _pooled(m: _Moments) -> tuple[Array, Array, Array]:
    """Central moments xy, xx, yy over examples and positions: those at the positions and between them."""
    x, y = m.x - m.x.mean(-1, keepdims=True), m.y - m.y.mean(-1, keepdims=True)
    return (m.xy + x * y).mean(-1), (m.xx + x * x).mean(-1), (m.yy + y * y).mean(-1)


def _ratio(xy: Array, xx: Array, yy: Array, whole: tuple[Array, Array]) -> Array:
    """Correlation from central moments; NaN where of ``whole``, the variances of all examples, nothing is left."""
    good = (xx > 1e-12 * whole[0]) & (yy > 1e-12 * whole[1])
    return np.asarray(np.where(good, np.clip(xy / np.sqrt(np.where(good, xx * yy, 1.0)), -1, 1), np.nan))


def _correlations(raw: _Pair, values: _Moments, rows: _Pair, centred: _Moments) -> dict[str, Array]:
    """Every correlation from moments of the values, and of the values less each example's mean."""

    def pooled(pair: _Pair, m: _Moments) -> Array:
        return _ratio(*_pooled(m), _pooled(pair.whole)[1:])

    def summed(pair: _Pair, m: _Moments) -> Array:
        return _ratio(m.xy.sum(-1), m.xx.sum(-1), m.yy.sum(-1), (pair.whole.xx.sum(-1), pair.whole.yy.sum(-1)))

    return {
        "within": pooled(rows, centred),
        "pooled": pooled(raw, values),
        "position": _ratio(values.xy, values.xx, values.yy, (raw.whole.xx, raw.whole.yy)),
        "partial": summed(raw, values),
        "two_way": summed(rows, centred),
    }


class _Exchange:
    """Draws whole problems: exchanged among those of equal size, or with repeats."""

    def __init__(self, groups: Array) -> None:
        order = np.argsort(groups, kind="stable")
        cuts = np.flatnonzero(np.diff(groups[order])) + 1
        self._members = np.split(order, cuts)
        sizes = np.array([len(rows) for rows in self._members])
        self._strata = [np.stack([m for m in self._members if len(m) == size]) for size in np.unique(sizes)]
        self._n = len(groups)

    def between(self, rng: np.random.Generator) -> Array:
        """Row numbers that give each example the values of another problem's."""
        taken = np.empty(self._n, dtype=int)
        for rows in self._strata:  # (problem, example)
            taken[rows] = rows[rng.permutation(len(rows))]
        return taken

    def resample(self, rng: np.random.Generator) -> Array:
        """Row numbers of problems drawn with repeats."""
        drawn = rng.integers(0, len(self._members), len(self._members))
        return np.concatenate([self._members[i] for i in drawn])


def _resolution(values: xr.DataArray) -> float:
    """Rounding of one number relative to it; what a mean of numbers that are equal may be off by."""
    low = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return float(np.finfo(np.float32 if low else np.float64).eps)


def _quantiles(draws: Array) -> tuple[Array, Array]:
    known = np.isfinite(draws).any(0)
    low, high = np.nanquantile(np.where(known, draws, 0.0), [0.025, 0.975], axis=0)
    return low, high


def _row_centred(values: Array) -> Array:
    return np.asarray(values - values.mean(-1, keepdims=True))


def _joined(attention: xr.DataArray, importance: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Both at the examples and positions of the importance, or a refusal."""
    what = "correlating attention with importance"
    require_dims(attention, ["example", "position"], what)
    require_dims(importance, ["example"], what)
    if "position" not in importance.dims:  # one number of each example, held against every position
        positions = labels_along(attention, "position")
        importance = importance.expand_dims(position=np.array(positions, dtype=object), axis=-1)
    extra = [str(dim) for dim in importance.dims if dim not in ("example", "position")]
    if extra:
        raise SchemaError(f"{what}: importance also has {', '.join(extra)}; select one, or take a mean, first")
    runs = [array.attrs.get("run") for array in (attention, importance)]
    if None not in runs and runs[0] != runs[1]:
        raise SchemaError(
            f"{what}: attention is of run {runs[0]!r}, importance of {runs[1]!r}. Take both from one run."
        )
    found, missing = _in_both(attention, importance, what)
    if missing:
        raise SchemaError(
            f"{what}: importance holds {len(missing)} examples that attention lacks ({_some(missing)}), so they do not "
            "line up. Compute both from the same run and data file."
        )
    labels = labels_along(importance, "position")
    x = take(attention, "position", labels, what).sel(example=found)
    y = importance.sel(example=found).transpose("example", "position")
    if "problem" in x.coords and "problem" in y.coords and not np.array_equal(x["problem"].values, y["problem"].values):
        at = int(np.flatnonzero(x["problem"].values != y["problem"].values)[0])
        raise SchemaError(
            f"{what}: example {found[at]} is problem {x['problem'].values[at]} on one side and "
            f"{y['problem'].values[at]} on the other. The two are of different data files."
        )
    x, y = x.compute(), y.astype("float64").compute()
    complete = np.isfinite(y.values).all(1) & x.notnull().all([dim for dim in x.dims if dim != "example"]).values
    if complete.sum() < 3:
        raise UsageError(
            f"{what}: {int(complete.sum())} of {len(found)} examples have attention and importance at every one of "
            f"{', '.join(labels)}; at least 3 are needed"
        )
    return x.isel(example=complete), y.isel(example=complete)


def _in_both(reference: xr.DataArray, other: xr.DataArray, what: str) -> tuple[list[Any], list[Any]]:
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


def _some(labels: list[Any]) -> str:
    return ", ".join(map(str, labels[:5])) + (", .." if len(labels) > 5 else "")
