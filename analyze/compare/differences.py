"""Runs beside each other: everything the lake knows of them with ``model`` as a dim, and differences with intervals.

Nothing is computed anew but differences: a comparison puts together what other analyses left in the lake and says what
is missing. Layers of models of different depth meet by relative depth ``l / (L - 1)``: at each depth stands each
model's nearest layer, never an interpolation. Examples meet by their label, where the runs are over the same data; a
difference is then paired (resampled by problem, the same problems for both). Where the data differ, or a result keeps
no examples apart, its interval comes from the two models' own, as if they were independent, and ``paired_...`` says so.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.compare.parts import PARTS, Part, Source
from analyze.statistics import bootstrap_weights, percentile_interval, weighted_mean
from analyze.tables import ENDS
from schemas import UsageError
from schemas.problem_sums import problem_of
from schemas.registry import line
from schemas.statistics import mcnemar_exact, uncertain
from store.read import Lake
from store.results import Result, preferred


def compare(
    lake: Lake, runs: Sequence[str], *, n_resample: int = 500, level: float = 0.95, seed: int = 0
) -> xr.Dataset:
    """Lay runs beside each other.

    Parameters
    ----------
    lake
        Opened lake.
    runs
        At least two of its runs. Patching, which needs pairs, is that of the model's run over pairs where a run is not
        over pairs itself; everything else is the run's own. ``attrs["sources"]`` says from which result each part of
        each run comes, and ``attrs["origins"]`` from which other run, by variable and run.
    n_resample
        Resamples of problems behind paired intervals.
    level
        Coverage of the intervals of differences.
    seed
        Of the resamples.

    Returns
    -------
    Dataset
        All with ``model``, labelled by run. ``accuracy``, also by ``n_step``; ``probe_auroc``, ``probe_accuracy``
        (depth, position) and ``step_probe`` (step, depth, position); ``sae_...``; ``error_auroc`` (predictor);
        ``importance`` (corruption, position); ``attention`` (depth, position) of ``eot``; ``hub_received``,
        ``hub_expected``, ``composite`` (rank), ``type_count`` (type), ``band_count`` (band), ``mean_hub``,
        ``mean_skip``, ``mean_sequential``, ``hub_position``; ``number_share`` (depth, position) and ``chain_share``
        (step, position);
        ``ablation_accuracy`` (operation, group, place) and ``patch_clean``, ``patch_corrupted`` (n_thought, place),
        ``n_that_wins`` (place), where ``place`` is ``fed`` or a relative depth; each with ``_low`` and ``_high`` where
        it has an interval. ``X_difference`` (model, other_model, ...) of the main ones, first less second, with its
        interval;
        ``paired_X`` (model, other_model): 1 paired, 0 not; ``accuracy_p`` by McNemar's exact test.
        ``attrs["missing"]`` lists what the lake does not have, and the command that makes it.

    Raises
    ------
    UsageError
        If there are fewer than two runs, or one is named twice.
    MissingRunError
        If a run is not in the lake.
    """
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise UsageError(f"a comparison takes at least two different runs; got {', '.join(runs) or 'none'}")
    attributes = {run: lake.attributes(run) for run in runs}
    n_depth = max(int(model["layout"]["n_layer"]) for model in attributes.values())
    depth = np.linspace(0, 1, n_depth) if n_depth > 1 else np.zeros(1)
    stored = lake.results()
    columns: dict[str, list[xr.Dataset]] = {run: [] for run in runs}
    raw: dict[str, dict[str, xr.DataArray]] = {}
    missing, sources = [], {}
    origins: dict[str, dict[str, str]] = {}
    marks = {run: str(lake.attributes(run)["fingerprint"]) for run in lake.runs()}
    for part in PARTS:
        for run in runs:
            result = _result_of(part, run, stored, marks) if part.kind else None
            if part.kind and result is None:
                if part.of_thoughts and not attributes[run]["layout"]["n_latent"]:
                    continue
                missing.append(
                    f"{run}: {part.name}; {line(part.kind, part.options).replace('RUNS', _source_run(lake, part, run))}"
                )
                continue
            data = lake[run] if result is None else lake.open_result(result.name)
            readings, by_example = part.read(Source(run, attributes[run], data, depth))
            columns[run].append(readings)
            if result is not None:
                sources[f"{part.name} of {run}"] = f"{result.name} {result.fingerprint[:12]}"
                if result.runs[0] != run:
                    origins.setdefault(part.main, {})[run] = result.runs[0]
            if by_example is not None:
                origin = run if result is None else result.runs[0]
                raw.setdefault(part.name, {})[run] = by_example.assign_attrs(origin=origin)
    model = xr.DataArray(np.array(list(runs), dtype=object), dims="model", name="model")
    merged = [xr.merge(parts, join="outer", compat="override", combine_attrs="drop") for parts in columns.values()]
    out: xr.Dataset = xr.concat(merged, dim=model, join="outer", data_vars="all", coords="minimal", compat="override")
    out = _in_order(out)
    layers = np.stack([np.abs(np.arange(n) / max(1, n - 1) - depth[:, None]).argmin(1) for n in
                       (int(attributes[run]["layout"]["n_layer"]) for run in runs)])  # fmt: skip
    draws: dict[bytes, xr.DataArray] = {}
    out["layer_at_depth"] = (("model", "depth"), layers)
    for part in PARTS:
        if part.main and part.main in out:
            known = raw.get(part.name, {})
            data_of = {run: _data_mark(lake, str(known[run].attrs["origin"])) for run in known}
            out = out.merge(_differences(out, part.main, known, data_of, draws, n_resample, level, seed))
    data_marks = {_data_mark(lake, run) for run in runs}
    return out.assign_attrs(
        kind="compare",
        missing=json.dumps(missing),
        sources=json.dumps(sources, sort_keys=True),
        origins=json.dumps(origins, sort_keys=True),
        same_data=int(len(data_marks) == 1),
        level=level,
        n_resample=n_resample,
        seed=seed,
        note="paired over the same problems"
        if len(data_marks) == 1
        else "the runs are over different data: differences are unpaired",
    )


def comparison_table(result: xr.Dataset) -> pd.DataFrame:
    """One row for each model with its headline figures, as far as they are there."""
    rows = []
    for index, run in enumerate(result["model"].values):
        one = result.isel(model=index)
        row: dict[str, Any] = {"model": str(run), "n_example": int(one["n_example"])}
        row |= {f"accuracy{end}": float(one[f"accuracy{end}"]) for end in ENDS}
        if "hub_received" in one and (hub := str(one["hub_position"].item())) != "nan":  # of a run without head scores
            row["hub"] = hub
            if hub in one["position"].values:
                to_hub = one.sel(position=hub)
                row["hub_ratio"] = float(to_hub["hub_received"] / to_hub["hub_expected"])
        if "composite" in one:
            row["top_composite"] = float(one["composite"].isel(rank=0))
        if "probe_auroc" in one:
            row["best_probe_auroc"] = _most(one["probe_auroc"])
        if "importance" in one and "mean" in one["corruption"].values:
            values = one["importance"].sel(corruption="mean")
            if values.notnull().any():
                row["most_important"] = str(values["position"].values[int(np.nanargmax(values.values))])
                row["importance"] = _most(values)
        if "number_share" in one:
            last = one["number_share"].isel(depth=-1)
            row["number_positions"] = " ".join(
                str(p) for p, v in zip(last["position"].values, last.values, strict=True) if v >= 0.5
            )
        if "patch_clean" in one:
            row["clean_with_all"] = _most(
                one["patch_clean"].sel(place="fed") if "fed" in one["place"].values else one["patch_clean"]
            )
        if "n_that_wins" in one and "fed" in one["place"].values:
            row["n_that_wins"] = float(one["n_that_wins"].sel(place="fed"))
        if "patch_clean" in one and (origin := origin_of(result, "patch_clean", str(run))) != run:
            row["patched_run"] = origin
        rows.append(row)
    return pd.DataFrame(rows)


def difference_table(result: xr.Dataset) -> pd.DataFrame:
    """Every difference of every pair of models as rows: what, where, value, interval, paired or not.

    ``first_of`` and ``second_of`` are the runs that the two values were computed from.
    """
    columns = ["what", "where", "first", "second", "difference", "low", "high", "paired", "first_of", "second_of"]
    rows = []
    for part in PARTS:
        name = f"{part.main}_difference"
        if not part.main or name not in result:
            continue
        dims = [str(d) for d in result[name].dims if d not in ("model", "other_model")]
        for first, second in combinations(result["model"].values, 2):
            one = result.sel(model=first, other_model=second)
            table = one[[name, f"{name}_low", f"{name}_high"]].to_dataframe().reset_index() if dims else pd.DataFrame(
                [{key: float(one[key]) for key in (name, f"{name}_low", f"{name}_high")}]
            )  # fmt: skip
            table = table.rename(columns={name: "difference", f"{name}_low": "low", f"{name}_high": "high"})
            table["where"] = (
                [", ".join(_spoken(dim, row[dim]) for dim in dims) for _, row in table.iterrows()] if dims else ""
            )
            table = table.assign(
                what=part.main, first=str(first), second=str(second), paired=bool(one[f"paired_{part.main}"] == 1),
                first_of=origin_of(result, part.main, str(first)), second_of=origin_of(result, part.main, str(second)),
            )  # fmt: skip
            rows.append(table[columns].dropna(subset=["difference"]))
    if not rows:
        return pd.DataFrame(columns=columns)
    return pd.concat(rows, ignore_index=True)


def _spoken(dim: str, label: Any) -> str:
    return f"depth {float(label):.2f}" if dim == "depth" else f"{label}"


def _most(values: xr.DataArray) -> float:
    return float(values.max()) if values.notnull().any() else float("nan")


def _result_of(part: Part, run: str, stored: list[Result], marks: Mapping[str, str]) -> Result | None:
    """The preferred result of a run as it is now; where a part needs pairs, else that of the model's run over pairs."""
    fitting = preferred(
        result
        for result in stored
        if result.kind == part.kind
        and len(result.runs) == 1
        and part.where(result.spec)
        and all(marks.get(name) == mark for name, mark in result.inputs.items())
    )
    own = [result for result in fitting if result.runs[0] == run]
    if part.on_pairs and not own:
        own = [result for result in fitting if result.runs[0].partition("/")[0] == run.partition("/")[0]]
    return own[0] if own else None


