"""Answers drawn after each number of thoughts: how sure the model is, and how long a second answer stays alive."""

import numpy as np
import xarray as xr

from extract.reenter.statistics import strata_of
from schemas import Scoring
from schemas.resampling import mean_interval
from schemas.statistics import mean_share
from schemas.wording import interval_columns


def with_samples(
    out: xr.Dataset, draws: np.ndarray, gold: np.ndarray, *, scoring: Scoring, strata: np.ndarray | None,
    problem: np.ndarray | None = None, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Add drawn answers and what their spread says.

    Parameters
    ----------
    out
        With dims ``n_thought`` and ``example``.
    draws
        What the drawn texts answer ``(n_thought, sample, example)``, NaN or empty where there is none.
    gold
        Right answers ``(example,)``.
    scoring
        How answers are compared.
    strata
        Difficulty ``(example,)``.
    problem
        Problem ``(example,)``; examples of one are drawn together, with all their draws.
    seed
        Of the bootstrap.

    Returns
    -------
    xr.Dataset
        With ``sample_answer(n_thought, sample, example)`` and, of (``n_thought``, ``example``), ``sample_correct``:
        share of the draws that are right, ``sample_top`` and ``sample_second``: shares of the two most frequent
        answers, ``sample_entropy`` of the answers in nats (none counts as one), ``sample_alive``:
        whether the second is at least half as frequent as the first. Means along ``stratum`` with
        intervals over problems as ``_mean``, ``_low``, ``_high``.
    """
    n_sample = draws.shape[1]
    known = draws if draws.dtype.kind == "f" else np.vectorize(scoring.normal, otypes=[object])(draws)
    shares = _shares(known)  # (n_thought, example, answer), most frequent first
    right = scoring.equal(draws, gold[None, None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(shares * np.log(shares), axis=-1)
    second = shares[..., 1] if shares.shape[-1] > 1 else np.zeros(shares.shape[:-1])
    figures = {
        "sample_correct": right.mean(1),
        "sample_top": shares[..., 0],
        "sample_second": second,
        "sample_entropy": entropy,
        "sample_alive": (second >= shares[..., 0] / 2).astype(float),
    }
    groups = strata_of(strata, len(gold)).values()
    problem = np.arange(len(gold)) if problem is None else problem
    dims = ("n_thought", "example")
    out = out.assign({name: (dims, value) for name, value in figures.items()})
    out["sample_answer"] = ("n_thought", "sample", "example"), draws
    for name, value in figures.items():
        is_share = name != "sample_entropy"
        bounds = [
            mean_share(part, problem[group]) if is_share else mean_interval(part, seed, problem[group])
            for group, part in ((group, value[:, group]) for group in groups)
        ]
        for key, part in interval_columns(name, zip(*bounds, strict=True), "_mean").items():
            out[key] = ("stratum", "n_thought"), np.stack(part)
    return out.assign_attrs(n_sample=n_sample)


def _shares(draws: np.ndarray) -> np.ndarray:
    """Shares ``(n_thought, example, answer)`` of the answers drawn, most frequent first, then zeros."""
    n_thought, n_sample, n_example = draws.shape
    shares = np.zeros((n_thought, n_example, n_sample))
    for thought, example in np.ndindex(n_thought, n_example):
        count = np.unique(draws[thought, :, example], return_counts=True)[1]  # NaN is one answer
        shares[thought, example, : len(count)] = np.sort(count)[::-1] / n_sample
    return shares
