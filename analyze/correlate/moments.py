"""Moments of two arrays, and the correlations they give."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

Array = np.ndarray[Any, np.dtype[Any]]


class _Moments(NamedTuple):
    """Means over examples and central moments, by position, in units of the pair; of several draws, or of one."""

    x: Array  # (draw, test, position)
    y: Array  # (draw, 1, position)
    xx: Array  # (draw, test, position)
    yy: Array  # (draw, 1, position)
    xy: Array  # (draw, test, position)


class _Centred:
    """Values less their mean over examples at each position, over the largest that is left.

    So moments lose no digits to a large offset and neither over- nor underflow, whatever unit the values have. What
    varies by no more than rounding is constant, and exactly 0 here.

    Parameters
    ----------
    values : (example, ..., position)
    magnitude : (..., position or 1)
        Largest of the numbers that the values were computed from.
    resolution
        Rounding of one such number relative to it.
    """

    def __init__(self, values: Array, magnitude: Array, resolution: float) -> None:
        rounding = 32 * resolution * magnitude
        mean = values.mean(0)
        rest = values - mean
        mean, rest = mean + rest.mean(0), rest - rest.mean(0)
        self.middle = mean.mean(-1, keepdims=True)  # (..., 1)
        mean = np.where(np.abs(mean - self.middle) > rounding, mean - self.middle, 0.0)
        rest = np.where(np.abs(rest).max(0) > rounding, rest, 0.0)
        unit = np.maximum(np.abs(rest).max((0, -1)), np.abs(mean).max(-1))[..., None]
        self.unit = np.where(unit > 0, unit, 1.0)  # (..., 1)
        self.values = rest / self.unit
        self.mean = mean / self.unit  # (..., position), less the middle

    def natural(self, mean: Array) -> Array:
        """Means in the values' own unit."""
        return np.asarray(self.middle + self.unit * mean)


class _Pair:
    """Two arrays and the moments their correlations need.

    ``x`` (example, test, position) and ``y`` (example, position); ``magnitude`` and ``resolution`` are those of x and
    of y, see :class:`_Centred`.
    """

    def __init__(self, x: Array, y: Array, magnitude: tuple[Array, Array], resolution: tuple[float, float]) -> None:
        self.x, self.y = _Centred(x, magnitude[0], resolution[0]), _Centred(y, magnitude[1], resolution[1])
        self._flat = np.ascontiguousarray(self.x.values.transpose(2, 1, 0))  # (position, test, example)
        self.x.values = self._flat.transpose(2, 1, 0)  # the same numbers, held once
        self.whole = self.moments(np.ones((1, len(y))))

    def moments(self, counts: Array) -> _Moments:
        """Moments where each example counts as often as ``counts`` : (draw, example) says."""
        weight = (counts / counts.sum(1, keepdims=True)).T  # (example, draw)
        y = self.y.values.T[:, :, None]  # (position, example, 1)
        x_mean, y_mean = _draws_first(self._flat @ weight), _draws_first((y * weight).sum(1, keepdims=True))
        return _Moments(
            self.x.mean + x_mean,
            self.y.mean + y_mean,
            _draws_first(np.stack([values**2 @ weight for values in self._flat])) - x_mean**2,
            _draws_first((y**2 * weight).sum(1, keepdims=True)) - y_mean**2,
            _draws_first(self._flat @ (y * weight)) - x_mean * y_mean,
        )

    def exchanged(self, rows: Array) -> _Moments:
        """Moments with the second's examples exchanged: ``rows`` : (draw, example). Only what is of both changes."""
        y = np.stack([column[rows].T for column in self.y.values.T])  # (position, example, draw)
        x_mean, y_mean = self.whole.x - self.x.mean, self.whole.y - self.y.mean
        return self.whole._replace(xy=_draws_first(self._flat @ y) / rows.shape[1] - x_mean * y_mean)

    def shuffled(self, order: Array) -> Array:
        """Pooled correlation of values less each example's mean, the second's positions in another order.

        From ``order`` : (draw, example, position) to (draw, test).
        """
        y = np.take_along_axis((self.y.values + self.y.mean)[None], order, 2)  # (draw, example, position)
        columns = zip(self._flat, self.x.mean.T, y.transpose(2, 0, 1), strict=True)
        xy = np.sum([own @ (values + mean[:, None]).T for values, mean, own in columns], axis=0) / y[0].size
        _, xx, yy = _pooled(self.whole)
        return _ratio(xy, xx, yy, (xx, yy))

    def slope(self, moments: _Moments) -> Array:
        """Least-squares slope (test,) of the pooled points of one draw, in the values' own units."""
        xy, xx, _ = (moment[0] for moment in _pooled(moments))
        slope = np.where(xx > 0, xy / np.where(xx > 0, xx, 1), np.nan)
        return np.asarray(slope * (self.y.unit / self.x.unit[:, 0]))


def _draws_first(values: Array) -> Array:
    """(position, test, draw) as (draw, test, position)."""
    return values.transpose(2, 1, 0)


