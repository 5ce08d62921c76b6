"""How well a single feature tells what a step of the chain arrives at, or its operator: a probe of one number.

For every value that a step's result or operator often takes, the area under the ROC curve of the feature's code at its
own place, the layer and position where it fires most often:

    area = (sum of the positives' ranks - n_1 (n_1 + 1) / 2) / (n_1 n_0)      ties count half

Which value is a feature's own is chosen on the problems that the dictionary was learned from; the area told is that on
its test problems. The null shuffles the values among those problems, and takes the largest area of all features.
"""

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from analyze.sae.codes import Activations, sae_codes
from analyze.sae.dictionary import activation_of
from schemas.codes import dictionaries
from schemas.problem_sums import problem_of
from schemas.scoring import value_text
from schemas.statistics import split_problems, wilson_interval

Array = np.ndarray[Any, np.dtype[Any]]
CHOSEN_LEAST, TEST_LEAST = 8, 5
"""Problems that a value must have on either side of the split."""


class Values(NamedTuple):
    """Values that something about a step takes: which rows have it, and which of the values they have."""

    names: list[str]
    rows: Array
    """(row,) that have this step."""
    positive: Array
    """(row, value), bool, of those rows."""


def feature_probes(
    sae: xr.Dataset, run: xr.Dataset, *others: xr.Dataset, max_problems: int = 300, permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset | None:  # fmt: skip
    """What each feature of a dictionary tells, alone.

    Memory and cost are those of the codes of ``max_problems`` problems at one place, on either side of the split.

    Parameters
    ----------
    sae
        Dictionary of :func:`analyze.sae.dictionary.train_sae`.
    others
        Other runs that a crosscoder was learned from.
    run
        The run it was learned from, with ``intermediate_result`` or ``intermediate_text``, and ``operation``.
    max_problems
        Problems used at most to choose a feature's value by, and to test it on; one example of each.
    permutations
        Shuffles of the values among the test problems.
    seed
        Of problems and shuffles.

    Returns
    -------
    Dataset or None
        Along ``feature``: ``tells``, the step and value, as ``step 0 = 12`` (``not step 0 = 12``: the feature is
        large in the other problems; empty: it never fires);
        ``area`` on the test problems, at least as large as chance where it tells the value, with ``area_low`` and
        ``area_high`` (95%, over problems), ``area_n`` test problems, those with the step and a finite state at the
        feature's place, and ``area_p`` over all features at once; ``attrs`` have ``area_null``,
        what the largest area of all features stays below in 95% of shuffles. None where no value is frequent enough.
    """
    runs = {str(other_run.attrs.get("run", "")): other_run for other_run in (run, *others)}
    activation = activation_of(sae, runs)
    chosen, test = problems_of(sae, run, max_problems, seed)
    if not any(True for _ in frequent_values(run, chosen, test)):
        return None
    codes = own_codes(sae, activation, run["example"].values[np.concatenate([chosen, test])])  # (row, feature)
    known, alike = np.unique(~np.isnan(codes), axis=1, return_inverse=True)  # (row, set of rows), (feature,)
    n_feature = codes.shape[1]
    out = {name: np.full(n_feature, np.nan) for name in ("area", "area_low", "area_high")}
    tells, n, largest = np.full(n_feature, "", dtype=object), np.zeros(n_feature, dtype=int), np.zeros(permutations)
    for index, rows in enumerate(known.T):
        features = np.flatnonzero(alike == index)
        sides_of = chosen[rows[: len(chosen)]], test[rows[len(chosen) :]]
        found = _told(codes[np.ix_(rows, features)], run, *sides_of, permutations, seed)
        if found is not None:
            features = features[found.fires]
            for name, column in zip(out, found.area, strict=True):
                out[name][features] = column
            tells[features], n[features] = found.tells, found.n
            largest = np.maximum(largest, found.largest)
    p = (1 + (largest[:, None] >= out["area"]).sum(0)) / (1 + permutations)
    out["area_p"] = np.where(tells == "", np.nan, p)
    return xr.Dataset(
        {name: ("feature", column) for name, column in (out | {"area_n": n, "tells": tells}).items()},
        coords={"feature": np.arange(n_feature)},
        attrs={"area_null": float(np.quantile(largest, 0.95)), "n_chosen": len(chosen), "n_test": len(test)},
    )


class Told(NamedTuple):
    """What features tell that have a code on the same problems."""

    fires: Array
    """(feature,), bool: which of them fire at all; all else is of these."""
    tells: Array
    area: Array
    """(3, feature), with the ends of its interval."""
    n: Array
    """(feature,): test problems that have the step."""
    largest: Array
    """(permutation,): largest shuffled area."""


def _told(codes: Array, run: xr.Dataset, chosen: Array, test: Array, permutations: int, seed: int) -> Told | None:
    """Of codes (row, feature) of the rows ``chosen``, then ``test``; None where no value is frequent enough."""
    values = list(frequent_values(run, chosen, test))
    fires = (codes != 0).any(0)
    if not values or not fires.any():
        return None
    by_choice, by_test = codes[: len(chosen), fires], codes[len(chosen) :, fires]
    areas = [areas_of(by_choice[side.rows], side.positive) for side, _ in values]  # of each step (feature, value)
    owner = np.concatenate([np.full(area.shape[1], index) for index, area in enumerate(areas)])
    inside = np.concatenate([np.arange(area.shape[1]) for area in areas])
    every = np.concatenate(areas, axis=1)
    spread = np.concatenate([chance_spread(side.positive) for side, _ in values])
    best = np.abs((every - 0.5) / spread).argmax(1)
    sign = np.where(np.take_along_axis(every, best[:, None], 1)[:, 0] < 0.5, -1, 1)
    area, effective, null = tested(
        by_test, [side for _, side in values], owner[best], inside[best], sign, permutations, seed
    )
    names = np.array([
        ("not " if side < 0 else "") + values[index][0].names[place]
        for index, place, side in zip(owner[best], inside[best], sign, strict=True)
    ], dtype=object)  # fmt: skip
    n = np.array([len(side.rows) for _, side in values])[owner[best]]
    return Told(fires, names, np.stack([area, *wilson_interval(area * effective, effective)]), n, null.max(1))


def sides(sae: xr.Dataset, run: xr.Dataset, seed: int) -> tuple[Array, Array]:
    """Rows of a run, one of each problem, that the dictionary was learned from, and those it was tested on."""
    split = sae["example_split"].to_series().reindex(run["example"].values).to_numpy(dtype=object)
    problem = problem_of(run)
    first = np.unique(problem, return_index=True)[1]
    if not (split[first] == "test").any():
        learned = split_problems(problem[first], seed) == 0
        return first[learned], first[~learned]
    return first[np.isin(split[first], ("train", "validation"))], first[split[first] == "test"]


def problems_of(sae: xr.Dataset, run: xr.Dataset, most: int, seed: int) -> list[Array]:
    """Some rows of either side (:func:`sides`), drawn by chance, in order."""
    return [np.sort(np.random.default_rng([seed, 7]).permutation(rows)[:most]) for rows in sides(sae, run, seed)]


def frequent_values(run: xr.Dataset, chosen: Array, test: Array) -> Iterator[tuple[Values, Values]]:
    """Values of each step's result and operator that are frequent on both sides: (on ``chosen``, on ``test``)."""
    for name, sign in (("intermediate_result", "="), ("intermediate_text", "="), ("operation", "is")):
        if name not in run.data_vars:
            continue
        column = run[name].transpose("example", "step").values
        for step in range(column.shape[1]):
            texts = [
                np.array([value_text(value) for value in column[rows, step]], dtype=object) for rows in (chosen, test)
            ]
            counts = [
                dict(zip(*np.unique(side[side != ""].astype(str), return_counts=True), strict=True)) for side in texts
            ]
            frequent = [
                value for value, n in counts[0].items()
                if n >= CHOSEN_LEAST and counts[1].get(value, 0) >= TEST_LEAST
                and n < (texts[0] != "").sum() and counts[1][value] < (texts[1] != "").sum()
            ]  # fmt: skip
            if frequent:
                names = [f"step {step} {sign} {value}" for value in frequent]
                rows = [np.flatnonzero(side != "") for side in texts]
                both = [
                    Values(names, there, side[there][:, None] == np.array(frequent, dtype=object)[None, :])
                    for side, there in zip(texts, rows, strict=True)
                ]
                yield both[0], both[1]


def own_codes(sae: xr.Dataset, activation: Activations, examples: Array) -> Array:
    """Codes (example, feature) of each feature of all cells at the place where it fires most often.

    NaN where the example has no finite state there.
    """
    parts = []
    for _, one in dictionaries(sae):
        frequency = one["frequency"]
        cells: list[Hashable] = [dim for dim in frequency.dims if dim != "feature"]
        flat = frequency.transpose(*cells, "feature").values.reshape(-1, one.sizes["feature"])
        home = flat.argmax(0)
        codes = np.zeros((len(examples), one.sizes["feature"]), dtype=np.float32)
        for place in np.unique(home):
            index = np.unravel_index(place, [frequency.sizes[dim] for dim in cells])
            labels = {dim: [frequency[dim].values[index_there]] for dim, index_there in zip(cells, index, strict=True)}
            here = np.flatnonzero(home == place)
            codes_here = sae_codes(one, _at(activation, labels, examples)).isel(feature=here)
            codes[:, here] = codes_here.transpose("example", ..., "feature").values.reshape(len(examples), -1)
        parts.append(codes)
    return np.concatenate(parts, axis=1)


def _at(activation: Activations, labels: dict[Hashable, list[Any]], examples: Array) -> Activations:
    """Activations of some examples at one place, read; NaN of an example that a crosscoder's other run lacks."""
    if not isinstance(activation, xr.DataArray):
        return {name: _read(array.sel(labels), examples) for name, array in activation.items()}
    return _read(activation.sel(labels), examples)


def _read(array: xr.DataArray, examples: Array) -> xr.DataArray:
    there = np.isin(array["example"].values, examples)  # in the order of the run, so that they are read alone
    return array.isel(example=np.flatnonzero(there)).compute().reindex(example=examples)


def areas_of(codes: Array, positive: Array) -> Array:
    """Area under the ROC curve of every feature for every value: (row, feature), (row, value) to (feature, value)."""
    rank = stats.rankdata(codes, axis=0)
    n = positive.sum(0)
    return np.asarray((rank.T @ positive - n * (n + 1) / 2) / (n * (len(codes) - n)))


def chance_spread(positive: Array) -> Array:
    """Standard deviation of the area of each value by chance, (row, value) to (value,): Mann and Whitney's."""
    n, n_up = len(positive), positive.sum(0)
    return np.asarray(np.sqrt((n + 1) / (12 * n_up * (n - n_up))))


def tested(
    codes: Array, values: list[Values], owner: Array, inside: Array, sign: Array, permutations: int, seed: int
) -> tuple[Array, Array, Array]:
    """Areas (feature,) of each feature for its own value, the effective number of problems, and shuffled areas."""
    area, effective = np.full(codes.shape[1], 0.5), np.ones(codes.shape[1])
    null = np.full((permutations, codes.shape[1]), 0.5)
    rng = np.random.default_rng([seed, 11])
    for index, side in enumerate(values):
        feature = np.flatnonzero(owner == index)
        own = sign[feature] * codes[side.rows][:, feature]  # (row, feature)
        positive = side.positive[:, inside[feature]]  # (row, feature)
        rank = stats.rankdata(own, axis=0)
        area[feature], effective[feature] = area_and_trials(own, rank, positive)
        n = positive.sum(0)
        for draw in range(permutations):
            total = (rank * positive[rng.permutation(len(positive))]).sum(0)
            null[draw, feature] = (total - n * (n + 1) / 2) / (n * (len(positive) - n))
    return area, effective, null


def area_and_trials(own: Array, rank: Array, positive: Array) -> tuple[Array, Array]:
    """Area of each column, and the number of trials of a share that would be as uncertain.

    The variance is DeLong's: that of the share of the other side that each row is above, over the rows of its side. A
    share p of n trials has p (1 - p) / n. Where every row agrees it is the smaller side's number.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, *Comparing the areas under two or more correlated receiver operating
    characteristic curves*, Biometrics 44 (1988).
    """
    areas, numbers = np.empty(own.shape[1]), np.empty(own.shape[1])
    for column in range(own.shape[1]):
        up, ranks = positive[:, column], rank[:, column]
        n_up, n_down = int(up.sum()), int((~up).sum())
        above = (ranks[up] - stats.rankdata(own[up, column])) / n_down
        below = (ranks[~up] - stats.rankdata(own[~up, column])) / n_up
        areas[column] = above.mean()
        variance = above.var(ddof=1) / n_up + below.var(ddof=1) / n_down
        spread = areas[column] * (1 - areas[column])
        numbers[column] = spread / variance if variance > 0 and spread > 0 else min(n_up, n_down)
    return areas, numbers
