"""What patching did to the answers: outcomes, recovery of the logit difference, how many thoughts it takes."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import xarray as xr

from extract.reenter.statistics import first_that_wins
from extract.reenter.sweep import Condition
from schemas import Scoring
from schemas.problem_sums import problem_of
from schemas.resampling import mean_interval, way_interval
from schemas.scoring import OUTCOMES
from schemas.statistics import adjust, mcnemar_exact, mean_share, share_interval
from schemas.wording import interval_columns

GIVEN = {"corrupted": "clean_answer", "clean": "corrupted_answer"}
"""The giving half's answer, by the half that is changed."""


def with_outcomes(
    swept: xr.Dataset,
    answers: Mapping[str, Sequence[str]],
    ceiling: np.ndarray,
    scoring: Scoring,
    seed: int,
    *,
    into: str = "corrupted",
) -> xr.Dataset:
    """Add outcomes and their shares, recovery of the logit difference, and tests against the untouched run.

    Parameters
    ----------
    swept
        Of :func:`extract.reenter.sweep.sweep` over the halves that are changed.
    answers
        Answers ``clean`` and ``corrupted``, by example.
    ceiling
        Logit difference ``(example,)`` of the giving halves untouched.
    scoring
        How the answer in a text is read.
    seed
        Of the bootstrap.
    into
        Half that is changed.
    """
    pairs = [
        (scoring.gold(clean), scoring.gold(other))
        for clean, other in zip(answers["clean"], answers["corrupted"], strict=True)
    ]
    texts = swept["generated_text"].values
    outcome = np.empty(texts.shape, dtype=object)
    outcome_of = cache(scoring.outcome)
    for (row, index), text in np.ndenumerate(texts):
        clean, corrupted = pairs[index]
        outcome[row, index] = outcome_of(str(text), clean=clean, corrupted=corrupted)
    problem = problem_of(swept)
    kinds = np.stack([outcome == name for name in OUTCOMES], axis=1)
    low, high = share_interval(kinds, np.ones_like(kinds), problem)
    given = outcome == GIVEN[into]
    p = np.array([mcnemar_exact(given[0], row, problem).p for row in given])
    tested = swept["control"].values.astype(str) == ""
    difference = swept["logit_difference"].values
    columns = {"p": p, "p_holm": adjust(p, family=tested)}
    columns |= interval_columns("logit_difference", mean_interval(difference, seed, problem), "_mean")
    columns |= interval_columns("recovery", way_interval(difference, difference[0], ceiling, seed, problem))
    columns |= interval_columns("kl", mean_interval(swept["kl"].values, seed, problem), "_mean")
    if "sample_answer" in swept:
        giver = scoring.column(pair[into == "clean"] for pair in pairs)
        drawn = scoring.equal(swept["sample_answer"].values, giver[None, None, :]).mean(1)
        columns |= interval_columns("sample_given", mean_share(drawn, problem), "_mean")
    shares = interval_columns("share", (kinds.mean(-1), low, high))
    return (
        swept.assign(
            {
                "outcome": (("condition", "example"), outcome),
                **{name: (("condition", "outcome_kind"), values) for name, values in shares.items()},
                **{name: ("condition", values) for name, values in columns.items()},
            }
        )
        .assign_coords(outcome_kind=np.array(OUTCOMES, dtype=object))
        .assign_attrs(giving_logit_difference=float(np.nanmean(ceiling)))
    )


def with_n_that_wins(
    result: xr.Dataset, conditions: Sequence[Condition], seed: int, *, into: str = "corrupted"
) -> xr.Dataset:
    """Add how many first thoughts it takes, by site and layer."""
    outcome = result["outcome"].values
    series: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, condition in enumerate(conditions):
        labels = condition.labels
        if labels["kind"] == "first" and not labels["control"]:
            series.setdefault((labels["site"], labels["layer"]), []).append((labels["n"], index + 1))
    problem = problem_of(result)
    wins = []
    for numbered in series.values():
        counts, rows = zip(*sorted(numbered), strict=True)
        outcomes = outcome[list(rows)]
        wins.append(first_that_wins(outcomes == GIVEN[into], outcomes == f"{into}_answer", counts, seed, problem))
    columns = {"n_that_wins": "n", "n_that_wins_low": "n_low", "n_that_wins_high": "n_high", "never_wins": "never"}
    return result.assign(
        {name: ("series", np.array([win[key] for win in wins])) for name, key in columns.items()}
    ).assign_coords(
        series_site=("series", np.array([site for site, _ in series], dtype=object)),
        series_layer=("series", np.array([layer for _, layer in series])),
    )
