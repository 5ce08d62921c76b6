"""``lake analyze features``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from schemas.command import Analysis, Cost, Made, Printed, Settings, Table, kept_beside, setting
from schemas.wording import interval_text, or_dash

if TYPE_CHECKING:
    import xarray as xr
    from joblib import Memory

    from analyze.source import Source
    from store import Result

SHOWN = 20
"""Features whose page is printed, those that fire most often first."""
PROBE = ("tells", "area", "area_low", "area_high", "area_n", "area_p")
"""What :func:`analyze.features.probe.feature_probes` says of each feature."""
EFFECT = (
    "kl", "kl_low", "kl_high", "kl_random", "kl_more", "kl_p", "broken", "broken_low", "broken_high", "broken_random",
    "broken_p",
)  # fmt: skip
"""What ``lake reenter features`` says of each."""


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(Settings):
    """The dictionary whose features are shown, and when two models share one."""

    part: ClassVar[tuple[str, ...]] = ()  # a dictionary is read at the states it was learned from

    sae: str | None = setting(
        None,
        "Stored dictionary, of a pool of states, of each cell, or a crosscoder; by default each run's own, and which"
        " features crosscoders of the runs share. A crosscoder that is named has a page for each of its runs, too.",
    )
    tokens: int = setting(8, "Number of tokens to list that a feature writes.", least=1)
    balance: float = setting(0.1, "Least share of a feature's squared decoder norm in either model.", least=0)
    max_problems: int = setting(
        300, "Most problems used to choose what a feature stands for, to test that, and to find shared features.",
        metavar="N", least=8,
    )  # fmt: skip
    resamples: int = setting(200, "Resamples of the problems behind each interval.", least=2)
    permutations: int = setting(200, "Shuffles of the problems; for shared features, of one model's problems.", least=1)
    seed: int = setting(0, "Seed of what is drawn.", least=0)
    export: Path | None = setting(
        None,
        "Also write each run's features in SAEDashboard's form, which Neuronpedia takes: JSON, a folder for each"
        " layer.",
        metavar="DIR",
        stored=False,
    )


def run(sources: "Sequence[Source]", settings: FeatureSettings) -> list[Made]:
    """Pages of the features of each run's dictionary, and which features a crosscoder of the runs shares."""
    from analyze.features.dashboard import write_dashboards
    from analyze.pieces import pieces_in
    from schemas import UsageError

    memory = pieces_in(sources[0].folder, __file__)
    lake, by_run = sources[0].lake, {source.run: source for source in sources}
    made, dictionaries = [], chosen(sources, settings.sae)
    if settings.balance != FeatureSettings.balance and all(len(stored.runs) == 1 for stored in dictionaries):
        raise UsageError(f"--balance is of what a crosscoder's runs share; {dictionaries[0].name} is of one run")
    for stored in dictionaries:
        dictionary = lake.open_result(stored.name)
        inputs = {"sae": stored.fingerprint}
        of = [by_run[name] for name in stored.runs]
        if settings.export is not None and dictionary.attrs["scope"] == "crosscoder":
            raise UsageError(
                f"--export: SAEDashboard shows dictionaries of one model's states; {stored.name} is a crosscoder"
            )
        if len(of) > 1:
            made.append(Made("shared_features", shared_by(of, dictionary, settings, memory), inputs, runs=stored.runs))
        for source in of if len(of) == 1 or settings.sae is not None else []:
            pages, effects = of_one([source, *(one for one in of if one is not source)], dictionary, settings, memory)
            if settings.export is not None:
                with source.progress("export", "examples") as report:
                    folder = settings.export / source.run.replace("/", ".")
                    write_dashboards(dictionary, source.data, source.model, folder, progress=report)
            made.append(Made("features", pages, inputs | effects, runs=[source.run]))
    return made


