"""Figures of sparse autoencoders and of error prediction. They take finished results and compute nothing."""

from typing import Any

import numpy as np
import xarray as xr

from analyze.drawing import FILLS, Results, bars, by_run, colour_bar, heatmap, line, panels
from schemas import UsageError

PREDICTOR_LABELS = {
    "sae_codes": "SAE codes",
    "raw_activation": "raw activations",
    "question_length": "question length",
    "majority": "majority",
}


def plot_sae_curves(results: Results, *, ax: Any = None) -> list[Any]:
    """Reconstruction loss on training batches and on validation rows, over steps; one panel for each result.

    Of a grid, the median over its dictionaries and their range.

    Parameters
    ----------
    results
        From :func:`analyze.sae.dictionary.train_sae`, one or by name.
    ax
        One axes for each result; a new figure if absent.
    """
    runs = by_run(results)
    axes = panels(len(runs), ax, size=(4.2, 3.2))
    for axis, (name, sae) in zip(axes, runs.items(), strict=True):
        step = sae["step"].values
        _band(axis, step, sae["train_reconstruction"], "step", 0, "training batches")
        if sae.sizes["epoch"]:
            at = sae["epoch"].values * (sae.attrs["n_step"] / sae.sizes["epoch"])
            _band(axis, at, sae["validation_reconstruction"], "epoch", 1, "validation rows")
        axis.set(xlabel="step", ylabel="squared error / squared mean norm", yscale="log", title=name)
        axis.legend(fontsize=8)
    return axes


def plot_sae_reconstruction(
    results: Results, *, split: str = "test", definition: str = "squared_error", ax: Any = None
) -> list[Any]:
    """Explained variance of every layer and position, on one scale; a crosscoder's by source.

    Parameters
    ----------
    results
        From :func:`analyze.sae.dictionary.train_sae`, one or by name.
    split, definition
        Which of ``explained_variance``.
    ax
        One axes for each result; a new figure if absent.
    """
    runs = by_run(results)
    tables = {n: _table(r["explained_variance"].sel(split=split, definition=definition)) for n, r in runs.items()}
    widest = max(table.shape[1] for table in tables.values())
    tallest = max(table.shape[0] for table in tables.values())
    axes = panels(len(runs), ax, size=(2.4 + 0.45 * widest, 1.6 + 0.28 * tallest))
    lowest = min(float(np.nanmin(table.values)) for table in tables.values())
    image = None
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        rows, columns = table.dims
        image = heatmap(
            axis,
            table.values,
            table[rows].values,
            table[columns].values,
            vmin=min(max(lowest, 0.0), 0.99),  # below 0 is as pale as 0; the cell says how far
            vmax=1,
            form=".2f",
            upper=rows == "layer",
        )
        axis.set(xlabel=str(columns), ylabel=str(rows), title=name)
        axis.tick_params(axis="x", rotation=45)
    colour_bar(axes, image, f"explained variance ({split}, {definition.replace('_', ' ')})")
    return axes


def plot_sae_features(results: Results, *, ax: Any = None) -> list[Any]:
    """How often features fire and how strongly: two panels for each result, with L0 and the dead in the titles.

    Parameters
    ----------
    results
        From :func:`analyze.sae.dictionary.train_sae`, one or by name.
    ax
        Two axes for each result; a new figure if absent.
    """
    runs = by_run(results)
    axes = panels(2 * len(runs), ax, columns=2, size=(4.2, 3.0))
    for index, (name, sae) in enumerate(runs.items()):
        often, strong = axes[2 * index : 2 * index + 2]
        cells = [d for d in sae["frequency"].dims if d not in ("feature", *sae["max_activation"].dims)]
        frequency = sae["frequency"].mean(cells).values.ravel()
        edges = np.linspace(-5, 0, 41)
        often.hist(np.log10(np.maximum(frequency[frequency > 0], 1e-5)), edges, edgecolor="black", **FILLS[2])
        often.set(xlabel="log10 of the share of rows on which a feature fires", ylabel="features")
        dead, l0 = (float(sae[n].sel(split="test").mean()) for n in ("dead_share", "l0"))
        often.set_title(f"{name}: L0 {l0:.1f}, {100 * dead:.0f}% dead on test", fontsize=9)
        size, count = sae["activation_size"].values, sae["activation_count"].values
        strong.bar(
            np.log10(size), count / max(count.sum(), 1), np.diff(np.log10(size))[0], edgecolor="black", **FILLS[0]
        )
        strong.set(xlabel="log10 of code / mean norm of centred inputs", ylabel="share of active codes")
        shown = np.log10(size[count > 0])
        if len(shown):
            strong.set_xlim(max(shown.min(), -3) - 0.2, shown.max() + 0.2)
        strong.set_title(f"{name}: sizes of codes", fontsize=9)
    return axes


