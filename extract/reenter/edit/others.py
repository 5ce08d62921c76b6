"""What an edit does to the other thoughts: those that should follow it, and those that should not."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from extract.reenter.trial import Trial, is_value, token_values
from extract.reenter.wanted import Wanted
from schemas.statistics import wilson_interval


def with_others(trial: Trial, result: xr.Dataset, wanted: Sequence[Wanted | None]) -> xr.Dataset:
    """Add how the states from an edit on read.

    A state that reads as a later step's result should read as what the chain makes of it after the edit; every other
    one should read as before.

    Parameters
    ----------
    trial
        Run in two halves.
    result
        Of an observing sweep over the examples that are tried: ``state_token`` and ``state_flip(condition, position,
        example)``.
    wanted
        What was put in, by condition; ``None``: nothing.

    Returns
    -------
    xr.Dataset
        By condition and position ``n_follow`` states that should change and ``follow_share`` of them that read as they
        should; ``n_side`` others and ``side_share`` of them that read otherwise than before; Wilson intervals
        ``_low``, ``_high``. States before the edit, and examples that do not count, are left out.
    """
    target, chains = trial.target, trial.chains
    values, positions = token_values(trial), [str(label) for label in result["position"].values]
    offsets = [target.reasoner.places.offset(position) for position in positions]
    tokens = result["state_token"].values.astype(int)
    flipped, counted = result["state_flip"].values.astype(bool), result["counted"].values
    own = chains.result[trial.tried]
    before = values[tokens[0]]  # (position, example)
    count = np.zeros((4, *tokens.shape[:2]))
    for index, want in enumerate(wanted):
        if want is None:
            continue
        start = target.reasoner.places.offset(want.place.position)
        later = np.arange(own.shape[1])[None, :] >= want.place.step
        for place, offset in enumerate(offsets):
            if offset < start:
                continue
            # Of steps with the same result the latest; what the chain makes of it may be the same as before.
            carried = (own == before[place][:, None]) & later & is_value(own)
            step = own.shape[1] - 1 - np.flip(carried, 1).argmax(1)
            told = np.where(carried.any(1), want.told[np.arange(len(own)), step], chains.none)
            use = counted[index] & want.counted
            should = use & is_value(told) & (told != before[place])
            side = use & ~should
            count[0, index, place], count[1, index, place] = should.sum(), side.sum()
            count[2, index, place] = (should & (values[tokens[index, place]] == told)).sum()
            count[3, index, place] = (side & flipped[index, place]).sum()
    along = ("condition", "position")
    out = result.assign(n_follow=(along, count[0]), n_side=(along, count[1]))
    for name, total, part in (("follow", count[0], count[2]), ("side", count[1], count[3])):
        low, high = wilson_interval(part, total)
        with np.errstate(invalid="ignore"):
            share = part / total
        out = out.assign({f"{name}_share": (along, share), f"{name}_low": (along, low), f"{name}_high": (along, high)})
    return out