def shared_by(
    sources: "Sequence[Source]", dictionary: "xr.Dataset", settings: FeatureSettings, memory: "Memory"
) -> "xr.Dataset":
    """Features of a crosscoder that the runs it was learned from share."""
    from analyze.pieces import taken_up

    names = [source.run for source in sources]
    with sources[0].shell.progress(" + ".join(names), "draws") as report:
        return taken_up(
            memory, shared_of, [dictionary, *(source.data for source in sources)], balance=settings.balance,
            max_problems=settings.max_problems, resamples=settings.resamples, permutations=settings.permutations,
            seed=settings.seed, progress=report,
        )  # fmt: skip


def shared_of(dictionary: "xr.Dataset", *runs: "xr.Dataset", **settings: Any) -> "xr.Dataset":
    """Features of a crosscoder that its runs share."""
    from analyze.features.shared import shared_features

    return shared_features(dictionary, {str(run.attrs["run"]): run for run in runs}, **settings)


def of_one(
    sources: "Sequence[Source]", dictionary: "xr.Dataset", settings: FeatureSettings, memory: "Memory"
) -> "tuple[xr.Dataset, dict[str, str]]":
    """Pages of a dictionary's features with what each tells, and does where lake reenter features took it out.

    They are of the first run; the others are those that a crosscoder reads besides.
    """
    from analyze.features.pages import feature_pages, with_effects
    from analyze.features.probe import feature_probes
    from analyze.pieces import taken_up

    source = sources[0]
    with source.progress("pages"):
        pages = taken_up(memory, feature_pages, [dictionary, source.data, source.model], tokens=settings.tokens)
    with source.progress("probes"):
        probes = taken_up(
            memory, feature_probes, [dictionary, *(one.data for one in sources)], max_problems=settings.max_problems,
            permutations=settings.permutations, seed=settings.seed,
        )  # fmt: skip
    if probes is not None:
        pages = pages.merge(probes, combine_attrs="no_conflicts")
    digest = str(dictionary.attrs.get("fingerprint", ""))
    for stored in preferred_effects(source, digest):
        return with_effects(pages, source.lake.open_result(stored.name)), {"effects": stored.fingerprint}
    return pages, {}


def preferred_effects(source: "Source", dictionary: str) -> "list[Result]":
    """Stored effects of a dictionary's features, the one to take first."""
    from store.results import preferred

    stored = [one for one in source.lake.results("feature_effects") if one.runs == (source.run,)]
    return preferred(
        one for one in stored if source.lake.open_result(one.name).attrs.get("dictionary") == dictionary
    )  # fmt: skip


