"""Dictionaries learned on one run, on the states of another: what they explain there, and which features never fire."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.probes.tasks import draw_examples
from analyze.sae.codes import sae_codes, sae_reconstruction
from analyze.similarity.cka import CONSTANT
from analyze.statistics import ratio_interval
from analyze.transfer.command import TransferSettings
from analyze.transfer.problems import problem_groups
from schemas import UsageError
from schemas.progress import Progress, silent
from schemas.resampling import draw_counts
from schemas.wording import interval_names

Array = np.ndarray[Any, np.dtype[Any]]
FEWEST = 8
"""Problems below which intervals over them say nothing."""


def transfer_dictionaries(
    dictionaries: Mapping[str, xr.Dataset],
    wholes: Mapping[str, xr.Dataset],
    runs: Mapping[str, xr.Dataset],
    fit: Sequence[str],
    test: Sequence[str],
    settings: TransferSettings | None = None,
    *,
    progress: Progress = silent,
) -> xr.Dataset:
    """Reconstruct the states of runs with the dictionaries of others.

    A run is measured on the problems that none of the dictionaries used on it has seen, its own among them, so that all
    of them explain the same states.

    Parameters
    ----------
    dictionaries
        Of ``hidden_state`` (:func:`analyze.sae.dictionary.train_sae`), by run: of every run in ``fit``, and of those in
        ``test`` that have one.
    wholes
        The runs with all examples, as the dictionaries saw them: for ``question`` and ``problem``.
    runs
        The parts of them that are tested, at the same layers and positions; read one (layer, position) at a time.
    fit, test
        Names of runs.
    settings
        Resamples, level, seed and examples used at most.
    progress
        Called with cells done and their number.

    Returns
    -------
    Dataset over (fit, test, layer, position)
        ``explained_variance``, ``1 - sum |x - x_hat|^2 / sum |x - mean x|^2``, with its interval over problems;
        ``gap``, that of the test run's own dictionary less it, with a paired interval; ``l0``, codes that are not 0;
        ``dead_share``, features that fire on none of the states; ``control_explained_variance``, of states whose units
        are shuffled. ``own_..`` (test, layer, position): of the test run's own dictionary, NaN where it has none.
        ``n_problem`` (test). A dictionary that outputs the mean explains 0.

    Raises
    ------
    UsageError
        If a run has fewer than eight problems that no dictionary has seen, or the dictionaries no place in common.
    """
    settings = settings or TransferSettings()
    layers, positions = _places(dictionaries, next(iter(runs.values())))
    groups = problem_groups(wholes)
    names = [*interval_names("explained_variance"), *interval_names("gap"), "l0", "dead_share",
             "control_explained_variance"]  # fmt: skip
    shape = (len(fit), len(test), len(layers), len(positions))
    values = {name: np.full(shape, np.nan) for name in names}
    own = {name: np.full(shape[1:], np.nan) for name in ("explained_variance", "dead_share")}
    n_problem = np.zeros(len(test), dtype=int)
    for j, tested in enumerate(test):
        run = runs[tested]
        rows = _unseen(tested, [*fit, tested], dictionaries, wholes, groups, run, settings)
        problem = np.asarray(run["problem"].values)[rows]
        n_problem[j] = len(np.unique(problem))
        weight = draw_counts(problem, n_resample=settings.resamples, seed=settings.seed)
        for place, (a, b) in enumerate(np.ndindex(len(layers), len(positions))):
            states = run["hidden_state"].sel(layer=layers[a], position=positions[b]).isel(example=rows).compute()
            there = np.isfinite(states.values).all(-1)
            if not there.any():
                continue
            x, drawn = states.isel(example=there), weight[there]
            spread = ((x.values - x.values.mean(0, dtype="float64")) ** 2).sum(1)
            if not spread.sum() > CONSTANT * (x.values.astype("float64") ** 2).sum():
                continue
            best = _read(dictionaries[tested], x) if tested in dictionaries else None
            if best is not None:
                own["explained_variance"][j, a, b] = 1 - best[0].sum() / spread.sum()
                own["dead_share"][j, a, b] = best[2]
            for i, fitted in enumerate(fit):
                shuffled = x.copy(data=x.values[:, np.random.default_rng(settings.seed).permutation(x.shape[1])])
                wrong, l0, dead = _read(dictionaries[fitted], x)
                control = 1 - _read(dictionaries[fitted], shuffled)[0].sum() / spread.sum()
                measures = ratio_interval(spread - wrong, spread, drawn, settings.level)
                measures += ratio_interval(wrong - best[0], spread, drawn, settings.level) if best else [np.nan] * 3
                for name, value in zip(names, [*measures, l0, dead, control], strict=True):
                    values[name][i, j, a, b] = value
            progress(j * len(layers) * len(positions) + place + 1, len(test) * len(layers) * len(positions))
    dims = ("fit", "test", "layer", "position")
    data: dict[str, Any] = {name: (dims, value) for name, value in values.items()}
    data |= {f"own_{name}": (dims[1:], value) for name, value in own.items()}
    labels = {"fit": list(fit), "test": list(test), "position": positions}
    coords = {name: np.array(value, dtype=object) for name, value in labels.items()}
    result = xr.Dataset(data, coords=coords | {"layer": np.array(layers)})
    return result.assign(n_problem=("test", n_problem)).assign_attrs(kind="transfer_sae", level=settings.level)


def _places(dictionaries: Mapping[str, xr.Dataset], run: xr.Dataset) -> tuple[list[int], list[str]]:
    """Layers and positions of the runs that every dictionary was learned at; one over a pool reads any."""
    places: list[list[Any]] = []
    for dim in ("layer", "position"):
        labels = run[dim].values.tolist()
        for dictionary in dictionaries.values():
            if dim in dictionary["frequency"].dims:
                known = dictionary["frequency"][dim].values.tolist()
                labels = [label for label in labels if label in known]
        if not labels:
            raise UsageError(f"the dictionaries of {', '.join(dictionaries)} have no {dim} of the runs in common")
        places.append(labels)
    return places[0], places[1]


def _unseen(
    tested: str, used: Sequence[str], dictionaries: Mapping[str, xr.Dataset], wholes: Mapping[str, xr.Dataset],
    groups: Mapping[str, Array], run: xr.Dataset, settings: TransferSettings,
) -> Array:  # fmt: skip
    """Examples of a run, by their number in it, whose problems no dictionary was trained on or chosen by."""
    seen = []
    for name in dict.fromkeys(used):
        if name in dictionaries:
            split = dictionaries[name]["example_split"].to_series()
            labels = split.index[split.isin(["train", "validation"])]
            seen.append(groups[name][np.isin(wholes[name]["example"].values, labels)])
    place = {label: index for index, label in enumerate(wholes[tested]["example"].values.tolist())}
    group = groups[tested][[place[label] for label in run["example"].values.tolist()]]
    rows = np.flatnonzero(~np.isin(group, np.concatenate(seen)))
    problem = np.asarray(run["problem"].values)[rows]
    if len(np.unique(problem)) < FEWEST:
        raise UsageError(
            f"{tested} has {len(np.unique(problem))} problems that the dictionaries of {', '.join(dict.fromkeys(used))}"
            f" have not seen; at least {FEWEST} are needed. Learn them from fewer, or test a run of other problems"
        )
    return rows[draw_examples(problem, settings.max_examples, settings.seed)]


def _read(dictionary: xr.Dataset, states: xr.DataArray) -> tuple[Array, float, float]:
    """Squared error of each row (example,), mean number of codes, and share of features that never fire."""
    codes = sae_codes(dictionary, states)
    made = sae_reconstruction(dictionary, codes)
    wrong = ((states.values - made.values) ** 2).sum(1, dtype="float64")
    fired = codes.values != 0
    return wrong, float(fired.sum(1).mean()), float(1 - fired.any(0).mean())
