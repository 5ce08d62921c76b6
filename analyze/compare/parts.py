"""What a comparison lays side by side, and how each of it is read from the results that other analyses left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyze.effects.conditions import by_carrying, conditions, into_corrupted
from analyze.heads.command import by_thoughts
from analyze.heads.summary import head_summary, head_table
from analyze.labels import thought_labels, up_to_eot
from analyze.lens.command import is_plain
from analyze.probes.command import as_they_come
from analyze.tables import ENDS, Frame
from schemas.problem_sums import problem_of
from schemas.statistics import share_interval

N_TOP = 20
"""Heads whose composite is laid side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One thing that is compared."""

    name: str
    kind: str
    """Kind of result it is read from; ``""``: the run itself."""
    read: Callable[["Source"], tuple[xr.Dataset, xr.DataArray | None]]
    """Figures of a run, and what they are means of, by example, where the result keeps that."""
    main: str = ""
    """Variable whose difference is taken; it has ``_low`` and ``_high``."""
    options: str = ""
    """What the command that makes it takes beside its defaults."""
    where: Callable[[Mapping[str, Any]], bool] = lambda spec: True
    """Which results of the kind fit, by their settings."""
    on_pairs: bool = False
    """Whether it takes a run over clean/corrupted pairs."""
    of_thoughts: bool = False
    """Whether a run without thoughts can have none of it."""


@dataclass(slots=True)
class Source:
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


def _accuracy(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    run = source.data
    correct = run["correct"].compute().astype("float64")
    problem = problem_of(run)
    right = correct.values == 1
    low, high = share_interval(right, np.ones_like(right), problem)
    accuracy = xr.Dataset({"accuracy": float(correct.mean()), "accuracy_low": float(low), "accuracy_high": float(high)})
    accuracy["n_example"] = correct.size
    if "intermediate_result" in run:
        steps = np.isfinite(run["intermediate_result"].values).sum(1)
        lengths = np.unique(steps[steps > 0])
        if len(lengths):
            of_length = steps == lengths[:, None]
            low, high = share_interval(np.broadcast_to(right, of_length.shape), of_length, problem)
            share = (right & of_length).sum(1) / of_length.sum(1)
            for name, values in (("", share), ("_low", low), ("_high", high)):
                accuracy[f"accuracy_by_step{name}"] = ("n_step", np.asarray(values))
            accuracy = accuracy.assign_coords(n_step=lengths)
    return accuracy, _plain(correct)


def _plain(values: xr.DataArray) -> xr.DataArray:
    """Only the coordinates that examples are joined by."""
    return values.drop_vars([name for name in values.coords if name not in (*values.dims, "problem")]).rename("value")


def _named(data: xr.Dataset, names: Mapping[str, str]) -> xr.Dataset:
    """Variables under new names, with their intervals."""
    renamed = {}
    for old, new in names.items():
        for end in ENDS:
            if old + end in data:
                renamed[new + end] = data[old + end]
    kept = xr.Dataset(renamed)
    return kept.drop_vars([name for name in kept.coords if name not in kept.dims]).drop_attrs()


def _probes(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    names = {"auroc": "probe_auroc", "accuracy": "probe_accuracy", "majority_accuracy": "probe_majority"}
    return source.at_depth(_named(up_to_eot(source.data), names)), None


def _step_probes(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    names = {"r2": "step_probe", "accuracy": "step_probe_accuracy"}
    return source.at_depth(_named(up_to_eot(source.data), names)), None


def _sae(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
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


def _errors(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    return _named(source.data, {"auroc": "error_auroc", "accuracy": "error_accuracy"}), None


def _heads(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    summary = head_summary(source.data, N_TOP)
    thoughts = summary["key_position"].values
    composite = head_table(source.data)["composite"].to_numpy()[:N_TOP]
    heads = xr.Dataset(
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
    return heads, None


def _attention(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    at_eot = source.data.sel(query="eot")
    thoughts = thought_labels(at_eot, "target")
    part = _named(at_eot, {"layer_share": "attention"})
    total = part["attention"].sel(target=thoughts).sum("target").rename("attention_total")
    shares = part.sel(target=thoughts).rename(target="position").merge(total)
    return source.at_depth(shares), None


def _decoding(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = up_to_eot(source.data)
    decoding = source.at_depth(_named(data, {"number_share": "number_share"}))
    name = "inner_share" if "inner_share" in data else "step_share"
    last = _named(data.isel(layer=-1), {name: "chain_share"})
    return decoding.merge(last), None


def _place(source: Source, site: Any, layer: Any) -> str:
    if str(site) == "latent_embedding":
        return "fed"
    n_layer = int(source.attributes["layout"]["n_layer"])
    return "all layers" if int(layer) < 0 else f"{int(layer) / max(1, n_layer - 1):.2f}"


def _grid(data: xr.Dataset, rows: Frame, dims: Sequence[str], names: Mapping[str, str]) -> xr.Dataset:
    """Figures of some conditions, unfolded along their coordinates."""
    axes = {dim: list(dict.fromkeys(rows[dim])) for dim in dims}
    shape = [len(labels) for labels in axes.values()]
    cell = tuple(np.array([labels.index(value) for value in rows[dim]], dtype=int) for dim, labels in axes.items())
    cells = {}
    for old, new in names.items():
        for end in ENDS:
            if old + end not in data:
                continue
            values = data[old + end].transpose("condition", ...).values[rows.index.to_numpy()]
            full = np.full((*shape, *values.shape[1:]), np.nan)
            full[cell] = values
            extra = [str(dim) for dim in data[old + end].dims if dim != "condition"]
            cells[new + end] = ((*dims, *extra), full)
    coords = {
        dim: np.array(labels, dtype=object if isinstance(labels[0], str) else None) for dim, labels in axes.items()
    }
    return xr.Dataset(cells, coords=coords)


def _by_example(data: xr.Dataset, values: np.ndarray, rows: Frame, dims: Sequence[str]) -> xr.DataArray:
    """Values (condition, example) of some conditions, unfolded, with the coordinates examples are joined by."""
    coords = {
        name: data[name].values
        for name in ("example", "problem")
        if name in data.coords and data[name].dims == ("example",)
    }
    flat = xr.Dataset({"value": (("condition", "example"), values)})
    grid = _grid(flat, rows, dims, {"value": "value"})["value"]
    return grid.assign_coords({name: ("example", labels) for name, labels in coords.items()}).transpose("example", ...)


def _importance(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data.sel(stratum="all") if "stratum" in source.data.dims else source.data
    rows = conditions(data)
    rows = rows[(rows["control"] == "") & ~rows["corruption"].isin(["", "shuffle", "replace"])].rename(
        columns={"group": "position"}
    )
    rows = rows[rows["position"].astype(str) != "all"].drop_duplicates(["corruption", "position"])
    dims = ("corruption", "position")
    correct = data["correct"].transpose("condition", "example").values.astype(bool)
    lost = np.where(correct[0], ~correct, np.nan)
    return _grid(data, rows, dims, {"importance": "importance"}), _by_example(data, lost, rows, dims)


def _ablation(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data.sel(stratum="all") if "stratum" in source.data.dims else source.data
    rows = conditions(data)
    rows = rows[rows["control"].isin(["", "random positions"]) & rows["operation"].isin(["zero", "mean"])]
    if "n_thought" in rows:
        rows = rows[rows["n_thought"] == -1]  # the others are so many thoughts, whatever they carry
    rows = rows.assign(place=[_place(source, s, layer) for s, layer in zip(rows["site"], rows["layer"], strict=True)])
    dims = ("operation", "group", "place")
    rows = rows.drop_duplicates(list(dims))
    right = data["correct"].transpose("condition", "example").values.astype(float)
    right = np.where(data["counted"].transpose("condition", "example").values.astype(bool), right, np.nan)
    return _grid(data, rows, dims, {"accuracy": "ablation_accuracy"}), _by_example(data, right, rows, dims)


def _patching(source: Source) -> tuple[xr.Dataset, xr.DataArray | None]:
    data = source.data
    rows = conditions(data)
    rows = rows[(rows["kind"] == "first") & (rows["control"] == "")]
    rows = rows.assign(
        place=[_place(source, s, layer) for s, layer in zip(rows["site"], rows["layer"], strict=True)],
        n_thought=rows["n"].astype(int),
    )
    dims = ("place", "n_thought")
    clean = data[["share", "share_low", "share_high"]].sel(outcome_kind="clean_answer")
    corrupted = data[["share", "share_low", "share_high"]].sel(outcome_kind="corrupted_answer")
    effects = _grid(clean, rows, dims, {"share": "patch_clean"}).merge(
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
        effects = effects.merge(xr.Dataset(wins, coords={"place": np.array(places, dtype=object)}), join="outer")
    outcome = data["outcome"].transpose("condition", "example").values.astype(str)
    return effects, _by_example(data, (outcome == "clean_answer").astype(float), rows, dims)


PARTS: Sequence[Part] = (
    Part(name="accuracy", kind="", read=_accuracy, main="accuracy"),
    Part(name="number decoding", kind="lens", read=_decoding, main="number_share",
         where=is_plain),
    Part(name="probes of correctness", kind="probes", options="--target correct", read=_probes,
         main="probe_auroc", where=lambda spec: spec.get("target") == "correct" and as_they_come(spec)),
    Part(name="probes of each step", kind="probes", options="--target intermediate_result",
         read=_step_probes, main="step_probe", where=lambda spec: bool(spec.get("target") == "intermediate_result")),
    Part(name="sparse autoencoder", kind="sae", read=_sae),
    Part(name="error prediction", kind="errors", read=_errors, main="error_auroc"),
    Part(name="importance", kind="corrupt", read=_importance, main="importance", of_thoughts=True),
    Part(name="attention of the answer", kind="attention", read=_attention,
         main="attention", of_thoughts=True),
    Part(name="heads", kind="heads", read=_heads, where=by_thoughts, of_thoughts=True),
    Part(name="position ablation", kind="ablate", read=_ablation,
         main="ablation_accuracy", where=by_carrying, of_thoughts=True),
    Part(name="patching", kind="patch", read=_patching, main="patch_clean",
         where=lambda spec: not spec.get("preset") and into_corrupted(spec), on_pairs=True, of_thoughts=True),
)  # fmt: skip
