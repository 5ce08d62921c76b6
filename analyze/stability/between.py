"""Whether heads, hubs and thoughts do in one run what they do in another: other data, another seed, another model."""

from collections.abc import Callable, Mapping
from itertools import pairwise, product, starmap
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from analyze.cluster import in_turn
from analyze.heads.scores import score_block, thought_block
from analyze.labels import labels_along
from analyze.lens.logit import logit_lens
from analyze.probes.tasks import draw_examples
from analyze.transfer.problems import problem_groups
from schemas import UsageError, segment_of
from schemas.progress import Progress, silent
from schemas.resampling import draw_counts, percentiles, tail
from schemas.statistics import adjust

Array = np.ndarray[Any, np.dtype[Any]]
SCORES = ("composite", "flow", "hub", "skip", "sequential")
ENDS = ("", "_low", "_high", "_null", "_p")
"""Endings of the variables of each likeness."""
COST_OF_NOISE = 1 / (2**0.5 - 1)
"""Largest loss of likeness by noise in the sample, as a multiple of the further loss in its resamples.

A resample has sqrt(2) times the sample's deviation from the truth, and the loss grows at least in proportion to the
deviation s: what noise adds to a difference d of two shares, E|d + s z| - |d|, is proportional to s where d = 0 and
grows faster elsewhere.
"""


class Run(NamedTuple):
    """What is compared of a run: from all its problems, from each resample, and from either half of them."""

    scores: Array  # (part, score, head)
    types: Array  # (part, head)
    hubs: Array  # (part, head)
    shape: tuple[int, int]  # layers and heads
    positions: list[str]
    profile: Array  # (part, position, reads), NaN where no example has a state
    reads: list[str]
    n_problem: int


