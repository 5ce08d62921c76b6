"""Whether what the answer attends to is what matters: correlations that keep apart what the pooled one mixes.

A pooled correlation over examples and positions is large as soon as some position is both attended and important in
every problem, whatever happens within positions. So five are reported: pooled; at each position, over problems; within
problems, over positions; with position accounted for; and with both accounted for.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from analyze.correlate.importance import in_both, listed
from analyze.correlate.moments import Array, Correlations, Exchange, resolution_of
from analyze.labels import inherited, labels_along, require_dims, take
from schemas import SchemaError, UsageError
from schemas.checks import check_whole
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import percentiles
from schemas.statistics import adjust

BATCH = 50
"""Permutations or resamples that are drawn together, at most."""
DRAWN_NUMBERS = 2**18
"""Numbers of each kind that are held of those that are drawn together."""


def attention_importance(
    attention: xr.DataArray,
    importance: xr.DataArray,
    *,
    correction: str = "holm",
    n_permutation: int = 1000,
    n_resample: int = 500,
    seed: int = 0,
    progress: Progress = silent,
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
        For instance :func:`analyze.correlate.importance.answer_attention`; every other dim (layer, head) is tested on
        its own. Computed and held.
    importance : (example, position) or (example,)
        For instance :func:`analyze.correlate.importance.failure_importance`, or any column; one without position is
        compared with attention at every position, and has no correlation within problems. Its examples must all be in
        ``attention``, with the same ``problem`` if both know it, and its positions too.
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
    x = x.transpose("example", ..., "position")
    values = np.asarray(x.values, dtype="float64").reshape(len(x), -1, x.sizes["position"])  # (example, test, position)
    correlations = Correlations(values, y.values.astype("float64"), (resolution_of(x), resolution_of(importance)))
    exchange = Exchange(problem_of(x))
    p, draws = _drawn(correlations, exchange, n_permutation, n_resample, seed, progress)
    n_problem = len(np.unique(problem_of(x)))
    bounds = {
        name: percentiles(np.moveaxis(np.concatenate(drawn), 0, -1), n_problem)
        for name, drawn in draws.items()
        if n_resample
    }

    dims = [str(dim) for dim in x.dims if dim not in ("example", "position")]
    result = xr.Dataset(coords={dim: x[dim].values for dim in (*dims, "position")})
    for name, value in correlations.observed.items():
        over = [*dims, "position"] if name == "position" else dims
        shape = tuple(result.sizes[dim] for dim in over)
        known = np.isfinite(value)
        low, high = bounds.get(name, (np.full_like(value, np.nan),) * 2)
        for suffix, values in (("r", value), ("r_low", low), ("r_high", high)):
            result[f"{name}_{suffix}"] = (over, np.where(known, values, np.nan).reshape(shape))
        result[f"{name}_r"].attrs = {"long_name": LONG_NAMES[name], "units": "1", "range": "-1 to 1"}
        if name != "pooled":
            of_name = np.where(known, p[name], np.nan)
            corrected = {"long_name": f"p, corrected ({correction})", "units": "1"}
            result[f"{name}_p"] = (over, of_name.reshape(shape))
            result[f"{name}_p_adjusted"] = (over, adjust(of_name, correction).reshape(shape), corrected)
    result = _with_points(result, x, y, correlations, bounds)
    for name, given in (("attention", attention), ("importance", importance)):
        result[name].attrs = {"long_name": given.attrs.get("long_name", name), "units": "1"}
    attrs = inherited(attention, kind="correlate", correction=correction, n_permutation=n_permutation)
    return result.assign_attrs(attrs, n_resample=n_resample, seed=seed)


def _drawn(
    correlations: Correlations, exchange: Exchange, n_permutation: int, n_resample: int, seed: int, progress: Progress
) -> tuple[dict[str, Array], dict[str, list[Array]]]:
    """P of each correlation under permutations; and, of the resamples, what they give of it and of the means."""
    rng, shape = np.random.default_rng(seed), correlations.shape
    batch = int(np.clip(DRAWN_NUMBERS // np.prod(shape), 1, BATCH))

    def batches(n: int, done: int) -> Iterator[range]:
        for start in range(0, n, batch):
            yield range(start, min(n, start + batch))
            progress(done + min(n, start + batch), n_permutation + n_resample)

    beyond = {name: np.zeros_like(value) for name, value in correlations.observed.items()}
    for numbers in batches(n_permutation, 0):
        between, order = (np.empty((len(numbers), *each), dtype=int) for each in (shape[:1], shape))
        for draw in range(len(numbers)):
            between[draw], order[draw] = exchange.between(rng), np.argsort(rng.random(shape), axis=1)
        drawn = correlations.exchanged(between, order)
        for name, value in correlations.observed.items():
            with np.errstate(invalid="ignore"):
                beyond[name] += (np.abs(drawn[name]) >= np.abs(value) - 1e-12).sum(0)
    draws: dict[str, list[Array]] = {name: [] for name in (*beyond, "mean_attention", "mean_importance")}
    for numbers in batches(n_resample, n_permutation):
        for name, value in correlations.resampled(np.stack([exchange.resample(rng) for _ in numbers])).items():
            draws[name].append(value)
    return {name: (count + 1) / (n_permutation + 1) for name, count in beyond.items()}, draws


def _with_points(
    result: xr.Dataset,
    x: xr.DataArray,
    y: xr.DataArray,
    correlations: Correlations,
    bounds: Mapping[str, tuple[Array, Array]],
) -> xr.Dataset:
    """The result with what it was computed from: the points, their means with intervals, and the pooled line."""
    dims = [str(dim) for dim in x.dims if dim not in ("example", "position")]
    lead = tuple(x.sizes[dim] for dim in dims)
    named = [name for name in ("example", "problem", "variant") if name == "example" or name in x.coords]
    result = result.assign_coords({name: ("example", x[name].values) for name in named})
    result["attention"] = (x.dims, np.asarray(x.values, dtype="float32"))
    result["importance"] = (("example", "position"), np.asarray(y.values, dtype="float64"))
    whole = correlations.raw.whole
    for name, mean in correlations.means(whole).items():
        mean = mean[0]
        over, shape = ([*dims, "position"], (*lead, -1)) if name == "mean_attention" else (["position"], (-1,))
        values = {name: mean} | dict(zip((f"{name}_low", f"{name}_high"), bounds.get(name, ()), strict=False))
        result = result.assign({key: (over, value.reshape(shape)) for key, value in values.items()})
    result["slope"] = (dims, correlations.raw.slope(whole).reshape(lead))
    result["intercept"] = result["mean_importance"].mean() - result["slope"] * result["mean_attention"].mean("position")
    result["n_example"] = y.sizes["example"]
    return result


LONG_NAMES = {
    "pooled": "r over examples and positions",
    "position": "r over examples at the position",
    "within": "r within problems",
    "partial": "r with position accounted for",
    "two_way": "r within problems with position accounted for",
}


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
    common, missing = in_both(attention, importance, what)
    if missing:
        raise SchemaError(
            f"{what}: importance holds {len(missing)} examples that attention lacks ({listed(missing)}), so they do "
            "not line up. Compute both from the same run and data file."
        )
    labels = labels_along(importance, "position")
    x = take(attention, "position", labels, what).sel(example=common)
    y = importance.sel(example=common).transpose("example", "position")
    if "problem" in x.coords and "problem" in y.coords and not np.array_equal(x["problem"].values, y["problem"].values):
        first_other = int(np.flatnonzero(x["problem"].values != y["problem"].values)[0])
        raise SchemaError(
            f"{what}: example {common[first_other]} is problem {x['problem'].values[first_other]} on one side and "
            f"{y['problem'].values[first_other]} on the other. The two are of different data files."
        )
    x, y = x.compute(), y.astype("float64").compute()
    complete = np.isfinite(y.values).all(1) & (abs(x) < np.inf).all([dim for dim in x.dims if dim != "example"]).values
    if complete.sum() < 3:
        raise UsageError(
            f"{what}: {int(complete.sum())} of {len(common)} examples have attention and importance at every one of "
            f"{', '.join(labels)}; at least 3 are needed"
        )
    return x.isel(example=complete), y.isel(example=complete)
