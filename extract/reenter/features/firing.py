"""Where the features of a stored dictionary are taken out, on which examples they fire there, and what is taken."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from extract.reenter.features.command import FeatureEffectSettings
from extract.reenter.target import Target
from schemas import UsageError, nearest
from schemas.codes import active_codes, dictionaries
from schemas.naming import FED
from store import Lake
from store.results import preferred

SCOPES = ("pool", "cell", "crosscoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """Features that are taken out at one place: where each fires most often."""

    layer: int
    """-1 for the vectors fed."""
    position: str
    dictionary: xr.Dataset
    """Gives their codes: of one pool of cells, or a crosscoder."""
    inside: np.ndarray
    """``(feature,)``: where they lie along the dictionary's features."""
    number: np.ndarray
    """``(feature,)``: among all features of all cells; what the result calls them."""
    decoder: np.ndarray
    """``(feature, hidden)``: what each writes there for a code of 1."""

    @property
    def site(self) -> str:
        """What is changed."""
        return "latent_embedding" if self.layer == FED else "hidden_state"


@dataclass(frozen=True, kw_only=True, slots=True)
class Firing:
    """Features of one place, on each example the strongest first."""

    home: Home
    feature: np.ndarray
    """``(example, slot)``: number among the features that are taken out anywhere; -1: no more of them fire."""
    code: np.ndarray
    """``(example, slot)``, 0 where none fires."""


class TakenOut(Mapping[str, xr.DataArray]):
    """Named directions ``(example, hidden)``: in each example one feature's part, taken out; made when asked for.

    Parameters
    ----------
    examples
        Labels ``(example,)``.
    vectors : (draw, feature, hidden)
        The decoder, and random directions as long.
    """

    def __init__(self, examples: np.ndarray, vectors: np.ndarray) -> None:
        self.examples, self.vectors = examples, vectors
        self._slots: dict[str, tuple[np.ndarray, np.ndarray, int]] = {}

    def add(self, name: str, feature: np.ndarray, code: np.ndarray, draw: int) -> None:
        """Name what is added to examples ``(example,)`` to take the part of these features out."""
        self._slots[name] = feature, code, draw

    def __getitem__(self, name: str) -> xr.DataArray:
        """The vectors of a name."""
        feature, code, draw = self._slots[name]
        values = -code[:, None] * self.vectors[draw, feature]
        return xr.DataArray(values, dims=("example", "hidden"), coords={"example": self.examples})

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; makes nothing."""
        return name in self._slots

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._slots)

    def __len__(self) -> int:
        """Number of names."""
        return len(self._slots)


def dictionary_of(lake: Lake, run: str, name: str | None) -> xr.Dataset:
    """The dictionary of a run that is named, or the preferred one: of a pool of its states, of each cell, a crosscoder.

    Raises
    ------
    MissingRunError
        If the run has none; the command that makes one is named.
    UsageError
        If the one named is not of the run, or is of final states, which nothing reads but what comes after the norm.
    """
    stored = [result for result in preferred(lake.results("sae")) if run in result.runs]
    if name is not None and name not in (known := [result.name for result in stored]):
        raise UsageError(
            f"--sae {name} is no dictionary of {run}; there are {', '.join(known) or 'none'}{nearest(name, known)}"
        )
    opened = [
        lake.open_result(result.name).assign_attrs(runs=list(result.runs))
        for result in stored
        if name in (None, result.name)
    ]
    able = [dictionary for dictionary in opened if dictionary.attrs.get("variable") != "final_state"]
    if able:
        return min(able, key=lambda dictionary: SCOPES.index(dictionary.attrs["scope"]))
    if name is None:
        lake.find("sae", run, scope="pool")  # says how to make it
    raise UsageError(
        f"features of {name or run} cannot be taken out: they are of final states, which no later block reads; learn a"
        f" dictionary of hidden states or of the vectors fed with lake analyze sae PATH {run}"
    )


def homes_of(target: Target, sae: xr.Dataset, settings: FeatureEffectSettings) -> list[Home]:
    """The places at which features of a dictionary are taken out, among those asked for.

    A feature's own place is where it fires most often. Of a dictionary of each cell that is its cell. A crosscoder's
    feature is taken out of the layer of the run's model in which most of its decoder's square lies.

    Raises
    ------
    UsageError
        If a feature or a place is not there, or nothing fires at the places asked for.
    """
    wanted = None if settings.features is None else np.asarray(settings.features)
    n_feature = sae.sizes["feature"] * (sae["frequency"].isel(feature=0).size if sae.attrs["scope"] == "cell" else 1)
    strangers = [] if wanted is None else wanted[(wanted < 0) | (wanted >= n_feature)].tolist()
    if strangers:
        raise UsageError(f"the dictionary has no feature {strangers[0]}; it has 0 to {n_feature - 1}")
    _check_places(target, sae, settings)
    homes = []
    for start, one in dictionaries(sae):
        counts = _places(target, one, settings)
        if not counts.sizes["place"]:
            continue
        fires = counts.values.max(0) > 0
        if wanted is not None:
            fires &= np.isin(start + np.arange(len(fires)), wanted)
        own = np.where(fires, counts.values.argmax(0), -1)
        for index in np.unique(own[own >= 0]):
            place, inside = counts.isel(place=int(index)), np.flatnonzero(own == index)
            layer, position = int(place["layer"]), str(place["position"].item())
            homes.append(
                Home(
                    layer=layer, position=position, dictionary=one, inside=inside, number=start + inside,
                    decoder=_decoder(target, one, layer)[inside],
                )
            )  # fmt: skip
    if not homes:
        raise UsageError(f"no feature asked for fires at the places asked for of {target.run}")
    return homes


def _sources(target: Target, sae: xr.Dataset) -> dict[int, str]:
    """Sources of a crosscoder that can be changed in the run's model, by layer."""
    model, sources = target.run.partition("/")[0], {}
    for source in map(str, sae["source"].values):
        owner, _, layer = source.rpartition("/")
        if (owner or source) == model:
            sources[int(layer) if owner else FED] = source
    return {layer: source for layer, source in sources.items() if layer == FED or layer in target.layers}