def stability(
    runs: Mapping[str, xr.Dataset],
    model_of: Callable[[str], xr.Dataset],
    *,
    max_examples: int = 2000,
    resamples: int = 300,
    shuffles: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """Compare the heads and thoughts of every two runs.

    Heads are compared where the models have as many layers and heads: by the rank correlation of their scores
    (:func:`analyze.heads.scores.head_scores`), and by the share that have the same type and the same hub. Thoughts,
    and ``bot``, are compared by what their states at the last layer read out as: the share of examples whose best token
    is the result of each step of the chain, another number (or word), or anything else. Two runs overlap by the smaller
    of both shares, summed, mean over the positions that both have. A run is compared with itself by two halves of its
    problems, which is what noise alone leaves.

    Parameters
    ----------
    runs
        By name, with ``attention``, ``hidden_state``, ``question`` and ``gold_answer``.
    model_of
        Read-out of a run's model; asked for when the run's turn comes, so that one is in memory at a time.
    max_examples
        Most examples used of each run, whole problems drawn by the seed; 0 takes all.
    resamples
        Resamples of problems behind the 95% intervals; a problem that two runs share is drawn in both.
    shuffles
        Of the heads, and of the positions, of the second run.
    seed
        Of all draws.
    progress
        Called with runs read and their number.

    Returns
    -------
    Dataset
        ``correlation`` (run, other, score); ``same_type``, ``same_hub``, ``overlap`` and ``same_role`` (run, other).
        All but the last with ``_low`` and ``_high`` (an interval that allows for what noise takes from a likeness; for
        shares of heads, from those surely alike to those possibly alike), ``_null`` (mean over shuffles), ``_p`` (share
        of shuffles that reach it) and ``_p_corrected`` (Holm, over all of them between different runs). ``role_share``
        (run, position, reads), ``role`` (run, position), ``hub_share`` (run, position): share of heads whose hub each
        thought is. NaN where the shapes of the models differ.

    Raises
    ------
    SchemaError
        If a run lacks thoughts.
    UsageError
        If two runs share no positions.

    Notes
    -----
    Memory is that of the resampled matrices, resamples x heads x thoughts squared, and one number for each example and
    thought.
    """
    parts = {
        name: run.isel(example=draw_examples(np.asarray(run["problem"].values), max_examples, seed))
        for name, run in runs.items()
    }
    groups = problem_groups(parts)
    n_step = max(
        run["intermediate_result"].sizes["step"] if "intermediate_result" in run else 0 for run in runs.values()
    )
    read = {}
    for number, (name, run) in enumerate(parts.items()):
        weight = _weights(groups[name], resamples, seed)
        read[name] = _read(run, model_of(name), weight, n_step, len(np.unique(groups[name])))
        progress(number + 1, len(parts))
    names, rng = list(read), np.random.default_rng(seed)
    values: dict[str, Array] = {}
    for (i, first), (j, second) in product(enumerate(names), enumerate(names)):
        if j < i:
            continue
        for key, value in _compared(read[first], read[second], first == second, shuffles, rng).items():
            wanted = (len(names), len(names), *np.shape(value))
            values.setdefault(key, np.full(wanted, np.nan))[[i, j], [j, i]] = value
    return _labelled(read, values).assign_attrs(
        kind="stability", n_resample=resamples, n_shuffle=shuffles, seed=seed, layer=int(parts[names[0]]["layer"][-1]),
    )  # fmt: skip


def _weights(group: Array, resamples: int, seed: int) -> Array:
    """Weights of examples (example, part): all alike, each resample, and either half of the problems."""
    unique, inverse = np.unique(group, return_inverse=True)
    if len(unique) < 2:
        raise UsageError("stability compares halves of a run's problems, and there is one problem; name a run of more")
    order = np.random.default_rng(seed).permutation(len(unique))
    half = (order % 2 == 0)[inverse]
    drawn = draw_counts(group, n_resample=resamples, seed=seed)
    return np.concatenate([np.ones((len(group), 1)), drawn, half[:, None], ~half[:, None]], axis=1)


def _read(run: xr.Dataset, model: xr.Dataset, weight: Array, n_step: int, n_problem: int) -> Run:
    """Scores of heads and profiles of thoughts for each set of weights (example, part)."""
    block, labels, complete = thought_block(run["attention"], "thoughts")
    dims = ("layer", "head", "position", "key_position")
    block = block.transpose("example", *dims)
    total = np.zeros((weight.shape[1], *block.shape[1:]))
    edges = np.cumsum([0, *block.chunksizes.get("example", (block.sizes["example"],))])
    rows = list(starmap(slice, pairwise(edges.tolist())))  # chunk by chunk, as part of one costs as much as all of it
    for chosen, part in zip(rows, in_turn(block.isel(example=one) for one in rows), strict=True):
        total += np.tensordot(weight[chosen], part.values.astype("float64"), axes=(0, 0))
    mean = total / np.maximum(weight.sum(0), 1e-30)[:, None, None, None, None]
    drawn = xr.DataArray(mean, dims=("part", *dims), coords={dim: block[dim].values for dim in dims})
    scores = score_block(drawn, complete, labels, "thoughts").stack(unit=("layer", "head"))
    positions = [label for label in labels_along(run, "position") if segment_of(label) in ("bot", "latent")]
    reads, place = _readings(run, model, positions, n_step)
    one_hot = place[..., None] == np.arange(len(reads))  # (example, position, reads)
    known = weight.T @ (place >= 0)
    profile = np.tensordot(weight.T, one_hot, axes=(1, 0)) / np.where(known > 0, known, np.nan)[..., None]
    return Run(
        scores=np.stack([scores[name].transpose("part", "unit").values for name in SCORES], axis=1),
        types=scores["type"].transpose("part", "unit").values,
        hubs=scores["hub_position"].transpose("part", "unit").values,
        shape=(block.sizes["layer"], block.sizes["head"]),
        positions=positions,
        profile=profile,
        reads=reads,
        n_problem=n_problem,
    )


def _readings(run: xr.Dataset, model: xr.Dataset, positions: list[str], n_step: int) -> tuple[list[str], Array]:
    """What states may read out as, and which of it each does: (example, position), -1: no state."""
    lens = logit_lens(run.isel(layer=[-1]), model, positions=positions, top=1).isel(layer=0)
    lens = lens[["result_rank", "is_number"]].transpose("example", "position", "step").compute()
    decoded = "word" if "decoded" in lens.attrs else "number"
    is_result = lens["result_rank"].values == 1  # (example, position, step)
    is_number = lens["is_number"].values
    place = np.where(is_result.any(-1), is_result.argmax(-1) if is_result.shape[-1] else 0, n_step)
    place = np.where(is_result.any(-1) | (is_number == 1), place, n_step + 1)
    reads = [*(f"result {step}" for step in range(n_step)), f"another {decoded}", "else"]
    return reads, np.where(np.isnan(is_number), -1, place)


def _compared(first: Run, second: Run, is_same: bool, shuffles: int, rng: np.random.Generator) -> dict[str, Any]:
    """Every likeness of two runs, or of the halves of one, with interval, null and p."""
    arrays: dict[str, Any] = {}
    n_problem = min(first.n_problem, second.n_problem)
    if first.shape == second.shape:
        for name, left, right, likeness in (
            ("correlation", _ranks(first.scores), _ranks(second.scores), _correlation),
            ("same_type", first.types, second.types, _share_alike),
            ("same_hub", first.hubs, second.hubs, _share_alike),
        ):
            arrays |= _tested(name, left, right, likeness, is_same, shuffles, rng, n_problem, axis=-1)
    common = [label for label in first.positions if label in second.positions]
    if not common:
        raise UsageError("two of the runs have no thought in common; compare runs with thoughts")
    left, right = (
        one.profile[:, [one.positions.index(label) for label in common]] for one in (first, second)
    )  # fmt: skip
    arrays |= _tested("overlap", left, right, _overlap, is_same, shuffles, rng, n_problem, axis=-2)
    one, other = (left[-2], right[-1]) if is_same else (left[0], right[0])
    known = np.isfinite(one).all(-1) & np.isfinite(other).all(-1)
    same = one.argmax(-1) == other.argmax(-1)
    arrays["same_role"] = float(same[known].mean()) if known.any() else np.nan
    return arrays


def one_pair(n_head: int, resamples: int, shuffles: int) -> None:
    """Compare two made-up runs of so many heads, for how long it takes."""
    rng, n_part = np.random.default_rng(0), resamples + 3
    texts = np.full((n_part, n_head), "bot", dtype=object)
    scores, profile = rng.random((n_part, len(SCORES), n_head)), rng.random((n_part, 1, 1))
    run = Run(
        scores=scores, types=texts, hubs=texts, shape=(1, n_head), positions=["bot"], profile=profile, reads=[""],
        n_problem=n_part,
    )  # fmt: skip
    _compared(run, run, False, shuffles, rng)


def _tested(
    name: str, left: Array, right: Array, likeness: Callable[[Array, Array], Array], is_same: bool, shuffles: int,
    rng: np.random.Generator, n_problem: int, *, axis: int,
) -> dict[str, Any]:  # fmt: skip
    """A likeness of two runs (part, ..), its interval over problems, and its null under shuffles along an axis."""
    one, other = (left[-2], right[-1]) if is_same else (left[0], right[0])
    estimate = likeness(one, other)
    ends = _sure_and_possible if likeness is _share_alike else _moved
    low, high = ends(estimate, left[1:-2], right[1:-2], likeness, n_problem)
    null = np.stack(
        [likeness(one, np.take(other, rng.permutation(other.shape[axis]), axis=axis)) for _ in range(shuffles)]
    )
    with np.errstate(invalid="ignore"):
        p = (1 + (null >= estimate - 1e-12).sum(0)) / (1 + shuffles)
    if is_same:  # resamples of one run are the same on both sides
        low = high = np.full_like(estimate, np.nan)
    values = {
        "": estimate,
        "_low": low,
        "_high": high,
        "_null": null.mean(0),
        "_p": np.where(np.isnan(estimate), np.nan, p),
    }
    return {name + end: np.clip(value, -1, 1) for end, value in values.items()}


def _moved(
    estimate: Array, left: Array, right: Array, likeness: Callable[[Array, Array], Array], n_problem: int
) -> tuple[Array, Array]:
    """Interval of a likeness, which noise makes smaller in size, from resamples.

    Percentiles of the resamples about their own mean are moved to the estimate. The end towards the likeness without
    noise is moved further by what noise may have cost the estimate (:data:`COST_OF_NOISE`) and, as that is uncertain
    too, once more by the smaller of this cost and the end's own distance.
    """
    draws = likeness(left, right)
    below, above = percentiles(np.moveaxis(draws - draws.mean(0), 0, -1), n_problem)
    cost = COST_OF_NOISE * (estimate - draws.mean(0))
    below += np.where(cost < 0, cost + np.maximum(below, cost), 0)
    above += np.where(cost > 0, cost + np.minimum(above, cost), 0)
    return estimate + below, estimate + above


def _sure_and_possible(
    estimate: Array, left: Array, right: Array, likeness: Callable[[Array, Array], Array], n_problem: int
) -> tuple[Array, Array]:
    """Interval of the share of heads alike: those alike in all but a tail of the resamples, and in more than a tail.

    A head between two types falls to either by chance in every resample, so that the share in resamples scatters about
    a value that is as wrong as the estimate.
    """
    often, edge = (left == right).mean(0), tail(n_problem)
    unknown = np.where(np.isnan(edge), np.nan, 0.0)
    low, high = (often > 1 - edge).mean() + unknown, (often >= edge).mean() + unknown
    return np.minimum(low, estimate), np.maximum(high, estimate)


def _ranks(scores: Array) -> Array:
    """Ranks of heads (.., head), less their mean and of length 1, so that products are Spearman's correlations.

    NaN where all heads are alike. Shuffled heads have shuffled ranks: they need ranking once.
    """
    ranks = stats.rankdata(scores, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    length = np.sqrt((ranks**2).sum(-1, keepdims=True))
    return np.asarray(ranks / np.where(length > 0, length, np.nan))


def _correlation(left: Array, right: Array) -> Array:
    """Correlation over heads of :func:`_ranks` (.., head)."""
    return np.asarray((left * right).sum(-1))


def _share_alike(left: Array, right: Array) -> Array:
    """Share of heads (.., head) with the same text."""
    return np.asarray((left == right).mean(-1))


def _overlap(left: Array, right: Array) -> Array:
    """What two profiles (.., position, reads) have in common, mean over positions."""
    return np.asarray(np.minimum(left, right).sum(-1).mean(-1))


def _labelled(read: Mapping[str, Run], values: Mapping[str, Array]) -> xr.Dataset:
    """Likenesses with names and p-values corrected over every two different runs."""
    names = list(read)
    data: dict[str, Any] = {}
    grid = ("run", "other")
    wanted = [f"{name}{end}" for name in ("same_type", "same_hub", "overlap") for end in ENDS]
    for key in [f"correlation{end}" for end in ENDS]:
        value = values.get(key, np.full((len(names), len(names), len(SCORES)), np.nan))
        data[key] = ((*grid, "score"), value)
    for key in [*wanted, "same_role"]:
        data[key] = (grid, values.get(key, np.full((len(names), len(names)), np.nan)))
    above = np.triu_indices(len(names), 1)
    tested = [key for key in data if key.endswith("_p")]
    family = np.concatenate([data[key][1][above].ravel() for key in tested])
    corrected = np.split(adjust(family), np.cumsum([data[key][1][above].size for key in tested])[:-1])
    for key, value in zip(tested, corrected, strict=True):
        whole = np.full(data[key][1].shape, np.nan)
        whole[above] = value.reshape(whole[above].shape)
        whole[above[::-1]] = whole[above]
        data[f"{key}_corrected"] = (data[key][0], whole)
    coords = {"run": names, "other": names, "score": list(SCORES)}
    labels = {name: np.array(label, dtype=object) for name, label in coords.items()}
    return xr.Dataset(data, coords=labels).merge(_roles(read))


def _roles(read: Mapping[str, Run]) -> xr.Dataset:
    """What each thought of each run reads out as, and how many heads have their hub there."""
    names = list(read)
    positions = list(dict.fromkeys(label for run in read.values() for label in run.positions))
    reads = list(dict.fromkeys(label for run in read.values() for label in run.reads))
    share = np.full((len(names), len(positions), len(reads)), np.nan)
    hubs = np.full((len(names), len(positions)), np.nan)
    role = np.full((len(names), len(positions)), "", dtype=object)
    for index, run in enumerate(read.values()):
        columns = [reads.index(label) for label in run.reads]
        for place, label in enumerate(run.positions):
            share[index, positions.index(label)] = 0
            share[index, positions.index(label), columns] = run.profile[0, place]
            if np.isfinite(run.profile[0, place]).all():
                role[index, positions.index(label)] = run.reads[int(run.profile[0, place].argmax())]
            hubs[index, positions.index(label)] = (run.hubs[0] == label).mean()
    data = {
        "role_share": (("run", "position", "reads"), share), "role": (("run", "position"), role),
        "hub_share": (("run", "position"), hubs),
    }  # fmt: skip
    coords = {"run": names, "position": positions, "reads": reads}
    return xr.Dataset(data, coords={name: np.array(label, dtype=object) for name, label in coords.items()})
