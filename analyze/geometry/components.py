"""Principal components of the thoughts of a layer: what lies along them, what they read as, and how many reading takes.

Components are those of all chosen positions together, so that what tells one thought from another is among them.
"""

from typing import Any

import numpy as np
import xarray as xr

from analyze.cluster import spread
from analyze.labels import inherited
from analyze.lens.readout import ReadOut
from analyze.lens.tokens import in_a_line
from analyze.similarity.cka import CONSTANT, FEWEST, layers_of, shared_problems, states_of

Array = np.ndarray[Any, np.dtype[Any]]
TOKENS = 5
"""Tokens listed for each direction."""
DRAWN = 100
"""Problems whose scores are kept for the drawing."""


def principal_components(
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    components: int = 8,
    max_problems: int = 300,
    permutations: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Principal components of each layer over positions and problems, what they carry and what they read as.

    Parameters
    ----------
    run
        With ``hidden_state`` (example, layer, position, hidden), ``question``, ``token``, and where the data have them
        ``intermediate_result`` and ``operation`` (example, step).
    model
        Its read-out, from ``lake.model``.
    components
        How many are reported.
    max_problems, seed
        As in :func:`analyze.geometry.shape.geometry`.
    permutations
        Shuffles of problems for ``carried_null``.

    Returns
    -------
    Dataset
        ``pooled_explained`` (layer, component): share of the variance over problems and positions.
        ``position_share`` (layer, component): share of its own variance that lies between positions. ``carried_share``
        (layer, position, component, carried): share of its variance at a position that goes with the rank of the result
        of a step (squared rank correlation) or lies between operations of a step; ``carried_null`` (carried): what the
        largest over layers, positions and components stays below in 95% of shuffles of problems. ``tokens`` (layer,
        component, sign): what moving along it adds most to, through final norm and unembedding. ``kept_reading``
        (layer, position, n_component): share of states of problems left out of the fit whose first token under the
        logit lens stays when only their first components are kept; ``kept_reading_random``: of as many random
        directions. ``score`` (example, position, axis): of the last layer, the first two. ``n`` (layer): problems
        whose states are all finite there, which alone count. NaN where they are too few, or do not vary.
    """
    rng = np.random.default_rng(seed)
    rows, _ = shared_problems(run, run, max_problems, rng)
    rows = rows[0]
    n, width = len(rows), run.sizes["hidden"]
    components = min(components, width, n - 1)
    carried = carried_by(run, rows)
    shuffled = np.stack([rng.permutation(n) for _ in range(permutations)])
    readout = ReadOut(model)
    fitted, held = np.split(rng.permutation(n), [n // 2])
    random = np.linalg.qr(rng.normal(size=(width, width))[:, : most_kept(width)])[0].T
    shared = [carried, shuffled, fitted, held, random, components, readout]
    layers, drawn, scores = zip(*spread(_layer, ([layer] for layer in layers_of(run, rows)), shared), strict=True)
    result = xr.Dataset(
        {name: (dims, np.stack([layer[name] for layer in layers])) for name, dims in DIMS.items()},
        coords={
            "layer": run["layer"].values,
            "position": run["position"].values,
            "component": np.arange(components),
            "carried": np.array(list(carried), dtype=object),
            "sign": np.array(["+", "-"], dtype=object),
            "n_component": kept_counts(width),
            "example": run["example"].values[rows[:DRAWN]],
        },
    )
    result["carried_null"] = ("carried", np.quantile(np.max(drawn, axis=0), 0.95, axis=0))
    result["score"] = (("example", "position", "axis"), scores[-1][:, :DRAWN, :2].swapaxes(0, 1))
    return result.assign_attrs(inherited(run, kind="geometry"))


DIMS: dict[str, tuple[str, ...]] = {
    "n": ("layer",),
    "pooled_explained": ("layer", "component"),
    "position_share": ("layer", "component"),
    "carried_share": ("layer", "position", "component", "carried"),
    "tokens": ("layer", "component", "sign"),
    "kept_reading": ("layer", "position", "n_component"),
    "kept_reading_random": ("layer", "position", "n_component"),
}


def _layer(
    layer: xr.DataArray, carried: dict[str, Array], shuffled: Array, fitted: Array, held: Array, random: Array,
    components: int, readout: ReadOut,
) -> tuple[dict[str, Array], Array, Array]:  # fmt: skip
    """Variables of :data:`DIMS` for one layer; the largest shares under each shuffle (draw, carried); the scores."""
    states = states_of(layer)
    counts, most = kept_counts(states.shape[-1]), most_kept(states.shape[-1])
    there: Array = np.asarray(np.isfinite(states).all((0, 2)))  # (problem,)
    scores = np.full((*states.shape[:2], components), np.nan)
    told = _nothing(len(states), components, len(carried), len(counts)) | {"n": there.sum()}
    largest = np.zeros((len(shuffled), len(carried)))
    finite = states[:, there]
    if there.sum() < FEWEST or not _vary(finite.reshape(-1, states.shape[-1])):
        return told, largest, scores
    mean, axes, share = fit(finite, components)
    own = (finite - mean) @ axes.T
    scores[:, there], total = own, own.var((0, 1))
    fitted, held = (rows[there[rows]] for rows in (fitted, held))
    halves = {"": fit(states[:, fitted], most)[:2], "_random": (states[:, fitted].mean((0, 1)), random)}
    whole = _first(states[:, held], readout)
    told |= {
        "pooled_explained": share,
        "position_share": own.mean(1).var(0) / np.where(total > CONSTANT * total.max(), total, np.nan),
        "tokens": _tokens(axes, mean, own.std((0, 1)), readout),
    } | {
        f"kept_reading{end}": kept_share(states[:, held], whole, *half, counts, readout) for end, half in halves.items()
    }
    varies = np.array([_vary(cell) for cell in finite])
    for index, values in enumerate(carried.values()):
        known = np.where(there, values, np.nan if values.dtype.kind == "f" else "")
        told["carried_share"][varies, :, index] = shares(scores[varies], known)
        largest[:, index] = shares(scores[varies], known, shuffled).max((1, 2), initial=0)
    return told, largest, scores


def _vary(states: Array) -> bool:
    """Whether states (row, hidden) differ by more than rounding."""
    return bool(((states - states.mean(0)) ** 2).sum() > CONSTANT * (states**2).sum())


def _nothing(n_position: int, n_component: int, n_carried: int, n_count: int) -> dict[str, Any]:
    """Variables of :data:`DIMS` for a layer in which nothing is known."""
    kept = {f"kept_reading{end}": np.full((n_position, n_count), np.nan) for end in ("", "_random")}
    return kept | {
        "pooled_explained": np.full(n_component, np.nan), "position_share": np.full(n_component, np.nan),
        "carried_share": np.full((n_position, n_component, n_carried), np.nan),
        "tokens": np.full((n_component, 2), "", dtype=object),
    }  # fmt: skip


def kept_counts(width: int) -> list[int]:
    """Numbers of components for which readings are compared, all below ``width``."""
    return [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < width]


def most_kept(width: int) -> int:
    """Largest of :func:`kept_counts`."""
    return max(kept_counts(width), default=0)


def fit(states: Array, n: int) -> tuple[Array, Array, Array]:
    """Mean, first n principal axes (axis, hidden) and shares of the variance of states (position, problem, hidden)."""
    centred = states.reshape(-1, states.shape[-1])
    mean = centred.mean(0)
    centred = centred - mean
    covariance = centred.T @ centred
    values, axes = leading(covariance, n)
    return mean, axes, values / max(float(np.trace(covariance)), 1e-300)


def leading(covariance: Array, n: int) -> tuple[Array, Array]:
    """The n largest eigenvalues and their vectors (vector, hidden), whose largest number is positive, as in PCA."""
    from scipy.linalg import eigh

    width = len(covariance)
    if not n:
        return np.empty(0), np.empty((0, width))
    values, vectors = eigh(covariance, subset_by_index=(width - n, width - 1))
    axes = vectors.T[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(-1)[:, None], -1)
    return np.maximum(values[::-1], 0), axes * np.sign(largest)


def carried_by(run: xr.Dataset, rows: Array) -> dict[str, Array]:
    """What problems carry at each step, by name: numbers, or classes as text; NaN and ``""`` where there is none."""
    carried: dict[str, Array] = {}
    for name, word in (("intermediate_result", "result"), ("operation", "operation")):
        if name in run:
            values = run[name].isel(example=rows).transpose("step", "example").values
            carried |= {f"{word} {step + 1}": column for step, column in enumerate(values) if _varies(column)}
    return carried


def _varies(values: Array) -> bool:
    known = values[_known(values)]
    return len(known) >= 8 and len(np.unique(known)) > 1


def _known(values: Array) -> Array:
    return np.isfinite(values) if values.dtype.kind == "f" else values != ""


def shares(scores: Array, values: Array, orders: Array | None = None) -> Array:
    """Share of the variance of scores (position, problem, component) that goes with values (problem,).

    Of numbers the squared rank correlation, of classes the share between them, over the problems that have a value.

    Parameters
    ----------
    orders : (draw, problem)
        Shuffles of the problems; those that have a value exchange values among each other.

    Returns
    -------
    (position, component), or of shuffles (draw, position, component)
    """
    from scipy.stats import rankdata

    known = _known(values)
    ranks = rankdata(scores[:, known], axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    spread = np.maximum((ranks**2).sum(1), 1e-300)
    contrasts = _contrasts(values[known])
    if orders is None:
        return np.asarray((np.einsum("kn,pnc->kpc", contrasts, ranks) ** 2).sum(0) / spread)
    place = (np.cumsum(known) - 1)[orders[known[orders]].reshape(len(orders), -1)]  # among those that have a value
    along = contrasts[:, place].reshape(-1, place.shape[1]) @ ranks.swapaxes(0, 1).reshape(place.shape[1], -1)
    return np.asarray((along.reshape(len(contrasts), len(orders), *spread.shape) ** 2).sum(0) / spread)


def _contrasts(values: Array) -> Array:
    """Unit vectors over problems: the sum of squares along them is what goes with the values, (contrast, problem)."""
    from scipy.stats import rankdata

    if values.dtype.kind == "f":
        ranks = np.asarray(rankdata(values)) - (len(values) + 1) / 2
        return np.asarray(ranks / max(float(np.linalg.norm(ranks)), 1e-300))[None]
    member = np.asarray(np.unique(values)[:, None] == values, dtype="float64")
    return np.asarray(member / np.sqrt(member.sum(1, keepdims=True)))


def _tokens(axes: Array, mean: Array, spread: Array, readout: ReadOut) -> Array:
    """Tokens whose logits rise most one spread from the mean along each axis, both ways: (component, sign), text."""
    moved = spread[:, None, None] * np.array([1.0, -1.0])[:, None] * axes[:, None]  # (component, sign, hidden)
    ends = readout.norm((mean + moved).astype("float32")) - readout.norm(mean.astype("float32"))
    fall = -(ends.reshape(-1, ends.shape[-1]) @ readout.unembedding.T)  # at once, or each would read all of it
    best = np.argsort(fall, axis=-1, kind="stable")[:, :TOKENS]
    names = np.array(readout.strings, dtype=object)
    return np.array([in_a_line(names[end]) for end in best], dtype=object).reshape(ends.shape[:2])


def kept_share(states: Array, whole: Array, mean: Array, axes: Array, counts: list[int], readout: ReadOut) -> Array:
    """Share of states whose first token stays when only some components are kept: (position, n_component).

    The norm is linear but for the scale of each state, so that logits of k components are sums of k + 2 columns: of the
    bias, the mean and each axis.
    """
    most = max(counts)
    directions, bias = readout.directions(np.concatenate([mean[None], axes[:most]]))
    scores = ((states - mean) @ axes[:most].T).reshape(-1, most)
    weights = []
    for k in counts:
        scale = readout.scale(mean + scores[:, :k] @ axes[:k])
        ones = np.ones_like(scale)
        weights.append(np.concatenate([ones, ones / scale, scores[:, :k] / scale], 1).astype("float32"))
    first = readout.likeliest(np.concatenate([bias[None], directions]), weights)  # (n_component, state)
    return np.asarray((first.reshape(len(counts), *whole.shape) == whole).mean(-1).T)


def _first(states: Array, readout: ReadOut) -> Array:
    """First token under the logit lens of states (position, problem, hidden)."""
    flat = readout.norm(states.reshape(-1, states.shape[-1]).astype("float32"))
    return readout.best(flat).reshape(states.shape[:2])