def cost(sources: "Sequence[Source]", settings: FeatureSettings) -> Cost:
    """Directions of features, and the states they fire on most, read out; codes of some problems."""
    from analyze.cost import reading
    from analyze.features.effort import page_readings, page_steps, probe_steps
    from analyze.features.pages import LOGIT_BYTES
    from analyze.sae.dictionary import activation_of

    by_run, lake = {source.run: source for source in sources}, sources[0].lake
    reads, steps, operations, memory, n_state = [], [], 0.0, 0.0, 0
    for stored in chosen(sources, settings.sae):
        dictionary = lake.open_result(stored.name)
        n_example = max(by_run[run].data.sizes["example"] for run in stored.runs)
        within = replace(settings, max_problems=min(settings.max_problems, n_example))
        joint = len(stored.runs) > 1
        read = activation_of(dictionary, {run: by_run[run].data for run in stored.runs})
        n_cell = dictionary["frequency"].isel(feature=0).size
        n_feature = dictionary.sizes["feature"]
        n_code = 2 * within.max_problems * n_feature * n_cell  # of both sides of the split, wherever features fire
        if dictionary.attrs["scope"] == "cell":
            n_feature *= n_cell
        steps += probe_steps(dictionary, n_cell, n_feature, within)
        for run, part in zip(stored.runs, read.values() if isinstance(read, Mapping) else [read], strict=True):
            hidden = part.sizes["hidden"]
            if not joint or settings.sae is not None:
                rows, n_token = n_top(dictionary), by_run[run].lazy_model.sizes["vocabulary"]
                steps += page_steps(n_token, n_feature, settings)
                operations += 2.0 * hidden * ((rows + n_feature) * n_token + n_code)
                n_state += rows
                reads += page_readings(dictionary, by_run[run].data, part, rows, within)
            if joint:
                rows = within.max_problems * (part.size // hidden // part.sizes["example"])
                operations += 2.0 * rows * n_feature * (hidden + 2 * (settings.resamples + settings.permutations))
                n_state += within.max_problems
                reads.append(reading(part))
            held = by_run[run].lazy_model["unembedding"].nbytes + 4 * LOGIT_BYTES
            memory = max(memory, held + 4.0 * 8 * n_feature * max(hidden, 300))
    return Cost(
        states=n_state, reads=reads, operations=operations, memory=memory, steps=steps,
        readouts=[source.run.partition("/")[0] for source in sources],
    )  # fmt: skip


def n_top(dictionary: "xr.Dataset") -> int:
    """How many different states features fire on most; a dead feature has none."""
    on = abs(dictionary["top_activation"].values.reshape(-1)) > 0
    places = [dictionary[name].values.reshape(-1)[on] for name in dictionary if str(name).startswith("top_")]
    return len(set(zip(*(place.tolist() for place in places if place.dtype.kind != "f"), strict=True)))


def chosen(sources: "Sequence[Source]", name: str | None) -> "list[Result]":
    """The dictionary named, or the preferred one of each run and of every set of the runs.

    A pool's is preferred to those of each cell, and these to a crosscoder of the run's own layers.

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
        of_more = [one for one in lake.results("sae") if one.name == name and not named]
        if of_more:
            raise UsageError(f"--sae {name} reads {', '.join(of_more[0].runs)}; name all of these runs")
        if not named:
            known = [one.name for one in stored]
            raise UsageError(
                f"--sae {name} is no dictionary of {', '.join(runs)}; there are {', '.join(known) or 'none'}"
                f"{nearest(name, known)}"
            )
        return named
    best: dict[tuple[str, ...], Result] = {}
    scopes = ("pool", "cell", "crosscoder")
    for one in sorted(preferred(stored), key=lambda result: scopes.index(str(result.spec.get("scope", "pool")))):
        best.setdefault(one.runs, one)
    for run in runs:
        if not any(run in names for names in best):
            lake.find("sae", run, scope="pool")  # says how to make it
    return sorted(best.values(), key=lambda one: (len(one.runs), [runs.index(name) for name in one.runs]))


def tables(result: Any, spec: Mapping[str, Any]) -> list[Printed]:
    """The features that fire most often, and those that tell or do most."""
    every = feature_rows(result)
    shown, n_feature = every[:SHOWN], result.sizes["feature"]
    names = ("feature", "fires", "most", "reads", "writes", "takes", "problem")
    printed: list[Printed] = [
        Table(
            title=f"{result.attrs['run']}: the {len(shown)} of {n_feature} features that fire most often",
            columns=["feature", "fires", "most at", "reads there", "writes", "takes from", "top problem"],
            rows=[[row[name] for name in names] for row in shown],
            labels=1,
            caption="fires: share of states; reads there: first tokens of the logit lens where it fires most",
        )
    ]
    telling = most_telling(every)[:SHOWN]
    if telling:
        taken_out = "kl" in telling[0]
        printed.append(
            Table(
                title=f"{result.attrs['run']}: what features tell" + (", and do to the answer" if taken_out else ""),
                columns=["feature", "tells", "n", "area 95%", "p", *(EFFECT_COLUMNS if taken_out else [])],
                rows=[[row["feature"], *told_cells(row)] for row in telling],
                labels=1,
                caption="n: test problems with the step and a finite state; area under the ROC curve on them, p:"
                " against shuffled ones, over all features; intervals are of one alone"
                + ("; KL in nat, at the answer's first token, with its part taken out, beside random directions as long"
                   if taken_out
                   else f"; what they do: lake reenter features PATH {result.attrs['run']}, then this again"),
            )
        )  # fmt: skip
    return printed


EFFECT_COLUMNS = ("KL 95%", "random", "p Holm", "broken", "random")
"""What the part of a feature does, in the table of those that do most."""


def told_cells(row: Mapping[str, Any]) -> list[str]:
    """What a feature tells and does, in words."""
    p = f"{row['area_p']:.3f}" if row["tells"] else ""
    cells = [row["tells"], str(row.get("area_n", "")), interval_text(row, "area", none=""), p]
    if "kl" in row:
        cells += [interval_text(row, "kl", none=""), f"{row['kl_random']:.3f}", or_dash(row["kl_p"], ".1e")]
        cells += [or_dash(row[name], ".3f") for name in ("broken", "broken_random")]
    return cells


def most_telling(rows: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    """Features that move the answer most beyond random directions first; where none was taken out, that tell most."""
    for key in ("kl_more", "area"):
        if rows and key in rows[0]:
            return sorted((row for row in rows if row[key] == row[key]), key=lambda row: -float(row[key]))
    return []


def feature_rows(pages: Any) -> list[dict[str, Any]]:
    """Each feature in a few words, those that fire most often first."""
    import numpy as np

    from analyze.lens.tokens import in_a_line

    frequency = pages["frequency"]
    cells = [str(dim) for dim in frequency.dims if dim != "feature"]
    by_cell = np.nan_to_num(frequency.transpose("feature", *cells).values, nan=-1)
    by_cell = by_cell.reshape(len(by_cell), -1)
    often = frequency.mean(cells).values if cells else frequency.values
    places = list(product(*(pages[dim].values.tolist() for dim in cells)))
    told = [name for name in (*PROBE, *EFFECT) if name in pages]
    columns = {name: pages[name].transpose("feature", ...).values for name in (*told, "top_reading", "top_question")}
    writes = {sign: pages["writes"].sel(sign=sign).transpose("feature", "token").values for sign in ("+", "-")}
    rows = []
    for index in np.argsort(-often, kind="stable"):
        most = dict(zip(cells, places[by_cell[index].argmax()], strict=True))
        questions = columns["top_question"][index]
        rows.append(
            {
                "feature": int(pages["feature"].values[index]),
                "fires": float(often[index]),
                "most": place_text(dict(reversed(most.items()))),
                "reads": in_a_line(str(text) for text in columns["top_reading"][index] if text),
                "writes": in_a_line(map(str, writes["+"][index, :5])),
                "takes": in_a_line(map(str, writes["-"][index, :5])),
                "problem": str(questions[0])[:60] if len(questions) else "",
                **{name: columns[name].item(index) for name in told},
            }
        )
    return rows


def effect_rows(data: "xr.Dataset", told: "xr.Dataset | None") -> list[dict[str, Any]]:
    """What taking each feature out does, those first that do most beyond random directions, and what each tells."""
    tells = {} if told is None or "tells" not in told else told["tells"].to_series().to_dict()
    rows = []
    for index in (-data["kl_more"]).argsort().values:
        one = data.isel(feature=int(index))
        number, layer = int(one["feature"]), int(one["layer"])
        place = f"{one['position'].item()}, {'fed' if layer == -1 else f'layer {layer}'}"
        row = {"feature": number, "place": place, "tells": steps_from_one(tells.get(number, ""))}
        rows.append(row | {str(name): one[name].item() for name in data.data_vars})
    return rows


def place_text(labels: Mapping[str, Any]) -> str:
    """A place where a feature fires, in words, as in ``ct4, layer 0``."""
    return ", ".join(f"layer {label}" if dim == "layer" else str(label) for dim, label in labels.items())


def steps_from_one(text: str) -> str:
    """What a feature tells, its steps counted from 1 as the page counts them."""
    return re.sub(r"\bstep (\d+)", lambda found: f"step {int(found[1]) + 1}", text)


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
    stopped=kept_beside("features"),
    together=True,
    frames=frames,
)
