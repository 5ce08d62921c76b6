"""What pages and probes of features read, and what they take beside products, timed on made-up numbers."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from analyze.features.pages import ends
from analyze.features.probe import Values, problems_of, tested
from schemas.codes import active_codes
from schemas.command import Reading

if TYPE_CHECKING:
    from analyze.features.command import FeatureSettings

Step = tuple[float, Callable[[], object]]
TIMED = 16
"""Features whose largest logits are looked for, or that are tested, in a step."""


def page_readings(
    dictionary: xr.Dataset, run: xr.Dataset, part: xr.DataArray, n_top: int, settings: "FeatureSettings"
) -> list[Reading]:
    """States that features fire on most, at each place as many as at any, and of problems where features are at home.

    Parameters
    ----------
    part : (example, .., hidden)
        What the dictionary reads of the run.
    n_top
        Different states that features fire on most.
    """
    frequency = dictionary["frequency"].transpose("feature", ...).values.reshape(dictionary.sizes["feature"], -1)
    grid = dictionary.attrs["scope"] == "cell"
    n_cell = frequency.shape[1]
    home = n_cell if grid else len(np.unique(np.nan_to_num(frequency, nan=-1).argmax(1)))
    known = run.indexes["example"].get_indexer(pd.Index(np.unique(dictionary["top_example"].values)))
    known = np.sort(known[known >= 0])
    most = min(len(known), n_top if grid else -(-n_top // n_cell))
    top = known[np.linspace(0, len(known) - 1, most).astype(int)]
    tested_on = np.sort(np.concatenate(problems_of(dictionary, run, settings.max_problems, settings.seed)))
    return [Reading(part.isel(example=top)), Reading(part.isel(example=tested_on), home / n_cell)]


def probe_steps(dictionary: xr.Dataset, n_cell: int, n_feature: int, settings: "FeatureSettings") -> list[Step]:
    """Codes of the problems on both sides of the split at every place, and shuffles of every feature's problems."""
    n, rng = settings.max_problems, np.random.default_rng(0)
    pre = rng.standard_normal((2 * n, dictionary.sizes["feature"]), dtype="float32")
    bias, kind = np.zeros(pre.shape[1], dtype="float32"), str(dictionary.attrs["activation"])
    codes, none = rng.standard_normal((n, TIMED), dtype="float32"), np.zeros(TIMED, dtype=int)
    side = Values(["one"], np.arange(n), np.arange(n)[:, None] % 2 == 0)
    return [
        (n_cell, partial(active_codes, pre, bias, bias, kind, int(dictionary.attrs["k"]))),
        (n_feature / TIMED, partial(tested, codes, [side], none, none, none + 1, settings.permutations, 0)),
    ]


def page_steps(n_token: int, n_feature: int, settings: "FeatureSettings") -> list[Step]:
    """The largest and smallest logits of every feature."""
    made_up = np.random.default_rng(0).standard_normal((TIMED, n_token), dtype="float32")
    return [(n_feature / TIMED, partial(ends, made_up, settings.tokens))]
