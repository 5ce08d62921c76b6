"""Conditions of an experiment in two halves, and whether answers are right, or those that are wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.draws import Draws
from extract.reenter.sweep import Condition
from extract.reenter.trial import Trial
from schemas import Intervention, Scoring
from schemas.problem_sums import problem_of
from schemas.scoring import is_value
from schemas.statistics import adjust, mcnemar_exact, mean_share, share_interval
from schemas.wording import interval_columns


def name_of(labels: Mapping[str, Any]) -> str:
    """Name of the condition with these coordinates."""
    return " ".join(map(str, labels.values()))


@dataclass(slots=True)
class Cells:
    """Conditions over the examples that are tried, with what is counted, wanted and tested of each."""

    trial: Trial
    conditions: list[Condition] = field(default_factory=list)
    counted: list[np.ndarray] = field(default_factory=list)
    answer: list[np.ndarray] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    """Name of the condition that each is tested against; empty: none."""

    def add(
        self, interventions: Sequence[Intervention], labels: Mapping[str, Any], counted: np.ndarray, *,
        answer: np.ndarray | None = None, where: Sequence[str] = (), against: str = "",
    ) -> str:  # fmt: skip
        """Add a condition with these coordinates, and return its name (:func:`name_of`).

        Something is said of the ``counted`` examples ``(tried,)``, of which alone the positions in ``where`` are
        changed. ``answer`` ``(tried,)`` is wanted of them; ``against`` names the condition that this one is tested
        against.
        """
        name = name_of(labels)
        masks = dict.fromkeys(where, counted)
        self.conditions.append(Condition(name=name, interventions=tuple(interventions), labels=labels, where=masks))
        self.counted.append(counted)
        none = np.full(len(counted), self.trial.chains.none, dtype=self.trial.chains.result.dtype)
        self.answer.append(none if answer is None else np.where(counted, answer, none))
        self.against.append(against)
        return name

    def measure(self, *, observe: bool = False, seed: int = 0, draws: Draws | None = None) -> xr.Dataset:
        """Run the conditions; count right answers, wanted answers, and test both.

        Returns
        -------
        xr.Dataset
            Figures of :func:`extract.reenter.statistics.with_accuracy`. By condition and example ``wanted_answer`` and
            ``hit`` (it is given); by condition ``n_wanted``, ``hit_share`` and ``kept_share`` (the own answer is still
            given) with Wilson intervals ``_low``, ``_high``; ``p_hit`` and ``p_right``: exact McNemar of wanted, and of
            right, answers against those of the condition that it is tested against, on the same examples; each with
            ``_holm``, corrected over all conditions that are tested; of ``draws`` ``sample_hit(condition, example)``,
            the share that is the wanted answer, and its mean ``_mean`` with its interval ``_low``, ``_high``.
        """
        target, tried = self.trial.target, self.trial.tried
        counted = np.stack([np.ones(len(tried), dtype=bool), *self.counted])
        out = target.accuracy(self.conditions, seed=seed, rows=tried, counted=counted, observe=observe, draws=draws)
        answer = np.stack([np.full_like(self.answer[0], self.trial.chains.none), *self.answer])
        names = out["condition"].values.tolist()
        against = [-1, *(names.index(name) if name else -1 for name in self.against)]
        out = _with_hits(out, answer, against, target.scoring)
        if "sample_answer" in out:
            out = _with_drawn_hits(out, answer, target.scoring)
        return out.assign_attrs(n_fitted=len(self.trial.fitted), n_tried=len(tried))


def _with_hits(measured: xr.Dataset, answer: np.ndarray, against: Sequence[int], scoring: Scoring) -> xr.Dataset:
    """Add how often the answers ``(condition, example)`` that are wanted are given, and tests."""
    predicted, correct, counted = (measured[name].values for name in ("predicted_answer", "correct", "counted"))
    wanted = is_value(answer)
    hit = scoring.equal(predicted, answer) & wanted
    kept = scoring.equal(predicted, predicted[:1]) & wanted
    problem = problem_of(measured)
    p_hit, p_right = np.full((2, len(answer)), np.nan)
    for index, other in enumerate(against):
        if other < 0:
            continue
        use = wanted[index]
        if use.any():
            # What counts as a hit is what this condition wants, in the other as well.
            p_hit[index] = mcnemar_exact(
                scoring.equal(predicted[other], answer[index])[use], hit[index][use], problem[use]
            ).p
        use = counted[index]
        p_right[index] = mcnemar_exact(correct[other][use], correct[index][use], problem[use]).p
    n = wanted.sum(1)
    columns: dict[str, np.ndarray] = {"n_wanted": n}
    for name, p in (("p_hit", p_hit), ("p_right", p_right)):
        columns |= {name: p, f"{name}_holm": adjust(p)}
    for name, value in (("hit", hit), ("kept", kept)):
        with np.errstate(invalid="ignore"):
            columns[f"{name}_share"] = value.sum(1) / n
        columns[f"{name}_low"], columns[f"{name}_high"] = share_interval(value, wanted, problem)
    out = measured.assign({name: ("condition", value) for name, value in columns.items()})
    return out.assign(hit=(("condition", "example"), hit), wanted_answer=(("condition", "example"), answer))


def _with_drawn_hits(measured: xr.Dataset, answer: np.ndarray, scoring: Scoring) -> xr.Dataset:
    """Add how many of the drawn answers are those ``(condition, example)`` that are wanted."""
    hit = scoring.equal(measured["sample_answer"].values, answer[:, None]).mean(1)
    share = np.where(is_value(answer), hit, np.nan)
    figures = interval_columns("sample_hit", mean_share(share, problem_of(measured)), "_mean")
    out = measured.assign({name: ("condition", value) for name, value in figures.items()})
    return out.assign(sample_hit=(("condition", "example"), share))
