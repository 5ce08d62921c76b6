"""The tuned lens: one affine map per layer from a state to the final one, fitted on the lake."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.blocks import example_blocks
from analyze.labels import after_question, inherited, numbered, take
from analyze.lens.readout import ReadOut, check_model
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.statistics import split_problems

Array = np.ndarray[Any, np.dtype[Any]]

PENALTIES = (1e-6, 1e-4, 1e-2, 1.0)
"""Ridge penalties tried, as shares of the mean square of a component of the state."""
CONSTANT = 1e-12
"""Share of a component's mean square below which its variance is rounding."""
IN_MEMORY = 256
"""Examples whose sums are taken at once where states lie in memory."""
SPLITS = ("train", "validation", "test")
_HELD_OUT = {
    "r2": ("share of the final state's variance explained, held out, tuned lens", "1"),
    "r2_plain": ("share of the final state's variance explained, held out, final norm alone", "1"),
    "kl": ("divergence from the model's distribution, held out, tuned lens", "nat"),
    "kl_plain": ("divergence from the model's distribution, held out, final norm alone", "nat"),
    "agreement": ("share of states with the model's best token, held out, tuned lens", "1"),
    "agreement_plain": ("share of states with the model's best token, held out, final norm alone", "1"),
}


def fit_tuned_lens(
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    positions: Sequence[str] | None = None,
    seed: int = 0,
    n_read_out: int = 1024,
    progress: Progress = silent,
) -> xr.Dataset:
    """Fit one affine map per layer from ``hidden_state`` to ``final_state``, by ridge regression.

    Problems, not examples, are split 70/15/15: the map is fitted on the first part, its penalty chosen on the second,
    and everything reported measured on the third. Reads the run once per layer, a chunk of examples at a time; memory
    is six hidden x hidden matrices beside that chunk.

    Parameters
    ----------
    run
        Needs ``hidden_state`` and ``final_state`` at ``positions``.
    model
        Read-out of the run's model.
    positions
        Positions pooled in one map per layer; by default every position from ``bot`` on.
    n_read_out
        Held-out states per layer whose logits are compared.
    progress
        Called with layers done and their number.

    Returns
    -------
    Dataset
        ``weight`` : (layer, hidden, to) and ``bias`` : (layer, to), so that ``state @ weight + bias`` estimates the
        final state; ``penalty`` : (layer). Held out, for the tuned lens and (``_plain``) for the final norm alone:
        ``r2``, ``kl`` (nat, of the lens from the model's own distribution) and ``agreement`` of the best token :
        (layer). ``n_state`` : (split)

    References
    ----------
    Belrose et al., *Eliciting Latent Predictions from Transformers with the Tuned Lens*, 2023, who minimise ``kl``.
    """
    check_model(model, run)
    if positions is None:
        positions = after_question(run)
    state, final, split = states_to_fit(run, positions, seed)
    readout = ReadOut(model)
    n_layer = state.sizes["layer"]
    parts: dict[str, list[Any]] = {name: [] for name in ("weight", "bias", "penalty", *_HELD_OUT)}
    n_state = np.zeros(len(SPLITS), dtype=int)
    for layer in range(n_layer):
        sums, test_x, test_y = _read_layer(state.isel(layer=layer), final, split, n_read_out)
        train, validation, _ = sums
        fits = [(penalty, *train.ridge(penalty)) for penalty in PENALTIES]
        penalty, weight, bias = min(fits, key=lambda fit: validation.error(fit[1], fit[2]))
        scores = dict.fromkeys(_HELD_OUT, np.nan)
        if train.n and len(test_x):
            tuned = (test_x @ weight + bias).astype("float32")
            plain = readout.norm(test_x)
            variance = float(((test_y - test_y.mean(0)) ** 2).sum()) or np.nan
            ours, theirs = readout.compare(test_y, tuned, plain)
            scores |= dict(zip(("kl", "agreement", "kl_plain", "agreement_plain"), (*ours, *theirs), strict=True))
            for name, read in (("r2", tuned), ("r2_plain", plain)):
                scores[name] = 1 - float(((test_y - read) ** 2).sum()) / variance
        for name, value in {"weight": weight, "bias": bias, "penalty": penalty, **scores}.items():
            parts[name].append(value)
        n_state = np.array([moments.n for moments in sums])
        progress(layer + 1, n_layer)
    fitted = xr.Dataset(
        {
            "weight": (("layer", "hidden", "to"), np.stack(parts["weight"]).astype("float32")),
            "bias": (("layer", "to"), np.stack(parts["bias"]).astype("float32")),
            **{name: ("layer", np.array(parts[name], dtype="float64")) for name in ("penalty", *_HELD_OUT)},
            "n_state": ("split", n_state),
        },
        coords={"layer": state["layer"].values, "split": np.array(SPLITS, dtype=object)},
        attrs=inherited(run, kind="tuned_lens", positions=" ".join(positions), seed=seed),
    )
    for name, (text, units) in _HELD_OUT.items():
        fitted[name].attrs = {"long_name": text, "units": units}
    return fitted


