"""Features of the stored dictionaries of a run: which there are, and the page of one of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyze.context import Context
from analyze.explorer.problems import readable
from analyze.features.command import feature_rows, steps_from_one
from analyze.features.pages import feature_pages
from schemas import MissingRunError, UsageError
from store.results import Result, preferred

N_TOKEN = 8
"""Number of tokens to list that a feature writes."""
N_TOP = 8
"""Places shown of where a feature fires most."""


def dictionaries(context: Context, run: str) -> list[Result]:
    """Dictionaries of one pool of a run's states, the preferred one first."""
    stored = preferred(result for result in context.results if result.kind == "sae" and result.runs == (run,))
    return [result for result in stored if is_pool(context.open(result))]


def is_pool(sae: xr.Dataset) -> bool:
    """Whether the features of a dictionary are of all its states, and it says where they fire most."""
    return bool(sae.attrs.get("scope") == "pool" and "top_example" in sae and "frequency" in sae)


def feature_lists(
    context: Context, run: str, *, most: int | None = None, details: bool = False
) -> list[dict[str, Any]]:
    """Every dictionary of a run with its features, those that fire most often first.

    Parameters
    ----------
    context, run
        Lake and run.
    most
        Features of each that are listed; all by default.
    details
        Whether the page of each listed feature comes with it (``pages``, by feature).
    """
    lists = []
    for stored in dictionaries(context, run)[: 1 if details else None]:
        sae = context.open(stored)
        frequency = sae["frequency"].load()
        often = frequency.mean([dim for dim in frequency.dims if dim != "feature"]).values
        order = [int(i) for i in np.argsort(-often, kind="stable") if often[i] > 0]
        features = sae["feature"].values
        listing: dict[str, Any] = {
            "mark": stored.fingerprint[:12],
            "title": f"{sae.attrs.get('variable', 'hidden_state')}, {len(features)} features",
            "n_feature": len(features),
            "n_silent": len(features) - len(order),
            "features": [[int(features[i]), round(float(often[i]), 5)] for i in order[:most]],
        }
        if details:
            pages = _pages(context, run, stored, order[:most])
            listing["pages"] = {str(page["feature"]): page for page in pages}
        lists.append(listing)
    return lists


def feature_page(context: Context, run: str, mark: str, feature: int) -> dict[str, Any]:
    """Where a feature fires, on which problems, what is read there and what it writes.

    Raises
    ------
    MissingRunError
        If the run has no such dictionary.
    UsageError
        If the dictionary has no such feature.
    """
    fitting = [result for result in dictionaries(context, run) if mark and result.fingerprint.startswith(mark)]
    if not fitting:
        raise MissingRunError(f"{run} has no dictionary {mark!r}")
    known = context.open(fitting[0])["feature"].values
    place = np.flatnonzero(known == feature)
    if not len(place):
        raise UsageError(f"dictionary {mark} has no feature {feature}; it has 0 to {known.max()}")
    return _pages(context, run, fitting[0], [int(place[0])])[0]


def _pages(context: Context, run: str, stored: Result, places: Sequence[int]) -> list[dict[str, Any]]:
    """The pages of some features, by their place in the dictionary."""
    sae = context.open(stored).isel(feature=list(places)).load()
    pages = feature_pages(sae, context.run(run), context.model(run), tokens=N_TOKEN)
    known = _known(context, run, stored)
    shown = []
    for index in range(pages.sizes["feature"]):
        page = pages.isel(feature=index)
        frequency = page["frequency"]
        cells = [dim for dim in ("layer", "position") if dim in frequency.dims]
        shown.append(
            {
                "feature": int(page["feature"]),
                "fires": round(float(frequency.mean()), 5),
                "mean": _rounded(page["mean_activation"]),
                "max": _rounded(page["max_activation"]),
                "dims": {dim: page[dim].values.tolist() for dim in cells},
                "frequency": np.round(1000 * np.nan_to_num(frequency.transpose(*cells).values)).astype(int).tolist(),
                "writes": _tokens(page, "+"),
                "takes": _tokens(page, "-"),
                "top": _top(page),
                **known.get(int(page["feature"]), {}),
            }
        )
    return shown


def _known(context: Context, run: str, stored: Result) -> dict[int, dict[str, Any]]:
    """What the stored results say that each feature tells, and does where it was taken out."""
    known: dict[int, dict[str, Any]] = {}
    results = preferred(result for result in context.results if result.runs == (run,))
    of_kind = {kind: [result for result in results if result.kind == kind] for kind in ("features", "feature_effects")}
    for one in [result for result in of_kind["features"] if result.spec.get("sae") == stored.fingerprint][:1]:
        data = context.open(one)
        for row in feature_rows(data) if "tells" in data else []:
            if row["tells"]:
                known[row["feature"]] = {
                    "tells": [steps_from_one(row["tells"]), *map(_rounded, (row["area"], row["area_p"]))]
                }
    effects = [context.open(result) for result in of_kind["feature_effects"]]
    for data in [result for result in effects if result.attrs["dictionary"] == stored.fingerprint][:1]:
        names = ("kl", "kl_random", "p_kl_holm", "broken", "n_right")
        for index, feature in enumerate(data["feature"].values.tolist()):
            figures = [float(data[name].values[index]) for name in names]
            where = [int(data["layer"].values[index]), str(data["position"].values[index])]
            does = {"where": where, **{name: x if x == x else None for name, x in zip(names, figures, strict=True)}}
            known.setdefault(int(feature), {})["does"] = does
    return known


def _top(page: xr.Dataset) -> list[dict[str, Any]]:
    """Problems and places where a feature fires most, strongest first."""
    rows = []
    for rank in range(min(N_TOP, page.sizes["rank"])):
        one = page.isel(rank=rank)
        if not abs(float(one["top_activation"])) > 0:  # codes of abs_topk have signs
            continue
        where = [str(one[f"top_{dim}"].item()) for dim in ("layer", "position", "latent") if f"top_{dim}" in one]
        rows.append(
            {
                "id": int(one["top_example"]),
                "where": where,
                "activation": _rounded(one["top_activation"]),
                "reading": readable(one["top_reading"].item()),
                "question": str(one["top_question"].item()),
            }
        )
    return rows


def _tokens(page: xr.Dataset, sign: str) -> list[list[Any]]:
    part = page.sel(sign=sign)
    return [
        [readable(token), _rounded(size)]
        for token, size in zip(part["writes"].values, part["written"].values, strict=True)
    ]


def _rounded(value: Any) -> float:
    return round(float(value), 3)
