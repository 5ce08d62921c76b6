"""What each further thought brings, and from which thought on a problem is right."""

import numpy as np
import xarray as xr

from extract.reenter.statistics import by_problem, strata_of
from schemas import Scoring
from schemas.resampling import N_RESAMPLE, draw_counts, mean_interval, percentiles, problems_drawn
from schemas.statistics import adjust, mcnemar_exact, share_interval
from schemas.wording import interval_columns


def with_gains(
    out: xr.Dataset,
    gold: np.ndarray,
    *,
    scoring: Scoring,
    n_latent: int,
    strata: np.ndarray | None,
    problem: np.ndarray | None,
    seed: int,
) -> xr.Dataset:
    """Accuracy by number of thoughts, gains of each further one, and when problems become right.

    Parameters
    ----------
    out
        ``predicted_answer``, ``answer_logprob`` and ``kl`` over (``series``, ``marker``, ``n_thought``, ``example``).
    gold
        Right answers ``(example,)``.
    scoring
        How answers are compared.
    n_latent
        Thoughts the model was trained for.
    strata
        Difficulty ``(example,)``; every figure is given for each, and for ``all``.
    problem
        Problem ``(example,)``; examples of one are drawn together.
    seed
        Of the bootstrap.

    Returns
    -------
    xr.Dataset
        With ``correct`` and, of (``series``, ``marker``, ``example``), ``first_right``: the fewest thoughts after which
        the answer is right, ``stable_right``: those from which on it is right up to the trained number; NaN: never.
        Along ``stratum`` besides: ``accuracy`` (interval over problems, ``_low``, ``_high``), ``logprob_mean``
        and ``kl_mean`` (bootstrap intervals); ``gain``, ``gain_logprob`` (interval) of each thought over one
        less on the same examples, ``mended`` and ``broken`` counts, ``gain_p`` (exact McNemar) and
        ``gain_p_holm`` (over the thoughts of a series); ``first_share`` and ``stable_share``: problems right,
        and right from there on, after at most so many thoughts; ``first_median`` and ``stable_median`` among
        those that ever are (bootstrap intervals), ``n_enough``: the fewest thoughts from which on accuracy is
        not significantly below that after the trained number (McNemar, Holm).
    """
    predicted = out["predicted_answer"].values
    made = ~np.isnan(out["answer_logprob"].values).all(-1)  # (series, marker, n_thought)
    correct = scoring.equal(predicted, gold) & made[..., None]
    first, stable = right_from(correct[:, :, : n_latent + 1])
    dims = ("series", "marker", "n_thought", "example")
    out = out.assign(
        correct=(dims, correct),
        first_right=((*dims[:2], "example"), first),
        stable_right=((*dims[:2], "example"), stable),
    )
    groups = strata_of(strata, len(gold))
    problem = np.arange(len(gold)) if problem is None else problem
    columns: dict[str, list[tuple[tuple[str, ...], np.ndarray]]] = {}
    for group in groups.values():
        line = _accuracy(out, made, group, problem, seed) | _gains(out, made, group, problem, seed)
        line |= _right(first, stable, correct, made, group, problem, n_latent, seed)
        for name, column in line.items():
            columns.setdefault(name, []).append(column)
    figures = {
        name: (("stratum", *gains_of[0][0]), np.stack([gain for _, gain in gains_of]))
        for name, gains_of in columns.items()
    }
    return out.assign(figures).assign_coords(stratum=np.array(list(groups), dtype=object))


Column = tuple[tuple[str, ...], np.ndarray]
ROUTE = ("series", "marker", "n_thought")


