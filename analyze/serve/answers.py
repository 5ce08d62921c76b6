"""What the page of ``lake serve`` asks for, read from the lake when it is asked for."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from analyze.context import Context
from analyze.effects.outcomes import outcome_columns, outcome_rows, reentries
from analyze.explorer.features import dictionaries, feature_lists, feature_page
from analyze.explorer.heads import heads
from analyze.explorer.listing import listed_problems
from analyze.explorer.problems import head_attention, problems
from analyze.explorer.state import readable_runs, state_of
from analyze.query.show_command import frames_of
from analyze.tables import records
from schemas import LakeError, MissingRunError, UsageError, nearest
from store import open_lake
from store.results import Result

FRESH_SECONDS = 1.0
"""How long a look at what the lake holds is taken for true."""
KEPT_ANSWERS = 256
"""Answers that are kept, of those used last."""
TRIES = 3
"""Looks at a lake that changes meanwhile, before what fails counts as damaged."""
AT_WORK = 4
"""Answers that are made at once: of these the memory is."""
MOST_ROWS = 500
"""Rows of a result's table that are sent; ``lake show --csv`` has all."""


@dataclass(slots=True)
class Slot:
    """An answer, or the place where it is being made."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    content: bytes | None = None


@dataclass(slots=True)
class Moment:
    """What the lake held when it was looked at, and what was answered from it."""

    context: Context
    state: str
    broken: dict[str, str]
    slots: OrderedDict[tuple[Any, ...], Slot] = field(default_factory=OrderedDict)


class Answers:
    """Everything the page can ask for; answers are JSON.

    What was asked for is kept until the lake holds something else. Many may ask at once: the same answer is made once.

    Parameters
    ----------
    location
        Lake: a folder or a URL.

    Raises
    ------
    UsageError
        If no lake lies there.
    """

    def __init__(self, location: str | PathLike[str]) -> None:
        self.lake = open_lake(location)
        self.title = str(location).rstrip("/").rpartition("/")[2] or str(location)
        self._look = threading.Lock()
        self._work = threading.BoundedSemaphore(AT_WORK)
        self._looked = -FRESH_SECONDS
        self._moment: Moment | None = None
        self.moment()

    def moment(self) -> Moment:
        """The lake as it is now, within ``FRESH_SECONDS``."""
        with self._look:
            if self._moment is not None and time.monotonic() - self._looked < FRESH_SECONDS:
                return self._moment
            for _ in range(TRIES - 1):
                try:
                    return self._look_again()
                except MissingRunError:
                    continue  # a run was removed between two looks at it
            return self._look_again()

    def state(self) -> str:
        """What the lake holds, in one word; of one that cannot be read, none."""
        try:
            return self.moment().state
        except LakeError:
            return ""

    def _look_again(self) -> Moment:
        runs, broken = readable_runs(self.lake)
        for run in [*runs]:
            if strange := self._outside(run):
                runs.remove(run)
                broken[run] = strange
        results = self._results(broken)
        state = state_of(self.lake, runs, results)
        if self._moment is None or (state, broken) != (self._moment.state, self._moment.broken):
            context = Context(self.lake, runs, lazy=True)
            current = {run: self.lake.attributes(run)["fingerprint"] for run in runs}
            context.results = [
                result
                for result in results
                if result.runs and all(current.get(run) == mark for run, mark in result.inputs.items())
            ]
            self._moment = Moment(context, state, broken)
        self._looked = time.monotonic()
        return self._moment

    def _results(self, broken: dict[str, str]) -> list[Result]:
        """Stored results inside the lake; where one is damaged, none."""
        try:
            return [result for result in self.lake.results() if not self._outside(result.name)]
        except LakeError as error:
            broken["results"] = str(error)
            return []

    def _outside(self, name: str) -> str:
        """Why a group is not shown that a link leads out of the lake for."""
        root = self.lake.folder
        if root is None:
            return ""
        inside = Path(root).resolve()
        groups = [Path(root, *name.split("/")[: n + 1]) for n in range(len(name.split("/")))]
        out = [group for group in groups if not group.resolve().is_relative_to(inside)]
        return f"{out[0].name} is a link to a place outside the lake, which is not read" if out else ""

    def _once(self, key: tuple[Any, ...], make: Callable[[Context], Any]) -> bytes:
        """An answer, made by the first who asks for it.

        What fails is tried again from a new look: it may have been removed, or written anew, since the last one.
        """
        attempt = 0
        while True:
            attempt += 1
            moment = self.moment()
            try:
                return self._made(moment, key, make)
            except (MissingRunError, UsageError):
                raise
            except Exception:
                with self._look:
                    self._looked = -FRESH_SECONDS
                if attempt == TRIES or (attempt > 1 and self.moment() is moment):
                    raise

    def _made(self, moment: Moment, key: tuple[Any, ...], make: Callable[[Context], Any]) -> bytes:
        with self._look:
            slot = moment.slots.setdefault(key, Slot())
            moment.slots.move_to_end(key)
            while len(moment.slots) > KEPT_ANSWERS:
                moment.slots.popitem(last=False)
        with slot.lock:
            if slot.content is None:
                with self._work:
                    slot.content = encoded(make(moment.context))
            return slot.content

    def runs(self) -> bytes:
        """Runs of the lake and what there is of each."""
        broken = self.moment().broken
        return self._once(("runs",), lambda context: self._runs(context, broken))

    def _runs(self, context: Context, broken: Mapping[str, str]) -> Any:
        kinds = {run: {result.kind for result in context.results if result.runs == (run,)} for run in context.runs}
        return {
            "title": self.title,
            "runs": [
                {
                    "name": run,
                    "label": context.looks[run].label,
                    "n": context.run(run).sizes["example"],
                    "of": self.lake.layout(run).n_example,
                    "heads": "heads" in kinds[run],
                    "features": bool(dictionaries(context, run)),
                }
                for run in context.runs
            ],
            "broken": broken,
            "results": [
                {
                    "mark": result.fingerprint[:12],
                    "kind": result.kind,
                    "runs": result.runs,
                    "command": list(result.command),
                }
                for result in context.results
            ],
        }

    def listing(self, run: str, start: int = 0) -> bytes:
        """A block of the run's problems: what is searched and filtered by."""
        return self._once(("listing", run, start), lambda context: listed_problems(known(context, run), start))

    def problem(self, run: str, example: int) -> bytes:
        """One problem, as :func:`analyze.explorer.problems.problems` gives it."""

        def make(context: Context) -> Any:
            check_example(context, run, example)
            return problems(context, run, [example], every=True)

        return self._once(("problem", run, example), make)

    def attention(self, run: str, example: int, layer: int, head: int) -> bytes:
        """Where one head looks in one problem."""

        def make(context: Context) -> Any:
            data = check_example(context, run, example)
            for dim, label in (("layer", layer), ("head", head)):
                if label not in data[dim].values:
                    there = data[dim].values.tolist()
                    raise MissingRunError(f"{run} has no {dim} {label}; it has {there[0]} to {there[-1]}")
            return {"weights": head_attention(context, run, example, layer, head)}

        return self._once(("attention", run, example, layer, head), make)

    def conditions(self, run: str) -> bytes:
        """Every condition of the run's re-entries."""

        def make(context: Context) -> Any:
            known(context, run)
            return outcome_rows(context, run, [], every=True)[0]

        return self._once(("conditions", run), make)

    def outcomes(self, run: str, condition: str) -> bytes:
        """Answers of all problems under one condition: example, answer, change of log p, and outcome if named."""
        mark, _, number = condition.partition(".")

        def make(context: Context) -> Any:
            known(context, run)
            for result, _title in reentries(context, run, every=True):
                columns = outcome_columns(context, result, every=True)
                if result.fingerprint[:12] == mark and number.isdecimal() and int(number) in columns.named:
                    return [
                        [int(label), *columns.cell(int(number), place)] for place, label in enumerate(columns.example)
                    ]
            raise MissingRunError(f"{run} has no re-entry with a condition {condition!r}")

        return self._once(("outcomes", run, condition), make)

    def heads(self, run: str) -> bytes:
        """Map and scores of every head, or null."""

        def make(context: Context) -> Any:
            known(context, run)
            return heads(context, run)

        return self._once(("heads", run), make)

    def features(self, run: str) -> bytes:
        """Dictionaries of a run with their features."""

        def make(context: Context) -> Any:
            known(context, run)
            return feature_lists(context, run)

        return self._once(("features", run), make)

    def feature(self, run: str, dictionary: str, feature: int) -> bytes:
        """The page of one feature."""

        def make(context: Context) -> Any:
            known(context, run)
            return feature_page(context, run, dictionary, feature)

        return self._once(("feature", run, dictionary, feature), make)

    def result(self, mark: str) -> bytes:
        """Tables of a stored result, as ``lake show`` makes them."""

        def make(context: Context) -> Any:
            chosen = [result for result in context.results if len(mark) >= 12 and result.fingerprint.startswith(mark)]
            if not chosen:
                raise MissingRunError(f"the lake has no result {mark!r}")
            data = context.open(chosen[0]).load().assign_attrs(run=" + ".join(chosen[0].runs))
            return {
                "name": chosen[0].name,
                "made": chosen[0].describe(self.title),
                "tables": [
                    {
                        "name": name,
                        "columns": [str(column) for column in frame.columns],
                        "rows": [list(row.values()) for row in records(frame.head(MOST_ROWS))],
                        "n": len(frame),
                    }
                    for name, frame in frames_of(chosen[0].kind, data).items()
                ],
            }

        return self._once(("result", mark), make)


