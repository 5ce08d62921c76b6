"""The Jacobian lens: states read through how later states depend on them, or how they depend on the state before."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import inherited, labels_along, thought_labels
from analyze.lens.logit import logit_lens
from analyze.lens.readout import check_model
from analyze.lens.summary import lens_summary
from analyze.lens.tuned import fit_tuned_lens
from schemas import SchemaError, UsageError, nearest, segment_of
from schemas.naming import FED
from schemas.problem_sums import problem_of
from schemas.statistics import split_problems

Array = np.ndarray[Any, np.dtype[Any]]

BEFORE = "before"
"""Read a thought as the state it was made of, through the inverse of how it depends on that state."""
LEFT_OUT = (0.03, 0.1, 0.3, 1.0)
"""Weights tried for the covariance of what a mean Jacobian leaves out."""
EVEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Variances tried for noise that is the same in every direction, as shares of the mean of that covariance."""
LENSES = ("logit", "tuned", "jacobian")
CONFIDENCE_BINS = 10
ASIDE = ("question", "answer")
"""Segments that are not read unless asked for."""


def with_fed(run: xr.Dataset) -> xr.Dataset:
    """The run with the vectors fed at the thoughts as layer -1 of ``hidden_state``, NaN at other positions.

    Lazy input stays lazy. Other variables along ``layer`` are left out, and ``latent_embedding``.
    """
    state = run["hidden_state"].transpose("example", "layer", "position", "hidden")
    fed = run["latent_embedding"].rename(latent="position").reindex(position=state["position"])
    fed = fed.astype(state.dtype).expand_dims(layer=[FED]).transpose(*state.dims)
    fed = fed.assign_coords({name: coord for name, coord in state.coords.items() if "layer" not in coord.dims})
    others = run.drop_vars([name for name, array in run.data_vars.items() if {"layer", "latent"} & set(array.dims)])
    return others.drop_dims("layer", errors="ignore").assign(
        hidden_state=xr.concat([fed, state], dim="layer", coords="minimal", compat="override", join="exact")
    )


