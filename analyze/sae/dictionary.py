"""Sparse autoencoders on any slice of a lake: one for a pool of cells, one for each cell, or one shared by models.

A trained dictionary is a labelled dataset: weights, loss curves, metrics, and the problems that move each feature
most. Activations are read through dask in bounded memory (:mod:`analyze.sae.batches`). Training takes torch, on the
CPU, and imports it only then (:mod:`analyze.sae.train`); using a trained dictionary takes numpy alone
(:mod:`analyze.sae.codes`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyze.labels import labels_along
from analyze.sae.batches import Batches, Rows, moments, split_by_group
from analyze.sae.codes import Activations, sae_codes, sae_reconstruction, sources
from analyze.sae.files import load_sae, save_sae
from analyze.sae.metrics import DEFINITIONS, measured_blocks, sae_metrics
from analyze.sae.spec import REPORT_LAYERS, REPORT_POSITIONS, SCOPES, SAESpec, Scope
from schemas.checks import check_whole
from schemas.errors import SchemaError, UsageError
from schemas.problem_sums import problem_of
from schemas.progress import Progress, silent
from schemas.spelling import nearest

__all__ = [
    "DEFINITIONS",
    "REPORT_LAYERS",
    "REPORT_POSITIONS",
    "SCOPES",
    "SAESpec",
    "activation_of",
    "load_sae",
    "sae_codes",
    "sae_metrics",
    "sae_reconstruction",
    "sae_summary",
    "save_sae",
    "select_cells",
    "split_by_group",
    "train_sae",
    "with_final_state",
]
VALIDATION_ROWS = 2048
CALIBRATION_ROWS = 8192


def with_final_state(run: xr.Dataset) -> xr.DataArray:
    """Hidden states of a run with its final state as one more layer, numbered one past the last block."""
    hidden = run["hidden_state"]
    final = run["final_state"].expand_dims(layer=[int(hidden["layer"].max()) + 1])
    return xr.concat(
        [hidden, final.transpose(*hidden.dims)], "layer", join="inner", coords="minimal", compat="override"
    )


def select_cells(
    run: xr.Dataset,
    variable: str = "hidden_state",
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
) -> xr.DataArray:
    """Activations of a run at chosen cells.

    Parameters
    ----------
    run : Dataset
    variable : str
        ``hidden_state``, ``final_state``, ``latent_embedding``, or ``all_states`` for :func:`with_final_state`.
    layers, positions : labels
        Where absent, all layers, and the positions from ``bot`` to the last thought, or ``q-1`` where the answer
        follows at once.

    Raises
    ------
    SchemaError
        If the run lacks one of them; it names those it has.
    """
    if variable != "all_states" and variable not in run:
        raise SchemaError(
            f"the run has no {variable!r}; it has {', '.join(map(str, run.data_vars))}{nearest(variable, run)}"
        )
    array = with_final_state(run) if variable == "all_states" else run[variable]
    if positions is None and "segment" in array.coords and "position" in array.dims:
        segment, known_labels = array["segment"].values, array["position"].values
        between = known_labels[np.isin(segment, ("bot", "latent"))]
        positions = (between if len(between) else known_labels[segment == "question"][-1:]).tolist()
    wanted = {"layer": layers, "position": positions, "latent": positions if "latent" in array.dims else None}
    for dim, labels in wanted.items():
        if labels is None or dim not in array.dims:
            continue
        missing = [label for label in labels if label not in array[dim].values]
        if missing:
            known = array[dim].values.tolist()
            raise SchemaError(f"{variable} has no {dim} {missing}; it has {known}{nearest(missing[0], known)}")
        array = array.sel({dim: list(labels)})
    return array.rename(variable)


def activation_of(sae: xr.Dataset, runs: Mapping[str, xr.Dataset]) -> Activations:
    """What a stored dictionary reads, from the runs (by name) it was trained on, or others of the same models."""
    variable = str(sae.attrs.get("variable", "hidden_state"))
    known = sae["frequency"]
    along = next((dim for dim in ("position", "latent") if dim in known.dims), None)
    positions = None if along is None else labels_along(known, along)
    if sae.attrs["scope"] != "crosscoder":
        if len(runs) != 1:
            raise UsageError(f"a dictionary of one model reads one run; found {', '.join(runs)}")
        layers = known["layer"].values.tolist() if "layer" in known.dims else None
        return select_cells(next(iter(runs.values())), variable, layers=layers, positions=positions)
    named = [str(s).rpartition("/") for s in sae["source"].values]
    return {
        model: select_cells(
            run,
            variable,
            layers=[int(layer) for owner, _, layer in named if owner == model] or None,
            positions=positions,
        )
        for model, run in ((name.partition("/")[0], run) for name, run in runs.items())
    }


def sae_summary(sae: xr.Dataset) -> xr.Dataset:
    """Metrics and curves of a dictionary, without weights, features and examples."""
    left_out = {"feature", "hidden", "example", "rank"}
    names = [n for n, v in sae.data_vars.items() if not left_out & set(v.dims) and n != "n_hidden"]
    coords = [n for n, c in sae.coords.items() if left_out & set(c.dims)]
    return sae[names].drop_vars(coords, errors="ignore")


def train_sae(
    activation: Activations,
    spec: SAESpec | None = None,
    *,
    scope: Scope = "pool",
    n_top: int = 10,
    progress: Progress = silent,
) -> xr.Dataset:
    """Learn sparse dictionaries from stored activations.

    Chunks are read in random order and rows mixed in a buffer of ``spec.buffer_bytes``, so memory does not grow with
    the number of examples. Work: ``epochs * rows`` rows at 2 to 10 ``d * n`` multiplications each.

    Parameters
    ----------
    activation : (example, ..., hidden), lazy or not; for a crosscoder a mapping of model name to such arrays
        A selection of ``run["hidden_state"]``, ``final_state`` or ``latent_embedding``. Its other dims are the cells.
        The coordinate ``problem`` is what the split keeps together (the example, where there is none). Rows with NaN
        (a position that the example lacks) or an infinite number are left out. A crosscoder joins models by example
        and by position; each layer of each model is a source, with an encoder and a decoder of its own and features in
        common.
    spec : SAESpec
    scope : "pool", "cell" or "crosscoder"
        One dictionary for the rows of all cells, one for each cell trained at once, or one that reads and writes all
        sources of a row together.
    n_top : int
        Top-activating examples kept for each feature.
    progress : called with (done, total) in batches

    Returns
    -------
    Dataset
        Weights, folded so that they apply to stored values: ``pre = encoder (x - decoder_bias) + encoder_bias`` and
        ``x_hat = decoder f + decoder_bias``, with dims ``feature, hidden`` (a grid adds the cells', a crosscoder
        ``source``). ``decoder`` holds the directions to steer with, of unit norm but for a crosscoder, whose
        ``source_share(source, feature)`` says how much of each feature lies in which source (sums to 1). Curves
        ``train_loss(step)``, ``train_reconstruction``, ``train_l0``, ``train_dead_share``, ``validation_reconstruction
        (epoch)`` and ``validation_l0``, losses in units of the squared mean norm of centred inputs; ``example_split``;
        and everything :func:`analyze.sae.metrics.sae_metrics` returns.

    Raises
    ------
    SchemaError, UsageError
        If dims are missing, nothing is selected, models share no example, or training diverges.
    """
    spec = spec or SAESpec()
    if scope not in SCOPES:
        raise UsageError(f"SAE scope is {scope!r}; choose one of {', '.join(SCOPES)}")
    check_whole("n_top of an SAE", n_top, 0)
    source = sources(activation, scope=scope)
    rows = Rows(source, pooled=scope != "cell")
    first = next(iter(source.values()))
    n_feature = spec.features or spec.expansion * max(rows.hidden)
    if spec.activation in ("topk", "abs_topk", "batch_topk") and spec.k > n_feature:
        raise UsageError(f"SAE keeps k={spec.k} codes of {n_feature} features; lower k or raise features")
    split = split_of(first, spec)
    held = split == "validation"
    batches = Batches(rows, split == "train", spec.batch_size, spec.buffer_bytes, np.random.default_rng([spec.seed, 1]))
    n_step = spec.epochs * batches.n_batch
    n_block = len(measured_blocks(rows, n_feature)) + (0 if spec.normalize == "none" else 2 * len(rows.blocks()))
    tick = Ticker(progress, n_step + n_block)
    inputs = _Inputs(rows, split == "train", spec, scope, tick)

    from analyze.sae.train import Trainer  # torch is needed from here on

    trainer = Trainer(rows.n_cell if scope == "cell" else 1, rows.width, n_feature, spec, n_step)

    def some(keep: NDArray[np.bool_], n_row: int, stream: int) -> NDArray[np.float32]:
        n_row = n_row // 4 if scope == "cell" else n_row  # a grid's row holds every cell
        n_row = min(n_row, max(spec.batch_size, spec.buffer_bytes // (4 * int(np.prod(batches.row_shape)))))
        rng = np.random.default_rng([spec.seed, stream])
        return inputs.normalised(*Batches(rows, keep, spec.batch_size, spec.buffer_bytes, rng).sample(n_row))

    sample = some(held, VALIDATION_ROWS, 2) if held.any() else None
    calibration = some(split == "train", CALIBRATION_ROWS, 3) if spec.activation == "batch_topk" else None
    every = max(1, n_step // 400)
    curve: list[tuple[int, Any]] = []
    held_curve: list[Any] = []
    for _ in range(spec.epochs):
        for x, cell in batches.epoch():
            losses = trainer.step(inputs.normalised(x, cell))
            if (trainer.n_done - 1) % every == 0:
                curve.append((trainer.n_done, losses))
            tick()
        if calibration is not None:
            trainer.calibrate(calibration)
        if sample is not None and sample.shape[1]:
            held_curve.append(trainer.loss(sample))

    batches.forget()
    weight = trainer.weights()
    if not all(np.isfinite(value).all() for value in weight.values()):
        raise UsageError(
            f"SAE training diverged: weights are not finite after {trainer.n_done} steps at learning rate "
            f"{spec.learning_rate:g}. Lower it" + (", or normalize by cell or pool" if spec.normalize == "none" else "")
        )
    sae = inputs.folded(weight, source)
    sae = _with_curves(sae, curve, held_curve, *(rows.cell_dims, rows.cell_shape) if scope == "cell" else ((), ()))
    sae = with_split(sae, first, split)
    read = activation.name if isinstance(activation, xr.DataArray) else next(iter(activation.values())).name
    sae.attrs |= {"n_step": trainer.n_done, "n_revived": trainer.n_revived, "variable": str(read or "hidden_state")}
    del trainer  # gradients and moments, several times what is learned
    return sae.merge(sae_metrics(sae, activation, n_top=n_top, progress=lambda *_: tick()), combine_attrs="override")


def _with_curves(
    sae: xr.Dataset, curve: list[tuple[int, Any]], held: list[Any], dims: tuple[Any, ...], shape: tuple[int, ...]
) -> xr.Dataset:
    """With the losses of training by step, and of the rows held out by epoch."""
    for name in ("loss", "reconstruction", "l0", "dead_share"):
        values = np.array([getattr(losses, name) for _, losses in curve])
        sae[f"train_{name}"] = ("step", *dims), values.reshape(-1, *shape)
    held_values = np.array(held, dtype=np.float32).reshape(-1, 2, *shape)
    sae["validation_reconstruction"] = ("epoch", *dims), held_values[:, 0]
    sae["validation_l0"] = ("epoch", *dims), held_values[:, 1]
    for name in ("train_loss", "train_reconstruction", "validation_reconstruction"):
        sae[name].attrs = {"units": "squared mean norm of centred inputs"}
    return sae.assign_coords(step=[step for step, _ in curve], epoch=np.arange(1, len(held) + 1))


class _Inputs:
    """The affine map between stored values and what the dictionary learns on; statistics of training rows."""

    def __init__(self, rows: Rows, keep: NDArray[np.bool_], spec: SAESpec, scope: Scope, tick: "Ticker") -> None:
        self.rows, self.spec, self.scope = rows, spec, scope
        self.per_cell = scope == "cell" or spec.normalize == "cell"
        if spec.normalize == "none":
            n_cell = rows.n_cell if self.per_cell else 1
            self.mean, self.scale = np.zeros((n_cell, rows.width)), np.ones((n_cell, len(rows.hidden)))
        else:
            self.mean, self.scale = moments(rows, keep, "cell" if self.per_cell else "pool", tick)
            if scope == "crosscoder":  # one scale for each source, so that a feature has one direction in it
                self.scale = self.scale.mean(axis=0, keepdims=True)
        self.wide_scale = np.repeat(self.scale, rows.hidden, axis=1)  # (cell or 1, width)

    def normalised(self, x: NDArray[np.float32], cell: NDArray[np.intp]) -> NDArray[np.float32]:
        """(group, row, width) of a buffer's rows: (row, width), or (row, cell, width) for a grid."""
        which: Any = cell if self.per_cell and self.scope != "cell" else slice(None)
        scale = self.wide_scale[which if len(self.wide_scale) > 1 else slice(None)]
        x = (x - self.mean[which].astype(np.float32)) / scale.astype(np.float32)
        return x.swapaxes(0, 1) if self.scope == "cell" else x[None]

    def folded(self, weight: Mapping[str, NDArray[np.float32]], source: Mapping[str, xr.DataArray]) -> xr.Dataset:
        """Labelled weights for stored values.

        With ``x' = (x - mean) / scale`` and codes in units of ``scale`` (one source), encoder and decoder stay as
        they are; all four activations commute with a positive factor, thresholds included. A crosscoder's sources
        have scales of their own, so there the factors go into encoder and decoder.
        """
        rows, spec = self.rows, self.spec
        first = next(iter(source.values()))
        small = {name: weight[name].astype(np.float64) for name in ("b_enc", "b_dec", "threshold")}
        encoder, decoder = weight["w_enc"], weight["w_dec"]  # as they are, in single precision, but for a crosscoder's
        joint = self.scope == "crosscoder"
        unit = np.ones((1, 1)) if joint else self.scale[:, :1]  # (cell or 1, 1): a code's unit
        ratio = self.wide_scale / unit  # (cell or 1, width); 1 but for a crosscoder
        inner = small["b_enc"] if spec.pre_bias else small["b_enc"] + np.einsum("gnd,gd->gn", encoder, small["b_dec"])
        values = {
            "encoder": encoder / ratio[:, None] if joint else encoder,
            "decoder": decoder * ratio[:, None] if joint else decoder,
            "encoder_bias": inner * unit,
            "threshold": small["threshold"] * unit,
            "decoder_bias": small["b_dec"] * self.wide_scale + self.mean,
        }
        grid = self.scope == "cell"
        out = xr.Dataset(coords={d: first[d].values for d in rows.cell_dims if d in first.coords})
        for name, value in values.items():
            core: tuple[str, ...] = {
                "encoder": ("feature", "hidden"),
                "decoder": ("feature", "hidden"),
                "decoder_bias": ("hidden",),
            }.get(name, ("feature",))
            shared = ("encoder", "decoder", *(("encoder_bias", "threshold") if joint else ()))
            per_cell = grid or (self.per_cell and name not in shared)
            value = value.astype(np.float32, copy=False)
            if joint and "hidden" in core:
                if per_cell:
                    core, value = (*map(str, rows.cell_dims), *core), value.reshape(1, *rows.cell_shape, rows.width)
                out[name] = ("source", *core), _by_source(value[0], rows.hidden)
            elif per_cell:
                out[name] = (*rows.cell_dims, *core), value.reshape(*rows.cell_shape, *value.shape[1:])
            else:
                out[name] = core, value[0]
        if joint:
            squares = np.square(decoder[0], dtype=np.float64)
            squares = np.add.reduceat(squares, np.cumsum([0, *rows.hidden])[:-1], axis=-1)
            share = squares / squares.sum(axis=-1, keepdims=True)
            out["source_share"] = ("source", "feature"), share.T.astype(np.float32)
            out["n_hidden"] = "source", np.array(rows.hidden)
            out["input_scale"] = "source", self.scale[0]
            out = out.assign_coords(source=list(source))
        else:
            out["n_hidden"] = (), rows.width
            if self.per_cell:
                out["input_scale"] = rows.cell_dims, self.scale[:, 0].reshape(rows.cell_shape)
            else:
                out["input_scale"] = (), self.scale[0, 0]
        out = out.assign_coords(feature=np.arange(weight["b_enc"].shape[1]))
        out["decoder"].attrs = {"long_name": "direction written by a feature"}
        out.attrs = {
            "scope": self.scope,
            "activation": spec.activation,
            "k": spec.k,
            "spec": json.dumps(spec.spec() | {"scope": self.scope}, sort_keys=True),
        }
        return out


