"""Which problems something is fitted on and which it is tried on, and which thought carries which step of a chain."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from extract.reenter.retelling import Chains
from extract.reenter.searching import Searches, has_searches
from extract.reenter.sites import EVERY, refuse_layers, site_layers, where_of
from extract.reenter.steering.directions import split_half
from extract.reenter.target import Target
from extract.reenter.values import StoredValues
from schemas import UsageError, check_positions, nearest
from schemas.scoring import is_value

READ = 0.5
"""Share of the problems in which a thought must read as a step's result to be taken for its carrier."""


class Place(NamedTuple):
    """Where a step of the chain is carried."""

    site: str
    layer: int
    """-1 for ``latent_embedding``."""
    position: str
    step: int

    def __str__(self) -> str:
        """As conditions are named."""
        layer = "" if self.layer == EVERY else f" {self.layer}"
        return f"{self.site}{layer} {self.position} step {self.step}"

    @property
    def labels(self) -> dict[str, str | int]:
        """Coordinates of a condition; ``changed`` is the position."""
        return {"site": self.site, "layer": self.layer, "changed": self.position, "step": self.step}


@dataclass(slots=True)
class Trial:
    """A run in two halves of its problems."""

    target: Target
    """Over all of the run."""
    fitted: np.ndarray
    """Rows ``(row,)`` of one half."""
    tried: np.ndarray
    """Rows ``(row,)`` of the other, of the examples asked for."""
    chains: Chains | Searches
    """What the rest of each problem makes of another result."""

    @property
    def examples(self) -> list[int]:
        """Labels of the examples that are tried."""
        return [int(label) for label in self.target.data["example"].values[self.tried]]

    def column(self, place: Place) -> np.ndarray:
        """Stored values ``(row, hidden)`` of all of the run at a place."""
        return self.target.values.column(place.site, place.layer, place.position)


def open_trial(target: Target, seed: int) -> Trial:
    """Halve the problems of a run; of the half that is tried, only the examples that the target has.

    Raises
    ------
    UsageError
        If a half is empty, or nothing says what the rest of a problem makes of another result.
    """
    searched = target.scoring.kind != "number"
    if searched and not has_searches(target.data):
        raise UsageError(
            f"answers of {target.run} are of kind {target.scoring.kind} and its problems carry no graphs, so nothing"
            " says what the rest of a problem makes of another result; chains of numbers and graphs like ProsQA's do"
        )
    asked = target.data["example"].values
    data = target.lake[target.run] if target.lake is not None else target.data
    whole = replace(target, data=data, values=StoredValues(data, target.reasoner), _likeliest={})
    fitted = split_half(data, seed)
    tried = np.flatnonzero(~fitted & np.isin(data["example"].values, asked))
    if not fitted.any() or not len(tried):
        raise UsageError(
            f"{target.run}: of {len(asked)} examples {len(tried)} are left to try what is fitted on {int(fitted.sum())}"
            " others of the run; ask for more with --limit"
        )
    return Trial(
        target=whole, fitted=np.flatnonzero(fitted), tried=tried, chains=Searches(data) if searched else Chains(data)
    )


def carried_share(trial: Trial, site: str, position: str) -> np.ndarray:
    """How often a position reads as each step's result ``(step,)``, among problems that go on after that step."""
    target, chains = trial.target, trial.chains
    before = ["bot", *target.thoughts]
    source = before[before.index(position) - 1] if site == "latent_embedding" else position
    read = token_values(trial)[target.likeliest_tokens(source)]
    steps = np.arange(chains.result.shape[1])
    goes_on = steps[None, :] < chains.n_step[:, None] - 1
    same = (read[:, None] == chains.result) & goes_on & is_value(chains.result)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(same.sum(0) / goes_on.sum(0)))


def token_values(trial: Trial) -> np.ndarray:
    """Result of a step ``(token,)`` that each token of the vocabulary is: a number, or a word of the graphs."""
    return trial.chains.values_of([text.strip() for text in trial.target.reasoner.token_strings])


def places_of(
    trial: Trial, site: str, layers: Sequence[int] | None, positions: Sequence[str] | None, step: int | None
) -> list[Place]:
    """Places to work at: positions asked for, or thoughts that read as a step's result, with that step.

    Raises
    ------
    UsageError
        If a position carries no step and none was named, or nothing reads as a result.
    """
    target = trial.target
    refuse_layers([site], layers)
    if not target.thoughts and (positions is None or site == "latent_embedding"):
        raise UsageError(
            f"{target.run} has no thoughts (protocol {target.reasoner.protocol.name}), so nothing is fed there; its"
            f" states can be changed, with --site hidden_state --positions {target.reasoner.places.middle[-1]}"
        )
    if positions is not None:
        check_positions(positions, target.reasoner.places)
        known = target.thoughts if site == "latent_embedding" else target.reasoner.places.middle
        if strangers := [position for position in positions if position not in known]:
            raise UsageError(
                f"a result is looked for at {', '.join(known)}, not at {strangers[0]}{nearest(strangers[0], known)}"
            )
    places = []
    for position in positions or target.thoughts:
        if step is not None:
            places.append((position, step))
            continue
        share = carried_share(trial, site, position)
        if len(share) and share.max() >= READ:
            places.append((position, int(share.argmax())))
        elif positions is not None:
            best = f"step {int(share.argmax())} in {share.max():.0%} of the problems" if len(share) else "no step"
            raise UsageError(
                f"{target.run}: {position} reads most often as {best}; say which step is meant with --step"
            )
    if not places:
        raise UsageError(
            f"no thought of {target.run} reads as a step's result in half of the problems; say where and which with"
            " --positions and --step"
        )
    if step is not None and not 0 <= step < trial.chains.result.shape[1] - 1:
        raise UsageError(
            f"--step is {step}; chains of {target.run} go on after steps 0 to {trial.chains.result.shape[1] - 2}"
        )
    chosen = site_layers(target, site, layers, together=False)
    return [Place(site, layer, position, carried) for layer in chosen for position, carried in places]


def where(target: Target, place: Place) -> dict[str, Any]:
    """Site, layers and positions of an intervention at a place."""
    return {**where_of(target, place.site, place.layer), "positions": (place.position,)}


def give(trial: Trial, name: str, vectors: np.ndarray) -> None:
    """Name vectors ``(tried, hidden)`` that interventions add or write, one for every example that is tried."""
    values = trial.target.values
    array = xr.DataArray(vectors.astype(np.float32), dims=("example", "hidden"), coords={"example": trial.examples})
    values.directions = {**values.directions, name: array}
