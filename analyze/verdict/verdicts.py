"""Verdicts on the thoughts of a run from the stored results of its model, and of its controls."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from analyze.context import controls_in
from analyze.typed import typed
from analyze.verdict.measures import LEAST_N, READERS
from analyze.verdict.rules import (
    ALL,
    APART,
    QUESTIONS,
    READABLE,
    ROUTE,
    UNMEASURED,
    USED,
    YES,
    Evidence,
    Measure,
    against_control,
    overturned_by,
    together,
    weigh,
)  # fmt: skip
from schemas import UsageError, segment_of
from schemas.naming import By, relabelled
from schemas.registry import line
from schemas.wording import with_interval
from store.read import Lake
from store.results import Result, preferred

OF_QUESTION = {
    READABLE: {"lens": "lens", "probe": "probes --target intermediate_result", "traces": "traces"},
    USED: {"mean": "corrupt", "resample": "corrupt", "patch": "patch", "edit": "edit", "erase": "subspace"},
    ROUTE: {"graph": "graph", "heads": "ablate_heads", "head attribution": "attribute"},
}
"""Methods of each question, and the results they are read from with the options of the command that makes them."""


NO_WAY_BACK = "nothing can be put back into a model that only code of one's own runs"

OF_PAIRS = ("patch", "attribute")
"""Results over clean and corrupted halves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What the lake has stored of a model."""

    run: str
    measures: tuple[Measure, ...]
    methods: frozenset[str]
    """Methods that were measured, of whichever thought."""
    read: tuple[str, ...] = ()
    """Names of the results that were looked at, those that had nothing to say among them."""


def stored(lake: Lake, run: str, kind: str) -> Result | None:
    """The result of a kind that speaks for a run's model: of that run, else of another of its runs (of pairs).

    Results whose run has been made anew since are passed over.
    """
    model = run.partition("/")[0]
    fitting = []
    for result in lake.results(kind):
        if len(result.runs) != 1 or result.runs[0].partition("/")[0] != model:
            continue
        plain = kind != "lens" or result.spec.get("lens", "plain") == "plain"
        plain &= result.spec.get("into", "corrupted") == "corrupted"
        target = result.spec.get("target", "intermediate_result") == "intermediate_result"
        current = all(lake.attributes(name)["fingerprint"] == mark for name, mark in result.inputs.items())
        if plain and target and current:
            fitting.append(result)
    own = [result for result in fitting if result.runs == (run,)]
    return next(iter(preferred(own or fitting)), None)


def measured(lake: Lake, run: str) -> Found:
    """Every measure that the lake has stored of a run's model."""
    measures: list[Measure] = []
    results = [result for kind in READERS if (result := stored(lake, run, kind)) is not None]
    for result in results:
        measures += READERS[result.kind](lake.open_result(result.name), result.name, lake[result.runs[0]])
    methods = frozenset(one.method for one in measures)
    return Found(run=run, measures=tuple(measures), methods=methods, read=tuple(result.name for result in results))


def newer(lake: Lake, verdicts: xr.Dataset) -> list[str]:
    """Names of results that verdicts made now would look at and these, made before them, did not."""
    attrs = verdicts.attrs
    controls = json.loads(attrs["controls"]) if "read" in attrs else []  # older versions did not store what was read
    runs = [run for run in (attrs["run"], *controls) if run in lake.runs()]
    seen = {*verdicts["result"].values.astype(str), *json.loads(attrs.get("read", "[]"))}
    now = dict.fromkeys(result.name for run in runs for kind in READERS if (result := stored(lake, run, kind)))
    return [name for name in now if name not in seen and name not in attrs["missing"]]


def controls_of(lake: Lake, run: str) -> list[str]:
    """Runs of the lake whose model is a control of a run's, over the same data."""
    model, _, data = run.partition("/")
    names = {f"{name}/{data}" for name, control in controls_in(lake).items() if control.of == model}
    return [name for name in lake.runs() if name in names]