def known(context: Context, run: str) -> Any:
    """A run's dataset.

    Raises
    ------
    MissingRunError
        If the lake has no run of that name.
    """
    if run not in context.runs:
        raise MissingRunError(f"there is no run {run!r}{nearest(run, context.runs)}")
    return context.run(run)


def check_example(context: Context, run: str, example: int) -> Any:
    """A run's dataset, once it is seen to have an example.

    Raises
    ------
    MissingRunError
        If it has not.
    """
    data = known(context, run)
    if example not in data.indexes["example"]:
        labels: Sequence[int] = data["example"].values.tolist()
        there = f"it has {labels[0]} to {labels[-1]}" if labels else "none is written yet"
        raise MissingRunError(f"{run} has no problem {example}; {there}")
    return data


def encoded(value: Any) -> bytes:
    """JSON; what is not finite is null in it already."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


QUESTIONS: Mapping[str, Mapping[str, type]] = {
    "runs": {},
    "listing": {"run": str, "start": int},
    "problem": {"run": str, "example": int},
    "attention": {"run": str, "example": int, "layer": int, "head": int},
    "conditions": {"run": str},
    "outcomes": {"run": str, "condition": str},
    "heads": {"run": str},
    "features": {"run": str},
    "feature": {"run": str, "dictionary": str, "feature": int},
    "result": {"mark": str},
}
"""What may be asked, and with what."""


def answer(answers: Answers, question: str, given: Mapping[str, str]) -> bytes:
    """Answer a question by its name and the texts of a query.

    Raises
    ------
    MissingRunError
        If there is no such question, run, problem, head, feature or result.
    UsageError
        If something is missing, unknown, or no whole number where one is wanted.
    """
    if question not in QUESTIONS:
        raise MissingRunError(f"nothing answers to {question!r}; there are {', '.join(QUESTIONS)}")
    wanted = QUESTIONS[question]
    if strange := set(given) ^ set(wanted):
        raise UsageError(
            f"{question} takes {', '.join(wanted) or 'nothing'}; {sorted(strange)[0]!r} is missing or unknown"
        )
    values: dict[str, Any] = {}
    for name, kind in wanted.items():
        try:
            values[name] = kind(given[name])
        except ValueError:
            raise UsageError(f"{name} is {given[name]!r}; it must be a whole number") from None
    content: bytes = getattr(answers, question)(**values)
    return content
