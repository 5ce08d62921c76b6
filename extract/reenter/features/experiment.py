"""Each feature's part taken out of the state where it fires most, and what that does to the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats

from extract.reenter.features.command import FeatureEffectSettings
from extract.reenter.features.firing import BLOCK, Firing, TakenOut, dictionary_of, firings, names_of, vectors_of
from extract.reenter.sites import where_of
from extract.reenter.statistics import by_problem, problem_of
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError
from schemas.statistics import adjust, mcnemar_exact, mean_interval, share_interval

SELF = "self (forward)"
ROUNDING = 1e-6
"""Nat below which a difference of two effects is rounding of float32: it is no difference."""


def feature_effects(target: Target, settings: FeatureEffectSettings | None = None) -> xr.Dataset:
    """Take each feature's part, code times decoder direction, out of the states of the examples on which it fires.

    Each feature is taken out at its own place, the layer and position where it fires most often, one at a time: what
    the first of several changes does to a later state never mixes with the code that was stored for it. A condition
    takes a different feature out of every example, so that the cost is that of the codes which are not zero. Random
    directions as long as the decoder's take its place with the same code: they move the state as far.

    Parameters
    ----------
    target
        Run and model.
    settings
        Which dictionary, features and places.

    Returns
    -------
    xr.Dataset
        Along ``feature``, those that fire on the examples: ``layer`` and ``position``, where it is taken out (-1: the
        vector fed); ``n``, ``n_problem``, examples and problems on which it fires; ``moved``, mean length of its part;
        ``kl`` with ``_low``, ``_high`` (nat, of the untouched distribution at the answer from the changed one;
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
    if target.lake is None:
        raise UsageError(f"{target.run} is of no lake, so there is no stored dictionary of it")
    sae = dictionary_of(target.lake, target.run, settings.sae)
    by_place = firings(target, sae, settings)
    taken = TakenOut(target.data["example"].values, vectors_of(sae, settings.draws, settings.seed))
    target.values.directions = taken
    swept = target.sweep(_conditions(target, by_place, taken, settings.draws))
    measured = _measured(target, swept, by_place, settings.draws)
    self_kl = float(np.nanmax(np.abs(swept["kl"].sel(condition=SELF).values)))
    lengths = np.linalg.norm(taken.vectors[0], axis=1)
    out = _figures(measured, lengths, problem_of(swept), max(ROUNDING, 10 * self_kl), settings.seed)
    out = out.assign_coords(feature=sae["feature"].values[out["feature"].values])
    return out.assign_attrs(
        self_kl=self_kl,
        dictionary=str(sae.attrs.get("fingerprint", "")), n_feature=sae.sizes["feature"],
        n_condition=swept.sizes["condition"], n_example=swept.sizes["example"], n_draw=settings.draws,
    )  # fmt: skip


def _conditions(target: Target, by_place: Sequence[Firing], taken: TakenOut, draws: int) -> list[Condition]:
    """A condition for each slot of each place and each direction, and one in which states replace themselves."""
    conditions = []
    for firing in by_place:
        place = {**where_of(target, firing.site, firing.layer), "positions": (firing.position,)}
        for slot in range(firing.feature.shape[1]):
            feature, code = firing.feature[:, slot], firing.code[:, slot]
            for draw, name in enumerate(names_of(firing, slot, draws)):
                taken.add(name, feature, code, draw)
                change = Intervention(operation="add", direction=name, **place)
                masks = {firing.position: feature >= 0}
                conditions.append(Condition(name=name, interventions=(change,), where=masks))
    first = by_place[0]
    place = {**where_of(target, first.site, first.layer), "positions": (first.position,)}
    itself = Intervention(operation="replace", donor="forward", **place)
    return [*conditions, Condition(name=SELF, interventions=(itself,))]


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
    place: dict[int, tuple[int, str]]
    """Layer and position of each feature."""


def _measured(target: Target, swept: xr.Dataset, by_place: Sequence[Firing], draws: int) -> Measured:
    """The measures of a sweep, a column for each time that a feature was taken out."""
    right = target.scoring.equal(swept["predicted_answer"].values, target.gold[None, :])
    logprob = swept["answer_logprob"].values[:, 0]
    measures = {"kl": swept["kl"].values, "logprob": logprob - logprob[:1], "right": right}
    number = {str(name): index for index, name in enumerate(swept["condition"].values)}
    feature, example, code = [], [], []
    place: dict[int, tuple[int, str]] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for firing in by_place:
        for slot in range(firing.feature.shape[1]):
            rows = np.flatnonzero(firing.feature[:, slot] >= 0)
            own = firing.feature[rows, slot]
            place |= dict.fromkeys(own.tolist(), (firing.layer, firing.position))
            feature.append(own)
            example.append(rows)
            code.append(firing.code[rows, slot])
            condition = np.array([number[name] for name in names_of(firing, slot, draws)])
            for name, values in measures.items():
                columns[name].append(values[np.ix_(condition, rows)])
    order = np.argsort(np.concatenate(feature), kind="stable")
    joined = {name: np.concatenate(parts, axis=1)[:, order] for name, parts in columns.items()}
    of_time = [np.concatenate(parts)[order] for parts in (feature, example, code)]
    return Measured(
        feature=of_time[0], example=of_time[1], code=of_time[2], kl=joined["kl"], logprob=joined["logprob"],
        right=joined["right"], before=right[0], place=place,
    )  # fmt: skip


def _figures(
    measured: Measured, decoder_length: np.ndarray, problem: np.ndarray, rounding: float, seed: int
) -> xr.Dataset:
    """Figures of the features that fire, with intervals and tests over problems; some features at a time."""
    features = np.unique(measured.feature)
    parts = []
    for start in range(0, len(features), BLOCK):
        first, last = features[start], features[min(start + BLOCK, len(features)) - 1]
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
    kl, logprob, right = (spread(each[:, times]) for each in (measured.kl, measured.logprob, measured.right))
    fires, random = ~np.isnan(size), kl[1:].mean(0)
    before = fires & measured.before[None, :]
    broken = before[None] & (right == 0)
    columns: dict[str, np.ndarray] = {
        "n": fires.sum(1), "n_problem": np.array([len(np.unique(problem[line])) for line in fires]),
        "moved": np.nanmean(size, axis=1) * decoder_length[features], "n_right": before.sum(1),
    }  # fmt: skip
    for name, values in (("kl", kl[0]), ("kl_more", kl[0] - random), ("logprob_change", logprob[0])):
        columns |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values, seed, problem), strict=True))
    columns["kl_random"] = np.nanmean(random, axis=1)
    with np.errstate(invalid="ignore"):
        columns["broken"], columns["broken_random"] = (
            each.sum(-1) / before.sum(1) for each in (broken[0], broken[1:].mean(0))
        )
    columns["broken_low"], columns["broken_high"] = share_interval(broken[0], before, problem)
    tests = np.full((2, len(features)), np.nan)
    for index, line in enumerate(fires):
        more = by_problem((kl[0, index] - random[index])[line], problem[line])
        more = more[np.abs(more) > rounding]
        tests[0, index] = stats.wilcoxon(more).pvalue if len(more) else 1.0
        tests[1, index] = mcnemar_exact(right[1, index, line] == 1, right[0, index, line] == 1, problem[line]).p
    columns |= {"p_kl": tests[0], "p_broken": tests[1]}
    places = [measured.place[int(feature)] for feature in features]
    labels = {"layer": np.array([layer for layer, _ in places]),
              "position": np.array([position for _, position in places], dtype=object)}  # fmt: skip
    return xr.Dataset(
        {name: ("feature", values) for name, values in columns.items()},
        coords={"feature": features, **{name: ("feature", values) for name, values in labels.items()}},
    )