def states_to_fit(run: xr.Dataset, positions: Sequence[str], seed: int) -> tuple[xr.DataArray, xr.DataArray, Array]:
    """States (layer, example, position, hidden), the final ones, and the number of each example's split.

    Raises
    ------
    UsageError
        If a split is empty.
    """
    what = "the tuned lens"
    state = take(run["hidden_state"], "position", positions, what).transpose("layer", "example", "position", "hidden")
    final = take(run["final_state"], "position", positions, what).transpose("example", "position", "hidden")
    problem = problem_of(run)
    split = split_problems(problem, seed)
    sizes = np.bincount(split, minlength=len(SPLITS))
    if not sizes.all():
        raise UsageError(
            f"{what} splits problems into {', '.join(SPLITS)}; {len(np.unique(problem))} problems give "
            f"{', '.join(map(str, sizes))} examples. Use a run of more problems."
        )
    return numbered(state, ["layer"]), final, split


def blocks_to_fit(state: xr.DataArray, final: xr.DataArray) -> Iterator[tuple[slice, Array, Array, Array]]:
    """Examples of a block, their states and final ones (float32), and at which positions they have both."""
    for block in example_blocks(state, IN_MEMORY):
        x, y = (np.asarray(array.isel(example=block).values, dtype="float32") for array in (state, final))
        yield block, x, y, np.isfinite(x).all(-1) & np.isfinite(y).all(-1)


def _read_layer(
    state: xr.DataArray, final: xr.DataArray, split: Array, n_read_out: int
) -> tuple[list["Moments"], Array, Array]:
    """Moments of each split, and the first states ``(n_read_out, hidden)`` of the last one with their final ones."""
    sums = [Moments(state.sizes["hidden"]) for _ in SPLITS]
    kept: list[tuple[Array, Array]] = []
    for block, x, y, there in blocks_to_fit(state, final):
        for index, moments in enumerate(sums):
            rows = there & (split[block] == index)[:, None]
            pair = x[rows], y[rows]
            moments.add(*pair)
            if index == len(SPLITS) - 1 and sum(len(a) for a, _ in kept) < n_read_out:
                kept.append(pair)
    test_x, test_y = (np.concatenate(each)[:n_read_out] for each in zip(*kept, strict=True))
    return sums, test_x, test_y


class Moments:
    """Sums from which a ridge regression and its error are computed exactly, without the rows."""

    def __init__(self, hidden: int) -> None:
        self.n = 0
        self.x, self.y = np.zeros(hidden), np.zeros(hidden)
        self.xx, self.xy, self.yy = np.zeros((hidden, hidden)), np.zeros((hidden, hidden)), 0.0

    def __add__(self, other: "Moments") -> "Moments":
        """Sums over the rows of both."""
        out = Moments(len(self.x))
        for name, value in vars(self).items():
            setattr(out, name, value + getattr(other, name))
        return out

    def add(self, x: Array, y: Array) -> None:
        """Count rows (state, hidden) of both sides."""
        x, y = x.astype("float64"), y.astype("float64")
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float((y * y).sum())

    def ridge(self, penalty: float) -> tuple[Array, Array]:
        """Weight (hidden, to) and bias (to,) for a penalty relative to a component's mean square; NaN of no rows."""
        if not self.n:
            return np.full_like(self.xx, np.nan), np.full_like(self.x, np.nan)
        mean_x, mean_y = self.x / self.n, self.y / self.n
        cov = self.xx / self.n - np.outer(mean_x, mean_x)
        cross = self.xy / self.n - np.outer(mean_x, mean_y)
        varies = np.diag(cov) > CONSTANT * np.diag(self.xx) / self.n
        cov[~varies], cov[:, ~varies], cross[~varies] = 0, 0, 0
        scale = float(np.trace(cov)) / len(cov) or 1.0
        weight = np.linalg.solve(cov + penalty * scale * np.eye(len(cov)), cross)
        return weight, mean_y - mean_x @ weight

    def error(self, weight: Array, bias: Array) -> float:
        """Sum of squared errors of ``x @ weight + bias`` over the rows counted."""
        fitted = np.einsum("ij,ij->", weight, self.xx @ weight) + 2 * self.x @ weight @ bias + self.n * bias @ bias
        crossed = np.einsum("ij,ij->", weight, self.xy) + bias @ self.y
        return float(self.yy - 2 * crossed + fitted)
