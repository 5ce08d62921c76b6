"""Runs beside each other: everything the lake knows of them with ``model`` as a dim, and differences with intervals.

Nothing is computed anew but differences: a comparison puts together what other analyses left in the lake and says what
is missing. Layers of models of different depth meet by relative depth ``l / (L - 1)``: at each depth stands each
model's nearest layer, never an interpolation. Examples meet by their label, where the runs are over the same data; a
difference is then paired (resampled by problem, the same problems for both). Where the data differ, or a result keeps
no examples apart, its interval comes from the two models' own, as if they were independent, and ``paired_...`` says so.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyze.heads import head_table, summary_of_analysis
from analyze.statistics import bootstrap_weights, mcnemar_exact, percentile_interval, weighted_mean, wilson_interval
from schemas import UsageError
from store.read import Lake, Result

N_TOP = 20
"""Heads whose composite is laid side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One thing that is compared."""

    name: str
    kind: str
    """Kind of result it is read from; ``""``: the run itself."""
    command: str
    """Command that makes it."""
    read: Callable[["_Source"], tuple[xr.Dataset, xr.DataArray | None]]
    """Figures of a run, and what they are means of, by example, where the result keeps that."""
    main: str = ""
    """Variable whose difference is taken; it has ``_low`` and ``_high``."""
    where: Callable[[Mapping[str, Any]], bool] = lambda spec: True
    """Which results of the kind fit, by their settings."""


@dataclass(slots=True)
class _Source:
    """A run and one of its results."""

    run: str
    attributes: Mapping[str, Any]
    data: xr.Dataset
    """The result, or the run itself."""
    depth: np.ndarray
    """Relative depths that models are laid side by side at."""

    def at_depth(self, values: Any) -> Any:
        """``layer`` exchanged for ``depth``: at each the nearest of the layers there are."""
        layers = np.asarray(values["layer"].values)
        n_layer = int(self.attributes["layout"]["n_layer"])
        relative = layers / max(1, n_layer - 1)
        nearest = np.abs(relative[None, :] - self.depth[:, None]).argmin(1)
        picked = values.isel(layer=nearest).rename(layer="depth").drop_vars("depth", errors="ignore")
        return picked.assign_coords(depth=self.depth)


def compare(
    lake: Lake, runs: Sequence[str], *, n_resample: int = 500, level: float = 0.95, seed: int = 0
) -> xr.Dataset:
    """Lay runs beside each other.

    Parameters
    ----------
    lake
        Opened lake.
    runs
        At least two of its runs. What a run's model has only for another of its runs (patching needs pairs) is taken
        from there; ``attrs["sources"]`` says from which result each part of each model comes.
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
    n_depth = max(int(each["layout"]["n_layer"]) for each in attributes.values())
    depth = np.linspace(0, 1, n_depth) if n_depth > 1 else np.zeros(1)
    stored = lake.results()
    columns: dict[str, list[xr.Dataset]] = {run: [] for run in runs}
    raw: dict[str, dict[str, xr.DataArray]] = {}
    missing, sources = [], {}
    for part in PARTS:
        for run in runs:
            result = _result_of(part, run, stored, attributes[run]) if part.kind else None
            if part.kind and result is None:
                missing.append(f"{run}: {part.name}; {part.command}")
                continue
            data = lake[run] if result is None else lake.open_result(result.name)
            found, by_example = part.read(_Source(run, attributes[run], data, depth))
            columns[run].append(found)
            if result is not None:
                sources[f"{part.name} of {run}"] = f"{result.name} {result.fingerprint[:12]}"
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
        row |= {f"accuracy{end}": float(one[f"accuracy{end}"]) for end in ("", "_low", "_high")}
        if "hub_position" in one and "hub_received" in one:
            hub = str(one["hub_position"].item())
            row["hub"] = hub
            if hub in one["position"].values:
                at = one.sel(position=hub)
                row["hub_ratio"] = float(at["hub_received"] / at["hub_expected"])
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
        rows.append(row)
    return pd.DataFrame(rows)


def difference_table(result: xr.Dataset) -> pd.DataFrame:
    """Every difference of every pair of models as rows: what, where, value, interval, paired or not."""
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
                what=part.main, first=str(first), second=str(second), paired=bool(one[f"paired_{part.main}"] == 1)
            )
            rows.append(
                table[["what", "where", "first", "second", "difference", "low", "high", "paired"]].dropna(
                    subset=["difference"]
                )
            )
    if not rows:
        return pd.DataFrame(columns=["what", "where", "first", "second", "difference", "low", "high", "paired"])
    return pd.concat(rows, ignore_index=True)


def _spoken(dim: str, label: Any) -> str:
    return f"depth {float(label):.2f}" if dim == "depth" else f"{label}"


def _most(values: xr.DataArray) -> float:
    return float(values.max()) if values.notnull().any() else float("nan")


