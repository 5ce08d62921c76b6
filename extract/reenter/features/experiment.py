"""Each feature's part taken out of the state where it fires most, and what that does to the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from scipy import stats

from extract.reenter.features.command import FeatureEffectSettings
from extract.reenter.features.firing import (
    Firing,
    Home,
    TakenOut,
    dictionary_of,
    firing_at,
    homes_of,
    names_of,
    vectors_of,
)
from extract.reenter.sites import where_of
from extract.reenter.statistics import by_problem
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError
from schemas.problem_sums import problem_of
from schemas.resampling import mean_interval
from schemas.statistics import adjust, mcnemar_exact, share_interval
from schemas.wording import interval_columns

SELF = "self (forward)"
TOGETHER = 256
"""Examples that are swept together."""
CELLS = 2**17
"""Features times examples whose figures are computed together."""
ROUNDING = 1e-6
"""Nat below which a difference of two effects is rounding of float32: it is no difference."""


def feature_effects(target: Target, settings: FeatureEffectSettings | None = None) -> xr.Dataset:
    """Take each feature's part, code times decoder direction, out of the states of the examples on which it fires.

    Each feature is taken out at its own place, the layer and position where it fires most often, and one at a time, so
    that its stored code is that of the state it is taken out of. A condition takes a different feature out of each
    example: the cost grows with the number of codes that are not zero. The controls are random directions as long as
    the decoder's with the same code; they move the state as far.

    Returns
    -------
    xr.Dataset
        Along ``feature``, those that fire on the examples, by their number (of dictionaries of each cell, one
        cell's after another's): ``layer`` and ``position``, where it is taken out (-1: the vector fed); ``n``,
        ``n_problem``, examples and problems on which it fires; ``moved``, mean length of its part; ``kl`` with
        ``_low``, ``_high`` (nat, of the untouched distribution at the answer's first token from the changed one;
        bootstrap over problems), ``kl_random``, the same of random directions, ``kl_more``, the difference, with its
        interval; ``p_kl``, Wilcoxon's signed-rank test of the difference by problem, without those that are rounding (1
        where all are); ``logprob_change`` of the gold answer with its interval; ``broken``, share of the right answers
        that turn wrong (Wilson), ``broken_random``, and ``p_broken``, McNemar's exact test of right answers against
        those under the first random direction.
        ``p_.._holm`` are corrected over all features. ``attrs`` say what putting the state itself back does
        (``self_kl``, the most over examples).

    Raises
    ------
    MissingRunError
        If the run has no dictionary.
    UsageError
        If a feature or place is not there, or nothing fires.
    """
    settings = settings or FeatureEffectSettings()
    sae, homes = homes_for(target, settings)
    vectors = vectors_of(homes, settings.draws, settings.seed)
    parts = [_taken_out(target, part, vectors, settings.draws) for part in firings(target, homes)]
    measured = _joined(parts)
    if not len(measured.feature):
        raise UsageError(f"no feature asked for fires on the {target.data.sizes['example']} examples of {target.run}")
    self_kl = max(part.self_kl for part in parts)
    lengths, number = np.linalg.norm(vectors[0], axis=1), np.concatenate([home.number for home in homes])
    out = _figures(measured, lengths, problem_of(target.data), max(ROUNDING, 10 * self_kl), settings.seed)
    places = [(home.layer, home.position) for home in homes for _ in home.number]
    chosen = out["feature"].values
    out = out.assign_coords(
        feature=number[chosen],
        layer=("feature", np.array([places[number][0] for number in chosen])),
        position=("feature", np.array([places[number][1] for number in chosen], dtype=object)),
    ).sortby("feature")
    return out.assign_attrs(
        self_kl=self_kl, dictionary=str(sae.attrs.get("fingerprint", "")), scope=sae.attrs["scope"],
        n_feature=sae.sizes["feature"], n_condition=max(part.n_condition for part in parts),
        n_example=target.data.sizes["example"], n_draw=settings.draws,
    )  # fmt: skip


def homes_for(target: Target, settings: FeatureEffectSettings) -> tuple[xr.Dataset, list[Home]]:
    """The dictionary asked for, and where its features are taken out."""
    if target.lake is None:
        raise UsageError(f"{target.run} is of no lake, so there is no stored dictionary of it")
    sae = dictionary_of(target.lake, target.run, settings.sae)
    return sae, homes_of(target, sae, settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """Examples that are swept together, so that memory does not grow with their number; and what fires in them."""

    start: int
    """Row of the first of them."""
    examples: np.ndarray
    """Labels ``(example,)``."""
    firings: list[Firing]


def firings(target: Target, homes: Sequence[Home]) -> Iterator[Together]:
    """Which features fire where, some examples at a time."""
    firsts = np.cumsum([0, *(len(home.number) for home in homes)])
    labels = target.data["example"].values
    for start in range(0, len(labels), TOGETHER):
        examples = labels[start : start + TOGETHER]
        every = [firing_at(target, home, int(first), examples) for home, first in zip(homes, firsts, strict=False)]
        yield Together(start=start, examples=examples, firings=[one for one in every if one.feature.shape[1]])


def _conditions(target: Target, firings: Sequence[Firing], taken: TakenOut, draws: int) -> list[Condition]:
    """A condition for each slot of each place and each direction, and one in which states replace themselves."""
    conditions = []
    for firing in firings:
        home = firing.home
        place = {**where_of(target, home.site, home.layer), "positions": (home.position,)}
        for slot in range(firing.feature.shape[1]):
            feature, code = firing.feature[:, slot], firing.code[:, slot]
            for draw, name in enumerate(names_of(firing, slot, draws)):
                taken.add(name, feature, code, draw)
                change = Intervention(operation="add", direction=name, **place)
                conditions.append(Condition(name=name, interventions=(change,), where={home.position: feature >= 0}))
        if firing is firings[0]:
            itself = Intervention(operation="replace", donor="forward", **place)
            conditions.append(Condition(name=SELF, interventions=(itself,)))
    return conditions


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured each time that a feature was taken out of an example, by feature."""

    feature: np.ndarray
    """``(time,)``, in order."""
    example: np.ndarray
    """``(time,)``: row of the sweep."""
    code: np.ndarray
    """``(time,)``"""
    kl: np.ndarray
    """``(draw, time)``, of the feature itself first, then of random directions; so are the next two."""
    logprob: np.ndarray
    right: np.ndarray
    before: np.ndarray
    """``(example,)``: whether the untouched run is right."""
    n_condition: int
    self_kl: float
    """Nat by which putting a state itself back moves the answer at most."""


