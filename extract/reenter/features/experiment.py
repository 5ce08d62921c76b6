"""Each feature's part taken out of the state where it fires most, and what that does to the answer."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from extract.reenter.features.command import FeatureEffectSettings
from extract.reenter.features.firing import Firing, TakenOut, dictionary_of, firings, names_of, vectors_of
from extract.reenter.sites import where_of
from extract.reenter.statistics import by_problem, problem_of
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError
from schemas.statistics import adjust, mcnemar_exact, mean_interval, share_interval

SELF = "self (forward)"


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
        interval; ``p_kl``, Wilcoxon's signed-rank test of the difference by problem; ``logprob_change`` of the gold
        answer with its interval; ``broken``, share of the right answers that turn wrong (Wilson), ``broken_random``,
        and ``p_broken``, McNemar's exact test of right answers against those under the first random direction.
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
    measured = _by_feature(target, swept, by_place, sae.sizes["feature"], settings.draws)
    decoder_length = np.linalg.norm(taken.vectors[0], axis=1)
    out = _figures(measured, decoder_length, problem_of(swept), settings.seed)
    out = out.assign_coords(feature=sae["feature"].values[out["feature"].values])
    return out.assign_attrs(
        self_kl=float(np.nanmax(np.abs(swept["kl"].sel(condition=SELF).values))),
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


def _by_feature(
    target: Target, swept: xr.Dataset, by_place: Sequence[Firing], n_feature: int, draws: int
) -> dict[str, np.ndarray]:
    """What was measured as ``(feature, example)``, NaN where a feature does not fire; of random directions by draw."""
    right = target.scoring.equal(swept["predicted_answer"].values, target.gold[None, :])
    logprob = swept["answer_logprob"].values[:, 0]
    measures = {"kl": swept["kl"].values, "logprob": logprob - logprob[:1], "right": right.astype(float)}
    number = {str(name): index for index, name in enumerate(swept["condition"].values)}
    shape = 1 + draws, n_feature, swept.sizes["example"]
    out = {name: np.full(shape, np.nan) for name in measures}
    out["code"] = np.full(shape[1:], np.nan)
    layer, position = np.full(n_feature, -1), np.full(n_feature, "", dtype=object)
    for firing in by_place:
        for slot in range(firing.feature.shape[1]):
            example = np.flatnonzero(firing.feature[:, slot] >= 0)
            feature = firing.feature[example, slot]
            out["code"][feature, example] = firing.code[example, slot]
            layer[feature], position[feature] = firing.layer, firing.position
            for draw, name in enumerate(names_of(firing, slot, draws)):
                for measure, values in measures.items():
                    out[measure][draw, feature, example] = values[number[name], example]
    return out | {"before": right[0], "layer": layer, "position": position}


def _figures(measured: dict[str, np.ndarray], decoder_length: np.ndarray, problem: np.ndarray, seed: int) -> xr.Dataset:
    """Figures of the features that fire, with intervals and tests over problems."""
    fires = ~np.isnan(measured["code"])
    kept = np.flatnonzero(fires.any(1))
    fires = fires[kept]
    kl, logprob, right = (measured[name][:, kept] for name in ("kl", "logprob", "right"))
    random = kl[1:].mean(0)
    before = fires & measured["before"][None, :]
    broken = before[None] & (right == 0)
    columns: dict[str, np.ndarray] = {
        "n": fires.sum(1), "n_problem": np.array([len(np.unique(problem[row])) for row in fires]),
        "moved": np.nanmean(np.abs(measured["code"][kept]), axis=1) * decoder_length[kept], "n_right": before.sum(1),
    }  # fmt: skip
    for name, values in (("kl", kl[0]), ("kl_more", kl[0] - random), ("logprob_change", logprob[0])):
        columns |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values, seed, problem), strict=True))
    columns["kl_random"] = np.nanmean(random, axis=1)
    with np.errstate(invalid="ignore"):
        columns["broken"], columns["broken_random"] = (
            each.sum(-1) / before.sum(1) for each in (broken[0], broken[1:].mean(0))
        )
    columns["broken_low"], columns["broken_high"] = share_interval(broken[0], before, problem)
    tests = {"p_kl": np.full(len(kept), np.nan), "p_broken": np.full(len(kept), np.nan)}
    for index, row in enumerate(fires):
        more = by_problem((kl[0, index] - random[index])[row], problem[row])
        if (more != 0).sum() > 1:
            tests["p_kl"][index] = stats.wilcoxon(more[more != 0]).pvalue
        tests["p_broken"][index] = mcnemar_exact(right[1, index, row] == 1, right[0, index, row] == 1, problem[row]).p
    for name, p in tests.items():
        columns |= {name: p, f"{name}_holm": adjust(p)}
    out = xr.Dataset({name: ("feature", values) for name, values in columns.items()}, coords={"feature": kept})
    for name in ("kl", "kl_random", "kl_more", "logprob_change"):
        out[name].attrs["units"] = "nat"
    return out.assign_coords({name: ("feature", measured[name][kept]) for name in ("layer", "position")})
