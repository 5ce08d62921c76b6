"""Which features of a crosscoder two models share: by what it writes in each, and by when it fires from each alone.

A crosscoder's code is a sum over the states of both models. A feature that both write, but that the states of one alone
would turn on at other problems than those of the other, is shared in name only. So a feature is counted as shared if

- of the squared norm of its decoder at least ``balance`` lies in either model, and
- its input from the first model's states alone, ``encoder (x - decoder_bias)`` summed over that model's layers,
  correlates over problems left out of training with that from the second's, within positions, more than in 95% of
  shuffles of problems the most correlated of all features does.
"""

from typing import Any

import numpy as np
import xarray as xr

from analyze.sae.codes import sources
from analyze.sae.dictionary import activation_of
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import percentiles

Array = np.ndarray[Any, np.dtype[Any]]
CONSTANT = 1e-6
"""Share of an input's length below which its spread over problems is rounding (of float32 products)."""


def shared_features(
    crosscoder: xr.Dataset,
    runs: dict[str, xr.Dataset],
    *,
    balance: float = 0.1,
    max_problems: int = 300,
    resamples: int = 200,
    permutations: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """Count the features that two models share.

    Memory is that of the inputs of all features at all positions of ``max_problems`` problems, of each model.

    Parameters
    ----------
    crosscoder
        Of two models, from :func:`analyze.sae.dictionary.train_sae`.
    runs
        The runs it was learned from, by name.
    balance
        Least share of a feature's squared decoder norm that lies in either model.
    max_problems
        Test problems used at most, one example of each.
    resamples
        Of problems, drawn with replacement, for the 95% intervals.
    permutations
        Shuffles of the problems of the second model.
    seed
        Of problems, resamples and shuffles.
    progress
        Called as ``progress(done, total)``.

    Returns
    -------
    Dataset
        ``share`` (model, feature) of the squared decoder norm; ``agreement`` (feature), the correlation, with
        ``agreement_low``, ``agreement_high`` and ``p`` over all features at once; ``alive`` and ``shared`` (feature);
        ``n_alive``, ``n_first``, ``n_second`` (features that lie in one model), ``n_shared`` with its interval, and
        ``n_shared_null``, what would be counted on average if problems were shuffled; ``n_opposed``, features that one
        model turns on where the other turns them off, as clearly as those shared agree.

    Raises
    ------
    UsageError
        If the crosscoder is not of two models, or fewer than eight test problems are there.
    """
    owner = np.array([str(source).rpartition("/")[0] or str(source) for source in crosscoder["source"].values])
    models = list(dict.fromkeys(owner))
    if len(models) != 2:
        raise UsageError(f"features are shared by two models; the crosscoder is of {', '.join(models)}")
    rng = np.random.default_rng(seed)
    left, right = _inputs(crosscoder, runs, owner, models, max_problems, rng)
    n = len(left)
    share = np.stack([crosscoder["source_share"].values[owner == model].sum(0) for model in models])
    alive = np.asarray(crosscoder["frequency"].max([d for d in crosscoder["frequency"].dims if d != "feature"]) > 0)
    agreement = correlation(left, right)
    null, draws = np.empty((permutations, len(agreement))), np.empty((resamples, len(agreement)))
    for done in range(permutations + resamples):
        if done < permutations:
            null[done] = correlation(left, right[rng.permutation(n)])
        else:
            rows = rng.integers(0, n, n)
            draws[done - permutations] = correlation(left[rows], right[rows])
        progress(done + 1, permutations + resamples)
    largest = np.where(alive, null, -1).max(1)
    threshold = float(np.quantile(largest, 0.95))
    both = alive & (share.min(0) >= balance)
    ends = percentiles(draws.T, n)
    counts = percentiles((both & (draws > threshold)).sum(1), n)
    p = (1 + (largest[:, None] >= agreement).sum(0)) / (1 + permutations)
    by_feature = {
        "agreement": agreement, "agreement_low": ends[0], "agreement_high": ends[1], "p": p,
        "alive": alive, "shared": both & (agreement > threshold),
    }  # fmt: skip
    numbers = {
        "n_alive": alive.sum(),
        "n_first": (alive & (share[1] < balance)).sum(),
        "n_second": (alive & (share[0] < balance)).sum(),
        "n_both": both.sum(),
        "n_shared": (both & (agreement > threshold)).sum(),
        "n_shared_low": counts[0],
        "n_shared_high": counts[1],
        "n_shared_null": (both & (null > threshold)).sum(1).mean(),
        "n_opposed": (both & (agreement < -threshold)).sum(),
        "agreement_null": threshold,
    }
    result = xr.Dataset(
        {"share": (("model", "feature"), share)} | {name: ("feature", values) for name, values in by_feature.items()},
        coords={"model": np.array(models, dtype=object), "feature": crosscoder["feature"].values},
    )
    return result.assign({name: float(value) for name, value in numbers.items()}).assign_attrs(
        kind="shared_features", n_example=n, balance=balance, n_permutation=permutations, n_resample=resamples,
        dictionary=str(crosscoder.attrs.get("fingerprint", "")),
    )  # fmt: skip


def correlation(left: Array, right: Array) -> Array:
    """Correlation of each feature over problems within positions: (problem, position, feature) twice to (feature,).

    0 where either side does not vary.
    """
    sides = []
    for values in (left, right):
        centred = values - values.mean(0)
        length = np.sqrt((centred**2).sum((0, 1)))
        varies = length > CONSTANT * np.sqrt((values**2).sum((0, 1)))
        sides.append(centred / np.where(varies, length, np.inf))
    return np.asarray((sides[0] * sides[1]).sum((0, 1)))


def _inputs(
    crosscoder: xr.Dataset,
    runs: dict[str, xr.Dataset],
    owner: Array,
    models: list[str],
    most: int,
    rng: np.random.Generator,
) -> list[Array]:
    """Input of every feature from each model's states alone, test problems only: (problem, position, feature)."""
    states = sources(activation_of(crosscoder, runs), crosscoder)
    first = next(iter(states.values()))
    split = crosscoder["example_split"].to_series().reindex(first["example"].values)
    problem = problem_of(first)
    rows = np.flatnonzero((split == "test").to_numpy() if (split == "test").any() else split.notna().to_numpy())
    rows = rows[np.unique(problem[rows], return_index=True)[1]]
    rows = np.sort(rng.permutation(rows)[:most])
    inputs: dict[str, Array] = {}
    for model, (name, state) in zip(owner, states.items(), strict=True):
        part = crosscoder.sel(source=name).isel(hidden=slice(int(crosscoder["n_hidden"].sel(source=name))))
        offset = state.isel(example=rows) - part["decoder_bias"].drop_vars("source")
        value = xr.dot(offset, part["encoder"].drop_vars("source"), dim="hidden").transpose("example", ..., "feature")
        flat = value.values.astype("float64").reshape(len(rows), -1, crosscoder.sizes["feature"])
        inputs[model] = inputs[model] + flat if model in inputs else flat
    known = np.all([np.isfinite(inputs[model]).all((1, 2)) for model in models], axis=0)
    if known.sum() < 8:
        raise UsageError(
            f"features shared by {' and '.join(models)} are counted on at least 8 problems left out of training that"
            f" have all its positions; there are {known.sum()}. Learn the crosscoder from more problems"
        )
    return [inputs[model][known] for model in models]
