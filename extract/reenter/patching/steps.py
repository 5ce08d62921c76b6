"""In which step of their chains the halves of pairs first differ, and what patching does by that step."""

import numpy as np
import xarray as xr

from extract.reenter.patching.outcomes import GIVEN
from extract.reenter.statistics import first_that_wins
from schemas.problem_sums import problem_of
from schemas.scoring import OUTCOMES
from schemas.statistics import share_interval

LAST, UNKNOWN = "the last step", ""


def first_steps(data: xr.Dataset, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    """First step whose result differs between the halves of each pair ``(pair,)``: ``step 1`` and so on.

    The last step, whose result is the answer, is called ``the last step``. A model may work it out only after its
    thoughts; then no thought holds what differs, and no answer can follow a donor's. Empty where no chain is known, or
    where none of its results differs.
    """
    name = next((name for name in ("intermediate_result", "intermediate_text") if name in data.variables), None)
    out = np.full(len(clean), UNKNOWN, dtype=object)
    if name is None:
        return out
    chains = np.asarray(data[name].values)
    known = np.isfinite(chains) if chains.dtype.kind == "f" else chains.astype(str) != ""
    for pair, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
        n = int(min(known[one].sum(), known[other].sum()))
        differ = np.flatnonzero(chains[one][:n] != chains[other][:n])
        if len(differ):
            out[pair] = LAST if differ[0] == n - 1 else f"step {differ[0] + 1}"
    return out


def with_first_steps(result: xr.Dataset, first_step: np.ndarray, seed: int, *, into: str) -> xr.Dataset:
    """Add outcomes by the step in which pairs first differ, and the ceiling.

    Parameters
    ----------
    result
        With ``outcome(condition, example)`` and the series of the first N thoughts.
    first_step
        Of :func:`first_steps`, by example.
    seed
        Of the bootstrap.
    into
        Half that is changed.

    Returns
    -------
    xr.Dataset
        With ``first_step(example)``; where it is known for all: along ``differs``, its values, ``n_by_step``,
        ``share_by_step(differs, condition, outcome_kind)`` with ``_low`` and ``_high``, and
        ``n_that_wins_by_step(differs, series)`` with ``_low``, ``_high``; ``ceiling``, the share of pairs that differ
        in a step before the last, which a model whose thoughts do not hold the answer itself cannot exceed.
    """
    result = result.assign_coords(first_step=("example", first_step))
    if (first_step == UNKNOWN).any():
        return result
    labels = sorted(set(first_step.tolist()), key=lambda label: (label == LAST, label))
    outcome, problem = result["outcome"].values, problem_of(result)
    kinds = np.stack([outcome == name for name in OUTCOMES], axis=1)
    shares, lows, highs, wins = [], [], [], []
    for label in labels:
        some = first_step == label
        low, high = share_interval(kinds[..., some], np.ones_like(kinds[..., some]), problem[some])
        shares.append(kinds[..., some].mean(-1))
        lows.append(low)
        highs.append(high)
        wins.append([_wins(result, outcome[:, some], place, seed, problem[some], into) for place in _series(result)])
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    dims = ("differs", "condition", "outcome_kind")
    for end, values in (("", shares), ("_low", lows), ("_high", highs)):
        columns[f"share_by_step{end}"] = (dims, np.stack(values))
    for end in ("", "_low", "_high"):
        numbers = np.array([[win[f"n{end}"] for win in row] for row in wins])
        columns[f"n_that_wins_by_step{end}"] = (("differs", "series"), numbers)
    counts = ("differs", np.array([int((first_step == label).sum()) for label in labels]))
    counted = result.assign({**columns, "n_by_step": counts}).assign_coords(differs=np.array(labels, dtype=object))
    return counted.assign_attrs(ceiling=float((first_step != LAST).mean()))


def _series(result: xr.Dataset) -> list[np.ndarray]:
    """Rows of the first N thoughts, in order of N, of each series."""
    own = (result["kind"].values == "first") & (result["control"].values.astype(str) == "")
    rows = []
    for site, layer in zip(result["series_site"].values, result["series_layer"].values, strict=True):
        there = np.flatnonzero(own & (result["site"].values == site) & (result["layer"].values == layer))
        rows.append(there[np.argsort(result["n"].values[there], kind="stable")])
    return rows


def _wins(
    result: xr.Dataset, outcome: np.ndarray, rows: np.ndarray, seed: int, problem: np.ndarray, into: str
) -> dict[str, float]:
    """From how many thoughts on the giving half's answer wins among some pairs."""
    counts = result["n"].values[rows].tolist()
    return first_that_wins(outcome[rows] == GIVEN[into], outcome[rows] == f"{into}_answer", counts, seed, problem)