def _by_source(values: NDArray[np.float32], hidden: Sequence[int]) -> NDArray[np.float32]:
    """(.., width of all sources) as (source, .., width of the widest), NaN where a source is narrower."""
    parts = np.split(values, np.cumsum(hidden)[:-1], axis=-1)
    pads = [[(0, 0)] * (part.ndim - 1) + [(0, max(hidden) - part.shape[-1])] for part in parts]
    return np.stack([np.pad(part, pad, constant_values=np.nan) for part, pad in zip(parts, pads, strict=True)])


class Ticker:
    """Count what was done, for a progress callback."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self) -> None:
        self.done = min(self.done + 1, self.total)
        self.progress(self.done, self.total)


def with_split(sae: xr.Dataset, first: xr.DataArray, split: NDArray[np.str_]) -> xr.Dataset:
    """With the side of each example and what names it."""
    own = {n: first[n].values for n in ("example", "problem", "variant") if n in first.coords}
    sae = sae.assign(example_split=("example", split.astype(object)))
    sae = sae.assign_coords(example=own.pop("example", np.arange(first.sizes["example"])))
    return sae.assign_coords({name: ("example", values) for name, values in own.items()})


def split_of(first: xr.DataArray, spec: SAESpec) -> NDArray[np.str_]:
    """The side of each example: train, validation or test."""
    n_example = first.sizes["example"]
    if spec.split == "none":
        return np.full(n_example, "train")
    group = problem_of(first) if spec.split == "problem" else np.arange(n_example)
    split = split_by_group(group, spec.fractions, spec.seed)
    if not (split == "train").any():
        raise UsageError(f"an SAE of {n_example} examples has none to train on with shares {spec.fractions}")
    return split
