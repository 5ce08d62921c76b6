"""How alike the states of two runs are: CKA between every layer and position of one and every one of the other.

States of the same n problems in two places, X (n, hidden) and Y (n, any width), are alike as far as they put the same
problems close together. Their Gram matrices K = X X' and L = Y Y' say how close any two problems lie, and centred
kernel alignment is the cosine between them once both are centred (Kornblith et al., *Similarity of Neural Network
Representations Revisited*, ICML 2019):

    CKA = <K, L> / sqrt(<K, K> <L, L>)

It is 1 for states that differ by a rotation and a scale. With both Gram matrices centred in rows and columns it is far
from 0 for independent states too, unless there are many more problems than components. The debiased form centres them
so that each inner product estimates its expectation without bias (Song et al., *Feature Selection via Dependence
Maximization*, JMLR 2012, eq. 5, for CKA in Nguyen et al., ICLR 2021): the diagonal, a problem's likeness to itself, is
left out, and ::

    K~_ij = K_ij - sum_k K_ik / (n-2) - sum_k K_kj / (n-2) + sum_kl K_kl / ((n-1)(n-2)),   K~_ii = 0.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from analyze.labels import require_dims
from schemas import UsageError
from schemas.asked import asked
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import percentiles

Estimator = Literal["debiased", "biased"]
Array = np.ndarray[Any, np.dtype[Any]]

DIMS = {
    "cka": ("layer", "position", "other_layer", "other_position"),
    "position_cka": ("position", "other_position"),
    "layer_cka": ("layer", "other_layer"),
}
FEWEST = 8
"""Problems below which half of them are too few for the debiased estimator, which divides by n - 3."""
CONSTANT = 1e-12
"""Share of the squared length of states below which their spread over problems is rounding."""


def similarity(
    first: xr.Dataset,
    second: xr.Dataset | None = None,
    *,
    estimator: Estimator = "debiased",
    max_problems: int = 300,
    resamples: int = 200,
    permutations: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """CKA between every layer and position of two runs, over the problems that both have.

    Problems are the same where their questions read the same. Of the examples of a problem the first is taken, as the
    estimator needs independent ones, and of more than ``max_problems`` a random draw. Memory is 24 bytes for each
    cell and pair of problems of each run, however many examples there are; time is that of one product of all cells
    of one run with all of the other for each permutation, and a quarter of it for each resample.

    Parameters
    ----------
    first, second
        Runs, or parts of runs, with ``hidden_state`` (example, layer, position, hidden), ``question`` and ``token``;
        widths, layers and positions may differ. Without a second the run is compared with itself.
    estimator
        ``"debiased"``, or ``"biased"`` as first published, which is above 0 for states that have nothing in common.
    max_problems
        Problems used at most.
    resamples
        Halves of the problems drawn for the 95% intervals. Half a sample varies about the whole as the whole does
        about the truth, and unlike a bootstrap counts no problem twice, which would look like likeness.
    permutations
        Times that the problems of the second run are shuffled.
    seed
        Of problems, halves and shuffles.
    progress
        Called as ``progress(done, total)``.

    Returns
    -------
    Dataset
        ``cka`` (layer, position, other_layer, other_position), its interval, and ``p``: how often the largest of all
        pairs of cells under shuffled problems reaches it, so that it holds for all pairs at once. ``position_cka``
        (position, other_position), the mean over layers at the same relative depth, and ``layer_cka`` (layer,
        other_layer), the mean over positions both runs have, with intervals; ``..._null`` is what the largest of each
        stays below in 95% of shuffles. NaN where states do not vary, or some are infinite.

    Raises
    ------
    UsageError
        If fewer than eight problems are in both runs and have all the positions.
    """
    other = first if second is None else second
    for run in (first, other):
        require_dims(run["hidden_state"], ["example", "layer", "position", "hidden"], "the similarity of runs")
    rng = np.random.default_rng(seed)
    rows, n_shared = shared_problems(first, other, max_problems, rng)
    n = rows.shape[1]
    orders = [rng.permutation(n) for _ in range(resamples + permutations)]
    sides = [_Centred(_grams(first, rows[0]), estimator, orders[:resamples])]
    sides.append(sides[0] if second is None else _Centred(_grams(other, rows[1]), estimator, orders[:resamples]))
    means = _Means(first, other)
    left, right = (side.whole(np.arange(n)) for side in sides)
    lengths = left.length[:, None] * right.length
    estimates = means.of(left.products(right) / lengths)
    drawn: list[tuple[Array, ...]] = []
    greatest = []
    for done, order in enumerate(orders):
        if done < resamples:
            one = sides[0].half(done)
            two = one if second is None else sides[1].half(done)
            drawn.append(means.of(one.products(two) / (one.length[:, None] * two.length)))
        else:
            shuffled = left.products(sides[1].whole(order)) / lengths
            greatest.append([largest(values) for values in means.of(shuffled)])
        progress(done + 1, len(orders))
    result = _labelled(first, other, estimates, drawn, np.array(greatest), n)
    return result.assign_attrs(
        kind="similarity", first=first.attrs.get("run", ""), second=other.attrs.get("run", ""), estimator=estimator,
        n_example=n, n_shared=n_shared, n_resample=resamples, n_permutation=permutations, seed=seed,
    )  # fmt: skip


class _Centred:
    """Gram matrices of all cells (problem, problem, cell), and what they are over some of the problems once centred.

    Centred matrices are not made, as they would be for every draw. With row sums r and sums s of all over n problems

        <K~, L~> = <K, L> - 2 sum_i r_K,i r_L,i / a + s_K s_L / b

    where a = n and b = n^2 for the first form; for the debiased one a = n-2, b = (n-1)(n-2) and diagonals are zero.
    """

    def __init__(self, grams: Array, estimator: Estimator, orders: list[Array]) -> None:
        self.estimator: Estimator = estimator
        self.n = len(grams)
        if estimator == "debiased":
            grams[np.arange(self.n), np.arange(self.n)] = 0.0
        self.pairs = grams.reshape(self.n**2, -1)
        self.halves = [order[: self.n // 2] for order in orders]
        chosen = np.zeros((len(orders), self.n))
        for row, half in zip(chosen, self.halves, strict=True):
            row[half] = 1.0
        self.all_sums = grams.sum(0)
        self.half_sums = (chosen @ grams.reshape(self.n, -1)).reshape(len(orders), self.n, -1)

    def whole(self, order: Array) -> "_Some":
        """Over all problems, in this order."""
        return self._some(order, self.all_sums[order])

    def half(self, draw: int) -> "_Some":
        """Over a half of them."""
        return self._some(self.halves[draw], self.half_sums[draw][self.halves[draw]])

    def _some(self, rows: Array, sums: Array) -> "_Some":
        i, j = np.triu_indices(len(rows))
        packed = self.pairs.take(rows[i] * self.n + rows[j], axis=0)
        packed *= np.where(i == j, 1.0, np.sqrt(2.0))[:, None]
        return _Some(packed, sums, self.estimator)


@dataclass(frozen=True)
class _Some:
    """Gram matrices of all cells over some problems."""

    packed: Array
    """(pair, cell): each pair of problems once, times the root of 2, and the diagonal."""
    sums: Array
    """(problem, cell), over its row."""
    estimator: Estimator

    def products(self, other: "_Some") -> Array:
        """Inner product of every centred matrix with every one of another run: (cell, other cell)."""
        totals = self.sums.sum(0)[:, None] * other.sums.sum(0)
        return self._centred(self.packed.T @ other.packed, self.sums.T @ other.sums, totals)

    @property
    def length(self) -> Array:
        """Of every centred matrix, (cell,); NaN where it is zero."""
        square = np.einsum("pc,pc->c", self.packed, self.packed)
        centred = self._centred(square, np.einsum("nc,nc->c", self.sums, self.sums), self.sums.sum(0) ** 2)
        return np.sqrt(np.where(centred > CONSTANT * square, centred, np.nan))

    def _centred(self, pairs: Array, rows: Array, totals: Array) -> Array:
        n = len(self.sums)
        one, both = (n, n * n) if self.estimator == "biased" else (n - 2, (n - 1) * (n - 2))
        return np.asarray(pairs - 2.0 / one * rows + totals / both)


def shared_problems(first: xr.Dataset, second: xr.Dataset, most: int, rng: np.random.Generator) -> tuple[Array, int]:
    """Rows of both runs with the same question, (run, problem), one for each problem, and how many there are."""
    complete = [_has_all_positions(run) for run in (first, second)]
    questions, others = ([asked(str(text)) for text in run["question"].values] for run in (first, second))
    place = {others[row]: row for row in np.flatnonzero(complete[1])[::-1]}
    pairs, seen = [], set()
    problems = problem_of(first)
    for row in np.flatnonzero(complete[0]):
        partner = place.pop(questions[row], None)
        if partner is not None and problems[row] not in seen:
            seen.add(problems[row])
            pairs.append((row, partner))
    if len(pairs) < FEWEST:
        names = [str(run.attrs.get("run", "the run")) for run in (first, second)]
        if first is second:
            raise UsageError(
                f"of {names[0]} {len(pairs)} problems have all the positions (of {first.sizes['example']} examples);"
                f" at least {FEWEST} are needed: name other --positions, or a run of more problems"
            )
        raise UsageError(
            f"similarity compares states of the same questions, at least {FEWEST} problems of them; {names[0]} and"
            f" {names[1]} share {len(pairs)} that have all the positions (of {first.sizes['example']} and"
            f" {second.sizes['example']} examples). Name runs over the same data, or other --positions"
        )
    kept = np.sort(rng.permutation(len(pairs))[:most])
    return np.array(pairs)[kept].T, len(pairs)


def drawn_problems(first: xr.Dataset, second: xr.Dataset, most: int, seed: int) -> list[xr.DataArray]:
    """States of both runs at the problems that analyses with this seed draw of them, for what they say they read."""
    rows, _ = shared_problems(first, second, most, np.random.default_rng(seed))
    return [run["hidden_state"].isel(example=own) for run, own in zip((first, second), rows, strict=True)]


def _has_all_positions(run: xr.Dataset) -> Array:
    """Whether an example has every position: a token stands there, or a thought is fed."""
    fed = run["segment"] == "latent"
    return np.asarray(((run["token"] >= 0) | fed).all("position").values)


def layers_of(run: xr.Dataset, rows: Array) -> list[xr.DataArray]:
    """States of some examples at each layer, not yet read where the run is lazy."""
    return [run["hidden_state"].isel(layer=layer, example=rows) for layer in range(run.sizes["layer"])]


def states_of(layer: xr.DataArray) -> Array:
    """States of a layer: (position, example, hidden), float64."""
    ordered = layer.transpose("position", "example", "hidden")
    return np.asarray(ordered.values.astype("float64", order="C"))  # sums depend on the order in memory


def _grams(run: xr.Dataset, rows: Array) -> Array:
    """Gram matrices of each layer and position over some examples, read a layer at a time: (n, n, cell), float64."""
    n_position = run.sizes["position"]
    grams = np.empty((len(rows), len(rows), run.sizes["layer"] * n_position))
    for layer, states in enumerate(map(states_of, layers_of(run, rows))):
        for place, cell in enumerate(states):
            with np.errstate(invalid="ignore"):  # an infinite state makes its cell NaN
                centred = cell - cell.mean(0)  # centring the Gram matrix alone would lose digits to a large mean
                varies = (centred**2).sum() > CONSTANT * (cell**2).sum()
            grams[..., layer * n_position + place] = centred @ centred.T if varies else np.nan
    return grams


class _Means:
    """Means over layers that meet, and over positions that both runs have."""

    def __init__(self, first: xr.Dataset, second: xr.Dataset) -> None:
        self.shape = tuple(run.sizes[dim] for run in (first, second) for dim in ("layer", "position"))
        layers, others = (np.asarray(run["layer"].values, dtype="float64") for run in (first, second))
        if not np.array_equal(layers, others):  # models of different depth meet at the nearest relative depth
            layers, others = (labels / max(labels.max(), 1) for labels in (layers, others))
        self.partner = np.abs(layers[:, None] - others).argmin(1)
        names = [list(run["position"].values) for run in (first, second)]
        self.shared = [(i, names[1].index(name)) for i, name in enumerate(names[0]) if name in names[1]]

    def of(self, values: Array) -> tuple[Array, ...]:
        """Values of all pairs of cells with the dims of :data:`DIMS`, and their means by positions and by layers."""
        cells = values.reshape(self.shape)
        met = [cells[i, :, j] for i, j in enumerate(self.partner)]
        overlaps = [cells[:, i, :, j] for i, j in self.shared] or [np.full(self.shape[::2], np.nan)]
        return cells, _mean(np.stack(met)), _mean(np.stack(overlaps))


def _mean(values: Array) -> Array:
    """Mean over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.asarray(np.where(known, values, 0).sum(0) / np.where(count > 0, count, np.nan))


