"""Linear maps from the values of one model to those of another."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import RidgeCV

from extract.reenter.subspace.fits import deviation

ALPHAS = tuple(10.0**power for power in range(-4, 5))


@dataclass(frozen=True, slots=True)
class Mapped:
    """Values of a source ``(example, width)`` in the target's space ``(example, width of the target)``."""

    same: np.ndarray
    """Each problem's own, through the map."""
    raw: np.ndarray | None
    """As they are, where the widths agree."""
    random: np.ndarray
    """Through a map fitted on shuffled pairs: as large, and no more than the mean is right."""
    constant: np.ndarray
    """What the map gives of the mean over the problems it was fitted on: the map alone."""
    r2: float
    """Share of the variance that the map explains on problems it was not fitted on."""


def fit_map(source: np.ndarray, target: np.ndarray, fitted: np.ndarray, rng: np.random.Generator) -> Mapped:
    """Fit an affine map by ridge regression, its strength chosen by leaving one problem out.

    Parameters
    ----------
    source, target
        Values ``(example, width)`` of the same problems.
    fitted
        Problems ``(example,)`` on which the map is fitted; the others are held out.
    rng
        Of the shuffled pairs.
    """
    x, y = source.astype(np.float64), target.astype(np.float64)
    x = (x - x[fitted].mean(0)) / deviation(x[fitted])  # or ridge would see the components of the largest unit alone
    same = _fit(x, y, fitted)
    shuffled = np.flatnonzero(fitted)
    pairs = y.copy()
    pairs[shuffled] = y[rng.permutation(shuffled)]
    constant = np.broadcast_to(y[fitted].mean(0), y.shape)
    rest = ((y - constant)[~fitted] ** 2).sum()
    r2 = 1 - ((y - same)[~fitted] ** 2).sum() / rest if rest > 0 else np.nan
    random = _spread_like(_fit(x, pairs, fitted, alpha=ALPHAS[0]), y, fitted)
    raw = source if source.shape[1] == target.shape[1] else None
    return Mapped(same, raw, random, constant, float(r2))


def _fit(x: np.ndarray, y: np.ndarray, fitted: np.ndarray, alpha: float | None = None) -> np.ndarray:
    """What a map fitted on some problems gives of all."""
    model = RidgeCV(alphas=list(ALPHAS) if alpha is None else [alpha]).fit(x[fitted], y[fitted])
    return np.asarray(model.predict(x))


def _spread_like(values: np.ndarray, target: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Values moved and scaled to the target's mean and spread over the problems that maps are fitted on."""
    mean, spread = values.mean(0), float(values.std(0).mean())
    wanted = float(target[fitted].std(0).mean())
    return np.asarray((values - mean) * (wanted / spread if spread > 0 else 0.0) + target[fitted].mean(0))