def _taken_out(target: Target, part: Together, vectors: np.ndarray, draws: int) -> Measured:
    """The measures of a sweep over some examples, a column for each time that a feature was taken out."""
    taken = TakenOut(part.examples, vectors)
    target.values.directions = taken
    n_example, n_part = target.data.sizes["example"], len(part.examples)

    def report(done: int, total: int) -> None:
        target.report(part.start + done * n_part // max(1, total), n_example)

    conditions = _conditions(target, part.firings, taken, draws)
    swept = replace(target, progress=report).sweep(conditions, examples=part.examples.tolist())
    gold = target.gold[part.start : part.start + n_part]
    right = target.scoring.equal(swept["predicted_answer"].values, gold[None, :])
    logprob = swept["answer_logprob"].values[:, 0]
    measures = {"kl": swept["kl"].values, "logprob": logprob - logprob[:1], "right": right}
    number = {str(name): index for index, name in enumerate(swept["condition"].values)}
    of_time: dict[str, list[np.ndarray]] = {"feature": [], "example": [], "code": []}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for firing in part.firings:
        for slot in range(firing.feature.shape[1]):
            rows = np.flatnonzero(firing.feature[:, slot] >= 0)
            of_time["feature"].append(firing.feature[rows, slot])
            of_time["example"].append(part.start + rows)
            of_time["code"].append(firing.code[rows, slot])
            condition = np.array([number[name] for name in names_of(firing, slot, draws)])
            for name, values in measures.items():
                columns[name].append(values[np.ix_(condition, rows)])
    empty = {"feature": np.empty(0, dtype=int), "example": np.empty(0, dtype=int), "code": np.empty(0)}
    return Measured(
        **{name: np.concatenate([empty[name], *arrays]) for name, arrays in of_time.items()},
        **{name: np.concatenate([np.empty((1 + draws, 0)), *arrays], axis=1) for name, arrays in columns.items()},
        before=right[0], n_condition=len(conditions) + 1,
        self_kl=float(np.nanmax(np.abs(swept["kl"].sel(condition=SELF).values))) if part.firings else 0.0,
    )  # fmt: skip


def _joined(parts: Sequence[Measured]) -> Measured:
    """The measures of all examples, ordered by feature."""
    feature = np.concatenate([part.feature for part in parts])
    order = np.argsort(feature, kind="stable")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts], axis=-1)[..., order]

    columns = {name: joined(name) for name in ("example", "code", "kl", "logprob", "right")}
    return Measured(
        feature=feature[order], **columns, before=np.concatenate([part.before for part in parts]),
        n_condition=max(part.n_condition for part in parts), self_kl=max(part.self_kl for part in parts),
    )  # fmt: skip


