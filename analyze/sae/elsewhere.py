"""Dictionaries that were learned elsewhere, on a run's states: the same measures as of those learned here."""

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from analyze.sae.batches import Rows, moments
from analyze.sae.codes import sources
from analyze.sae.dictionary import Ticker, select_cells, split_of, with_split
from analyze.sae.files import load_sae
from analyze.sae.metrics import sae_metrics
from analyze.sae.spec import LEARNING, SAESpec
from schemas.command import Cost
from schemas.errors import UsageError
from schemas.progress import Progress, silent

if TYPE_CHECKING:
    from analyze.sae.command import SAESettings
    from analyze.source import Source

_BLOCK = re.compile(r"(?<![a-z])(?:blocks|layers?|h)[._ ](\d+)[._]?(.*)$", re.IGNORECASE)
_INSIDE = re.compile("mlp|attn|attention|embed|hook_z|ln_|norm|mid", re.IGNORECASE)
_OUTPUTS, _INPUTS = ("hook_resid_post", "hook_out", "output"), ("hook_resid_pre", "hook_in", "input")


def measure_sae(
    sae: xr.Dataset,
    activation: xr.DataArray,
    spec: SAESpec | None = None,
    *,
    n_top: int = 10,
    progress: Progress = silent,
) -> xr.Dataset:
    """Reconstruction, sparsity and top problems of a dictionary that was not learned here.

    Parameters
    ----------
    sae : Dataset of :func:`analyze.sae.files.load_sae`
    activation : (example, ..., hidden)
        As :func:`analyze.sae.dictionary.train_sae` takes it.
    spec : SAESpec
        Of it the split alone. What the dictionary was learned from is not known: rows of ``test`` were held out from it
        only if it was learned without these problems.
    n_top : int
    progress : called with (done, total) in blocks

    Returns
    -------
    Dataset
        What :func:`analyze.sae.dictionary.train_sae` returns, without losses; ``input_scale`` is the mean norm of
        centred training rows.

    Raises
    ------
    SchemaError
        If it reads vectors of another width.
    """
    spec = spec or SAESpec()
    rows = Rows(sources(activation, sae), pooled=True)
    split = split_of(activation, spec)
    tick = Ticker(progress, 3 * len(rows.blocks()))
    _, scale = moments(rows, split == "train", "pool", tick)
    measured = with_split(sae.assign(input_scale=((), float(scale[0, 0]))), activation, split)
    measured.attrs |= {"variable": str(activation.name or "hidden_state"), "n_step": 0, "n_revived": 0}
    metrics = sae_metrics(measured, activation, n_top=n_top, progress=lambda *_: tick())
    return measured.merge(metrics, combine_attrs="override")


def load_and_measure(source: "Source", settings: "SAESettings") -> tuple[xr.Dataset, dict[str, Any]]:
    """The dictionary of ``--load`` measured on a run's states, and what its stored settings are."""
    sae, states = _loaded(source, settings)
    with source.progress("blocks") as report:
        measured = measure_sae(sae, states, settings, n_top=settings.top, progress=report)
    stored: dict[str, Any] = dict.fromkeys(LEARNING)
    stored |= {name: measured.attrs[name] for name in ("activation", "k", "library")}
    stored |= {"features": sae.sizes["feature"], "weights": weights_digest(sae)}
    if "layer" in states.dims and states.sizes["layer"] < source.data.sizes["layer"]:
        stored["layers"] = states["layer"].values.tolist()
    return measured, stored


def cost_of_measuring(source: "Source", settings: "SAESettings") -> Cost:
    """Products of every row with encoder and decoder, once; rows are read for their scale, too."""
    from analyze.cost import limits, reading

    sae, states = _loaded(source, settings)
    n_row, width, n_feature = states.size // states.sizes["hidden"], states.sizes["hidden"], sae.sizes["feature"]
    share = settings.fractions[0] if settings.split != "none" else 1.0
    return Cost(
        states=n_row, reads=[reading(states, 1.0 + 2.0 * share)], operations=4.0 * n_row * width * n_feature,
        memory=4.0 * 8 * width * n_feature + 2.0**28,
        **limits(replace(settings, save=None), source.data.sizes["example"], 8),
    )  # fmt: skip


def _loaded(source: "Source", settings: "SAESettings") -> tuple[xr.Dataset, xr.DataArray]:
    """The dictionary of ``--load``, and the states that it is measured on: of the layer that its files name."""
    assert settings.load is not None
    sae = load_sae(settings.load)
    layers, positions = settings.cells()
    hook = str(sae.attrs.get("hook_name", ""))
    layer = block_of(hook) if settings.variable in ("hidden_state", "all_states") else None
    if layer is not None and layers is None:
        layers = [layer]
    elif layer is not None and layers != [layer]:
        source.note(f"the dictionary reads {hook}, which is layer {layer}, and is measured at layers {layers}")
    states = select_cells(source.data, settings.variable, layers=layers, positions=positions)
    if layers is None and states.sizes.get("layer", 1) > 1:
        source.note("the dictionary's files do not say which layer it reads: it is measured at all of them (--layers)")
    return sae, states


def block_of(hook: str) -> int | None:
    """The block whose state a dictionary reads, by the name that its files give the place; None where they do not say.

    A block's input (``hook_resid_pre``, ``hook_in`` of TransformerLens) is the state of the block before.

    Raises
    ------
    UsageError
        If it is a place inside a block (an attention's or MLP's output, the middle of the residual stream), a norm, or
        what the first block reads.

    >>> block_of("blocks.3.hook_resid_post"), block_of("blocks.3.hook_resid_pre"), block_of("layers.7"), block_of("")
    (3, 2, 7, None)
    """
    found = _BLOCK.search(hook)
    within = found is not None and found[2] not in ("", *_OUTPUTS, *_INPUTS)
    block = None if found is None else int(found[1]) - (found[2] in _INPUTS or "resid_pre" in hook)
    if block == -1 or within or _INSIDE.search(hook):
        raise UsageError(f"the dictionary reads {hook}; a lake holds for dictionaries states after whole blocks alone")
    return block


def weights_digest(sae: xr.Dataset) -> str:
    """Twelve digits that tell its weights from others."""
    digest = hashlib.sha256()
    for name in ("encoder", "encoder_bias", "decoder", "decoder_bias", "threshold"):
        digest.update(sae[name].values.tobytes())
    return digest.hexdigest()[:12]