def jacobian_maps(
    run: xr.Dataset, jacobian: xr.Dataset, *, target: str = BEFORE, tune: xr.Dataset | None = None,
    rotation: int | None = None,
) -> xr.Dataset:  # fmt: skip
    """Maps from states to logits' final states, by layer and position, for :func:`logit_lens`.

    Forward, a state ``x`` is read as ``J (x - m)``: what it adds, to first order, to the later state. Backward
    (``before``) the state ``y`` of which a thought was made is estimated from what it left at the place,
    ``x = m + B (y - n) + e``: with ``S`` the covariance of such states, ``n`` their mean and ``N`` the covariance of
    ``e``, the best linear estimate is ``n + S B' (B S B' + N)^-1 (x - m)``. ``N`` is what the mean Jacobian leaves out
    because single ones differ (``left_out``), and noise that is the same in every direction. Their weights are chosen
    on other problems, by the cosine of the estimate's deviation from ``n`` with the state's own; nothing is compared
    with a problem's chain, and no pair of a state and what was made of it goes into the map: ``N`` estimated from such
    pairs makes it a regression, which reads as well through Jacobians turned at random. One factor for each place gives
    deviations the length that such states' have.

    Parameters
    ----------
    run
        Problems over which means and covariances go, with layer -1 (:func:`with_fed`); needs ``final_state``.
    jacobian
        Stored result of ``lake reenter jacobian``.
    target
        ``before``, or one of the result's targets.
    tune
        Problems on which the weights of the noise are chosen; ``run`` by default.
    rotation
        Seed of a rotation the Jacobians are multiplied by: a control, which knows their sizes but not their directions.

    Returns
    -------
    Dataset of ``weight`` (layer, position, hidden, to), ``bias`` (layer, position, to), NaN where there is no Jacobian,
    and ``left_out`` and ``even`` (layer, position), the weights chosen, NaN where a state is read forward

    Raises
    ------
    UsageError
        If the result has no such target, or does not say what its mean Jacobians leave out.
    SchemaError
        If run and Jacobian are of different models.

    References
    ----------
    Rodgers, *Inverse Methods for Atmospheric Sounding*, 2000, chapters 2 and 3: the linear estimate, and a covariance
    of what a forward model leaves out.
    """
    known = [BEFORE, *labels_along(jacobian, "target")]
    if target not in known:
        raise UsageError(f"the Jacobians of {jacobian.attrs.get('run')} lead to {', '.join(known)}, not to {target!r}"
                         + nearest(target, known))  # fmt: skip
    if target == BEFORE and "left_out" not in jacobian:
        raise UsageError(
            f"the Jacobians of {jacobian.attrs.get('run')} do not say what their mean leaves out; lake reenter jacobian"
            " computes it, run it again"
        )
    if run.sizes["hidden"] != jacobian.sizes["hidden"]:
        raise SchemaError(
            f"Jacobians of {jacobian.attrs.get('run')} have width {jacobian.sizes['hidden']}, the states"
            f" {run.sizes['hidden']}; compute them on a run of the same model"
        )
    layers = [x for x in run["layer"].values.tolist() if x in jacobian["layer"].values]
    positions = [x for x in run["position"].values.tolist() if x in jacobian["position"].values]
    hidden = run.sizes["hidden"]
    weight = np.full((len(layers), len(positions), hidden, hidden), np.nan, dtype="float32")
    bias = np.full((len(layers), len(positions), hidden), np.nan, dtype="float32")
    weights = np.full((2, len(layers), len(positions)), np.nan)
    turn = np.eye(hidden)
    if rotation is not None:
        turn = np.linalg.qr(np.random.default_rng(rotation).normal(size=(hidden, hidden)))[0]
    for k, position in enumerate(positions):
        where = _state_read(target, position, run, positions)
        if where is None:
            continue
        for j, layer in enumerate(layers):
            name = "origin" if target == BEFORE else "jacobian"
            place = {"layer": layer, "position": position} | ({} if target == BEFORE else {"target": target})
            matrix = np.asarray(jacobian[name].sel(place).values, dtype="float64") @ turn
            state, final = _states_and_finals(run, layer, position, where)
            if not np.isfinite(matrix).all() or len(state) < 2:
                continue
            if target == BEFORE:
                others = (state, final) if tune is None else _states_and_finals(tune, layer, position, where)
                left = jacobian["left_out"].sel(place).values
                fitted, weights[:, j, k] = _inverse(matrix, left, state, final, *others)
            else:
                fitted = matrix.T
            read = (state - state.mean(0)) @ fitted
            length = np.sqrt(((final - final.mean(0)) ** 2).mean() / max((read**2).mean(), 1e-30))
            weight[j, k] = fitted * length
            bias[j, k] = (final.mean(0) if target == BEFORE else 0) - state.mean(0) @ weight[j, k]
    return xr.Dataset(
        {
            "weight": (("layer", "position", "hidden", "to"), weight),
            "bias": (("layer", "position", "to"), bias),
            "left_out": (("layer", "position"), weights[0], {"units": "1"}),
            "even": (("layer", "position"), weights[1], {"units": "1"}),
        },
        coords={"layer": layers, "position": np.array(positions, dtype=object)},
        attrs=inherited(run, kind="jacobian_maps", lens=f"jacobian ({target})", target=target),
    )