def largest(values: Array) -> float:
    """Largest of the values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else float("nan")


def _labelled(
    first: xr.Dataset,
    second: xr.Dataset,
    estimates: tuple[Array, ...],
    drawn: list[tuple[Array, ...]],
    greatest: Array,
    n_problem: int,
) -> xr.Dataset:
    """Estimates with intervals and what shuffled problems give, with names."""
    labels = {"layer": first, "position": first, "other_layer": second, "other_position": second}
    result = xr.Dataset(coords={dim: run[dim.removeprefix("other_")].values for dim, run in labels.items()})
    for index, (name, dims) in enumerate(DIMS.items()):
        value, draws = estimates[index], np.stack([draw[index] for draw in drawn])
        spread = percentiles(np.moveaxis(draws - _mean(draws), 0, -1), n_problem)
        result[name] = (dims, value, {"units": "1"})
        for end, shift in zip(("low", "high"), spread, strict=True):
            result[f"{name}_{end}"] = (dims, np.minimum(value + shift, 1.0))
        result[f"{name}_null"] = float(np.quantile(greatest[:, index], 0.95))
    cka = estimates[0]
    reached = sum((row[0] >= cka).astype(int) for row in greatest)
    result["p"] = (DIMS["cka"], np.where(np.isfinite(cka), (1 + reached) / (1 + len(greatest)), np.nan))
    return result