def _decoder(target: Target, sae: xr.Dataset, layer: int) -> np.ndarray:
    """What every feature writes at a layer for a code of 1 ``(feature, hidden)``, float32."""
    part = sae.sel(source=_sources(target, sae)[layer]) if sae.attrs["scope"] == "crosscoder" else sae
    decoder = part["decoder"].transpose("feature", "hidden").values[:, : int(part["n_hidden"])]
    return np.asarray(decoder, dtype=np.float32)


def _known(target: Target, sae: xr.Dataset) -> dict[str, list[Any]]:
    """Layers and positions of a dictionary at which the model can be changed."""
    frequency = sae["frequency"]
    positions = frequency["latent" if "latent" in frequency.dims else "position"].values.tolist()
    if sae.attrs["scope"] == "crosscoder":
        layers = sorted(_sources(target, sae))
    elif sae.attrs.get("variable") == "latent_embedding":
        layers = [FED]
    else:
        layers = [layer for layer in frequency["layer"].values.tolist() if layer in target.layers]
    return {"layer": layers, "position": positions}


def _check_places(target: Target, sae: xr.Dataset, settings: FeatureEffectSettings) -> None:
    """Refuse layers and positions at which the dictionary has nothing to be taken out."""
    known = _known(target, sae)
    for dim, labels in (("layer", settings.layers), ("position", settings.positions)):
        if strangers := [label for label in labels or () if label not in known[dim]]:
            raise UsageError(
                f"the dictionary was not learned at {dim} {strangers[0]}; it was at {', '.join(map(str, known[dim]))}"
                + nearest(strangers[0], known[dim])
            )


def _places(target: Target, sae: xr.Dataset, settings: FeatureEffectSettings) -> xr.DataArray:
    """How often each feature fires at each place asked for ``(place, feature)``; a crosscoder's at one layer only."""
    frequency, known = sae["frequency"], _known(target, sae)
    if "latent" in frequency.dims:
        frequency = frequency.rename(latent="position").assign_coords(position=frequency["latent"].values)
    layers = [layer for layer in known["layer"] if settings.layers is None or layer in settings.layers]
    positions = [label for label in known["position"] if settings.positions is None or label in settings.positions]
    if "layer" in frequency.dims:
        frequency = frequency.sel(layer=layers)
    elif sae.attrs["scope"] == "crosscoder":
        names = [_sources(target, sae)[layer] for layer in layers]
        best = sae["source_share"].sel(source=names).transpose("source", "feature").values.argmax(0)
        at_home = xr.DataArray(best == np.arange(len(layers))[:, None], dims=("layer", "feature"),
                               coords={"layer": layers})  # fmt: skip
        frequency = frequency * at_home
    else:
        frequency = frequency.expand_dims(layer=layers)
    chosen = frequency.sel(position=positions).stack(place=("layer", "position"))
    return chosen.transpose("place", "feature").reset_index("place")