def compare_lenses(
    run: xr.Dataset, model: xr.Dataset, jacobian: xr.Dataset | None = None, *, lenses: Sequence[str] = LENSES,
    target: str = BEFORE, positions: Sequence[str] | None = None, layers: Sequence[int] | None = None, top: int = 5,
    seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Logit, tuned and Jacobian lens on the same held-out problems, of states and of the vectors fed.

    Problems are split as for :func:`fit_tuned_lens`: means, covariances and the tuned lens come from the first part,
    the penalties from the second, and all is measured on the third, without the problems that the Jacobians are a mean
    over.

    Parameters
    ----------
    run
        As for :func:`logit_lens`, with ``final_state`` and ``latent_embedding``.
    model
        Read-out of the run's model.
    jacobian
        Stored result of ``lake reenter jacobian``; needed for ``jacobian``.
    lenses
        Of ``logit``, ``tuned`` and ``jacobian``; the last brings ``jacobian, rotated`` with it, the control.
    target
        What the Jacobian lens reads a state as, see :func:`jacobian_maps`.
    positions, layers
        What is read; by default from ``bot`` to the last marker, or what there are Jacobians of, at all layers. The
        vectors fed are always among it.

    Returns
    -------
    Dataset
        What :func:`lens_summary` gives along ``lens``, with layer -1 the vectors fed, and : (lens, layer, position)
        ``confidence``, mean probability of the best token; ``calibration_error``, how far that is from how often the
        best token is a result of the chain, absolute, mean over ten bins of confidence weighted by their states;
        ``step_reciprocal_rank`` and ``inner_reciprocal_rank`` : (lens, layer, position, step), mean of 1 / rank of the
        step's result (0: not among the ``top``), of all chains with that step and of those in which it is not the last;
        ``reads_result`` : (lens, example, layer, position, step), whether the best token is the step's result, -1 where
        the problem has no such step or no state there.

    References
    ----------
    Guo et al., *On Calibration of Modern Neural Networks*, 2017, for the calibration error.
    """
    maps, test = held_out_lenses(
        run, model, jacobian, lenses=lenses, target=target, positions=positions, layers=layers, seed=seed
    )
    parts = []
    for lens_maps in maps.values():
        there = test
        for dim in ("layer", "position"):
            if lens_maps is not None and dim in lens_maps.dims:
                there = there.sel({dim: [x for x in there[dim].values if x in lens_maps[dim].values]})
        read = logit_lens(there, model, positions=labels_along(there, "position"), top=top, tuned=lens_maps).compute()
        parts.append(_reliability(read, lens_summary(read)))
    label = xr.DataArray(list(maps), dims="lens", name="lens").astype(object)
    out = xr.concat(parts, label, join="outer", fill_value={"reads_result": -1})
    return out.sel(layer=test["layer"].values, position=test["position"].values).assign_attrs(
        inherited(run, kind="lens_comparison", target=target, seed=seed, n_example=test.sizes["example"], top=top)
    )


def held_out_lenses(
    run: xr.Dataset, model: xr.Dataset, jacobian: xr.Dataset | None = None, *, lenses: Sequence[str] = LENSES,
    target: str = BEFORE, positions: Sequence[str] | None = None, layers: Sequence[int] | None = None, seed: int = 0,
) -> tuple[dict[str, xr.Dataset | None], xr.Dataset]:  # fmt: skip
    """Lenses of a run, and the problems that nothing was fitted on; settings as for :func:`compare_lenses`.

    Returns
    -------
    Maps by the name of each lens (``None``: final norm and unembedding), and the part of the run to be read, with layer
    -1 the vectors fed
    """
    for lens in lenses:
        if lens not in LENSES:
            raise UsageError(f"lens {lens!r} is not one of {', '.join(LENSES)}{nearest(lens, LENSES)}")
    if "jacobian" in lenses and jacobian is None:
        name = run.attrs.get("run")
        raise UsageError(f"the Jacobians of {name} were never computed; run lake reenter jacobian first")
    check_model(model, run)
    states = with_fed(run)
    if positions is None:
        known = labels_along(run, "position") if jacobian is None else labels_along(jacobian, "position")
        positions = [x for x in labels_along(run, "position") if x in known and segment_of(x) not in ASIDE]
    whole = states.sel(position=list(positions))
    if layers is not None:
        whole = whole.sel(layer=[FED, *(x for x in layers if x != FED)])
    problem = problem_of(run)
    split = split_problems(problem, seed)
    fitted_on = np.isin(problem, _fit_problems(run, jacobian, problem))
    train, tune, test = (
        whole.isel(example=np.flatnonzero(rows)) for rows in (split == 0, split == 1, (split == 2) & ~fitted_on)
    )
    if not all(part.sizes["example"] for part in (train, tune, test)):
        raise UsageError(
            f"{run.attrs.get('run')} has {len(np.unique(problem))} problems, and after the fits none is left to read;"
            " use a run of more problems"
        )
    maps: dict[str, xr.Dataset | None] = {}
    for lens in lenses:
        if lens == "logit":
            maps["logit"] = None
        elif lens == "tuned":
            maps["tuned"] = fit_tuned_lens(whole, model, positions=labels_along(whole, "position"), seed=seed)
        elif jacobian is not None:
            part = [states.isel(example=np.flatnonzero(split == index)) for index in (0, 1)]
            maps["jacobian"] = jacobian_maps(part[0], jacobian, target=target, tune=part[1])
            maps["jacobian, rotated"] = jacobian_maps(part[0], jacobian, target=target, tune=part[1], rotation=seed)
    return maps, test


def _reliability(read: xr.Dataset, summary: xr.Dataset) -> xr.Dataset:
    """The summary with ranks of results and how far the lens' probabilities are from what comes true."""
    there = read["top_token"].isel(rank=0, drop=True) >= 0
    sure = read["top_probability"].isel(rank=0, drop=True).where(there)
    hit = (read["result_rank"] == 1).any("step").where(there)
    bins = np.minimum((sure * CONFIDENCE_BINS).fillna(0).astype(int), CONFIDENCE_BINS - 1)
    gaps = [abs((sure - hit).where(bins == index).sum("example")) for index in range(CONFIDENCE_BINS)]
    n = there.sum("example")
    reciprocal = (1 / read["result_rank"].clip(min=1)).where(read["result_rank"] > 0, 0.0)
    own = {"step": there & read["can_be_read"] & (read["step"] < read["n_step"])}
    own["inner"] = own["step"] & (read["step"] < read["n_step"] - 1)
    out = summary.assign({f"{name}_reciprocal_rank": reciprocal.where(x).mean("example") for name, x in own.items()})
    out = out.assign(confidence=sure.mean("example"), calibration_error=sum(gaps[1:], gaps[0]) / n.where(n > 0))
    # Of every problem whether the best token is a step's result, so that it can be set beside what edits of it do.
    right = (read["result_rank"] == 1).astype("int8").where(own["step"], -1).astype("int8")
    out = out.assign(reads_result=right.transpose("example", "layer", "position", "step"))
    for name in set(out) - set(summary):
        out[name].attrs = {}  # not those of what they were computed from
    return out


def _fit_problems(run: xr.Dataset, jacobian: xr.Dataset | None, problem: Array) -> Array:
    """Problems of this run that the Jacobians are a mean over; those of another run are others."""
    if jacobian is None or jacobian.attrs.get("run") not in (None, run.attrs.get("run")):
        return np.empty(0, dtype=problem.dtype)
    return np.asarray(problem[np.isin(run["example"].values, jacobian["fit_example"].values)])


def _state_read(target: str, position: str, run: xr.Dataset, positions: Sequence[str]) -> str | None:
    """Position whose final states set the length of what is read; ``None``: there is none."""
    labels = run["position"].values.tolist()
    if target == BEFORE and position not in thought_labels(run):
        return None
    if target in (BEFORE, "next"):
        place = labels.index(position) + (-1 if target == BEFORE else 1)
        return labels[place] if 0 <= place < len(labels) else None
    if target == "self":
        return position
    if target in labels:
        return target if labels.index(target) >= labels.index(position) else None
    return positions[-1]  # the answer's own state is at no one position


def _states_and_finals(run: xr.Dataset, layer: int, position: str, where: str) -> tuple[Array, Array]:
    """States (example, hidden) at a place and final states at a position, of the examples that have both; float64."""
    state = run["hidden_state"].sel(layer=layer, position=position)
    pair = [np.asarray(x.values, dtype="float64") for x in (state, run["final_state"].sel(position=where))]
    there = np.isfinite(pair[0]).all(-1) & np.isfinite(pair[1]).all(-1)
    return pair[0][there], pair[1][there]


def _inverse(
    jacobian: Array, left: Array, state: Array, final: Array, tune_state: Array, tune_final: Array
) -> tuple[Array, tuple[float, float]]:
    """Map (hidden, to) from a place back to deviations of the state before, and the weights of the noise chosen."""
    mean, final_mean = state.mean(0), final.mean(0)
    variances, basis = np.linalg.eigh(np.asarray(left, dtype="float64"))
    variances = np.maximum(variances, 0.0)
    _, lengths, directions = np.linalg.svd((final - final_mean) / np.sqrt(len(final) - 1), full_matrices=False)
    factor = directions.T * lengths  # (to, rank): the covariance of such states is this times its transpose
    carried = basis.T @ jacobian @ factor
    even = max(float(variances.mean()), 1e-6 * float((carried**2).sum()) / len(variances), 1e-30)
    seen, wanted = (tune_state - mean) @ basis, tune_final - final_mean
    best: tuple[float, Array, tuple[float, float]] | None = None
    for weights in product(LEFT_OUT, EVEN):
        # In the noise's own directions its inverse is a division: y = F (1 + F'B' N^-1 B F)^-1 F'B' N^-1 x.
        scaled = carried / (weights[0] * variances + weights[1] * even)[:, None]
        fitted = scaled @ np.linalg.solve(np.eye(len(lengths)) + carried.T @ scaled, factor.T)
        read = seen @ fitted
        norms = np.linalg.norm(read, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = float(np.mean((read * wanted).sum(1) / np.maximum(norms, 1e-30)))
        if best is None or cosine > best[0]:
            best = cosine, fitted, weights
    assert best is not None
    return basis @ best[1], best[2]
