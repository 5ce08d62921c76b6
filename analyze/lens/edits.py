"""Whether the value that a lens names at a thought is one whose edit moves the answer, problem by problem."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.labels import inherited
from schemas.naming import FED
from schemas.problem_sums import problem_of
from schemas.resampling import mean_interval
from schemas.statistics import share_interval
from schemas.wording import interval_columns

Array = np.ndarray[Any, np.dtype[Any]]


def edit_agreement(comparison: xr.Dataset, edit: xr.Dataset) -> xr.Dataset:
    """Set what lenses read in problems that nothing was fitted on beside what edits of the same thoughts did there.

    Of each place that was edited (at dose 1, alone, by each method) and each lens: over the problems that both have and
    whose edit counts, whether the best token was the result of the step that was edited, and whether the answer became
    what the rest of the chain makes of the new value.

    Parameters
    ----------
    comparison
        Of :func:`analyze.lens.jacobian.compare_lenses`.
    edit
        Stored result of ``lake reenter edit``, of the same run.

    Returns
    -------
    Dataset over (lens, edit), the edits with coordinates ``layer``, ``position``, ``step``, ``method``
        ``n``; ``read_share`` and ``follow_share``, how often the lens names the value and the answer follows the edit;
        ``both_share``, how often both; ``agreement``, how often both or neither, each with ``_low`` and ``_high`` (95%,
        over problems); ``chance``, the agreement of readings and edits with these shares that have nothing to do with
        each other; ``difference``, how much more often edits follow where the lens names the value than where it does
        not, NaN where it always or never does, with its bootstrap interval. No edits where none can be compared.

    References
    ----------
    Cohen, *A Coefficient of Agreement for Nominal Scales*, 1960, for the agreement by chance.
    """
    shared = [x for x in edit["example"].values.tolist() if x in comparison.indexes["example"]]
    read, tried = comparison["reads_result"].sel(example=shared), edit.sel(example=shared)
    problem = problem_of(tried)
    cells = [index for index in range(edit.sizes["condition"]) if _is_edit(edit.isel(condition=index), comparison)]
    lenses = comparison["lens"].values
    rows, labels = [], []
    for index in cells:
        one = tried.isel(condition=index)
        place = {"layer": _layer(one), "position": str(one["changed"].item()), "step": int(one["step"])}
        counted = np.isfinite(one["wanted_answer"].values)
        follows = one["hit"].values.astype(bool)
        named = read.sel(place).transpose("lens", "example").values
        rows.append(xr.concat([_figures(x, follows, counted & (x >= 0), problem) for x in named], dim="lens"))
        labels.append((*place.values(), str(one["method"].item())))
    out = xr.concat(rows, dim="edit") if rows else xr.Dataset()
    names = ("layer", "position", "step", "method")
    coords: dict[str, Any] = {name: ("edit", np.array(values, dtype=object if name in ("position", "method") else int))
              for name, values in zip(names, zip(*labels, strict=True), strict=False)}  # fmt: skip
    return out.assign_coords({"lens": lenses} | coords).assign_attrs(
        inherited(comparison, kind="lens_edits", n_example=len(shared))
    )


def _layer(condition: xr.Dataset) -> int:
    return FED if condition["site"].item() == "latent_embedding" else int(condition["layer"])


def _is_edit(condition: xr.Dataset, comparison: xr.Dataset) -> bool:
    """Whether a condition is an edit at full dose, alone, at a place that the lenses read."""
    plain = condition["control"].item() == "" and condition["also"].item() == "" and float(condition["dose"]) == 1.0
    known = _layer(condition) in comparison["layer"].values and condition["changed"].item() in comparison["position"]
    sites = ("latent_embedding", "hidden_state")
    return bool(plain and condition["site"].item() in sites and known and int(condition["step"]) in comparison["step"])


def _figures(named: Array, follows: Array, counted: Array, problem: Array) -> xr.Dataset:
    """Readings and edits of one place through one lens."""
    read = (named == 1) & counted
    moved = follows & counted
    shares = {"read_share": read, "follow_share": moved, "both_share": read & moved, "agreement": (read == moved)}
    n = int(counted.sum())
    data: dict[str, Any] = {"n": n}
    for name, yes in shares.items():
        mean = yes[counted].mean() if n else np.nan
        data |= interval_columns(name, (mean, *share_interval(yes, counted, problem)))
    p, q = float(data["read_share"]), float(data["follow_share"])
    data["chance"] = p * q + (1 - p) * (1 - q)
    data |= interval_columns("difference", [np.nan] * 3)
    if n and 0 < p < 1:
        # The mean of one weighted value for each problem is the difference of both means.
        weight = np.where(read, 1 / p, -1 / (1 - p))
        data |= interval_columns(
            "difference", mean_interval(np.where(counted, weight * moved, np.nan), problem=problem)
        )
    return xr.Dataset(data)