def _figures(
    measured: Measured, decoder_length: np.ndarray, problem: np.ndarray, rounding: float, seed: int
) -> xr.Dataset:
    """Figures of the features that fire, with intervals and tests over problems; some features at a time."""
    features = np.unique(measured.feature)
    parts, block = [], max(1, CELLS // len(problem))
    for start in range(0, len(features), block):
        first, last = features[start], features[min(start + block, len(features)) - 1]
        times = slice(*np.searchsorted(measured.feature, [first, last + 1]))
        parts.append(_block(measured, times, decoder_length, problem, rounding, seed))
    out = xr.concat(parts, "feature")
    for name in ("p_kl", "p_broken"):
        out[f"{name}_holm"] = ("feature", adjust(out[name].values))
    for name in ("kl", "kl_random", "kl_more", "logprob_change"):
        out[name].attrs["units"] = "nat"
    return out


def _block(
    measured: Measured, times: slice, decoder_length: np.ndarray, problem: np.ndarray, rounding: float, seed: int
) -> xr.Dataset:
    """Figures of the features taken out at some times."""
    features, row = np.unique(measured.feature[times], return_inverse=True)
    example = measured.example[times]
    shape = len(features), len(problem)

    def spread(values: np.ndarray) -> np.ndarray:
        """Values ``(.., time)`` as ``(.., feature, example)``, NaN where the feature does not fire."""
        dense = np.full((*values.shape[:-1], *shape), np.nan)
        dense[..., row, example] = values
        return dense

    size = spread(np.abs(measured.code[times]))
    kl, logprob, right = (spread(effect[:, times]) for effect in (measured.kl, measured.logprob, measured.right))
    fires, random = ~np.isnan(size), kl[1:].mean(0)
    before = fires & measured.before[None, :]
    broken = before[None] & (right == 0)
    columns: dict[str, np.ndarray] = {
        "n": fires.sum(1), "n_problem": np.array([len(np.unique(problem[line])) for line in fires]),
        "moved": np.nanmean(size, axis=1) * decoder_length[features], "n_right": before.sum(1),
    }  # fmt: skip
    for name, values in (("kl", kl[0]), ("kl_more", kl[0] - random), ("logprob_change", logprob[0])):
        columns |= interval_columns(name, mean_interval(values, seed, problem))
    columns["kl_random"] = np.nanmean(random, axis=1)
    with np.errstate(invalid="ignore"):
        columns["broken"] = broken[0].sum(-1) / before.sum(1)
        columns["broken_random"] = broken[1:].mean(0).sum(-1) / before.sum(1)
    columns["broken_low"], columns["broken_high"] = share_interval(broken[0], before, problem)
    tests = np.full((2, len(features)), np.nan)
    for index, line in enumerate(fires):
        more = by_problem((kl[0, index] - random[index])[line], problem[line])
        more = more[np.abs(more) > rounding]
        tests[0, index] = stats.wilcoxon(more).pvalue if len(more) else 1.0
        tests[1, index] = mcnemar_exact(right[1, index, line] == 1, right[0, index, line] == 1, problem[line]).p
    columns |= {"p_kl": tests[0], "p_broken": tests[1]}
    return xr.Dataset({name: ("feature", values) for name, values in columns.items()}, coords={"feature": features})
