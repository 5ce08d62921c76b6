"""``lake analyze features``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from schemas.command import Analysis, Cost, Made, Printed, Settings, Table, setting

if TYPE_CHECKING:
    from analyze.source import Source
    from store import Result

SHOWN = 20
"""Features whose page is printed, those that fire most often first."""


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(Settings):
    """Of which dictionary features are told, and when two models share one."""

    part: ClassVar[tuple[str, ...]] = ()  # a dictionary is read at the states it was learned from

    sae: str | None = setting(None, "Stored dictionary; by default each run's own, and crosscoders of the runs.")
    tokens: int = setting(8, "Tokens told of what a feature writes.", least=1)
    balance: float = setting(0.1, "Least share of a feature's squared decoder norm in either model.", least=0)
    max_problems: int = setting(300, "Test problems used at most for shared features.", metavar="N", least=8)
    resamples: int = setting(200, "Resamples of the problems behind each interval.", least=1)
    permutations: int = setting(200, "Shuffles of the problems of one model.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)


def run(sources: "Sequence[Source]", settings: FeatureSettings) -> list[Made]:
    """Pages of the features of each run's dictionary, and which features a crosscoder of the runs shares."""
    from analyze.features.pages import feature_pages
    from analyze.features.shared import shared_features

    lake, by_run = sources[0].lake, {source.run: source for source in sources}
    made = []
    for stored in chosen(sources, settings.sae):
        dictionary = lake.open_result(stored.name)
        told = {"sae": stored.fingerprint}
        if len(stored.runs) > 1:
            with sources[0].shell.progress(" + ".join(stored.runs), "draws") as report:
                shared = shared_features(
                    dictionary,
                    {name: by_run[name].data for name in stored.runs},
                    balance=settings.balance,
                    max_problems=settings.max_problems,
                    resamples=settings.resamples,
                    permutations=settings.permutations,
                    seed=settings.seed,
                    progress=report,
                )
            made.append(Made("shared_features", shared, told, runs=stored.runs))
        else:
            source = by_run[stored.runs[0]]
            pages = feature_pages(dictionary, source.data, source.model, tokens=settings.tokens)
            made.append(Made("features", pages, told, runs=stored.runs))
    return made


def cost(sources: "Sequence[Source]", settings: FeatureSettings) -> Cost:
    """Directions of features, and the states they fire on most, read out; codes of test problems, for shared ones."""
    from analyze.cost import fewer, reading
    from analyze.sae.dictionary import activation_of

    by_run, lake = {source.run: source for source in sources}, sources[0].lake
    reads, operations, memory, n_state = [], 0.0, 0.0, 0
    for stored in chosen(sources, settings.sae):
        dictionary = lake.open_result(stored.name)
        read = activation_of(dictionary, {run: by_run[run].data for run in stored.runs})
        n_feature = dictionary.sizes["feature"]
        for part in read.values() if isinstance(read, Mapping) else [read]:
            rows = n_feature * dictionary.sizes.get("rank", 0) if len(stored.runs) == 1 else settings.max_problems
            n_state += rows
            vocabulary = by_run[stored.runs[0]].model.sizes["vocabulary"] if len(stored.runs) == 1 else 0
            operations += 2.0 * part.sizes["hidden"] * (rows + 2 * n_feature) * vocabulary
            if len(stored.runs) > 1:
                cells = part.size // part.sizes["hidden"] // part.sizes["example"]
                operations += 2.0 * rows * cells * n_feature * part.sizes["hidden"]
                operations += 4.0 * rows * cells * n_feature * (settings.resamples + settings.permutations)
            reads.append(reading(part))
        memory = max(memory, 4.0 * 8 * n_feature * max(part.sizes["hidden"], 300))
    return Cost(
        states=n_state, reads=reads, operations=operations, memory=memory,
        readouts=[source.run.partition("/")[0] for source in sources],
        **fewer(settings, resamples=(1, 2), permutations=(1, 2)),
    )  # fmt: skip


