"""Which features of a stored dictionary fire at the place where they fire most, and what taking them out adds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from extract.reenter.features.command import FeatureEffectSettings
from extract.reenter.sites import EVERY
from extract.reenter.target import Target
from schemas import UsageError, nearest
from schemas.codes import active_codes
from store import Lake
from store.results import preferred

BLOCK = 256
"""Examples whose codes are computed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Firing:
    """Features whose own place is one place, on each example the strongest first."""

    site: str
    layer: int
    """-1 for ``latent_embedding``."""
    position: str
    feature: np.ndarray
    """``(example, slot)``: index along the dictionary's features; -1: no more of them fire."""
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
    """The dictionary of one pool of a run's states that is named, or the preferred one.

    Raises
    ------
    MissingRunError
        If the run has none; the command that makes one is named.
    UsageError
        If the one named is not of the run, or is not of one pool of vectors that can be changed.
    """
    stored = preferred(each for each in lake.results("sae") if each.runs == (run,))
    if name is not None and name not in (known := [each.name for each in stored]):
        raise UsageError(
            f"--sae {name} is no dictionary of {run}; there are {', '.join(known) or 'none'}{nearest(name, known)}"
        )
    opened = [lake.open_result(each.name) for each in stored if name in (None, each.name)]
    able = [
        each for each in opened if each.attrs["scope"] == "pool" and each.attrs.get("variable") != "final_state"
    ]  # fmt: skip
    if able:
        return able[0]
    if name is None:
        lake.find("sae", run, scope="pool")  # says how to make it
    raise UsageError(
        f"features of {name or run} cannot be taken out one by one: that takes a dictionary of one pool of hidden"
        f" states or of the vectors fed; learn one with lake analyze sae PATH {run}"
    )


def firings(target: Target, sae: xr.Dataset, settings: FeatureEffectSettings) -> list[Firing]:
    """Features of a dictionary by the place where they fire most often, among the places asked for.

    Raises
    ------
    UsageError
        If a feature or a place is not there, or nothing fires at the places asked for.
    """
    frequency = _places(target, sae, settings)
    features = np.asarray(sae["feature"].values)
    wanted = features if settings.features is None else np.asarray(settings.features)
    if strangers := [int(each) for each in wanted if each not in features]:
        raise UsageError(f"the dictionary has no feature {strangers[0]}; it has {features.min()} to {features.max()}")
    counts = frequency.values  # (place, feature)
    home = np.where((counts.max(0) > 0) & np.isin(features, wanted), counts.argmax(0), -1)
    by_place = []
    for index in np.unique(home[home >= 0]):
        cell = frequency.isel(place=int(index))
        position = str(cell["position"].item())
        by_place.append(_firing(target, sae, int(cell["layer"]), position, np.flatnonzero(home == index)))
    found = [each for each in by_place if each.feature.shape[1]]
    if not found:
        raise UsageError(f"no feature asked for fires on the {target.data.sizes['example']} examples of {target.run}")
    return found


def _places(target: Target, sae: xr.Dataset, settings: FeatureEffectSettings) -> xr.DataArray:
    """How often each feature fires at each place that can be changed ``(place, feature)``."""
    frequency = sae["frequency"].rename({"latent": "position"} if "latent" in sae["frequency"].dims else {})
    for dim, label in (("layer", EVERY), ("position", "")):
        if dim not in frequency.dims:
            frequency = frequency.expand_dims({dim: [sae[dim].item() if dim in sae.coords else label]})
    if sae.attrs.get("variable") != "latent_embedding":
        frequency = frequency.sel(layer=[layer for layer in frequency["layer"].values if layer in target.layers])
    for dim, labels in (("layer", settings.layers), ("position", settings.positions)):
        known = frequency[dim].values.tolist()
        if strangers := [label for label in labels or () if label not in known]:
            raise UsageError(
                f"the dictionary was not learned at {dim} {strangers[0]}; it was at {', '.join(map(str, known))}"
                + nearest(strangers[0], known)
            )
        frequency = frequency if labels is None else frequency.sel({dim: list(labels)})
    return frequency.stack(place=("layer", "position")).transpose("place", "feature").reset_index("place")


def _firing(target: Target, sae: xr.Dataset, layer: int, position: str, chosen: np.ndarray) -> Firing:
    """On each example which of the features chosen ``(feature,)`` fire at a place, the strongest first."""
    site = "latent_embedding" if sae.attrs.get("variable") == "latent_embedding" else "hidden_state"
    states = target.values.column(site, layer, position)
    blocks = [codes_at(sae, states[start : start + BLOCK], layer, position)[:, chosen]
              for start in range(0, len(states), BLOCK)]  # fmt: skip
    code = np.nan_to_num(np.concatenate(blocks))
    n_slot = int((code != 0).sum(1).max(initial=0))
    order = np.argsort(-np.abs(code), axis=1, kind="stable")[:, :n_slot]
    code = np.take_along_axis(code, order, axis=1)
    feature = np.where(code != 0, chosen[order], -1)
    return Firing(site=site, layer=layer, position=position, feature=feature, code=code)


def codes_at(sae: xr.Dataset, states: np.ndarray, layer: int, position: str) -> np.ndarray:
    """Codes ``(example, feature)`` of states ``(example, hidden)`` of a place; NaN where there is no state."""
    part = sae[["encoder", "encoder_bias", "decoder_bias", "threshold"]]
    for dim, label in (("layer", layer), ("position", position), ("latent", position)):
        if dim in part.dims:
            part = part.sel({dim: label})
    pre = (states - part["decoder_bias"].values) @ part["encoder"].transpose("feature", "hidden").values.T
    bias, threshold = part["encoder_bias"].values, part["threshold"].values
    return active_codes(pre, bias, threshold, sae.attrs["activation"], int(sae.attrs["k"]))


def vectors_of(sae: xr.Dataset, draws: int, seed: int) -> np.ndarray:
    """The decoder and random directions as long ``(draw, feature, hidden)``, float32."""
    decoder = sae["decoder"].transpose("feature", "hidden").values.astype(np.float32)
    length = np.linalg.norm(decoder, axis=1, keepdims=True)
    drawn = np.random.default_rng([seed, 53]).standard_normal((draws, *decoder.shape), dtype=np.float32)
    return np.concatenate([decoder[None], drawn / np.linalg.norm(drawn, axis=2, keepdims=True) * length])


def names_of(firing: Firing, slot: int, draws: int) -> Sequence[str]:
    """Names of the conditions that take the part of one slot out: the feature's own, and random directions'."""
    place = f"{firing.site} {firing.layer} {firing.position} #{slot}"
    return [place, *(f"{place} random {draw + 1}" for draw in range(draws))]
