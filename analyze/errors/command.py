"""``lake analyze errors``."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from analyze.errors.spec import ErrorSpec
from schemas.command import Analysis, Cost, Limited, Made, Printed, Sampled, Table, setting
from schemas.wording import range_text
from schemas.words import PATH

if TYPE_CHECKING:
    import xarray as xr

    from analyze.source import Source


PASSES = 60
"""Passes over the rows that L-BFGS makes for most penalties."""
PASSED = 64
"""Examples of the pass that is timed."""
BLOCK = 64
"""Examples that are read and summed together."""


@dataclass(frozen=True, kw_only=True)
class ErrorSettings(ErrorSpec, Limited, Sampled):
    """How errors are predicted, and from the codes of which dictionary."""

    sae: str | None = setting(
        None, "Stored dictionary to use; by default the run's own, or a new one.", metavar="RESULT"
    )


def run(source: "Source", settings: ErrorSettings) -> list[Made]:
    """Predict errors from the codes of a stored dictionary, or of one that is learned first."""
    from analyze.errors.prediction import predict_errors
    from analyze.sae.dictionary import activation_of

    if settings.sae is None and not any(source.run in result.runs for result in source.lake.results("sae")):
        source.note("there is no dictionary yet; learning one")
        learn_default(source)
    dictionary = source.lake.open_result(settings.sae or source.result("sae"))
    source = known_to(dictionary, source, settings)
    runs = json.loads(dictionary.attrs["runs"])
    wholes = {run: replace(source, run=run).whole for run in runs}
    activation = activation_of(dictionary, wholes)
    with source.progress(unit="passes") as report:
        predicted = predict_errors(source.data, dictionary, activation, settings, progress=report)
    return [Made("errors", predicted, {"sae": str(dictionary.attrs["fingerprint"])})]


def cost(source: "Source", settings: ErrorSettings) -> Cost:
    """Codes of every state; fits by the inner products of few examples, or by passes over many, which are timed.

    Raises
    ------
    MissingRunError
        If there is no dictionary yet; what learning one costs is what ``lake analyze sae --plan`` says.
    """
    from analyze.cost import limits, reading
    from analyze.errors.fit import is_turned, one_pass
    from analyze.sae.dictionary import activation_of

    n = source.data.sizes["example"]
    dictionary = source.lake.open_result(settings.sae or source.result("sae"))
    source = known_to(dictionary, source, settings)
    read = activation_of(dictionary, dict.fromkeys(json.loads(dictionary.attrs["runs"]), source.whole))
    parts = list(read.values()) if isinstance(read, Mapping) else [read]
    size, n_feature = sum(part.size for part in parts), dictionary.sizes["feature"]
    n_known, width = parts[0].sizes["example"], size // parts[0].sizes["example"]
    operations, steps = 2.0 * size * n_feature, []
    hidden = parts[0].sizes["hidden"]
    n_code = n_feature * width / hidden
    if is_turned(n_known, width):
        operations += 2.0 * n_known * size
        active = float(dictionary["l0"].max("split").sum()) * n_known
        held = 3 * 16.0 * active + 8.0 * 4 * n_code  # the codes as they are, scaled, and turned around
    else:
        held = 8.0 * 33 * n_code  # ten steps and slopes are kept, twice
        passes = len(settings.penalties) * min(settings.max_iterations, PASSES)
        steps.append((passes * n_known / PASSED, partial(one_pass, PASSED, width)))
        operations += 4.0 * passes * size
    return Cost(
        states=size // parts[0].sizes["hidden"], reads=[reading(part) for part in parts],
        operations=operations, steps=steps,
        memory=8.0 * n_feature * hidden + held + 18.0 * min(n_known, BLOCK) * width + 2.0**27,
        **limits(settings, n, 64 * n // n_known),
    )  # fmt: skip


def known_to(dictionary: "xr.Dataset", source: "Source", settings: ErrorSettings) -> "Source":
    """The examples that are in the split of the dictionary; says so where these are a part of the run."""
    if settings.split != "sae" or "example_split" not in dictionary:
        return source
    n, known = source.data.sizes["example"], source.data["example"].isin(dictionary["example_split"]["example"]).values
    if known.all() or not known.any():
        return source
    source.note(
        f"of {n:,} examples {known.sum():,} are taken, those that the dictionary was trained or tested on; lake analyze"
        " sae --sample 0 learns one of all"
    )
    return replace(source, data=source.data.isel(example=known), n_sampled=int(known.sum()))


def learn_default(source: "Source") -> None:
    """Learn a dictionary of the run as ``lake analyze sae`` does, and store it as made by that."""
    from analyze.cost import sampled
    from analyze.sae.command import COMMAND as SAE
    from analyze.sae.command import SAESettings, learn
    from store.keeping import check_still

    settings = SAESettings()
    drawn = sampled(SAE, replace(source, data=source.lake[source.run], n_sampled=None), settings)
    dictionary: xr.Dataset = learn([drawn], settings)
    check_still(source.lake, "sae", {source.run: drawn.data.attrs["fingerprint"]})
    source.lake.write_result(
        "sae",
        dictionary.assign_attrs(run=source.run),
        runs=[source.run],
        spec=settings.spec() | ({} if drawn.n_sampled is None else {"sample": drawn.n_sampled}),
        command=["lake", "analyze", "sae", PATH, source.run],
    )


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """Held-out scores of each predictor, a line each."""
    wrong = int(result["n_test"].sel(outcome="wrong"))
    note = str(result["note"].item())
    return [
        Table(
            title=f"{result.attrs['run']}: will the answer be wrong? {wrong} of {int(result['n_test'].sum())} test"
            " answers are",
            columns=["predictor", "accuracy", "95%", "AUROC", "95%", "precision wrong", "recall wrong"]
            + ["precision right", "recall right", "codes' gain in AUROC", "training accuracy"],
            rows=[predictor_row(result, str(predictor)) for predictor in result["predictor"].values],
            caption=f"{note + '; ' if note else ''}training accuracy is a diagnostic only",
        )
    ]


def predictor_row(result: Any, predictor: str) -> list[Any]:
    """Scores of one predictor, and what the codes gain over it."""
    scores = result.sel(predictor=predictor)
    bounds = {name: range_text(scores[f"{name}_low"], scores[f"{name}_high"]) for name in ("accuracy", "auroc")}
    gain, low, high = (float(scores[f"auroc_gain{bound}"]) for bound in ("", "_low", "_high"))
    return [
        predictor.replace("_", " "),
        float(scores["accuracy"]),
        bounds["accuracy"],
        float(scores["auroc"]),
        bounds["auroc"],
        *(float(scores[name].sel(outcome=side)) for side in ("wrong", "right") for name in ("precision", "recall")),
        "-" if predictor == "sae_codes" or math.isnan(gain) else f"{gain:+.3f} ({range_text(low, high, '+.3f')})",
        float(scores["train_accuracy"]),
    ]


def frames(kind: str, result: Any) -> dict[str, Any]:
    """Tidy tables of the scores, without examples and features."""
    from analyze.tables import result_tables

    return result_tables(result.drop_dims(["example", "feature"], errors="ignore"))


COMMAND = Analysis(
    name="errors",
    help="Predict from sparse codes whether answers are wrong; beside raw activations, question length and majority.",
    settings=ErrorSettings,
    run=run,
    results={"errors": tables},
    cost=cost,
    frames=frames,
    block=BLOCK,
)
