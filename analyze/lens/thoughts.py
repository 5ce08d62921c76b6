"""Tuned lenses of single thoughts, of odd and of even ones and of all, and how each reads the others' states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import inherited, labels_along, thought_labels
from analyze.lens.readout import ReadOut, check_model
from analyze.lens.tuned import PENALTIES, SPLITS, Moments, blocks_to_fit, states_to_fit
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.resampling import mean_interval
from schemas.statistics import share_interval
from schemas.wording import interval_columns, interval_names

Array = np.ndarray[Any, np.dtype[Any]]
PLAIN = "final norm"
ALL, ODD, EVEN = "all", "odd", "even"


def groups_of(thoughts: Sequence[str]) -> dict[str, list[str]]:
    """Thoughts that a lens is fitted on, by its name: each, those of odd and of even number, all."""
    sides = {
        side: [name for name in thoughts if int(name.removeprefix("ct")) % 2 == odd]
        for odd, side in ((1, ODD), (0, EVEN))
    }
    return (
        {name: [name] for name in thoughts}
        | {side: names for side, names in sides.items() if names}
        | {ALL: list(thoughts)}
    )


def thought_lenses(
    run: xr.Dataset,
    model: xr.Dataset,
    *,
    seed: int = 0,
    n_read_out: int = 512,
    progress: Progress = silent,
) -> xr.Dataset:
    """Fit a tuned lens on each thought, on odd and even ones and on all, and read every thought through each of them.

    Problems are split as for :func:`analyze.lens.tuned.fit_tuned_lens`: fitted on the first part, the penalty chosen on
    the second, measured on the third. Sums of each thought are taken once and added for its groups. Reads the run once
    per layer; memory is six hidden x hidden matrices for each thought, and the held-out states read out.

    Parameters
    ----------
    run
        Needs ``hidden_state`` and ``final_state`` at two thoughts or more.
    model
        Read-out of the run's model.
    n_read_out
        Most held-out problems whose logits are compared.
    progress
        Called with layers done and their number.

    Returns
    -------
    Dataset over (fit, layer, position)
        ``kl`` (nat), of the lens from the model's own distribution, and ``excess``, how much larger it is than that of
        the thought's own lens on the same problems, each with ``_low`` and ``_high`` (95%, over problems);
        ``agreement`` of best tokens, likewise; ``r2``, share of the final state's variance explained. ``fit`` is a
        thought, ``odd``, ``even``, ``all``, or ``final norm``: none fitted.

    Raises
    ------
    UsageError
        If there are fewer than two thoughts, or too few problems.
    """
    check_model(model, run)
    thoughts = thought_labels(run["hidden_state"])
    if len(thoughts) < 2:
        raise UsageError(f"lenses of single thoughts are compared between two at least; {run.attrs.get('run')} has"
                         f" {', '.join(thoughts) or 'none'}")  # fmt: skip
    state, final, split = states_to_fit(run, thoughts, seed)
    problem, held = problem_of(run), np.flatnonzero(split == 2)[:n_read_out]
    readout, groups = ReadOut(model), groups_of(thoughts)
    parts = []
    for layer in range(state.sizes["layer"]):
        here = state.isel(layer=layer)
        fits = _fits(here, final, split, groups, thoughts)
        tested = [
            _read(readout, here.isel(example=held, position=k), final.isel(example=held, position=k), fits, name,
                  problem[held], seed)
            for k, name in enumerate(thoughts)
        ]  # fmt: skip
        parts.append(xr.concat(tested, dim="position"))
        progress(layer + 1, state.sizes["layer"])
    result = xr.concat(parts, dim="layer").transpose("fit", "layer", "position")
    result = result.assign_coords(
        fit=np.array([*groups, PLAIN], dtype=object), layer=state["layer"].values,
        position=np.array(thoughts, dtype=object),
    )  # fmt: skip
    for name, units in (("kl", "nat"), ("excess", "nat"), ("agreement", "1"), ("r2", "1")):
        result[name].attrs["units"] = units
    return result.assign_attrs(inherited(run, kind="thought_lenses", seed=seed, n_example=len(held)))


def _fits(
    state: xr.DataArray, final: xr.DataArray, split: Array, groups: dict[str, list[str]], thoughts: Sequence[str]
) -> dict[str, tuple[Array, Array]]:
    """Weight and bias of each group's lens at one layer."""
    sums = {name: [Moments(state.sizes["hidden"]) for _ in SPLITS[:2]] for name in thoughts}
    for block, x, y, there in blocks_to_fit(state, final):
        for k, name in enumerate(thoughts):
            for part, moments in enumerate(sums[name]):
                rows = there[:, k] & (split[block] == part)
                moments.add(x[rows, k], y[rows, k])
    fits = {}
    for name, members in groups.items():
        train, validation = (
            sum((sums[member][part] for member in members[1:]), sums[members[0]][part]) for part in (0, 1)
        )
        tried = [train.ridge(penalty) for penalty in PENALTIES]
        fits[name] = min(tried, key=lambda fit: validation.error(*fit))
    return fits


def _read(
    readout: ReadOut, state: xr.DataArray, final: xr.DataArray, fits: dict[str, tuple[Array, Array]], own: str,
    problem: Array, seed: int,
) -> xr.Dataset:  # fmt: skip
    """One thought through every lens."""
    x, y = (np.asarray(array.values, dtype="float32") for array in (state, final))
    there = np.isfinite(x).all(-1) & np.isfinite(y).all(-1)
    x, y, problem = x[there], y[there], problem[there]
    if not len(x):
        names = [key for name in ("kl", "excess", "agreement") for key in interval_names(name)]
        return xr.Dataset({name: ("fit", np.full(len(fits) + 1, np.nan)) for name in [*names, "r2"]})
    reads = [(x @ weight + bias).astype("float32") for weight, bias in fits.values()] + [readout.norm(x)]
    pairs = readout.divergences(y, *reads)
    gaps, same = (np.stack([pair[index] for pair in pairs]) for index in (0, 1))
    variance = float(((y - y.mean(0)) ** 2).sum()) or np.nan
    values = {"kl": gaps, "excess": gaps - gaps[list(fits).index(own)]}
    data: dict[str, Any] = {}
    for name, scores in values.items():
        data |= interval_columns(name, mean_interval(scores, seed, problem))
    ends = share_interval(same, np.ones_like(same, dtype=bool), problem)
    data |= interval_columns("agreement", (same.mean(1), *ends))
    data = {name: ("fit", values) for name, values in data.items()}
    data["r2"] = ("fit", [1 - float(((y - read) ** 2).sum()) / variance for read in reads])
    return xr.Dataset(data)


def shown_layer(result: xr.Dataset) -> int:
    """Index of the layer that is shown: the last, which has more to tell where a lens is fitted below the final norm.

    Past the last block a tuned lens has only the final norm to learn, so of several layers the one before is shown.
    """
    return max(0, result.sizes["layer"] - 2)


def transfer_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """Each lens on each thought at the layer that is shown, as a row."""
    one = result.isel(layer=shown_layer(result))
    return [
        {
            "fit": str(fit), "position": str(position), "layer": int(one["layer"]),
            **{name: float(one[name].sel(fit=fit, position=position)) for name in
               ("kl", "kl_low", "kl_high", "excess", "excess_low", "excess_high", "agreement", "agreement_low",
                "agreement_high", "r2")},
        }
        for position in labels_along(one, "position") for fit in labels_along(one, "fit")
    ]  # fmt: skip