def _pooled(m: _Moments) -> tuple[Array, Array, Array]:
    """Central moments xy, xx, yy over examples and positions: those at the positions and between them."""
    x, y = m.x - m.x.mean(-1, keepdims=True), m.y - m.y.mean(-1, keepdims=True)
    return (m.xy + x * y).mean(-1), (m.xx + x * x).mean(-1), (m.yy + y * y).mean(-1)


def _ratio(xy: Array, xx: Array, yy: Array, whole: tuple[Array, Array]) -> Array:
    """Correlation from central moments; NaN where of ``whole``, the variances of all examples, nothing is left."""
    good = (xx > 1e-12 * whole[0]) & (yy > 1e-12 * whole[1])
    return np.asarray(np.where(good, np.clip(xy / np.sqrt(np.where(good, xx * yy, 1.0)), -1, 1), np.nan))


class Correlations:
    """Correlations of two arrays, whole and redrawn: ``pooled``, ``position``, ``within``, ``partial``, ``two_way``.

    Parameters
    ----------
    x : (example, test, position)
    y : (example, position)
    resolution
        Rounding of one number of each, relative to it.
    """

    def __init__(self, x: Array, y: Array, resolution: tuple[float, float]) -> None:
        self.shape = y.shape
        self.raw = _Pair(x, y, (np.abs(x).max(0), np.abs(y).max(0)), resolution)
        largest = np.abs(x).max((0, 2))[:, None], np.abs(y).max(keepdims=True)[0]
        self.rows = _Pair(_row_centred(x), _row_centred(y), largest, resolution)
        whole = self._of(self.raw.whole, self.rows.whole)
        self.observed = {name: value[0] for name, value in whole.items()}

    def exchanged(self, between: Array, order: Array) -> dict[str, Array]:
        """Correlations with the examples of y exchanged and, for ``within``, with its positions in another order.

        Parameters
        ----------
        between : (draw, example)
        order : (draw, example, position)
        """
        drawn = self._of(self.raw.exchanged(between), self.rows.exchanged(between))
        return drawn | {"within": self.rows.shuffled(order)}

    def resampled(self, counts: Array) -> dict[str, Array]:
        """Correlations, and means by position, where each example counts as often as ``counts`` : (draw, example)."""
        moments = self.raw.moments(counts)
        return self._of(moments, self.rows.moments(counts)) | self.means(moments)

    def means(self, moments: _Moments) -> dict[str, Array]:
        """Means over examples, by position, in the arrays' own units."""
        x, y = self.raw.x.natural(moments.x), self.raw.y.natural(moments.y)
        return {"mean_attention": x, "mean_importance": y[:, 0]}

    def _of(self, values: _Moments, centred: _Moments) -> dict[str, Array]:
        """Every correlation, (draw, test, ..), from moments of the values, and of those less each example's mean."""

        def pooled(pair: _Pair, m: _Moments) -> Array:
            return _ratio(*_pooled(m), _pooled(pair.whole)[1:])

        def summed(pair: _Pair, m: _Moments) -> Array:
            return _ratio(m.xy.sum(-1), m.xx.sum(-1), m.yy.sum(-1), (pair.whole.xx.sum(-1), pair.whole.yy.sum(-1)))

        raw, rows = self.raw, self.rows
        return {
            "within": pooled(rows, centred),
            "pooled": pooled(raw, values),
            "position": _ratio(values.xy, values.xx, values.yy, (raw.whole.xx, raw.whole.yy)),
            "partial": summed(raw, values),
            "two_way": summed(rows, centred),
        }


class Exchange:
    """Draws whole problems: exchanged among those of equal size, or with repeats."""

    def __init__(self, groups: Array) -> None:
        self._owner = np.unique(groups, return_inverse=True)[1]
        order = np.argsort(self._owner, kind="stable")
        self._members = np.split(order, np.flatnonzero(np.diff(self._owner[order])) + 1)
        sizes = np.array([len(rows) for rows in self._members])
        self._strata = [np.stack([m for m in self._members if len(m) == size]) for size in np.unique(sizes)]
        self._n = len(groups)

    def between(self, rng: np.random.Generator) -> Array:
        """Row numbers that give each example the values of another problem's."""
        taken = np.empty(self._n, dtype=int)
        for rows in self._strata:  # (problem, example)
            taken[rows] = rows[rng.permutation(len(rows))]
        return taken

    def resample(self, rng: np.random.Generator) -> Array:
        """How often each example counts where each problem is drawn as often as a Poisson draw says."""
        drawn = np.zeros(len(self._members), dtype=int)
        while not drawn.any():
            drawn = rng.poisson(1.0, len(self._members))
        return drawn[self._owner]


def resolution_of(values: xr.DataArray) -> float:
    """Rounding of one number relative to it; what a mean of numbers that are equal may be off by."""
    low = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return float(np.finfo(np.float32 if low else np.float64).eps)


def _row_centred(values: Array) -> Array:
    return np.asarray(values - values.mean(-1, keepdims=True))
