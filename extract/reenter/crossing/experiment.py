"""Thoughts of rightly and of wrongly answered problems put into problems of both kinds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.attention.edges import find_hub
from extract.reenter.crossing.command import CrossSettings
from extract.reenter.sites import NOISE, alone_and_together, refuse_layers, self_controls, site_layers, where_of
from extract.reenter.sweep import Condition
from extract.reenter.target import Target
from schemas import Intervention, UsageError, check_positions
from schemas.problem_sums import problem_of
from schemas.resampling import mean_interval
from schemas.statistics import adjust, mcnemar_exact, share_interval, uncertain

OUTCOMES = {"right": "correct", "wrong": "wrong"}
"""Donor of an intervention by how the problem it comes from is answered."""
TWIN = "twin of the other outcome"


def cross(target: Target, settings: CrossSettings | None = None) -> xr.Dataset:
    """Patch thoughts of rightly answered problems into wrongly answered ones, and the reverse.

    Another problem's thoughts bring its numbers along, whether it was answered rightly or not. What right thoughts
    mend, or wrong ones break, is therefore the difference between the two kinds of donors on the same problems. Givers
    are right or wrong by the stored run, receivers by the untouched model.

    Parameters
    ----------
    settings
        By default the fed vectors, and the output of every block alone and of all at once, each thought alone and all
        together.

    Returns
    -------
    xr.Dataset
        ``condition`` with coordinates ``site``, ``layer`` (-1: all at once, or below all), ``group`` (the position, or
        ``all``), ``donor`` (``right``, ``wrong``; of pairs of which the model answers one half rightly also the other
        half, on those alone) and ``control``; figures as :func:`extract.reenter.statistics.with_accuracy` gives them,
        with strata ``right`` and ``wrong``; ``follows(condition, example)``: whether the donor's own answer is given.
        Along ``place`` (a site, layer and group), ``receiver`` and ``giver`` (how problems are answered): ``crossed``,
        the share that is right, with its interval ``_low``, ``_high``, and ``followed``, the share that gives the
        donor's answer; without ``giver``: ``crossed_difference`` of the two givers with its bootstrap interval,
        ``crossed_p`` (exact McNemar) and ``crossed_p_holm`` over all places and receivers; ``n_receiver(receiver)``.

    Raises
    ------
    UsageError
        If there are not two problems of each kind, or a layer or position is not there.
    """
    settings = settings or CrossSettings()
    target.need_thoughts("cross")
    refuse_layers(settings.sites, settings.layers)
    positions = list(dict.fromkeys(settings.positions or target.thoughts))
    check_positions(positions, target.reasoner.places)
    correct = np.asarray(target.data["correct"].values).astype(bool)
    if min(correct.sum(), (~correct).sum()) < 2:
        raise UsageError(
            f"cross: of {len(correct)} examples of {target.run} {int(correct.sum())} are answered rightly and"
            f" {int((~correct).sum())} wrongly; at least two of each are needed, such as harder problems have"
        )
    twins = _twins(target, correct)
    conditions = [
        condition
        for site in settings.sites
        for layer in site_layers(target, site, settings.layers)
        for condition in _conditions(target, site, layer, positions, twins, settings)
    ]
    every = np.ones(len(correct), dtype=bool)
    counted = np.stack([every, *(twins if condition.labels["donor"] == TWIN else every for condition in conditions)])
    seed, draws = settings.seed, settings.drawing(settings.seed)
    out = target.accuracy(conditions, seed=seed, counted=counted, outcomes=True, draws=draws)
    given = _answers_of_donors(target, conditions, twins)
    follows = target.scoring.equal(out["predicted_answer"].values, given) & counted
    out = with_crossed(out.assign(follows=(("condition", "example"), follows)), seed)
    return out.assign_attrs(hub=find_hub(target) if "attention" in target.data else "", n_twin=int(twins.sum()))


def _twins(target: Target, correct: np.ndarray) -> np.ndarray:
    """Examples ``(example,)`` that are half of a pair of which the model answers one half rightly."""
    mixed = np.zeros(len(correct), dtype=bool)
    if "pair" in target.data.variables:
        pair = np.asarray(target.data["pair"].values)
        for number in np.unique(pair[pair >= 0]):
            rows = np.flatnonzero(pair == number)
            mixed[rows] = len(rows) == 2 and correct[rows].sum() == 1
    return mixed


def _conditions(
    target: Target, site: str, layer: int, positions: Sequence[str], twins: np.ndarray, settings: CrossSettings
) -> Iterator[Condition]:
    """Conditions at one site and layer: thoughts of either outcome, of the twin, noise, and each by itself."""
    place = where_of(target, site, layer)
    kinds: list[tuple[str, str, dict[str, Any]]] = [(name, "", {"donor": donor}) for name, donor in OUTCOMES.items()]
    kinds.append(("right", NOISE, {"donor": OUTCOMES["right"], "as_noise": True}))
    if twins.any():
        kinds.append((TWIN, "", {"donor": "twin"}))
    for label, group in alone_and_together(positions):
        for donor, control, change in kinds:
            patch = Intervention(operation="replace", positions=group, seed=settings.seed, **change, **place)
            yield Condition(
                name=f"{donor} {label} {site} {layer} {control}".rstrip(),
                interventions=(patch,),
                labels={"site": site, "layer": layer, "group": label, "donor": donor, "control": control},
                where=dict.fromkeys(group, twins) if donor == TWIN else None,
            )
    yield from self_controls(target, site, layer, positions, {"group": "all", "donor": ""})


def _answers_of_donors(target: Target, conditions: Sequence[Condition], twins: np.ndarray) -> np.ndarray:
    """The run's answers to each example's donor ``(condition, example)``; none for the untouched run and controls."""
    own = np.asarray(target.data["predicted_answer"].values)
    nothing: Any = np.nan if own.dtype.kind == "f" else ""
    given = np.full((len(conditions) + 1, len(own)), nothing, dtype=own.dtype if own.dtype.kind == "f" else object)
    rows = np.arange(len(own))
    for index, condition in enumerate(conditions, start=1):
        change = condition.interventions[0]
        if not condition.labels["control"]:
            use = rows[twins] if condition.labels["donor"] == TWIN else rows
            given[index, use] = own[target.values.donors(use, change.donor, change.seed)]
    return given


def with_crossed(out: xr.Dataset, seed: int) -> xr.Dataset:
    """Add what thoughts of each outcome make of problems of each outcome, and tests of one against the other.

    ``out`` has ``correct`` and ``follows(condition, example)`` and coordinates ``site``, ``layer``, ``group``,
    ``donor`` and ``control`` along ``condition``, the untouched run first.
    """
    correct, follows, problem = out["correct"].values, out["follows"].values, problem_of(out)
    labels = list(zip(*(out[name].values.tolist() for name in ("site", "layer", "group")), strict=True))
    rows: dict[tuple[Any, ...], dict[str, int]] = {}
    for index, (label, donor, control) in enumerate(
        zip(labels, out["donor"].values, out["control"].values, strict=True)
    ):
        if donor in OUTCOMES and not control:
            rows.setdefault(label, {})[donor] = index
    givers = np.array([[row[giver] for giver in OUTCOMES] for row in rows.values()])  # (place, giver)
    receivers = np.stack([correct[0], ~correct[0]])  # in order of OUTCOMES
    names = ("share", "low", "high", "followed")
    cells = {name: np.full((len(rows), 2, 2), np.nan) for name in names}  # (place, receiver, giver)
    tests = {name: np.full((len(rows), 2), np.nan) for name in ("mean", "low", "high", "p")}
    for receiver in range(2):
        use = receivers[receiver]
        if not use.any():
            continue
        after = correct[givers][..., use]  # (place, giver, example)
        cells["share"][:, receiver], cells["followed"][:, receiver] = after.mean(-1), follows[givers][..., use].mean(-1)
        ends = share_interval(after, np.ones_like(after), problem[use])
        cells["low"][:, receiver], cells["high"][:, receiver] = ends
        difference = after[:, 0].astype(float) - after[:, 1]
        mean, lowest, highest = mean_interval(difference, seed, problem[use])
        shares = np.stack([after.mean(-1), *ends])  # (end, place, giver)
        bounds = uncertain(lowest, highest, shares[..., 0], shares[..., 1])
        for name, value in zip(("mean", "low", "high"), (mean, *bounds), strict=True):
            tests[name][:, receiver] = value
        tests["p"][:, receiver] = [mcnemar_exact(wrong, right, problem[use]).p for right, wrong in after]
    dims = ("place", "receiver", "giver")
    columns = {"crossed": "share", "crossed_low": "low", "crossed_high": "high", "followed": "followed"}
    added: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        name: (dims, cells[source]) for name, source in columns.items()
    }
    paired = {"difference": "mean", "difference_low": "low", "difference_high": "high", "p": "p"}
    added |= {f"crossed_{name}": (dims[:2], tests[source]) for name, source in paired.items()}
    added["crossed_p_holm"] = (dims[:2], adjust(tests["p"].ravel()).reshape(tests["p"].shape))
    site, layer, group = zip(*rows, strict=True)
    return out.assign(added).assign(n_receiver=("receiver", receivers.sum(1))).assign_coords(
        receiver=list(OUTCOMES), giver=list(OUTCOMES), place_site=("place", np.array(site, dtype=object)),
        place_layer=("place", np.array(layer)), place_group=("place", np.array(group, dtype=object)),
    )  # fmt: skip
