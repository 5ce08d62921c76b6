"""What pages and probes of features take beside products: steps of them on made-up numbers that are timed."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyze.features.pages import ends
from analyze.features.probe import Values, tested
from schemas.codes import active_codes

if TYPE_CHECKING:
    from analyze.features.command import FeatureSettings

Step = tuple[float, Callable[[], object]]
TIMED = 16
"""Features whose largest logits are looked for, or that are tested, in a step."""


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
