"""What an edit does to the other thoughts: those that should follow it, and those that should not."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from extract.reenter.trial import Trial, token_values
from extract.reenter.wanted import Wanted
from schemas.problem_sums import problem_of
from schemas.scoring import is_value
from schemas.statistics import share_interval


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
    problem, shape = problem_of(result), tokens.shape[:2]
    none = np.array([0, np.nan, np.nan, np.nan])[:, None, None]  # number, share, low, high
    shares = {name: none.repeat(shape[0], 1).repeat(shape[1], 2) for name in ("follow", "side")}
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
            kinds = {"follow": (should, values[tokens[index, place]] == told), "side": (side, flipped[index, place])}
            for name, (among, yes) in kinds.items():
                share = yes[among].mean() if among.any() else np.nan
                shares[name][:, index, place] = among.sum(), share, *share_interval(yes, among, problem)
    columns = {f"n_{name}": found[0] for name, found in shares.items()}
    for name, found in shares.items():
        columns |= {f"{name}_{end}": found[k] for k, end in enumerate(("share", "low", "high"), start=1)}
    return result.assign({name: (("condition", "position"), column) for name, column in columns.items()})