def plot_source_share(result: xr.Dataset, *, source: str | None = None, ax: Any = None) -> Any:
    """How much of each crosscoder feature lies in one model: 0 and 1 are features of one model alone.

    Parameters
    ----------
    result
        A crosscoder of :func:`analyze.sae.dictionary.train_sae`.
    source
        The model whose share is drawn, summed over its layers; the first source's if absent.
    ax
        Axes; a new figure if absent.
    """
    if "source_share" not in result:
        raise UsageError("the share of sources is drawn for a crosscoder; this dictionary has one source")
    (axis,) = panels(1, ax, size=(4.6, 3.2))
    models = np.array([str(s).rsplit("/", 1)[0] for s in result["source"].values])
    wanted = source or str(models[0])
    fires = result["max_activation"].values > 0
    share = result["source_share"].values[models == wanted].sum(axis=0)[fires]
    axis.hist(share, np.linspace(0, 1, 41), edgecolor="black", **FILLS[2])
    axis.set(xlabel=f"share of the feature's squared decoder norm in {wanted}", ylabel="features that fire")
    axis.set_title(f"{', '.join(dict.fromkeys(models))}: {fires.sum()} of {len(fires)} features fire", fontsize=9)
    return axis


def plot_error_prediction(
    results: Results, *, metrics: tuple[str, ...] = ("accuracy", "auroc"), ax: Any = None
) -> list[Any]:
    """Held-out scores of each predictor with 95% intervals; one panel for each metric, bars by result.

    Parameters
    ----------
    results
        From :func:`analyze.errors.prediction.predict_errors`, one or by run.
    metrics
        Variables along ``predictor``.
    ax
        One axes for each metric; a new figure if absent.
    """
    runs = by_run(results)
    first = next(iter(runs.values()))
    axes = panels(len(metrics), ax, size=(max(4.2, 2 + 1.2 * len(runs)), 3.4), sharey=True)
    ticks = [PREDICTOR_LABELS.get(str(p), str(p)).replace(" ", "\n") for p in first["predictor"].values]
    for axis, metric in zip(axes, metrics, strict=True):
        bars(
            axis,
            {name: result[metric].values for name, result in runs.items()},
            ticks,
            error={n: (r[f"{metric}_low"].values, r[f"{metric}_high"].values) for n, r in runs.items()},
            form=".2f",
        )
        axis.set_ylim(0, 1.3 if len(runs) > 1 else 1.12)
        axis.set_yticks(np.linspace(0, 1, 6))
        if metric in ("auroc", "balanced_accuracy"):
            axis.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        axis.set(ylabel=first[metric].attrs.get("long_name", f"held-out {metric.replace('_', ' ')}"))
        if len(runs) == 1:
            n_test = int(first["n_test"].sum())
            axis.set_title(f"{next(iter(runs))}: {n_test} test answers", fontsize=9)
    return axes


def plot_error_carriers(result: xr.Dataset, *, n: int = 15, ax: Any = None) -> Any:
    """Weights of the features that carry the prediction, with the cell each is read at.

    Parameters
    ----------
    result
        From :func:`analyze.errors.prediction.predict_errors`.
    n
        How many.
    ax
        Axes; a new figure if absent.
    """
    part = result.isel(carrier=slice(n))
    (axis,) = panels(1, ax, size=(4.8, 0.8 + 0.24 * part.sizes["carrier"]))
    cells = [
        str(name) for name in part.data_vars if str(name).startswith("carrier_") and part[name].dims == ("carrier",)
    ]
    cells = [name for name in cells if name not in ("carrier_feature", "carrier_weight")]
    labels = [
        ", ".join([f"feature {int(one['carrier_feature'])}", *(_cell_label(name, one[name].item()) for name in cells)])
        for one in (part.isel(carrier=i) for i in range(part.sizes["carrier"]))
    ]
    weight = part["carrier_weight"].values
    place = np.arange(len(weight))
    for index, (label, chosen) in enumerate((("towards wrong", weight > 0), ("towards right", weight <= 0))):
        axis.barh(place[chosen], weight[chosen], edgecolor="black", linewidth=0.6, label=label, **FILLS[[3, 2][index]])
    axis.set_yticks(place, labels, fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="log odds of wrong per s.d. of the code")
    axis.set_xlim(-1.1 * np.abs(weight).max(), 1.1 * np.abs(weight).max())
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return axis


def _cell_label(name: str, value: Any) -> str:
    dim = name.removeprefix("carrier_")
    return f"{dim} {value}" if isinstance(value, int) else str(value)


def _band(axis: Any, x: np.ndarray[Any, Any], values: xr.DataArray, dim: str, index: int, label: str) -> None:
    table = values.transpose(dim, ...).values.reshape(len(x), -1)
    bounds = None if table.shape[1] == 1 else (table.min(axis=1), table.max(axis=1))
    line(axis, x, np.median(table, axis=1), index, label, bounds)
    axis.lines[-1].set_marker("" if len(x) > 30 else axis.lines[-1].get_marker())


def _table(values: xr.DataArray) -> xr.DataArray:
    """Explained variance as rows and columns, whatever the cells are."""
    if values.ndim == 0:
        values = values.expand_dims(["layer", "position"])
    elif values.ndim == 1:
        values = values.expand_dims("row" if "layer" not in values.dims else "position")
    if values.ndim != 2:
        raise UsageError(f"explained variance over {values.dims} is no table; select all but two of its dims")
    order = [d for d in ("layer", "source", "row") if d in values.dims][:1]
    values = values.transpose(*order, ...)
    return values.assign_coords({d: np.arange(values.sizes[d]) for d in values.dims if d not in values.coords})
