"""Tuned lenses fitted on one run, reading the states of another."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import labels_along
from analyze.lens.logit import another_chain
from analyze.lens.readout import ReadOut
from analyze.lens.tuned import fit_tuned_lens
from analyze.probes.tasks import draw_examples
from analyze.statistics import ratio_interval
from analyze.transfer.command import TransferSettings
from analyze.transfer.problems import problem_groups
from schemas import UsageError, answer_word
from schemas.progress import Progress, silent, stretch
from schemas.resampling import draw_counts
from schemas.scoring import value_text
from schemas.statistics import split_problems
from schemas.wording import interval_names

Array = np.ndarray[Any, np.dtype[Any]]
HELD_OUT = 2
"""Part of the problems, of :func:`schemas.statistics.split_problems`, that no lens is fitted on."""
SHARED = ("plain", "mean", "own")
"""What the lenses of other runs are set beside: the model's final norm alone, a constant, the run's own lens."""


def transfer_lenses(
    models: Mapping[str, xr.Dataset],
    runs: Mapping[str, xr.Dataset],
    fit: Sequence[str],
    test: Sequence[str],
    settings: TransferSettings | None = None,
    *,
    progress: Progress = silent,
) -> xr.Dataset:
    """Read the states of runs through the tuned lenses of others.

    Problems are split over all runs together, as for :func:`analyze.lens.tuned.fit_tuned_lens`: lenses are fitted on
    85% of them and tested on the others. The test run's own model reads out what a lens makes of a state.

    Parameters
    ----------
    models
        Read-out of the model of each run.
    runs
        At the same layers and positions, with ``hidden_state``, ``final_state`` and ``gold_answer``.
    fit, test
        Names of runs.
    settings
        Resamples, level, seed, and examples used at most.
    progress
        Called with layers fitted and read, and their number.

    Returns
    -------
    Dataset over (fit, test, layer, position)
        ``kl`` (nat) from the model's own distribution, with its interval over problems; ``excess``, how much larger
        that is than the own lens's, with a paired interval; ``agreement`` of best tokens; ``reciprocal_rank``, mean of
        1 / rank of the best-ranked right result (of the chain, or the answer), with its interval, and
        ``other_reciprocal_rank`` of another problem's results. ``own_kl``, ``own_reciprocal_rank`` (test, layer,
        position) of the test run's own lens; ``plain_..`` of the final norm alone; ``mean_kl`` of the mean final state
        of the held-out problems, which a lens that says nothing of the state would give. ``n_problem`` (test).

    Raises
    ------
    UsageError
        If a run has no held-out problems, or too few for a lens.
    """
    settings = settings or TransferSettings()
    used = list(dict.fromkeys([*fit, *test]))
    rows = {
        name: draw_examples(np.asarray(runs[name]["problem"].values), settings.max_examples, settings.seed)
        for name in used
    }
    parts = {name: runs[name].isel(example=rows[name]) for name in used}
    groups = problem_groups(parts)
    split = split_problems(np.concatenate(list(groups.values())), settings.seed)
    ends = np.cumsum([0, *map(len, groups.values())])
    held = {name: split[ends[index] : ends[index + 1]] == HELD_OUT for index, name in enumerate(groups)}
    first = next(iter(parts.values()))
    layers, positions = first["layer"].values.tolist(), labels_along(first, "position")
    total = len(layers) * (len(used) + len(test))
    lenses = {}
    for number, name in enumerate(used):
        part = parts[name].isel(example=~held[name])
        lenses[name] = fit_tuned_lens(
            part, models[name], positions=positions, seed=settings.seed,
            progress=stretch(progress, number * len(layers), total),
        )  # fmt: skip
    tested, n_problem = [], []
    for number, name in enumerate(test):
        read = parts[name].isel(example=held[name])
        if not read.sizes["example"]:
            raise UsageError(f"{name} has no problem left out of the fits; use more problems than {groups[name].size}")
        n_problem.append(len(np.unique(read["problem"].values)))
        started = (len(used) + number) * len(layers)
        tested.append(_read(name, read, models[name], lenses, fit, settings, stretch(progress, started, total)))
    result = xr.concat(tested, xr.DataArray(np.array(test, dtype=object), dims="test", name="test"))
    return result.assign(n_problem=("test", n_problem)).assign_attrs(kind="transfer_lens", level=settings.level)


def _read(
    name: str, run: xr.Dataset, model: xr.Dataset, lenses: Mapping[str, xr.Dataset], fit: Sequence[str],
    settings: TransferSettings, progress: Progress,
) -> xr.Dataset:  # fmt: skip
    """The states of one run through every lens, layer by layer."""
    readout = ReadOut(model)
    right, other = _wanted(run, readout)
    final = run["final_state"].transpose("position", "example", "hidden").values.astype("float32")
    draws = draw_counts(run["problem"].values, n_resample=settings.resamples, seed=settings.seed)
    shape = (run.sizes["layer"], run.sizes["position"])
    by_fit = [*interval_names("kl"), *interval_names("excess"), "agreement", *interval_names("reciprocal_rank"),
              "other_reciprocal_rank"]  # fmt: skip
    values = {key: np.full((len(fit), *shape), np.nan) for key in by_fit}
    beside = {f"{key}_kl": np.full(shape, np.nan) for key in SHARED}
    beside |= {f"{key}_reciprocal_rank": np.full(shape, np.nan) for key in ("plain", "own")}
    for a, b in np.ndindex(*shape):
        state = run["hidden_state"].isel(layer=a, position=b).transpose("example", "hidden").values.astype("float32")
        there = np.isfinite(state).all(-1) & np.isfinite(final[b]).all(-1)
        if there.any():
            x, y = state[there], final[b][there]
            mapped = {key: (x @ lens["weight"].values[a] + lens["bias"].values[a]) for key, lens in lenses.items()}
            reads = [
                readout.norm(x),
                np.broadcast_to(y.mean(0), y.shape).copy(),
                *(mapped[key] for key in [name, *fit]),
            ]
            gaps = readout.divergences(y, *(read.astype("float32") for read in reads))
            ranked = [_reciprocal(readout, reads[i], right[there]) for i in (0, *range(2, len(reads)))]
            beside["plain_reciprocal_rank"][a, b], beside["own_reciprocal_rank"][a, b] = map(_mean, ranked[:2])
            for key, (gap, _) in zip(SHARED, gaps, strict=False):
                beside[f"{key}_kl"][a, b] = gap.mean()
            measured = partial(_mean_interval, draws=draws[there], level=settings.level)
            for i, (gap, same) in enumerate(gaps[3:]):
                unrelated = _mean(_reciprocal(readout, reads[3 + i], other[there]))
                row = [*measured(gap), *measured(gap - gaps[2][0]), same.mean(), *measured(ranked[2 + i]), unrelated]
                for key, value in zip(by_fit, row, strict=True):
                    values[key][i, a, b] = value
        if b == shape[1] - 1:
            progress(a + 1, shape[0])
    grid = ("layer", "position")
    data = {key: (("fit", *grid), value) for key, value in values.items()}
    coords = {"fit": np.array(fit, dtype=object), "layer": run["layer"].values, "position": run["position"].values}
    return xr.Dataset(data | {key: (grid, value) for key, value in beside.items()}, coords=coords)


def _mean_interval(values: Array, draws: Array, level: float) -> list[float]:
    """Mean of what is known, and its interval over resamples (example, resample)."""
    known = np.isfinite(values)
    return ratio_interval(values[known], np.ones(known.sum()), draws[known], level) if known.any() else [np.nan] * 3


def _mean(values: Array) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _wanted(run: xr.Dataset, readout: ReadOut) -> tuple[Array, Array]:
    """Tokens that begin the right results of each example, and those of another: (example, what, spelling)."""
    kind = run.attrs.get("answer_kind", "number")
    name = "intermediate_result" if kind == "number" else "intermediate_text"
    gold = [answer_word(str(text), kind) for text in run["gold_answer"].values]
    if name in run:
        chain = run[name].transpose("example", "step")
        lines = [chain.values, another_chain(chain).transpose("example", "step").values]
    else:
        lines = [np.empty((len(gold), 0)), np.array(np.roll(gold, 1), dtype=object)[:, None]]
    own = [[answer, *map(value_text, line)] for answer, line in zip(gold, lines[0], strict=True)]
    other = [[value_text(value) for value in line] for line in lines[1]]
    begin = readout.tokens.begin
    return np.stack([begin(line) for line in own]), np.stack([begin(line) for line in other])


def _reciprocal(readout: ReadOut, read: Array, wanted: Array) -> Array:
    """1 / rank of the best-ranked token that is wanted of each state (state,); NaN where none is a token."""
    rank = readout.ranks(read.astype("float32"), wanted)[1]
    best = np.where(np.isfinite(rank), rank, np.inf).min(1)
    return np.asarray(np.where(np.isfinite(best), 1 / best, np.nan))