def chosen(sources: "Sequence[Source]", name: str | None) -> "list[Result]":
    """The dictionary named, or the preferred one of each run and of every set of the runs.

    Raises
    ------
    MissingRunError
        If there is none of a run; the command that makes one is named.
    UsageError
        If the one named is of other runs.
    """
    from schemas import UsageError, nearest
    from store.results import preferred

    lake, runs = sources[0].lake, [source.run for source in sources]
    stored = [one for one in lake.results("sae") if set(one.runs) <= set(runs)]
    if name is not None:
        named = [one for one in stored if one.name == name]
        if not named:
            known = [one.name for one in stored]
            raise UsageError(
                f"--sae {name} is no dictionary of {', '.join(runs)}; there are {', '.join(known) or 'none'}"
                f"{nearest(name, known)}"
            )
        return named
    best: dict[tuple[str, ...], Result] = {}
    for one in preferred(each for each in stored if each.spec.get("scope") != "cell"):
        best.setdefault(one.runs, one)
    for run in runs:
        if not any(run in names for names in best):
            lake.find("sae", run, scope="pool")  # says how to make it
    return sorted(best.values(), key=lambda one: (len(one.runs), [runs.index(name) for name in one.runs]))


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The features that fire most often: where, on what, and what they write."""
    rows = feature_rows(result)[:SHOWN]
    return [
        Table(
            title=f"{result.attrs['run']}: the {len(rows)} of {result.sizes['feature']} features that fire most often",
            columns=["feature", "fires", "most at", "reads there", "writes", "takes from", "top problem"],
            rows=[list(row.values()) for row in rows],
            labels=1,
            caption="fires: share of states; reads there: first tokens of the logit lens where it fires most",
        )
    ]


def feature_rows(pages: Any) -> list[dict[str, Any]]:
    """Each feature in a few words, those that fire most often first."""
    import numpy as np

    frequency = pages["frequency"]
    cells = [str(dim) for dim in frequency.dims if dim != "feature"]
    often = frequency.mean(cells) if cells else frequency
    rows = []
    for index in np.argsort(-often.values, kind="stable"):
        one = pages.isel(feature=int(index))
        place = one["frequency"].isel(one["frequency"].argmax(...)) if cells else None
        readings = [str(text).strip() for text in one["top_reading"].values if text]
        writes = {
            sign: " ".join(str(text).strip() for text in one["writes"].sel(sign=sign).values[:5]) for sign in ("+", "-")
        }
        rows.append(
            {
                "feature": int(one["feature"]),
                "fires": float(often[int(index)]),
                "most": " ".join(str(place[dim].item()) for dim in reversed(cells)) if place is not None else "",
                "reads": " ".join(dict.fromkeys(readings)),
                "writes": writes["+"],
                "takes": writes["-"],
                "problem": str(one["top_question"].values[0])[:60] if one.sizes["rank"] else "",
            }
        )
    return rows


def shared_tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """How many features two models share."""
    first, second = (str(model) for model in result["model"].values)
    number = {name: float(result[name]) for name in result.data_vars if not result[name].dims}
    low, high = number["n_shared_low"], number["n_shared_high"]
    rows: list[tuple[str, float]] = [
        ("fire at all", number["n_alive"]),
        (f"written by {first} alone", number["n_first"]),
        (f"written by {second} alone", number["n_second"]),
        (f"written by both, at least {result.attrs['balance']:g} in either", number["n_both"]),
        ("of these, fire on the same problems from either alone: shared", number["n_shared"]),
        ("of these, are turned on by one where the other turns them off", number["n_opposed"]),
    ]
    return [
        Table(
            title=f"{result.attrs['run']}: features of the crosscoder, {result.attrs['n_example']} test problems",
            columns=["features that", "count"],
            rows=[[name, int(count)] for name, count in rows],
            caption=f"shared: 95% {low:.0f}..{high:.0f} over problems; {number['n_shared_null']:.2f} with problems"
            f" shuffled, which correlate below {number['agreement_null']:.2f}",
        )
    ]


def frames(kind: str, result: Any) -> dict[str, Any]:
    """A row for each feature, and what is counted."""
    import pandas as pd

    from analyze.tables import result_tables

    return {"feature": pd.DataFrame(feature_rows(result))} if kind == "features" else result_tables(result)


COMMAND = Analysis(
    name="features",
    help="Say what each feature of a stored dictionary fires on, reads and writes, and which ones two models share.",
    settings=FeatureSettings,
    run=run,
    results={"features": tables, "shared_features": shared_tables},
    cost=cost,
    together=True,
    frames=frames,
)