def _result_of(part: Part, run: str, stored: list[Result], attributes: Mapping[str, Any]) -> Result | None:
    """A result of the run; else one of another run of its model."""
    model = run.partition("/")[0]
    fitting = [r for r in stored if r.kind == part.kind and len(r.runs) == 1 and part.where(r.spec)]
    own = [r for r in fitting if r.runs[0] == run and r.inputs.get(run) == attributes["fingerprint"]]
    others = [r for r in fitting if r.runs[0].partition("/")[0] == model]
    return next(iter(own or others), None)


def _data_mark(lake: Lake, run: str) -> str:
    return str(lake.attributes(run)["data"].get("sha256", run))


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


# --- what is read --------------------------------------------------------------------------------------------------


def _accuracy(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    run = source.data
    correct = run["correct"].compute().astype("float64")
    low, high = wilson_interval(correct.sum().item(), correct.size)
    found = xr.Dataset({"accuracy": float(correct.mean()), "accuracy_low": float(low), "accuracy_high": float(high)})
    found["n_example"] = correct.size
    if "intermediate_result" in run:
        steps = np.isfinite(run["intermediate_result"].values).sum(1)
        lengths = np.unique(steps[steps > 0])
        if len(lengths):
            count = np.array([correct.values[steps == n].sum() for n in lengths])
            total = np.array([(steps == n).sum() for n in lengths])
            low, high = wilson_interval(count, total)
            for name, values in (("", count / total), ("_low", low), ("_high", high)):
                found[f"accuracy_by_step{name}"] = ("n_step", np.asarray(values))
            found = found.assign_coords(n_step=lengths)
    return found, _plain(correct)


def _plain(values: xr.DataArray) -> xr.DataArray:
    """Only the coordinates that examples are joined by."""
    return values.drop_vars([name for name in values.coords if name not in (*values.dims, "problem")]).rename("value")


def _named(data: xr.Dataset, names: Mapping[str, str]) -> xr.Dataset:
    """Variables under new names, with their intervals."""
    found = {}
    for old, new in names.items():
        for end in ("", "_low", "_high"):
            if old + end in data:
                found[new + end] = data[old + end]
    kept = xr.Dataset(found)
    return kept.drop_vars([name for name in kept.coords if name not in kept.dims]).drop_attrs()


def _up_to_eot(data: xr.Dataset) -> xr.Dataset:
    return data.sel(position=[p for p in data["position"].values if not str(p).startswith(("q-", "a"))])


def _probes(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    names = {"auroc": "probe_auroc", "accuracy": "probe_accuracy", "majority_accuracy": "probe_majority"}
    return source.at_depth(_named(_up_to_eot(source.data), names)), None


def _step_probes(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    return source.at_depth(
        _named(_up_to_eot(source.data), {"r2": "step_probe", "accuracy": "step_probe_accuracy"})
    ), None


def _sae(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data
    split = "test" if "test" in data["split"].values else data["split"].values[-1]
    variance = data["explained_variance_all"].sel(split=split, definition="squared_error")
    return xr.Dataset(
        {
            "sae_explained_variance": float(variance.mean()),
            "sae_l0": float(data["l0"].sel(split=split).mean()),
            "sae_dead_share": float(data["dead_share"].sel(split=split).mean()),
        }
    ), None


def _errors(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    return _named(source.data, {"auroc": "error_auroc", "accuracy": "error_accuracy"}), None


def _heads(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    summary = summary_of_analysis(source.data, N_TOP)
    thoughts = summary["key_position"].values
    composite = head_table(source.data)["composite"].to_numpy()[:N_TOP]
    found = xr.Dataset(
        {
            "hub_received": ("position", summary["incoming"].values),
            "hub_expected": ("position", summary["expected"].values),
            "skip": ("position", summary["skip"].values),
            "composite": ("rank", composite),
            **{
                name: summary[name].drop_attrs()
                for name in ("type_count", "band_count", "mean_hub", "mean_skip", "mean_sequential")
            },
            "hub_position": str(summary["hub_position"].item()),
        },
        coords={
            "position": thoughts,
            "rank": np.arange(1, len(composite) + 1),
            "type": summary["type"],
            "band": summary["band"],
        },
    )
    return found, None


def _attention(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    at = source.data.sel(query="eot")
    thoughts = [t for t in at["target"].values if str(t).startswith("ct")]
    part = _named(at, {"layer_share": "attention"})
    total = part["attention"].sel(target=thoughts).sum("target").rename("attention_total")
    found = part.sel(target=thoughts).rename(target="position").merge(total)
    return source.at_depth(found), None


def _decoding(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = _up_to_eot(source.data)
    found = source.at_depth(_named(data, {"number_share": "number_share"}))
    name = "inner_share" if "inner_share" in data else "step_share"
    last = _named(data.isel(layer=-1), {name: "chain_share"})
    return found.merge(last), None


def _conditions(data: xr.Dataset) -> pd.DataFrame:
    """Conditions of a re-entry with their coordinates, numbered."""
    names = [name for name, value in data.coords.items() if value.dims == ("condition",)]
    frame = pd.DataFrame({str(name): data[name].values for name in names})
    frame["row"] = np.arange(len(frame))
    frame["control"] = frame["control"].astype(str)
    return frame


def _place(source: _Source, site: Any, layer: Any) -> str:
    if str(site) == "latent_embedding":
        return "fed"
    n_layer = int(source.attributes["layout"]["n_layer"])
    return "all layers" if int(layer) < 0 else f"{int(layer) / max(1, n_layer - 1):.2f}"


def _grid(data: xr.Dataset, rows: pd.DataFrame, dims: Sequence[str], names: Mapping[str, str]) -> xr.Dataset:
    """Figures of some conditions, unfolded along their coordinates."""
    axes = {dim: list(dict.fromkeys(rows[dim])) for dim in dims}
    shape = [len(labels) for labels in axes.values()]
    at = tuple(np.array([labels.index(value) for value in rows[dim]], dtype=int) for dim, labels in axes.items())
    found = {}
    for old, new in names.items():
        for end in ("", "_low", "_high"):
            if old + end not in data:
                continue
            values = data[old + end].transpose("condition", ...).values[rows["row"].to_numpy()]
            full = np.full((*shape, *values.shape[1:]), np.nan)
            full[at] = values
            extra = [str(dim) for dim in data[old + end].dims if dim != "condition"]
            found[new + end] = ((*dims, *extra), full)
    coords = {
        dim: np.array(labels, dtype=object if isinstance(labels[0], str) else None) for dim, labels in axes.items()
    }
    return xr.Dataset(found, coords=coords)


def _by_example(data: xr.Dataset, values: np.ndarray, rows: pd.DataFrame, dims: Sequence[str]) -> xr.DataArray:
    """Values (condition, example) of some conditions, unfolded, with the coordinates examples are joined by."""
    coords = {
        name: data[name].values
        for name in ("example", "problem")
        if name in data.coords and data[name].dims == ("example",)
    }
    flat = xr.Dataset({"value": (("condition", "example"), values)})
    grid = _grid(flat, rows, dims, {"value": "value"})["value"]
    return grid.assign_coords({name: ("example", labels) for name, labels in coords.items()}).transpose("example", ...)


def _importance(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data.sel(stratum="all") if "stratum" in source.data.dims else source.data
    rows = _conditions(data)
    rows = rows[(rows["control"] == "") & ~rows["corruption"].isin(["", "shuffle", "replace"])].rename(
        columns={"group": "position"}
    )
    rows = rows[rows["position"].astype(str) != "all"].drop_duplicates(["corruption", "position"])
    dims = ("corruption", "position")
    correct = data["correct"].transpose("condition", "example").values.astype(bool)
    lost = np.where(correct[0], ~correct, np.nan)
    return _grid(data, rows, dims, {"importance": "importance"}), _by_example(data, lost, rows, dims)


def _ablation(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data.sel(stratum="all") if "stratum" in source.data.dims else source.data
    rows = _conditions(data)
    rows = rows[rows["control"].isin(["", "random positions"]) & rows["operation"].isin(["zero", "mean"])]
    rows = rows.assign(place=[_place(source, s, layer) for s, layer in zip(rows["site"], rows["layer"], strict=True)])
    dims = ("operation", "group", "place")
    rows = rows.drop_duplicates(list(dims))
    right = data["correct"].transpose("condition", "example").values.astype(float)
    right = np.where(data["counted"].transpose("condition", "example").values.astype(bool), right, np.nan)
    return _grid(data, rows, dims, {"accuracy": "ablation_accuracy"}), _by_example(data, right, rows, dims)


def _patching(source: _Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data
    rows = _conditions(data)
    rows = rows[(rows["kind"] == "first") & (rows["control"] == "")]
    rows = rows.assign(
        place=[_place(source, s, layer) for s, layer in zip(rows["site"], rows["layer"], strict=True)],
        n_thought=rows["n"].astype(int),
    )
    dims = ("place", "n_thought")
    clean = data[["share", "share_low", "share_high"]].sel(outcome_kind="clean_answer")
    corrupted = data[["share", "share_low", "share_high"]].sel(outcome_kind="corrupted_answer")
    found = _grid(clean, rows, dims, {"share": "patch_clean"}).merge(
        _grid(corrupted, rows, dims, {"share": "patch_corrupted"})
    )
    if "n_that_wins" in data:
        places = [
            _place(source, s, layer)
            for s, layer in zip(data["series_site"].values, data["series_layer"].values, strict=True)
        ]
        wins = {
            name: ("place", data[name].values)
            for name in ("n_that_wins", "n_that_wins_low", "n_that_wins_high", "never_wins")
        }
        found = found.merge(xr.Dataset(wins, coords={"place": np.array(places, dtype=object)}), join="outer")
    outcome = data["outcome"].transpose("condition", "example").values.astype(str)
    return found, _by_example(data, (outcome == "clean_answer").astype(float), rows, dims)


def _thoughts_convention(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("convention", "thoughts") == "thoughts")


PARTS: Sequence[Part] = (
    Part(name="accuracy", kind="", command="lake extract", read=_accuracy, main="accuracy"),
    Part(name="number decoding", kind="lens", command="lake analyze lens", read=_decoding, main="number_share",
         where=lambda spec: bool(spec.get("lens", "plain") == "plain")),
    Part(name="probes of correctness", kind="probes", command="lake analyze probes --target correct", read=_probes,
         main="probe_auroc", where=lambda spec: spec.get("target") == "correct" and not spec.get("n_per_class")),
    Part(name="probes of each step", kind="probes", command="lake analyze probes --target intermediate_result",
         read=_step_probes, main="step_probe", where=lambda spec: bool(spec.get("target") == "intermediate_result")),
    Part(name="sparse autoencoder", kind="sae", command="lake analyze sae", read=_sae),
    Part(name="error prediction", kind="errors", command="lake analyze errors", read=_errors, main="error_auroc"),
    Part(name="importance", kind="corrupt", command="lake reenter corrupt", read=_importance, main="importance"),
    Part(name="attention of the answer", kind="attention", command="lake analyze attention", read=_attention,
         main="attention"),
    Part(name="heads", kind="heads", command="lake analyze heads", read=_heads, where=_thoughts_convention),
    Part(name="position ablation", kind="ablate", command="lake reenter ablate", read=_ablation,
         main="ablation_accuracy"),
    Part(name="patching", kind="patch", command="lake reenter patch", read=_patching, main="patch_clean",
         where=lambda spec: not spec.get("legacy")),
)  # fmt: skip


# --- differences ---------------------------------------------------------------------------------------------------


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
    found = {end: np.full(shape, np.nan) for end in ("", "_low", "_high")}
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
            x, y = (each.reindex({dim: values[dim] for dim in inner if dim in each.dims}) for each in (x, y))
            known = x.notnull() & y.notnull() if name != "importance" else None
            difference, low, high = _paired(x, y, known, draws, n_resample, level, seed)
            estimate = [each.transpose(*inner).values for each in (difference, low, high)]
            shared[i, j] = shared[j, i] = x.sizes["example"]
            if not inner:
                p[i, j] = p[j, i] = mcnemar_exact(x.values == 1, y.values == 1).p
        else:
            estimate = _unpaired(result.isel(model=i), result.isel(model=j), name, inner)
        paired[i, j] = paired[j, i] = float(same)
        for end, each in zip(found, estimate, strict=True):
            found[end][i, j] = each
        found[""][j, i] = -estimate[0]
        found["_low"][j, i], found["_high"][j, i] = -estimate[2], -estimate[1]
    coords = {"other_model": np.array(runs, dtype=object)}
    dims = ("model", "other_model", *inner)
    new: dict[str, Any] = {f"{name}_difference{end}": (dims, array) for end, array in found.items()}
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
    problem = x.coords["problem"] if "problem" in x.coords else x["example"]
    labels = np.ascontiguousarray(problem.values)
    if labels.tobytes() not in draws:
        draws[labels.tobytes()] = bootstrap_weights(xr.DataArray(labels, dims="example"), n_resample, seed)
    weights = draws[labels.tobytes()]
    x, y = (each.drop_vars(["example", "problem"], errors="ignore") for each in (x, y))
    drawn = weighted_mean(x, weights) - weighted_mean(y, weights)
    difference = x.mean("example") - y.mean("example")
    low, high = percentile_interval(drawn.fillna(0), level)
    return difference, low.where(difference.notnull()), high.where(difference.notnull())


def _unpaired(one: xr.Dataset, other: xr.Dataset, name: str, inner: Sequence[str]) -> list[np.ndarray]:
    """Difference with an interval from the two models' own, squared and added, as for independent samples."""
    a, b = (each[name].transpose(*inner).values.astype(float) for each in (one, other))
    if f"{name}_low" not in one:
        return [a - b, np.full_like(a, np.nan), np.full_like(a, np.nan)]
    (a_low, a_high), (b_low, b_high) = (
        [each[f"{name}_{end}"].transpose(*inner).values.astype(float) for end in ("low", "high")]
        for each in (one, other)
    )
    low = a - b - np.hypot(a - a_low, b_high - b)
    high = a - b + np.hypot(a_high - a, b - b_low)
    return [a - b, low, high]