def _source_run(lake: Lake, part: Part, run: str) -> str:
    """The run that a part of a run is to be computed from: of a part that needs pairs, one over pairs."""
    if not part.on_pairs:
        return run
    model = run.partition("/")[0]
    same_model = [run, *(name for name in lake.runs() if name.partition("/")[0] == model)]
    return next((name for name in same_model if "pair" in lake[name].variables), f"{model}/PAIRS")


def origin_of(result: xr.Dataset, variable: str, run: str) -> str:
    """The run that a variable of a compared run was computed from."""
    origins: dict[str, dict[str, str]] = json.loads(str(result.attrs.get("origins", "{}")))
    return origins.get(variable, {}).get(run, run)


def _data_mark(lake: Lake, run: str) -> str:
    return str(lake.attributes(run).get("data", {}).get("sha256", run))


def _in_order(result: xr.Dataset) -> xr.Dataset:
    """Labels in the order of the sequence, not of the alphabet an outer join leaves them in."""
    for dim in ("position", "place"):
        if dim in result.dims:
            labels = [str(x) for x in result[dim].values]
            result = result.isel({dim: sorted(range(len(labels)), key=lambda i: _order(labels[i]))})
    return result


def _order(label: str) -> tuple[int, float]:
    if label.startswith("ct") and label[2:].isdecimal():
        return 1, int(label[2:])
    fixed = {"bot": (0, 0.0), "eot": (2, 0.0), "fed": (-1, 0.0), "all layers": (9, 0.0)}
    if label in fixed:
        return fixed[label]
    try:
        return 3, float(label)
    except ValueError:
        return 4, 0.0