def missing(lake: Lake, verdicts: Found) -> list[dict[str, str]]:
    """Methods that were not measured, the command that makes what they are read from, and whether that is there."""
    model = verdicts.run.partition("/")[0]
    pairs = [run for run in lake.runs() if run.partition("/")[0] == model and "pair" in lake[run]]
    pairs = [run for run in pairs if bool((lake[run]["pair"] >= 0).any())]
    rows = []
    for question, methods in OF_QUESTION.items():
        for method, need in methods.items():
            if method not in verdicts.methods:
                kind, _, options = need.partition(" ")
                runs = [verdicts.run] if kind not in OF_PAIRS else pairs[:1] or [f"{model}/PAIRS"]
                command = typed(lake, line(kind, options), lake.location, runs) or NO_WAY_BACK
                if there := stored(lake, verdicts.run, kind):
                    made = there.describe(lake.location)
                    needed = f"{LEAST_N} problems are needed that it tells of: answered rightly, or with steps to read"
                    command += f" ({there.name} has none: {made}; {needed})"
                rows.append({"question": question, "method": method, "command": command})
    return rows


def verdict(
    lake: Lake, run: str, controls: Sequence[str], *, margin: float = 0.1, level: float = 0.95, by: By = "state"
) -> xr.Dataset:
    """Whether each thought of a run is readable, used, and where it leads.

    Every figure is a share (of problems, or of variance where a probe was a regression). Its interval holds at
    1 - (1 - level) / n_test, where n_test counts every figure of its question that a verdict rests on, of the run and
    its controls, so that all intervals of a question hold together (Bonferroni); figures of single heads do so among
    themselves. It says yes above the margin, no below
    it, and is undecided otherwise; :func:`analyze.verdict.rules.together` says what several say together.

    Parameters
    ----------
    lake, run
        Whose results are read; the run's model may have them from another of its runs.
    controls
        Runs of models that do not do what is asked about.
    margin
        Share below which an effect counts as none.
    level
        Coverage of all intervals of a question taken together.
    by
        Whether what is readable is called by the position of the state that is read, or by where it is fed.

    Returns
    -------
    xr.Dataset
        Along ``verdict`` (one for each thought, and ``all``, and question): ``thought``, ``question``, ``verdict``,
        ``why``, ``control``, ``overturned_by``; along ``evidence`` every figure behind them: ``of_thought``,
        ``of_question``, ``method``, ``target``, ``value``, ``low``, ``high``, ``n``, ``smallest`` (the smallest share
        that many problems tell from the margin), ``says``, ``counts`` (whether a verdict rests on it),
        ``against_control``, ``what``, ``result``. ``attrs`` hold what is missing.

    Raises
    ------
    UsageError
        If the run has no thoughts, or a control is the run itself.
    """
    thoughts = [str(label) for label in lake[run]["position"].values if segment_of(str(label)) == "latent"]
    if not thoughts:
        raise UsageError(f"verdict: {run} has no thoughts to judge; name a run of a model that thinks")
    if run in controls:
        raise UsageError(f"verdict: {run} is its own control; name another run with --control")
    own, others = measured(lake, run), [measured(lake, name) for name in controls]
    evidence = weighed(own, others, margin, level, by)
    absent, levels = missing(lake, own), levels_of(own, others, level)
    places = [*(["bot"] if by == "state" else []), *thoughts, ALL]
    rows = [
        judged(place, question, evidence, absent, margin, levels)
        for question in QUESTIONS
        for place in places
        if (place != ALL or question != READABLE) and (place != "bot" or question == READABLE)
    ]
    return labelled(rows, evidence).assign_attrs(
        run=run, controls=json.dumps(list(controls)), margin=margin, level=level, by=by, missing=json.dumps(absent),
        read=json.dumps([name for one in (own, *others) for name in one.read]),
        n_test=json.dumps({family: _n_test(family, [own, *others]) for family in levels}),
        n_example=int(lake[run].sizes["example"]),
    )  # fmt: skip


def weighed(own: Found, others: Sequence[Found], margin: float, level: float, by: By) -> list[Evidence]:
    """Each measure with its interval, and beside that of the control that shows most of it."""
    levels = levels_of(own, others, level)
    beside = [{one.key: weigh(one, margin, levels[one.family]) for one in other.measures} for other in others]
    out = []
    for measure in own.measures:
        mine = weigh(measure, margin, levels[measure.family])
        theirs = [known[measure.key] for known in beside if measure.key in known]
        most = max(theirs, key=lambda one: np.nan_to_num(one.value, nan=-np.inf), default=None)
        thoughts = relabelled([measure.thought], by if measure.question == READABLE else "state")
        out.append(
            replace(mine, measure=replace(measure, thought=thoughts[0]), control=against_control(mine, most, margin))
        )
    return out


