"""Values put in place of a step's result, and what the rest of the chain then comes to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extract.reenter.trial import Place, Trial
from schemas import UsageError, number_text
from schemas.scoring import is_value

Value = float | str
"""A result of a step, or an operator."""
FEW = 3
"""Examples that a value must have in the half that fits are made on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is put in at one place for every example that is tried."""

    place: Place
    own: np.ndarray
    """Value ``(tried,)`` that the chain has there."""
    value: np.ndarray
    """Value ``(tried,)`` put in; empty or NaN where none can be."""
    donor: np.ndarray
    """Row ``(tried,)`` of the run of a problem with that value, -1: none."""
    told: np.ndarray
    """Results ``(tried, step)`` that the chain then comes to."""
    answer: np.ndarray
    """Answer ``(tried,)`` that the chain then comes to, NaN or empty: none."""

    @property
    def counted(self) -> np.ndarray:
        """Examples ``(tried,)`` in which something can be put in."""
        return is_value(self.answer)


def labels_of(trial: Trial, quantity: str, step: int) -> np.ndarray:
    """Values ``(row,)`` that the chains of the run have at a step that is not their last; NaN or empty where none."""
    chains = trial.chains
    goes_on = chains.n_step > step + 1
    labels = chains.operation if quantity == "operation" else chains.result
    return np.asarray(np.where(goes_on, labels[:, step], "" if quantity == "operation" else chains.none))


def fitted_at(trial: Trial, place: Place, quantity: str = "intermediate_result") -> tuple[np.ndarray, np.ndarray]:
    """Rows ``(row,)`` of the half that fits are made on whose chains have a value at a place, and these values."""
    labels = labels_of(trial, quantity, place.step)[trial.fitted]
    known = is_value(labels)
    return trial.fitted[known], labels[known]


class NothingWantedError(UsageError):
    """At a place no chain comes to another answer."""


def draw_at(trial: Trial, places: Sequence[Place], **options: Any) -> tuple[dict[Place, Wanted], str]:
    """What is wanted at each place, see :func:`draw_wanted`, and the places that are left out because nothing is.

    Raises
    ------
    UsageError
        If nothing is wanted anywhere, or an option cannot be.
    """
    wants: dict[Place, Wanted] = {}
    passed_over: list[str] = []
    for place in places:
        try:
            wants[place] = draw_wanted(trial, place, **options)
        except NothingWantedError as error:
            passed_over.append(str(error))
    if not wants:
        raise UsageError("; ".join(passed_over))
    return wants, "; ".join(passed_over)


def draw_wanted(
    trial: Trial, place: Place, *, quantity: str = "intermediate_result", to: Value | None = None, seed: int = 0
) -> Wanted:
    """Draw a new value for every example that is tried, and a problem of the other half that has this value.

    An example counts if the model answered it rightly and its chain comes to another answer with the new value. At
    least ``FEW`` problems of the other half must have that value.

    Parameters
    ----------
    trial, place
        Where.
    quantity
        ``intermediate_result`` or ``operation`` of the place's step.
    to
        The value for all examples; by default one of those possible is drawn for each.
    seed
        Of what is drawn.

    Raises
    ------
    UsageError
        If no example is left.
    """
    chains, data, scoring = trial.chains, trial.target.data, trial.target.scoring
    labels = labels_of(trial, quantity, place.step)
    fitted, fitted_labels = fitted_at(trial, place, quantity)
    values, counts = np.unique(fitted_labels, return_counts=True)
    possible = values[counts >= FEW]
    if to is not None and to not in possible:
        listed = [number_text(known) if isinstance(known, float) else str(known) for known in possible.tolist()]
        raise UsageError(
            f"{to!r} is not a value of step {place.step} in at least {FEW} problems that fits are made on; there are"
            f" {', '.join(listed)}"
        )
    n, gold, correct = len(trial.tried), trial.target.gold, np.asarray(data["correct"].values)
    if not correct[trial.tried].any():
        raise UsageError(
            f"of {n} examples of {trial.target.run} that are tried none is answered rightly; what an answer becomes"
            " with another value is known of right ones alone"
        )
    value, donor = np.full(n, "" if quantity == "operation" else chains.none, dtype=labels.dtype), np.full(n, -1)
    answer = np.full(n, chains.none, dtype=chains.result.dtype)
    told = np.full((n, chains.result.shape[1]), chains.none, dtype=chains.result.dtype)
    for index, row in enumerate(trial.tried.tolist()):
        if not correct[row] or not is_value(labels[row : row + 1])[0]:
            continue
        generator = np.random.default_rng([seed, row, place.step, 47])
        for draw in [to] if to is not None else generator.permutation(possible).tolist():
            changed: dict[str, Any] = {"sign": str(draw)} if quantity == "operation" else {"value": draw}
            results = None if draw == labels[row] else chains.retell(row, place.step, **changed)
            if results is None or scoring.match(chains.answer_of(row, results), gold[row]):
                continue
            value[index], told[index], answer[index] = draw, results, chains.answer_of(row, results)
            donor[index] = generator.choice(fitted[fitted_labels == draw])
            break
    if not is_value(answer).any():
        raise NothingWantedError(
            f"{place}: no chain of {trial.target.run} comes to another answer with"
            f" {'any value' if to is None else repr(to)} there"
        )
    return Wanted(place, labels[trial.tried], value, donor, told, answer)