def _differences(
    result: xr.Dataset,
    name: str,
    raw: Mapping[str, xr.DataArray],
    data_of: Mapping[str, str],
    draws: dict[bytes, xr.DataArray],
    n_resample: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    """Differences of one variable between every two models, with their intervals."""
    runs = [str(run) for run in result["model"].values]
    values = result[name]
    inner = [str(dim) for dim in values.dims if dim != "model"]
    shape = (len(runs), len(runs), *(values.sizes[dim] for dim in inner))
    estimates = {end: np.full(shape, np.nan) for end in ENDS}
    paired = np.full(shape[:2], np.nan)
    p = np.full(shape[:2], np.nan)
    shared = np.full(shape[:2], np.nan)
    for i, j in combinations(range(len(runs)), 2):
        one, other = runs[i], runs[j]
        same = one in raw and other in raw and data_of[one] == data_of[other]
        if same:
            x, y = xr.align(raw[one], raw[other], join="inner", exclude=[d for d in inner if d in raw[one].dims])
            same = x.sizes["example"] > 1
        if same:
            x, y = (part.reindex({dim: values[dim] for dim in inner if dim in part.dims}) for part in (x, y))
            known = x.notnull() & y.notnull() if name != "importance" else None
            difference, low, high = _paired(x, y, known, draws, n_resample, level, seed)
            estimate = [array.transpose(*inner).values for array in (difference, low, high)]
            if f"{name}_low" in result:
                own = [[result[name + end].isel(model=k).transpose(*inner).values for end in ENDS] for k in (i, j)]
                estimate[1:] = uncertain(*estimate[1:], *own)
            shared[i, j] = shared[j, i] = x.sizes["example"]
            if not inner:
                p[i, j] = p[j, i] = mcnemar_exact(x.values == 1, y.values == 1, problem_of(x)).p
        else:
            estimate = _unpaired(result.isel(model=i), result.isel(model=j), name, inner)
        paired[i, j] = paired[j, i] = float(same)
        for end, bound in zip(estimates, estimate, strict=True):
            estimates[end][i, j] = bound
        estimates[""][j, i] = -estimate[0]
        estimates["_low"][j, i], estimates["_high"][j, i] = -estimate[2], -estimate[1]
    coords = {"other_model": np.array(runs, dtype=object)}
    dims = ("model", "other_model", *inner)
    new: dict[str, Any] = {f"{name}_difference{end}": (dims, array) for end, array in estimates.items()}
    new[f"paired_{name}"] = (("model", "other_model"), paired)
    if np.isfinite(shared).any():
        new[f"n_shared_{name}"] = (("model", "other_model"), shared)
    if np.isfinite(p).any():
        new[f"{name}_p"] = (("model", "other_model"), p)
    return xr.Dataset(new, coords=coords)


def _paired(
    x: xr.DataArray,
    y: xr.DataArray,
    known: xr.DataArray | None,
    draws: dict[bytes, xr.DataArray],
    n_resample: int,
    level: float,
    seed: int,
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Difference of means over shared examples, resampled by problem; both means use the same draws."""
    if known is not None:
        x, y = x.where(known), y.where(known)
    labels = np.ascontiguousarray(problem_of(x))
    if labels.tobytes() not in draws:
        draws[labels.tobytes()] = bootstrap_weights(xr.DataArray(labels, dims="example"), n_resample, seed)
    weights = draws[labels.tobytes()]
    x, y = (side.drop_vars(["example", "problem"], errors="ignore") for side in (x, y))
    drawn = weighted_mean(x, weights) - weighted_mean(y, weights)
    both = x.notnull() & y.notnull()
    counted = xr.dot(both.astype("float32"), weights, dim="example")
    difference = x.mean("example") - y.mean("example")
    return difference, *percentile_interval(drawn, both.sum("example"), counted, level)


def _unpaired(one: xr.Dataset, other: xr.Dataset, name: str, inner: Sequence[str]) -> list[np.ndarray]:
    """Difference with an interval from the two models' own, squared and added, as for independent samples."""
    a, b = (side[name].transpose(*inner).values.astype(float) for side in (one, other))
    if f"{name}_low" not in one:
        return [a - b, np.full_like(a, np.nan), np.full_like(a, np.nan)]
    (a_low, a_high), (b_low, b_high) = (
        [side[f"{name}_{end}"].transpose(*inner).values.astype(float) for end in ("low", "high")]
        for side in (one, other)
    )
    low = a - b - np.hypot(a - a_low, b_high - b)
    high = a - b + np.hypot(a_high - a, b - b_low)
    return [a - b, low, high]