def firing_at(target: Target, home: Home, first: int, examples: np.ndarray) -> Firing:
    """On each of some examples ``(example,)`` which features of a place fire, the strongest first.

    ``first`` is the number of the home's first feature among the features that are taken out anywhere.
    """
    code = np.nan_to_num(codes_at(target, home, examples)[:, home.inside])
    n_slot = int((code != 0).sum(1).max(initial=0))
    order = np.argsort(-np.abs(code), axis=1, kind="stable")[:, :n_slot]
    code = np.take_along_axis(code, order, axis=1)
    return Firing(home=home, feature=np.where(code != 0, first + order, -1), code=code)


def codes_at(target: Target, home: Home, examples: np.ndarray) -> np.ndarray:
    """Codes ``(example, feature)`` of the dictionary at a place; NaN where a state is missing."""
    sae, cell = home.dictionary, {"layer": home.layer, "position": home.position, "latent": home.position}
    crosscoder = sae.attrs["scope"] == "crosscoder"
    pre = np.zeros((len(examples), sae.sizes["feature"]), dtype=np.float32)
    for source in sae["source"].values if crosscoder else [""]:
        owner, _, layer = str(source).rpartition("/")
        run = next(
            (run for run in sae.attrs["runs"] if run.partition("/")[0] == (owner or source)) if crosscoder else
            iter([target.run])
        )  # fmt: skip
        states = _states(target, run, sae, int(layer) if owner else home.layer, home.position, examples)
        part = sae.sel(source=source) if crosscoder else sae
        part = _at(part[["encoder", "decoder_bias"]], cell).isel(hidden=slice(states.shape[1]))
        pre = pre + (states - part["decoder_bias"].values) @ part["encoder"].transpose("feature", "hidden").values.T
    shared = _at(sae[["encoder_bias", "threshold"]], cell)
    return active_codes(
        pre, shared["encoder_bias"].values, shared["threshold"].values, sae.attrs["activation"], int(sae.attrs["k"])
    )


def _at(part: xr.Dataset, cell: Mapping[str, object]) -> xr.Dataset:
    """What a dictionary has at a cell, of what it has by cell."""
    return part.sel({dim: label for dim, label in cell.items() if dim in part.dims})


def _states(target: Target, run: str, sae: xr.Dataset, layer: int, position: str, examples: np.ndarray) -> np.ndarray:
    """States that a dictionary reads at a place of a run ``(example, hidden)``, float32; NaN where none is finite."""
    assert target.lake is not None
    data = target.data if run == target.run else target.lake[run]
    if sae.attrs.get("variable") == "latent_embedding":
        states = data["latent_embedding"].sel(latent=position)
    elif sae.attrs.get("variable") == "final_state" or layer not in data["layer"].values:
        states = data["final_state"].sel(position=position)  # all_states has it as one more layer
    else:
        states = data["hidden_state"].sel(layer=layer, position=position)
    values = states.reindex(example=examples).transpose("example", "hidden").values.astype(np.float32)
    return np.where(np.isfinite(values).all(1, keepdims=True), values, np.float32(np.nan))


def vectors_of(homes: Sequence[Home], draws: int, seed: int) -> np.ndarray:
    """What each feature writes, and random directions as long ``(draw, feature, hidden)``, float32.

    A feature's random directions do not depend on which others are taken out.
    """
    decoder = np.concatenate([home.decoder for home in homes])
    number = np.concatenate([home.number for home in homes])
    out = np.empty((1 + draws, *decoder.shape), dtype=np.float32)
    out[0] = decoder
    for row, feature in enumerate(number.tolist()):
        drawn = np.random.default_rng([seed, 53, feature]).standard_normal(out[1:, row].shape, dtype=np.float32)
        out[1:, row] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * np.linalg.norm(decoder[row])
    return out


def names_of(firing: Firing, slot: int, draws: int) -> Sequence[str]:
    """Names of the conditions that take the part of one slot out: the feature's own, and random directions'."""
    home = firing.home
    place = f"{home.site} {home.layer} {home.position} #{slot}"
    return [place, *(f"{place} random {draw + 1}" for draw in range(draws))]