def levels_of(own: Found, others: Sequence[Found], level: float) -> dict[str, float]:
    """Level of each figure of a family (question, or question and method) at which all of them hold together."""
    measures = [one for verdict in (own, *others) for one in verdict.measures]
    families = dict.fromkeys([*QUESTIONS, *(one.family for one in measures)])
    return {family: 1 - (1 - level) / max(_n_test(family, [own, *others]), 1) for family in families}


def _n_test(family: str, verdicts: Sequence[Found]) -> int:
    return sum(one.family == family and one.counts for verdict in verdicts for one in verdict.measures)


def judged(
    place: str, question: str, evidence: Sequence[Evidence], absent: Sequence[Mapping[str, str]], margin: float,
    levels: Mapping[str, float],
) -> dict[str, str]:  # fmt: skip
    """The verdict on one thought and question, why, and what would overturn it."""
    evidence = [one for one in evidence if (one.measure.thought, one.measure.question) == (place, question)]
    answer = together(question, evidence)
    lacking = [row["method"] for row in absent if row["question"] == question and about(row["method"], place)]
    level = max((levels[one.measure.family] for one in evidence), default=levels[question])
    shown = sorted(
        (
            one
            for one in evidence
            if one.measure.counts and one.says != UNMEASURED and (one.says == YES or answer != YES)
        ),
        key=lambda one: -np.nan_to_num(one.value, nan=-np.inf),
    )
    best: dict[str, Evidence] = {}
    for one in shown:
        best.setdefault(one.measure.method if question != ROUTE else one.measure.target, one)
    if question == ROUTE and answer != YES:
        best = dict(list(best.items())[:1])
    of_control: dict[str, list[str]] = {}
    for name, one in best.items():
        if one.control:
            of_control.setdefault(one.control, []).append(name)
    controls = [says if len(of_control) == 1 else f"{', '.join(names)} {says}" for says, names in of_control.items()]
    return {
        "thought": place, "question": question, "verdict": answer, "why": "; ".join(map(told, best.values())),
        "control": "; ".join(controls),
        "overturned_by": overturned_by(question, answer, evidence, lacking, margin, level),
    }  # fmt: skip


def about(method: str, place: str) -> bool:
    """Whether a method says something of a place: figures of heads are of all thoughts together, a graph's of each."""
    return (method in APART) == (place == ALL) if method in OF_QUESTION[ROUTE] else True


def told(one: Evidence) -> str:
    """A figure in a few words."""
    name = one.measure.target if one.measure.question == ROUTE else one.measure.method
    return f"{name} {with_interval((one.value, one.low, one.high), '.2f')}, n {one.measure.n}"


def labelled(rows: Sequence[Mapping[str, str]], evidence: Sequence[Evidence]) -> xr.Dataset:
    """Verdicts and evidence as a dataset."""

    def texts(values: Iterator[str]) -> np.ndarray:
        return np.array(list(values), dtype=object)

    columns = {name: ("row", texts(row[name] for row in rows)) for name in rows[0]}
    figures = {
        "of_thought": texts(one.measure.thought for one in evidence),
        "of_question": texts(one.measure.question for one in evidence),
        "method": texts(one.measure.method for one in evidence),
        "target": texts(one.measure.target for one in evidence),
        **{
            name: np.array([getattr(one, name) for one in evidence], dtype="float64")
            for name in ("value", "low", "high", "smallest")
        },
        "n": np.array([one.measure.n for one in evidence], dtype="int64"),
        "says": texts(one.says for one in evidence),
        "counts": np.array([one.measure.counts for one in evidence], dtype=bool),
        "against_control": texts(one.control for one in evidence),
        "what": texts(one.measure.what for one in evidence),
        "result": texts(one.measure.source for one in evidence),
    }
    return xr.Dataset({**columns, **{name: ("evidence", value) for name, value in figures.items()}})