def right_from(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and stable number of thoughts ``(.., example)`` of ``correct (.., n_thought, example)``; NaN: never."""
    some = correct.any(-2)
    first = np.where(some, correct.argmax(-2), np.nan)
    staying = np.flip(np.logical_and.accumulate(np.flip(correct, -2), axis=-2), -2)
    stable = np.where(staying.any(-2), staying.argmax(-2), np.nan)
    return first, stable


def _accuracy(
    out: xr.Dataset, made: np.ndarray, group: np.ndarray, problem: np.ndarray, seed: int
) -> dict[str, Column]:
    correct = out["correct"].values[..., group]
    n = np.array(group.sum())
    count = np.where(made, correct.sum(-1), 0)
    low, high = share_interval(correct, np.broadcast_to(made[..., None], correct.shape), problem[group])
    columns: dict[str, Column] = {
        "n": ((), n),
        "accuracy": (ROUTE, np.where(made, count / max(1, int(n)), np.nan)),
        "accuracy_low": (ROUTE, low),
        "accuracy_high": (ROUTE, high),
    }
    for name, values in (("logprob", out["answer_logprob"]), ("kl", out["kl"])):
        interval = mean_interval(by_problem(values.values[..., group], problem[group]), seed)
        columns |= {key: (ROUTE, value) for key, value in interval_columns(name, interval, "_mean").items()}
    return columns


def _gains(out: xr.Dataset, made: np.ndarray, group: np.ndarray, problem: np.ndarray, seed: int) -> dict[str, Column]:
    """Of each number of thoughts over one less, paired."""
    correct, logprob = out["correct"].values[..., group], out["answer_logprob"].values[..., group]
    both = made[..., 1:] & made[..., :-1]
    before, after = correct[..., :-1, :], correct[..., 1:, :]
    mended, broken = (~before & after).sum(-1), (before & ~after).sum(-1)
    p = np.full(both.shape, np.nan)
    for place in zip(*np.nonzero(both), strict=True):
        p[place] = mcnemar_exact(before[place], after[place], problem[group]).p
    change = by_problem(logprob[..., 1:, :] - logprob[..., :-1, :], problem[group])
    columns = {
        "gain": np.where(both, (mended - broken) / max(1, int(group.sum())), np.nan),
        "mended": np.where(both, mended, np.nan),
        "broken": np.where(both, broken, np.nan),
        **interval_columns("gain_logprob", mean_interval(change, seed)),
        "gain_p": p,
        "gain_p_holm": np.apply_along_axis(adjust, -1, p),
    }
    start = np.full((*made.shape[:-1], 1), np.nan)
    return {name: (ROUTE, np.concatenate([start, value], axis=-1)) for name, value in columns.items()}


def _right(
    first: np.ndarray, stable: np.ndarray, correct: np.ndarray, made: np.ndarray, group: np.ndarray,
    problem: np.ndarray, n_latent: int, seed: int,
) -> dict[str, Column]:  # fmt: skip
    """Cumulative shares and medians of the first and the stable thought, and how many are enough."""
    columns: dict[str, Column] = {}
    after = np.arange(correct.shape[2])[:, None]
    for name, value in (("first", first[..., group]), ("stable", stable[..., group])):
        share = (value[..., None, :] <= after).mean(-1) if group.any() else np.full(made.shape, np.nan)
        share[..., n_latent + 1 :] = np.nan
        columns[f"{name}_share"] = ROUTE, share
        medians = median_interval(value, seed, problem[group])
        columns |= {key: (ROUTE[:2], bound) for key, bound in interval_columns(f"{name}_median", medians).items()}
    enough = np.full(made.shape[:2], np.nan)
    for place in np.ndindex(*enough.shape):
        lines = correct[place][: n_latent + 1, group]
        p = np.array(
            [
                mcnemar_exact(line, lines[-1], problem[group]).p if ok else np.nan
                for line, ok in zip(lines, made[place], strict=False)
            ]
        )
        lost = lines[-1].sum() > lines.sum(1)
        below = lost & (adjust(p, family=np.arange(len(p)) < n_latent) < 0.05) | ~made[place][: n_latent + 1]
        enough[place] = int(np.flatnonzero(below)[-1]) + 1 if below.any() else 0
    columns["n_enough"] = ROUTE[:2], enough
    return columns


def median_interval(
    value: np.ndarray, seed: int, problem: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median over the last axis of what is not NaN, and its bootstrap 95% interval over problems; NaN where all are."""
    bounds = [np.full(value.shape[:-1], np.nan) for _ in range(3)]
    groups = np.arange(value.shape[-1]) if problem is None else problem
    draws = draw_counts(groups, n_resample=N_RESAMPLE, seed=seed)
    for place in np.ndindex(*value.shape[:-1]):
        known = ~np.isnan(value[place])
        if known.any():
            drawn = _weighted_medians(value[place][known], draws[known])
            low, high = percentiles(drawn, problems_drawn(known.sum(), draws[known].sum(0)))
            for bound, figure in zip(bounds, (np.median(value[place][known]), low, high), strict=True):
                bound[place] = figure
    median, low, high = bounds
    return median, low, high


def _weighted_medians(value: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Median of values ``(example,)`` each taken as often as drawn ``(example, resample)``; NaN of none."""
    order = np.argsort(value)
    total = counts[order].cumsum(0)
    n = total[-1]
    middle = [value[order][(total > place).argmax(0)] for place in ((n - 1) // 2, n // 2)]
    return np.where(n > 0, (middle[0] + middle[1]) / 2, np.nan)
